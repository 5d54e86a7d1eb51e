//! Reward models from a checkpoint directory: sequence classification and token classification
//! over a `Network`, with the checkpoint's own tokenizer and labels.

use super::{
    decoder,
    head::{Head, HeadKind, HeadNames},
    layers::{Batch, model_type},
    network::Network,
};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use safetensors::SafeTensors;
use std::{ops::Range, path::Path};
use tokenizers::{EncodeInput, Encoding, Tokenizer, TruncationParams};

/// Tokens (padding included) of one forward: bounds the memory of attention.
const TOKENS_PER_FORWARD: usize = 4096;

/// Most labels of one head; more mean a broken configuration.
const MOST_LABELS: usize = 10_000;

/// A model directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ModelError {
    pub path: std::path::PathBuf,
    pub reason: String,
}

pub(super) fn failed(path: &Path) -> impl FnOnce(String) -> ModelError {
    move |reason| ModelError { path: path.into(), reason }
}

/// An opened checkpoint directory: `config.json`, `model.safetensors`, `tokenizer.json`.
pub(super) struct Parts {
    pub config: serde_json::Value,
    pub weights: VarBuilder<'static>,
    pub tokenizer: Tokenizer,
    pub network: Network,
}

impl Parts {
    /// Opens a directory; inputs are cut to `longest` tokens or the network's limit.
    pub fn open(dir: &Path, longest: Option<usize>) -> Result<Self, ModelError> {
        let config = read_json(&dir.join("config.json"))?;
        let (network, weights) = if decoder::FAMILY.contains(&model_type(&config)) {
            decoder::open(dir).map_err(failed(dir))?
        } else {
            let weights = buffered(&dir.join("model.safetensors"))?;
            let network = Network::load(&config, &weights);
            (network.map_err(|e| failed(dir)(e.to_string()))?, weights)
        };
        let path = dir.join("tokenizer.json");
        let mut tokenizer =
            Tokenizer::from_file(&path).map_err(|e| failed(&path)(e.to_string()))?;
        let max_length = longest.unwrap_or(usize::MAX).min(network.longest);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..Default::default() }))
            .map_err(|e| failed(&path)(e.to_string()))?;
        tokenizer.with_padding(None);
        Ok(Self { config, weights, tokenizer, network })
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
    /// `encodings`. Inputs of similar length share a batch, which keeps padding small.
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
            // Rows are sorted by length: the last row of a batch decides its width.
            let fits = |(rows, (_, e)): &(usize, &(usize, &Encoding))| {
                *rows == 0 || (rows + 1) * e.len() <= TOKENS_PER_FORWARD
            };
            let count = rest.iter().enumerate().take_while(fits).count();
            let (part, after) = rest.split_at(count);
            rest = after;
            let rows: Vec<_> = part.iter().map(|(_, e)| (e.get_ids(), e.get_type_ids())).collect();
            let results = Batch::new(&rows, self.network.pad.unwrap_or(0))
                .and_then(|batch| read(&self.network.forward(&batch)?, &batch))
                .map_err(|e| e.to_string())?;
            if results.len() != part.len() {
                return Err(format!("{} results of {} inputs", results.len(), part.len()));
            }
            found.extend(part.iter().map(|(at, _)| *at).zip(results));
        }
        found.sort_by_key(|(at, _)| *at);
        Ok(found.into_iter().map(|(_, result)| result).collect())
    }

    /// Names of the labels, in the order of the logits.
    fn labels(&self) -> Result<Vec<String>, String> {
        let names = self.config.get("id2label").and_then(|v| v.as_object());
        let count = names
            .map(|n| n.len())
            .or_else(|| self.config.get("num_labels").and_then(|v| v.as_u64()).map(|n| n as usize));
        // transformers leaves both out when there are its default two labels.
        let count = count.unwrap_or(2);
        if !(1..=MOST_LABELS).contains(&count) {
            return Err(format!("config.json: {count} labels, expected 1 to {MOST_LABELS}"));
        }
        let name = |i: usize| {
            let found = names.and_then(|n| n.get(&i.to_string())).and_then(|v| v.as_str());
            found.map_or_else(|| format!("LABEL_{i}"), str::to_string)
        };
        Ok((0..count).map(name).collect())
    }
}

pub(super) fn read_json(path: &Path) -> Result<serde_json::Value, ModelError> {
    let bytes = std::fs::read(path).map_err(|e| failed(path)(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| failed(path)(e.to_string()))
}

fn buffered(path: &Path) -> Result<VarBuilder<'static>, ModelError> {
    let bytes = std::fs::read(path).map_err(|e| failed(path)(e.to_string()))?;
    SafeTensors::deserialize(&bytes).map_err(|e| failed(path)(e.to_string()))?;
    VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)
        .map_err(|e| failed(path)(e.to_string()))
}

/// A checkpoint with its head and the names of its labels.
struct Classifier {
    parts: Parts,
    head: Head,
    labels: Vec<String>,
}

impl Classifier {
    fn open(dir: &Path, kind: HeadKind) -> Result<Self, ModelError> {
        let parts = Parts::open(dir, None)?;
        let labels = parts.labels().map_err(failed(dir))?;
        let names = HeadNames::of(model_type(&parts.config), kind);
        let head = Head::load(&names, parts.network.hidden, labels.len(), &parts.weights)
            .map_err(|e| failed(dir)(e.to_string()))?;
        Ok(Self { parts, head, labels })
    }
}

/// A sequence classifier: text or pair of texts → one logit a label.
pub struct SequenceClassifier(Classifier);

impl SequenceClassifier {
    /// Opens a checkpoint of a `…ForSequenceClassification` of the supported architectures.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Classifier::open(dir, HeadKind::Sequence).map(Self)
    }

    /// Names of the labels, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.0.labels
    }

    /// Logits `[input][label]`.
    pub fn logits<'a>(
        &self,
        inputs: impl IntoIterator<Item = EncodeInput<'a>>,
    ) -> Result<Vec<Vec<f32>>, String> {
        let Classifier { parts, head, .. } = &self.0;
        let encodings = parts.encode(inputs)?;
        parts.run(&encodings, |states, batch| {
            head.forward(&parts.network.pooled(states, batch)?)?.to_vec2()
        })
    }
}

/// A token classifier: one logit a label for every token of the second text of a pair.
pub struct TokenClassifier(Classifier);

/// The logits of the tokens of one text.
pub struct TokenLogits {
    /// The tokens.
    pub tokens: ResponseTokens,
    /// Logits `[token][label]`.
    pub logits: Vec<Vec<f32>>,
}

/// The tokens of a pair's second text.
pub struct ResponseTokens {
    /// Bytes of each token in the text.
    pub bytes: Vec<Range<usize>>,
    /// Place of each token in the input.
    pub places: Vec<usize>,
    /// Whether the text was cut to the model's longest input.
    pub cut: bool,
}

impl ResponseTokens {
    /// Finds them in an encoded pair.
    pub(super) fn of(encoding: &Encoding) -> Self {
        let (bytes, places): (Vec<Range<usize>>, Vec<usize>) = second(encoding).unzip();
        let covered = bytes.last().map_or(0, |bytes| bytes.end);
        let overflow = encoding.get_overflowing().iter();
        let cut = overflow.flat_map(second).any(|(bytes, _)| bytes.end > covered);
        Self { bytes, places, cut }
    }

    /// The tokens of a segment of the text, as a range of indices, empty where the tokenizer has
    /// no token for it. A segment that was cut off is an error.
    pub(super) fn within(&self, segment: &Range<usize>) -> Result<Range<usize>, String> {
        let covered = self.bytes.last().map_or(0, |bytes| bytes.end);
        if self.cut && segment.start >= covered {
            let end = segment.end;
            return Err(format!(
                "the segment that ends at byte {end} is past the model's {covered} bytes"
            ));
        }
        let start = self.bytes.iter().take_while(|bytes| bytes.end <= segment.start).count();
        let end = self.bytes.iter().take_while(|bytes| bytes.start < segment.end).count();
        Ok(start.min(end)..end)
    }
}

/// Bytes and place of each token of the second text.
fn second(encoding: &Encoding) -> impl Iterator<Item = (Range<usize>, usize)> {
    let tokens = encoding.get_sequence_ids().into_iter().zip(encoding.get_offsets());
    tokens.enumerate().filter_map(|(place, (sequence, &(start, end)))| {
        (sequence == Some(1) && start < end).then_some((start..end, place))
    })
}

impl TokenClassifier {
    /// Opens a checkpoint of a `…ForTokenClassification` of the supported architectures.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Classifier::open(dir, HeadKind::Tokens).map(Self)
    }

    /// Names of the labels, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.0.labels
    }

    /// Logits of the tokens of `response` in each `(prompt, response)`.
    pub fn logits(&self, pairs: &[(&str, &str)]) -> Result<Vec<TokenLogits>, String> {
        let Classifier { parts, head, .. } = &self.0;
        let encodings = parts.encode(pairs.iter().map(|&pair| EncodeInput::from(pair)))?;
        let rows = parts.run(&encodings, |states, _| head.forward(states)?.to_vec3::<f32>())?;
        let pick = |(encoding, row): (&Encoding, Vec<Vec<f32>>)| {
            let tokens = ResponseTokens::of(encoding);
            let logits = tokens.places.iter().filter_map(|&at| row.get(at).cloned()).collect();
            TokenLogits { tokens, logits }
        };
        Ok(encodings.iter().zip(rows).map(pick).collect())
    }
}
