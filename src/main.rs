//! `ladle`: command line → command.

mod cli;

use std::process::ExitCode;

use cli::Command;
use ladle::{config::program::exit, simd::Isa};

fn main() -> ExitCode {
    let command = cli::parse().command;
    exit(Isa::requested().map_err(Into::into).and_then(|_| match command {
        Command::Serve(args) => cli::serve::run(*args),
        Command::Import(args) => cli::import::run(args),
        Command::Init(args) => cli::init::run(args),
        Command::Inspect(args) => cli::inspect::run(args),
        Command::Merge(args) => cli::merge::run(args),
        Command::Solve(args) => cli::solve::run(args),
        Command::Chat(args) => cli::chat::run(args),
        Command::Generate(args) => cli::generate::run(args),
        Command::Key(args) => cli::key::run(args),
        Command::Kernels(args) => cli::kernels::run(args),
        Command::Pages(pages) => pages.run(cli::program()).map_err(Into::into),
    }))
}
