//! What a request holds its answer to: `response_format` (OpenAI), `structured_outputs` and the older
//! `guided_*` (vLLM).

use serde_json::{Value, json};

use super::json::{Fields, Place};
use crate::{
    grammar::{Compiler, Constraint, Grammar, GrammarError},
    http::error::{ApiError, show},
};

/// A constraint, and the field that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub field: String,
    pub constraint: Constraint,
}

impl Asked {
    fn new(field: impl Into<String>, constraint: Constraint) -> Self {
        Self { field: field.into(), constraint }
    }

    /// Its grammar.
    pub fn compile(self, compiler: &Compiler) -> Result<Grammar, ApiError> {
        let Self { field, constraint } = self;
        let compiled = compiler.compile(constraint);
        compiled.map_err(|error| refusal(&field, error))
    }
}

/// The error for a constraint of `field`.
pub fn refusal(field: &str, error: GrammarError) -> ApiError {
    match error {
        GrammarError::Unsupported { path, reason } => {
            ApiError::Unsupported { param: format!("{field}.{path}"), reason }
        }
        GrammarError::Invalid(reason) => {
            ApiError::Value { param: field.to_owned(), message: format!("{field}: {reason}") }
        }
    }
}

/// Takes the constraint of a body, of which there is at most one.
pub fn take(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    let mut asked: Vec<Asked> = response_format(fields)?.into_iter().collect();
    if let Some(value) = fields.take("structured_outputs") {
        let path = fields.path("structured_outputs");
        let mut inner = Fields::of(Place::StructuredOutputs, path, value)?;
        asked.extend(named(&mut inner, ["json", "regex", "choice", "grammar"])?);
        if inner.flag("json_object")? == Some(true) {
            asked.push(Asked::new(inner.path("json_object"), object()));
        }
        inner.finish()?;
    }
    asked
        .extend(named(fields, ["guided_json", "guided_regex", "guided_choice", "guided_grammar"])?);
    one(asked)
}

/// The one constraint of several fields.
pub fn one(asked: impl IntoIterator<Item = Asked>) -> Result<Option<Asked>, ApiError> {
    let mut asked = asked.into_iter();
    match (asked.next(), asked.next()) {
        (Some(first), Some(second)) => {
            let got = format!("given beside {}", first.field);
            Err(ApiError::value(second.field, got, "one constraint"))
        }
        (one, _) => Ok(one),
    }
}

/// Any JSON object.
fn object() -> Constraint {
    Constraint::Schema(json!({"type": "object"}))
}

/// The constraints under these names. Empty ones ask for nothing.
fn named(
    fields: &mut Fields,
    [json, regex, choice, grammar]: [&'static str; 4],
) -> Result<Vec<Asked>, ApiError> {
    let mut asked = Vec::new();
    if let Some(value) = fields.take(json) {
        let path = fields.path(json);
        asked.extend(schema(&path, value)?.map(|schema| Asked::new(path, schema)));
    }
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(text) = text(fields.text(regex)?) {
        asked.push(Asked::new(fields.path(regex), Constraint::Regex(text)));
    }
    if let Some(items) = fields.list(choice)?.filter(|items| !items.is_empty()) {
        let texts = items.iter().map(|item| {
            let text = item.as_str().map(str::to_owned);
            text.ok_or_else(|| fields.refuse(choice, item, "a list of strings"))
        });
        let texts = texts.collect::<Result<_, _>>()?;
        asked.push(Asked::new(fields.path(choice), Constraint::Choice(texts)));
    }
    if let Some(text) = text(fields.text(grammar)?) {
        asked.push(Asked::new(fields.path(grammar), Constraint::Lark(text)));
    }
    Ok(asked)
}

/// A schema as JSON, or as text that is JSON.
fn schema(path: &str, value: Value) -> Result<Option<Constraint>, ApiError> {
    let parsed = match &value {
        Value::String(text) if text.is_empty() => return Ok(None),
        Value::String(text) => serde_json::from_str(text).ok(),
        _ => Some(value.clone()),
    };
    match parsed {
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(Constraint::Schema(schema))),
        _ => Err(ApiError::value(path, show(&value), "a JSON Schema, as an object or as its text")),
    }
}

/// `response_format`: `text`, `json_object` or `json_schema`.
fn response_format(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    const NAME: &str = "response_format";
    let Some(value) = fields.take(NAME) else { return Ok(None) };
    format(fields.path(NAME), value)
}

/// A format of an answer, `{"type", …}`, under OpenAI's names. In `/v1/responses` the members of
/// `json_schema` stand beside the type.
pub fn format(path: String, value: Value) -> Result<Option<Asked>, ApiError> {
    let mut format = Fields::of(Place::Format, path.clone(), value)?;
    let kind = format.text("type")?.unwrap_or_else(|| "text".to_owned());
    let asked = match kind.as_str() {
        "text" => None,
        "json_object" => match format.take("schema") {
            None => Some(Asked::new(path, object())),
            Some(value) => described(format.path("schema"), value)?,
        },
        "json_schema" => match format.take("json_schema") {
            Some(value) => {
                let mut inner = Fields::of(Place::Format, format.path("json_schema"), value)?;
                let asked = json_schema(&mut inner)?;
                inner.finish()?;
                asked
            }
            None => json_schema(&mut format)?,
        },
        _ => {
            let expected = "\"text\", \"json_object\" or \"json_schema\"";
            return Err(format.refuse("type", &kind.into(), expected));
        }
    };
    format.finish()?;
    Ok(asked)
}

/// `{"name", "schema", "strict"}`. An answer is held to the schema whether or not it is strict.
fn json_schema(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    fields.text("name")?;
    fields.text("description")?;
    fields.flag("strict")?;
    let value = fields.take("schema").ok_or_else(|| fields.missing("schema", "a JSON Schema"))?;
    described(fields.path("schema"), value)
}

fn described(path: String, value: Value) -> Result<Option<Asked>, ApiError> {
    Ok(schema(&path, value)?.map(|schema| Asked::new(path, schema)))
}
