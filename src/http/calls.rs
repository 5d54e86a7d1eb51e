//! Answers as text and calls of tools, for every route that gives them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{request::tools::Calls, run::Choice};
use crate::{
    chat::tools::{CallReader, Piece},
    engine::FinishReason,
};

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    /// A JSON object as text.
    pub arguments: String,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoken {
    pub text: String,
    pub calls: Vec<Call>,
    /// Why it is complete, as OpenAI names it.
    pub reason: Option<&'static str>,
}

/// Reads an answer that arrives in pieces.
pub struct Reader {
    calls: Option<CallReader>,
    reason: &'static str,
}

impl Reader {
    /// A reader at the beginning of an answer that may have such calls.
    pub fn new(calls: Option<&Calls>) -> Self {
        Self {
            calls: calls.map(|calls| CallReader::new(calls.format.clone())),
            reason: calls.map_or("stop", |calls| calls.reason),
        }
    }

    /// Takes the next text.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        match &mut self.calls {
            _ if text.is_empty() => Vec::new(),
            Some(calls) => calls.push(text),
            None => vec![Piece::Text(text.to_owned())],
        }
    }

    /// The end of the text.
    pub fn finish(&mut self) -> Vec<Piece> {
        self.calls.as_mut().map(CallReader::finish).unwrap_or_default()
    }

    /// Whether the answer has called a tool.
    pub fn has_called(&self) -> bool {
        self.calls.as_ref().is_some_and(|calls| calls.calls() > 0)
    }

    /// Why the answer is complete, as OpenAI names it.
    pub fn reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop if self.has_called() => self.reason,
            reason => reason.as_str(),
        }
    }
}

/// Tells the calls of a whole answer from its text.
pub fn read(choice: &Choice, calls: Option<&Calls>) -> Spoken {
    let mut reader = Reader::new(calls);
    let mut pieces = reader.push(&choice.text);
    pieces.extend(reader.finish());
    let (mut text, mut found) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::Call { name, .. } => {
                found.push(Call { id: id("call_"), name, arguments: String::new() });
            }
            Piece::Arguments { text, .. } => {
                if let Some(call) = found.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
    Spoken { text, calls: found, reason: choice.reason.map(|reason| reader.reason(reason)) }
}

/// A new id that begins with `prefix`: unique within the process; the start time tells processes
/// apart.
pub fn id(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:x}-{number:x}", now.as_micros())
}
