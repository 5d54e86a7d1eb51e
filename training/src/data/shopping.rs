//! Shopping: ECInstruct (Peng et al. 2024) and Shopping MMLU (Jin et al. 2024) records.

use super::{
    DataError, Example, Message,
    rows::{OnMalformed, Rows, filled, read_csv, read_json_array, read_jsonl},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

#[derive(Deserialize)]
struct Instruction {
    instruction: String,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    options: Value,
    output: Value,
    #[serde(default)]
    task: String,
    #[serde(default)]
    split: String,
    #[serde(default)]
    setting: String,
}

/// Reads ECInstruct (one JSON array): the prompt is instruction, input and options, one a
/// paragraph; `fields` has `task`, `split` and `setting`; `references` is the output.
///
/// What the metrics need follows from `task`: `label` is the output; where that is a JSON list
/// (Attribute_Value_Extraction) `labels` has its items; of Sequential_Recommendation and
/// Query_Product_Ranking `items` has the letters of the products, and `relevance` the number of the
/// right one, or a grade a product by its place in the output (the records have no other grades).
pub fn read_ecinstruct(path: &Path, on_malformed: OnMalformed) -> Result<Rows<Example>, DataError> {
    read_json_array(path, on_malformed, |row, record: Instruction| {
        filled("instruction", &record.instruction)?;
        let output = plain(&record.output);
        filled("output", &output)?;
        let parts = [record.instruction.clone(), plain(&record.input), plain(&record.options)];
        let prompt = parts.into_iter().filter(|p| !p.trim().is_empty()).collect::<Vec<_>>();
        let mut fields = json!({
            "task": record.task, "split": record.split, "setting": record.setting,
            "options": record.options, "label": &output,
        });
        if let Ok(items) = serde_json::from_str::<Vec<Value>>(&output) {
            fields["labels"] = items.iter().map(label).collect();
        }
        let ranked = output.split(',').map(letter).collect::<Option<Vec<usize>>>();
        let ranked = ranked.ok_or_else(|| format!("`output` is {output}, expected letters"));
        let (count, relevance) = match record.task.as_str() {
            "Query_Product_Ranking" => {
                let ranked = ranked?;
                let grade = |item| ranked.iter().rev().position(|ranked| *ranked == item);
                let count = ranked.iter().max().copied().unwrap_or(0);
                (count, (1..=count).map(|item| grade(item).unwrap_or(0)).collect::<Vec<_>>())
            }
            "Sequential_Recommendation" => {
                let right = ranked?;
                (MOST_OPTIONS, right)
            }
            _ => {
                return Ok(example(
                    format!("row-{row}"),
                    prompt.join("\n\n"),
                    vec![output],
                    fields,
                ));
            }
        };
        fields["items"] = ('A'..='Z').take(count).map(String::from).collect();
        fields["relevance"] = relevance.into();
        Ok(example(format!("row-{row}"), prompt.join("\n\n"), vec![output], fields))
    })
}

/// Options of a recommendation at most, A to T.
const MOST_OPTIONS: usize = 20;

/// The number, from 1, of an option that a letter names.
fn letter(text: &str) -> Option<usize> {
    match text.trim().as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A') + 1),
        _ => None,
    }
}

#[derive(Deserialize)]
struct Open {
    input_field: String,
    target_field: Value,
}

/// Reads Shopping MMLU's retrieval, ranking, named-entity and generation tasks (`input_field`,
/// `target_field`, one JSON record a line). A list of numbers goes to `fields.relevance` (ranking: a
/// grade per item; retrieval: the right item numbers), a list of strings to `fields.labels`, its
/// items with commas between them being the reference; text is the reference.
pub fn read_mmlu(path: &Path, on_malformed: OnMalformed) -> Result<Rows<Example>, DataError> {
    read_jsonl(path, on_malformed, |line, record: Open| {
        filled("input_field", &record.input_field)?;
        let all = |test: fn(&Value) -> bool| {
            record.target_field.as_array().is_some_and(|v| !v.is_empty() && v.iter().all(test))
        };
        let (references, fields) = if all(Value::is_number) {
            (Vec::new(), json!({"relevance": record.target_field}))
        } else if all(Value::is_string) {
            let listed = plain(&record.target_field).replace('\n', ", ");
            (vec![listed], json!({"labels": record.target_field}))
        } else if let Some(text) = record.target_field.as_str() {
            (vec![text.to_string()], json!({"label": text}))
        } else {
            return Err("`target_field` is neither text nor a list of numbers or texts".into());
        };
        Ok(example(format!("line-{line}"), record.input_field, references, fields))
    })
}

/// Reads Shopping MMLU's multiple choice (CSV: `question`, `choices`, `answer`). `choices` is a JSON
/// list or a Python one; the prompt numbers them from 0 and `fields.label` is the right number.
pub fn read_mmlu_choices(
    path: &Path,
    on_malformed: OnMalformed,
) -> Result<Rows<Example>, DataError> {
    read_csv(path, on_malformed, |line, row| {
        let column = |name: &str| {
            let found = row.iter().find(|(column, _)| *column == name).map(|(_, v)| *v);
            found.ok_or_else(|| format!("no column `{name}`"))
        };
        let question = column("question")?;
        filled("question", question)?;
        let choices = list(column("choices")?)?;
        let answer: usize = column("answer")?
            .trim()
            .parse()
            .map_err(|_| format!("`answer` is not a number: {}", column("answer").unwrap_or("")))?;
        if answer >= choices.len() {
            return Err(format!("`answer` is {answer}, there are {} choices", choices.len()));
        }
        let numbered: Vec<String> =
            choices.iter().enumerate().map(|(i, c)| format!("{i}. {c}")).collect();
        let prompt = format!("{question}\n{}", numbered.join("\n"));
        let label = answer.to_string();
        let fields = json!({"label": label, "choices": choices});
        Ok(example(format!("line-{line}"), prompt, vec![label], fields))
    })
}

fn example(id: String, prompt: String, references: Vec<String>, fields: Value) -> Example {
    let fields: Map<String, Value> = fields.as_object().cloned().unwrap_or_default();
    Example { id, messages: vec![Message::user(prompt)], references, others: vec![], fields }
}

/// An item of a JSON list as a label: a text itself, an object with its keys in order.
pub fn label(item: &Value) -> String {
    match item {
        Value::String(text) => text.trim().to_owned(),
        Value::Object(fields) => json!(fields.iter().collect::<BTreeMap<_, _>>()).to_string(),
        other => other.to_string(),
    }
}

/// Text unchanged, lists one item a line, other values as JSON, null as empty text.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("\n"),
        other => other.to_string(),
    }
}

/// A list of strings in JSON, or as Python prints one (either quote, backslash escapes; numpy's
/// missing commas too).
fn list(text: &str) -> Result<Vec<String>, String> {
    if let Ok(items) = serde_json::from_str::<Vec<Value>>(text) {
        return Ok(items.iter().map(plain).collect());
    }
    let inner = text.trim().strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let mut chars = inner.ok_or_else(|| format!("not a list: {text}"))?.chars();
    let mut items = Vec::new();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let mut item = String::new();
                loop {
                    match chars.next() {
                        None => return Err(format!("an open quote in {text}")),
                        Some(end) if end == c => break,
                        Some('\\') => item.extend(chars.next().map(|escaped| match escaped {
                            'n' => '\n',
                            't' => '\t',
                            other => other,
                        })),
                        Some(other) => item.push(other),
                    }
                }
                items.push(item);
            }
            ',' => {}
            c if c.is_whitespace() => {}
            other => return Err(format!("`{other}` outside quotes in {text}")),
        }
    }
    if items.is_empty() { Err("an empty list".into()) } else { Ok(items) }
}
