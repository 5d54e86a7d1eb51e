//! Rewards score responses. Each has a name, a unit and a range, scores a batch at once, and is chosen
//! by `kind` in the configuration.
//!
//! | kind | unit | range | looks at |
//! |---|---|---|---|
//! | `rouge-l`, `bleu-4` | F-measure, BLEU | 0..1 | references |
//! | `exact-match-recall` | share of answers | 0..1 | `fields.qa_pairs` or references |
//! | `accuracy`, `micro-f1` | share, F1 | 0..1 | `fields.label`, `fields.labels` |
//! | `hit-rate`, `ndcg` | share, gain | 0..1 | `fields.relevance` |
//! | `claim-recall` | share of claims | 0..1 | `fields.claims` |
//! | `citation` | precision, recall or F1 | 0..1 | `fields.docs` |
//! | `brevity`, `plain-words` | share | 0..1 | the response |
//! | `readability` | Flesch reading ease | clamped to −100..121.22 | the response |
//! | `sentiment` | balance of words | −1..1 | the response |
//! | `regex`, `json` | 0 or 1 | 0..1 | the response |
//! | `embedding-cosine` | cosine | −1..1 | a field or the references |
//! | `sequence-classifier` | logit or probability | by activation | prompt and response |
//! | `span-classifier` | reward per segment | by config | prompt and response |
//! | `http` | the scorer's own | by config | everything |

pub mod citation;
pub mod classifier;
mod decoder;
pub mod embedding;
mod encoder;
pub mod features;
pub mod fit;
mod gpt2;
mod head;
pub mod http;
pub mod labels;
mod layers;
mod network;
pub mod neural;
pub mod overlap;
pub mod pattern;
pub mod porter;
pub mod registry;
pub mod segment;
pub mod sentiment;
pub mod spec;
pub mod style;
pub mod words;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A response with all data that rewards use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The last turn of the user.
    pub prompt: String,
    /// The response as sampled, without special tokens. Never cleaned.
    pub response: String,
    /// Whether the response ended by itself (end of sequence), rather than at the length limit.
    pub finished: bool,
    /// Good responses.
    pub references: Vec<String>,
    /// The other data of the example.
    pub fields: Map<String, Value>,
    /// The rewards that judge it.
    #[serde(skip)]
    pub judges: Judges,
}

/// The rewards that judge a sample, by name: those of its type of task, or all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judges(Option<Arc<[String]>>);

impl Judges {
    /// These rewards; none given: all.
    pub fn of(names: Option<&[String]>) -> Self {
        Self(names.map(Arc::from))
    }

    /// Whether a reward is among them.
    pub fn include(&self, reward: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|name| name == reward))
    }
}

impl Sample {
    pub(crate) fn text(&self, field: &str) -> Result<&str, String> {
        match self.fields.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(format!("field `{field}` is not a text")),
            None => Err(format!("no field `{field}`")),
        }
    }

    /// The references; none is an error of the data.
    pub(crate) fn references(&self) -> Result<&[String], String> {
        if self.references.is_empty() { Err("no references".into()) } else { Ok(&self.references) }
    }
}

/// The scores that a reward can give; closed, may be infinite.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Lowest.
    pub low: f64,
    /// Highest.
    pub high: f64,
}

impl Range {
    /// 0..1.
    pub const UNIT: Self = Self { low: 0.0, high: 1.0 };
    /// −1..1.
    pub const SIGNED: Self = Self { low: -1.0, high: 1.0 };
    /// All finite numbers.
    pub const ANY: Self = Self { low: f64::NEG_INFINITY, high: f64::INFINITY };
}

/// A score for the part of a response that ends at a byte.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpanScore {
    /// One past the last byte of the part.
    pub end: usize,
    /// Its reward.
    pub score: f64,
}

pub trait Reward: Send + Sync {
    /// Name in the config, the log and the soup.
    fn name(&self) -> &str;
    /// Unit of the score.
    fn unit(&self) -> &str;
    /// The scores it can give.
    fn range(&self) -> Range;
    /// One score a sample, in order.
    fn score(&self, samples: &[Sample]) -> Result<Vec<f64>, RewardError>;

    /// Whether a sample has the data that the reward reads beside the response; says what is missing.
    fn check(&self, _sample: &Sample) -> Result<(), String> {
        Ok(())
    }

    /// Scores at the ends of the parts that they score, for dense rewards. Their sum is the
    /// sample's [`Reward::score`]. By default one, at the end of the response.
    fn spans(&self, samples: &[Sample]) -> Result<Vec<Vec<SpanScore>>, RewardError> {
        let whole =
            |(sample, score): (&Sample, f64)| vec![SpanScore { end: sample.response.len(), score }];
        Ok(samples.iter().zip(self.score(samples)?).map(whole).collect())
    }
}

/// Why a batch could not be scored. An error names the sample and stops the run.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// One sample cannot be scored.
    #[error("reward `{reward}` on sample {index} (response {response:?}): {reason}")]
    Sample {
        /// Name of the reward.
        reward: String,
        /// Index in the batch.
        index: usize,
        /// The start of the response.
        response: String,
        reason: String,
    },
    /// The reward gave too many or too few scores.
    #[error("reward `{reward}` gave {got} scores for {expected} samples")]
    Count {
        /// Name of the reward.
        reward: String,
        /// Samples.
        expected: usize,
        /// Scores.
        got: usize,
    },
    /// The reward itself failed: its model or its server.
    #[error("reward `{reward}`: {reason}")]
    Failed {
        /// Name of the reward.
        reward: String,
        reason: String,
    },
    /// The reward cannot be set up as configured.
    #[error("reward `{reward}`: {reason}")]
    Config {
        /// Name of the reward.
        reward: String,
        /// What is wrong with its settings.
        reason: String,
    },
}

impl RewardError {
    fn sample(reward: &str, index: usize, sample: &Sample, reason: impl Into<String>) -> Self {
        let response = sample.response.chars().take(200).collect();
        Self::Sample { reward: reward.into(), index, response, reason: reason.into() }
    }
}

/// A reward of each sample on its own.
struct PerSample<F> {
    name: String,
    unit: &'static str,
    range: Range,
    judge: F,
}

impl<F: Fn(&Sample) -> Result<f64, String> + Send + Sync> Reward for PerSample<F> {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> &str {
        self.unit
    }
    fn range(&self) -> Range {
        self.range
    }
    fn score(&self, samples: &[Sample]) -> Result<Vec<f64>, RewardError> {
        let judge = |(i, sample): (usize, &Sample)| {
            (self.judge)(sample).map_err(|e| RewardError::sample(&self.name, i, sample, e))
        };
        samples.iter().enumerate().map(judge).collect()
    }
    fn check(&self, sample: &Sample) -> Result<(), String> {
        (self.judge)(&Sample { response: String::new(), ..sample.clone() }).map(drop)
    }
}

/// The rewards of a run, in the order of its objectives; their scores are checked.
pub struct RewardSet {
    rewards: Vec<Box<dyn Reward>>,
}

impl RewardSet {
    /// A set of rewards.
    pub fn new(rewards: Vec<Box<dyn Reward>>) -> Self {
        Self { rewards }
    }

    /// The rewards, in order.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Reward> {
        self.rewards.iter().map(AsRef::as_ref)
    }

    /// Whether the rewards that judge a sample find what they read beside the response; says which does
    /// not.
    pub fn check(&self, sample: &Sample) -> Result<(), String> {
        let mut judging = self.iter().filter(|reward| sample.judges.include(reward.name()));
        judging.try_for_each(|reward| {
            reward.check(sample).map_err(|reason| format!("reward `{}`: {reason}", reward.name()))
        })
    }

    /// `[reward][sample]`, none where the reward does not judge the sample. A missing, surplus or
    /// non-finite score is an error naming the sample.
    pub fn score(&self, samples: &[Sample]) -> Result<Vec<Vec<Option<f64>>>, RewardError> {
        self.iter().map(|reward| of_judged(reward, samples, checked_scores)).collect()
    }

    /// `[reward][sample][span]`, checked the same way; ends lie within the response.
    pub fn spans(
        &self,
        samples: &[Sample],
    ) -> Result<Vec<Vec<Option<Vec<SpanScore>>>>, RewardError> {
        self.iter().map(|reward| of_judged(reward, samples, checked_spans)).collect()
    }
}

/// Results of `judge` on the samples that the reward judges; `None` for the others.
fn of_judged<T>(
    reward: &dyn Reward,
    samples: &[Sample],
    judge: fn(&dyn Reward, &[Sample]) -> Result<Vec<T>, RewardError>,
) -> Result<Vec<Option<T>>, RewardError> {
    let judged = |index: &usize| samples[*index].judges.include(reward.name());
    let own: Vec<usize> = (0..samples.len()).filter(judged).collect();
    if own.len() == samples.len() {
        return Ok(judge(reward, samples)?.into_iter().map(Some).collect());
    }
    let mut found: Vec<Option<T>> = samples.iter().map(|_| None).collect();
    if own.is_empty() {
        return Ok(found);
    }
    let chosen: Vec<Sample> = own.iter().map(|&index| samples[index].clone()).collect();
    for (index, said) in own.into_iter().zip(judge(reward, &chosen)?) {
        found[index] = Some(said);
    }
    Ok(found)
}

fn checked_scores(reward: &dyn Reward, samples: &[Sample]) -> Result<Vec<f64>, RewardError> {
    let scores = reward.score(samples)?;
    same_count(reward, samples.len(), scores.len())?;
    for (index, (sample, score)) in samples.iter().zip(&scores).enumerate() {
        finite(reward, index, sample, *score)?;
    }
    Ok(scores)
}

fn checked_spans(
    reward: &dyn Reward,
    samples: &[Sample],
) -> Result<Vec<Vec<SpanScore>>, RewardError> {
    let spans = reward.spans(samples)?;
    same_count(reward, samples.len(), spans.len())?;
    for (index, (sample, spans)) in samples.iter().zip(&spans).enumerate() {
        for span in spans {
            finite(reward, index, sample, span.score)?;
            if span.end > sample.response.len() {
                let length = sample.response.len();
                let reason = format!("a span ends at byte {} of {length}", span.end);
                return Err(RewardError::sample(reward.name(), index, sample, reason));
            }
        }
    }
    Ok(spans)
}

fn same_count(reward: &dyn Reward, expected: usize, got: usize) -> Result<(), RewardError> {
    if expected == got {
        Ok(())
    } else {
        Err(RewardError::Count { reward: reward.name().into(), expected, got })
    }
}

fn finite(
    reward: &dyn Reward,
    index: usize,
    sample: &Sample,
    score: f64,
) -> Result<(), RewardError> {
    if score.is_finite() {
        Ok(())
    } else {
        Err(RewardError::sample(reward.name(), index, sample, format!("the score is {score}")))
    }
}
