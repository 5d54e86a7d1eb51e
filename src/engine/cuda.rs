//! A soup served on a GPU: weights in device memory (or streamed for every merge), one decoder for
//! all c over them where they fit, the cache of merged models, and the key/value memory.

use std::{collections::HashSet, sync::Arc};

use super::{
    error::OpenError,
    footprint::activations,
    loaded::{Identity, Loaded, Passes, kv_shape},
    merged::{Merged, OnCacheEvent},
    placement::{Demand, Placement, place},
};
use crate::{
    config::MergeMode,
    kernels::{
        Batch, Dtype, HostTensor, KernelError, Kernels, KvDtype,
        cuda::{CudaKernels, Device, KvCache, Weight},
    },
    merge::{
        Cache, MergeError, SoupPlan,
        device::{DeviceBuilder, Resident, compute_dtype, largest_staging},
        mixed_decoder_of,
        plan::DenseTerm,
        slab::Layout,
    },
    model::{config::ModelConfig, decoder::Decoder},
    soup::{Soup, weights::first_non_finite},
};

/// How a soup is opened for serving on a GPU.
#[derive(Clone)]
pub struct CudaOptions {
    /// Bytes of device memory to use; `None`: nine tenths of what is free.
    pub device_bytes: Option<usize>,
    /// Bytes of keys and values; `None`: a share of the device's memory.
    pub kv_bytes: Option<usize>,
    /// Storage type of keys and values; `None`: that of the weights.
    pub kv_dtype: Option<KvDtype>,
    /// Bytes of merged weights; `None`: what is left.
    pub merged_bytes: Option<usize>,
    /// Execution modes to set up.
    pub merge_mode: MergeMode,
    /// Token rows of the largest step.
    pub step_rows: usize,
    /// Rows of logits in a step (at most).
    pub logit_rows: usize,
    /// Called on every event of the cache of merged models.
    pub on_cache_event: Option<OnCacheEvent>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            device_bytes: None,
            kv_bytes: None,
            kv_dtype: None,
            merged_bytes: None,
            merge_mode: MergeMode::Auto,
            step_rows: 512,
            logit_rows: 64,
            on_cache_event: None,
        }
    }
}

/// A soup on a GPU.
pub type CudaBackend<D> = Loaded<CudaPasses<D>>;

/// Passes over weights in device memory.
pub struct CudaPasses<D: Device> {
    cache: KvCache<D>,
    kernels: CudaKernels<D>,
    placement: Placement,
}

impl<D: Device> CudaBackend<D> {
    /// Sets a soup up on a device.
    pub fn open(soup: &Soup, device: Arc<D>, options: &CudaOptions) -> Result<Self, OpenError> {
        let config = soup.config.clone();
        let plan = SoupPlan::new(soup, &config).map_err(MergeError::from)?;
        Self::with_plan(plan, config, soup.digest.clone(), device, options)
    }

    /// Sets up what a plan says; `digest` keeps prefixes of different soups apart.
    pub fn with_plan(
        plan: SoupPlan,
        config: ModelConfig,
        digest: String,
        device: Arc<D>,
        options: &CudaOptions,
    ) -> Result<Self, OpenError> {
        if let Some((tensor, dtype)) = plan.quantised() {
            return Err(OpenError::QuantisedOnGpu { tensor: tensor.to_owned(), dtype });
        }
        if config.encoder.is_some() {
            return Err(OpenError::EncoderOnGpu(config.model_type));
        }
        let dtype = compute_dtype(&plan);
        let (free, _) = device.memory()?;
        let budget = options.device_bytes.unwrap_or(free / 10 * 9).min(free);
        let demand = demand(&plan, &config, options)?;
        let placement = place(&demand, budget, options.merge_mode)?;
        tracing::info!(device = device.name(), budget, ?placement, "placing the soup");

        let kernels = CudaKernels::new(device, dtype)?;
        let resident = Resident::default();
        let mixed = if placement.mixes {
            let dense = |_: &str, tensor: &HostTensor| {
                if widens(tensor, dtype) {
                    return Ok(kernels.weight(&stored_as(tensor, dtype)?)?);
                }
                Ok(resident.weight(&kernels, tensor)?)
            };
            let factor = |name: &str, tensor: &HostTensor| {
                Ok(kernels.weight(&factor_as(name, tensor, dtype)?)?)
            };
            Some(mixed_decoder_of(&plan, config.clone(), dense, factor, factor)?)
        } else {
            None
        };
        let mode = match options.merge_mode {
            MergeMode::Auto if placement.merged == 0 => MergeMode::Mixed,
            mode => mode,
        };
        let merged = Merged::open(mode, options.on_cache_event.clone(), |on_event| {
            let (plan, config) = (plan.clone(), config.clone());
            let builder = DeviceBuilder::new(&kernels, &resident, plan, config, placement.sources)?;
            Cache::new(builder, placement.merged, move |event| on_event(event))
        })?;
        let shape = kv_shape(&config, options.kv_dtype.unwrap_or(dtype.into()), placement.kv)?;
        let cache = kernels.cache(shape)?;
        kernels.synchronize()?;
        let passes = CudaPasses { cache, kernels, placement };
        Ok(Self::new(Identity { config, plan, digest }, merged, mixed, passes))
    }

    /// How device memory was divided.
    pub fn placement(&self) -> Placement {
        self.passes.placement
    }

    /// The kernels that decode.
    pub fn kernels(&self) -> &CudaKernels<D> {
        &self.passes.kernels
    }
}

/// Whether a full-rank term is widened for mixed steps: products of 16-bit weights round their
/// input, which a model in f32 must not.
fn widens(tensor: &HostTensor, compute: Dtype) -> bool {
    compute == Dtype::F32 && tensor.dtype() != compute
}

/// The values of a tensor in another storage type.
fn stored_as(tensor: &HostTensor, dtype: Dtype) -> Result<HostTensor, KernelError> {
    if tensor.dtype() == dtype {
        return Ok(tensor.clone());
    }
    HostTensor::rounded(&tensor.to_f32(), dtype, tensor.shape().to_vec())
        .map_err(|_| KernelError::Dtype { op: "conversion", dtype: dtype.to_string() })
}

/// A low-rank factor of the tensor `name` in the type of products; a value that leaves its range is
/// an error.
fn factor_as(name: &str, factor: &HostTensor, dtype: Dtype) -> Result<HostTensor, MergeError> {
    let stored = stored_as(factor, dtype)?;
    match first_non_finite(&stored) {
        None => Ok(stored),
        Some(at) => {
            let value = factor.to_f32()[at];
            Err(MergeError::FactorRange { tensor: name.to_owned(), value, dtype })
        }
    }
}

/// What the soup wants of the device, counted over its tensors.
fn demand(
    plan: &SoupPlan,
    config: &ModelConfig,
    options: &CudaOptions,
) -> Result<Demand, OpenError> {
    let mut seen = HashSet::new();
    let mut once = |tensor: &HostTensor| {
        let bytes = tensor.bytes();
        if seen.insert(bytes.as_ptr().addr()) { bytes.len() } else { 0 }
    };
    let (mut dense, mut factors, mut converted) = (0, 0, 0);
    let dtype = compute_dtype(plan);
    for tensor in plan.tensors() {
        for DenseTerm { tensor, .. } in &tensor.dense {
            dense += once(tensor);
            converted += if widens(tensor, dtype) { tensor.len() * dtype.size() } else { 0 };
        }
        for factor in tensor.low_rank.iter().flat_map(|term| [&term.lora.down, &term.lora.up]) {
            factors += once(factor);
            converted += factor.len() * dtype.size();
        }
    }
    let merges = options.merge_mode != MergeMode::Mixed;
    let mixes = options.merge_mode != MergeMode::Fused;
    let model = Layout::new(plan, None).map_err(MergeError::from)?;
    Ok(Demand {
        sources: dense + if merges { factors } else { 0 } + if mixes { converted } else { 0 },
        factors,
        staging: largest_staging(plan),
        model: model.bytes(),
        activations: activations(config, options.step_rows, options.logit_rows),
        kv: options.kv_bytes,
        merged: options.merged_bytes,
    })
}

impl<D: Device> Passes for CudaPasses<D> {
    type Weight = Weight;
    type Builder = DeviceBuilder<D>;
    type Logits = Vec<f32>;

    fn blocks(&self) -> usize {
        self.cache.shape().blocks
    }

    fn forward(
        &mut self,
        decoder: &Decoder<Weight>,
        batch: &Batch,
    ) -> Result<Vec<f32>, KernelError> {
        let hidden = decoder.hidden(&self.kernels, batch, &mut self.cache)?;
        if batch.outputs.is_empty() {
            // A chunk in the middle of a prompt: its keys and values are all that is wanted. The
            // weights may be given back as soon as this returns.
            self.kernels.synchronize()?;
            return Ok(Vec::new());
        }
        let c = batch.coefficients.as_ref().map(|c| c.select(&batch.outputs));
        let logits = decoder.logits(&self.kernels, &hidden, batch.outputs.len(), c.as_ref())?;
        self.kernels.values(&logits)
    }

    fn values<'a>(&self, logits: &'a mut Vec<f32>) -> &'a mut [f32] {
        logits
    }

    fn reset(&mut self) -> Result<(), KernelError> {
        self.kernels.clear(&self.cache)?;
        self.kernels.synchronize()
    }
}
