//! `ladle merge`: the merged model of a preference on disk.

use std::path::PathBuf;

use ladle::{
    config::StoreOptions,
    kernels::Dtype,
    merge::export::{export_adapter, export_model},
    preference::Solved,
};

use super::{
    arguments::{choose, dtype, open},
    output::print_json,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The soup directory.
    soup: PathBuf,
    /// helpful=0.7,harmless=0.3, or 0.7,0.3, or the name of a preset [default: the soup's].
    #[arg(long, allow_hyphen_values = true)]
    preference: Option<String>,
    /// Extrapolation: a number, or JSON by objective.
    #[arg(long, allow_hyphen_values = true)]
    alpha: Option<String>,
    /// Directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write one PEFT adapter for the base, instead of a whole model (soups of adapters).
    #[arg(long)]
    adapter: bool,
    /// Storage type of what is written, instead of the base's or the adapters': bf16, f16 or f32.
    #[arg(long, value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Directory of the base, instead of the one that the soup names.
    #[arg(long)]
    base: Option<PathBuf>,
    #[command(flatten)]
    store: StoreOptions,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let soup = open(&args.soup, args.base, &args.store)?;
    let menu = soup.manifest.menu()?;
    let solution = choose(&menu, &soup.mixing, args.preference.as_deref(), args.alpha.as_deref())?;
    if args.adapter {
        export_adapter(&soup, &solution.coefficients, args.dtype, &args.out)?;
    } else {
        export_model(&soup, &solution.coefficients, args.dtype, &args.out)?;
    }
    print_json(&Solved::new(&menu, &solution))
}
