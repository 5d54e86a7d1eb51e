//! `train-backbones`: command line → configuration → stage.

mod cli;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Error, Result, anyhow, bail};
use cli::{At, Cli, Command, Source, Sweep};
use ladle::{
    config::{LogFormat, program::exit},
    files::write_json,
    import::{Store, default_models_dir},
    telemetry::init_logs,
};
use ladle_training::{
    checkpoint::write_atomically,
    config::Config,
    data::texts,
    engines,
    estimate::Estimate,
    inputs,
    layout::Places,
    measure::{
        aggregate::aggregate,
        evaluate::evaluate,
        front, mauve,
        server::ServerOptions,
        settings::{Fixed, Settings},
        summary,
        sweep::{Other, Subject},
    },
    rewards::{features::Featuriser, fit},
    rl::policy::check_trainable,
    run::Run,
    select, service, share,
};
use tokio::net::TcpListener;

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
            let Some(sft) = run.sft()? else {
                bail!("the configuration has no [sft] section");
            };
            run.standardiser(Some(&sft))?;
        }
        Command::Reward { lesson, rows, model, out, limit, settings } => {
            let mut lesson = lesson.read(&rows)?;
            lesson.rows.truncate(limit.unwrap_or(usize::MAX));
            println!("{}", fit::fit(lesson, &model, &out, &settings)?);
        }
        Command::Run { source, only } => {
            let Some(run) = open(&source)? else { return Ok(()) };
            train(&run, only.as_deref())?;
        }
        Command::Resume { run, at, only } => train(&reopen(run, at)?, only.as_deref())?,
        Command::SelectBeta { source, betas, prompts } => {
            let Some(run) = open(&source)? else { return Ok(()) };
            print!("{}", select::betas(run, &betas, prompts)?);
        }
        Command::SelectAlpha { run, at, alphas, prompts } => {
            print!("{}", select::alphas(&reopen(run, at)?, &alphas, prompts)?);
        }
        Command::Evaluate { run, soup, share, server, out, sweep, at } => {
            let subject = match soup {
                None => Subject { run: reopen(run, at.clone())?, soup: None, server },
                Some(soup) => foreign(run, soup, share, server, &at)?,
            };
            let settings = settings(&sweep, &subject);
            let evaluation = evaluate(&subject, &others(&sweep, &at)?, &out, settings)?;
            let page = summary::report(&subject, &evaluation).html();
            write_atomically(&out.join("report.html"), page.as_bytes())?;
            print!("{}", evaluation.front);
        }
        Command::Mauve { human, answers, model, how } => {
            let decoder = Featuriser::open(&model)?;
            let features = |path: &Path| -> Result<Vec<Vec<f64>>> {
                let features = decoder.features(&texts::read(path)?);
                features.map_err(|reason| anyhow!("{}: {reason}", path.display()))
            };
            let found = mauve::mauve(&features(&human)?, &features(&answers)?, &how);
            println!("{:#}", serde_json::to_value(found.map_err(Error::msg)?)?);
        }
        Command::Aggregate { evaluations, out, baseline } => {
            let together = aggregate(&evaluations, &baseline)?;
            write_json(&out.join("aggregate.json"), &together)?;
            print!("{together}");
        }
        Command::ServeRewards(rewards) => serve_rewards(rewards)?,
        Command::Export { settings, set, data } => {
            let config = Config::read_with(&settings.config, &set)?;
            engines::export(&config, &data, &settings)?;
            println!("{}", settings.out.display());
        }
        Command::Pages(pages) => pages.run(cli::program())?,
    }
    Ok(())
}

/// Serves a backbone's rewards until SIGTERM or SIGINT.
fn serve_rewards(rewards: cli::Rewards) -> Result<()> {
    let cli::Rewards { config, set, backbone, share, listen, state, end, max_rows, max_bytes, at } =
        rewards;
    let config = Config::read_with(&config, &set)?;
    let places = || places(PathBuf::new(), &at, &config.base);
    let ends = match end.is_empty() {
        true => service::ends(&places()?.base).map_err(Error::msg)?,
        false => end,
    };
    let (data, rows, bytes) = (at.data.clone(), max_rows, max_bytes);
    let settings = service::Settings {
        config: config.clone(),
        backbone,
        data,
        share,
        state,
        rows,
        bytes,
        ends,
    };
    let service = service::Service::open(settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {listen}"))?;
        println!("rewards on http://{}", listener.local_addr()?);
        service::serve(service, listener, ladle::http::signal()).await;
        Ok(())
    })
}

/// Trains, and prints the soup's path and the command that serves it.
fn train(run: &Run, only: Option<&str>) -> Result<()> {
    run.train(only)?;
    let layout = run.layout();
    let soup = layout.soup();
    if soup.is_dir() {
        println!("soup: {}", soup.display());
        for step in &run.config.rl.keep {
            println!("after {step} updates: {}", layout.snapshot(*step).soup().display());
        }
        println!("serve it: ladle serve {}", soup.display());
    } else {
        let names = run.config.policies().into_iter();
        let missing: Vec<&str> = names.filter(|name| !layout.finished(name)).collect();
        println!("no soup yet: {} not trained; go on with `resume`", missing.join(", "));
    }
    Ok(())
}

/// A soup from elsewhere, with the configuration (a file, or a run's) that it is measured by.
fn foreign(
    source: PathBuf,
    soup: PathBuf,
    share: Option<PathBuf>,
    server: ServerOptions,
    at: &At,
) -> Result<Subject> {
    let (file, run) = match source.is_dir() {
        true => (source.join("config.toml"), Some(source)),
        false => (source, None),
    };
    let config = Config::read(&file)?;
    let scale =
        share.or(run).context("--share names no scale of the rewards: expected a run or file")?;
    let scale = share::standardiser(&config, &scale)?;
    let places = places(PathBuf::new(), at, &config.base)?;
    Ok(Subject { run: Run::open(config, places)?, soup: Some((soup, scale)), server })
}

/// Settings of an evaluation.
fn settings(sweep: &Sweep, Subject { run, server, .. }: &Subject) -> Settings {
    let preferences = match sweep.preferences.as_slice() {
        [] => front::grid(run.config.objectives.len(), sweep.grid.into()),
        listed => listed.iter().map(|weights| weights.0.clone()).collect(),
    };
    let temperature = sweep.temperature.unwrap_or(run.config.rollout.temperature);
    let (prompts, dev_prompts, seeds) = (sweep.prompts, sweep.dev_prompts, sweep.seeds.clone());
    let server = server.engine.is_some();
    let fixed = Fixed { prompts, dev_prompts, temperature, seeds, preferences, server };
    let (alphas, methods) = (sweep.alphas.clone(), sweep.methods.clone());
    Settings { fixed, alphas, every_alpha: sweep.every_alpha, methods }
}

/// The runs that a run is compared with.
fn others(sweep: &Sweep, at: &At) -> Result<Vec<Other>> {
    let runs = [(&sweep.against, false), (&sweep.oracle, true)];
    let runs = runs.into_iter().flat_map(|(runs, oracle)| runs.iter().map(move |r| (r, oracle)));
    let other = |((label, run), oracle): (&(String, PathBuf), bool)| {
        Ok(Other { label: label.clone(), run: reopen(run.clone(), at.clone())?, oracle })
    };
    runs.map(other).collect()
}

/// Opens a new run and claims its directory; `None` after a dry run.
fn open(source: &Source) -> Result<Option<Run>> {
    let config = Config::read_with(&source.config, &source.set)?;
    let run = Run::open(config.clone(), places(source.out.clone(), &source.at, &config.base)?)?;
    check_trainable(&run.base.model)?;
    if source.dry_run {
        println!("{}", Estimate::of(&run));
        return Ok(None);
    }
    match &source.share {
        None => run.claim()?,
        Some(other) => share::share(&run, other)?,
    }
    Ok(Some(run))
}

/// Opens a run by its directory.
fn reopen(run: PathBuf, at: At) -> Result<Run> {
    let config = Config::read(&run.join("config.toml"))?;
    let places = places(run, &at, &config.base)?;
    inputs::verify(&config, &places)?;
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
