//! QA-Feedback (Wu et al. 2023, Fine-Grained RLHF): long-form answers with errors marked as spans.
//!
//! A record has `question`, `passages` (each: title, then sentences), `gold`, `prediction 1` to
//! `prediction 4`, `feedback` on prediction 1 (errors with `start`/`end`, `missing-info`,
//! `corrected-prediction`) and `preference`, the winners of the six pairs of predictions.

use super::{
    DataError, Example, Message,
    rows::{OnMalformed, Rows, filled, read_jsonl},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{ops::Range, path::Path};

/// Kinds of marked errors, as the paper's reward models divide them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorKind {
    /// C1: irrelevant, redundant or incoherent.
    Relevance,
    /// C2: contradicted by the passages, or not supported by them.
    Factuality,
}

/// A marked span of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedSpan {
    /// Kind of error.
    pub kind: ErrorKind,
    /// Byte range in the response (the file counts characters).
    pub bytes: Range<usize>,
}

/// A question with its four answers and their annotations.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    /// The question as a prompt: question, then the passages. `references` is the gold answer;
    /// `fields` has `question` and `source` (the passages).
    pub example: Example,
    /// `prediction 1` to `prediction 4`.
    pub predictions: [String; 4],
    /// Errors of `prediction 1`.
    pub errors: Vec<MarkedSpan>,
    /// Information that `prediction 1` misses.
    pub missing: usize,
    /// `prediction 1` as corrected by the annotators, without errors and with the missing information.
    /// May be empty.
    pub corrected: String,
    /// `(better, worse)` indices into `predictions`; ties are left out.
    pub preferences: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
struct Record {
    question: String,
    passages: Vec<Vec<String>>,
    gold: String,
    #[serde(rename = "prediction 1")]
    prediction_1: String,
    #[serde(rename = "prediction 2")]
    prediction_2: String,
    #[serde(rename = "prediction 3")]
    prediction_3: String,
    #[serde(rename = "prediction 4")]
    prediction_4: String,
    feedback: RawFeedback,
    preference: Vec<u8>,
}

#[derive(Deserialize)]
struct RawFeedback {
    errors: Vec<RawError>,
    #[serde(rename = "missing-info")]
    missing: Vec<serde_json::Value>,
    #[serde(rename = "corrected-prediction", default)]
    corrected: String,
}

#[derive(Deserialize)]
struct RawError {
    #[serde(rename = "error type")]
    kind: String,
    start: usize,
    end: usize,
}

/// The pairs of predictions in the order of `preference`.
const PAIRS: [(usize, usize); 6] = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];

/// Reads feedback rows. The id is `line-N`.
pub fn read(path: &Path, on_malformed: OnMalformed) -> Result<Rows<Feedback>, DataError> {
    read_jsonl(path, on_malformed, |line, record: Record| {
        filled("question", &record.question)?;
        let errors = record.feedback.errors.iter().map(|e| span(e, &record.prediction_1));
        let errors = errors.collect::<Result<_, String>>()?;
        let passages: Vec<String> = record.passages.iter().map(|p| passage(p)).collect();
        let source = passages.join("\n\n");
        let prompt = format!("{}\n\n{source}", record.question);
        let fields = json!({"question": record.question, "source": source});
        Ok(Feedback {
            example: Example {
                id: format!("line-{line}"),
                messages: vec![Message::user(prompt)],
                references: vec![record.gold],
                others: vec![],
                fields: fields.as_object().cloned().unwrap_or_default(),
            },
            errors,
            missing: record.feedback.missing.len(),
            corrected: record.feedback.corrected.trim().to_string(),
            preferences: preferences(&record.preference)?,
            predictions: [
                record.prediction_1,
                record.prediction_2,
                record.prediction_3,
                record.prediction_4,
            ],
        })
    })
}

/// A passage is its title and then its sentences; the first sentence often repeats the title.
fn passage(parts: &[String]) -> String {
    let Some((title, sentences)) = parts.split_first() else { return String::new() };
    let body = sentences.join(" ");
    let body = body.trim();
    if body.starts_with(title.trim()) { body.to_string() } else { format!("{title}\n{body}") }
}

fn preferences(winners: &[u8]) -> Result<Vec<(usize, usize)>, String> {
    if winners.len() != PAIRS.len() {
        return Err(format!("`preference` has {} entries, expected 6", winners.len()));
    }
    let mut decided = Vec::new();
    for (&winner, &(a, b)) in winners.iter().zip(&PAIRS) {
        match winner {
            0 => {}
            1 => decided.push((a, b)),
            2 => decided.push((b, a)),
            other => return Err(format!("`preference` holds {other}, expected 0, 1 or 2")),
        }
    }
    Ok(decided)
}

fn span(error: &RawError, prediction: &str) -> Result<MarkedSpan, String> {
    let kind = match error.kind.as_str() {
        "Irrelevant" | "Redundant" | "Incoherent" => ErrorKind::Relevance,
        "Wrong-Grounding" | "Unverifiable" => ErrorKind::Factuality,
        other => return Err(format!("unknown error type `{other}`")),
    };
    let &RawError { start, end, .. } = error;
    let bytes = byte_range(prediction, start, end).ok_or_else(|| {
        let length = prediction.chars().count();
        format!("span {start}..{end} lies outside a prediction of {length} characters")
    })?;
    Ok(MarkedSpan { kind, bytes })
}

/// The bytes of characters `start..end`.
fn byte_range(text: &str, start: usize, end: usize) -> Option<Range<usize>> {
    let mut offsets = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    if end <= start {
        return None;
    }
    let first = offsets.nth(start)?;
    let last = offsets.nth(end - start - 1)?;
    Some(first..last)
}
