//! The files of a run.
//!
//! ```text
//! DIR/config.toml            the configuration of the run
//! DIR/inputs.toml            digests of the data, the base and the reward models
//! DIR/state/NAME.safetensors checkpoint of a stage
//! DIR/metrics/NAME/          metrics.jsonl and TensorBoard events
//! DIR/standardiser.toml      the frozen scale of the rewards
//! DIR/adapters/NAME/         finished PEFT adapters (`sft` and one per objective)
//! DIR/keep/STEP/             a snapshot: a directory of this layout
//! DIR/rows/STAGE.json        answers that a stage of RiC is tuned on, with their rewards
//! DIR/soup/                  the soup, once all adapters are there
//! ```
//!
//! Every file is whole or absent, so any stage can be killed and resumed; processes that
//! train different backbones (`--only`) can share a directory once `sft` is done.

use std::path::{Path, PathBuf};

/// The last file written of an adapter: its presence means that the adapter is whole.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Directories of a run.
#[derive(Debug, Clone)]
pub struct Places {
    /// The run's own directory.
    pub run: PathBuf,
    /// The directory that data paths of the configuration are relative to.
    pub data: PathBuf,
    /// The base model's directory.
    pub base: PathBuf,
}

/// The paths of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(PathBuf);

impl Layout {
    /// The layout of the run in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// The run's directory.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The configuration of the run.
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// Digests of the run's inputs.
    pub fn inputs(&self) -> PathBuf {
        self.0.join("inputs.toml")
    }

    /// The frozen scale of the rewards.
    pub fn standardiser(&self) -> PathBuf {
        self.0.join("standardiser.toml")
    }

    /// Checkpoint of a stage.
    pub fn state(&self, stage: &str) -> PathBuf {
        self.0.join("state").join(format!("{stage}.safetensors"))
    }

    /// Directory of a stage's metrics.
    pub fn metrics(&self, stage: &str) -> PathBuf {
        self.0.join("metrics").join(stage)
    }

    /// Directory of all finished adapters.
    pub fn adapters(&self) -> PathBuf {
        self.0.join("adapters")
    }

    /// Directory of a stage's adapter.
    pub fn adapter(&self, stage: &str) -> PathBuf {
        self.adapters().join(stage)
    }

    /// Whether a stage's adapter is complete.
    pub fn finished(&self, stage: &str) -> bool {
        self.adapter(stage).join(WEIGHTS).is_file()
    }

    /// The rewards between which prompts may ask a policy for some (RiC).
    pub fn range(&self, policy: &str) -> PathBuf {
        self.adapter(policy).join("range.toml")
    }

    /// The answers of a stage of RiC with their rewards.
    pub fn rows(&self, stage: &str) -> PathBuf {
        self.0.join("rows").join(format!("{stage}.json"))
    }

    /// The step-weighted mean of a backbone's reward weights.
    pub fn realised(&self, backbone: &str) -> PathBuf {
        self.adapter(backbone).join("realised.toml")
    }

    /// Files that runs of the same base, data and rewards can share: the supervised adapter and the
    /// scale of the rewards.
    pub fn shared(&self) -> [PathBuf; 3] {
        let sft = self.adapter("sft");
        [sft.join("adapter_config.json"), sft.join(WEIGHTS), self.standardiser()]
    }

    pub fn soup(&self) -> PathBuf {
        self.0.join("soup")
    }

    /// The snapshot after `step` updates.
    pub fn snapshot(&self, step: u64) -> Self {
        Self(self.0.join("keep").join(step.to_string()))
    }
}
