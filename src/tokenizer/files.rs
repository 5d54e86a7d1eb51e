//! The files of a tokenizer, and its errors.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A tokenizer that cannot be loaded or a text that it cannot encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file of the tokenizer cannot be read.
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The content of a file of the tokenizer is invalid.
    #[error("{path}: {reason}")]
    Format { path: PathBuf, reason: String },
    /// The decoder turns tokens into text in a way that cannot be streamed token by token.
    #[error("{path}: decoder {got} is not supported (byte-level and SentencePiece decoders are)")]
    Decoder {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// The decoder's description.
        got: String,
    },
    /// The text cannot be encoded.
    #[error("text of {bytes} bytes cannot be encoded: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// Message of the tokenizer.
        reason: String,
    },
}

/// A JSON file, or null where there is none.
pub(super) fn optional_json(path: &Path) -> Result<Value, TokenizerError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => return Err(TokenizerError::Read { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes).map_err(|e| TokenizerError::Format {
        path: path.to_owned(),
        reason: format!("not JSON: {e}"),
    })
}
