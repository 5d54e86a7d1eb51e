//! The registry: a reward's settings, as they stand in the config, to the reward.

use super::{
    PerSample, Range, Reward, RewardError, Sample,
    citation::{Measure, judge, words_entail},
    classifier::{SequenceClassifier, TokenClassifier},
    http::{HttpConfig, HttpReward},
    labels::{Confusion, Gain, accuracy, hit_rate, listed, listed_numbers, ndcg},
    neural::{
        Activation, Before, EmbeddingCosine, Judge, LabelName, Reading, Reads, SegmentBy,
        SequenceReward, SpanReward, Verdict,
    },
    overlap::{bleu_4, exact_match_recall, rouge_l},
    pattern::{self, Match},
    sentiment::Lexicon,
    style::{Brevity, flesch_reading_ease, plain_words},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a reward is: `kind` and its settings. Unknown kinds and keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RewardSpec {
    /// ROUGE-L F-measure, the best over the references.
    RougeL {
        /// Porter-stem the words.
        #[serde(default)]
        stem: bool,
    },
    /// Sentence BLEU-4 against the references, 0 to 1.
    #[serde(rename = "bleu-4")]
    Bleu4 {
        /// Compare in lower case.
        #[serde(default)]
        lowercase: bool,
    },
    /// Share of questions answered in the response: `fields.qa_pairs` (ALCE), else each reference
    /// is one accepted answer of its own.
    ExactMatchRecall {},
    /// Whether the response starts with `fields.label`.
    Accuracy {},
    /// F1 of comma-separated labels against `fields.labels`.
    #[serde(rename = "micro-f1")]
    MicroF1 {},
    /// Share of `fields.relevance` (item numbers) among the first k numbers.
    HitRate {
        /// How many answers count.
        #[serde(default = "three")]
        k: usize,
    },
    /// NDCG of the ranked numbers by the grades in `fields.relevance`.
    Ndcg {
        /// How grades become gains.
        #[serde(default)]
        gain: Gain,
    },
    /// Citation quality against `fields.docs`.
    Citation {
        /// Precision, recall or F1.
        #[serde(default)]
        measure: Measure,
        /// Directory of a sequence classifier with a label `entailment`; without one, words are
        /// compared.
        #[serde(default)]
        nli: Option<PathBuf>,
        /// Share of a sentence's content words that must stand in the documents (without `nli`).
        #[serde(default = "word_share")]
        word_share: f64,
        /// Citations of a sentence that are looked at.
        #[serde(default = "three")]
        most: usize,
    },
    /// Shortness that saturates.
    Brevity(Brevity),
    /// Flesch reading ease.
    Readability {},
    /// Share of everyday words.
    PlainWords {
        /// Fewer words than this score 0.
        #[serde(default = "five")]
        least: usize,
    },
    /// Balance of positive and negative words.
    Sentiment {
        /// A lexicon of `word<TAB>weight` lines instead of the built-in one.
        #[serde(default)]
        lexicon: Option<PathBuf>,
    },
    /// 1 when a regular expression holds, else 0.
    Regex {
        /// The expression.
        pattern: String,
        /// How it must hold.
        #[serde(default, rename = "match")]
        how: Match,
    },
    /// 1 for valid JSON, else 0.
    Json {
        /// Keys that an object must have.
        #[serde(default)]
        keys: Vec<String>,
    },
    /// Cosine of sentence embeddings.
    EmbeddingCosine {
        /// Directory of the sentence encoder.
        path: PathBuf,
        /// `references` (the best of them) or the name of a field.
        against: String,
    },
    /// A logit, probability or margin of a sequence classifier.
    SequenceClassifier {
        /// Directory of the checkpoint.
        path: PathBuf,
        /// Label to read: a name or an index; the only one of a reward model with one.
        #[serde(default)]
        label: Option<LabelName>,
        /// What is done to the logits.
        #[serde(default)]
        activation: Activation,
        /// Judge the response alone, without the prompt.
        #[serde(default)]
        response_only: bool,
        /// minijinja template of what stands before the response, over `prompt` and `fields`; left
        /// out, the prompt.
        #[serde(default)]
        template: Option<String>,
    },
    /// Rewards at the ends of segments, by a token classifier.
    SpanClassifier {
        /// Directory of the checkpoint.
        path: PathBuf,
        /// Label that marks an error: a name or an index.
        error: LabelName,
        /// What a segment is.
        #[serde(default)]
        segment: SegmentBy,
        /// Reward of a segment without the error.
        good: f64,
        /// Reward of a segment with it.
        bad: f64,
        /// Which tokens of a segment are read.
        #[serde(default)]
        reading: Reading,
        /// How logits become a reward.
        #[serde(default)]
        verdict: Verdict,
        /// minijinja template of what stands before the response, over `prompt` and `fields`; left
        /// out, the prompt.
        #[serde(default)]
        template: Option<String>,
    },
    /// A scorer of one's own.
    Http(HttpConfig),
}

fn three() -> usize {
    3
}
fn five() -> usize {
    5
}
fn word_share() -> f64 {
    0.7
}

impl RewardSpec {
    /// The same with relative paths taken from `directory`.
    pub fn located(mut self, directory: &Path) -> Self {
        let path = match &mut self {
            Self::EmbeddingCosine { path, .. }
            | Self::SequenceClassifier { path, .. }
            | Self::SpanClassifier { path, .. } => Some(path),
            Self::Citation { nli, .. } => nli.as_mut(),
            Self::Sentiment { lexicon } => lexicon.as_mut(),
            _ => None,
        };
        if let Some(path) = path {
            *path = directory.join(&path);
        }
        self
    }

    /// Makes the reward: reads models and lexicons, compiles patterns, sends nothing.
    pub fn build(&self, name: &str) -> Result<Box<dyn Reward>, RewardError> {
        let wrong = |reason: String| RewardError::Config { reward: name.into(), reason };
        let before = |template: Option<String>| {
            Before::new(template.as_deref()).map_err(|e| wrong(e.to_string()))
        };
        Ok(match self.clone() {
            Self::RougeL { stem } => per_sample(name, "ROUGE-L F", Range::UNIT, move |s| {
                let each = s.references()?.iter().map(|r| rouge_l(&s.response, r, stem));
                Ok(each.fold(0.0, f64::max))
            }),
            Self::Bleu4 { lowercase } => per_sample(name, "BLEU-4", Range::UNIT, move |s| {
                Ok(bleu_4(&s.response, s.references()?, lowercase))
            }),
            Self::ExactMatchRecall {} => per_sample(name, "share of answers", Range::UNIT, |s| {
                Ok(exact_match_recall(&s.response, &accepted_answers(s)?))
            }),
            Self::Accuracy {} => per_sample(name, "share right", Range::UNIT, |s| {
                Ok(accuracy(&s.response, s.text("label")?))
            }),
            Self::MicroF1 {} => per_sample(name, "F1", Range::UNIT, |s| {
                let right: Vec<String> = list(s, "labels", |v| v.as_str().map(str::to_string))?;
                Ok(Confusion::of(&listed(&s.response), &right).f1())
            }),
            Self::HitRate { k } => per_sample(name, "share found", Range::UNIT, move |s| {
                let right = list(s, "relevance", |v| v.as_u64().map(|n| n as usize))?;
                Ok(hit_rate(&listed_numbers(&s.response), &right, k))
            }),
            Self::Ndcg { gain } => per_sample(name, "NDCG", Range::UNIT, move |s| {
                let grades = list(s, "relevance", Value::as_f64)?;
                Ok(ndcg(&listed_numbers(&s.response), &grades, gain))
            }),
            Self::Citation { measure, nli, word_share, most } => {
                let nli = nli.map(|path| SequenceClassifier::open(&path)).transpose();
                let nli = nli.map_err(|e| wrong(e.to_string()))?;
                let entailment = match &nli {
                    Some(model) => Some(
                        entailment_label(model.labels())
                            .ok_or_else(|| wrong("the model has no label `entailment`".into()))?,
                    ),
                    None => None,
                };
                per_sample(name, "share", Range::UNIT, move |s| {
                    let documents = list(s, "docs", |v| v.as_str().map(str::to_string))?;
                    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
                    let score = judge(&s.response, &documents, most, |premise, claim| {
                        match (&nli, entailment) {
                            (Some(model), Some(label)) => entails(model, label, premise, claim),
                            _ => Ok(words_entail(premise, claim, word_share)),
                        }
                    })?;
                    Ok(score.of(measure))
                })
            }
            Self::Brevity(brevity) => {
                if !(brevity.span > 0.0 && brevity.full.is_finite()) {
                    let Brevity { full, span, .. } = brevity;
                    return Err(wrong(format!(
                        "full is {full} and span {span}, expected a finite full and a span > 0"
                    )));
                }
                per_sample(name, "share of brevity", Range::UNIT, move |s| Ok(brevity.score(s)))
            }
            Self::Readability {} => {
                let range = Range { low: -100.0, high: 121.22 };
                per_sample(name, "Flesch points", range, |s| Ok(flesch_reading_ease(&s.response)))
            }
            Self::PlainWords { least } => {
                per_sample(name, "share of everyday words", Range::UNIT, move |s| {
                    Ok(plain_words(&s.response, least))
                })
            }
            Self::Sentiment { lexicon } => {
                let own = lexicon.map(|path| Lexicon::read(&path)).transpose().map_err(wrong)?;
                per_sample(name, "balance", Range::SIGNED, move |s| {
                    Ok(own.as_ref().unwrap_or(Lexicon::built_in()).score(&s.response))
                })
            }
            Self::Regex { pattern, how } => {
                let regex = pattern::compile(&pattern, how).map_err(|e| wrong(e.to_string()))?;
                per_sample(name, "0 or 1", Range::UNIT, move |s| {
                    Ok(pattern::matches(&regex, how, &s.response))
                })
            }
            Self::Json { keys } => per_sample(name, "0 or 1", Range::UNIT, move |s| {
                Ok(pattern::valid_json(&s.response, &keys))
            }),
            Self::EmbeddingCosine { path, against } => {
                Box::new(EmbeddingCosine::open(name, &path, against)?)
            }
            Self::SequenceClassifier { path, label, activation, response_only, template } => {
                let reads = match response_only {
                    true if template.is_some() => {
                        return Err(wrong("`template` has no use with `response_only`".into()));
                    }
                    true => Reads::Response,
                    false => Reads::Both(before(template)?),
                };
                let model = SequenceClassifier::open(&path).map_err(|e| wrong(e.to_string()))?;
                Box::new(SequenceReward::new(name, model, label, activation, reads)?)
            }
            Self::SpanClassifier {
                path,
                error,
                segment,
                good,
                bad,
                reading,
                verdict,
                template,
            } => {
                if !(good.is_finite() && bad.is_finite()) {
                    let reason = format!("good is {good} and bad {bad}, expected finite numbers");
                    return Err(wrong(reason));
                }
                let (before, rewards) = (before(template)?, [good, bad]);
                let judge = Judge { segment, reading, verdict, rewards };
                let model = TokenClassifier::open(&path).map_err(|e| wrong(e.to_string()))?;
                Box::new(SpanReward::new(name, model, before, &error, judge)?)
            }
            Self::Http(config) => Box::new(HttpReward::new(name.into(), config)?),
        })
    }
}

fn per_sample(
    name: &str,
    unit: &'static str,
    range: Range,
    judge: impl Fn(&Sample) -> Result<f64, String> + Send + Sync + 'static,
) -> Box<dyn Reward> {
    Box::new(PerSample { name: name.into(), unit, range, judge })
}

/// A field that is a list of one type.
fn list<T>(
    sample: &Sample,
    field: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, String> {
    let value = sample.fields.get(field).ok_or_else(|| format!("no field `{field}`"))?;
    let items = value.as_array().ok_or_else(|| format!("field `{field}` is not a list"))?;
    let wrong = |item: &Value| format!("field `{field}` holds {item}");
    items.iter().map(|item| read(item).ok_or_else(|| wrong(item))).collect()
}

/// Accepted answers of every question: `fields.qa_pairs[].short_answers`, else the references.
fn accepted_answers(sample: &Sample) -> Result<Vec<Vec<String>>, String> {
    if !sample.fields.contains_key("qa_pairs") {
        return Ok(sample.references()?.iter().map(|r| vec![r.clone()]).collect());
    }
    list(sample, "qa_pairs", |pair| {
        let answers = pair.get("short_answers")?.as_array()?;
        answers.iter().map(|a| a.as_str().map(str::to_string)).collect()
    })
}

fn entailment_label(labels: &[String]) -> Option<usize> {
    labels.iter().position(|label| label.eq_ignore_ascii_case("entailment"))
}

/// Whether entailment is the likeliest label.
fn entails(
    model: &SequenceClassifier,
    label: usize,
    premise: &str,
    claim: &str,
) -> Result<bool, String> {
    let logits = model.logits([(premise, claim).into()])?;
    let logits = logits.first().map(Vec::as_slice).unwrap_or_default();
    let own = logits.get(label).ok_or("no logit for `entailment`")?;
    Ok(logits.iter().all(|other| other <= own))
}
