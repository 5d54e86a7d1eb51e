//! Supervised tuning of one adapter on sequences: cross-entropy of the responses, prompts masked.

use std::path::Path;

use candle_core::Device;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint,
    config::{Config, Decay},
    draw::{self, Purpose},
    error::RunError,
    metrics::Recorder,
    optimizer::{AdamW, learning_rate},
    rl::{
        packing::{Sequence, micro_batches},
        policy::Policy,
    },
};

type Result<T> = std::result::Result<T, RunError>;

#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
}

/// Length and rate of a tuning.
pub struct Schedule {
    /// Updates.
    pub steps: u64,
    /// Sequences of one update.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Updates of linear warm-up before a linear decay.
    pub warmup: u64,
    pub decay: Decay,
}

/// Inputs of a tuning.
pub struct Tuning<'a> {
    /// Its name in metrics and errors.
    pub stage: &'a str,
    /// The run.
    pub config: &'a Config,
    /// Seed of the order of the sequences and of dropout.
    pub seed: u64,
    pub schedule: Schedule,
    /// What is learned, at least one.
    pub train: &'a [Sequence],
    /// What the loss is measured on, every so many updates.
    pub validation: (&'a [Sequence], u64),
    /// Path of the checkpoint.
    pub state: &'a Path,
    /// Directory of the metrics.
    pub metrics: &'a Path,
}

impl Tuning<'_> {
    /// Tunes the policy, or resumes to the end.
    pub fn run(&self, policy: &Policy) -> Result<()> {
        let mut optimizer = AdamW::new(policy.variables(), self.config.optimizer)?;
        let mut step = 0;
        if self.state.exists() {
            let (mut tensors, state) = checkpoint::load::<State>(self.state, &Device::Cpu)?;
            optimizer
                .restore(|name, shape| checkpoint::take(&mut tensors, name, shape), state.step)?;
            step = state.step;
        }
        let Schedule { steps: total, batch, learning_rate: peak, warmup, decay } = self.schedule;
        let (validation, every) = self.validation;
        let mut recorder = Recorder::open(self.metrics, self.stage, step, total)?;
        while step < total {
            let chosen = draw::batch(self.seed, self.train.len(), batch, step).into_iter();
            let batch: Vec<Sequence> = chosen.map(|index| self.train[index].clone()).collect();
            let rate = match decay {
                Decay::Linear => learning_rate(peak, step, warmup, total),
                Decay::Constant => peak,
            };
            let loss = self.accumulate(policy, &mut optimizer, &batch, step)?;
            let diverged =
                |what, value| RunError::Diverged { stage: self.stage.into(), step, what, value };
            if !loss.is_finite() {
                return Err(diverged("loss", loss));
            }
            let norm = optimizer.step(rate)?;
            if !norm.is_finite() {
                return Err(diverged("gradient norm", norm));
            }
            let mut metrics = vec![("loss", loss), ("grad_norm", norm), ("learning_rate", rate)];
            let last = step + 1 == total;
            if !validation.is_empty() && (last || (step + 1) % every == 0) {
                metrics.push(("validation_loss", self.loss(policy, validation)?));
            }
            tracing::debug!("{} step {step}", self.stage);
            recorder.record(step, &metrics)?;
            step += 1;
            if last || step % self.config.rl.checkpoint_every == 0 {
                checkpoint::save(self.state, &optimizer.tensors(), &State { step })?;
            }
        }
        Ok(())
    }

    /// Mean cross-entropy of the batch's response tokens; its gradient goes into the optimiser.
    fn accumulate(
        &self,
        policy: &Policy,
        optimizer: &mut AdamW,
        batch: &[Sequence],
        step: u64,
    ) -> Result<f64> {
        let mut noise = draw::generator(self.seed, Purpose::Dropout, step);
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
