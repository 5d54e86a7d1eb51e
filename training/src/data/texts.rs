//! Texts alone, one a line: `{"text": "…"}`.

use super::{
    DataError,
    rows::{OnMalformed, filled, read_jsonl},
};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Record {
    text: String,
}

/// Reads the texts of a file, none of them blank.
pub fn read(path: &Path) -> Result<Vec<String>, DataError> {
    let rows = read_jsonl(path, OnMalformed::Fail, |_, record: Record| {
        filled("text", &record.text)?;
        Ok(record.text)
    })?;
    Ok(rows.rows)
}
