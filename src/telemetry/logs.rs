//! The log of the process.

use std::{
    env,
    io::{self, IsTerminal},
};

use tracing_subscriber::{EnvFilter, fmt};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "log filter is {filter:?}, expected directives such as \"info\" or \"ladle=debug\": {reason}"
    )]
    Filter {
        /// The filter given.
        filter: String,
        /// Message of the parser.
        reason: String,
    },
    /// The process already has a subscriber.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Sends the process's logs to standard error, as text (in colours on a terminal, without
/// `NO_COLOR`) or as one JSON object a line.
///
/// Spans carry request ids. Prompts and answers are never logged at any level.
pub fn init_logs(filter: &str, json: bool) -> Result<(), LogError> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| LogError::Filter {
        filter: filter.to_owned(),
        reason: error.to_string(),
    })?;
    let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = !plain && io::stderr().is_terminal();
    let builder = fmt().with_env_filter(parsed).with_ansi(colours).with_writer(io::stderr);
    let set = if json { builder.json().try_init() } else { builder.try_init() };
    set.map_err(|_| LogError::AlreadySet)
}
