//! Labels, retrieval and ranking: accuracy, micro-F1, hit rate and NDCG.

use crate::data::shopping::label;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;

/// Whether the response, trimmed and in any case, starts with `label` as a whole word.
pub fn accuracy(response: &str, label: &str) -> f64 {
    let (response, label) = (response.trim().to_lowercase(), label.trim().to_lowercase());
    let after = response.strip_prefix(&label).filter(|_| !label.is_empty());
    let whole = after.is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
    f64::from(u8::from(whole))
}

/// The items of a comma-separated answer on the first filled line: trimmed, lower case, distinct.
pub fn listed(response: &str) -> Vec<String> {
    let line = response.lines().find(|l| !l.trim().is_empty()).unwrap_or("");
    let mut seen = HashSet::new();
    let items = line.split(',').map(|item| item.trim().to_lowercase());
    items.filter(|item| !item.is_empty() && seen.insert(item.clone())).collect()
}

/// The whole numbers among [`listed`] items.
pub fn listed_numbers(response: &str) -> Vec<usize> {
    listed(response).iter().filter_map(|item| item.parse().ok()).collect()
}

/// The numbers, from 1, of the [`listed`] items among `names`.
pub fn listed_items(response: &str, names: &[String]) -> Vec<usize> {
    let number = |item: &String| names.iter().position(|name| name.to_lowercase() == *item);
    listed(response).iter().filter_map(|item| Some(number(item)? + 1)).collect()
}

/// The labels that a response gives: the items of a JSON list, or the [`listed`] ones.
pub fn given(response: &str) -> Vec<String> {
    let Ok(items) = serde_json::from_str::<Vec<Value>>(response.trim()) else {
        return listed(response);
    };
    let mut seen = HashSet::new();
    let labels = items.iter().map(|item| label(item).to_lowercase());
    labels.filter(|label| seen.insert(label.clone())).collect()
}

/// True positives, false positives and false negatives, the terms of micro-F1. Micro-averaging
/// adds them over a batch before dividing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Confusion {
    /// Labels given and right.
    pub true_positives: usize,
    /// Labels given and wrong.
    pub false_positives: usize,
    /// Right labels that were not given.
    pub false_negatives: usize,
}

impl Confusion {
    /// Of one answer.
    pub fn of(given: &[String], right: &[String]) -> Self {
        let right: HashSet<String> = right.iter().map(|r| r.trim().to_lowercase()).collect();
        let true_positives = given.iter().filter(|g| right.contains(*g)).count();
        Self {
            true_positives,
            false_positives: given.len() - true_positives,
            false_negatives: right.len() - true_positives,
        }
    }

    /// `2TP/(2TP + FP + FN)`; 0 when there is nothing right and nothing given.
    pub fn f1(self) -> f64 {
        let twice = 2 * self.true_positives;
        let all = twice + self.false_positives + self.false_negatives;
        if all == 0 { 0.0 } else { twice as f64 / all as f64 }
    }
}

impl std::ops::Add for Confusion {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            true_positives: self.true_positives + other.true_positives,
            false_positives: self.false_positives + other.false_positives,
            false_negatives: self.false_negatives + other.false_negatives,
        }
    }
}

/// Share of the right items among the first `k` given.
pub fn hit_rate(given: &[usize], right: &[usize], k: usize) -> f64 {
    let right: HashSet<_> = right.iter().collect();
    let hits = given.iter().take(k).filter(|g| right.contains(g)).count();
    if right.is_empty() { 0.0 } else { hits as f64 / right.len() as f64 }
}

/// Gain of a grade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gain {
    /// The grade (scikit-learn).
    #[default]
    Linear,
    /// `2^grade − 1` (Shopping MMLU).
    Exponential,
}

/// Normalised discounted cumulative gain of a ranking of items 1..=m with the given grades:
/// `Σ gain/log2(1 + rank)` over the same sum for the best ranking.
///
/// Items that the ranking leaves out share the ranks behind it (their mean gain stands at each, as
/// scikit-learn treats ties); numbers that name no item are ignored, and an item counts once.
/// Grades that are all 0 give 0.
pub fn ndcg(ranking: &[usize], grades: &[f64], gain: Gain) -> f64 {
    let gains: Vec<f64> = grades
        .iter()
        .map(|&g| if gain == Gain::Exponential { g.exp2() - 1.0 } else { g })
        .collect();
    let mut seen = HashSet::new();
    let ranked = ranking.iter().filter(|&&item| seen.insert(item));
    let mut order: Vec<f64> =
        ranked.filter_map(|&item| gains.get(item.checked_sub(1)?).copied()).collect();
    let left = gains.len() - order.len();
    if left > 0 {
        let tail = (gains.iter().sum::<f64>() - order.iter().sum::<f64>()) / left as f64;
        order.extend(std::iter::repeat_n(tail, left));
    }
    let mut best = gains;
    best.sort_by(|a, b| b.total_cmp(a));
    let discounted = |gains: &[f64]| -> f64 {
        gains.iter().zip(2..).map(|(g, rank)| g / f64::from(rank).log2()).sum()
    };
    let ideal = discounted(&best);
    if ideal == 0.0 { 0.0 } else { discounted(&order) / ideal }
}

/// Area under the ROC curve: probability that a positive scores higher than a negative, ties counted
/// half. 0.5 where one of the two does not occur.
pub fn auc(scores: &[f64], positive: &[bool]) -> f64 {
    let mut ranked: Vec<(f64, bool)> =
        scores.iter().copied().zip(positive.iter().copied()).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut above, mut wins) = (0.0, 0.0, 0.0);
    for ties in ranked.chunk_by(|a, b| a.0 == b.0) {
        let positives = ties.iter().filter(|(_, positive)| *positive).count() as f64;
        let negatives = ties.len() as f64 - positives;
        wins += positives * (below + negatives / 2.0);
        above += positives;
        below += negatives;
    }
    if above * below > 0.0 { wins / (above * below) } else { 0.5 }
}
