//! Starting an engine: its settings, checked against the soup, and the thread.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{
    backend::{Backend, Facts},
    blocks::BlockPool,
    cost::{CostModel, Machine},
    handle::{Bounds, EngineHandle, Message, SharedState},
    models::{Models, Prompts},
    request::EngineError,
    scheduler::{Scheduler, StepLimits},
    stats::Observer,
    worker::Worker,
};
use crate::{
    config::{MergeMode, ServeOptions},
    merge::Fetch,
    preference::{Coefficients, ModelKey},
    tokenizer::Tokenizer,
    turns::Turns,
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
    /// Models that are merged before the engine serves and stay merged.
    pub pinned: Vec<Pin>,
    /// Starting point of the cost model.
    pub machine: Machine,
    /// Whether the holders of different keys share the prefix cache.
    pub share_prefixes: bool,
    /// Called on every step.
    pub observer: Option<Arc<dyn Observer>>,
    /// Shared with the other engines of the device.
    pub turns: Arc<Turns>,
}

/// A model whose merged weights are there from the start and stay.
#[derive(Debug, Clone, PartialEq)]
pub struct Pin {
    /// What the configuration calls it.
    pub name: String,
    pub coefficients: Coefficients,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let options = ServeOptions::default();
        let limits = StepLimits {
            step_tokens: options.max_step_tokens().get(),
            prefill_chunk: 256,
            lanes: options.max_sequences().get(),
            logit_rows: 64,
            aging: Duration::from_millis(100),
            patience: Duration::from_secs(10),
            prefix_cache: true,
        };
        Self {
            limits,
            max_waiting: options.max_queue().get(),
            max_context: usize::MAX,
            merge_mode: MergeMode::Auto,
            pinned: Vec::new(),
            machine: Machine::default(),
            share_prefixes: false,
            observer: None,
            turns: Arc::default(),
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
        got: String,
        expected: String,
    },
    /// A pinned model cannot be merged.
    #[error("pin {name}: {source}")]
    Pin {
        /// What the configuration calls it.
        name: String,
        /// Why not.
        source: EngineError,
    },
    /// The engine's thread cannot be started.
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
    let mode = possible_mode(config.merge_mode, &facts)?;
    let prompts = facts.answer_only.then(|| Prompts::new(&backend, mode));
    let mut pins = config.pinned;
    if mode == MergeMode::Fused
        && let Some(prompts) = &prompts
    {
        if facts.merged_models < 2 {
            let expected =
                "at least 2 merged models: θ_sft, which computes the prompts, and another";
            return setting("budget for merged weights", facts.merged_models, expected.to_owned());
        }
        pins.push(Pin { name: "θ_sft".to_owned(), coefficients: prompts.key.coefficients() });
    }
    let pinned = pinned_keys(&pins, mode, facts.merged_models)?;
    let lanes = match mode {
        MergeMode::Fused => limits.lanes.min(facts.merged_models - pinned.len()),
        MergeMode::Auto | MergeMode::Mixed => limits.lanes,
    };
    let bounds = Bounds {
        vocabulary: facts.vocabulary,
        backbones: facts.backbones,
        answer_only: facts.answer_only,
        context: config.max_context.min(facts.context),
        encoded: facts.start.map(|_| limits.step_tokens),
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
    let cost = CostModel::new(facts.footprint, config.machine);
    let models = Models::new(mode, facts.digest, cost, prompts);
    let mut worker = Worker::new(backend, tokenizer, scheduler, models, shared);
    worker.observer = config.observer;
    worker.share_prefixes = config.share_prefixes;
    worker.start = facts.start;
    worker.turns = config.turns;
    // Weak, so that the waker does not keep the thread alive after the last handle is gone.
    worker.wake = Arc::new(move || {
        if let Some(messages) = waker.upgrade() {
            let _ = messages.send(Message::Wake);
        }
    });
    worker.backend.set_waker(worker.wake.clone());
    for (key, name) in pinned {
        let lease = merged(&mut worker.backend, &key, &inbox);
        worker.models.pin(key, lease.map_err(|source| StartError::Pin { name, source })?);
    }
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run(&inbox))?;
    Ok(handle)
}

/// The mode that the device and the cache allow: `auto` becomes the other one where a mode is
/// impossible.
fn possible_mode(wanted: MergeMode, facts: &Facts) -> Result<MergeMode, StartError> {
    let (merges, mixes) = (facts.merged_models > 0, facts.mixes);
    let refuse = |got, expected| {
        Err(StartError::Setting { name: "merge_mode", got, expected: String::from(expected) })
    };
    match wanted {
        MergeMode::Auto if merges && mixes => Ok(MergeMode::Auto),
        MergeMode::Auto | MergeMode::Fused if merges => Ok(MergeMode::Fused),
        MergeMode::Auto | MergeMode::Mixed if mixes => Ok(MergeMode::Mixed),
        _ => refuse(
            format!("{wanted:?}").to_lowercase(),
            "a mode that this soup, its device and its budget for merged weights allow",
        ),
    }
}

/// The distinct models to pin, with their names. In fused mode one place of the cache stays free for
/// all other models; in auto the others can run mixed.
fn pinned_keys(
    pins: &[Pin],
    mode: MergeMode,
    merged_models: usize,
) -> Result<BTreeMap<ModelKey, String>, StartError> {
    let keys: BTreeMap<ModelKey, String> =
        pins.iter().map(|pin| (ModelKey::of(&pin.coefficients), pin.name.clone())).collect();
    let most = match mode {
        MergeMode::Mixed => 0,
        MergeMode::Auto => merged_models,
        MergeMode::Fused => merged_models - 1,
    };
    if keys.len() <= most {
        return Ok(keys);
    }
    let names: Vec<&str> = pins.iter().map(|pin| pin.name.as_str()).collect();
    let expected = match mode {
        MergeMode::Mixed => {
            "none: with this soup and configuration no weights are merged".to_owned()
        }
        _ => format!(
            "at most {most} different models: the budget for merged weights holds {merged_models}"
        ),
    };
    Err(StartError::Setting { name: "pin", got: names.join(", "), expected })
}

/// Merged weights, waiting for them; the waker's messages arrive in `inbox`.
fn merged<B: Backend>(
    backend: &mut B,
    key: &ModelKey,
    inbox: &mpsc::Receiver<Message>,
) -> Result<B::Lease, EngineError> {
    let ticket = match backend.fetch(key) {
        Fetch::Ready(lease) => return Ok(lease),
        Fetch::Building(ticket) => ticket,
        Fetch::NoRoom => return Err(EngineError::Merge("no room for merged weights".to_owned())),
    };
    loop {
        if let Some(outcome) = backend.redeem(&ticket) {
            return outcome;
        }
        // The waker holds a sender as long as the handle does, so this ends with a message.
        if inbox.recv().is_err() {
            return Err(EngineError::Stopped);
        }
    }
}
