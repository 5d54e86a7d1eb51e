//! Answers of a run's soup, made by the merge and the engine that serve users.

use std::path::PathBuf;

use ladle::{
    config::MergeMode,
    engine::{
        self, CpuBackend, CpuOptions, EngineConfig, EngineHandle, Event, FinishReason,
        GenerateRequest,
    },
    soup::{Activation, OpenOptions as SoupOptions, Soup, manifest},
};

use super::{
    answers::{Answer, Asked, Book, weights},
    error::EvaluateError,
};
use crate::{run::Run, setup::Prompt};

type Result<T> = std::result::Result<T, EvaluateError>;

/// A finished run's soup, open.
pub struct Served<'a> {
    pub run: &'a Run,
    /// Tells its methods from those of other runs.
    pub label: String,
    /// The soup's directory.
    pub path: PathBuf,
    pub soup: Soup,
}

impl<'a> Served<'a> {
    /// Opens the soup of a run.
    pub fn open(run: &'a Run, label: &str) -> Result<Self> {
        let path = run.layout().soup();
        if !path.join(manifest::FILE).is_file() {
            return Err(EvaluateError::Soup { path, reason: unfinished(run) });
        }
        let options = SoupOptions {
            base: Some(run.places.base.clone()),
            verify_digests: true,
            ..SoupOptions::default()
        };
        let soup = Soup::open(&path, &options).map_err(|error| EvaluateError::Soup {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        Ok(Self { run, label: label.to_owned(), path, soup })
    }

    /// Number of backbones.
    pub fn backbones(&self) -> usize {
        self.soup.backbones.len()
    }

    /// Starts an engine over the soup.
    pub fn engine(&self) -> Result<EngineHandle> {
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

/// Sampling and rewards, the same for all answers.
pub struct Judge<'a> {
    /// The run whose rewards judge the answers, and whose limit bounds their length.
    pub subject: &'a Run,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
}

impl Judge<'_> {
    /// Answers everything that `book` lacks, all at once, and scores the answers.
    pub fn ask(&self, engine: &EngineHandle, asked: &Asked<'_>, book: &mut Book) -> Result<()> {
        let missing = book.missing(asked);
        let answers = self.answer(engine, asked, &missing)?;
        Ok(book.add(answers)?)
    }

    fn answer(
        &self,
        engine: &EngineHandle,
        asked: &Asked<'_>,
        missing: &[(&Prompt, u64)],
    ) -> Result<Vec<Answer>> {
        let (logits, weights) = weights(asked.model);
        let failed = |prompt: &Prompt, reason: String| EvaluateError::Answer {
            row: prompt.example.id.clone(),
            coefficients: weights.to_vec(),
            reason,
        };
        let activation = match engine.bounds().answer_only {
            true => Activation::Answer,
            false => Activation::All,
        };
        let mut running = Vec::with_capacity(missing.len());
        for (prompt, seed) in missing {
            let told = asked.model.told.as_ref().map(|words| self.subject.base.told(prompt, words));
            let told = told.transpose().map_err(|reason| failed(prompt, reason))?;
            let prompt = told.as_ref().unwrap_or(prompt);
            let longest = self.subject.config.rollout.max_new_tokens;
            let coefficients = asked.model.coefficients.clone();
            let mut request = GenerateRequest::new(prompt.tokens.clone(), coefficients, longest);
            request.active_from = prompt.active_from(activation);
            request.combine = asked.model.combine.clone();
            request.sampling.temperature = self.temperature as f32;
            request.sampling.seed = Some(*seed);
            request.sampling.logprobs = Some(0);
            running.push(engine.submit(request).map_err(|e| failed(prompt, e.to_string()))?);
        }
        let (mut samples, mut taken) = (Vec::new(), Vec::new());
        for ((prompt, _), mut generation) in missing.iter().zip(running) {
            let (mut response, mut tokens, mut log_prob) = (String::new(), Vec::new(), 0.0);
            let finished = loop {
                match generation.blocking_next() {
                    Some(Event::Token(token)) => {
                        response.push_str(&token.text);
                        tokens.push(token.id);
                        log_prob += token.logprob.map_or(f64::NAN, f64::from);
                    }
                    Some(Event::Finished(end)) => break end.reason == FinishReason::Stop,
                    Some(Event::Failed(error)) => return Err(failed(prompt, error.to_string())),
                    Some(_) => {}
                    None => return Err(failed(prompt, "the engine has stopped".to_owned())),
                }
            };
            samples.push(prompt.sample(response, finished));
            taken.push((tokens, log_prob));
        }
        let scores = self.subject.rewards.score(&samples)?;
        let each = missing.iter().zip(samples).zip(taken).enumerate();
        let answers = each.map(|(index, (((prompt, seed), sample), (tokens, log_prob)))| Answer {
            soup: asked.soup.to_owned(),
            coefficients: weights.to_vec(),
            logits,
            told: asked.model.told.clone(),
            seed: *seed,
            part: asked.part,
            row: prompt.example.id.clone(),
            response: sample.response,
            tokens,
            log_prob,
            finished: sample.finished,
            rewards: scores.iter().map(|reward| reward[index]).collect(),
        });
        Ok(answers.collect())
    }
}
