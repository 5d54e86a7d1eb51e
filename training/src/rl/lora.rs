//! Shape of the adapters that learn (LoRA, `y = W x + s B A d(x)`, s = alpha/r, d dropout).

use ladle::{model::config::ModelConfig, soup::Activation};
use serde::{Deserialize, Serialize};

/// Shape of the adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank r of every factor pair (64: Bone Soups Table 8).
    pub rank: usize,
    /// LoRA's alpha; the product is scaled by alpha / r (128: Bone Soups Table 8).
    pub alpha: f64,
    /// Last names of the adapted linear layers; left out, all of the base
    /// (QLoRA: Dettmers et al. 2023, §4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Probability that an input of A is dropped in an update, the others divided by 1 − it; never
    /// in rollouts and in the reference (0: PEFT's default).
    pub dropout: f64,
    /// Whether all backbones of a soup start from the same A (left out: yes). Backbones with an A of
    /// their own share no subspace, so negative merging coefficients cannot cancel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// The rows that the adapters act on: all, or those of the answer with what introduces it
    /// (`docs/algorithms.md` §2.4).
    #[serde(skip_serializing_if = "Activation::is_default")]
    pub activation: Activation,
}

impl LoraConfig {
    /// Last names of the layers of `model` that are adapted.
    pub fn targets(&self, model: &ModelConfig) -> Vec<&str> {
        match &self.targets {
            None => model.targets(),
            Some(targets) => targets.iter().map(String::as_str).collect(),
        }
    }

    /// The term of the adapters among the coefficients of a row; none: they act on every row alike.
    pub fn term(&self) -> Option<usize> {
        match self.activation {
            Activation::All => None,
            Activation::Answer => Some(0),
        }
    }

    /// Whether all backbones of a soup start from the same A.
    pub fn shared(&self) -> bool {
        self.shared.unwrap_or(true)
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        let activation = Activation::All;
        Self { rank: 64, alpha: 128.0, targets: None, dropout: 0.0, shared: None, activation }
    }
}
