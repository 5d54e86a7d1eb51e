//! Conversations: messages and template variables become a prompt.

use serde_json::{Map, Value};

use super::{
    json::{Fields, Place},
    prompt::{self, Prompt},
};
use crate::{
    chat::{
        ChatError, ChatTemplate, Content, Conversation, Message, generation_prompt, is_reserved,
    },
    http::{
        app::Served,
        error::{ApiError, shorten, show},
    },
    soup::ActiveFrom,
};

const MAX_MESSAGES: usize = 4096;
/// Bounds of `chat_template_kwargs`: nesting, and values in all.
const MAX_DEPTH: usize = 8;
const MAX_VALUES: usize = 4096;
/// Names of a turn's reasoning: vLLM's older and newer one, and that of gpt-oss and Ollama. A
/// template reads the one that its model was published with, so each gets the text.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

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

/// Whether a value is nested at most `depth` deep and holds at most as many values as are `left`.
fn within(value: &Value, depth: usize, left: &mut usize) -> bool {
    let (Some(depth), Some(rest)) = (depth.checked_sub(1), left.checked_sub(1)) else {
        return false;
    };
    *left = rest;
    match value {
        Value::Array(items) => items.iter().all(|item| within(item, depth, left)),
        Value::Object(map) => map.values().all(|item| within(item, depth, left)),
        _ => true,
    }
}

/// The prompt that the chat template makes of `messages`. The template writes its own special
/// tokens; `special` adds the tokenizer's beside them.
pub fn prompt(
    served: &Served,
    messages: Value,
    variables: Variables,
    special: bool,
) -> Result<Prompt, ApiError> {
    let Some(template) = &served.chat else {
        let reason = "the base model has no chat template; use prompt".to_owned();
        return Err(ApiError::Unsupported { param: "messages".into(), reason });
    };
    let items = match messages {
        Value::Array(items) if (1..=MAX_MESSAGES).contains(&items.len()) => items,
        other => {
            let expected =
                format!("a list of 1 to {MAX_MESSAGES} messages, each {{\"role\", \"content\"}}");
            return Err(ApiError::value("messages", show(&other), expected));
        }
    };
    let messages = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| message(template, format!("messages[{index}]"), item))
        .collect::<Result<Vec<_>, _>>()?;
    let conversation =
        Conversation { messages, add_generation_prompt: true, variables: variables.0 };
    // An error of the template here means that it cannot render these messages.
    let refuse = |error: ChatError| ApiError::Value {
        param: "messages".into(),
        message: format!("messages: {error}"),
    };
    if served.active_from != ActiveFrom::GenerationPrompt {
        let text = template.render(&conversation).map_err(refuse)?;
        return prompt::encode(served, "messages", text, special);
    }
    let rendered = template.render_both(conversation).map_err(refuse)?;
    let mut prompt = prompt::encode(served, "messages", rendered.prompt, special)?;
    let turns = served.tokenizer.encode_prompt(&rendered.turns, special);
    let turns = turns.map_err(|error| prompt::not_encoded("messages", error))?;
    prompt.opening = Some(generation_prompt::start(&prompt.ids, &turns));
    Ok(prompt)
}

fn message(template: &ChatTemplate, path: String, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::of(Place::Message, path, value)?;
    let expected = "\"system\", \"developer\", \"user\" or \"assistant\"";
    let role = match fields.take("role") {
        Some(Value::String(role)) => match role.as_str() {
            "developer" if template.knows("developer") => "developer",
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            _ => return Err(fields.refuse("role", &Value::String(role), expected)),
        },
        Some(other) => return Err(fields.refuse("role", &other, expected)),
        None => return Err(fields.missing("role", expected)),
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => Content::Text(text),
        Some(Value::Array(parts)) => {
            let path = |index| format!("{}[{index}]", fields.path("content"));
            let parts = parts.into_iter().enumerate();
            let texts = parts.map(|(index, part)| text_part(path(index), part));
            Content::of_texts(texts.collect::<Result<Vec<_>, _>>()?)
        }
        None if role == "assistant" => Content::Text(String::new()),
        other => {
            let expected = "a string or a list of {\"type\": \"text\", \"text\"} parts";
            return Err(match other {
                Some(other) => fields.refuse("content", &other, expected),
                None => fields.missing("content", expected),
            });
        }
    };
    let mut message = Message::new(role, template.content(content));
    if let Some(name) = fields.text("name")? {
        message.more.insert("name".to_owned(), name.into());
    }
    if let Some(reasoning) = reasoning(&mut fields)? {
        for name in REASONING {
            message.more.insert(name.to_owned(), reasoning.clone().into());
        }
    }
    fields.finish()?;
    Ok(message)
}

/// A turn's reasoning, under whichever of its names it is given.
fn reasoning(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let mut given: Option<String> = None;
    for name in REASONING {
        let Some(text) = fields.text(name)? else { continue };
        match &given {
            Some(other) if !other.is_empty() && !text.is_empty() && *other != text => {
                let expected = format!("{}, as another name says", show(&other.clone().into()));
                return Err(fields.refuse(name, &text.into(), expected));
            }
            Some(other) if text.is_empty() || *other == text => {}
            _ => given = Some(text),
        }
    }
    Ok(given)
}

fn text_part(path: String, value: Value) -> Result<String, ApiError> {
    let mut part = Fields::of(Place::Part, path, value)?;
    let expected = "\"text\", the only kind of content";
    match part.take("type") {
        Some(kind) if kind == "text" => {}
        Some(kind) => return Err(part.refuse("type", &kind, expected)),
        None => return Err(part.missing("type", expected)),
    }
    let text = part.text("text")?.ok_or_else(|| part.missing("text", "a string"))?;
    part.finish()?;
    Ok(text)
}
