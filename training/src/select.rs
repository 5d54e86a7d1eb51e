//! The choice of β and of α on validation prompts.

use std::fmt;

use ladle::{
    kernels::HostTensor,
    model::decoder::Decoder,
    preference::{Alpha, Coefficients, MixingMatrix, Preference, PreferenceError},
    soup::{Adapter, LoraModule},
};

use crate::{
    config::MixingConfig,
    draw::{self, Purpose},
    error::RunError,
    layout::Places,
    measure::{
        criterion::{Candidate, Selection, best_at_corner, by_hypervolume, by_testing_reward},
        front::{FrontError, grid, inner_product},
    },
    rl::{
        balance::Standardiser,
        rollout::{self, Request, Sampler},
    },
    run::Run,
    setup::Prompt,
    share::share,
    trainer,
    weights::Lora,
};

/// Why nothing could be selected.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// Error of a run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The measure cannot be computed.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// A point of the grid is not a preference.
    #[error(transparent)]
    Preference(#[from] PreferenceError),
    /// There are no validation prompts.
    #[error("data.validation: the configuration names no file, and choices are made on it")]
    NoValidation,
    /// There is no B to choose for.
    #[error("mixing.weights: one policy has no B and no α to choose; expected beta or matrix")]
    OnePolicy,
    /// None of the validation prompts is of a type that a reward judges.
    #[error("--prompts: {0} judges none of the validation prompts chosen, expected more of them")]
    Unjudged(String),
    /// `--alphas` is empty.
    #[error("--alphas names none, expected at least one")]
    NoAlphas,
    /// No validation prompt is to be answered.
    #[error("--prompts is 0, expected at least 1")]
    NoPrompts,
}

type Result<T> = std::result::Result<T, SelectError>;

/// Candidates with their scores, for display.
pub struct Table {
    name: &'static str,
    score: &'static str,
    values: Vec<f64>,
    selection: Selection,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>8}  {}", self.name, self.score)?;
        for (index, (value, score)) in self.values.iter().zip(&self.selection.scores).enumerate() {
            let mark = if index == self.selection.best { "  <- best" } else { "" };
            writeln!(f, "{value:>8}  {score:.5}{mark}")?;
        }
        Ok(())
    }
}

/// Updates of a trial of a β, the first of the whole run: a fifth (Bone Soups §3.2), but at least
/// 20, because fewer teach too little to compare.
pub fn trial_steps(steps: u64) -> u64 {
    (steps / 5).max(20).min(steps)
}

/// Trains the first fifth of the run for each β (Bone Soups §3.2, `docs/algorithms.md` §7.7) and
/// compares the hypervolumes of their fronts. Each β is a run of its own inside the run's directory,
/// so a stopped selection goes on.
pub fn betas(run: Run, betas: &[f64], prompts: usize) -> Result<Table> {
    check(&run, prompts)?;
    for &beta in betas {
        MixingMatrix::circulant(run.config.objectives.len(), beta).map_err(RunError::from)?;
    }
    let sft = run.sft()?;
    let standardiser = run.standardiser(sft.as_ref())?;
    let mut candidates = Vec::new();
    for &beta in betas {
        let mut config = run.config.clone();
        config.mixing = MixingConfig::Beta(beta);
        config.rl = config.rl.first(trial_steps(config.rl.steps));
        let places =
            Places { run: run.places.run.join(format!("beta-{beta}")), ..run.places.clone() };
        let trial = Run::open(config, places)?;
        share(&trial, &run.places.run)?;
        trial.train(None)?;
        let solutions = front(&trial, &standardiser, &Alpha::Scalar(0.0), prompts)?;
        candidates.push(Candidate { value: beta, solutions });
    }
    let selection = by_hypervolume(&candidates)?;
    Ok(Table { name: "beta", score: "hypervolume, σ", values: betas.to_vec(), selection })
}

/// Compares extrapolations of a finished run by the mean testing reward Σ μᵢzᵢ over the grid, and
/// for each objective by its own reward at its corner (the authors' choice: one factor an objective).
pub fn alphas(run: &Run, alphas: &[f64], prompts: usize) -> Result<AlphaTable> {
    check(run, prompts)?;
    if alphas.is_empty() {
        return Err(SelectError::NoAlphas);
    }
    run.train(None)?;
    let standardiser = run.standardiser(run.sft()?.as_ref())?;
    let grid = preferences(run);
    let mut candidates = Vec::new();
    for &alpha in alphas {
        let solutions = front(run, &standardiser, &Alpha::Scalar(alpha), prompts)?;
        candidates.push(Candidate { value: alpha, solutions });
    }
    let selection = by_testing_reward(&candidates, &grid)?;
    // At a corner, an α of the objective alone is a scalar one.
    let objectives = run.config.objectives.iter().enumerate();
    let own = objectives.map(|(index, objective)| {
        let best = best_at_corner(&candidates, &grid, index)?;
        Ok((objective.name.clone(), best))
    });
    let own = own.collect::<std::result::Result<Vec<(String, f64)>, FrontError>>()?;
    let each = Alpha::PerObjective(own.iter().map(|(_, alpha)| *alpha).collect());
    let solutions = front(run, &standardiser, &each, prompts)?;
    let score = inner_product(&grid, &solutions)?;
    let scalar = Table {
        name: "alpha",
        score: "mean testing reward, σ",
        values: alphas.to_vec(),
        selection,
    };
    Ok(AlphaTable { scalar, own, score })
}

/// Scores of the extrapolations.
pub struct AlphaTable {
    scalar: Table,
    own: Vec<(String, f64)>,
    score: f64,
}

impl fmt::Display for AlphaTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scalar, own, score } = self;
        let shown: Vec<String> = own.iter().map(|(name, a)| format!("{name} = {a}")).collect();
        writeln!(f, "{scalar}each objective at its own corner: {}", shown.join(", "))?;
        let best = scalar.selection.scores[scalar.selection.best];
        let which = if *score > best { "better" } else { "no better" };
        writeln!(f, "together: {score:.5}, {which} than the best scalar")?;
        let alpha = match *score > best {
            true => format!("{{ {} }}", shown.join(", ")),
            false => scalar.values[scalar.selection.best].to_string(),
        };
        writeln!(f, "in soup.toml: [extrapolation] alpha = {alpha}")
    }
}

/// Checks that a choice is possible, before anything is trained.
fn check(run: &Run, prompts: usize) -> Result<()> {
    match prompts {
        _ if run.aim.matrix().is_none() => Err(SelectError::OnePolicy),
        _ if run.validation.is_empty() => Err(SelectError::NoValidation),
        0 => Err(SelectError::NoPrompts),
        _ => Ok(()),
    }
}

/// The grid of a selection: 11 points for two objectives, spacing 0.25 from three on.
fn preferences(run: &Run) -> Vec<Vec<f64>> {
    let n = run.config.objectives.len();
    grid(n, if n == 2 { 10 } else { 4 })
}

/// Mean standardised rewards of the soup over the grid, one row per preference; the same prompts
/// and random numbers for all.
fn front(
    run: &Run,
    standardiser: &Standardiser,
    alpha: &Alpha,
    prompts: usize,
) -> Result<Vec<Vec<f64>>> {
    let chosen = draw::batch(run.config.seed, run.validation.len(), prompts, 0);
    let chosen: Vec<&Prompt> = chosen.into_iter().filter_map(|i| run.validation.get(i)).collect();
    let sft = run.sft()?;
    let adapter = |name: &str| -> Result<Lora> {
        let directory = run.places.run.join("adapters").join(name);
        Ok(Adapter::open(&directory).map_err(RunError::from)?.modules)
    };
    let backbones = run.config.objectives.iter().map(|o| adapter(&o.name));
    let backbones = backbones.collect::<Result<Vec<_>>>()?;
    let mixing = run.aim.matrix().ok_or(SelectError::OnePolicy)?;
    let mut sampler = trainer::sampler(&run.base, &run.config)?;
    let mut rows = Vec::new();
    for weights in preferences(run) {
        let coefficients = solve(mixing, &weights, alpha)?;
        let decoder = soup(run, sft.as_ref(), &backbones, &coefficients)?;
        let rewards = answer(run, &mut sampler, &decoder, &chosen)?;
        rows.push(standardiser.apply(&rewards).map_err(RunError::from)?);
    }
    Ok(rows)
}

fn solve(mixing: &MixingMatrix, weights: &[f64], alpha: &Alpha) -> Result<Coefficients> {
    let preference = Preference::new(weights, mixing.len())?;
    Ok(mixing.solve(&preference, alpha).coefficients)
}

/// θ_sft + Σ cᵢ Δᵢ without a merge: each backbone's scale is multiplied by its coefficient.
fn soup(
    run: &Run,
    sft: Option<&Lora>,
    backbones: &[Lora],
    coefficients: &Coefficients,
) -> Result<Decoder<HostTensor>> {
    let scaled: Vec<Lora> = backbones
        .iter()
        .zip(&coefficients.backbones)
        .map(|(backbone, c)| {
            let scale = |f: &LoraModule| LoraModule { scale: f.scale * c, ..f.clone() };
            backbone.iter().map(|(module, factor)| (module.clone(), scale(factor))).collect()
        })
        .collect();
    let term = run.config.lora.term();
    let scaled = scaled.iter().map(|adapter| (adapter, term));
    let adapters: Vec<_> = sft.into_iter().map(|sft| (sft, None)).chain(scaled).collect();
    let decoder = rollout::decoder(&run.base.model, &run.base.weights, &adapters);
    Ok(decoder.map_err(RunError::from)?)
}

/// Mean rewards of one response a prompt.
fn answer(
    run: &Run,
    sampler: &mut Sampler,
    decoder: &Decoder<HostTensor>,
    prompts: &[&Prompt],
) -> Result<Vec<f64>> {
    let requests: Vec<Request> = prompts
        .iter()
        .zip(0..)
        .map(|(prompt, stream)| prompt.request(run.config.lora.activation, stream))
        .collect();
    let seed = draw::derive(run.config.seed, Purpose::Validation);
    let sampling = trainer::sampling(&run.base, &run.config, seed, false);
    let rollouts = sampler.sample(decoder, &requests, &sampling).map_err(RunError::from)?;
    let samples: Vec<_> =
        prompts.iter().zip(&rollouts).map(|(prompt, r)| run.base.sample(prompt, r)).collect();
    let scores = run.rewards.score(&samples).map_err(RunError::from)?;
    let objectives = run.config.objectives.iter().zip(scores);
    let means = objectives.map(|(objective, scores)| {
        let judged: Vec<f64> = scores.into_iter().flatten().collect();
        match judged.len() {
            0 => Err(SelectError::Unjudged(objective.name.clone())),
            count => Ok(judged.iter().sum::<f64>() / count as f64),
        }
    });
    means.collect()
}
