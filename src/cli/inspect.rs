//! `ladle inspect`: what is in a soup.

use std::path::PathBuf;

use ladle::{config::StoreOptions, soup::inspect::Inspection};

use super::{
    arguments::open,
    output::{print, print_json},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The soup directory.
    soup: PathBuf,
    /// Directory of the base, instead of the one that the soup names.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreOptions,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let soup = open(&args.soup, args.base, &args.store)?;
    let inspection = Inspection::of(&soup);
    if args.json { print_json(&inspection) } else { print(&inspection.to_string()) }
}
