//! Citations (ALCE, Gao et al. 2023 §4): whether statements are supported by the documents that
//! they cite, and whether every citation is needed.

use super::{segment::sentences, words::words};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::{collections::HashSet, sync::LazyLock};

/// Which number of a [`CitationScore`] is the reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Share of citations that are needed and support.
    Precision,
    /// Share of sentences that their citations support.
    Recall,
    /// Harmonic mean of both.
    #[default]
    F1,
}

/// Citation quality of one response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CitationScore {
    /// Share of citations that are needed and support; 0 without citations.
    pub precision: f64,
    /// Share of sentences that their citations support; 0 without sentences.
    pub recall: f64,
}

impl CitationScore {
    /// The number asked for.
    pub fn of(self, measure: Measure) -> f64 {
        let Self { precision, recall } = self;
        match measure {
            Measure::Precision => precision,
            Measure::Recall => recall,
            Measure::F1 if precision + recall > 0.0 => {
                2.0 * precision * recall / (precision + recall)
            }
            Measure::F1 => 0.0,
        }
    }
}

/// Numbers cited as `[n]`, from 1, in order.
fn cited(sentence: &str) -> Vec<usize> {
    static MARK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\[(\d+)").expect("constant pattern"));
    MARK.captures_iter(sentence).filter_map(|c| c.get(1)?.as_str().parse().ok()).collect()
}

/// The sentence without its citation marks.
fn uncited(sentence: &str) -> String {
    static MARK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r" ?\[\d+").expect("constant pattern"));
    MARK.replace_all(sentence, "").replace(" |", "").replace(']', "").trim().to_string()
}

/// Judges a response that cites `documents` (1-based). `entails(premise, hypothesis)` returns
/// whether the premise supports the hypothesis.
///
/// A sentence counts for recall when its documents together entail it; one that cites nothing, or a
/// document that does not exist, does not. A citation of a supported sentence counts for precision
/// unless it does not support alone and the others support without it. At most `most` citations of
/// a sentence count.
pub fn judge(
    response: &str,
    documents: &[&str],
    most: usize,
    entails: impl Fn(&str, &str) -> Result<bool, String>,
) -> Result<CitationScore, String> {
    let (mut statements, mut supported) = (0usize, 0usize);
    let (mut citations, mut needed) = (0usize, 0usize);
    for range in sentences(response) {
        let Some(sentence) = response.get(range) else { continue };
        statements += 1;
        let numbers = cited(sentence);
        let found: Option<Vec<&str>> =
            numbers.iter().map(|n| documents.get(n.checked_sub(1)?).copied()).collect();
        let Some(mut passages) = found.filter(|p| !p.is_empty()) else { continue };
        passages.truncate(most);
        citations += passages.len();
        let claim = uncited(sentence);
        if !entails(&passages.join("\n"), &claim)? {
            continue;
        }
        supported += 1;
        for (at, passage) in passages.iter().enumerate() {
            let others: Vec<&str> =
                passages.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, p)| *p).collect();
            let superfluous = !others.is_empty()
                && !entails(passage, &claim)?
                && entails(&others.join("\n"), &claim)?;
            needed += usize::from(!superfluous);
        }
    }
    let share = |part: usize, all: usize| if all == 0 { 0.0 } else { part as f64 / all as f64 };
    Ok(CitationScore { precision: share(needed, citations), recall: share(supported, statements) })
}

/// Share of the claims that the response, without its citation marks, entails.
pub fn claim_recall(
    response: &str,
    claims: &[String],
    entails: impl Fn(&str, &str) -> Result<bool, String>,
) -> Result<f64, String> {
    if claims.is_empty() {
        return Err("field `claims` is empty".into());
    }
    let premise = uncited(response);
    // Nothing follows from nothing.
    if premise.is_empty() {
        return Ok(0.0);
    }
    let mut entailed = 0usize;
    for claim in claims {
        entailed += usize::from(entails(&premise, claim)?);
    }
    Ok(entailed as f64 / claims.len() as f64)
}

/// A heuristic instead of an entailment model: at least `share` of the hypothesis's words of four letters
/// or more occur in the premise. It compares words, not meaning.
pub fn words_entail(premise: &str, hypothesis: &str, share: f64) -> bool {
    let premise: HashSet<String> = words(premise).collect();
    let content: Vec<String> = words(hypothesis).filter(|w| w.chars().count() >= 4).collect();
    let found = content.iter().filter(|w| premise.contains(*w)).count();
    !content.is_empty() && found as f64 >= share * content.len() as f64
}
