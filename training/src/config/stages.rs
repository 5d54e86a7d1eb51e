//! The stages of a run: supervised tuning, sampling, policy updates.

use serde::{Deserialize, Serialize};

use crate::{optimizer, rl::lora::LoraConfig};

/// Supervised tuning. Its adapter becomes part of θ_sft, with weight 1 in every merge.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// Shape of the adapter.
    pub lora: LoraConfig,
    /// Passes over the data (3: usual for a few thousand rows).
    pub epochs: u64,
    /// Updates, where not all `epochs` are wanted.
    pub steps: Option<u64>,
    /// Sequences of one update.
    pub batch: usize,
    /// Peak learning rate, linear decay (1e-4 to 2e-4: QLoRA, table 9).
    pub learning_rate: f64,
    /// Updates of linear warm-up.
    pub warmup: u64,
    /// Longest response in tokens; longer targets are left out.
    pub max_response_tokens: usize,
    /// Updates between two measurements of the validation loss.
    pub evaluate_every: u64,
    /// Validation rows that the loss is measured on at most.
    pub validate_on: usize,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            lora: LoraConfig::default(),
            epochs: 3,
            steps: None,
            batch: 32,
            learning_rate: 2e-4,
            warmup: 10,
            max_response_tokens: 128,
            evaluate_every: 25,
            validate_on: 64,
        }
    }
}

/// Sampling of responses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Logits are divided by it, in sampling and in the losses (1: on-policy; `docs/algorithms.md` §5.8).
    pub temperature: f64,
    /// Longest response in tokens (64: one-sentence answers).
    pub max_new_tokens: usize,
    /// Sequences decoded at once.
    pub slots: usize,
    /// Responses of each prompt of a batch.
    pub samples: usize,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { temperature: 1.0, max_new_tokens: 64, slots: 32, samples: 1 }
    }
}

/// Algorithm of the policy updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Clipped policy and value losses, GAE (Bone Soups).
    #[default]
    Ppo,
    /// Baseline from the greedy response, no value model (DRBO).
    ReMax,
    /// Baseline from the other responses to the same prompt, no value model (REINFORCE
    /// leave-one-out: Ahmadian et al. 2024).
    Rloo,
    /// DPO on pairs of responses to one prompt, ordered by the policy's own reward, with a margin from
    /// the other rewards (MODPO: Zhou et al. 2023); `rl.kl` is its β, and there is no other penalty.
    Modpo,
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ppo => "PPO",
            Self::ReMax => "ReMax",
            Self::Rloo => "RLOO",
            Self::Modpo => "MODPO",
        })
    }
}

/// Decay of a learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Linear decay to 0.
    #[default]
    Linear,
    /// No decay.
    Constant,
}

/// The policy updates.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlConfig {
    /// PPO, ReMax or RLOO.
    pub algorithm: Algorithm,
    /// Batches of responses.
    pub steps: u64,
    /// Responses of one batch (64: Bone Soups).
    pub batch: usize,
    /// Responses of one optimiser update (16: four minibatches, as PPO's reference code has).
    pub minibatch: usize,
    /// Passes over a batch (4: Bone Soups); ReMax and RLOO make one, in one update.
    pub epochs: usize,
    /// Rows (tokens) of one forward and backward: bounds memory, changes no result but rounding.
    pub rows: usize,
    /// Keep only each layer's input of a forward and compute the layer again in the backward, in
    /// both stages: less memory for a third more work, the same weights.
    pub recompute: bool,
    /// MiB for keys and values of prompts where `lora.activation` is `answer`, shared by the policies
    /// that are trained in one process; prompts beyond it are computed again. Left out: 256. Changes
    /// no result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_cache_mib: Option<usize>,
    /// Peak learning rate (1e-5: Bone Soups).
    pub learning_rate: f64,
    /// Decay of the learning rate (linear: Bone Soups).
    pub decay: Decay,
    /// Updates at which a linear decay reaches 0; left out, `steps`. More than `steps` is the
    /// beginning of a longer run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// Updates after which a snapshot is kept, below `keep/` in the run's directory: each is a run
    /// of its own that can be evaluated.
    pub keep: Vec<u64>,
    /// KL coefficient η at the start (0.2: Bone Soups).
    pub kl: f64,
    /// KL per response, in nats, that an adaptive η aims at; 0 keeps η fixed (3: the authors' code).
    pub kl_target: f64,
    /// Responses over which η may double (10000: Ziegler et al. 2019).
    pub kl_horizon: f64,
    /// A batch's updates stop when its mean KL to the sampling policy passes this, in nats per
    /// response (5: Bone Soups, Helpful and Summary).
    pub kl_stop: f64,
    /// Discount γ (Bone Soups).
    pub gamma: f64,
    /// GAE's λ (Bone Soups).
    pub lambda: f64,
    /// Clip of ratio and value change (Bone Soups).
    pub clip: f64,
    /// Weight of the value loss (0.1: the authors' code).
    pub value_weight: f64,
    /// Learning rate of the value head over that of the adapters.
    pub value_rate: f64,
    /// Advantages of ReMax and RLOO are clipped to ± this (20: the authors' code).
    pub advantage_clip: f64,
    /// Responses that the rewards are standardised on, of the initial policy (200: DRBO).
    pub standardise_on: usize,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

impl RlConfig {
    /// The learning rate of update `step`, from 0.
    pub fn rate(&self, step: u64) -> f64 {
        match self.decay {
            Decay::Linear => {
                let total = self.decay_steps.unwrap_or(self.steps);
                optimizer::learning_rate(self.learning_rate, step, 0, total)
            }
            Decay::Constant => self.learning_rate,
        }
    }

    /// Bytes for keys and values of prompts.
    pub fn prompt_cache(&self) -> usize {
        self.prompt_cache_mib.unwrap_or(256).saturating_mul(1 << 20)
    }

    /// The settings of a run of only the first `steps` updates of this one.
    pub fn first(&self, steps: u64) -> Self {
        let linear = self.decay == Decay::Linear;
        let decay_steps = linear.then(|| self.decay_steps.unwrap_or(self.steps));
        Self { steps, decay_steps, keep: Vec::new(), ..self.clone() }
    }
}

impl Default for RlConfig {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Ppo,
            steps: 100,
            batch: 64,
            minibatch: 16,
            epochs: 4,
            rows: 2048,
            recompute: false,
            prompt_cache_mib: None,
            learning_rate: 1e-5,
            decay: Decay::Linear,
            decay_steps: None,
            keep: Vec::new(),
            kl: 0.2,
            kl_target: 3.0,
            kl_horizon: 10_000.0,
            kl_stop: 5.0,
            gamma: 1.0,
            lambda: 0.95,
            clip: 0.2,
            value_weight: 0.1,
            value_rate: 10.0,
            advantage_clip: 20.0,
            standardise_on: 200,
            checkpoint_every: 5,
        }
    }
}
