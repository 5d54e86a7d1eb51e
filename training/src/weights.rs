//! Weights between a checkpoint on disk and the networks that train and sample.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use ladle::{
    kernels::HostTensor,
    model::config::ModelConfig,
    soup::{Adapter, Checkpoint},
};

use crate::rl::lora::HostFactor;

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

/// The low-rank terms of a PEFT adapter.
pub fn host_factors(adapter: &Adapter) -> BTreeMap<String, HostFactor> {
    let factor = |module: &ladle::soup::LoraModule| HostFactor {
        down: module.down.clone(),
        up: module.up.clone(),
        scale: module.scale,
    };
    adapter.modules.iter().map(|(name, module)| (name.clone(), factor(module))).collect()
}

/// The weights with an adapter added, `W + s B A` in f32: θ_sft as the frozen network of training.
pub fn merged(
    weights: &BTreeMap<String, HostTensor>,
    adapter: &BTreeMap<String, HostFactor>,
) -> candle_core::Result<BTreeMap<String, HostTensor>> {
    let tensor = |host: &HostTensor| Tensor::from_vec(host.to_f32(), host.shape(), &Device::Cpu);
    let mut merged = weights.clone();
    for (module, factor) in adapter {
        let Some(weight) = merged.get_mut(&format!("{module}.weight")) else { continue };
        let delta = tensor(&factor.up)?.matmul(&tensor(&factor.down)?)?;
        let sum = (tensor(weight)? + (delta * factor.scale)?)?;
        let values = sum.flatten_all()?.to_vec1::<f32>()?;
        *weight = HostTensor::from_f32(&values, weight.shape().to_vec())
            .map_err(candle_core::Error::wrap)?;
    }
    Ok(merged)
}
