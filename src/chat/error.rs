//! What is wrong with a template or a conversation.

use std::{io, path::PathBuf};

/// A template that cannot be loaded or a conversation that it refuses.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
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
    /// The rendering takes too many instructions, works or writes too much.
    #[error("the chat template exceeds its limit of {limit}")]
    Limit {
        /// What was exceeded, with its unit.
        limit: String,
    },
    /// The template fails on these messages.
    #[error("chat template: {0}")]
    Render(String),
}
