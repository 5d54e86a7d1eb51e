//! `train-backbones`: command line → configuration → stage.

mod cli;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use cli::{At, Cli, Command, Source};
use ladle::{
    config::{LogFormat, program::exit},
    import::{Store, default_models_dir},
    telemetry::init_logs,
};
use ladle_training::{
    checkpoint::write_atomically,
    config::Config,
    measure::{
        evaluate::{Settings, evaluate},
        summary,
    },
    plan::Plan,
    rewards::fit,
    run::{Places, Run},
    select,
};

fn main() -> ExitCode {
    exit(run())
}

fn run() -> Result<()> {
    let Cli { command, logs } = cli::parse();
    init_logs(&logs.log(), logs.log_format() == LogFormat::Json)?;
    ladle::simd::Isa::requested()?;
    match command {
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
        Command::Pages(pages) => pages.run(cli::program())?,
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
    let models_dir = at.store.models_dir.clone().or_else(default_models_dir);
    let models_dir =
        models_dir.context("no place for models: set --models-dir, LADLE_HOME or HOME")?;
    let base = Store { models_dir, offline: at.store.offline() }.resolve(base)?;
    Ok(Places { run, data, base })
}
