//! `train-backbones`: command line → configuration → stage.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use ladle::import::{Store, default_models_dir};
use ladle_training::{
    checkpoint::write_atomically,
    config::Config,
    measure::{
        evaluate::{Settings, evaluate},
        summary,
    },
    plan::Plan,
    rewards::fit::{self, lesson::Source as Lesson},
    run::{Places, Run},
    select,
};

/// Multi-objective reinforcement learning that makes the backbones of a soup.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Supervised tuning only.
    Sft(Source),
    /// Teaches a reward model from a data set: a head on a frozen encoder or causal language model,
    /// for the rewards `sequence-classifier` (preferences) and `span-classifier` (marked errors).
    Reward {
        /// What the rows of the file teach.
        #[arg(value_enum)]
        lesson: Lesson,
        /// The data set's JSONL file.
        rows: PathBuf,
        /// Directory of the encoder or language model, such as all-MiniLM-L6-v2.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Directory of the reward model.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Rows that are read at most.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        settings: fit::Settings,
    },
    /// Every stage to the soup: supervised tuning, all backbones, soup.toml.
    Run {
        #[command(flatten)]
        source: Source,
        /// Train this backbone only (one process of an array).
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Goes on with a run where it was stopped.
    Resume {
        /// The run's directory.
        run: PathBuf,
        #[command(flatten)]
        at: At,
        /// Go on with this backbone only.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Trains a fifth of the steps for each β and prints their hypervolumes on validation prompts.
    SelectBeta {
        #[command(flatten)]
        source: Source,
        /// Values of β.
        #[arg(long, value_delimiter = ',', default_value = "0.6,0.7,0.8")]
        betas: Vec<f64>,
        /// Validation prompts that are answered for each preference.
        #[arg(long, default_value_t = 64)]
        prompts: usize,
    },
    /// Evaluates a finished run's soup over extrapolations on validation prompts.
    SelectAlpha {
        /// The run's directory.
        run: PathBuf,
        #[command(flatten)]
        at: At,
        /// Values of α (a/(1−a) for a in 0..0.5: the authors' grid, with 0).
        #[arg(long, value_delimiter = ',', default_value = "0,0.111,0.25,0.429,0.667,1")]
        alphas: Vec<f64>,
        /// Validation prompts that are answered for each preference.
        #[arg(long, default_value_t = 64)]
        prompts: usize,
    },
    /// Sweeps the grid of preferences over the test prompts through the served engine and writes
    /// front.json, samples.csv and report.html.
    Evaluate {
        /// The finished run's directory.
        run: PathBuf,
        /// Directory that the evaluation writes.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Finished runs to compare with, such as one with `mixing = { identity = true }`.
        #[arg(long, value_name = "RUN")]
        against: Vec<PathBuf>,
        #[command(flatten)]
        at: At,
        /// Test prompts of each point.
        #[arg(long, default_value_t = 64)]
        prompts: usize,
        /// The grid's spacing is 1 over this.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
        grid: u16,
        /// Sampling temperature; 0 is greedy.
        #[arg(long, default_value_t = 0.0)]
        temperature: f64,
        /// Seeds of the sampling.
        #[arg(long, value_delimiter = ',', default_value = "1")]
        seeds: Vec<u64>,
    },
}

/// A new run.
#[derive(Args)]
struct Source {
    /// The run's configuration.
    config: PathBuf,
    /// Directory that the run writes.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    at: At,
    /// Print the plan with the estimated tokens, time and memory, and stop.
    #[arg(long)]
    dry_run: bool,
}

/// Where things are on this machine.
#[derive(Args, Clone)]
struct At {
    /// Directory that the configuration's data paths are relative to.
    #[arg(long, env = "LADLE_DATA", value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// Directory of imported models.
    #[arg(long, env = "LADLE_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Sft(source) => {
            let Some(run) = open(&source)? else { return Ok(()) };
            if run.sft()?.is_none() {
                bail!("the configuration has no [sft] section");
            }
        }
        Command::Reward { lesson, rows, model, out, limit, settings } => {
            let mut lesson = lesson.read(&rows)?;
            lesson.rows.truncate(limit.unwrap_or(usize::MAX));
            println!("{}", fit::fit(lesson, &model, &out, &settings)?);
        }
        Command::Run { source, only } => {
            let Some(run) = open(&source)? else { return Ok(()) };
            run.train(only.as_deref())?;
        }
        Command::Resume { run, at, only } => reopen(run, at)?.train(only.as_deref())?,
        Command::SelectBeta { source, betas, prompts } => {
            let Some(run) = open(&source)? else { return Ok(()) };
            print!("{}", select::betas(run, &betas, prompts)?);
        }
        Command::SelectAlpha { run, at, alphas, prompts } => {
            print!("{}", select::alphas(&reopen(run, at)?, &alphas, prompts)?);
        }
        Command::Evaluate { run, out, against, at, prompts, grid, temperature, seeds } => {
            let run = reopen(run, at.clone())?;
            let others = against.into_iter().map(|other| reopen(other, at.clone()));
            let others = others.collect::<Result<Vec<_>>>()?;
            let settings = Settings { prompts, grid: grid.into(), temperature, seeds };
            let evaluation = evaluate(&run, &others, &out, &settings)?;
            let page = summary::report(&run, &evaluation, &settings).html();
            write_atomically(&out.join("report.html"), page.as_bytes())?;
            print!("{}", evaluation.front);
        }
    }
    Ok(())
}

/// Opens a new run and claims its directory; `None` after a dry run.
fn open(source: &Source) -> Result<Option<Run>> {
    let config = Config::read(&source.config)?;
    let run = Run::open(config.clone(), places(source.out.clone(), &source.at, &config.base)?)?;
    if source.dry_run {
        println!("{}", Plan::of(&run));
        return Ok(None);
    }
    run.claim()?;
    Ok(Some(run))
}

/// Opens a run by its directory.
fn reopen(run: PathBuf, at: At) -> Result<Run> {
    let config = Config::read(&run.join("config.toml"))?;
    let places = places(run, &at, &config.base)?;
    Ok(Run::open(config, places)?)
}

fn places(run: PathBuf, at: &At, base: &str) -> Result<Places> {
    let data = fs::canonicalize(&at.data).with_context(|| at.data.display().to_string())?;
    let models_dir = match &at.models {
        Some(models) => models.clone(),
        None => default_models_dir().context("no home directory: give --models DIR")?,
    };
    let base = Store { models_dir, offline: false }.resolve(base)?;
    Ok(Places { run, data, base })
}
