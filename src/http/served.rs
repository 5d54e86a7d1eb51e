//! A served soup: its engine, and what requests are checked against.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

use crate::{
    chat::{ChatTemplate, ControlTokens, tools::CallFormat},
    engine::{EngineHandle, EngineState},
    files::Seen,
    grammar::Compiler,
    preference::{Front, Menu, MixingMatrix},
    soup::ActiveFrom,
    tokenizer::Tokenizer,
    turns::Turns,
};

/// A soup that is loaded and running.
pub struct Served {
    pub engine: EngineHandle,
    /// Grows with each soup that is loaded, over restarts of the server too.
    pub generation: u64,
    /// The directory that it was loaded from, or the address.
    pub source: Value,
    /// Bytes of its activations, stacked adapters and budgets, where the memory of the process has a
    /// bound.
    pub holds: usize,
    /// Its weight files and their bytes.
    pub weights: Vec<(Seen, usize)>,
    /// The soup's name: the model id.
    pub name: String,
    pub digest: String,
    /// Where its base is.
    pub base: PathBuf,
    /// Byte budget of fused weights, where one was given or follows from the memory of the process.
    pub merge_cache: Option<u64>,
    /// Objectives, presets, defaults and bounds.
    pub menu: Menu,
    /// B.
    pub mixing: MixingMatrix,
    /// The measured front, or why it predicts nothing.
    pub front: Result<Front, String>,
    /// The first token of a sequence that the backbones act on.
    pub active_from: ActiveFrom,
    pub tokenizer: Tokenizer,
    /// Makes grammars of what requests hold their answers to.
    pub grammars: Compiler,
    /// The base's chat template; `None`: it takes prompts only.
    pub chat: Option<ChatTemplate>,
    /// How the model writes calls of tools, or why it cannot be offered any.
    pub calls: Result<Arc<CallFormat>, &'static str>,
    /// The answer of `GET /tokenizer_info`.
    pub tokenizer_info: Value,
    /// What a text from messages is searched for.
    pub control: ControlTokens,
    /// The answer of `GET /v1/soup`.
    pub description: Value,
    /// When it was loaded, seconds since 1970.
    pub created: u64,
    /// Its weight files, without those that were found changed since they were loaded.
    pub unchanged: Mutex<Vec<Seen>>,
}

/// What a soup is loaded beside.
pub struct Beside {
    /// The soups that run, `former` among them.
    pub running: Vec<Arc<Served>>,
    /// The one whose place it takes.
    pub former: Option<Arc<Served>>,
    /// The device's turns.
    pub turns: Arc<Turns>,
}

impl Beside {
    /// Bytes that the running ones hold, files that several have counted once, and the files.
    pub fn holds(&self) -> (usize, Vec<Seen>) {
        let running = self.running.iter();
        let running = running.filter(|served| served.engine.state() != EngineState::Stopped);
        let (mut bytes, mut files) = (0, Vec::new());
        for served in running {
            bytes += served.holds;
            for (file, size) in &served.weights {
                if !files.contains(file) {
                    files.push(file.clone());
                    bytes += size;
                }
            }
        }
        (bytes, files)
    }
}

impl Served {
    /// Longest prompt and answer together, in tokens.
    pub fn context(&self) -> usize {
        self.context_of(1)
    }

    /// Logs which files were changed on disk since they were loaded, each once.
    pub fn look_at_files(&self) {
        let mut unchanged = self.unchanged.lock().unwrap_or_else(PoisonError::into_inner);
        unchanged.retain(|file| {
            let changed = file.changed();
            if changed {
                tracing::warn!(
                    path = %file.path.display(),
                    "changed on disk: what was loaded is served until SIGHUP or a restart"
                );
            }
            !changed
        });
    }

    /// The same for a request that decodes its sequence `lanes` times side by side.
    pub fn context_of(&self, lanes: usize) -> usize {
        let bounds = self.engine.bounds();
        // What is encoded fills its last block alone.
        let alone = usize::from(bounds.encoded.is_some());
        let blocks = (bounds.kv_blocks / lanes.max(1)).saturating_sub(alone);
        bounds.context.min(blocks.saturating_mul(bounds.block_tokens))
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in generation {}", self.name, self.generation)
    }
}
