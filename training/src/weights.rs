//! Weights between a checkpoint on disk and the networks that train and sample.

use std::collections::BTreeMap;

use ladle::{
    kernels::{Dtype, HostTensor},
    merge::{
        MergeError, SoupPlan,
        dense::merge_tensor,
        plan::{Change, Ingredients},
    },
    model::config::ModelConfig,
    soup::{Checkpoint, LoraModule},
};

/// Low-rank changes by module path, such as `model.layers.0.self_attn.q_proj`.
pub type Lora = BTreeMap<String, LoraModule>;

/// The tensors of a model's configuration, as stored, their shapes checked.
pub fn tensors(
    checkpoint: &Checkpoint,
    model: &ModelConfig,
) -> Result<BTreeMap<String, HostTensor>, String> {
    let checked = |(name, shape): (String, Vec<usize>)| {
        let tensor = checkpoint.get(&name).ok_or_else(|| format!("no tensor {name}"))?;
        if tensor.shape() != shape {
            let got = tensor.shape();
            return Err(format!("{name} has shape {got:?}, expected {shape:?}"));
        }
        Ok((name, tensor))
    };
    model.tensors().into_iter().map(checked).collect()
}

/// θ_sft as the frozen network of training: `weights` (of `model`) with an adapter added, by the
/// merge that serves. What the adapter changes becomes `dtype`, the rest stays as stored.
pub fn merged(
    weights: &BTreeMap<String, HostTensor>,
    adapter: &Lora,
    model: &ModelConfig,
    dtype: Dtype,
) -> Result<BTreeMap<String, HostTensor>, MergeError> {
    let sft = Change { modules: adapter, saved: &BTreeMap::new() };
    let backbones = Vec::new();
    let soup = Ingredients { base: weights, sft: Some(sft), backbones, answer_only: false };
    let mut merged = weights.clone();
    for tensor in SoupPlan::new(soup, model)?.tensors() {
        if !tensor.low_rank.is_empty() {
            merged.insert(tensor.name.clone(), merge_tensor(tensor, &[], dtype)?);
        }
    }
    Ok(merged)
}
