//! The settings of a lesson, as the command line takes them.

use crate::rewards::neural::Reading;

/// How to fit.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Settings {
    /// Passes over the rows at most: those are kept after which the loss on rows that are not
    /// learned from was lowest.
    #[arg(long, default_value_t = 30)]
    pub epochs: u64,
    /// Pairs or segments of one update.
    #[arg(long, default_value_t = 32)]
    pub batch: usize,
    /// Peak learning rate, linear decay.
    #[arg(long, default_value_t = 3e-4)]
    pub learning_rate: f64,
    /// Decoupled weight decay of AdamW.
    #[arg(long, default_value_t = 0.1)]
    pub weight_decay: f64,
    /// Share of the rows that is kept for testing, below 0.5; as many say when to stop learning.
    #[arg(long, default_value_t = 0.1)]
    pub test_share: f64,
    /// Seed of the split, the order and the first weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// minijinja template of what stands before the response, over `prompt` and `fields`; left out,
    /// the prompt. The reward must be configured with the same.
    #[arg(long)]
    pub template: Option<String>,
    /// Which tokens of a segment are read. The reward must be configured with the same.
    #[arg(long, value_enum, default_value = "last")]
    pub reading: Reading,
}
