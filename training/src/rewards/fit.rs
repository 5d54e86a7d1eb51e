//! A reward model from preferences: a Bradley–Terry head on a frozen encoder.
//!
//! The head is BERT's own for sequence classification, `out(tanh(dense(h)))` on the first token's
//! state with one label, so what comes out is a checkpoint that transformers and the reward
//! `sequence-classifier` read. The loss of a pair is `−log σ(r(chosen) − r(rejected))`
//! (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1).

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, IndexOp, Tensor, Var};
use candle_nn::ops::sigmoid;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokenizers::EncodeInput;

use super::classifier::{ModelError, Parts};
use crate::{
    checkpoint::{CheckpointError, serialize, write_atomically},
    data::{Pair, split::split},
    draw,
    optimizer::{AdamW, AdamWConfig, learning_rate},
};

/// Why no reward model came out.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The encoder cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The encoder is of a kind that has no such head.
    #[error("encoder {path}: model_type is {got:?}, expected \"bert\"")]
    Kind {
        /// Its directory.
        path: std::path::PathBuf,
        /// Its type.
        got: String,
    },
    /// The encoder failed on the texts.
    #[error("encoding the responses: {0}")]
    Encode(String),
    /// Too few pairs to learn from and to test on.
    #[error("{0} pairs, expected at least 10: a part of them is kept for testing")]
    Pairs(usize),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// How to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Passes over the pairs.
    pub epochs: u64,
    /// Pairs of one update.
    pub batch: usize,
    /// Peak learning rate, linear decay.
    pub learning_rate: f64,
    /// Share of the pairs that is kept for testing.
    pub test_share: f64,
    /// Seed of the split, the order and the first weights.
    pub seed: u64,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Pairs learned from.
    pub trained: usize,
    /// Pairs tested on.
    pub tested: usize,
    /// Mean loss of the last epoch.
    pub loss: f64,
    /// Share of the test pairs whose preferred response has the higher reward.
    pub accuracy: f64,
}

/// Fits a head on the encoder in `encoder` and writes encoder and head as the checkpoint `out`.
pub fn fit(
    pairs: Vec<Pair>,
    encoder: &Path,
    out: &Path,
    settings: &Settings,
) -> Result<Fit, FitError> {
    let parts = Parts::open(encoder, None)?;
    let kind = parts.config.get("model_type").and_then(|v| v.as_str()).unwrap_or_default();
    if kind != "bert" {
        return Err(FitError::Kind { path: encoder.to_owned(), got: kind.to_owned() });
    }
    let count = pairs.len();
    let shares = [1.0 - settings.test_share, settings.test_share];
    let split = split(pairs, |pair| &pair.id, &shares, settings.seed);
    let [train, test] = split.ok().and_then(|s| s.try_into().ok()).ok_or(FitError::Pairs(count))?;
    let (train, test): (Vec<Pair>, Vec<Pair>) = (train, test);
    if count < 10 || train.is_empty() || test.is_empty() {
        return Err(FitError::Pairs(count));
    }
    let (train, test) = (Features::of(&parts, &train)?, Features::of(&parts, &test)?);
    let head = Head::new(parts.encoder.hidden, settings.seed)?;
    let loss = head.learn(&train, settings)?;
    let accuracy = head.accuracy(&test)?;
    head.write(encoder, out)?;
    Ok(Fit { trained: train.count(), tested: test.count(), loss, accuracy })
}

/// First-token states of the responses, `[pairs, hidden]` each.
struct Features {
    chosen: Tensor,
    rejected: Tensor,
}

impl Features {
    fn of(parts: &Parts, pairs: &[Pair]) -> Result<Self, FitError> {
        let states = |pick: fn(&Pair) -> &str| -> Result<Tensor, FitError> {
            let inputs = pairs.iter().map(|pair| {
                let prompt = pair.messages.last().map_or("", |message| message.content.as_str());
                EncodeInput::from((prompt, pick(pair)))
            });
            let encodings = parts.encode(inputs).map_err(FitError::Encode)?;
            let rows = parts.run(&encodings, |states, _| states.i((.., 0))?.to_vec2::<f32>());
            let rows = rows.map_err(FitError::Encode)?;
            Ok(Tensor::new(rows, &Device::Cpu)?)
        };
        Ok(Self { chosen: states(|p| &p.chosen)?, rejected: states(|p| &p.rejected)? })
    }

    fn count(&self) -> usize {
        self.chosen.dims()[0]
    }
}

/// `out(tanh(dense(h)))`, without a bias at the end: it cancels in every pair.
struct Head {
    dense: Var,
    bias: Var,
    out: Var,
}

impl Head {
    fn new(hidden: usize, seed: u64) -> candle_core::Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bound = 1.0 / (hidden as f32).sqrt();
        let dense = (0..hidden * hidden).map(|_| rng.random_range(-bound..bound)).collect();
        Ok(Self {
            dense: Var::from_vec::<_, f32>(dense, (hidden, hidden), &Device::Cpu)?,
            bias: Var::zeros(hidden, DType::F32, &Device::Cpu)?,
            out: Var::zeros((1, hidden), DType::F32, &Device::Cpu)?,
        })
    }

    fn variables(&self) -> Vec<(String, Var)> {
        let named = [
            ("bert.pooler.dense.weight", &self.dense),
            ("bert.pooler.dense.bias", &self.bias),
            ("classifier.weight", &self.out),
        ];
        named.map(|(name, var)| (name.to_owned(), var.clone())).to_vec()
    }

    /// Rewards `[rows]` of states `[rows, hidden]`.
    fn rewards(&self, states: &Tensor) -> candle_core::Result<Tensor> {
        let dense = states.matmul(&self.dense.t()?)?.broadcast_add(self.bias.as_tensor())?;
        dense.tanh()?.matmul(&self.out.t()?)?.squeeze(1)
    }

    fn margins(&self, features: &Features) -> candle_core::Result<Tensor> {
        self.rewards(&features.chosen)? - self.rewards(&features.rejected)?
    }

    /// Returns the mean loss of the last epoch.
    fn learn(&self, train: &Features, settings: &Settings) -> candle_core::Result<f64> {
        let mut optimizer = AdamW::new(self.variables(), AdamWConfig::default())?;
        let batch = settings.batch.clamp(1, train.count());
        let per_epoch = train.count().div_ceil(batch) as u64;
        let total = settings.epochs.max(1) * per_epoch;
        let (mut sum, mut counted) = (0.0, 0);
        for step in 0..total {
            let rows = draw::batch(settings.seed, train.count(), batch, step);
            let rows: Vec<u32> = rows.into_iter().map(|row| row as u32).collect();
            let rows = Tensor::new(rows, &Device::Cpu)?;
            let features = Features {
                chosen: train.chosen.index_select(&rows, 0)?,
                rejected: train.rejected.index_select(&rows, 0)?,
            };
            let likelihood = sigmoid(&self.margins(&features)?)?.maximum(1e-7)?.log()?;
            let loss = likelihood.mean_all()?.neg()?;
            optimizer.accumulate(&loss.backward()?)?;
            optimizer.step(learning_rate(settings.learning_rate, step, 0, total))?;
            if step + per_epoch >= total {
                sum += f64::from(loss.to_scalar::<f32>()?);
                counted += 1;
            }
        }
        Ok(sum / f64::from(counted.max(1)))
    }

    fn accuracy(&self, test: &Features) -> candle_core::Result<f64> {
        let margins = self.margins(test)?.to_vec1::<f32>()?;
        Ok(margins.iter().filter(|m| **m > 0.0).count() as f64 / margins.len() as f64)
    }

    /// Writes the encoder's tensors with the head's, the tokenizer, and a configuration with one
    /// label.
    fn write(&self, encoder: &Path, out: &Path) -> Result<(), FitError> {
        let read = |name: &str| {
            let path = encoder.join(name);
            fs::read(&path).map_err(|source| CheckpointError::Io { path, source })
        };
        let path = out.join("model.safetensors");
        let format = |reason: String| CheckpointError::Format { path: path.clone(), reason };
        let tensors =
            candle_core::safetensors::load_buffer(&read("model.safetensors")?, &Device::Cpu)?;
        let named = |name: &str| {
            if name.starts_with("bert.") { name.to_owned() } else { format!("bert.{name}") }
        };
        let mut all: HashMap<String, Tensor> = HashMap::new();
        for (name, tensor) in tensors {
            // Position ids that old checkpoints store are no weights.
            if tensor.dtype().is_float() {
                all.insert(named(&name), tensor.to_dtype(DType::F32)?);
            }
        }
        let head = self.variables().into_iter();
        all.extend(head.map(|(name, var)| (name, var.as_tensor().detach())));
        all.insert("classifier.bias".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu)?);
        let mut all: Vec<(String, Tensor)> = all.into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let config = read("config.json")?;
        let mut config: serde_json::Value =
            serde_json::from_slice(&config).map_err(|error| format(error.to_string()))?;
        config["architectures"] = json!(["BertForSequenceClassification"]);
        config["id2label"] = json!({"0": "reward"});
        config["label2id"] = json!({"reward": 0});
        write_atomically(&out.join("config.json"), format!("{config:#}\n").as_bytes())?;
        write_atomically(&out.join("tokenizer.json"), &read("tokenizer.json")?)?;
        let bytes = serialize(&all, None).map_err(format)?;
        Ok(write_atomically(&path, &bytes)?)
    }
}
