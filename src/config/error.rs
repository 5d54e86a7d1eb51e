//! Errors of options.

use std::path::PathBuf;

/// Errors of options.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The configuration file is not TOML.
    #[error("{path}: {message}")]
    Syntax {
        path: PathBuf,
        /// Message of the parser, with line and column.
        message: String,
    },
    /// A key or a value of the configuration file is invalid.
    #[error("{path}, line {line}: {message}")]
    Key { path: PathBuf, line: usize, message: String },
    /// A value is out of its bounds.
    #[error("{option} is {got}, expected {expected}")]
    Value {
        /// The option, as in a file.
        option: &'static str,
        got: String,
        expected: String,
    },
    /// A variable of the environment asks for what is not done.
    #[error("{name} is set, which is not supported: {hint}")]
    Variable {
        name: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// An option without a default was not given.
    #[error("no {option} given: {hint}")]
    Missing {
        option: &'static str,
        /// How to give it.
        hint: &'static str,
    },
}
