//! A soup served on the CPU: its weights, one decoder for all c over them, the cache of
//! merged models, and the key/value memory.

use std::sync::Arc;

use super::{
    budget::{KV_BYTES, MERGED_BYTES},
    cost::Machine,
    error::OpenError,
    loaded::{Identity, Loaded, Passes, kv_shape},
    merged::{Merged, OnCacheEvent},
};
use crate::{
    config::MergeMode,
    kernels::{
        Batch, Dtype, HostTensor, KernelError, KvDtype,
        cpu::{CpuKernels, KvPool, Tensor, default_threads},
    },
    merge::{FusedBuilder, FusedCache, FusedOptions, MergeError, SoupPlan, mixed_decoder},
    model::decoder::Decoder,
    simd::{Bf16Products, Isa},
    soup::Soup,
    turns::{Pace, Turns},
};

/// Longest slice of a merge in the background between two steps, as a share of a step ([`Pace`]).
const MERGE_SHARE: f64 = 0.1;
/// The same where requests cannot run before their merge.
const AWAITED_SHARE: f64 = 1.0;

/// How a soup is opened for serving.
#[derive(Clone)]
pub struct CpuOptions {
    /// Instruction set of the kernels; `None`: the one that [`Isa::chosen`] gives.
    pub isa: Option<Isa>,
    /// Compute threads; `None`: all cores.
    pub threads: Option<usize>,
    /// Bytes of keys and values.
    pub kv_bytes: usize,
    /// Storage type of keys and values, f32, bf16 or int8; `None`: f32 for f32 weights, else bf16.
    pub kv_dtype: Option<KvDtype>,
    /// Bytes of merged weights.
    pub merged_bytes: usize,
    /// Execution modes to set up.
    pub merge_mode: MergeMode,
    /// Called on every event of the cache of merged models.
    pub on_cache_event: Option<OnCacheEvent>,
    /// Those of the engine's steps, between which models are merged.
    pub turns: Arc<Turns>,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            isa: None,
            threads: None,
            kv_bytes: KV_BYTES,
            kv_dtype: None,
            merged_bytes: MERGED_BYTES,
            merge_mode: MergeMode::Auto,
            on_cache_event: None,
            turns: Arc::default(),
        }
    }
}

/// A soup on the CPU.
pub type CpuBackend = Loaded<CpuPasses>;

/// Passes over the soup's weights, or over merged ones.
pub struct CpuPasses {
    kernels: CpuKernels,
    cache: KvPool,
    /// What the soup's weights are multiplied with, if in bf16.
    products: Bf16Products,
}

impl CpuBackend {
    /// Sets a soup up.
    pub fn open(soup: &Soup, options: &CpuOptions) -> Result<Self, OpenError> {
        let config = soup.config.clone();
        let plan = SoupPlan::new(soup, &config).map_err(MergeError::from)?;
        // Quantised weights are not merged: every request runs mixed.
        let merge_mode = match (options.merge_mode, plan.quantised()) {
            (MergeMode::Auto, Some(_)) => MergeMode::Mixed,
            (mode, _) => mode,
        };
        let mixed = match merge_mode {
            MergeMode::Fused => None,
            MergeMode::Auto | MergeMode::Mixed => Some(mixed_decoder(&plan, config.clone())?),
        };
        let threads = options.threads.unwrap_or_else(default_threads);
        let share = if merge_mode == MergeMode::Fused { AWAITED_SHARE } else { MERGE_SHARE };
        let pace = Pace { turns: options.turns.clone(), share };
        let merged = Merged::open(merge_mode, options.on_cache_event.clone(), |on_event| {
            let fused = FusedOptions {
                budget: options.merged_bytes,
                dtype: None,
                threads,
                pace: Some(pace),
            };
            FusedCache::open(plan.clone(), config.clone(), &fused, move |event| on_event(event))
        })?;
        let weights = plan.tensors().first().map_or(Dtype::F32, |tensor| tensor.dtype);
        let auto = match weights {
            Dtype::F32 => Dtype::F32,
            Dtype::F16 | Dtype::Bf16 | Dtype::Quantised(_) => Dtype::Bf16,
        };
        let dtype = options.kv_dtype.unwrap_or(auto.into());
        let isa = options.isa.unwrap_or_else(Isa::chosen);
        // Activations are as wide as the models of the soup: a bf16 part of a wide one is exact.
        let isa = if plan.wide() { isa.without_bf16() } else { isa };
        let passes = CpuPasses {
            kernels: CpuKernels::with_isa(threads, isa),
            cache: KvPool::new(kv_shape(&config, dtype, options.kv_bytes)?)?,
            products: match weights {
                Dtype::Bf16 => isa.bf16_products(),
                _ => Bf16Products::None,
            },
        };
        let identity = Identity { config, plan, digest: soup.digest.clone() };
        Ok(Self::new(identity, merged, mixed, passes))
    }

    /// What the cost model takes the machine for before it has measured passes.
    pub fn machine(&self) -> Machine {
        match self.passes.products {
            Bf16Products::None => Machine::default(),
            Bf16Products::Dots => Machine::BF16_CORES,
            Bf16Products::Tiles => Machine::TILE_CORES,
        }
    }
}

/// The outputs of a pass.
pub struct CpuOutputs {
    /// Final hidden states, normed, `[outputs, hidden_size]`.
    hidden: Tensor,
    /// `[outputs, vocab_size]`; `None` where there are no outputs.
    logits: Option<Tensor>,
}

impl Passes for CpuPasses {
    type Weight = HostTensor;
    type Builder = FusedBuilder;
    type Logits = CpuOutputs;

    fn blocks(&self) -> usize {
        self.cache.shape().blocks
    }

    fn forward(
        &mut self,
        decoder: &Decoder<HostTensor>,
        batch: &Batch,
    ) -> Result<CpuOutputs, KernelError> {
        let hidden = decoder.outputs(&self.kernels, batch, &mut self.cache)?;
        if batch.outputs.is_empty() {
            // A chunk in the middle of a prompt: only its keys and values are needed.
            return Ok(CpuOutputs { hidden, logits: None });
        }
        let c = batch.coefficients.as_ref().map(|c| c.select(&batch.outputs));
        let logits = decoder.logits(&self.kernels, &hidden, batch.outputs.len(), c.as_ref())?;
        Ok(CpuOutputs { hidden, logits: Some(logits) })
    }

    fn values<'a>(&self, outputs: &'a mut CpuOutputs) -> &'a mut [f32] {
        outputs.logits.as_mut().map(Tensor::data_mut).unwrap_or_default()
    }

    fn hidden<'a>(&self, outputs: &'a CpuOutputs) -> Option<&'a [f32]> {
        Some(outputs.hidden.data())
    }

    fn reset(&mut self) -> Result<(), KernelError> {
        self.kernels = CpuKernels::with_isa(self.kernels.threads(), self.kernels.isa());
        self.cache = KvPool::new(self.cache.shape())?;
        Ok(())
    }
}
