//! `ladle`: the command line. Each command parses its arguments, calls the library and prints.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve { options, config } => cli::serve(*options, config.as_deref()),
        Command::Import(args) => cli::import(args),
        Command::Init(args) => cli::init(args),
        Command::Inspect(args) => cli::inspect(args),
        Command::Merge(args) => cli::merge(args),
        Command::Solve(args) => cli::solve(args),
        Command::Kernels(args) => cli::kernels(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
