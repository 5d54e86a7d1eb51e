//! Bodies of requests → samples. Errors name the field with its path, the value and what would be
//! right.

use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::rewards::{Judges, Sample};

type Result<T> = std::result::Result<T, Refusal>;
type Object = Map<String, Value>;

/// What a service accepts.
#[derive(Debug, Clone)]
pub struct Accepts {
    /// Rows of one request at most.
    pub rows: usize,
    /// Names of the rewards.
    pub objectives: Vec<String>,
    /// Whether rows must say which rewards judge them: there are several types of task.
    pub judges: bool,
    /// Whether requests must say their step: the weights move.
    pub step: bool,
    /// Texts of which one ends a response that ended by itself, in OpenRLHF's queries.
    pub ends: Vec<String>,
}

/// A checked request.
#[derive(Debug)]
pub struct Asked {
    pub step: Option<u64>,
    pub part: String,
    pub samples: Vec<Sample>,
}

/// Longest name of a part, in bytes.
const MAX_PART: usize = 128;

impl Accepts {
    /// The general form: `{"step", "part", "rows": [{"prompt", "response", "finished", "references",
    /// "fields", "judges"}]}`.
    pub fn general(&self, body: &[u8]) -> Result<Asked> {
        let mut body = object(body, &["step", "part", "rows"])?;
        let (step, part) = self.step(&mut body)?;
        let rows = self.list(&mut body, "rows")?;
        let samples = rows.into_iter().enumerate();
        let samples = samples.map(|(i, row)| self.row(&format!("rows[{i}]"), row));
        Ok(Asked { step, part, samples: samples.collect::<Result<_>>()? })
    }

    /// The form of OpenRLHF's remote reward models: `{"query", "prompts", "labels"}`, a query being a
    /// prompt with its response, control tokens written out. `step` and `part` may stand beside.
    pub fn openrlhf(&self, body: &[u8]) -> Result<Asked> {
        let mut body = object(body, &["step", "part", "query", "prompts", "labels"])?;
        let (step, part) = self.step(&mut body)?;
        let queries = self.list(&mut body, "query")?;
        let prompts = self.list(&mut body, "prompts")?;
        let labels = match body.get("labels") {
            None | Some(Value::Null) => vec![Value::Null; queries.len()],
            Some(_) => self.list(&mut body, "labels")?,
        };
        for (name, got) in [("prompts", prompts.len()), ("labels", labels.len())] {
            if got != queries.len() {
                let expected = format!("{}, one a query", queries.len());
                return Err(Refusal::value(name, format!("{got} items"), expected));
            }
        }
        let each = queries.into_iter().zip(prompts).zip(labels).enumerate();
        let samples = each.map(|(i, ((query, prompt), label))| {
            let prompt = text(&format!("prompts[{i}]"), prompt)?;
            let query = text(&format!("query[{i}]"), query)?;
            let Some(response) = query.strip_prefix(&prompt) else {
                let start: String = query.chars().take(80).collect();
                let expected = format!("a text that begins with prompts[{i}]");
                return Err(Refusal::value(
                    format!("query[{i}]"),
                    format!("{start:?} …"),
                    expected,
                ));
            };
            let ended = self.ends.iter().find_map(|end| response.strip_suffix(end.as_str()));
            let response = ended.unwrap_or(response).to_owned();
            self.labelled(&format!("labels[{i}]"), prompt, response, ended.is_some(), label)
        });
        Ok(Asked { step, part, samples: samples.collect::<Result<_>>()? })
    }

    /// `label` is null, a reference answer, or an object, which may be written as a text, of a row's
    /// other fields.
    fn labelled(
        &self,
        at: &str,
        prompt: String,
        response: String,
        finished: bool,
        label: Value,
    ) -> Result<Sample> {
        let mut row = Object::new();
        let written = |text: &str| serde_json::from_str(text).ok().filter(Value::is_object);
        match label {
            Value::Null => {}
            Value::String(reference) => match written(&reference) {
                Some(Value::Object(fields)) => row = fields,
                _ => _ = row.insert("references".into(), vec![reference].into()),
            },
            Value::Object(fields) => row = fields,
            other => {
                return Err(Refusal::value(
                    at,
                    other,
                    "a reference, an object of a row's fields or null",
                ));
            }
        }
        if let Some(key) = ["response", "finished"].into_iter().find(|key| row.contains_key(*key)) {
            return Err(Refusal::value(
                format!("{at}.{key}"),
                "given",
                "left out: the query has it",
            ));
        }
        row.entry("prompt").or_insert(prompt.into());
        row.insert("response".into(), response.into());
        row.insert("finished".into(), finished.into());
        self.row(at, row.into())
    }

    fn row(&self, at: &str, row: Value) -> Result<Sample> {
        let Value::Object(mut row) = row else { return Err(Refusal::value(at, row, "an object")) };
        const KEYS: [&str; 6] =
            ["prompt", "response", "finished", "references", "fields", "judges"];
        known(&format!("{at}."), &row, &KEYS)?;
        let path = |key: &str| format!("{at}.{key}");
        let mut take = |key: &str| row.remove(key).unwrap_or_default();
        let texts = |key: &str, value: Value| match value {
            Value::Null => Ok(None),
            Value::Array(items) => {
                let items = items.into_iter().enumerate();
                let items = items.map(|(i, item)| text(&format!("{at}.{key}[{i}]"), item));
                items.collect::<Result<Vec<_>>>().map(Some)
            }
            other => Err(Refusal::value(path(key), other, "a list of texts")),
        };
        let judges = texts("judges", take("judges"))?;
        let unknown = judges.iter().flatten().find(|name| !self.objectives.contains(name));
        if let Some(name) = unknown {
            let expected = format!("one of {}", self.objectives.join(", "));
            return Err(Refusal::value(path("judges"), format!("{name:?}"), expected));
        }
        if self.judges && judges.is_none() {
            let expected = "the names of the rewards that judge the row, of which the configuration's \
                            types of task have some each";
            return Err(Refusal::value(path("judges"), "missing", expected));
        }
        Ok(Sample {
            prompt: text(&path("prompt"), take("prompt"))?,
            response: text(&path("response"), take("response"))?,
            finished: match take("finished") {
                Value::Bool(finished) => finished,
                other => {
                    let expected =
                        "true where the response ended by itself, false where it was cut";
                    return Err(Refusal::value(path("finished"), shown(&other), expected));
                }
            },
            references: texts("references", take("references"))?.unwrap_or_default(),
            fields: match take("fields") {
                Value::Null => Object::new(),
                Value::Object(fields) => fields,
                other => return Err(Refusal::value(path("fields"), other, "an object")),
            },
            judges: Judges::of(judges.as_deref()),
        })
    }

    fn step(&self, body: &mut Object) -> Result<(Option<u64>, String)> {
        let step = match body.remove("step") {
            None | Some(Value::Null) if self.step => {
                let expected = "the number of the training step, because the weights move";
                return Err(Refusal::value("step", "missing", expected));
            }
            None | Some(Value::Null) => None,
            Some(value) => match value.as_u64() {
                Some(step) => Some(step),
                None => return Err(Refusal::value("step", value, "an integer of at least 0")),
            },
        };
        let part = match body.remove("part") {
            None | Some(Value::Null) => String::new(),
            Some(value) => text("part", value)?,
        };
        if part.len() > MAX_PART {
            let expected = format!("at most {MAX_PART}");
            return Err(Refusal::value("part", format!("{} bytes", part.len()), expected));
        }
        Ok((step, part))
    }

    fn list(&self, body: &mut Object, key: &str) -> Result<Vec<Value>> {
        match body.remove(key) {
            Some(Value::Array(items)) if items.is_empty() => {
                Err(Refusal::value(key, "empty", "at least one item"))
            }
            Some(Value::Array(items)) if items.len() > self.rows => {
                let expected = format!("at most {} (--max-rows)", self.rows);
                Err(Refusal::value(key, format!("{} items", items.len()), expected))
            }
            Some(Value::Array(items)) => Ok(items),
            other => Err(Refusal::value(key, shown(&other.unwrap_or_default()), "a list")),
        }
    }
}

fn object(body: &[u8], keys: &[&str]) -> Result<Object> {
    let value = serde_json::from_slice(body);
    let value = value.map_err(|e| Refusal::value("the body", e, "a JSON object"))?;
    let Value::Object(object) = value else {
        return Err(Refusal::value("the body", shown(&value), "a JSON object"));
    };
    known("", &object, keys)?;
    Ok(object)
}

fn known(before: &str, object: &Object, keys: &[&str]) -> Result<()> {
    match object.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let expected = format!("one of {}", keys.join(", "));
            Err(Refusal::value(format!("{before}{key}"), "an unknown field", expected))
        }
    }
}

fn text(at: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Refusal::value(at, shown(&other), "a text")),
    }
}

/// The start of a value, for an error.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "missing".to_owned(),
        other => other.to_string().chars().take(80).collect(),
    }
}
