//! The forms of a prompt: text, token ids, several of either, or a conversation.

use serde_json::Value;

use super::json::{Fields, Place, whole};
use crate::{
    chat::{ChatError, Message},
    http::{
        app::Served,
        error::{ApiError, show},
    },
    tokenizer::{Tokenizer, TokenizerError},
};

/// What a prompt of `/v1/completions` may be.
pub const FORMS: &str = "a string, a list of token ids, or a list of either";
const MAX_MESSAGES: usize = 4096;

/// A tokenised prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Its tokens; at least one.
    pub ids: Vec<u32>,
    /// The field it came from.
    pub param: &'static str,
    text: Option<String>,
}

impl Prompt {
    /// The text as given, or that of the ids.
    pub fn text(&self, tokenizer: &Tokenizer) -> String {
        self.text.clone().unwrap_or_else(|| tokenizer.decode(&self.ids, false))
    }
}

/// What to continue.
pub enum Source {
    Prompt(Value),
    Messages(Value),
}

/// The one of `prompt` and `messages` that is given.
pub fn source(fields: &mut Fields) -> Result<Source, ApiError> {
    let got = match (fields.take("prompt"), fields.take("messages")) {
        (Some(prompt), None) => return Ok(Source::Prompt(prompt)),
        (None, Some(messages)) => return Ok(Source::Messages(messages)),
        (Some(_), Some(_)) => "given beside messages",
        (None, None) => "absent",
    };
    Err(ApiError::value("prompt", got, "either prompt or messages"))
}

/// One prompt: a string, to which `special` adds what the tokenizer puts around a text, or a list
/// of token ids.
pub fn single(served: &Served, value: Value, special: bool) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => encode(served, text, special),
        Value::Array(items) => ids(served, "prompt", &items),
        other => Err(ApiError::value("prompt", show(&other), "a string or a list of token ids")),
    }
}

/// At most `limit` prompts, each as in [`single`].
pub fn several(
    served: &Served,
    value: Value,
    limit: usize,
    special: bool,
) -> Result<Vec<Prompt>, ApiError> {
    let items = match value {
        Value::Array(items) if items.iter().all(|item| item.is_string() || item.is_array()) => {
            items
        }
        other => return single(served, other, special).map(|prompt| vec![prompt]),
    };
    if items.is_empty() || items.len() > limit {
        let expected = format!("1 to {limit} prompts");
        return Err(ApiError::value(
            "prompt",
            format!("a list of {} prompts", items.len()),
            expected,
        ));
    }
    items.into_iter().map(|item| single(served, item, special)).collect()
}

/// The prompt that the chat template makes of `messages`. The template writes its own special
/// tokens; `special` adds the tokenizer's beside them.
pub fn chat(served: &Served, messages: Value, special: bool) -> Result<Prompt, ApiError> {
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
        .map(|(index, item)| message(format!("messages[{index}]"), item))
        .collect::<Result<Vec<_>, _>>()?;
    let text = template.render(&messages, true).map_err(|error| match error {
        ChatError::Refused(_) | ChatError::Limit { .. } => {
            ApiError::Value { param: "messages".into(), message: format!("messages: {error}") }
        }
        other => ApiError::Internal(other.to_string()),
    })?;
    let encoded = served.tokenizer.encode(&text, special);
    let ids = encoded.map_err(|error| not_encoded("messages", error))?;
    if ids.is_empty() {
        return Err(ApiError::value(
            "messages",
            "empty after the chat template",
            "at least one token",
        ));
    }
    Ok(Prompt { ids, param: "messages", text: Some(text) })
}

fn message(path: String, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::of(Place::Message, path, value)?;
    let expected = "\"system\", \"developer\", \"user\" or \"assistant\"";
    let role = match fields.take("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            _ => return Err(fields.refuse("role", &Value::String(role), expected)),
        },
        Some(other) => return Err(fields.refuse("role", &other, expected)),
        None => return Err(fields.missing("role", expected)),
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(index, part)| text_part(format!("{}[{index}]", fields.path("content")), part))
            .collect::<Result<Vec<_>, _>>()?
            .join("\n"),
        None if role == "assistant" => String::new(),
        other => {
            let expected = "a string or a list of {\"type\": \"text\", \"text\"} parts";
            return Err(match other {
                Some(other) => fields.refuse("content", &other, expected),
                None => fields.missing("content", expected),
            });
        }
    };
    fields.finish()?;
    Ok(Message { role: role.into(), content })
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

fn encode(served: &Served, text: String, special: bool) -> Result<Prompt, ApiError> {
    if text.is_empty() {
        return Err(ApiError::value("prompt", "\"\"", "at least one character"));
    }
    let encoded = served.tokenizer.encode(&text, special);
    let ids = encoded.map_err(|error| not_encoded("prompt", error))?;
    if ids.is_empty() {
        return Err(ApiError::value(
            "prompt",
            show(&Value::String(text)),
            "text of at least one token",
        ));
    }
    Ok(Prompt { ids, param: "prompt", text: Some(text) })
}

/// The error for a text that the tokenizer cannot encode.
pub fn not_encoded(param: &'static str, error: TokenizerError) -> ApiError {
    ApiError::Value { param: param.into(), message: format!("{param}: {error}") }
}

/// A prompt of token ids.
pub fn ids(served: &Served, param: &'static str, items: &[Value]) -> Result<Prompt, ApiError> {
    let vocabulary = served.engine.bounds().vocabulary;
    if items.is_empty() {
        return Err(ApiError::value(param, "an empty list", "at least one token id"));
    }
    let id = |(index, item): (usize, &Value)| {
        let id = whole(item).and_then(|id| u32::try_from(id).ok());
        id.filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
            let expected = format!("a token id below {vocabulary}");
            ApiError::value(format!("{param}[{index}]"), show(item), expected)
        })
    };
    let ids = items.iter().enumerate().map(id).collect::<Result<_, _>>()?;
    Ok(Prompt { ids, param, text: None })
}
