//! Why an evaluation stopped.

use std::path::PathBuf;

use ladle::preference::PreferenceError;

use super::front::FrontError;
use crate::{checkpoint::CheckpointError, error::RunError, rewards::RewardError};

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// Error of a run, its data or its base.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Error of a file.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// Error of a reward.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// Error of the metrics.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// A point of the sweep is not a preference.
    #[error(transparent)]
    Preference(#[from] PreferenceError),
    /// A soup cannot be opened or served.
    #[error("{path}: {reason}")]
    Soup {
        /// The soup's directory.
        path: PathBuf,
        reason: String,
    },
    /// A server cannot be asked.
    #[error("{0}")]
    Server(String),
    /// The engine gave no answer.
    #[error("row {row} at coefficients {coefficients:?}: {reason}")]
    Answer {
        /// The prompt's id.
        row: String,
        /// c over the backbones.
        coefficients: Vec<f64>,
        reason: String,
    },
    /// The runs or settings cannot be compared.
    #[error("{0}")]
    Settings(String),
}
