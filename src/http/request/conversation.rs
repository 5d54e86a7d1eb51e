//! Conversations: messages become a prompt.

use serde_json::Value;

use super::{
    json::{Fields, Place},
    prompt::{Encoder, Prompt},
    tools::{Shape, arguments, tool_name},
    variables::Variables,
};
use crate::{
    chat::{
        ChatError, ChatTemplate, Content, Conversation, Message, generation_prompt, tools::call,
    },
    http::{
        error::{ApiError, show},
        served::Served,
    },
    soup::ActiveFrom,
};

/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 4096;
/// Most calls of one turn.
const MAX_CALLS: usize = 128;
/// Names of a turn's reasoning: vLLM's older and newer one, and that of gpt-oss and Ollama. A
/// template reads the one that its model was published with, so each gets the text.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Where the answer begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Opening {
    /// In a turn of its own, which the template opens.
    #[default]
    Turn,
    /// In the last turn, which the answer goes on with.
    LastTurn,
    /// After the last turn, with no turn opened.
    Nothing,
}

impl Opening {
    /// Takes `add_generation_prompt` and `continue_final_message`.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let opens = fields.flag("add_generation_prompt")?;
        match (fields.flag("continue_final_message")?.unwrap_or(false), opens) {
            (true, Some(true)) => {
                let expected = "false beside add_generation_prompt, which opens a turn";
                Err(ApiError::value("continue_final_message", true, expected))
            }
            (true, _) => Ok(Self::LastTurn),
            (false, Some(false)) => Ok(Self::Nothing),
            (false, _) => Ok(Self::Turn),
        }
    }

    /// Refuses an opening beside a prompt, which is continued as it is.
    pub fn unused(self) -> Result<(), ApiError> {
        let (name, got) = match self {
            Self::Turn => return Ok(()),
            Self::LastTurn => ("continue_final_message", true),
            Self::Nothing => ("add_generation_prompt", false),
        };
        Err(ApiError::value(name, got, "messages beside it, not a prompt"))
    }
}

/// The template of the served model.
pub fn template(served: &Served) -> Result<&ChatTemplate, ApiError> {
    served.chat.as_ref().ok_or_else(|| ApiError::Unsupported {
        param: "messages".into(),
        reason: "the base model has no chat template; use prompt".to_owned(),
    })
}

/// The messages of a body in OpenAI's shape.
pub fn messages(template: &ChatTemplate, value: Value) -> Result<Vec<Message>, ApiError> {
    let items = match value {
        Value::Array(items) if (1..=MAX_MESSAGES).contains(&items.len()) => items,
        other => {
            let expected =
                format!("a list of 1 to {MAX_MESSAGES} messages, each {{\"role\", \"content\"}}");
            return Err(ApiError::value("messages", show(&other), expected));
        }
    };
    let items = items.into_iter().enumerate();
    items.map(|(index, item)| message(template, format!("messages[{index}]"), item)).collect()
}

/// The prompt that the chat template makes of a conversation. The template writes its own special
/// tokens.
pub fn prompt(
    encoder: &Encoder<'_>,
    messages: Vec<Message>,
    variables: Variables,
    opening: Opening,
) -> Result<Prompt, ApiError> {
    let served = encoder.served;
    let template = template(served)?;
    // An error of the template here means that it cannot render these messages.
    let refuse = |error: ChatError| ApiError::Value {
        param: "messages".into(),
        message: format!("messages: {error}"),
    };
    let add_generation_prompt = opening == Opening::Turn;
    let mut conversation =
        Conversation { messages, add_generation_prompt, variables: variables.into_map() };
    let mark = encoder.mark_all(&mut conversation)?;
    let last = match opening {
        Opening::LastTurn => Some(continued(&conversation)?),
        _ => None,
    };
    let cut = |text: String| match &last {
        None => Ok(text),
        Some(last) => cut_after(text, last).ok_or_else(|| {
            let reason = "the chat template does not write the last message as it is";
            ApiError::Unsupported {
                param: "continue_final_message".to_owned(),
                reason: reason.to_owned(),
            }
        }),
    };
    if served.active_from != ActiveFrom::GenerationPrompt || opening == Opening::Nothing {
        let text = cut(template.render(&conversation).map_err(refuse)?)?;
        return encoder.encode("messages", text, mark);
    }
    let (text, turns) = if last.is_some() {
        let text = template.render(&conversation).map_err(refuse)?;
        // The answer's turn begins where those before it end.
        conversation.messages.pop();
        (text, template.render(&conversation).map_err(refuse)?)
    } else {
        let rendered = template.render_both(conversation).map_err(refuse)?;
        (rendered.prompt, rendered.turns)
    };
    let mut prompt = encoder.encode("messages", cut(text)?, mark)?;
    let turns = encoder.tokens("messages", &turns, mark)?;
    prompt.opening = Some(generation_prompt::start(&prompt.ids, &turns));
    Ok(prompt)
}

/// The text of the last turn, which is the assistant's.
fn continued(conversation: &Conversation) -> Result<String, ApiError> {
    let text =
        conversation.messages.last().filter(|turn| turn.role == "assistant").and_then(|turn| {
            match turn.content.as_ref()? {
                Content::Text(text) => Some(text.clone()),
                Content::Parts(parts) => parts.last()?["text"].as_str().map(str::to_owned),
            }
        });
    text.filter(|text| !text.trim().is_empty()).ok_or_else(|| {
        let expected = "false, unless the last message is the assistant's and has text";
        ApiError::value("continue_final_message", true, expected)
    })
}

/// A rendering up to the end of the last turn's text, which a template may have trimmed
/// (as `transformers` cuts it).
fn cut_after(mut rendered: String, last: &str) -> Option<String> {
    let start = rendered.rfind(last.trim())?;
    let whole = last.trim_start();
    let length = if rendered[start..].starts_with(whole) { whole.len() } else { last.trim().len() };
    rendered.truncate(start + length);
    Some(rendered)
}

fn message(template: &ChatTemplate, path: String, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::of(Place::Message, path, value)?;
    let expected = "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";
    let role = match fields.take("role") {
        Some(Value::String(role)) => match role.as_str() {
            "developer" if template.knows("developer") => "developer",
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            "tool" if template.knows("tool") => "tool",
            "tool" => {
                let param = fields.path("role");
                let reason = "the chat template of this model has no turns of tools";
                return Err(ApiError::Unsupported { param, reason: reason.to_owned() });
            }
            _ => return Err(fields.refuse("role", &Value::String(role), expected)),
        },
        Some(other) => return Err(fields.refuse("role", &other, expected)),
        None => return Err(fields.missing("role", expected)),
    };
    let content = match fields.take("content") {
        Some(content) => texts(&fields.path("content"), content)?,
        None if role == "assistant" => Content::Text(String::new()),
        None => return Err(fields.missing("content", CONTENT)),
    };
    let mut message = Message::new(role, template.content(content));
    if let Some(name) = fields.text("name")? {
        message.more.insert("name".to_owned(), name.into());
    }
    if role == "tool"
        && let Some(id) = fields.text("tool_call_id")?
    {
        message.more.insert("tool_call_id".to_owned(), id.into());
    }
    if role == "assistant"
        && let Some(calls) = former_calls(template, &mut fields)?
    {
        message.more.insert("tool_calls".to_owned(), calls.into());
    }
    if let Some(reasoning) = reasoning(&mut fields)? {
        for name in REASONING {
            message.more.insert(name.to_owned(), reasoning.clone().into());
        }
    }
    fields.finish()?;
    Ok(message)
}

/// The calls of a former turn, as templates read them.
fn former_calls(
    template: &ChatTemplate,
    fields: &mut Fields,
) -> Result<Option<Vec<Value>>, ApiError> {
    let calls = fields.list("tool_calls")?.unwrap_or_default();
    if calls.is_empty() {
        return Ok(None);
    }
    let path = fields.path("tool_calls");
    if !template.knows("tool_calls") {
        let reason = "the chat template of this model does not write calls".to_owned();
        return Err(ApiError::Unsupported { param: path, reason });
    }
    if calls.len() > MAX_CALLS {
        return Err(ApiError::value(path, calls.len(), format!("at most {MAX_CALLS} calls")));
    }
    let former = |(index, value)| {
        let mut fields = Fields::of(Place::Tool, format!("{path}[{index}]"), value)?;
        let id = fields.text("id")?;
        let mut function = Shape::Nested.function(fields, "{\"name\", \"arguments\"}")?;
        let name = tool_name(&mut function)?;
        let value = function.take("arguments");
        let arguments = arguments(function.path("arguments"), value)?;
        function.finish()?;
        Ok(call(id.as_deref(), &name, arguments))
    };
    calls.into_iter().enumerate().map(former).collect::<Result<_, _>>().map(Some)
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

const CONTENT: &str = "a string or a list of {\"type\": \"text\", \"text\"} parts";

/// Content that is text, or parts of text.
pub fn texts(path: &str, value: Value) -> Result<Content, ApiError> {
    match value {
        Value::String(text) => Ok(Content::Text(text)),
        Value::Array(parts) => {
            let parts = parts.into_iter().enumerate();
            let texts = parts.map(|(index, part)| text_part(format!("{path}[{index}]"), part));
            Ok(Content::of_texts(texts.collect::<Result<Vec<_>, _>>()?))
        }
        other => Err(ApiError::value(path, show(&other), CONTENT)),
    }
}

fn text_part(path: String, value: Value) -> Result<String, ApiError> {
    let mut part = Fields::of(Place::Part, path, value)?;
    let expected = "\"text\", the only kind of content";
    match part.take("type") {
        // OpenAI's responses tell whose text it is.
        Some(kind) if ["text", "input_text", "output_text"].iter().any(|text| kind == *text) => {}
        Some(kind) => return Err(part.refuse("type", &kind, expected)),
        None => return Err(part.missing("type", expected)),
    }
    let text = part.text("text")?.ok_or_else(|| part.missing("text", "a string"))?;
    part.finish()?;
    Ok(text)
}
