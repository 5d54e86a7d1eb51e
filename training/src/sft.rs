//! Supervised tuning: cross-entropy of the reference responses, prompts masked.

use std::path::Path;

use candle_core::Device;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint,
    config::{Config, ConfigError, SftConfig},
    draw::{self, Purpose},
    error::RunError,
    metrics::Recorder,
    optimizer::{AdamW, learning_rate},
    rl::{
        lora::Policy,
        packing::{Sequence, micro_batches},
    },
    setup::{Base, Prompt},
};

type Result<T> = std::result::Result<T, RunError>;

#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
}

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
    pub fn steps(&self, sequences: usize) -> u64 {
        let all = self.sft.epochs * (sequences as u64).div_ceil(self.sft.batch as u64);
        self.sft.steps.map_or(all, |steps| steps.min(all))
    }

    /// Trains or resumes to the end; returns the policy with its adapter.
    pub fn train(&self) -> Result<Policy> {
        let seed = draw::derive(self.config.seed, Purpose::Factors);
        let (model, weights) = (&self.base.model, &self.base.weights);
        let policy = Policy::new(model, weights, &self.sft.lora, &Device::Cpu, seed)?
            .recomputing(self.config.rl.recompute);
        let mut optimizer = AdamW::new(policy.variables(), self.config.optimizer)?;
        let mut step = 0;
        if self.state.exists() {
            let (mut tensors, state) = checkpoint::load::<State>(self.state, &Device::Cpu)?;
            optimizer
                .restore(|name, shape| checkpoint::take(&mut tensors, name, shape), state.step)?;
            step = state.step;
        }
        let train = self.sequences(self.train)?;
        if train.is_empty() {
            return Err(ConfigError::Value {
                key: "sft.max_response_tokens".into(),
                got: self.sft.max_response_tokens.to_string(),
                expected: "a length that some training row has a reference within",
            }
            .into());
        }
        let mut validation = self.sequences(self.validation)?;
        // A fixed subset in a fixed order, so that losses of different steps are comparable.
        validation.truncate(self.sft.validate_on);
        let total = self.steps(train.len());
        let mut recorder = Recorder::open(self.metrics, "sft", step, total)?;
        while step < total {
            let batch: Vec<Sequence> =
                draw::batch(self.config.seed, train.len(), self.sft.batch, step)
                    .into_iter()
                    .map(|index| train[index].clone())
                    .collect();
            let rate = learning_rate(self.sft.learning_rate, step, self.sft.warmup, total);
            let loss = self.accumulate(&policy, &mut optimizer, &batch, step)?;
            let diverged =
                |what, value| RunError::Diverged { stage: "sft".into(), step, what, value };
            if !loss.is_finite() {
                return Err(diverged("loss", loss));
            }
            let norm = optimizer.step(rate)?;
            if !norm.is_finite() {
                return Err(diverged("gradient norm", norm));
            }
            let mut metrics = vec![("loss", loss), ("grad_norm", norm), ("learning_rate", rate)];
            let last = step + 1 == total;
            if !validation.is_empty() && (last || (step + 1) % self.sft.evaluate_every == 0) {
                metrics.push(("validation_loss", self.loss(&policy, &validation)?));
            }
            recorder.record(step, &metrics)?;
            step += 1;
            if last || step % self.config.rl.checkpoint_every == 0 {
                checkpoint::save(self.state, &optimizer.tensors(), &State { step })?;
            }
        }
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

    /// Mean cross-entropy of the batch's response tokens; its gradient goes into the optimiser.
    fn accumulate(
        &self,
        policy: &Policy,
        optimizer: &mut AdamW,
        batch: &[Sequence],
        step: u64,
    ) -> Result<f64> {
        let mut noise = draw::generator(self.config.seed, Purpose::Dropout, step);
        let tokens: usize = batch.iter().map(|sequence| sequence.response.len()).sum();
        let mut loss = 0.0;
        for run in micro_batches(batch, self.config.rl.rows) {
            let packed = policy.pack(&batch[run])?;
            let forward = policy.forward(&packed, noise.random())?;
            let scored = policy.log_probs(&forward.hidden, &packed.targets, 1.0)?;
            let part = (scored.values.sum_all()? * (-1.0 / tokens as f64))?;
            loss += f64::from(part.to_scalar::<f32>()?);
            let mut grads = part.backward()?;
            forward.backward(policy, &mut grads)?;
            optimizer.accumulate(&grads)?;
        }
        Ok(loss)
    }

    /// Mean cross-entropy without gradients.
    fn loss(&self, policy: &Policy, sequences: &[Sequence]) -> Result<f64> {
        let (mut sum, mut tokens) = (0.0, 0usize);
        for run in micro_batches(sequences, self.config.rl.rows) {
            let packed = policy.pack(&sequences[run])?;
            let hidden = policy.hidden(&packed)?;
            let scored = policy.log_probs(&hidden, &packed.targets, 1.0)?;
            sum -= f64::from(scored.values.sum_all()?.to_scalar::<f32>()?);
            tokens += packed.targets.len();
        }
        Ok(sum / tokens as f64)
    }
}
