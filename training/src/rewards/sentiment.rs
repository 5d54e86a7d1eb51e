//! Sentiment by a lexicon: `(positive − negative)/(positive + negative)` of weighted words.
//!
//! The built-in lexicon is this project's own, short and general; a file can replace it.

use super::words::words;
use std::{collections::HashMap, path::Path, sync::LazyLock};

/// Words with weights (> 0 positive, < 0 negative).
#[derive(Debug, Clone, PartialEq)]
pub struct Lexicon {
    weights: HashMap<String, f64>,
}

/// Negations, which invert the weights of the next few words.
const NEGATIONS: [&str; 13] = [
    "not", "no", "never", "none", "nobody", "nothing", "neither", "nor", "without", "hardly",
    "barely", "cannot", "can't",
];
/// Words that a negation inverts.
const REACH: usize = 3;

impl Lexicon {
    /// The built-in one.
    pub fn built_in() -> &'static Self {
        static LEXICON: LazyLock<Lexicon> = LazyLock::new(|| {
            let side = |list: &'static str, weight| {
                list.split_whitespace().map(move |w| (w.to_string(), weight))
            };
            let negative = side(include_str!("negative_words.txt"), -1.0);
            let weights = side(include_str!("positive_words.txt"), 1.0).chain(negative).collect();
            Lexicon { weights }
        });
        &LEXICON
    }

    /// Reads `word<TAB>weight` lines.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut weights = HashMap::new();
        for (line, number) in text.lines().zip(1..).filter(|(l, _)| !l.trim().is_empty()) {
            let parsed = line.split_once('\t').and_then(|(word, weight)| {
                let weight: f64 = weight.trim().parse().ok()?;
                weight.is_finite().then(|| (word.trim().to_lowercase(), weight))
            });
            let (word, weight) = parsed.ok_or_else(|| {
                format!("{}:{number}: expected `word<TAB>weight`, got `{line}`", path.display())
            })?;
            weights.insert(word, weight);
        }
        if weights.is_empty() {
            Err(format!("{}: no words", path.display()))
        } else {
            Ok(Self { weights })
        }
    }

    /// Balance of a text, −1 to 1; 0 when none of its words is known.
    pub fn score(&self, text: &str) -> f64 {
        let (mut balance, mut mass, mut negated) = (0.0, 0.0, 0);
        for word in words(text) {
            if let Some(weight) = self.weights.get(&word) {
                balance += if negated > 0 { -weight } else { *weight };
                mass += weight.abs();
            }
            negated = if NEGATIONS.contains(&word.as_str()) || word.ends_with("n't") {
                REACH
            } else {
                usize::saturating_sub(negated, 1)
            };
        }
        if mass == 0.0 { 0.0 } else { balance / mass }
    }
}
