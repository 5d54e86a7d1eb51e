//! `ladle serve`: a soup over HTTP.

use std::path::PathBuf;

use ladle::{config::ServeOptions, http};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The soup directory, as with --soup.
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// File of options (TOML); flags and environment beat it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: ServeOptions,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut options = args.options;
    options.soup = args.dir.or(options.soup);
    Ok(http::command(options, args.config.as_deref())?)
}
