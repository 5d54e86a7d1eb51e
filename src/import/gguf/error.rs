//! Why a GGUF file is refused.

use std::path::PathBuf;

use crate::model::config::ModelConfigError;

/// A GGUF file that cannot be turned into a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or read.
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The file is not GGUF, or is damaged.
    #[error("{path}: not a readable GGUF file: {reason}")]
    Format { path: PathBuf, reason: String },
    /// A metadata key is missing or has another type.
    #[error("{path}: metadata {key}: expected {expected}, got {got}")]
    Metadata { path: PathBuf, key: String, expected: String, got: String },
    /// The settings do not make a model that is served.
    #[error("{path}: {error}")]
    Config {
        path: PathBuf,
        /// What is wrong, by the keys of the `config.json` that would be written.
        error: ModelConfigError,
    },
    /// The model or its tokenizer is of a kind that ladle does not have.
    #[error("{path}: {what} {got} is not supported (supported: {supported})")]
    Unsupported {
        path: PathBuf,
        /// What is not supported.
        what: &'static str,
        got: String,
        /// The values that are.
        supported: String,
    },
    /// A tensor is missing, left over, or has another name, shape or type than its architecture has.
    #[error("{path}: tensor {name}: {reason}")]
    Tensor {
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        reason: String,
    },
    /// The tokenizer contradicts itself.
    #[error("{path}: tokenizer: {reason}")]
    Tokenizer { path: PathBuf, reason: String },
    /// A part of a split model is missing or is not the one that it should be.
    #[error("{path}: {reason}")]
    Split {
        /// The file that was to be imported.
        path: PathBuf,
        reason: String,
    },
}
