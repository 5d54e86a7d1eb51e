//! `ladle solve`: a preference's merging coefficients.

use std::path::PathBuf;

use anyhow::bail;
use ladle::{
    preference::{Alpha, Front, LambdaRule, Menu, MixingMatrix, Preference, Solved},
    soup,
};

use super::{
    arguments::{Chosen, Rows, matrix},
    output::print_json,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// helpful=0.7,harmless=0.3, or 0.7,0.3, or the name of a preset.
    preference: String,
    /// Extrapolation: a number, or JSON by objective.
    #[arg(long, allow_hyphen_values = true)]
    alpha: Option<String>,
    /// How λ follows from B⁻¹μ, instead of the soup's way: exact, or clamp (projected on the simplex).
    #[arg(long, value_name = "RULE")]
    lambda: Option<LambdaRule>,
    /// Soup whose objectives, B and presets apply.
    #[arg(long, value_name = "DIR", conflicts_with = "objectives")]
    soup: Option<PathBuf>,
    /// Objectives, where no soup is given.
    #[arg(long, value_delimiter = ',', required_unless_present = "soup")]
    objectives: Vec<String>,
    /// β of a circulant B, where no soup is given.
    #[arg(long, conflicts_with_all = ["soup", "matrix"])]
    beta: Option<f64>,
    /// B as JSON, by rows, where no soup is given.
    #[arg(long, value_parser = matrix, value_name = "JSON", conflicts_with = "soup")]
    matrix: Option<Rows>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let (menu, mixing, front) = match &args.soup {
        Some(dir) => {
            let (_, manifest) = soup::read_manifest(dir)?;
            let (menu, mixing) = (manifest.menu()?, manifest.mixing()?);
            let front = soup::read_front(dir, &manifest)?;
            let front = Front::read(front.as_ref(), &menu, &mixing);
            (menu, mixing, Some(front))
        }
        None => {
            let n = args.objectives.len();
            let mixing = match (args.beta, args.matrix) {
                (Some(beta), None) => MixingMatrix::circulant(n, beta)?,
                (None, Some(rows)) => MixingMatrix::from_rows(&rows.0)?,
                _ => bail!("give --beta or --matrix, or --soup"),
            };
            if mixing.len() != n {
                bail!("--matrix has {} rows, expected {n}, one per objective", mixing.len());
            }
            let menu = Menu {
                objectives: args.objectives,
                presets: Vec::new(),
                efforts: Vec::new(),
                default_preference: Preference::uniform(n),
                default_alpha: Alpha::default(),
                alpha_bounds: (0.0, f64::MAX),
                default_rule: LambdaRule::default(),
            };
            (menu, mixing, None)
        }
    };
    let chosen = Chosen {
        preference: Some(&args.preference),
        alpha: args.alpha.as_deref(),
        lambda: args.lambda,
    };
    let mut solution = chosen.solve(&menu, &mixing)?;
    solution.predicted = front.map(|front| front.and_then(|front| front.predict(&solution)));
    print_json(&Solved::new(&menu, &solution))
}
