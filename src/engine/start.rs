//! Starting an engine: its settings, checked against the soup, and the thread.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{
    backend::Backend,
    blocks::BlockPool,
    cost::{CostModel, Machine},
    handle::{Bounds, EngineHandle, Message, SharedState},
    models::Models,
    scheduler::{Scheduler, StepLimits},
    stats::Observer,
    worker::Worker,
};
use crate::{
    config::{MergeMode, ServeOptions},
    tokenizer::Tokenizer,
};

/// Settings of the engine.
#[derive(Clone)]
pub struct EngineConfig {
    /// Budgets of a step.
    pub limits: StepLimits,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Longest prompt + answer in tokens; the model's own context if that is shorter.
    pub max_context: usize,
    /// Who chooses the execution mode.
    pub merge_mode: MergeMode,
    /// Starting point of the cost model.
    pub machine: Machine,
    /// Told of every step.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let options = ServeOptions::default();
        let limits = StepLimits {
            step_tokens: options.max_step_tokens().get(),
            prefill_chunk: 256,
            lanes: options.max_sequences().get(),
            logit_rows: 64,
            aging: Duration::from_secs(10),
            prefix_cache: true,
        };
        Self {
            limits,
            max_waiting: options.max_queue().get(),
            max_context: usize::MAX,
            merge_mode: MergeMode::Auto,
            machine: Machine::default(),
            observer: None,
        }
    }
}

/// Settings that cannot work together, or with this soup.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is outside its range.
    #[error("{name} is {got}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// The system gave no thread.
    #[error("the engine's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts an engine on its own thread. It ends after [`EngineHandle::drain`] or
/// [`EngineHandle::abort`], or when all handles are gone.
pub fn start<B: Backend>(
    backend: B,
    tokenizer: Tokenizer,
    config: EngineConfig,
) -> Result<EngineHandle, StartError> {
    let facts = backend.facts();
    let limits = config.limits;
    let setting = |name, got: usize, expected: String| {
        Err(StartError::Setting { name, got: got.to_string(), expected })
    };
    if limits.lanes == 0 {
        return setting("lanes", 0, "at least 1".to_owned());
    }
    if limits.step_tokens < limits.lanes {
        let expected = format!("at least the {} lanes: each decodes in every step", limits.lanes);
        return setting("step_tokens", limits.step_tokens, expected);
    }
    if limits.prefill_chunk == 0 {
        return setting("prefill_chunk", 0, "at least 1".to_owned());
    }
    if facts.blocks == 0 {
        return setting("kv blocks", 0, "at least 1".to_owned());
    }
    let (mode, impossible) = match config.merge_mode {
        MergeMode::Fused if facts.merged_models == 0 => (config.merge_mode, true),
        MergeMode::Mixed if !facts.mixes => (config.merge_mode, true),
        MergeMode::Auto if !facts.mixes => (MergeMode::Fused, facts.merged_models == 0),
        MergeMode::Auto if facts.merged_models == 0 => (MergeMode::Mixed, false),
        mode => (mode, false),
    };
    if impossible {
        return Err(StartError::Setting {
            name: "merge_mode",
            got: format!("{mode:?}"),
            expected: "a mode that this soup and its cache allow".to_owned(),
        });
    }
    let lanes = match mode {
        MergeMode::Fused => limits.lanes.min(facts.merged_models),
        _ => limits.lanes,
    };
    let bounds = Bounds {
        vocabulary: facts.vocabulary,
        backbones: facts.backbones,
        context: config.max_context.min(facts.context),
        kv_blocks: facts.blocks,
        block_tokens: facts.block_tokens,
        lanes,
    };
    let shared = Arc::new(SharedState::new(bounds, config.max_waiting));
    let (messages, inbox) = mpsc::channel();
    let messages = Arc::new(messages);
    let waker = Arc::downgrade(&messages);
    let handle = EngineHandle::new(messages, shared.clone());

    let scheduler = Scheduler::new(limits, BlockPool::new(facts.blocks, facts.block_tokens));
    let models = Models::new(mode, facts.digest, CostModel::new(facts.footprint, config.machine));
    let mut worker = Worker::new(backend, tokenizer, scheduler, models, shared);
    worker.observer = config.observer;
    // Weak, so that the thread ends with the last handle; a merge that ends after that wakes nobody.
    worker.backend.set_waker(Arc::new(move || {
        if let Some(messages) = waker.upgrade() {
            let _ = messages.send(Message::Wake);
        }
    }));
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run(&inbox))?;
    Ok(handle)
}
