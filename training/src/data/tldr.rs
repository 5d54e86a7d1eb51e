//! TL;DR: Reddit posts with summaries (Stiennon et al. 2020).
//!
//! Three published layouts are understood: `openai/summarize_from_feedback` comparisons
//! (`info`, `summaries`, `choice`), and the flat ones `prompt`/`completion` (or `label`) and
//! `prompt`/`chosen`/`rejected`.

use super::{
    DataError, Example, Message, Pair,
    rows::{OnMalformed, Rows, filled, read_jsonl},
};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

#[derive(Deserialize)]
struct Summarised {
    prompt: String,
    #[serde(alias = "label", alias = "summary")]
    completion: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Comparison {
    Feedback { info: Info, summaries: [Summary; 2], choice: usize },
    Flat { prompt: String, chosen: String, rejected: String },
}

#[derive(Deserialize)]
struct Info {
    id: String,
    #[serde(default)]
    subreddit: Option<String>,
    #[serde(default)]
    title: Option<String>,
    #[serde(alias = "article")]
    post: String,
}

#[derive(Deserialize)]
struct Summary {
    text: String,
}

/// Reads posts with one reference summary each; `fields.source` is the prompt. The id is `line-N`.
pub fn read(path: &Path, on_malformed: OnMalformed) -> Result<Rows<Example>, DataError> {
    read_jsonl(path, on_malformed, |line, record: Summarised| {
        filled("prompt", &record.prompt)?;
        filled("completion", &record.completion)?;
        let fields = json!({"source": &record.prompt});
        Ok(Example {
            id: format!("line-{line}"),
            messages: vec![Message::user(record.prompt)],
            references: vec![record.completion.trim().to_string()],
            others: vec![],
            fields: fields.as_object().cloned().unwrap_or_default(),
        })
    })
}

/// Reads comparisons. The prompt of the first layout is laid out as in the paper (`SUBREDDIT: r/…`,
/// `TITLE: …`, `POST: …`, `TL;DR:`).
pub fn read_comparisons(path: &Path, on_malformed: OnMalformed) -> Result<Rows<Pair>, DataError> {
    read_jsonl(path, on_malformed, |line, record: Comparison| {
        let (id, prompt, chosen, rejected) = match record {
            Comparison::Flat { prompt, chosen, rejected } => {
                (format!("line-{line}"), prompt, chosen, rejected)
            }
            Comparison::Feedback { info, summaries: [first, second], choice } => {
                let (chosen, rejected) = match choice {
                    0 => (first, second),
                    1 => (second, first),
                    other => return Err(format!("`choice` is {other}, expected 0 or 1")),
                };
                let prompt = layout(&info);
                (format!("{}-{line}", info.id), prompt, chosen.text, rejected.text)
            }
        };
        for (field, text) in [("prompt", &prompt), ("chosen", &chosen), ("rejected", &rejected)] {
            filled(field, text)?;
        }
        Ok(Pair {
            id,
            messages: vec![Message::user(prompt)],
            chosen: chosen.trim().to_string(),
            rejected: rejected.trim().to_string(),
            fields: serde_json::Map::new(),
        })
    })
}

fn layout(info: &Info) -> String {
    let line = |name: &str, value: &Option<String>| {
        value.as_ref().map_or(String::new(), |v| format!("{name}{v}\n"))
    };
    let head = line("SUBREDDIT: r/", &info.subreddit) + &line("TITLE: ", &info.title);
    format!("{head}POST: {}\nTL;DR:", info.post.trim())
}
