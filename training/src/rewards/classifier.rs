//! Reward models from a checkpoint directory: sequence classification and token classification
//! over an [`Encoder`], with the checkpoint's own tokenizer and labels.

use super::encoder::{Batch, Encoder};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};
use safetensors::SafeTensors;
use std::{ops::Range, path::Path};
use tokenizers::{EncodeInput, Encoding, Tokenizer, TruncationParams};

/// Tokens (padding included) of one forward: bounds the memory of attention.
const TOKENS_PER_FORWARD: usize = 4096;

/// Why a model directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ModelError {
    /// The file or directory.
    pub path: std::path::PathBuf,
    /// What is wrong.
    pub reason: String,
}

pub(super) fn failed(path: &Path) -> impl FnOnce(String) -> ModelError {
    move |reason| ModelError { path: path.into(), reason }
}

/// What a checkpoint directory holds: `config.json`, `model.safetensors`, `tokenizer.json`.
pub(super) struct Parts {
    pub config: serde_json::Value,
    pub weights: VarBuilder<'static>,
    pub tokenizer: Tokenizer,
    pub encoder: Encoder,
}

impl Parts {
    /// Opens a directory; inputs are cut to `longest` tokens or the encoder's limit.
    pub fn open(dir: &Path, longest: Option<usize>) -> Result<Self, ModelError> {
        let config = read_json(&dir.join("config.json"))?;
        let path = dir.join("model.safetensors");
        let bytes = std::fs::read(&path).map_err(|e| failed(&path)(e.to_string()))?;
        SafeTensors::deserialize(&bytes).map_err(|e| failed(&path)(e.to_string()))?;
        let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)
            .map_err(|e| failed(&path)(e.to_string()))?;
        let encoder = Encoder::load(&config, &weights).map_err(|e| failed(dir)(e.to_string()))?;
        let path = dir.join("tokenizer.json");
        let mut tokenizer =
            Tokenizer::from_file(&path).map_err(|e| failed(&path)(e.to_string()))?;
        let max_length = longest.unwrap_or(usize::MAX).min(encoder.longest);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..Default::default() }))
            .map_err(|e| failed(&path)(e.to_string()))?;
        tokenizer.with_padding(None);
        Ok(Self { config, weights, tokenizer, encoder })
    }

    /// Tokenises inputs.
    pub fn encode<'a>(
        &self,
        inputs: impl IntoIterator<Item = EncodeInput<'a>>,
    ) -> Result<Vec<Encoding>, String> {
        let encode = |input| self.tokenizer.encode(input, true).map_err(|e| e.to_string());
        inputs.into_iter().map(encode).collect()
    }

    /// Runs `read` on the hidden states of each batch and gives its rows in the order of
    /// `encodings`. Inputs of like length share a batch, so that little is padded.
    pub fn run<T>(
        &self,
        encodings: &[Encoding],
        read: impl Fn(&Tensor, &Batch) -> candle_core::Result<Vec<T>>,
    ) -> Result<Vec<T>, String> {
        let mut order: Vec<(usize, &Encoding)> = encodings.iter().enumerate().collect();
        order.sort_by_key(|(_, encoding)| encoding.len());
        let mut found: Vec<(usize, T)> = Vec::with_capacity(encodings.len());
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            // Rows grow in length, so the last row of a batch decides its width.
            let fits = |(rows, (_, e)): &(usize, &(usize, &Encoding))| {
                *rows == 0 || (rows + 1) * e.len() <= TOKENS_PER_FORWARD
            };
            let count = rest.iter().enumerate().take_while(fits).count();
            let (part, after) = rest.split_at(count);
            rest = after;
            let rows: Vec<_> = part.iter().map(|(_, e)| (e.get_ids(), e.get_type_ids())).collect();
            let results = Batch::new(&rows, self.encoder.pad)
                .and_then(|batch| read(&self.encoder.forward(&batch)?, &batch))
                .map_err(|e| e.to_string())?;
            if results.len() != part.len() {
                return Err(format!("{} results of {} inputs", results.len(), part.len()));
            }
            found.extend(part.iter().map(|(at, _)| *at).zip(results));
        }
        found.sort_by_key(|(at, _)| *at);
        Ok(found.into_iter().map(|(_, result)| result).collect())
    }

    fn labels(&self) -> Vec<String> {
        let names = self.config.get("id2label").and_then(|v| v.as_object());
        let count = names
            .map(|n| n.len())
            .or_else(|| self.config.get("num_labels").and_then(|v| v.as_u64()).map(|n| n as usize));
        let name = |i: usize| {
            let found = names.and_then(|n| n.get(&i.to_string())).and_then(|v| v.as_str());
            found.map_or_else(|| format!("LABEL_{i}"), str::to_string)
        };
        // transformers leaves both out when there are its default two labels.
        (0..count.unwrap_or(2)).map(name).collect()
    }
}

pub(super) fn read_json(path: &Path) -> Result<serde_json::Value, ModelError> {
    let bytes = std::fs::read(path).map_err(|e| failed(path)(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| failed(path)(e.to_string()))
}

/// The layers between the first token's state and the logits.
/// `out(activation(dense(h)))`.
struct Head {
    dense: Linear,
    activation: fn(&Tensor) -> candle_core::Result<Tensor>,
    out: Linear,
}

/// A sequence classifier: text or pair of texts → one logit a label.
pub struct SequenceClassifier {
    parts: Parts,
    head: Head,
    labels: Vec<String>,
}

impl SequenceClassifier {
    /// Opens a checkpoint of a `…ForSequenceClassification` of the supported encoders.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let parts = Parts::open(dir, None)?;
        let labels = parts.labels();
        let (hidden, count, w) = (parts.encoder.hidden, labels.len(), &parts.weights);
        let kind = parts.config.get("model_type").and_then(|v| v.as_str()).unwrap_or_default();
        let (dense, activation, out): (_, fn(&Tensor) -> _, _) = match kind {
            "bert" => (w.pp("bert.pooler.dense"), Tensor::tanh, w.pp("classifier")),
            "distilbert" => (w.pp("pre_classifier"), Tensor::relu, w.pp("classifier")),
            "deberta-v2" => (w.pp("pooler.dense"), Tensor::gelu_erf, w.pp("classifier")),
            _ => (w.pp("classifier.dense"), Tensor::tanh, w.pp("classifier.out_proj")),
        };
        let head = linear(hidden, hidden, dense)
            .and_then(|dense| Ok(Head { dense, activation, out: linear(hidden, count, out)? }))
            .map_err(|e| failed(dir)(e.to_string()))?;
        Ok(Self { parts, head, labels })
    }

    /// Names of the labels, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Logits `[input][label]`.
    pub fn logits<'a>(
        &self,
        inputs: impl IntoIterator<Item = EncodeInput<'a>>,
    ) -> Result<Vec<Vec<f32>>, String> {
        let encodings = self.parts.encode(inputs)?;
        let Head { dense, activation, out } = &self.head;
        self.parts.run(&encodings, |states, _| {
            let first = states.i((.., 0))?.contiguous()?;
            out.forward(&activation(&dense.forward(&first)?)?)?.to_vec2()
        })
    }
}

/// A token classifier: one logit a label for every token of the second text of a pair.
pub struct TokenClassifier {
    parts: Parts,
    out: Linear,
    labels: Vec<String>,
}

/// The logits of the tokens of one text.
pub struct TokenLogits {
    /// Bytes of each token in the text.
    pub bytes: Vec<Range<usize>>,
    /// Logits `[token][label]`.
    pub logits: Vec<Vec<f32>>,
}

impl TokenClassifier {
    /// Opens a checkpoint of a `…ForTokenClassification` of the supported encoders.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let parts = Parts::open(dir, None)?;
        let labels = parts.labels();
        let out = linear(parts.encoder.hidden, labels.len(), parts.weights.pp("classifier"))
            .map_err(|e| failed(dir)(e.to_string()))?;
        Ok(Self { parts, out, labels })
    }

    /// Names of the labels, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Logits of the tokens of `response` in each `(prompt, response)`.
    pub fn logits(&self, pairs: &[(&str, &str)]) -> Result<Vec<TokenLogits>, String> {
        let encodings = self.parts.encode(pairs.iter().map(|&pair| EncodeInput::from(pair)))?;
        let rows =
            self.parts.run(&encodings, |states, _| self.out.forward(states)?.to_vec3::<f32>())?;
        let tokens = |(encoding, row): (&Encoding, Vec<Vec<f32>>)| {
            let of_response = encoding.get_sequence_ids().into_iter().zip(encoding.get_offsets());
            let kept = of_response
                .zip(row)
                .filter(|((sequence, (start, end)), _)| *sequence == Some(1) && start < end)
                .map(|((_, (start, end)), logits)| (*start..*end, logits));
            let (bytes, logits) = kept.unzip();
            TokenLogits { bytes, logits }
        };
        Ok(encodings.iter().zip(rows).map(tokens).collect())
    }
}
