//! `ladle init`: a soup from adapters and checkpoints.

use std::path::PathBuf;

use ladle::{
    config::StoreOptions,
    soup::{
        Activation,
        bones::Bones,
        init::Recipe,
        manifest::{BaseEntry, Mixing, Objective},
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
    #[arg(long, required_unless_present = "from_bones")]
    base: Option<String>,
    /// A backbone, in the order of the objectives; repeat.
    #[arg(long = "backbone", required_unless_present = "from_bones", value_name = "NAME=DIR", value_parser = named_path)]
    backbones: Vec<(String, PathBuf)>,
    /// Directories of backbones with the bone.json that their trainer left: objectives, B, realised B
    /// and activation are theirs, and the base where --base names none.
    #[arg(
        long,
        value_name = "DIR",
        num_args = 1..,
        group = "MixingArgs",
        conflicts_with_all = ["backbones", "objectives", "activation"]
    )]
    from_bones: Vec<PathBuf>,
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
    let bones = Bones::read(&args.from_bones)?;
    bones.check_sft(args.sft.as_deref())?;
    let told = bones.common();
    let base = args.base.or_else(|| told.map(|bone| bone.base.name.clone())).unwrap_or_default();
    let path = PathBuf::from(&base);
    let mut base = if path.is_dir() {
        BaseEntry { path: Some(path), ..BaseEntry::default() }
    } else if path.is_file() {
        BaseEntry { gguf: Some(path), ..BaseEntry::default() }
    } else {
        BaseEntry { id: Some(base), ..BaseEntry::default() }
    };
    if let Some(bone) = told {
        base.sha256 = bone.base.sha256.clone();
        let recipe = Recipe {
            name: args.name,
            base,
            sft: args.sft,
            objectives: bones.objectives(),
            backbones: bones.backbones(),
            mixing: bones.mixing(),
            activation: bone.activation,
        };
        return print_json(&store(&args.store)?.init(&args.dir, &recipe)?);
    }
    let mixing = Mixing {
        beta: args.mixing.beta,
        matrix: args.mixing.matrix.map(|rows| rows.0),
        ..Mixing::default()
    };
    let recipe = Recipe {
        name: args.name,
        base,
        sft: args.sft,
        objectives: args.objectives.iter().map(|name| Objective::named(name)).collect(),
        backbones: args.backbones,
        mixing,
        activation: args.activation,
    };
    print_json(&store(&args.store)?.init(&args.dir, &recipe)?)
}
