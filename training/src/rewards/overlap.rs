//! Overlap with a reference: ROUGE-L, BLEU-4 and exact-match recall.

use super::porter;
use regex::Regex;
use std::{collections::HashMap, sync::LazyLock};

/// Tokens as Google's `rouge-score` makes them: lower case, runs of ASCII letters and digits;
/// with `stem`, words of more than three letters are Porter-stemmed.
pub fn rouge_tokens(text: &str, stem: bool) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.map(|w| if stem && w.len() > 3 { porter::stem(w) } else { w.to_string() }).collect()
}

/// ROUGE-L F-measure: `2PR/(P + R)` with P, R the longest common subsequence over the lengths.
pub fn rouge_l(candidate: &str, reference: &str, stem: bool) -> f64 {
    let (candidate, reference) = (rouge_tokens(candidate, stem), rouge_tokens(reference, stem));
    if candidate.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let common = longest_common_subsequence(&candidate, &reference) as f64;
    // 2PR/(P + R) with P = common/|c|, R = common/|r|.
    2.0 * common / (candidate.len() + reference.len()) as f64
}

fn longest_common_subsequence<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    // row[j] = LCS of the part of `a` seen so far and b[..=j].
    let mut row = vec![0usize; b.len()];
    for x in a {
        let (mut diagonal, mut left) = (0, 0);
        for (y, cell) in b.iter().zip(&mut row) {
            let above = *cell;
            *cell = if x == y { diagonal + 1 } else { above.max(left) };
            (diagonal, left) = (above, *cell);
        }
    }
    row.last().copied().unwrap_or(0)
}

/// sacrebleu's `13a` tokenisation (mteval-v13a, international tokenisation off).
pub fn tokens_13a(line: &str) -> Vec<String> {
    // ASCII punctuation but , - . ' stands alone; so do , . unless between digits, and a dash after
    // a digit.
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", " $1 "),
            (r"([^0-9])([\.,])", "$1 $2 "),
            (r"([\.,])([^0-9])", " $1 $2"),
            (r"([0-9])(-)", "$1 $2 "),
        ]
        .map(|(pattern, with)| (Regex::new(pattern).expect("constant pattern"), with))
    });
    let line = line.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let line = if line.contains('&') {
        line.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    } else {
        line
    };
    let spaced = RULES.iter().fold(format!(" {line} "), |text, (rule, with)| {
        rule.replace_all(&text, *with).into_owned()
    });
    spaced.split_whitespace().map(str::to_string).collect()
}

/// Sentence BLEU, 0 to 1: orders 1 to 4, `13a` tokens, exponential smoothing, effective order,
/// clipped against the maximum over references, brevity against the closest length. sacrebleu's
/// `sentence_bleu(…)/100`.
pub fn bleu_4(candidate: &str, references: &[String], lowercase: bool) -> f64 {
    let tokens = |text: &str| {
        let trimmed = text.trim_end();
        tokens_13a(&if lowercase { trimmed.to_lowercase() } else { trimmed.to_string() })
    };
    let candidate = tokens(candidate);
    let references: Vec<Vec<String>> = references.iter().map(|r| tokens(r)).collect();
    let (mut log_sum, mut orders, mut halvings) = (0.0, 0, 1.0);
    for order in 1..=4 {
        let counts = n_grams(&candidate, order);
        let total: usize = counts.values().sum();
        if total == 0 {
            break;
        }
        let mut ceiling: HashMap<&[String], usize> = HashMap::new();
        for reference in &references {
            for (gram, count) in n_grams(reference, order) {
                let most = ceiling.entry(gram).or_default();
                *most = count.max(*most);
            }
        }
        let matches: usize = counts
            .iter()
            .map(|(gram, count)| ceiling.get(gram).copied().unwrap_or(0).min(*count))
            .sum();
        if order == 1 && matches == 0 {
            return 0.0;
        }
        let precision = if matches == 0 {
            halvings *= 2.0;
            1.0 / (halvings * total as f64)
        } else {
            matches as f64 / total as f64
        };
        log_sum += precision.ln();
        orders += 1;
    }
    if orders == 0 {
        return 0.0;
    }
    let length = candidate.len();
    let closest = references.iter().map(Vec::len).min_by_key(|r| (r.abs_diff(length), *r));
    let closest = closest.unwrap_or(0) as f64;
    let brevity =
        if (length as f64) < closest { (1.0 - closest / length as f64).exp() } else { 1.0 };
    brevity * (log_sum / f64::from(orders)).exp()
}

fn n_grams(tokens: &[String], order: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for gram in tokens.windows(order) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single spaces.
pub fn normalise_answer(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words = bare.split_whitespace().filter(|w| !matches!(*w, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}

/// Share of questions of which some accepted answer stands in the response, both normalised
/// (ALCE's STR-EM). `questions` holds the accepted answers of each.
pub fn exact_match_recall(response: &str, questions: &[Vec<String>]) -> f64 {
    let response = normalise_answer(response);
    let found = |answers: &&Vec<String>| {
        answers.iter().any(|answer| response.contains(&normalise_answer(answer)))
    };
    questions.iter().filter(found).count() as f64 / questions.len().max(1) as f64
}
