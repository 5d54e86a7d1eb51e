//! Errors of a run, from all its stages.

use std::path::PathBuf;

use ladle::{
    import::ImportError,
    merge::MergeError,
    preference::MixingError,
    soup::{SoupError, WeightError},
};

use crate::{
    checkpoint::CheckpointError,
    config::ConfigError,
    inputs::InputsError,
    rewards::RewardError,
    rl::{
        advantage::AdvantageError, balance::BalanceError, policy::PolicyError,
        rollout::RolloutError, update::UpdateError,
    },
    setup::SetupError,
};

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Base model or data.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The mixing matrix.
    #[error("mixing: {0}")]
    Mixing(#[from] MixingError),
    /// A file of the run.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An adapter.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// An adapter does not fit the base.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The soup.
    #[error(transparent)]
    Soup(#[from] SoupError),
    /// The soup cannot be served.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A reward.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Sampling.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// An update.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// Advantages.
    #[error(transparent)]
    Advantage(#[from] AdvantageError),
    /// The balance of the objectives.
    #[error("balance: {0}")]
    Balance(#[from] BalanceError),
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] ladle::kernels::KernelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A text that the tokenizer refuses.
    #[error("row {row}: {reason}")]
    Text {
        /// Its id.
        row: String,
        reason: String,
    },
    /// The run diverged.
    #[error("{stage} diverged at step {step}: the {what} is {value}")]
    Diverged {
        /// Stage.
        stage: String,
        /// Step.
        step: u64,
        /// Which number.
        what: &'static str,
        value: f64,
    },
    /// The directory holds another run or other files.
    #[error("{path}: {reason}")]
    Directory {
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A data file or a reward model is not there.
    #[error("{path}: no such file or directory below --data; {remedy}")]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// How to get it.
        remedy: &'static str,
    },
    /// Data, base or rewards.
    #[error(transparent)]
    Inputs(#[from] InputsError),
    /// `--share` names a run whose supervised stage and reward scale do not fit this one.
    #[error("--share {}: {reason}", run.display())]
    Share {
        /// The other run's directory.
        run: PathBuf,
        /// The difference, or what is missing.
        reason: String,
    },
    /// `--only` names no objective.
    #[error("no objective {name:?}; the config has {known}")]
    Unknown { name: String, known: String },
}
