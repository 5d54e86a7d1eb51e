//! The supervised stage: tuning on the reference responses, which makes θ_sft.

use std::path::Path;

use candle_core::Device;

use crate::{
    config::{Config, ConfigError, Decay, SftConfig},
    draw::{self, Purpose},
    error::RunError,
    rl::{packing::Sequence, policy::Policy},
    setup::{Base, Prompt},
    tuning::{Schedule, Tuning},
};

type Result<T> = std::result::Result<T, RunError>;

/// Inputs of supervised tuning.
pub struct Task<'a> {
    /// The base model.
    pub base: &'a Base,
    /// The run.
    pub config: &'a Config,
    /// Its settings.
    pub sft: &'a SftConfig,
    /// Training rows.
    pub train: &'a [Prompt],
    /// Rows that the loss is measured on.
    pub validation: &'a [Prompt],
    /// Path of the checkpoint.
    pub state: &'a Path,
    /// Directory of the metrics.
    pub metrics: &'a Path,
}

impl Task<'_> {
    /// Updates of the whole tuning.
    fn steps(&self, sequences: usize) -> Result<u64> {
        let all = self.sft.epochs * (sequences as u64).div_ceil(self.sft.batch as u64);
        match self.sft.steps {
            Some(steps) if steps > all => Err(ConfigError::Value {
                key: "sft.steps".into(),
                got: format!("{steps}, more than the {all} updates of sft.epochs"),
                expected: "fewer updates, or more epochs",
            }
            .into()),
            steps => Ok(steps.unwrap_or(all)),
        }
    }

    /// Trains or resumes to the end; returns the policy with its adapter.
    pub fn train(&self) -> Result<Policy> {
        let seed = draw::derive(self.config.seed, Purpose::Factors);
        let (model, weights) = (&self.base.model, &self.base.weights);
        let policy = Policy::new(model, weights, &self.sft.lora, &Device::Cpu, seed)?
            .recomputing(self.config.rl.recompute)
            .in_precision(self.config.precision)?;
        let train = self.sequences(self.train)?;
        if train.is_empty() {
            return Err(ConfigError::Value {
                key: "sft.max_response_tokens".into(),
                got: self.sft.max_response_tokens.to_string(),
                expected: "a length that some training row has a reference within",
            }
            .into());
        }
        let validation = self.sequences(self.validation)?;
        // The same rows at every step, so that losses are comparable; drawn, because data of several
        // types come one type after another.
        let most = self.sft.validate_on.min(validation.len());
        let drawn = draw::derive(self.config.seed, Purpose::Validation);
        let chosen = draw::batch(drawn, validation.len(), most, 0).into_iter();
        let validation: Vec<Sequence> = chosen.map(|index| validation[index].clone()).collect();
        let tuning = Tuning {
            stage: "sft",
            config: self.config,
            seed: self.config.seed,
            schedule: Schedule {
                steps: self.steps(train.len())?,
                batch: self.sft.batch,
                learning_rate: self.sft.learning_rate,
                warmup: self.sft.warmup,
                decay: Decay::Linear,
            },
            train: &train,
            validation: (&validation, self.sft.evaluate_every),
            state: self.state,
            metrics: self.metrics,
        };
        tuning.run(&policy)?;
        Ok(policy)
    }

    fn sequences(&self, prompts: &[Prompt]) -> Result<Vec<Sequence>> {
        let mut sequences = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let Some(reference) = prompt.example.references.first() else { continue };
            let response = self
                .base
                .response(reference)
                .map_err(|reason| RunError::Text { row: prompt.example.id.clone(), reason })?;
            if response.len() <= self.sft.max_response_tokens {
                let prompt = prompt.tokens.clone();
                sequences.push(Sequence { prompt, response, active_from: None });
            }
        }
        Ok(sequences)
    }
}
