//! The one file that describes a run. Unknown keys are refused; every default is stated with its
//! source ([BS] = Bone Soups, Table 8; [DRBO] = Dynamic Reward Balancing).

mod check;
mod overrides;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use overrides::{Override, OverrideError};
use serde::{Deserialize, Serialize};

use crate::{
    data::rows::OnMalformed,
    optimizer::{self, AdamWConfig},
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
    /// Prompts and references.
    pub data: DataConfig,
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

/// Prompts and references. Paths, as those of rewards, are relative to the data directory of the
/// command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Format of the files.
    pub format: DataFormat,
    /// Training rows.
    pub train: PathBuf,
    /// Rows for choosing β and α, and for the validation loss.
    #[serde(default)]
    pub validation: Option<PathBuf>,
    /// Rows for `evaluate` alone.
    #[serde(default)]
    pub test: Option<PathBuf>,
    /// Instead of `validation` and `test`: shares of the rows of `train` that train, validate and
    /// test, by seed and row id.
    #[serde(default)]
    pub split: Option<[f64; 3]>,
    /// minijinja template around the user's last turn (`prompt`, `fields`, `id`), or the whole
    /// prompt from a row's columns for format `jsonl`.
    #[serde(default)]
    pub template: Option<String>,
    /// Column of the reference answers, for format `jsonl`.
    #[serde(default)]
    pub reference: Option<String>,
    /// Column of the id, for format `jsonl`.
    #[serde(default)]
    pub id: Option<String>,
    /// What to do with malformed rows: `fail` refuses the file and names them all, `skip` leaves
    /// them out with a warning for each.
    #[serde(default)]
    pub malformed: OnMalformed,
    /// Documents put into a prompt, for format `alce` (5: ALCE's vanilla setting).
    #[serde(default = "DataConfig::documents")]
    pub documents: usize,
    /// Rows with a longer prompt are left out, in tokens (they are counted in the log).
    #[serde(default = "DataConfig::max_prompt_tokens")]
    pub max_prompt_tokens: usize,
}

impl DataConfig {
    fn documents() -> usize {
        5
    }

    fn max_prompt_tokens() -> usize {
        512
    }
}

/// Formats that have a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// SciTLDR-A JSONL.
    Scitldr,
    /// QA-Feedback JSONL.
    QaFeedback,
    /// hh-rlhf dialogue pairs.
    HhRlhf,
    /// TL;DR posts.
    Tldr,
    /// ALCE JSON.
    Alce,
    /// ECInstruct records.
    Ecinstruct,
    /// Shopping MMLU's retrieval, ranking, named-entity and generation tasks.
    ShoppingMmlu,
    /// Shopping MMLU's multiple choice.
    ShoppingMmluChoices,
    /// Any JSONL with `template`.
    Jsonl,
}

impl DataFormat {
    /// How to get the data set.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Scitldr => {
                "SciTLDR-A: `git clone https://github.com/allenai/scitldr`, whose \
                 SciTLDR-Data/SciTLDR-A is the directory of train.jsonl, dev.jsonl and test.jsonl"
            }
            Self::QaFeedback => {
                "QA-Feedback: `git clone https://github.com/allenai/FineGrainedRLHF`, \
                 tasks/qa_feedback/data"
            }
            Self::HhRlhf => "hh-rlhf: `git clone https://github.com/anthropics/hh-rlhf`",
            Self::Tldr => "TL;DR: `git clone https://github.com/openai/summarize-from-feedback`",
            Self::Alce => {
                "ALCE: `git clone https://github.com/princeton-nlp/ALCE`, download_data.sh"
            }
            Self::Ecinstruct => "ECInstruct: `git clone https://github.com/ninglab/eCeLLM`",
            Self::ShoppingMmlu | Self::ShoppingMmluChoices => {
                "Shopping MMLU: `git clone https://github.com/KL4805/ShoppingMMLU`"
            }
            Self::Jsonl => "a JSONL file of your own",
        }
    }
}

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
    /// Clipped policy and value losses, GAE ([BS]).
    #[default]
    Ppo,
    /// Baseline from the greedy response, no value model ([DRBO]).
    ReMax,
    /// Baseline from the other responses to the same prompt, no value model (REINFORCE
    /// leave-one-out: Ahmadian et al. 2024).
    Rloo,
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ppo => "PPO",
            Self::ReMax => "ReMax",
            Self::Rloo => "RLOO",
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
    /// Responses of one batch (64: [BS]).
    pub batch: usize,
    /// Responses of one optimiser update (16: four minibatches, as PPO's reference code has).
    pub minibatch: usize,
    /// Passes over a batch (4: [BS]); ReMax and RLOO make one, in one update.
    pub epochs: usize,
    /// Rows (tokens) of one forward and backward: bounds memory, changes no result but rounding.
    pub rows: usize,
    /// Keep only each layer's input of a forward and compute the layer again in the backward, in
    /// both stages: less memory for a third more work, the same weights.
    pub recompute: bool,
    /// Peak learning rate (1e-5: [BS]).
    pub learning_rate: f64,
    /// Decay of the learning rate (linear: [BS]).
    pub decay: Decay,
    /// Updates at which a linear decay reaches 0; left out, `steps`. More than `steps` is the
    /// beginning of a longer run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// Updates after which a snapshot is kept, below `keep/` in the run's directory: each is a run
    /// of its own that can be evaluated.
    pub keep: Vec<u64>,
    /// KL coefficient η at the start (0.2: [BS]).
    pub kl: f64,
    /// KL per response, in nats, that an adaptive η aims at; 0 keeps η fixed (3: the authors' code).
    pub kl_target: f64,
    /// Responses over which η may double (10000: Ziegler et al. 2019).
    pub kl_horizon: f64,
    /// A batch's updates stop when its mean KL to the sampling policy passes this, in nats per
    /// response (5: [BS], Helpful and Summary).
    pub kl_stop: f64,
    /// Discount γ ([BS]).
    pub gamma: f64,
    /// GAE's λ ([BS]).
    pub lambda: f64,
    /// Clip of ratio and value change ([BS]).
    pub clip: f64,
    /// Weight of the value loss (0.1: the authors' code).
    pub value_weight: f64,
    /// Learning rate of the value head over that of the adapters.
    pub value_rate: f64,
    /// Advantages of ReMax and RLOO are clipped to ± this (20: the authors' code).
    pub advantage_clip: f64,
    /// Responses that the rewards are standardised on, of the initial policy (200: [DRBO]).
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

/// The reward-mixing matrix: `beta`, `matrix` or `identity`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixingConfig {
    /// Symmetric circulant: β on the diagonal, (1−β)/(n−1) elsewhere ([BS] eq. 8).
    Beta(f64),
    /// Rows of B.
    Matrix(Vec<Vec<f64>>),
    /// B = I: Rewarded Soup. The value is always true.
    Identity(bool),
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

impl Config {
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
