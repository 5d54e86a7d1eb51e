//! Style: brevity, readability and plain words.

use super::{
    Sample,
    segment::sentences,
    words::{is_plain, syllables, words},
};
use serde::{Deserialize, Serialize};

/// Score of brevity: 1 up to `full` words, 0 from `full + span` words, linear between;
/// 0 below `least` words and, with `finished`, for a response that was cut off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Brevity {
    /// Words up to which the score is 1.
    pub full: f64,
    /// Further words over which it falls to 0, > 0.
    pub span: f64,
    /// Fewer words than this score 0.
    pub least: usize,
    /// Whether a response that was cut off scores 0.
    pub finished: bool,
}

impl Default for Brevity {
    /// `1 − clamp((words − 8)/24, 0, 1)`, 0 below 5 words or without end of sequence. It
    /// saturates, so that optimisation does not shorten without bound.
    fn default() -> Self {
        Self { full: 8.0, span: 24.0, least: 5, finished: true }
    }
}

impl Brevity {
    /// The score, 0 to 1. Words are what white space separates.
    pub fn score(&self, sample: &Sample) -> f64 {
        let count = sample.response.split_whitespace().count();
        if count < self.least || (self.finished && !sample.finished) {
            return 0.0;
        }
        1.0 - ((count as f64 - self.full) / self.span).clamp(0.0, 1.0)
    }
}

/// Flesch reading ease, `206.835 − 1.015·words/sentences − 84.6·syllables/words`, clamped to
/// −100..121.22 (121.22: one-syllable sentences; a single endless word would be unbounded below).
/// Without words: −100.
pub fn flesch_reading_ease(text: &str) -> f64 {
    let (mut count, mut sounds) = (0usize, 0usize);
    for word in words(text) {
        count += 1;
        sounds += syllables(&word);
    }
    if count == 0 {
        return -100.0;
    }
    let stops = sentences(text).len().max(1);
    let (count, sounds, stops) = (count as f64, sounds as f64, stops as f64);
    (206.835 - 1.015 * count / stops - 84.6 * sounds / count).clamp(-100.0, 121.22)
}

/// Share of words that are everyday words ([`is_plain`]); 0 below `least` words, so that an
/// empty response does not score 1.
pub fn plain_words(text: &str, least: usize) -> f64 {
    let (mut count, mut plain) = (0usize, 0usize);
    for word in words(text) {
        count += 1;
        plain += usize::from(is_plain(&word));
    }
    if count < least.max(1) { 0.0 } else { plain as f64 / count as f64 }
}
