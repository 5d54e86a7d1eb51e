//! ALCE (Gao et al. 2023): questions with retrieved documents, answered with citations `[1][2]`.
//! One JSON array a file, for ASQA (`qa_pairs`, `annotations`), ELI5 (`claims`) and QAMPARI
//! (`answers`).

use super::{
    DataError, Example, Message,
    rows::{OnMalformed, Rows, filled, read_json_array},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

#[derive(Deserialize)]
struct Record {
    question: String,
    #[serde(default, alias = "id")]
    sample_id: Option<Value>,
    docs: Vec<Document>,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    annotations: Option<Vec<Annotation>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    title: String,
    text: String,
}

#[derive(Deserialize)]
struct Annotation {
    long_answer: String,
}

/// Reads a file, giving each question its first `documents` documents. `fields` has `docs` (each
/// `title\ntext`, in the order of their numbers), `question`, and `qa_pairs`, `claims` or `answers`
/// where the file has them; `references` are the long answers.
pub fn read(
    path: &Path,
    documents: usize,
    on_malformed: OnMalformed,
) -> Result<Rows<Example>, DataError> {
    read_json_array(path, on_malformed, |row, record: Record| {
        filled("question", &record.question)?;
        let docs: Vec<String> = record
            .docs
            .iter()
            .take(documents)
            .map(|d| format!("Title: {}\n{}", d.title, d.text))
            .collect();
        if docs.is_empty() {
            return Err("`docs` is empty".into());
        }
        let numbered: String =
            docs.iter().zip(1..).map(|(d, i)| format!("Document [{i}]({d})\n")).collect();
        let prompt = format!("{numbered}\nQuestion: {}", record.question);
        let annotated = record.annotations.into_iter().flatten().map(|a| a.long_answer);
        let references: Vec<String> = annotated.chain(record.answer).collect();
        let mut fields: Map<String, Value> = ["qa_pairs", "claims", "answers"]
            .into_iter()
            .filter_map(|name| {
                let value = record.rest.get(name).filter(|v| !v.is_null())?;
                Some((name.to_string(), value.clone()))
            })
            .collect();
        fields.insert("question".into(), record.question.into());
        fields.insert("docs".into(), docs.into());
        let id = match record.sample_id {
            Some(Value::String(id)) => id,
            Some(other) => other.to_string(),
            None => format!("row-{row}"),
        };
        Ok(Example {
            id,
            messages: vec![Message::user(prompt)],
            references,
            others: vec![],
            fields,
        })
    })
}
