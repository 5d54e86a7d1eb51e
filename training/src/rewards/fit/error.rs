//! Errors of fitting a reward model.

use std::path::PathBuf;

use crate::{checkpoint::CheckpointError, data::DataError, rewards::classifier::ModelError};

/// Why no reward model was fitted.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The template of the prompt does not compile.
    #[error(transparent)]
    Template(#[from] DataError),
    /// A text cannot be read by the model.
    #[error("row {row}: {reason}")]
    Text {
        /// Its id.
        row: String,
        reason: String,
    },
    /// The model failed on the texts.
    #[error("{}: {reason}", path.display())]
    Features { path: PathBuf, reason: String },
    /// The reward model would replace the model under it.
    #[error("--out is {}, the model that the head is for; expected a directory of its own", .0.display())]
    Onto(PathBuf),
    /// Too few rows for training and testing.
    #[error(
        "{0} rows, expected enough (at least 10) to learn from, to say when to stop and to test on"
    )]
    Rows(usize),
    /// A test share that leaves no rows for training.
    #[error("test_share is {0}, expected a number above 0 and below 0.5")]
    Share(f64),
    /// Only one of the two labels occurs.
    #[error("{0}: the rows for learning have only one of the two labels")]
    OneLabel(&'static str),
    /// No pass lowered the validation loss: the head would score at random.
    #[error(
        "nothing was learned: none of {epochs} epochs lowered the loss on {validation} held-out items; \
         more rows or another learning rate may help"
    )]
    Nothing {
        /// Passes that were made.
        epochs: u64,
        /// Validation pairs or segments.
        validation: usize,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
