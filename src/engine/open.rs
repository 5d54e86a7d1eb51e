//! From a checked configuration to a running engine: the soup on the device that was asked for.

use std::sync::Arc;

use super::{
    budget::{Budgets, Held, Wanted, divide},
    cost::Machine,
    cpu::{CpuBackend, CpuOptions},
    cuda::{CudaBackend, CudaOptions},
    error::OpenError,
    footprint::activations,
    handle::EngineHandle,
    merged::OnCacheEvent,
    scheduler::StepLimits,
    start::{EngineConfig, Pin, start},
    stats::Observer,
};
use crate::{
    config::{KvType, MergeMode, Processor, ServeConfig},
    kernels::{
        Dtype, KvDtype,
        cuda::{Gpu, image::kernel_caches},
    },
    merge::{MergeError, SoupPlan, slab::Layout},
    soup::Soup,
    tokenizer::Tokenizer,
    turns::Turns,
};

/// What the engines of one process share.
pub struct Shared {
    /// Called on every step.
    pub observer: Arc<dyn Observer>,
    /// Called on every event of the cache of merged models.
    pub on_cache_event: OnCacheEvent,
    /// The device's turns.
    pub turns: Arc<Turns>,
}

/// Brings a soup to the configured device and starts its engine, the pinned models merged.
pub fn open(
    soup: &Soup,
    tokenizer: Tokenizer,
    config: &ServeConfig,
    pinned: Vec<Pin>,
    shared: Shared,
) -> Result<EngineHandle, OpenError> {
    let defaults = EngineConfig::default();
    let engine = EngineConfig {
        limits: StepLimits {
            step_tokens: config.max_step_tokens,
            lanes: config.max_sequences,
            ..defaults.limits
        },
        max_waiting: config.max_queue,
        max_context: config.max_context.unwrap_or(usize::MAX),
        merge_mode: config.merge_mode,
        share_prefixes: config.share_prefixes,
        pinned,
        observer: Some(shared.observer),
        turns: shared.turns,
        ..defaults
    };
    match config.device {
        Processor::Cpu => {
            let defaults = CpuOptions::default();
            let options = CpuOptions {
                threads: config.threads,
                kv_bytes: bytes(config.kv_cache).unwrap_or(defaults.kv_bytes),
                kv_dtype: kv_dtype(config.kv_dtype),
                merged_bytes: bytes(config.merge_cache).unwrap_or(defaults.merged_bytes),
                merge_mode: config.merge_mode,
                on_cache_event: Some(shared.on_cache_event),
                turns: engine.turns.clone(),
                ..defaults
            };
            let backend = CpuBackend::open(soup, &options)?;
            let engine = EngineConfig { machine: backend.machine(), ..engine };
            Ok(start(backend, tokenizer, engine)?)
        }
        Processor::Cuda(ordinal) => {
            let options = CudaOptions {
                device_bytes: bytes(config.device_memory),
                kv_bytes: bytes(config.kv_cache),
                kv_dtype: kv_dtype(config.kv_dtype),
                merged_bytes: bytes(config.merge_cache),
                merge_mode: config.merge_mode,
                step_rows: config.max_step_tokens,
                logit_rows: engine.limits.logit_rows,
                on_cache_event: Some(shared.on_cache_event),
            };
            let gpu = Gpu::open(ordinal, &kernel_caches())?;
            let engine = EngineConfig { machine: Machine::GPU, ..engine };
            Ok(start(CudaBackend::open(soup, gpu, &options)?, tokenizer, engine)?)
        }
    }
}

/// What a soup holds under a configuration, and what that leaves of `ceiling` bytes for keys, values
/// and merged models on the host. Of what it holds, `shared` bytes are among the `beside` bytes of
/// another soup.
pub fn budgets(
    soup: &Soup,
    config: &ServeConfig,
    ceiling: usize,
    (beside, shared): (usize, usize),
) -> Result<(Held, Budgets), OpenError> {
    let plan = SoupPlan::new(soup, &soup.config).map_err(MergeError::from)?;
    // Passes read adapters stacked along their rank: a copy.
    let factors = plan.tensors().iter().flat_map(|tensor| &tensor.low_rank);
    let factors = factors.map(|term| term.lora.down.bytes().len() + term.lora.up.bytes().len());
    let tokenizer = std::fs::metadata(soup.base_dir.join("tokenizer.json"));
    let logit_rows = EngineConfig::default().limits.logit_rows;
    let held = Held::new(
        soup.weight_bytes() - shared + factors.sum::<usize>(),
        tokenizer.map_or(0, |file| file.len() as usize),
        activations(&soup.config, config.max_step_tokens, logit_rows),
        config.max_context.unwrap_or(usize::MAX).min(soup.config.max_positions),
        config,
    );
    let held = Held { beside, ..held };
    let merges = config.merge_mode != MergeMode::Mixed && plan.quantised().is_none();
    let model = Layout::new(&plan, None).map_err(MergeError::from)?.bytes();
    let wanted = match config.device {
        Processor::Cpu => Wanted {
            kv: bytes(config.kv_cache),
            merged: bytes(config.merge_cache),
            model: if merges { model } else { 0 },
            fused: config.merge_mode == MergeMode::Fused,
        },
        // They lie in the device's memory.
        Processor::Cuda(_) => Wanted { kv: Some(0), merged: Some(0), model: 0, fused: false },
    };
    Ok((held, divide(&held, &wanted, ceiling)?))
}

/// The storage type that the option names; `None`: the device's choice.
fn kv_dtype(option: KvType) -> Option<KvDtype> {
    match option {
        KvType::Auto => None,
        KvType::F32 => Some(Dtype::F32.into()),
        KvType::Bf16 => Some(Dtype::Bf16.into()),
        KvType::Int8 => Some(KvDtype::Int8),
    }
}

fn bytes(budget: Option<u64>) -> Option<usize> {
    budget.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}
