//! Settings of Rewards-in-Context (RiC: Yang et al. 2024), one policy that its prompts tell how much
//! of each reward is wanted.

use serde::{Deserialize, Serialize};

/// RiC: supervised tuning on rows whose prompts carry the standardised rewards of the answer, and
/// one online stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextConfig {
    /// Updates of the offline stage.
    pub steps: u64,
    /// Sequences of one update, in both stages.
    pub batch: usize,
    /// Peak learning rate of the offline stage, linear decay (1.414e-4: the authors' code).
    pub learning_rate: f64,
    /// Longest response in tokens; longer ones are left out.
    pub max_response_tokens: usize,
    /// How a preference becomes the rewards that a prompt asks for.
    pub mapping: Mapping,
    /// The online stage; left out, there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<OnlineConfig>,
}

impl Default for ContextConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            batch: 32,
            learning_rate: 1.414e-4,
            max_response_tokens: 128,
            mapping: Mapping::L2,
            online: None,
        }
    }
}

/// From a preference μ to the reward wanted of each objective, between the lowest and the highest
/// that a row of the offline stage has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mapping {
    /// low + (high − low)·μᵢ/‖μ‖₂ (the authors' evaluations).
    #[default]
    L2,
    /// The highest of the objective with the largest weight, low + (high − low)·min(nμᵢ, 1) of the
    /// others.
    Linf,
    /// low + (high − low)·μᵢ.
    Linear,
}

/// The online stage: prompts that ask for rewards near the front, the responses to them filtered
/// and, told what they earned, tuned on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnlineConfig {
    /// Prompts with wanted rewards, one response each.
    pub samples: usize,
    /// A response is kept where some reward of it is at least this quantile of that reward (0.7: the
    /// authors' code).
    pub quantile: f64,
    /// Rows of the offline stage that pass the same filter and stay beside the responses, at most
    /// (10000: the authors' code).
    pub originals: usize,
    /// Updates.
    pub steps: u64,
    /// Learning rate, constant (1e-5: the authors' code).
    pub learning_rate: f64,
}

impl Default for OnlineConfig {
    fn default() -> Self {
        Self { samples: 256, quantile: 0.7, originals: 10_000, steps: 50, learning_rate: 1e-5 }
    }
}
