//! A soup served on the CPU: the mapped weights, one decoder for all c over them, the cache of
//! merged models, and the key/value memory.

use std::sync::{Arc, OnceLock};

use super::{
    backend::{Backend, Facts, Fetch},
    cost::{Footprint, Pass},
};
use crate::{
    config::MergeMode,
    kernels::{
        Batch, Dtype, HostTensor, KernelError,
        cpu::{BLOCK, CpuKernels, KvPool, KvShape, Tensor},
    },
    merge::{
        CacheEvent, Fetch as CacheFetch, FusedCache, FusedModel, FusedOptions, Lease, MergeError,
        MergeKey, PlanError, SoupPlan, Ticket, mixed_decoder,
    },
    model::{
        config::{ConfigError, ModelConfig},
        decoder::Decoder,
    },
    preference::Coefficients,
    soup::Soup,
};

/// Called on every event of the cache of merged models, from any thread; must not block.
pub type OnCacheEvent = Arc<dyn Fn(CacheEvent) + Send + Sync>;

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
    /// The key/value budget holds no block.
    #[error(
        "the key/value budget is {budget} bytes, expected at least {block:?} (one block of {BLOCK} \
         tokens)"
    )]
    KvBudget {
        /// The budget in bytes.
        budget: usize,
        /// One block in bytes; `None` where that overflows.
        block: Option<usize>,
    },
}

/// A soup on the CPU.
pub struct CpuBackend {
    kernels: CpuKernels,
    cache: KvPool,
    config: ModelConfig,
    plan: SoupPlan,
    digest: String,
    mixed: Decoder<HostTensor>,
    merged: Option<FusedCache>,
    mixes: bool,
    waker: Arc<OnceLock<Arc<dyn Fn() + Send + Sync>>>,
}

impl CpuBackend {
    /// Sets a soup up.
    pub fn open(soup: &Soup, options: &CpuOptions) -> Result<Self, OpenError> {
        let config = ModelConfig::from_json(soup.base.config())?;
        let plan = SoupPlan::new(soup, &config)?;
        let mixed = mixed_decoder(&plan, config.clone())?;
        let waker: Arc<OnceLock<Arc<dyn Fn() + Send + Sync>>> = Arc::default();
        let merged = match options.merge_mode {
            MergeMode::Mixed => None,
            mode => {
                let (waker, told) = (waker.clone(), options.on_cache_event.clone());
                let on_event = move |event| {
                    if let Some(told) = &told {
                        told(event);
                    }
                    let ended = matches!(event, CacheEvent::Built { .. } | CacheEvent::Failed);
                    if let Some(wake) = waker.get().filter(|_| ended) {
                        wake();
                    }
                };
                let fused = FusedOptions {
                    budget: options.merged_bytes,
                    dtype: None,
                    threads: options.merge_threads,
                };
                match FusedCache::open(plan.clone(), config.clone(), &fused, on_event) {
                    Ok(cache) => Some(cache),
                    Err(error @ MergeError::Budget { .. }) if mode == MergeMode::Auto => {
                        tracing::warn!(%error, "all requests run with per-row coefficients");
                        None
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let weights = plan.tensors().first().map_or(Dtype::F32, |tensor| tensor.dtype);
        let dtype = options.kv_dtype.unwrap_or(match weights {
            Dtype::F32 => Dtype::F32,
            Dtype::F16 | Dtype::Bf16 => Dtype::Bf16,
        });
        let mut shape = KvShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            blocks: 0,
            dtype,
        };
        let block = shape.block_bytes();
        shape.blocks = block.and_then(|bytes| options.kv_bytes.checked_div(bytes)).unwrap_or(0);
        if shape.blocks == 0 {
            return Err(OpenError::KvBudget { budget: options.kv_bytes, block });
        }
        Ok(Self {
            kernels: options.threads.map_or_else(CpuKernels::default, CpuKernels::new),
            cache: KvPool::new(shape)?,
            config,
            plan,
            digest: soup.digest.clone(),
            mixed,
            merged,
            mixes: options.merge_mode != MergeMode::Fused,
            waker,
        })
    }

    /// What a pass moves and computes, counted over the plan's tensors. An embedding that is not
    /// also the head is looked up by row, so it costs nothing; the head costs its bytes, and its
    /// products only for the rows that are sampled.
    fn footprint(&self) -> Footprint {
        let none = Pass { bytes: 0.0, flops_per_row: 0.0 };
        let mut cost = Footprint { fused: none, mixed: none, merge_bytes: 0.0, merge_flops: 0.0 };
        for tensor in self.plan.tensors() {
            let elements: f64 = tensor.shape().iter().map(|&dim| dim as f64).product();
            let merged = elements * tensor.dtype.size() as f64;
            let bytes = |t: &HostTensor| t.bytes().len() as f64;
            let dense: f64 = tensor.dense.iter().map(|term| bytes(&term.tensor)).sum();
            let factors = tensor.low_rank.iter().flat_map(|term| [&term.down, &term.up]);
            let (mut low_rank, mut low_rank_elements) = (0.0, 0.0);
            for factor in factors {
                low_rank += bytes(factor);
                low_rank_elements += factor.len() as f64;
            }
            let ranks: usize = tensor.low_rank.iter().map(|term| term.down.shape()[0]).sum();
            cost.merge_flops += 2.0 * elements * ranks as f64;
            cost.merge_bytes += dense + low_rank + merged;
            let embedding = tensor.name == "model.embed_tokens.weight";
            if embedding && !self.config.tied {
                continue;
            }
            cost.fused.bytes += merged;
            cost.mixed.bytes += dense + low_rank;
            let linear = tensor.shape().len() == 2 && !embedding && tensor.name != "lm_head.weight";
            if linear {
                cost.fused.flops_per_row += 2.0 * elements;
                cost.mixed.flops_per_row +=
                    2.0 * (elements * tensor.dense.len() as f64 + low_rank_elements);
            }
        }
        cost
    }
}

impl Backend for CpuBackend {
    type Lease = Lease<FusedModel>;
    type Ticket = Ticket<FusedModel>;
    type Logits = Tensor;

    fn facts(&self) -> Facts {
        Facts {
            vocabulary: self.config.vocab_size,
            backbones: self.plan.backbones(),
            context: self.config.max_positions,
            blocks: self.cache.shape().blocks,
            block_tokens: BLOCK,
            digest: self.digest.clone(),
            merged_models: self.merged.as_ref().map_or(0, FusedCache::capacity),
            mixes: self.mixes,
            footprint: self.footprint(),
        }
    }

    fn canonical(&self, c: &Coefficients) -> Coefficients {
        MergeKey::of(c).coefficients()
    }

    fn terms(&self, c: &Coefficients) -> Vec<f32> {
        // The engine's bounds have checked number and finiteness; without its terms a batch is
        // refused by the kernels, so an error here would not pass unseen either.
        self.plan.term_values(c).unwrap_or_default()
    }

    fn cached(&mut self, c: &Coefficients) -> Option<Self::Lease> {
        self.merged.as_ref()?.peek(&MergeKey::of(c))
    }

    fn fetch(&mut self, c: &Coefficients) -> Fetch<Self::Lease, Self::Ticket> {
        match self.merged.as_ref().map(|cache| cache.get(&MergeKey::of(c))) {
            Some(CacheFetch::Ready(lease)) => Fetch::Ready(lease),
            Some(CacheFetch::Building(ticket)) => Fetch::Building(ticket),
            Some(CacheFetch::NoRoom) | None => Fetch::NoRoom,
        }
    }

    fn redeem(&self, ticket: &Self::Ticket) -> Option<Result<Self::Lease, String>> {
        Some(ticket.poll()?.map_err(|error| error.to_string()))
    }

    fn set_waker(&mut self, wake: Arc<dyn Fn() + Send + Sync>) {
        // Set once, when the engine starts.
        let _ = self.waker.set(wake);
    }

    fn forward(
        &mut self,
        merged: Option<&Self::Lease>,
        batch: &Batch,
    ) -> Result<Tensor, KernelError> {
        let decoder = merged.map_or(&self.mixed, |model| model.decoder());
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
