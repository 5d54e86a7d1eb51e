//! The configuration of a reward.

use super::{
    citation::Measure,
    http::HttpConfig,
    labels::Gain,
    neural::{Activation, LabelName, Reading, SegmentBy, Verdict},
    pattern::Match,
    style::Brevity,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `kind` of a reward and its settings. Unknown kinds and keys are refused.
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
        /// Numbers that count.
        #[serde(default = "three")]
        k: usize,
    },
    /// NDCG of the ranked numbers by the grades in `fields.relevance`.
    Ndcg {
        /// Gain of a grade.
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
        /// Citations of a sentence that count.
        #[serde(default = "three")]
        most: usize,
    },
    /// Share of `fields.claims` that the response, citations left out, entails (ALCE's correctness of
    /// ELI5).
    ClaimRecall {
        /// Directory of a sequence classifier with a label `entailment`; without one, words are
        /// compared.
        #[serde(default)]
        nli: Option<PathBuf>,
        /// Share of a claim's content words that must stand in the response (without `nli`).
        #[serde(default = "word_share")]
        word_share: f64,
    },
    /// Brevity, saturating at 0 and 1.
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
        /// Where it must match.
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
        /// Activation on the logits.
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
        /// Segmentation of the response.
        #[serde(default)]
        segment: SegmentBy,
        /// Reward of a segment without the error.
        good: f64,
        /// Reward of a segment with it.
        bad: f64,
        /// Tokens of a segment that are read.
        #[serde(default)]
        reading: Reading,
        /// Reward from the logits.
        #[serde(default)]
        verdict: Verdict,
        /// minijinja template of what stands before the response, over `prompt` and `fields`; left
        /// out, the prompt.
        #[serde(default)]
        template: Option<String>,
    },
    /// Refused by name: it compares sets of texts (`train-backbones mauve`).
    Mauve {},
    /// The user's scorer.
    Http(HttpConfig),
}

fn three() -> usize {
    3
}
fn five() -> usize {
    5
}
/// Share of content words that stands for entailment (0.7: most of them).
pub(super) fn word_share() -> f64 {
    0.7
}

impl RewardSpec {
    /// The same with relative paths taken from `directory`.
    pub fn located(mut self, directory: &Path) -> Self {
        if let Some(path) = self.path_mut() {
            *path = directory.join(&path);
        }
        self
    }

    /// The model or lexicon that it reads.
    pub fn path(&self) -> Option<PathBuf> {
        self.clone().path_mut().cloned()
    }

    /// How to get a missing model or lexicon.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::EmbeddingCosine { .. } => {
                "a sentence encoder; `scripts/get-encoder DATA` gets all-minilm-l6-v2"
            }
            Self::SequenceClassifier { .. } | Self::SpanClassifier { .. } => {
                "a checkpoint with a head; `train-backbones reward` teaches one"
            }
            Self::Citation { .. } | Self::ClaimRecall { .. } => {
                "a sequence classifier with a label `entailment`"
            }
            _ => "a file of lines WORD<TAB>WEIGHT",
        }
    }

    fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::EmbeddingCosine { path, .. }
            | Self::SequenceClassifier { path, .. }
            | Self::SpanClassifier { path, .. } => Some(path),
            Self::Citation { nli, .. } | Self::ClaimRecall { nli, .. } => nli.as_mut(),
            Self::Sentiment { lexicon } => lexicon.as_mut(),
            _ => None,
        }
    }
}
