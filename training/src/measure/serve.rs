//! Soups, and their answers made by the merge and the engine that serve users.

use std::path::PathBuf;

use indicatif::ProgressBar;
use ladle::{
    config::MergeMode,
    engine::{
        self, CpuBackend, CpuOptions, EngineConfig, EngineHandle, Event, FinishReason,
        GenerateRequest,
    },
    soup::{OpenOptions as SoupOptions, Soup, manifest},
};

use super::{
    answers::Asked,
    error::EvaluateError,
    source::{Decoding, Drawn, Source},
};
use crate::{aim::Aim, config::POLICY, rl::balance::Strategy, run::Run, setup::Prompt};

type Result<T> = std::result::Result<T, EvaluateError>;

/// A soup with the run whose data, rewards and base it is measured on.
pub struct Served<'a> {
    pub run: &'a Run,
    /// Tells its methods from those of other runs.
    pub label: String,
    /// The soup's directory.
    pub path: PathBuf,
    pub soup: Soup,
    /// What its backbones were trained for.
    pub aim: Aim,
}

impl<'a> Served<'a> {
    /// Opens the soup of a finished run.
    pub fn of(run: &'a Run, label: &str) -> Result<Self> {
        let path = run.layout().soup();
        if !path.join(manifest::FILE).is_file() {
            return Err(EvaluateError::Soup { path, reason: unfinished(run) });
        }
        Self::open(run, label, path, true)
    }

    /// Opens the soup in `path`, for the objectives of a run; `verify`: its weights are computed with.
    pub fn open(run: &'a Run, label: &str, path: PathBuf, verify: bool) -> Result<Self> {
        let options = SoupOptions {
            base: Some(run.places.base.clone()),
            verify_digests: verify,
            ..SoupOptions::default()
        };
        let refuse = |reason: String| EvaluateError::Soup { path: path.clone(), reason };
        let soup = Soup::open(&path, &options).map_err(|error| refuse(error.to_string()))?;
        let nominal = soup.manifest.nominal().map_err(|error| refuse(error.to_string()))?;
        let (aim, expected) = match &run.aim {
            Aim::Policy(weights) => (Aim::Policy(weights.clone()), vec![POLICY]),
            Aim::Told => (Aim::Told, vec![POLICY]),
            Aim::Backbones(_) => {
                let names = run.config.objectives.iter().map(|o| o.name.as_str());
                (Aim::Backbones(nominal), names.collect())
            }
        };
        let names: Vec<&str> = soup.manifest.objective_names().collect();
        if names != expected {
            return Err(refuse(format!("its objectives are {names:?}, expected {expected:?}")));
        }
        Ok(Self { run, label: label.to_owned(), path, soup, aim })
    }

    /// Number of backbones.
    pub fn backbones(&self) -> usize {
        self.soup.backbones.len()
    }

    /// Whether no weight moved in training: each backbone is the policy of its preference.
    pub fn is_average(&self) -> bool {
        let (Some(nominal), Some(realised)) =
            (self.aim.matrix(), &self.soup.manifest.mixing.realised)
        else {
            return self.run.config.balance.strategy == Strategy::Average;
        };
        let mut pairs = nominal.rows().into_iter().flatten().zip(realised.iter().flatten());
        pairs.all(|(planned, used)| (planned - used).abs() < 1e-9)
    }

    /// Starts an engine over the soup.
    pub fn engine(&self) -> Result<Local<'_>> {
        let error = |reason: String| EvaluateError::Soup { path: self.path.clone(), reason };
        let options = CpuOptions {
            threads: Some(rayon::current_num_threads()),
            merge_mode: MergeMode::Fused,
            ..CpuOptions::default()
        };
        let backend = CpuBackend::open(&self.soup, &options).map_err(|e| error(e.to_string()))?;
        let mut config = EngineConfig {
            merge_mode: MergeMode::Fused,
            max_waiting: usize::MAX,
            ..EngineConfig::default()
        };
        if self.soup.config.encoder.is_some() {
            // A prompt is encoded in one step.
            config.limits.step_tokens = self.soup.config.max_positions;
        }
        let engine = engine::start(backend, self.run.base.tokenizer.clone(), config)
            .map_err(|e| error(e.to_string()))?;
        Ok(Local { engine, soup: &self.soup })
    }
}

/// Why a run has no soup, and what makes it.
fn unfinished(run: &Run) -> String {
    let (layout, root) = (run.layout(), run.places.run.display());
    let names = run.config.policies().into_iter();
    let missing: Vec<&str> = names.filter(|name| !layout.finished(name)).collect();
    let missing = match missing.as_slice() {
        [] => "all backbones are trained".to_owned(),
        missing => format!("not trained: {}", missing.join(", ")),
    };
    format!("the run has no finished soup ({missing}); `train-backbones resume {root}` makes it")
}

/// An engine in this process.
pub struct Local<'a> {
    engine: EngineHandle,
    soup: &'a Soup,
}

impl Drop for Local<'_> {
    fn drop(&mut self) {
        self.engine.drain();
    }
}

impl Source for Local<'_> {
    fn draw(
        &self,
        asked: &Asked<'_>,
        prompts: &[(&Prompt, u64)],
        decoding: Decoding,
        bar: &ProgressBar,
    ) -> Result<Vec<Drawn>> {
        let failed = |prompt: &Prompt, reason: String| asked.failed(prompt, reason);
        let mut running = Vec::with_capacity(prompts.len());
        for (prompt, seed) in prompts {
            let coefficients = asked.model.coefficients.clone();
            let active_from = self.soup.active_from.position(&prompt.tokens, prompt.opening);
            let mut request =
                GenerateRequest::new(prompt.tokens.clone(), coefficients, decoding.longest);
            request.active_from =
                active_from.map_err(|e| failed(prompt, format!("the prompt {e}")))?;
            request.combine = asked.model.combine.clone();
            request.sampling.temperature = decoding.temperature as f32;
            request.sampling.seed = Some(*seed);
            request.sampling.logprobs = Some(0);
            running.push(self.engine.submit(request).map_err(|e| failed(prompt, e.to_string()))?);
        }
        let each = prompts.iter().zip(running).map(|((prompt, _), mut generation)| {
            let (mut text, mut tokens, mut log_prob) = (String::new(), Vec::new(), 0.0);
            let finished = loop {
                match generation.blocking_next() {
                    Some(Event::Token(token)) => {
                        text.push_str(&token.text);
                        tokens.push(token.id);
                        log_prob += token.logprob.map_or(f64::NAN, f64::from);
                    }
                    Some(Event::Finished(end)) => break end.reason == FinishReason::Stop,
                    Some(Event::Failed(error)) => return Err(failed(prompt, error.to_string())),
                    Some(_) => {}
                    None => return Err(failed(prompt, "the engine has stopped".to_owned())),
                }
            };
            bar.inc(1);
            Ok(Drawn { text, tokens, log_prob, finished })
        });
        each.collect()
    }
}
