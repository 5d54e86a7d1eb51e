//! Why an import fails, and how one is made.

use std::{io, path::PathBuf};

use super::{gguf::GgufError, quantise::Quantise};
use crate::{
    chat::ChatError, files::FileError, kernels::Dtype, merge::MergeError, soup::WeightError,
    tokenizer::TokenizerError,
};

/// Why a base model could not be imported or found.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source is not one that can be imported.
    #[error("cannot import {spec:?}: {reason}")]
    Spec {
        /// What was asked for.
        spec: String,
        reason: String,
    },
    /// A file cannot be read or written, or is not the one that was published.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something is not there and the network may not be used.
    #[error("{what} is not in {looked}, and fetching is off (--offline): {hint}", looked = looked.display())]
    Offline {
        /// What is missing.
        what: String,
        /// Where it was looked for.
        looked: PathBuf,
        /// The command that would fetch it.
        hint: String,
    },
    /// A wheel cannot be read.
    #[error("{path}: {reason}", path = path.display())]
    Archive { path: PathBuf, reason: String },
    /// A program that fetches is missing or failed.
    #[error("`{command}` failed: {reason}{hint}")]
    Tool {
        /// The command line.
        command: String,
        reason: String,
        /// What installs or mends it; empty or starting with a line break.
        hint: String,
    },
    /// The hub did not give the model.
    #[error("hub model {id}: {reason}")]
    Hub {
        /// Owner and name.
        id: String,
        reason: String,
    },
    /// The place is taken by another model.
    #[error(
        "{dir} holds {holds}, not {wanted}; import under another --name or remove that directory",
        dir = dir.display()
    )]
    Occupied {
        dir: PathBuf,
        /// What is there.
        holds: String,
        /// What was to go there.
        wanted: String,
    },
    /// The tokenizer has more tokens than the model has embeddings.
    #[error("{path}: {tokens} tokens, but the model has {rows} embeddings", path = path.display())]
    Vocabulary {
        path: PathBuf,
        /// Tokens in it.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A token that ends a text is none of the vocabulary.
    #[error(
        "{dir}: the end of a text is token {id}, expected one below {rows} (eos_token_id of \
         config.json or generation_config.json)",
        dir = dir.display()
    )]
    Id {
        dir: PathBuf,
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// The tensors do not make the model of the configuration, or are not of a kind that is served.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The chat template is not right.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The GGUF file cannot be read as a checkpoint.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The weights are wrong or cannot be written.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The tokenizer does not load.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl ImportError {
    /// Wraps an I/O error with the path it belongs to.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File(FileError::Io { path, error })
    }
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Where models are kept.
    pub models_dir: PathBuf,
    /// Storage type of what is dequantised. What comes as safetensors stays as it is.
    pub dtype: Dtype,
    /// Matrices as blocks of codes with scales.
    pub quantise: Option<Quantise>,
    /// Id to keep the model under, instead of the source's own.
    pub name: Option<String>,
    /// Fetch nothing.
    pub offline: bool,
    /// Copy a local directory instead of linking to it.
    pub copy: bool,
    /// Serve longrope with the factors of long contexts at every length.
    pub long_context: bool,
    /// The hub, instead of `HF_ENDPOINT` or the public one.
    pub endpoint: Option<String>,
}

impl ImportOptions {
    /// bf16 under the source's own id, with fetching.
    pub fn new(models_dir: impl Into<PathBuf>) -> Self {
        Self {
            models_dir: models_dir.into(),
            dtype: Dtype::Bf16,
            quantise: None,
            name: None,
            offline: false,
            copy: false,
            long_context: false,
            endpoint: None,
        }
    }
}
