//! Rows of a file, each parsed on its own: errors name every malformed row at once.

use super::{DataError, Malformed};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;

/// What to do with malformed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMalformed {
    /// Refuse the file, naming them all.
    #[default]
    Fail,
    /// Leave them out with a warning for each. A file without a valid row is refused.
    Skip,
}

/// Rows of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows<T> {
    /// The valid rows, in the order of the file.
    pub rows: Vec<T>,
    /// The rows left out ([`OnMalformed::Skip`]).
    pub skipped: Vec<Malformed>,
}

impl<T> Rows<T> {
    /// Applies `parse` to `(line, item)`; an `Err` is the reason why the row is malformed. Rows left
    /// out are named in the log.
    pub(super) fn collect<I>(
        path: &Path,
        on_malformed: OnMalformed,
        items: impl IntoIterator<Item = (usize, I)>,
        mut parse: impl FnMut(usize, I) -> Result<T, String>,
    ) -> Result<Self, DataError> {
        let (mut rows, mut skipped) = (Vec::new(), Vec::new());
        for (line, item) in items {
            match parse(line, item) {
                Ok(row) => rows.push(row),
                Err(reason) => skipped.push(Malformed { path: path.into(), line, reason }),
            }
        }
        if rows.is_empty() && skipped.is_empty() {
            return Err(DataError::Empty { path: path.into() });
        }
        if !skipped.is_empty() && (rows.is_empty() || on_malformed == OnMalformed::Fail) {
            return Err(DataError::Malformed { rows: skipped });
        }
        for row in &skipped {
            tracing::warn!("{row}; left out");
        }
        if !skipped.is_empty() {
            tracing::warn!("{}: {} malformed rows left out", path.display(), skipped.len());
        }
        Ok(Self { rows, skipped })
    }
}

/// Reads a JSONL file of `R`s; blank lines are passed over. `make` gets the line number and the
/// record.
pub fn read_jsonl<R: DeserializeOwned, T>(
    path: &Path,
    on_malformed: OnMalformed,
    mut make: impl FnMut(usize, R) -> Result<T, String>,
) -> Result<Rows<T>, DataError> {
    let text = read(path)?;
    let lines = text.split(|&b| b == b'\n').zip(1..).map(|(bytes, line)| (line, bytes));
    let filled = lines.filter(|(_, bytes)| !bytes.trim_ascii().is_empty());
    Rows::collect(path, on_malformed, filled, |line, bytes| {
        let record = serde_json::from_slice(bytes).map_err(|e| without_line(&e))?;
        make(line, record)
    })
}

/// Reads a file that is one JSON array of `R`s; rows are counted from 1.
pub fn read_json_array<R: DeserializeOwned, T>(
    path: &Path,
    on_malformed: OnMalformed,
    mut make: impl FnMut(usize, R) -> Result<T, String>,
) -> Result<Rows<T>, DataError> {
    let items: Vec<serde_json::Value> =
        serde_json::from_slice(&read(path)?).map_err(|e| DataError::Malformed {
            rows: vec![Malformed { path: path.into(), line: e.line(), reason: e.to_string() }],
        })?;
    Rows::collect(path, on_malformed, (1..).zip(items), |row, item| {
        make(row, R::deserialize(item).map_err(|e| e.to_string())?)
    })
}

/// Reads a CSV file with a header (RFC 4180: quoted fields may hold commas, doubled quotes and line
/// ends). `make` gets the number of the row's first line and its `(column, field)`s.
pub fn read_csv<T>(
    path: &Path,
    on_malformed: OnMalformed,
    mut make: impl FnMut(usize, &[(&str, &str)]) -> Result<T, String>,
) -> Result<Rows<T>, DataError> {
    let text = String::from_utf8(read(path)?).map_err(|e| DataError::Malformed {
        rows: vec![Malformed { path: path.into(), line: 1, reason: e.to_string() }],
    })?;
    let mut records = csv_records(&text).into_iter();
    let Some((_, header)) = records.next() else {
        return Err(DataError::Empty { path: path.into() });
    };
    Rows::collect(path, on_malformed, records, |line, fields| {
        if fields.len() != header.len() {
            return Err(format!("{} fields, the header has {}", fields.len(), header.len()));
        }
        let named: Vec<(&str, &str)> =
            header.iter().map(String::as_str).zip(fields.iter().map(String::as_str)).collect();
        make(line, &named)
    })
}

fn csv_records(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut records = Vec::new();
    let (mut fields, mut field) = (Vec::new(), String::new());
    let (mut quoted, mut line, mut first) = (false, 1, 1);
    let mut chars = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                fields.push(std::mem::take(&mut field));
                let record = std::mem::take(&mut fields);
                if record != [""] {
                    records.push((first, record));
                }
                first = line;
            }
            c => field.push(c),
        }
    }
    if !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        records.push((first, fields));
    }
    records
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(|source| DataError::Io { path: path.into(), source })
}

/// serde_json's message with the column only: each line is parsed alone, so its "line 1" would
/// contradict the line that the error names.
fn without_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

/// `Err` naming the field when `text` is blank.
pub(super) fn filled(field: &str, text: &str) -> Result<(), String> {
    if text.trim().is_empty() { Err(format!("`{field}` is empty")) } else { Ok(()) }
}
