//! Policy updates of one batch: minibatches over epochs, each accumulated over micro-batches.

use candle_core::{Device, Tensor};
use rand::{Rng, seq::SliceRandom};

use super::{
    packing::{Sequence, micro_batches},
    policy::{Policy, PolicyError},
    ppo::{LossError, Tokens, policy_loss, value_loss},
    remax::remax_loss,
    value_head::ValueHead,
};
use crate::{
    config::{Algorithm, Config, RlConfig},
    draw::{Purpose, generator},
    optimizer::AdamW,
};

/// Why an update failed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A loss is not finite or does not fit.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The policy could not be run.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] ladle::kernels::KernelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The gradients are not finite: the run has diverged.
    #[error("the gradient norm is {0}")]
    NotFinite(f64),
}

type Result<T> = std::result::Result<T, UpdateError>;

/// One response with the constants of its losses, per response token.
#[derive(Debug, Clone)]
pub struct Experience {
    /// Prompt and response.
    pub sequence: Sequence,
    /// `log π_old` of the distribution that was sampled from, nats.
    pub log_probs: Vec<f32>,
    /// `V_old` (empty without a value head).
    pub values: Vec<f32>,
    pub advantages: Vec<f32>,
    /// Targets of the value head (empty without one).
    pub returns: Vec<f32>,
}

/// Log-probabilities of the responses with the adapters off, nats, at a temperature; `rows` bounds
/// the rows of one forward.
pub fn reference_log_probs(
    policy: &Policy,
    sequences: &[Sequence],
    rows: usize,
    temperature: f64,
) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(sequences.len());
    for run in micro_batches(sequences, rows) {
        let packed = policy.pack(&sequences[run])?;
        let hidden = policy.reference_hidden(&packed)?;
        let scored = policy.log_probs(&hidden, &packed.targets, temperature)?;
        let values = scored.values.to_vec1::<f32>()?;
        all.extend(packed.spans.into_iter().map(|span| values[span].to_vec()));
    }
    Ok(all)
}

/// Statistics of the updates of one batch, averaged over them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    pub policy_loss: f64,
    pub value_loss: f64,
    /// Share of tokens whose ratio was clipped.
    pub clip_fraction: f64,
    /// KL per response between the sampling policy and the updated one, nats; of the last minibatch.
    pub kl: f64,
    /// Entropy per token, nats.
    pub entropy: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Optimiser updates made.
    pub updates: usize,
}

/// The optimisers of the adapters and of the value head.
pub struct Updater {
    /// Of the adapters.
    pub adapters: AdamW,
    /// Of the value head.
    pub values: AdamW,
}

impl Updater {
    /// Runs the configured updates over a batch. `order` seeds the shuffling of minibatches and
    /// dropout: (seed, step).
    pub fn update(
        &mut self,
        policy: &Policy,
        value_head: &ValueHead,
        batch: &[Experience],
        config: &Config,
        rate: f64,
        order: (u64, u64),
    ) -> Result<Report> {
        let rl = &config.rl;
        // REINFORCE's gradient holds for the sampling policy only: one update with the whole batch.
        let (epochs, size) = match rl.algorithm {
            Algorithm::Ppo => (rl.epochs, rl.minibatch),
            Algorithm::ReMax | Algorithm::Rloo | Algorithm::Modpo => (1, batch.len()),
        };
        let mut rng = generator(order.0, Purpose::Minibatches, order.1);
        let mut noise = generator(order.0, Purpose::Dropout, order.1);
        // Responses to one prompt stay together: they share its rows.
        let mut groups: Vec<&[Experience]> =
            batch.chunk_by(|a, b| a.sequence.prompt == b.sequence.prompt).collect();
        let mut sum = Report::default();
        'updates: for _ in 0..epochs {
            groups.shuffle(&mut rng);
            let shuffled = groups.concat();
            for minibatch in shuffled.chunks(size.max(1)) {
                let report = self.accumulate(policy, value_head, minibatch, config, &mut noise)?;
                sum.kl = report.kl;
                if rl.algorithm == Algorithm::Ppo && report.kl > rl.kl_stop {
                    self.adapters.discard();
                    self.values.discard();
                    break 'updates;
                }
                let norm = self.adapters.step(rate)?;
                self.values.step(rate * rl.value_rate)?;
                if !norm.is_finite() {
                    return Err(UpdateError::NotFinite(norm));
                }
                sum.policy_loss += report.policy_loss;
                sum.value_loss += report.value_loss;
                sum.clip_fraction += report.clip_fraction;
                sum.entropy += report.entropy;
                sum.grad_norm += norm;
                sum.updates += 1;
            }
        }
        let updates = sum.updates.max(1) as f64;
        Ok(Report {
            policy_loss: sum.policy_loss / updates,
            value_loss: sum.value_loss / updates,
            clip_fraction: sum.clip_fraction / updates,
            entropy: sum.entropy / updates,
            grad_norm: sum.grad_norm / updates,
            ..sum
        })
    }

    /// Adds the gradients of a minibatch, micro-batch by micro-batch.
    fn accumulate(
        &mut self,
        policy: &Policy,
        value_head: &ValueHead,
        minibatch: &[Experience],
        config: &Config,
        noise: &mut impl Rng,
    ) -> Result<Report> {
        let RlConfig { algorithm, clip, value_weight, rows, .. } = config.rl;
        let sequences: Vec<_> = minibatch.iter().map(|e| e.sequence.clone()).collect();
        let tokens: usize = sequences.iter().map(|s| s.response.len()).sum();
        let (tokens, responses) = (tokens as f64, minibatch.len() as f64);
        let mut sum = Report::default();
        for run in micro_batches(&sequences, rows) {
            let packed = policy.pack(&sequences[run.clone()])?;
            let column = |pick: fn(&Experience) -> &[f32]| {
                let values: Vec<f32> =
                    minibatch[run.clone()].iter().flat_map(&pick).copied().collect();
                let count = values.len();
                Tensor::from_vec(values, count, &Device::Cpu)
            };
            let forward = policy.forward(&packed, noise.random())?;
            let temperature = config.rollout.temperature;
            let scored = policy.log_probs(&forward.hidden, &packed.targets, temperature)?;
            sum.entropy += scored.entropy.iter().map(|&h| f64::from(h)).sum::<f64>() / tokens;
            let mask = Tensor::ones_like(&scored.values)?;
            let advantages = column(|e| &e.advantages)?;
            let loss = match algorithm {
                Algorithm::ReMax | Algorithm::Rloo | Algorithm::Modpo => {
                    let each = Tokens::over(&mask, responses)?;
                    let loss = remax_loss(&scored.values, &advantages, &each)?;
                    sum.policy_loss += loss.value;
                    loss.loss
                }
                Algorithm::Ppo => {
                    let each = Tokens::over(&mask, tokens)?;
                    let old = column(|e| &e.log_probs)?;
                    let policy_loss = policy_loss(&scored.values, &old, &advantages, &each, clip)?;
                    let (old, returns) = (column(|e| &e.values)?, column(|e| &e.returns)?);
                    let values = value_head.values(&forward.hidden)?;
                    let value_loss = value_loss(&values, &old, &returns, &each, clip)?;
                    sum.policy_loss += policy_loss.value;
                    sum.value_loss += value_loss.value;
                    sum.clip_fraction += policy_loss.clip_fraction;
                    sum.kl += policy_loss.approximate_kl * tokens / responses;
                    (policy_loss.loss + (value_loss.loss * value_weight)?)?
                }
            };
            let mut grads = loss.backward()?;
            forward.backward(policy, &mut grads)?;
            self.adapters.accumulate(&grads)?;
            self.values.accumulate(&grads)?;
        }
        Ok(sum)
    }
}
