//! Data sets: readers for the published formats, deterministic splits, prompt templates.
//!
//! | reader | file | gives |
//! |---|---|---|
//! | [`scitldr::read`] | SciTLDR JSONL | [`Example`] |
//! | [`qa_feedback::read`] | QA-Feedback JSONL with span labels | [`qa_feedback::Feedback`] |
//! | [`hh_rlhf::read`] | hh-rlhf JSONL, `chosen` and `rejected` dialogues | [`Pair`] |
//! | [`tldr::read`], [`tldr::read_comparisons`] | TL;DR posts, comparisons | [`Example`], [`Pair`] |
//! | [`alce::read`] | ALCE JSON arrays (ASQA, ELI5, QAMPARI) | [`Example`] |
//! | [`shopping::read_ecinstruct`], [`shopping::read_mmlu`], [`shopping::read_mmlu_choices`] | ECInstruct, Shopping MMLU | [`Example`] |
//! | [`texts::read`] | JSONL with `text` | texts alone |
//! | [`general::read`] | any JSONL with a prompt template | [`Example`] |
//!
//! Every reader names a malformed row by file and line. Texts are kept as they are, without
//! cleaning, stripping or case changes.

pub mod alce;
pub mod general;
pub mod hh_rlhf;
pub mod prompt;
pub mod qa_feedback;
pub mod rows;
pub mod scitldr;
pub mod shopping;
pub mod split;
pub mod texts;
pub mod tldr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Role of a speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the deployer.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation, in the shape that chat templates take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    /// Text of the turn.
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }
}

/// A prompt with references and data for the rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Stable name within its data set; splits depend on it.
    pub id: String,
    /// The conversation that the model continues.
    pub messages: Vec<Message>,
    /// Good responses, best first; may be empty. The first one is the target of supervised tuning.
    pub references: Vec<String>,
    /// Worse responses, from which RiC learns too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
    /// Other data that rewards use (`source`, `docs`, `qa_pairs`, `relevance` …).
    pub fields: Map<String, Value>,
}

impl Example {
    /// All its responses, good and worse.
    pub fn answers(&self) -> impl Iterator<Item = &str> {
        self.references.iter().chain(&self.others).map(String::as_str)
    }

    /// The last turn of the user.
    pub fn prompt(&self) -> &str {
        let user = self.messages.iter().rev().find(|m| m.role == Role::User);
        user.map_or("", |m| m.content.as_str())
    }
}

/// Two responses to one conversation, of which people preferred one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Stable name within its data set.
    pub id: String,
    /// The conversation up to the responses.
    pub messages: Vec<Message>,
    /// The preferred response.
    pub chosen: String,
    /// The other one.
    pub rejected: String,
    /// Everything else (`dialogue`: the conversation as the file has it).
    pub fields: Map<String, Value>,
}

/// Errors of reading data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// The system's message.
        source: std::io::Error,
    },
    /// Malformed rows.
    #[error("{}{}", rows.iter().take(10).map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            if rows.len() > 10 { format!("\n… and {} more", rows.len() - 10) } else { String::new() })]
    Malformed {
        /// All of them, in the order of the file.
        rows: Vec<Malformed>,
    },
    /// The file has no rows.
    #[error("{}: no rows", path.display())]
    Empty { path: PathBuf },
    /// A prompt template that does not compile.
    #[error("prompt template: {0}")]
    Template(String),
}

/// One malformed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub path: PathBuf,
    /// Line, from 1 (row of the array in a JSON array file).
    pub line: usize,
    pub reason: String,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.reason)
    }
}
