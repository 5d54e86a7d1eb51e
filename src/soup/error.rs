//! Errors of weights and of soups on disk.

use std::{io, path::PathBuf};

use super::manifest::ManifestError;
use crate::{files::FileError, kernels::Dtype, model::config::ModelConfigError};

/// Why weights on disk were refused, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// No weights where some are expected.
    #[error("{dir}: found no weights, expected {expected}", dir = dir.display())]
    NoWeights {
        dir: PathBuf,
        /// Accepted file names.
        expected: &'static str,
    },
    /// The weights are pickled.
    #[error(
        "{path}: weights are read only from safetensors, because a pickle runs code when it is \
         opened; convert it where you trust it: {hint}", path = path.display()
    )]
    Pickle {
        path: PathBuf,
        /// Command that converts it.
        hint: &'static str,
    },
    /// The file is shorter or longer than its header says.
    #[error("{path}: {what} needs {expected} bytes, the file has {got}", path = path.display())]
    Length {
        path: PathBuf,
        what: &'static str,
        /// Bytes that the file should have.
        expected: u64,
        /// Bytes that it has.
        got: u64,
    },
    /// The header is not a safetensors header.
    #[error("{path}: invalid safetensors header: {reason}", path = path.display())]
    Header { path: PathBuf, reason: String },
    /// One tensor's entry or bytes are wrong.
    #[error("{path}: tensor {tensor}: expected {expected}, got {got}", path = path.display())]
    Tensor { path: PathBuf, tensor: String, expected: String, got: String },
    /// The model's configuration is not supported.
    #[error("{dir}/{error}", dir = dir.display())]
    Config { dir: PathBuf, error: ModelConfigError },
    /// A configuration or index is wrong.
    #[error("{path}: {key}: expected {expected}, got {got}", path = path.display())]
    Json {
        path: PathBuf,
        /// Key, or "document".
        key: String,
        expected: String,
        got: String,
    },
}

impl WeightError {
    /// Wraps an I/O error with the path it belongs to.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let at = FileError::at(path);
        move |error| Self::File(at(error))
    }
}

/// Why a soup was refused.
#[derive(Debug, thiserror::Error)]
pub enum SoupError {
    /// The manifest is wrong.
    #[error("{path}: {error}", path = path.display())]
    Manifest { path: PathBuf, error: ManifestError },
    /// Weights, their configuration or their directory are wrong.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A path leads out of the soup's directory, through a link.
    #[error(
        "{path}: leaves the soup: it leads to {target}, expected a file inside {soup}",
        path = path.display(), target = target.display(), soup = soup.display()
    )]
    Outside {
        /// The path as the soup names it.
        path: PathBuf,
        /// Target of the link.
        target: PathBuf,
        /// The soup's directory.
        soup: PathBuf,
    },
    /// A weight file has no digest in the manifest.
    #[error("{path}: no sha256 in soup.toml, expected {key} = \"{got}\"", path = path.display())]
    Unlisted {
        path: PathBuf,
        /// Its key in the table.
        key: String,
        /// The digest that it has.
        got: String,
    },
    /// A digest for a file that is not part of the soup.
    #[error("{table}.{key:?}: names no weight file of this soup (those are: {known})")]
    Stray {
        /// `sha256` or `base.sha256`.
        table: &'static str,
        key: String,
        /// Keys that would be right.
        known: String,
    },
    /// The front was measured on other weights.
    #[error(
        "{path}: measured on other weights: sha256.{file:?} is {got}, expected {expected}, as in \
         soup.toml; remove it (`train-backbones evaluate` measures another)",
        path = path.display()
    )]
    Front {
        path: PathBuf,
        /// Backbone and name of the weight file.
        file: String,
        expected: String,
        got: String,
    },
    /// A file cannot be read or written, or is not the one that the manifest describes.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A full backbone has another architecture than the base, or a tuned model another tokenizer.
    #[error("{path}: {what}: expected {expected} (as in the base), got {got}", path = path.display())]
    Mismatch {
        path: PathBuf,
        /// Tensor or key.
        what: String,
        expected: String,
        got: String,
    },
    /// A full backbone over a quantised base.
    #[error(
        "{path}: a full checkpoint over a base whose {tensor} is {dtype}: expected adapters, or a \
         base in bf16, f16 or f32",
        path = path.display()
    )]
    QuantisedBase {
        path: PathBuf,
        /// A quantised tensor of the base.
        tensor: String,
        dtype: Dtype,
    },
    /// The base is not where the manifest says.
    #[error(
        "base: nothing at {at}, expected a Hugging Face directory or a GGUF file; name another in \
         soup.toml, or fetch one with `ladle import`",
        at = at.display()
    )]
    Base {
        /// Where it should be.
        at: PathBuf,
    },
    /// The base is an id or a GGUF file, and the options name no directory.
    #[error("base: {spec} is not a directory: expected it to be imported and found first")]
    Unresolved {
        /// The id or file.
        spec: String,
    },
}
