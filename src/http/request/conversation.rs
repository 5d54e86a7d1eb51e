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

/// Variables for the chat template by name, `chat_template_kwargs`.
#[derive(Debug, Default)]
pub struct Variables(Map<String, Value>);

impl Variables {
    const NAME: &str = "chat_template_kwargs";

    /// Takes them from a body.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let variables = match fields.take(Self::NAME) {
            None => return Ok(Self::default()),
            Some(Value::Object(variables)) => variables,
            Some(other) => {
                return Err(fields.refuse(Self::NAME, &other, "an object of template variables"));
            }
        };
        let mut left = MAX_VALUES;
        for (name, value) in &variables {
            let param = format!("{}.{}", Self::NAME, shorten(name));
            if is_reserved(name) {
                let reason = "the server or the model sets this variable of the template itself";
                return Err(ApiError::Unsupported { param, reason: reason.to_owned() });
            }
            if !within(value, MAX_DEPTH, &mut left) {
                let expected =
                    format!("at most {MAX_VALUES} values, nested at most {MAX_DEPTH} deep");
                return Err(ApiError::value(param, show(value), expected));
            }
        }
        Ok(Self(variables))
    }

    /// Refuses variables beside a prompt, which no template is for.
    pub fn unused(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(ApiError::value(Self::NAME, "given beside prompt", "messages, which templates are for"))
    }
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
    // Whatever the template says to these messages, they are what it cannot take.
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
    // Templates read a turn's reasoning under the first name, that of gpt-oss under the second.
    if let Some(reasoning) = fields.text("reasoning_content")? {
        message.more.insert("reasoning_content".to_owned(), reasoning.clone().into());
        message.more.insert("thinking".to_owned(), reasoning.into());
    }
    fields.finish()?;
    Ok(message)
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
