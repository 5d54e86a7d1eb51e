//! Rewards that run a model: embedding cosine, sequence classifiers, span classifiers.

use super::{
    Range, Reward, RewardError, Sample, SpanScore,
    classifier::{SequenceClassifier, TokenClassifier, TokenLogits},
    embedding::{SentenceEncoder, cosine},
    segment::{sentences, sub_sentences},
};
use crate::data::{DataError, prompt::PromptTemplate};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::HashMap,
    ops::Range as Bytes,
    path::Path,
    sync::{Mutex, PoisonError},
};
use tokenizers::EncodeInput;

/// Cosine of the response's embedding with that of a field, or the best over the references.
pub struct EmbeddingCosine {
    name: String,
    encoder: SentenceEncoder,
    against: String,
    /// Embeddings of the targets so far: every epoch and every mix is compared with the same.
    targets: Mutex<HashMap<String, Vec<f32>>>,
}

/// Targets whose embeddings are kept (at most): 100 MB of 384 dimensions.
const TARGETS: usize = 1 << 16;

impl EmbeddingCosine {
    /// Opens the encoder; `against` is `references` or a field's name.
    pub fn open(name: &str, dir: &Path, against: String) -> Result<Self, RewardError> {
        let encoder = SentenceEncoder::open(dir)
            .map_err(|e| RewardError::Config { reward: name.into(), reason: e.to_string() })?;
        Ok(Self { name: name.into(), encoder, against, targets: Mutex::default() })
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
        let failed = |reason| RewardError::Failed { reward: self.name.clone(), reason };
        let mut wanted = Vec::with_capacity(samples.len());
        for (index, sample) in samples.iter().enumerate() {
            let targets = self.targets(sample);
            wanted.push(targets.map_err(|e| RewardError::sample(&self.name, index, sample, e))?);
        }
        let mut known = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<&str> = wanted.iter().flatten().copied().collect();
        missing.sort_unstable();
        missing.dedup();
        if known.len() + missing.len() > TARGETS {
            known.clear();
        }
        missing.retain(|target| !known.contains_key(*target));
        let embedded = self.encoder.embed(&missing).map_err(failed)?;
        known.extend(missing.into_iter().map(str::to_owned).zip(embedded));

        let responses: Vec<&str> = samples.iter().map(|s| s.response.as_str()).collect();
        let responses = self.encoder.embed(&responses).map_err(failed)?;
        let best = |(own, targets): (&Vec<f32>, &Vec<&str>)| {
            let each = targets.iter().filter_map(|target| Some(cosine(own, known.get(*target)?)));
            each.fold(f64::NEG_INFINITY, f64::max)
        };
        Ok(responses.iter().zip(&wanted).map(best).collect())
    }
    fn check(&self, sample: &Sample) -> Result<(), String> {
        self.targets(sample).map(drop)
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

/// Activation on a classifier's logits.
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

/// Text before the response in the model's input.
#[derive(Debug, Default)]
pub struct Before(Option<PromptTemplate>);

impl Before {
    /// The prompt, or a minijinja template over `prompt` and `fields`.
    pub fn new(template: Option<&str>) -> Result<Self, DataError> {
        template.map(PromptTemplate::new).transpose().map(Self)
    }

    /// The text before the response of a sample.
    pub fn text<'a>(&self, sample: &'a Sample) -> Result<Cow<'a, str>, String> {
        match &self.0 {
            None => Ok(sample.prompt.as_str().into()),
            Some(template) => Ok(template.around(&sample.prompt, &sample.fields)?.into()),
        }
    }

    /// The texts before the responses, or the first sample of `reward` that has none.
    fn texts<'a>(
        &self,
        reward: &str,
        samples: &'a [Sample],
    ) -> Result<Vec<Cow<'a, str>>, RewardError> {
        let text = |(index, sample): (usize, &'a Sample)| {
            self.text(sample).map_err(|e| RewardError::sample(reward, index, sample, e))
        };
        samples.iter().enumerate().map(text).collect()
    }
}

/// Input of a [`SequenceReward`]'s model.
pub enum Reads {
    /// Prompt and response, as a pair of texts.
    Both(Before),
    /// The response alone.
    Response,
}

/// A sequence classifier's score of `(prompt, response)`, or of the response alone.
pub struct SequenceReward {
    name: String,
    model: SequenceClassifier,
    label: usize,
    activation: Activation,
    reads: Reads,
}

impl SequenceReward {
    /// `label` may be left out for a model with one.
    pub fn new(
        name: &str,
        model: SequenceClassifier,
        label: Option<LabelName>,
        activation: Activation,
        reads: Reads,
    ) -> Result<Self, RewardError> {
        let label = match label {
            Some(label) => label.find(name, model.labels())?,
            None if model.labels().len() == 1 => 0,
            None => {
                let reason = format!("say which `label` of {:?} counts", model.labels());
                return Err(RewardError::Config { reward: name.into(), reason });
            }
        };
        Ok(Self { name: name.into(), model, label, activation, reads })
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
        let inputs: Vec<EncodeInput<'_>> = match &self.reads {
            Reads::Response => samples.iter().map(|s| s.response.as_str().into()).collect(),
            Reads::Both(before) => {
                let texts = before.texts(&self.name, samples)?.into_iter();
                texts.zip(samples).map(|(text, s)| (text, s.response.as_str()).into()).collect()
            }
        };
        let logits = self
            .model
            .logits(inputs)
            .map_err(|reason| RewardError::Failed { reward: self.name.clone(), reason })?;
        Ok(logits.iter().map(|row| self.activation.apply(row, self.label)).collect())
    }
    fn check(&self, sample: &Sample) -> Result<(), String> {
        match &self.reads {
            Reads::Response => Ok(()),
            Reads::Both(before) => before.text(sample).map(drop),
        }
    }
}

/// Segmentation of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentBy {
    /// A sentence.
    #[default]
    Sentence,
    /// A part of a sentence of at least five words.
    SubSentence,
    /// The whole response.
    Response,
}

impl SegmentBy {
    /// The segments of a response, as byte ranges in order.
    pub fn of(self, response: &str) -> Vec<Bytes<usize>> {
        match self {
            Self::Sentence => sentences(response),
            Self::SubSentence => sub_sentences(response, 5),
            Self::Response if response.trim().is_empty() => Vec::new(),
            Self::Response => std::iter::once(0..response.len()).collect(),
        }
    }
}

/// Tokens of a segment whose logits are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// The last token (FineGrainedRLHF).
    #[default]
    Last,
    /// The mean over all tokens, for encoders trained with mean pooling.
    Mean,
}

impl Reading {
    /// Mean over the read tokens of a segment, `[tokens][width]`; `None` without tokens.
    pub(super) fn of(self, rows: &[&[f32]]) -> Option<Vec<f32>> {
        let last = rows.last()?;
        if self == Self::Last {
            return Some(last.to_vec());
        }
        let mut mean = vec![0.0; last.len()];
        for row in rows {
            mean.iter_mut().zip(*row).for_each(|(sum, value)| *sum += value / rows.len() as f32);
        }
        Some(mean)
    }
}

/// Reward of a segment from a token classifier's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// `bad` where the error is the likeliest label, else `good` (FineGrainedRLHF).
    #[default]
    Likeliest,
    /// The mean of both by the error's probability p: `(1 − p)·good + p·bad`. It ranks segments even
    /// where the classifier is never sure.
    Expected,
}

impl Verdict {
    fn reward(self, logits: &[f32], error: usize, [good, bad]: [f64; 2]) -> Result<f64, String> {
        let own = *logits.get(error).ok_or("no logit of the error label")?;
        let wrong = match self {
            Self::Likeliest => {
                let mut others = logits.iter().enumerate().filter(|(i, _)| *i != error);
                f64::from(u8::from(others.all(|(_, other)| *other < own)))
            }
            Self::Expected => Activation::Softmax.apply(logits, error),
        };
        Ok(good + wrong * (bad - good))
    }
}

/// Settings of a [`SpanReward`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judge {
    /// Segmentation of the response.
    pub segment: SegmentBy,
    /// Tokens of a segment that are read.
    pub reading: Reading,
    /// Reward from the logits.
    pub verdict: Verdict,
    /// Reward of a segment without the error, and with it.
    pub rewards: [f64; 2],
}

/// A reward at the end of every segment, by a token classifier's logits.
pub struct SpanReward {
    name: String,
    model: TokenClassifier,
    before: Before,
    error: usize,
    judge: Judge,
}

impl SpanReward {
    /// A reward by the label `error` of `model`.
    pub fn new(
        name: &str,
        model: TokenClassifier,
        before: Before,
        error: &LabelName,
        judge: Judge,
    ) -> Result<Self, RewardError> {
        let error = error.find(name, model.labels())?;
        Ok(Self { name: name.into(), model, before, error, judge })
    }

    fn judge(&self, sample: &Sample, read: &TokenLogits) -> Result<Vec<SpanScore>, String> {
        let Judge { segment, reading, verdict, rewards } = self.judge;
        let logits: Vec<&[f32]> = read.logits.iter().map(Vec::as_slice).collect();
        let mut scores = Vec::new();
        for part in segment.of(&sample.response) {
            let own = logits.get(read.tokens.within(&part)?).unwrap_or_default();
            // Text that the tokenizer drops (such as control characters) gets no score.
            let Some(logits) = reading.of(own) else { continue };
            let score = verdict.reward(&logits, self.error, rewards)?;
            scores.push(SpanScore { end: part.end, score });
        }
        Ok(scores)
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
        let texts = self.before.texts(&self.name, samples)?;
        let pairs: Vec<(&str, &str)> =
            texts.iter().zip(samples).map(|(text, s)| (&**text, s.response.as_str())).collect();
        let logits = self
            .model
            .logits(&pairs)
            .map_err(|reason| RewardError::Failed { reward: self.name.clone(), reason })?;
        let judged = samples.iter().zip(&logits).enumerate().map(|(i, (sample, read))| {
            self.judge(sample, read).map_err(|e| RewardError::sample(&self.name, i, sample, e))
        });
        judged.collect()
    }
    fn check(&self, sample: &Sample) -> Result<(), String> {
        self.before.text(sample).map(drop)
    }
}
