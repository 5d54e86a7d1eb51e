//! `ladle merge`: the merged model of a preference on disk.

use std::{num::NonZeroUsize, path::PathBuf};

use ladle::{
    chat::ChatTemplate,
    config::StoreOptions,
    kernels::Dtype,
    merge::export::{Truncation, export_adapter, export_model},
    preference::{LambdaRule, Solved},
    soup::{ActiveFrom, Soup},
    tokenizer::Tokenizer,
};

use super::{
    arguments::{Chosen, dtype, open},
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
    /// How λ follows from B⁻¹μ, instead of the soup's way: exact, or clamp (projected on the simplex).
    #[arg(long, value_name = "RULE")]
    lambda: Option<LambdaRule>,
    /// Directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Write one PEFT adapter for the base, instead of a whole model (soups of adapters).
    #[arg(long)]
    adapter: bool,
    /// Rank of the adapter where the exact one is higher: the nearest change of that rank; what it
    /// leaves out is printed.
    #[arg(long, value_name = "RANK", requires = "adapter")]
    rank: Option<NonZeroUsize>,
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
    let chosen = Chosen {
        preference: args.preference.as_deref(),
        alpha: args.alpha.as_deref(),
        lambda: args.lambda,
    };
    let solution = chosen.solve(&menu, &soup.mixing)?;
    let mut adapter = None;
    if args.adapter {
        let opening = match soup.active_from {
            ActiveFrom::GenerationPrompt => generation_prompt(&soup)?,
            ActiveFrom::Start | ActiveFrom::Tokens(_) => None,
        };
        let c = &solution.coefficients;
        let size = (args.dtype, args.rank);
        adapter = export_adapter(&soup, c, size, opening.as_deref(), &args.out)?;
    } else {
        export_model(&soup, &solution.coefficients, args.dtype, &args.out)?;
    }
    print_json(&Merged { solved: Solved::new(&menu, &solution), adapter })
}

/// What was merged, and what a smaller rank left out.
#[derive(serde::Serialize)]
struct Merged {
    #[serde(flatten)]
    solved: Solved,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Truncation>,
}

/// The tokens with which the base's chat template opens an answer; `None` without a template, or
/// where they depend on the turn before.
fn generation_prompt(soup: &Soup) -> anyhow::Result<Option<Vec<u32>>> {
    let Some(template) = ChatTemplate::from_dir(&soup.base_dir)? else { return Ok(None) };
    let tokenizer = Tokenizer::from_dir(&soup.base_dir)?;
    Ok(template.generation_prompt(|text| tokenizer.encode_prompt(text, None, false).ok()))
}
