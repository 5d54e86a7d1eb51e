//! The one file that describes a run. Unknown keys are refused; every default is stated with its
//! source (Bone Soups: its Table 8; DRBO: Dynamic Reward Balancing).

mod base;
mod check;
mod context;
mod data;
mod overrides;
mod stages;
mod unread;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use context::{ContextConfig, Mapping, OnlineConfig};
pub use data::{DataConfig, DataFormat, DataSets};
pub use overrides::{Override, OverrideError};
use serde::{Deserialize, Serialize};
pub use stages::{Algorithm, Decay, RlConfig, RolloutConfig, SftConfig};

use crate::{
    optimizer::AdamWConfig,
    precision::Precision,
    rewards::spec::RewardSpec,
    rl::{balance::BalanceConfig, lora::LoraConfig},
};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    Io { path: PathBuf, reason: String },
    /// The file is not TOML of this shape.
    #[error("{path}: {reason}")]
    Parse {
        path: PathBuf,
        /// Key, line and reason.
        reason: String,
    },
    /// An override of the command line.
    #[error(transparent)]
    Override(#[from] OverrideError),
    /// A value out of range.
    #[error("{key} is {got}, expected {expected}")]
    Value { key: String, got: String, expected: &'static str },
    /// A target of adapters that is no linear layer of the base.
    #[error(
        "{key} is {got}, expected linear layers of the base, {known}, or left out: all of them"
    )]
    Target {
        key: String,
        got: String,
        /// Those that the base has.
        known: String,
    },
}

/// Everything about a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub name: String,
    /// Seed of everything that is drawn.
    #[serde(default = "one")]
    pub seed: u64,
    /// The base model: a directory, or an imported or hub id.
    pub base: String,
    /// Arithmetic of the frozen weights.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// Prompts and references.
    pub data: DataSets,
    /// Shape of the backbones' adapters.
    #[serde(default)]
    pub lora: LoraConfig,
    /// The optimiser of both stages.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Supervised tuning before the reinforcement learning; left out, the base is θ_sft.
    #[serde(default)]
    pub sft: Option<SftConfig>,
    /// Sampling of responses.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// The policy updates.
    #[serde(default)]
    pub rl: RlConfig,
    /// Balancing of the reward weights (DRBO).
    #[serde(default)]
    pub balance: BalanceConfig,
    /// The reward-mixing matrix B.
    #[serde(default)]
    pub mixing: MixingConfig,
    /// The objectives, at least two.
    pub objectives: Vec<ObjectiveConfig>,
}

/// The reward-mixing matrix, `beta`, `matrix` or `identity`; or one policy, by its `weights` or with
/// the rewards in its `context`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixingConfig {
    /// Symmetric circulant: β on the diagonal, (1−β)/(n−1) elsewhere (Bone Soups eq. 8).
    Beta(f64),
    /// Rows of B.
    Matrix(Vec<Vec<f64>>),
    /// B = I: Rewarded Soup. The value is always true.
    Identity(bool),
    /// No B but one policy, with these pre-set weights of the rewards, one per objective: DRBO's W.
    /// With strategy average it is the policy trained for that preference (MORLHF).
    Weights(Vec<f64>),
    /// No B but one policy that its prompts tell how much of each reward is wanted (RiC).
    Context(ContextConfig),
}

impl Default for MixingConfig {
    /// β = 0.6, the middle of the paper's usual values for n = 3.
    fn default() -> Self {
        Self::Beta(0.6)
    }
}

/// One objective: its description for people, and the reward that measures it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// Name in requests.
    pub name: String,
    /// Meaning of a higher weight, for people.
    #[serde(default)]
    pub description: String,
    pub reward: RewardSpec,
}

fn one() -> u64 {
    1
}

/// Name of the policy of a run without B.
pub const POLICY: &str = "policy";

impl Config {
    /// Names of the policies that are trained: the backbones, one an objective, or `policy` alone.
    pub fn policies(&self) -> Vec<&str> {
        match self.mixing {
            MixingConfig::Weights(_) | MixingConfig::Context(_) => vec![POLICY],
            _ => self.objectives.iter().map(|objective| objective.name.as_str()).collect(),
        }
    }

    /// How one policy for all preferences uses its rewards: the strategy that balances them, or MODPO.
    pub fn one_policy(&self) -> String {
        match self.rl.algorithm {
            Algorithm::Modpo => "modpo".to_owned(),
            _ => self.balance.strategy.to_string(),
        }
    }

    /// Seed of the backbones' stage. `own` is 0 for what the backbones share: prompts, their order,
    /// the noise of sampling and, unless each has its own, A.
    pub fn stage_seed(&self, own: u64) -> u64 {
        self.seed.wrapping_add((own + 1) << 32)
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with(path, &[])
    }

    /// Reads a file, applies overrides and checks the result.
    pub fn read_with(path: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        let io = |error: std::io::Error| ConfigError::Io {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let text = fs::read_to_string(path).map_err(io)?;
        let parsed = |error: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut config: Self = toml::from_str(&text).map_err(parsed)?;
        if !overrides.is_empty() {
            config = overrides::apply(toml::from_str(&text).map_err(parsed)?, overrides)?;
        }
        config.check()?;
        // The copy in the run's directory states the value in force.
        config.lora.shared.get_or_insert(true);
        Ok(config)
    }
}
