//! SciTLDR (Cachola et al. 2020; `allenai/scitldr`, SciTLDR-A): abstracts with one-sentence
//! summaries.

use super::{
    DataError, Example, Message,
    rows::{OnMalformed, Rows, filled, read_jsonl},
};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

#[derive(Deserialize)]
struct Record {
    source: Vec<String>,
    target: Vec<String>,
    paper_id: String,
    #[serde(default)]
    title: String,
}

/// Reads `train.jsonl`, `dev.jsonl` or `test.jsonl`. The message is the abstract itself (a prompt
/// template puts the instruction around it); `fields` has `source` (the abstract) and `title`;
/// `references` are the summaries, the authors' own first.
pub fn read(path: &Path, on_malformed: OnMalformed) -> Result<Rows<Example>, DataError> {
    read_jsonl(path, on_malformed, |_, record: Record| {
        let sentences: Vec<&str> = record.source.iter().map(|s| s.trim()).collect();
        let source = sentences.join(" ");
        filled("source", &source)?;
        let references: Vec<String> =
            record.target.iter().map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect();
        if references.is_empty() {
            return Err("`target` is empty".into());
        }
        let fields = json!({"source": &source, "title": record.title});
        Ok(Example {
            id: record.paper_id,
            messages: vec![Message::user(source)],
            references,
            others: vec![],
            fields: fields.as_object().cloned().unwrap_or_default(),
        })
    })
}
