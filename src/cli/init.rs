//! `ladle init`: a soup from adapters and checkpoints.

use std::path::PathBuf;

use ladle::{
    config::StoreOptions,
    soup::{
        Activation,
        init::Recipe,
        manifest::{BaseEntry, Mixing},
    },
};

use super::{
    arguments::{MixingArgs, named_path, store},
    output::print_json,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to write; must not exist.
    dir: PathBuf,
    /// Name that the soup is served under.
    #[arg(long)]
    name: String,
    /// Base model: a Hugging Face directory, a .gguf file, or an id.
    #[arg(long)]
    base: String,
    /// A backbone, in the order of the objectives; repeat.
    #[arg(long = "backbone", required = true, value_name = "NAME=DIR", value_parser = named_path)]
    backbones: Vec<(String, PathBuf)>,
    /// Objectives, where they are not the backbones' names; repeat.
    #[arg(long = "objective", value_name = "NAME")]
    objectives: Vec<String>,
    /// Adapter that makes the common starting point of all backbones.
    #[arg(long, value_name = "DIR")]
    sft: Option<PathBuf>,
    /// The rows that the backbones act on: those of prompt and answer, or of the answer alone.
    #[arg(long, value_enum, default_value_t)]
    activation: Activation,
    #[command(flatten)]
    mixing: MixingArgs,
    #[command(flatten)]
    store: StoreOptions,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let path = PathBuf::from(&args.base);
    let base = if path.is_dir() {
        BaseEntry { path: Some(path), ..BaseEntry::default() }
    } else if path.is_file() {
        BaseEntry { gguf: Some(path), ..BaseEntry::default() }
    } else {
        BaseEntry { id: Some(args.base), ..BaseEntry::default() }
    };
    let mixing = Mixing {
        beta: args.mixing.beta,
        matrix: args.mixing.matrix.map(|rows| rows.0),
        ..Mixing::default()
    };
    let recipe = Recipe {
        name: args.name,
        base,
        sft: args.sft,
        objectives: args.objectives,
        backbones: args.backbones,
        mixing,
        activation: args.activation,
    };
    print_json(&store(&args.store)?.init(&args.dir, &recipe)?)
}
