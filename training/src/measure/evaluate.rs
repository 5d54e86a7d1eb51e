//! `evaluate`: sweeps the grid of preferences through the merge and engine that users are served
//! by, scores the answers, and measures the fronts.
//!
//! ```text
//! OUT/evaluation.toml  how the answers are made
//! OUT/answers.jsonl    every answer with its rewards, appended point by point
//! OUT/samples.csv      the same by method and preference
//! OUT/front.json       mean rewards and metrics of every method
//! OUT/report.html      for people
//! ```
//!
//! A stopped evaluation goes on after its last whole answer. Methods that ask for the same model
//! share its answers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ladle::{
    config::MergeMode,
    engine::{
        self, CpuBackend, CpuOptions, EngineConfig, EngineHandle, Event, FinishReason,
        GenerateRequest,
    },
    preference::{Alpha, Coefficients, MixingMatrix, Preference},
    soup::{OpenOptions as SoupOptions, Soup},
};
use serde::{Deserialize, Serialize};

use super::{
    answers::{Answer, Book, Table},
    front::{FrontError, grid},
    report::Shown,
    results::{FrontFile, Objective, Point},
};
use crate::{
    checkpoint::{CheckpointError, write_atomically},
    config::MixingConfig,
    draw,
    error::RunError,
    metrics::progress,
    rewards::RewardError,
    run::Run,
    setup::Prompt,
};

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A run, its data or its base.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// A reward.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// The metrics.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// A soup cannot be opened or served.
    #[error("{path}: {reason}")]
    Soup {
        /// The soup's directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The engine gave no answer.
    #[error("row {row} at coefficients {coefficients:?}: {reason}")]
    Answer {
        /// The prompt's id.
        row: String,
        /// c over the backbones.
        coefficients: Vec<f64>,
        /// Why.
        reason: String,
    },
    /// What is asked for cannot be compared.
    #[error("{0}")]
    Settings(String),
}

type Result<T> = std::result::Result<T, EvaluateError>;

/// How to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Test prompts of each point (all there are, if fewer).
    pub prompts: usize,
    /// The grid's spacing is 1 over this.
    pub grid: usize,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Seeds of the sampling (one, if greedy).
    pub seeds: Vec<u64>,
}

/// One way to answer a preference: a soup and a mapping of μ to coefficients.
struct Method {
    name: String,
    run: usize,
    mapping: MixingMatrix,
}

/// A finished run's soup, open.
struct Served<'a> {
    run: &'a Run,
    path: PathBuf,
    soup: Soup,
}

impl<'a> Served<'a> {
    fn open(run: &'a Run) -> Result<Self> {
        let path = run.places.run.join("soup");
        let options = SoupOptions { base: Some(run.places.base.clone()), verify_digests: true };
        let soup = Soup::open(&path, &options).map_err(|error| EvaluateError::Soup {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        Ok(Self { run, path, soup })
    }

    /// The methods that this soup serves.
    fn methods(&self, index: usize) -> Result<Vec<Method>> {
        let method = |name: &str, mapping: MixingMatrix| Method {
            name: name.to_owned(),
            run: index,
            mapping,
        };
        let n = self.run.config.objectives.len();
        if matches!(self.run.config.mixing, MixingConfig::Identity(_)) {
            return Ok(vec![method("rewarded soup", MixingMatrix::identity(n))]);
        }
        let mut methods = vec![method("bone soup (nominal)", self.run.mixing.clone())];
        if let Some(rows) = &self.soup.manifest.mixing.realised {
            let realised = MixingMatrix::from_rows(rows).map_err(RunError::from)?;
            methods.push(method("bone soup (realised)", realised));
        }
        methods.push(method("aba", MixingMatrix::identity(n)));
        Ok(methods)
    }

    fn engine(&self) -> Result<EngineHandle> {
        let error = |reason: String| EvaluateError::Soup { path: self.path.clone(), reason };
        let options = CpuOptions {
            threads: Some(rayon::current_num_threads()),
            merge_mode: MergeMode::Fused,
            ..CpuOptions::default()
        };
        let backend = CpuBackend::open(&self.soup, &options).map_err(|e| error(e.to_string()))?;
        let config = EngineConfig {
            merge_mode: MergeMode::Fused,
            max_waiting: usize::MAX,
            ..EngineConfig::default()
        };
        engine::start(backend, self.run.base.tokenizer.clone(), config)
            .map_err(|e| error(e.to_string()))
    }
}

/// Evaluates the soup of `subject` and those of `others`, trained for the same objectives.
pub fn evaluate(
    subject: &Run,
    others: &[Run],
    out: &Path,
    settings: &Settings,
) -> Result<Evaluation> {
    if settings.prompts == 0 || settings.grid == 0 || settings.seeds.is_empty() {
        let reason = format!("{settings:?}: expected at least one prompt, grid step and seed");
        return Err(EvaluateError::Settings(reason));
    }
    let served = std::iter::once(subject).chain(others).map(Served::open);
    let served = served.collect::<Result<Vec<_>>>()?;
    claim(&served, out, settings)?;
    let prompts = subject.test(settings.prompts)?;
    let mut methods: Vec<Method> = Vec::new();
    for (index, soup) in served.iter().enumerate() {
        let tokens = |prompt: &&Prompt| soup.run.base.prompt(&prompt.example);
        if prompts.iter().any(|prompt| tokens(prompt).as_ref() != Ok(&prompt.tokens)) {
            let reason = "its base reads the prompts as other tokens; compare runs of one base";
            return Err(EvaluateError::Soup { path: soup.path.clone(), reason: reason.into() });
        }
        for mut method in soup.methods(index)? {
            // Two runs can serve a method of the same name.
            if methods.iter().any(|other| other.name == method.name) {
                method.name = format!("{} of {}", method.name, soup.run.places.run.display());
            }
            methods.push(method);
        }
    }
    let preferences = grid(subject.config.objectives.len(), settings.grid);
    let mut book = Book::open(&out.join("answers.jsonl"))?;

    // Every distinct model once, soup by soup, so that one engine runs at a time.
    let bar = progress("evaluate", (methods.len() * preferences.len()) as u64, "points");
    for (index, soup) in served.iter().enumerate() {
        let engine = soup.engine()?;
        for method in methods.iter().filter(|method| method.run == index) {
            for weights in &preferences {
                let coefficients = solve(method, weights)?;
                let missing = book.missing(
                    &soup.soup.digest,
                    &coefficients.backbones,
                    &prompts,
                    &settings.seeds,
                );
                let answers = ask(soup, &engine, &coefficients, &missing, subject, settings)?;
                book.add(answers)?;
                bar.inc(1);
            }
        }
        engine.drain();
    }
    bar.finish();

    let mut points = Vec::new();
    let names: Vec<String> = subject.config.objectives.iter().map(|o| o.name.clone()).collect();
    let mut table = Table::new(&names);
    let mut shown: Vec<Shown> = prompts[..prompts.len().min(SHOWN)]
        .iter()
        .map(|prompt| Shown { prompt: prompt.example.prompt().to_owned(), responses: Vec::new() })
        .collect();
    for method in &methods {
        let soup = &served[method.run];
        let mut each = Vec::new();
        for weights in &preferences {
            let coefficients = solve(method, weights)?;
            let answers =
                book.answers(&soup.soup.digest, &coefficients.backbones, &prompts, &settings.seeds);
            answers.iter().for_each(|answer| table.row(&method.name, weights, answer));
            if method.run == 0 && method.name == methods[0].name {
                show(&mut shown, &names, weights, &answers, settings);
            }
            each.push(point(weights, &answers, settings));
        }
        points.push((method.name.clone(), each));
    }
    write_atomically(&out.join("samples.csv"), table.text.as_bytes())?;
    let objectives = subject.config.objectives.iter().zip(subject.rewards.iter());
    let objectives = objectives
        .map(|(o, reward)| Objective { name: o.name.clone(), unit: reward.unit().to_owned() });
    let seeds = settings.seeds.clone();
    let front = FrontFile::measure(objectives.collect(), points, None, prompts.len(), seeds)?;
    let text = serde_json::to_string_pretty(&front)
        .map_err(|error| EvaluateError::Settings(error.to_string()))?;
    write_atomically(&out.join("front.json"), format!("{text}\n").as_bytes())?;
    Ok(Evaluation { front, shown })
}

/// Prompts whose answers the report shows.
const SHOWN: usize = 4;

/// Adds the answers of a corner of the simplex, or of its middle-most point, to the samples.
fn show(
    shown: &mut [Shown],
    names: &[String],
    weights: &[f64],
    answers: &[&Answer],
    settings: &Settings,
) {
    let n = names.len() as f64;
    let corner = weights.iter().position(|w| *w > 1.0 - 1e-9);
    let middle = weights.iter().all(|w| (w - 1.0 / n).abs() < 1.0 / settings.grid as f64);
    let label = match corner {
        Some(index) => names.get(index).cloned().unwrap_or_default(),
        None if middle => {
            let each: Vec<String> = weights.iter().map(|w| format!("{w:.2}")).collect();
            format!("μ = ({})", each.join(", "))
        }
        None => return,
    };
    // Answers come prompt by prompt, each under every seed: the first seed's is shown.
    for (shown, answer) in shown.iter_mut().zip(answers.iter().step_by(settings.seeds.len())) {
        shown.responses.push((label.clone(), answer.response.clone()));
    }
}

/// What an evaluation found.
pub struct Evaluation {
    /// Points and metrics of all methods.
    pub front: FrontFile,
    /// Answers of the first method to some prompts.
    pub shown: Vec<Shown>,
}

/// Writes what is evaluated, or checks that the directory holds the same evaluation.
fn claim(served: &[Served<'_>], out: &Path, settings: &Settings) -> Result<()> {
    for other in served {
        let names = |run: &Run| run.config.objectives.iter().map(|o| o.name.clone()).collect();
        let (expected, got): (Vec<String>, Vec<String>) = (names(served[0].run), names(other.run));
        if expected != got {
            let path = other.path.display();
            let reason = format!("{path} has the objectives {got:?}, expected {expected:?}");
            return Err(EvaluateError::Settings(reason));
        }
    }
    // Answers name their soup, so other runs may join later; prompts and decoding must stay.
    let text =
        toml::to_string(settings).map_err(|error| EvaluateError::Settings(error.to_string()))?;
    let path = out.join("evaluation.toml");
    match fs::read_to_string(&path) {
        Ok(found) if found == text => Ok(()),
        Ok(_) => Err(EvaluateError::Settings(format!(
            "{}: holds another evaluation; choose another directory",
            path.display()
        ))),
        Err(_) => Ok(write_atomically(&path, text.as_bytes())?),
    }
}

fn solve(method: &Method, weights: &[f64]) -> Result<Coefficients> {
    let preference = Preference::new(weights, method.mapping.len())
        .map_err(|error| EvaluateError::Settings(error.to_string()))?;
    Ok(method.mapping.solve(&preference, &Alpha::Scalar(0.0)).coefficients)
}

/// Answers the prompts under the seeds, all at once, and scores them.
fn ask(
    soup: &Served<'_>,
    engine: &EngineHandle,
    coefficients: &Coefficients,
    missing: &[(&Prompt, u64)],
    subject: &Run,
    settings: &Settings,
) -> Result<Vec<Answer>> {
    let failed = |prompt: &Prompt, reason: String| EvaluateError::Answer {
        row: prompt.example.id.clone(),
        coefficients: coefficients.backbones.clone(),
        reason,
    };
    let mut running = Vec::with_capacity(missing.len());
    for (prompt, seed) in missing {
        let longest = subject.config.rollout.max_new_tokens;
        let mut request =
            GenerateRequest::new(prompt.tokens.clone(), coefficients.clone(), longest);
        request.sampling.temperature = settings.temperature as f32;
        request.sampling.seed = Some(*seed);
        running.push(engine.submit(request).map_err(|e| failed(prompt, e.to_string()))?);
    }
    let mut samples = Vec::with_capacity(missing.len());
    for ((prompt, _), mut generation) in missing.iter().zip(running) {
        let mut response = String::new();
        let finished = loop {
            match generation.blocking_next() {
                Some(Event::Token(token)) => response.push_str(&token.text),
                Some(Event::Finished(end)) => break end.reason == FinishReason::Stop,
                Some(Event::Failed(error)) => return Err(failed(prompt, error.to_string())),
                Some(_) => {}
                None => return Err(failed(prompt, "the engine has stopped".to_owned())),
            }
        };
        samples.push(prompt.sample(response, finished));
    }
    let scores = subject.rewards.score(&samples)?;
    let answers =
        missing.iter().zip(samples).enumerate().map(|(index, ((prompt, seed), s))| Answer {
            soup: soup.soup.digest.clone(),
            coefficients: coefficients.backbones.clone(),
            seed: *seed,
            row: prompt.example.id.clone(),
            response: s.response,
            finished: s.finished,
            rewards: scores.iter().map(|reward| reward[index]).collect(),
        });
    Ok(answers.collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn deviation(values: &[f64]) -> f64 {
    let middle = mean(values);
    mean(&values.iter().map(|value| (value - middle).powi(2)).collect::<Vec<_>>()).sqrt()
}

/// Mean and spread of a point's rewards.
fn point(preference: &[f64], answers: &[&Answer], settings: &Settings) -> Point {
    let count = answers.first().map_or(0, |answer| answer.rewards.len());
    let series = |objective: usize, seed: Option<u64>| -> Vec<f64> {
        let of_seed = answers.iter().filter(|answer| seed.is_none_or(|seed| answer.seed == seed));
        of_seed.map(|answer| answer.rewards[objective]).collect()
    };
    let spread = |objective| match settings.seeds.as_slice() {
        [_] => deviation(&series(objective, None)),
        seeds => {
            let means: Vec<f64> =
                seeds.iter().map(|seed| mean(&series(objective, Some(*seed)))).collect();
            deviation(&means)
        }
    };
    Point {
        preference: preference.to_vec(),
        mean: (0..count).map(|objective| mean(&series(objective, None))).collect(),
        spread: (0..count).map(spread).collect(),
    }
}

impl Run {
    /// The first `count` test prompts of a fixed order (all, if there are fewer).
    fn test(&self, count: usize) -> Result<Vec<&Prompt>> {
        if self.test.is_empty() {
            let reason = "data.test: the configuration names no file to evaluate on";
            return Err(EvaluateError::Settings(reason.to_owned()));
        }
        let order = draw::batch(self.config.seed, self.test.len(), count.min(self.test.len()), 0);
        Ok(order.into_iter().filter_map(|index| self.test.get(index)).collect())
    }
}
