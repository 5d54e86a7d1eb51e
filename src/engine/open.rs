//! From a checked configuration to a running engine: the soup on the device that was asked for.

use std::sync::Arc;

use super::{
    cost::Machine,
    cpu::{CpuBackend, CpuOptions},
    cuda::{CudaBackend, CudaOptions},
    error::OpenError,
    handle::EngineHandle,
    merged::OnCacheEvent,
    scheduler::StepLimits,
    start::{EngineConfig, Pin, start},
    stats::Observer,
};
use crate::{
    config::{Processor, ServeConfig},
    kernels::cuda::{Gpu, image::kernel_caches},
    soup::Soup,
    tokenizer::Tokenizer,
};

/// Called on what happens in an engine.
pub struct Listeners {
    /// On every step.
    pub observer: Arc<dyn Observer>,
    /// On every event of the cache of merged models.
    pub on_cache_event: OnCacheEvent,
}

/// Brings a soup to the configured device and starts its engine, the pinned models merged.
pub fn open(
    soup: &Soup,
    tokenizer: Tokenizer,
    config: &ServeConfig,
    pinned: Vec<Pin>,
    listeners: Listeners,
) -> Result<EngineHandle, OpenError> {
    let bytes = |budget: Option<u64>| budget.map(|b| usize::try_from(b).unwrap_or(usize::MAX));
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
        observer: Some(listeners.observer),
        ..defaults
    };
    match config.device {
        Processor::Cpu => {
            let defaults = CpuOptions::default();
            let options = CpuOptions {
                threads: config.threads,
                kv_bytes: bytes(config.kv_cache).unwrap_or(defaults.kv_bytes),
                merged_bytes: bytes(config.merge_cache).unwrap_or(defaults.merged_bytes),
                merge_mode: config.merge_mode,
                on_cache_event: Some(listeners.on_cache_event),
                ..defaults
            };
            Ok(start(CpuBackend::open(soup, &options)?, tokenizer, engine)?)
        }
        Processor::Cuda(ordinal) => {
            let options = CudaOptions {
                device_bytes: bytes(config.device_memory),
                kv_bytes: bytes(config.kv_cache),
                merged_bytes: bytes(config.merge_cache),
                merge_mode: config.merge_mode,
                step_rows: config.max_step_tokens,
                logit_rows: engine.limits.logit_rows,
                on_cache_event: Some(listeners.on_cache_event),
            };
            let gpu = Gpu::open(ordinal, &kernel_caches())?;
            let engine = EngineConfig { machine: Machine::GPU, ..engine };
            Ok(start(CudaBackend::open(soup, gpu, &options)?, tokenizer, engine)?)
        }
    }
}
