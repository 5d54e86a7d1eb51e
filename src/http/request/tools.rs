//! Tools that the model may call: `tools`, `tool_choice` and `parallel_tool_calls`, and the grammar
//! that holds an answer to them.

use std::{collections::HashSet, fmt::Write, sync::Arc};

use serde_json::{Map, Value, json};

use super::{
    constraint::{self, Asked},
    json::{Fields, Place},
};
use crate::{
    chat::tools::CallFormat,
    grammar::{
        Constraint,
        lark::{Json, Text},
        prepare_schema,
    },
    http::{
        error::{ApiError, shorten, show},
        served::Served,
    },
};

/// Most tools of a request.
const MAX_TOOLS: usize = 128;

/// A tool that can be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments.
    pub parameters: Value,
    /// The field that the schema stands in.
    pub path: String,
}

impl Tool {
    /// The tool that `fields` are, its parameters under the name `parameters`.
    pub fn take(mut fields: Fields, parameters: &'static str) -> Result<Self, ApiError> {
        let expected = "1 to 64 letters, digits, _, - or .";
        let name = fields.text("name")?.ok_or_else(|| fields.missing("name", expected))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err(fields.refuse("name", &name.into(), expected));
        }
        fields.flag("strict")?;
        let path = fields.path(parameters);
        let none = || json!({"type": "object", "properties": {}, "additionalProperties": false});
        let parameters = fields.take(parameters).unwrap_or_else(none);
        let description = fields.text("description")?;
        fields.finish()?;
        Ok(Self { name, description, parameters, path })
    }

    /// As templates read it.
    fn described(&self) -> Value {
        let mut function = json!({"name": self.name, "parameters": self.parameters});
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        json!({"type": "function", "function": function})
    }

    /// The schema of its arguments, which are an object.
    fn schema(&self) -> Result<Value, ApiError> {
        let mut schema = match &self.parameters {
            Value::Object(schema) => schema.clone(),
            other => return Err(ApiError::value(&self.path, show(other), "a JSON Schema")),
        };
        match schema.get("type") {
            None => drop(schema.insert("type".to_owned(), "object".into())),
            Some(kind) if kind == "object" => {}
            Some(kind) => {
                let path = format!("{}.type", self.path);
                return Err(ApiError::value(path, show(kind), "\"object\""));
            }
        }
        prepare_schema(schema.into()).map_err(|error| constraint::refusal(&self.path, error))
    }
}

/// Which tools an answer calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// None.
    None,
    /// Those that the model wants to call, or none.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    pub tools: Vec<Tool>,
    pub choice: Choice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
}

/// How the calls of an answer are told from its text.
#[derive(Debug, Clone)]
pub struct Calls {
    pub format: Arc<CallFormat>,
    /// Why an answer that calls is complete: `tool_calls`, or `stop` for a tool that was named, which
    /// is OpenAI's way.
    pub reason: &'static str,
}

/// Where the name and the rest of a function stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// In an object `function`: chat completions.
    Nested,
    /// Beside `type`: responses.
    Flat,
}

impl Shape {
    /// The fields of a function; `expected` are those of the object `function`.
    pub fn function(self, mut fields: Fields, expected: &str) -> Result<Fields, ApiError> {
        if let Some(kind) = fields.take("type").filter(|kind| kind != "function") {
            return Err(fields.refuse("type", &kind, "\"function\", the only kind of tool"));
        }
        if self == Self::Flat {
            return Ok(fields);
        }
        let function =
            fields.take("function").ok_or_else(|| fields.missing("function", expected))?;
        let function = Fields::of(Place::Tool, fields.path("function"), function)?;
        fields.finish()?;
        Ok(function)
    }

    /// The tool that is named by an object.
    fn named(self, value: Value) -> Result<Choice, ApiError> {
        let fields = Fields::of(Place::Tool, "tool_choice", value)?;
        let mut function = self.function(fields, "{\"name\"}")?;
        let name = tool_name(&mut function)?;
        function.finish()?;
        Ok(Choice::Named(name))
    }

    /// The forms of `tool_choice`.
    fn choices(self) -> &'static str {
        match self {
            Self::Nested => {
                "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\"}}"
            }
            Self::Flat => {
                "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"name\": a tool}"
            }
        }
    }
}

/// The tools of a body, each of which `read` reads.
pub fn tool_list(
    fields: &mut Fields,
    read: impl Fn(Fields) -> Result<Tool, ApiError>,
) -> Result<Vec<Tool>, ApiError> {
    let items = fields.list("tools")?.unwrap_or_default().into_iter().enumerate();
    let read = |(index, item)| read(Fields::of(Place::Tool, format!("tools[{index}]"), item)?);
    items.map(read).collect()
}

/// The name of a tool that is called.
pub fn tool_name(fields: &mut Fields) -> Result<String, ApiError> {
    fields.text("name")?.ok_or_else(|| fields.missing("name", "the name of a tool"))
}

impl Tools {
    /// Takes OpenAI's fields.
    pub fn take(fields: &mut Fields, shape: Shape) -> Result<Self, ApiError> {
        let tools = tool_list(fields, |tool| {
            Tool::take(shape.function(tool, "{\"name\", \"parameters\"}")?, "parameters")
        })?;
        let choice = match fields.take("tool_choice") {
            None => Choice::Auto,
            Some(Value::String(choice)) => match choice.as_str() {
                "none" => Choice::None,
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                _ => return Err(fields.refuse("tool_choice", &choice.into(), shape.choices())),
            },
            Some(value @ Value::Object(_)) => shape.named(value)?,
            Some(other) => return Err(fields.refuse("tool_choice", &other, shape.choices())),
        };
        let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        Self { tools, choice, parallel }.checked()
    }

    /// Checks names and choice.
    pub fn checked(self) -> Result<Self, ApiError> {
        let count = self.tools.len();
        if count > MAX_TOOLS {
            let got = format!("a list of {count} tools");
            return Err(ApiError::value("tools", got, format!("at most {MAX_TOOLS}")));
        }
        let mut names = HashSet::new();
        if let Some(twice) = self.tools.iter().find(|tool| !names.insert(&tool.name)) {
            return Err(ApiError::value(
                "tools",
                show(&twice.name.clone().into()),
                "each name once",
            ));
        }
        match &self.choice {
            Choice::Named(name) if !names.contains(name) => {
                let known: Vec<&str> = self.tools.iter().map(|tool| tool.name.as_str()).collect();
                let expected = match known.as_slice() {
                    [] => "a tool of tools, of which there are none".to_owned(),
                    known => format!("one of {}", shorten(&known.join(", "))),
                };
                Err(ApiError::value("tool_choice", show(&name.clone().into()), expected))
            }
            Choice::Required if self.tools.is_empty() => {
                Err(ApiError::value("tool_choice", "\"required\"", "tools beside it"))
            }
            _ => Ok(self),
        }
    }

    /// Whether an answer may call one.
    fn may_call(&self) -> bool {
        !self.tools.is_empty() && self.choice != Choice::None
    }

    /// The tools as the template reads them, with the model's way to write calls; `None`: no tool can
    /// be called.
    pub fn offered<'a>(
        &self,
        served: &'a Served,
    ) -> Result<Option<(Value, &'a Arc<CallFormat>)>, ApiError> {
        if !self.may_call() {
            return Ok(None);
        }
        let format = served.calls.as_ref().map_err(|reason| ApiError::Unsupported {
            param: "tools".to_owned(),
            reason: (*reason).to_owned(),
        })?;
        Ok(Some((self.tools.iter().map(Tool::described).collect(), format)))
    }

    /// Refuses tools beside a prompt, which no template is for.
    pub fn unused(&self) -> Result<(), ApiError> {
        match self.may_call() {
            true => Err(ApiError::value("tools", "given beside prompt", "messages")),
            false => Ok(()),
        }
    }

    /// What tells calls from text, and the constraint on an answer with calls in this format, of whose
    /// text `asked` says something.
    pub fn constrain(
        &self,
        format: &Arc<CallFormat>,
        asked: Option<&Asked>,
    ) -> Result<(Calls, Asked), ApiError> {
        let chosen = |tool: &&Tool| match &self.choice {
            Choice::Named(name) => tool.name == *name,
            _ => true,
        };
        let tools = self.tools.iter().filter(chosen);
        let tools = tools.map(|tool| Ok((tool.name.as_str(), tool.schema()?)));
        let tools = tools.collect::<Result<Vec<_>, ApiError>>()?;
        let text = match asked.map(|asked| (asked, &asked.constraint)) {
            None => None,
            Some(_) if self.choice != Choice::Auto => None,
            Some((asked, Constraint::Schema(schema))) if !format.trigger().is_empty() => {
                let schema = prepare_schema(schema.clone());
                Some(schema.map_err(|error| constraint::refusal(&asked.field, error))?)
            }
            Some((asked, _)) => {
                let expected = "nothing beside tools that may be called";
                return Err(ApiError::value(asked.field.clone(), "given", expected));
            }
        };
        let separator = format.separator.as_deref().filter(|_| self.parallel);
        let several = separator.filter(|_| !matches!(self.choice, Choice::Named(_)));
        let grammar = grammar(format, &tools, several, self.choice == Choice::Auto, text);
        let reason = if matches!(self.choice, Choice::Named(_)) { "stop" } else { "tool_calls" };
        let calls = Calls { format: format.clone(), reason };
        Ok((calls, Asked { field: "tools".to_owned(), constraint: Constraint::Lark(grammar) }))
    }
}

/// The grammar of an answer that calls tools, several where `separator` stands between calls. Where
/// it may do without (`optional`), it is any text, or JSON of the schema `text`.
fn grammar(
    format: &CallFormat,
    tools: &[(&str, Value)],
    separator: Option<&str>,
    optional: bool,
    text: Option<Value>,
) -> String {
    let CallFormat { before, between, after, .. } = format;
    let trigger = format.trigger();
    let more = if separator.is_some() { " more*" } else { "" };
    let mut lark = match (optional, trigger, &text) {
        (false, ..) => format!("start: call{more}\n"),
        (true, _, Some(schema)) => {
            format!("start: call{more} | json\njson: {}\n", Json(schema))
        }
        // Text up to the trigger, which ends it wherever it comes.
        (true, trigger, None) if !trigger.is_empty() => format!(
            "start: text | opening rest{more}\ntext: TEXT\nopening[lazy]: TEXT {}\nrest: {} tool\n\
             TEXT: /(.|\\n)*/\n",
            Text(trigger),
            Text(&before[trigger.len()..]),
        ),
        // A text that does not begin as a call does.
        (true, _, None) => {
            let first = regex::escape(&before.chars().take(1).collect::<String>());
            format!("start: call{more} | text?\ntext: TEXT\nTEXT: /[^{first}](.|\\n)*/\n")
        }
    };
    let names: Vec<String> = (0..tools.len()).map(|index| format!("tool_{index}")).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(lark, "call: {} tool\ntool: {}", Text(before), names.join(" | "));
    if let Some(separator) = separator {
        let _ = writeln!(lark, "more: {} call", Text(separator));
    }
    for (name, (tool, schema)) in names.iter().zip(tools) {
        let between = [tool, between.as_str()].concat();
        let _ = writeln!(lark, "{name}: {} {} {}", Text(&between), Json(schema), Text(after));
    }
    lark
}

/// A former call's arguments: an object, or its text.
pub fn arguments(path: String, value: Option<Value>) -> Result<Map<String, Value>, ApiError> {
    let parsed = match &value {
        None => Some(json!({})),
        Some(Value::String(text)) if text.trim().is_empty() => Some(json!({})),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(value) => Some(value.clone()),
    };
    match parsed {
        Some(Value::Object(arguments)) => Ok(arguments),
        _ => {
            let got = value.map_or_else(|| "absent".to_owned(), |value| show(&value));
            Err(ApiError::value(path, got, "a JSON object, or its text"))
        }
    }
}
