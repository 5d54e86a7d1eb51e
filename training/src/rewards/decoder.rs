//! Llama-family reward models: hidden states from the serving decoder.

use std::{collections::HashMap, path::Path, sync::Mutex};

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use ladle::{
    kernels::{
        Batch as Ragged, Dtype, HostTensor, KV_BLOCK, KvShape, Segment,
        cpu::{CpuKernels, KvPool},
    },
    model::{config::ModelConfig, decoder::Decoder},
    soup::Checkpoint,
};

use super::{
    layers::{Batch, Layers},
    network::{Network, Pool},
};
use crate::{rl::rollout, weights};

/// `model_type`s that this module opens.
pub(super) const FAMILY: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

struct Llama {
    decoder: Decoder<HostTensor>,
    kernels: Mutex<CpuKernels>,
}

/// The decoder of a checkpoint, in one file or sharded, its weights as stored; and the tensors of
/// the head on it (`score`).
pub(super) fn open(dir: &Path) -> std::result::Result<(Network, VarBuilder<'static>), String> {
    let checkpoint = Checkpoint::open(dir).map_err(|e| e.to_string())?;
    let mut model = ModelConfig::from_json(checkpoint.config()).map_err(|e| e.to_string())?;
    if model.encoder.is_some() {
        return Err(format!("a {} is an encoder–decoder model, not a decoder", model.model_type));
    }
    // A reward model has no head over the vocabulary; a tied head needs no tensor.
    model.tied = true;
    let weights = weights::tensors(&checkpoint, &model)?;
    let decoder = rollout::decoder(&model, &weights, &[]).map_err(|e| e.to_string())?;
    let head = checkpoint.tensors().iter().filter(|(name, _)| name.starts_with("score."));
    let head = head.map(|(name, tensor)| {
        let tensor = Tensor::from_vec(tensor.to_f32(), tensor.shape(), &Device::Cpu)?;
        Ok((name.clone(), tensor))
    });
    let head = head.collect::<Result<HashMap<_, _>>>().map_err(|e| e.to_string())?;
    let (hidden, longest) = (model.hidden_size, model.max_positions);
    let kernels = Mutex::new(CpuKernels::new(rayon::current_num_threads()));
    let layers = Llama { decoder, kernels };
    let network = Network::new(layers, Pool::Last, hidden, longest, checkpoint.config());
    Ok((network, VarBuilder::from_tensors(head, DType::F32, &Device::Cpu)))
}

impl Layers for Llama {
    fn forward(&self, batch: &Batch) -> Result<Tensor> {
        let config = self.decoder.config();
        let (count, length) = batch.ids.dims2()?;
        let mut ragged = Ragged::default();
        let mut blocks = 0;
        for row in batch.rows.iter().filter(|row| !row.is_empty()) {
            let start = ragged.tokens.len();
            ragged.tokens.extend(row);
            ragged.positions.extend(0..row.len() as u32);
            let first = blocks;
            blocks += row.len().div_ceil(KV_BLOCK) as u32;
            let rows = start..start + row.len();
            ragged.segments.push(Segment { rows, cached: 0, blocks: (first..blocks).collect() });
        }
        if ragged.tokens.is_empty() {
            // An empty response read without its prompt.
            return Tensor::zeros((count, length, config.hidden_size), DType::F32, &Device::Cpu);
        }
        ragged.outputs = (0..ragged.tokens.len()).collect();
        let shape = KvShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            blocks: blocks as usize,
            dtype: Dtype::F32.into(),
        };
        let kernels = self.kernels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let states = KvPool::new(shape)
            .and_then(|mut cache| self.decoder.hidden(&*kernels, &ragged, &mut cache))
            .map_err(candle_core::Error::wrap)?;
        let width = config.hidden_size;
        let mut padded = vec![0f32; count * length * width];
        let mut rest = states.data();
        for (row, space) in batch.rows.iter().zip(padded.chunks_mut((length * width).max(1))) {
            let (own, after) = rest.split_at(row.len() * width);
            space[..own.len()].copy_from_slice(own);
            rest = after;
        }
        Tensor::from_vec(padded, (count, length, width), &Device::Cpu)
    }
}
