//! A soup served on the CPU: the mapped weights, one decoder for all c over them, the cache of
//! merged models, and the key/value memory.

use super::{
    loaded::{Identity, Loaded, Passes, kv_shape},
    merged::{Merged, OnCacheEvent},
};
use crate::{
    config::MergeMode,
    kernels::{
        Batch, Dtype, HostTensor, KernelError,
        cpu::{BLOCK, CpuKernels, KvPool, Tensor},
    },
    merge::{
        FusedBuilder, FusedCache, FusedModel, FusedOptions, MergeError, PlanError, SoupPlan,
        mixed_decoder,
    },
    model::{
        config::{ConfigError, ModelConfig},
        decoder::Decoder,
    },
    soup::Soup,
};

/// How a soup is opened for serving.
#[derive(Clone)]
pub struct CpuOptions {
    /// Compute threads; `None`: all cores.
    pub threads: Option<usize>,
    /// Threads that merge, beside those that decode.
    pub merge_threads: usize,
    /// Bytes of keys and values.
    pub kv_bytes: usize,
    /// Storage type of keys and values, f32 or bf16; `None`: f32 for f32 weights, else bf16.
    pub kv_dtype: Option<Dtype>,
    /// Bytes of merged weights.
    pub merged_bytes: usize,
    /// Execution modes that are wanted; decides what is set up.
    pub merge_mode: MergeMode,
    /// Told of what happens in the cache of merged models.
    pub on_cache_event: Option<OnCacheEvent>,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            threads: None,
            merge_threads: 1,
            kv_bytes: 1 << 30,
            kv_dtype: None,
            merged_bytes: 2 << 30,
            merge_mode: MergeMode::Auto,
            on_cache_event: None,
        }
    }
}

/// Why a soup cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The base's `config.json` is not one that is understood.
    #[error("base: {0}")]
    Config(#[from] ConfigError),
    /// The weights do not make a model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The cache of merged models, or the mixed decoder, cannot be set up.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Key/value memory cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The GPU refused.
    #[error(transparent)]
    Device(#[from] crate::kernels::cuda::DeviceError),
    /// The GPU's memory does not hold the soup.
    #[error(transparent)]
    NoFit(#[from] super::placement::NoFit),
    /// A quantised base on a GPU.
    #[error(
        "{tensor} of the base is {dtype}: quantised weights are served on the CPU (--device cpu); a \
         GPU needs the base in bf16, f16 or f32"
    )]
    QuantisedOnGpu {
        /// A quantised tensor.
        tensor: String,
        /// Its storage type.
        dtype: Dtype,
    },
    /// The key/value budget holds no block.
    #[error(
        "the key/value budget is {budget} bytes, expected at least {block} bytes (one block of \
         {BLOCK} tokens)",
        block = crate::kernels::host::shown(*block)
    )]
    KvBudget {
        /// The budget in bytes.
        budget: usize,
        /// One block in bytes; `None` where that overflows.
        block: Option<usize>,
    },
}

/// A soup on the CPU.
pub type CpuBackend = Loaded<CpuPasses>;

/// Passes over the mapped weights, or over merged ones.
pub struct CpuPasses {
    kernels: CpuKernels,
    cache: KvPool,
    /// Absent where every request runs fused.
    mixed: Option<Decoder<HostTensor>>,
}

impl CpuBackend {
    /// Sets a soup up.
    pub fn open(soup: &Soup, options: &CpuOptions) -> Result<Self, OpenError> {
        let config = ModelConfig::from_json(soup.base.config())?;
        let plan = SoupPlan::new(soup, &config)?;
        // Quantised weights are not merged: every request has its own coefficients in each row.
        let merge_mode = match (options.merge_mode, plan.quantised()) {
            (MergeMode::Auto, Some(_)) => MergeMode::Mixed,
            (mode, _) => mode,
        };
        let mixed = match merge_mode {
            MergeMode::Fused => None,
            MergeMode::Auto | MergeMode::Mixed => {
                let decoder = mixed_decoder(&plan, config.clone())?;
                // It holds stacked copies of the adapters: their files can wait on disk for a merge.
                soup.adapters().for_each(|adapter| adapter.file().release());
                Some(decoder)
            }
        };
        let merged = Merged::open(merge_mode, options.on_cache_event.clone(), |told| {
            let fused = FusedOptions {
                budget: options.merged_bytes,
                dtype: None,
                threads: options.merge_threads,
            };
            FusedCache::open(plan.clone(), config.clone(), &fused, move |event| told(event))
        })?;
        let weights = plan.tensors().first().map_or(Dtype::F32, |tensor| tensor.dtype);
        let dtype = options.kv_dtype.unwrap_or(match weights {
            Dtype::F32 => Dtype::F32,
            Dtype::F16 | Dtype::Bf16 | Dtype::Quantised(_) => Dtype::Bf16,
        });
        let passes = CpuPasses {
            kernels: options.threads.map_or_else(CpuKernels::default, CpuKernels::new),
            cache: KvPool::new(kv_shape(&config, dtype, options.kv_bytes)?)?,
            mixed,
        };
        let identity = Identity { config, plan, digest: soup.digest.clone() };
        Ok(Self::new(identity, merged, passes, merge_mode != MergeMode::Fused))
    }
}

impl Passes for CpuPasses {
    type Builder = FusedBuilder;
    type Logits = Tensor;

    fn blocks(&self) -> usize {
        self.cache.shape().blocks
    }

    fn forward(
        &mut self,
        merged: Option<&FusedModel>,
        batch: &Batch,
    ) -> Result<Tensor, KernelError> {
        let decoder = match merged {
            Some(model) => model.decoder(),
            None => self.mixed.as_ref().ok_or(KernelError::Shape {
                op: "forward",
                what: "number of merged models",
                expected: 1,
                got: 0,
            })?,
        };
        if batch.outputs.is_empty() {
            // A chunk in the middle of a prompt: its keys and values are all that is wanted.
            return decoder.hidden(&self.kernels, batch, &mut self.cache);
        }
        decoder.forward(&self.kernels, batch, &mut self.cache)
    }

    fn values<'a>(&self, logits: &'a mut Tensor) -> &'a mut [f32] {
        logits.data_mut()
    }

    fn reset(&mut self) -> Result<(), KernelError> {
        let threads = self.kernels.threads();
        self.kernels = CpuKernels::new(threads);
        self.cache = KvPool::new(self.cache.shape())?;
        Ok(())
    }
}
