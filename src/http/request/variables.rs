//! Variables of a request for the chat template.

use serde_json::{Map, Value};

use super::json::Fields;
use crate::{
    chat::{ChatTemplate, is_reserved},
    grammar::within,
    http::error::{ApiError, shorten, show},
};

/// Bounds of `chat_template_kwargs`: nesting, and values in all.
const MAX_DEPTH: usize = 8;
const MAX_VALUES: usize = 4096;

/// Variables for the chat template by name: `chat_template_kwargs`, and the fields of a body that
/// other servers hand to templates.
#[derive(Debug, Default)]
pub struct Variables(Map<String, Value>);

impl Variables {
    const NAME: &str = "chat_template_kwargs";

    /// Takes the variables from a body; `template` renders its messages. Fields that the template
    /// does not read are left for the table of foreign fields.
    pub fn take(fields: &mut Fields, template: Option<&ChatTemplate>) -> Result<Self, ApiError> {
        let mut left = MAX_VALUES;
        let mut variables = Self::named(fields, &mut left)?;
        let Some(template) = template else { return Ok(variables) };
        if template.knows("documents") {
            variables.add_documents(fields, &mut left)?;
        }
        if template.knows("reasoning_effort")
            && let Some(effort) = fields.peek("reasoning_effort").cloned()
        {
            variables.set("reasoning_effort", "reasoning_effort", effort)?;
        }
        if template.knows("enable_thinking") {
            for (name, thinks) in thinking(fields)? {
                variables.set(name, "enable_thinking", thinks.into())?;
            }
        }
        Ok(variables)
    }

    /// `chat_template_kwargs`, of at most `left` values.
    fn named(fields: &mut Fields, left: &mut usize) -> Result<Self, ApiError> {
        let variables = match fields.take(Self::NAME) {
            None => return Ok(Self::default()),
            Some(Value::Object(variables)) => variables,
            Some(other) => {
                return Err(fields.refuse(Self::NAME, &other, "an object of template variables"));
            }
        };
        for (name, value) in &variables {
            let param = format!("{}.{}", Self::NAME, shorten(name));
            if is_reserved(name) {
                let reason = "the server or the model sets this variable of the template itself";
                return Err(ApiError::Unsupported { param, reason: reason.to_owned() });
            }
            bounded(param, value, left)?;
        }
        Ok(Self(variables))
    }

    /// `documents`: objects. An empty list counts as absent, as in the templates' guards.
    fn add_documents(&mut self, fields: &mut Fields, left: &mut usize) -> Result<(), ApiError> {
        let documents = fields.list("documents")?.unwrap_or_default();
        for (index, document) in documents.iter().enumerate() {
            let param = format!("documents[{index}]");
            if !document.is_object() {
                let expected = "an object, such as {\"title\", \"text\"}";
                return Err(ApiError::value(param, show(document), expected));
            }
            bounded(param, document, left)?;
        }
        if !documents.is_empty() {
            self.0.insert("documents".to_owned(), documents.into());
        }
        Ok(())
    }

    /// Sets the variable `name` to the value of the field `param`.
    fn set(&mut self, param: &str, name: &str, value: Value) -> Result<(), ApiError> {
        match self.0.get(name) {
            Some(other) if *other != value => {
                let expected = format!("{}, as another field says", show(other));
                Err(ApiError::value(param, show(&value), expected))
            }
            _ => {
                self.0.insert(name.to_owned(), value);
                Ok(())
            }
        }
    }

    /// Adds the tools that can be called.
    pub fn offer(&mut self, tools: Value) {
        self.0.insert("tools".to_owned(), tools);
    }

    /// The variables by name.
    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Refuses variables beside a prompt, which no template is for.
    pub fn unused(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(ApiError::value(Self::NAME, "given beside prompt", "messages, which templates are for"))
    }
}

/// Whether the model is to think before it answers, by the fields that say so.
fn thinking(fields: &mut Fields) -> Result<Vec<(&'static str, bool)>, ApiError> {
    let switch = |value: &Value| match value {
        Value::Bool(thinks) => Some(*thinks),
        Value::Object(map) if map.len() == 1 => match map.get("type")?.as_str()? {
            "enabled" => Some(true),
            "disabled" => Some(false),
            _ => None,
        },
        _ => None,
    };
    let expected = || "true, false or {\"type\": \"enabled\" or \"disabled\"}".to_owned();
    let mut said = Vec::new();
    for name in ["enable_thinking", "think", "thinking"] {
        said.extend(fields.convert(name, switch, expected)?.map(|thinks| (name, thinks)));
    }
    if fields.peek("reasoning_effort").is_some_and(|effort| effort == "none") {
        said.push(("reasoning_effort", false));
    }
    Ok(said)
}

/// Refuses a value that is nested too deep, or holds more values than are `left`.
fn bounded(param: String, value: &Value, left: &mut usize) -> Result<(), ApiError> {
    if within(value, MAX_DEPTH, left) {
        return Ok(());
    }
    let expected = format!("at most {MAX_VALUES} values, nested at most {MAX_DEPTH} deep");
    Err(ApiError::value(param, show(value), expected))
}
