//! Rewards that run a model: embedding cosine, sequence classifiers, span classifiers.

use super::{
    Range, Reward, RewardError, Sample, SpanScore,
    classifier::{SequenceClassifier, TokenClassifier, TokenLogits},
    embedding::{SentenceEncoder, cosine},
    segment::{sentences, sub_sentences},
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tokenizers::EncodeInput;

/// Cosine of the response's embedding with that of a field, or the best over the references.
pub struct EmbeddingCosine {
    name: String,
    encoder: SentenceEncoder,
    against: String,
}

impl EmbeddingCosine {
    /// Opens the encoder; `against` is `references` or a field's name.
    pub fn open(name: &str, dir: &Path, against: String) -> Result<Self, RewardError> {
        let encoder = SentenceEncoder::open(dir)
            .map_err(|e| RewardError::Config { reward: name.into(), reason: e.to_string() })?;
        Ok(Self { name: name.into(), encoder, against })
    }

    fn targets<'a>(&self, sample: &'a Sample) -> Result<Vec<&'a str>, String> {
        match self.against.as_str() {
            "references" => Ok(sample.references()?.iter().map(String::as_str).collect()),
            field => Ok(vec![sample.text(field)?]),
        }
    }
}

impl Reward for EmbeddingCosine {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> &str {
        "cosine"
    }
    fn range(&self) -> Range {
        Range::SIGNED
    }
    fn score(&self, samples: &[Sample]) -> Result<Vec<f64>, RewardError> {
        let mut texts: Vec<&str> = samples.iter().map(|s| s.response.as_str()).collect();
        // Samples of one prompt share its target: it is embedded once.
        let mut place = std::collections::HashMap::new();
        let mut wanted = Vec::with_capacity(samples.len());
        for (index, sample) in samples.iter().enumerate() {
            let targets = self.targets(sample);
            let targets = targets.map_err(|e| RewardError::sample(&self.name, index, sample, e))?;
            let places = targets.into_iter().map(|target| {
                *place.entry(target).or_insert_with(|| {
                    texts.push(target);
                    texts.len() - 1
                })
            });
            wanted.push(places.collect::<Vec<usize>>());
        }
        let vectors = self
            .encoder
            .embed(&texts)
            .map_err(|reason| RewardError::Failed { reward: self.name.clone(), reason })?;
        let best = |(own, targets): (&Vec<f32>, &Vec<usize>)| {
            let each = targets.iter().filter_map(|&at| Some(cosine(own, vectors.get(at)?)));
            each.fold(f64::NEG_INFINITY, f64::max)
        };
        Ok(vectors.iter().zip(&wanted).map(best).collect())
    }
}

/// A label of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelName {
    /// By its place in the logits.
    Index(usize),
    /// By its name in `id2label`.
    Name(String),
}

impl LabelName {
    fn find(&self, reward: &str, labels: &[String]) -> Result<usize, RewardError> {
        let found = match self {
            Self::Index(index) => (*index < labels.len()).then_some(*index),
            Self::Name(name) => labels.iter().position(|l| l == name),
        };
        found.ok_or_else(|| RewardError::Config {
            reward: reward.into(),
            reason: format!("no label {self:?}; the checkpoint has {labels:?}"),
        })
    }
}

/// What is done to a classifier's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// The label's logit as it is (Bradley–Terry rewards).
    #[default]
    None,
    /// `1/(1 + e^−x)` of the label's logit.
    Sigmoid,
    /// The label's probability among all.
    Softmax,
}

impl Activation {
    fn apply(self, logits: &[f32], label: usize) -> f64 {
        let Some(&own) = logits.get(label) else { return f64::NAN };
        match self {
            Self::None => f64::from(own),
            Self::Sigmoid => 1.0 / (1.0 + (-f64::from(own)).exp()),
            Self::Softmax => {
                let others = logits.iter().map(|&l| (f64::from(l) - f64::from(own)).exp());
                1.0 / others.sum::<f64>()
            }
        }
    }
}

/// A sequence classifier's score of `(prompt, response)`, or of the response alone.
pub struct SequenceReward {
    name: String,
    model: SequenceClassifier,
    label: usize,
    activation: Activation,
    response_only: bool,
}

impl SequenceReward {
    /// `label` may be left out for a model with one.
    pub fn new(
        name: &str,
        model: SequenceClassifier,
        label: Option<LabelName>,
        activation: Activation,
        response_only: bool,
    ) -> Result<Self, RewardError> {
        let label = match label {
            Some(label) => label.find(name, model.labels())?,
            None if model.labels().len() == 1 => 0,
            None => {
                let reason = format!("say which `label` of {:?} counts", model.labels());
                return Err(RewardError::Config { reward: name.into(), reason });
            }
        };
        Ok(Self { name: name.into(), model, label, activation, response_only })
    }
}

impl Reward for SequenceReward {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> &str {
        if self.activation == Activation::None { "logit" } else { "probability" }
    }
    fn range(&self) -> Range {
        if self.activation == Activation::None { Range::ANY } else { Range::UNIT }
    }
    fn score(&self, samples: &[Sample]) -> Result<Vec<f64>, RewardError> {
        let inputs = samples.iter().map(|s| -> EncodeInput<'_> {
            if self.response_only {
                s.response.as_str().into()
            } else {
                (s.prompt.as_str(), s.response.as_str()).into()
            }
        });
        let logits = self
            .model
            .logits(inputs)
            .map_err(|reason| RewardError::Failed { reward: self.name.clone(), reason })?;
        Ok(logits.iter().map(|row| self.activation.apply(row, self.label)).collect())
    }
}

/// What a segment of a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentBy {
    /// A sentence.
    #[default]
    Sentence,
    /// A part of a sentence of at least five words.
    SubSentence,
    /// All of it.
    Response,
}

impl SegmentBy {
    fn ends(self, response: &str) -> Vec<usize> {
        let ranges = match self {
            Self::Sentence => sentences(response),
            Self::SubSentence => sub_sentences(response, 5),
            Self::Response if response.trim().is_empty() => Vec::new(),
            Self::Response => return vec![response.len()],
        };
        ranges.into_iter().map(|range| range.end).collect()
    }
}

/// A reward at the end of every segment: `good`, or `bad` where the token classifier's likeliest
/// label of the segment's last token is the error.
pub struct SpanReward {
    name: String,
    model: TokenClassifier,
    error: usize,
    segment: SegmentBy,
    good: f64,
    bad: f64,
}

impl SpanReward {
    /// `rewards` is `[good, bad]`.
    pub fn new(
        name: &str,
        model: TokenClassifier,
        error: &LabelName,
        segment: SegmentBy,
        rewards: [f64; 2],
    ) -> Result<Self, RewardError> {
        let error = error.find(name, model.labels())?;
        let [good, bad] = rewards;
        Ok(Self { name: name.into(), model, error, segment, good, bad })
    }

    fn judge(&self, sample: &Sample, tokens: &TokenLogits) -> Result<Vec<SpanScore>, String> {
        let last_token = |end: usize| tokens.bytes.iter().rposition(|bytes| bytes.start < end);
        let covered = tokens.bytes.last().map_or(0, |bytes| bytes.end);
        let score = |end: usize| {
            // Beyond what the model could read there is nothing to judge.
            let at =
                last_token(end).filter(|_| end <= covered || self.segment == SegmentBy::Response);
            let logits = at.and_then(|at| tokens.logits.get(at)).ok_or_else(|| {
                format!("the segment that ends at byte {end} is past the model's {covered} bytes")
            })?;
            let own = logits.get(self.error).ok_or("no logit of the error label")?;
            let likeliest = logits.iter().enumerate().all(|(i, l)| i == self.error || l < own);
            let score = if likeliest { self.bad } else { self.good };
            Ok(SpanScore { end, score })
        };
        self.segment.ends(&sample.response).into_iter().map(score).collect()
    }
}

impl Reward for SpanReward {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> &str {
        "reward per segment"
    }
    fn range(&self) -> Range {
        Range::ANY
    }
    fn score(&self, samples: &[Sample]) -> Result<Vec<f64>, RewardError> {
        let sum = |spans: Vec<SpanScore>| spans.iter().map(|s| s.score).sum();
        Ok(self.spans(samples)?.into_iter().map(sum).collect())
    }
    fn spans(&self, samples: &[Sample]) -> Result<Vec<Vec<SpanScore>>, RewardError> {
        let pairs: Vec<_> =
            samples.iter().map(|s| (s.prompt.as_str(), s.response.as_str())).collect();
        let logits = self
            .model
            .logits(&pairs)
            .map_err(|reason| RewardError::Failed { reward: self.name.clone(), reason })?;
        let judged = samples.iter().zip(&logits).enumerate().map(|(i, (sample, tokens))| {
            self.judge(sample, tokens).map_err(|e| RewardError::sample(&self.name, i, sample, e))
        });
        judged.collect()
    }
}
