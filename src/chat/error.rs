//! Errors of chat templates and of the conversations that they render.

use std::{io, path::PathBuf};

/// A template that cannot be loaded or a conversation that it refuses.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        source: io::Error,
    },
    /// The content of a file is invalid.
    #[error("{path}: {reason}")]
    Format {
        /// Path of the file.
        path: PathBuf,
        reason: String,
    },
    /// The settings of the tokenizer, which name the template and its special tokens.
    #[error(transparent)]
    Settings(#[from] crate::tokenizer::TokenizerError),
    /// The template is not valid Jinja.
    #[error("chat template: {0}")]
    Syntax(String),
    /// The template uses something that is not implemented.
    #[error("chat template: {0} is not supported")]
    Unsupported(String),
    /// The template itself refuses the conversation (`raise_exception`).
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The rendering exceeds its bound on instructions, work or output.
    #[error("the chat template exceeds its limit of {limit}")]
    Limit {
        /// The exceeded bound, with its unit.
        limit: String,
    },
    /// The template fails on these messages.
    #[error("chat template: {0}")]
    Render(String),
}
