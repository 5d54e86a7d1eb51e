//! Any JSONL: a template renders the prompt from the columns of a row.

use super::{
    DataError, Example, Message,
    prompt::PromptTemplate,
    rows::{OnMalformed, Rows, filled, read_jsonl},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// Roles of the columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// minijinja template of the prompt, e.g. `"Question: {{ question }}"`.
    pub prompt: String,
    /// Column of the reference: a text or a list of texts.
    #[serde(default)]
    pub reference: Option<String>,
    /// Column of the id; else `line-N`.
    #[serde(default)]
    pub id: Option<String>,
}

/// Reads rows; every column is kept in `fields`.
pub fn read(
    path: &Path,
    columns: &Columns,
    on_malformed: OnMalformed,
) -> Result<Rows<Example>, DataError> {
    let template = PromptTemplate::new(&columns.prompt)?;
    read_jsonl(path, on_malformed, |line, row: Map<String, Value>| {
        let prompt = template.render(&row)?;
        filled("prompt", &prompt)?;
        let column = |name: &str| row.get(name).ok_or_else(|| format!("no column `{name}`"));
        let references = match &columns.reference {
            Some(name) => texts(name, column(name)?)?,
            None => Vec::new(),
        };
        let id = match columns.id.as_deref().map(column).transpose()? {
            None => format!("line-{line}"),
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(_) => return Err("the id is neither text nor a number".into()),
        };
        let messages = vec![Message::user(prompt)];
        Ok(Example { id, messages, references, others: vec![], fields: row })
    })
}

fn texts(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let wrong = || format!("`{name}` is neither a text nor a list of texts");
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(items) => {
            items.iter().map(|v| v.as_str().map(str::to_string).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}
