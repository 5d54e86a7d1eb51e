//! Requests of Anthropic's routes.

use serde_json::{Map, Value, json};

use super::{
    Checked, Context, Target,
    chat::Chat,
    conversation::{self, MAX_MESSAGES, Opening, texts},
    json::{Fields, Place},
    prompt::Encoding,
    sampling::{Length, Parameters},
    tools::{Choice, Tool, Tools, arguments, tool_list, tool_name},
    variables::Variables,
};
use crate::{
    chat::{ChatTemplate, Content, Message, tools::call},
    http::error::ApiError,
};

/// `POST /v1/messages`.
pub fn messages(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = context.parse(body)?;
    let (turns, variables, tools) = conversation_of(context, &mut fields)?;
    let length = Length::of(context, &mut fields, "max_tokens")?;
    let target = Target::take(context, &mut fields)?;
    let mut parameters = Parameters::take_for_one(context, &mut fields)?;
    parameters.take_format(&mut fields, "output_config")?;
    parameters.add_stops(&mut fields, "stop_sequences")?;
    let encoding = Encoding::of_messages(&mut fields)?;
    fields.finish()?;
    let (opening, messages) = (opening(&turns), turns);
    let chat = Chat { target, messages, variables, opening, encoding, tools, length, parameters };
    chat.into_checked(context)
}

/// `POST /v1/messages/count_tokens`: the tokens of the prompt.
pub fn count_tokens(context: &Context<'_>, body: &[u8]) -> Result<usize, ApiError> {
    let mut fields = context.parse(body)?;
    let (turns, mut variables, tools) = conversation_of(context, &mut fields)?;
    Target::take(context, &mut fields)?;
    let encoding = Encoding::of_messages(&mut fields)?;
    fields.finish()?;
    if let Some((described, _)) = tools.offered(context.served)? {
        variables.offer(described);
    }
    let opening = opening(&turns);
    let encoder = encoding.within(context, context.limits.request_timeout);
    let prompt = conversation::prompt(&encoder, turns, variables, opening)?;
    Ok(prompt.ids.len())
}

/// An answer goes on with a last turn of the assistant.
fn opening(turns: &[Message]) -> Opening {
    match turns.last() {
        Some(turn) if turn.role == "assistant" => Opening::LastTurn,
        _ => Opening::Turn,
    }
}

/// The conversation, the template's variables and the tools of a body.
fn conversation_of(
    context: &Context<'_>,
    fields: &mut Fields,
) -> Result<(Vec<Message>, Variables, Tools), ApiError> {
    let template = conversation::template(context.served)?;
    let items = match fields.take("messages") {
        Some(Value::Array(items)) if (1..=MAX_MESSAGES).contains(&items.len()) => items,
        Some(other) => {
            return Err(fields.refuse("messages", &other, format!("1 to {MAX_MESSAGES} messages")));
        }
        None => return Err(fields.missing("messages", "a list of messages")),
    };
    let mut turns = Vec::new();
    if let Some(system) = fields.take("system") {
        let content = texts(&fields.path("system"), system)?;
        turns.push(Message::new("system", template.content(content)));
    }
    for (index, item) in items.into_iter().enumerate() {
        turn(template, format!("messages[{index}]"), item, &mut turns)?;
    }
    let variables = Variables::take(fields, Some(template))?;
    Ok((turns, variables, tools(fields)?))
}

/// A message's turns: the answers of tools come before the user's text.
fn turn(
    template: &ChatTemplate,
    path: String,
    value: Value,
    turns: &mut Vec<Message>,
) -> Result<(), ApiError> {
    let mut fields = Fields::of(Place::Message, path, value)?;
    let expected = "\"user\" or \"assistant\"";
    let role = match fields.text("role")?.as_deref() {
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("system") => "system",
        Some(other) => return Err(fields.refuse("role", &other.into(), expected)),
        None => return Err(fields.missing("role", expected)),
    };
    let blocks = match fields.take("content") {
        Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
        Some(Value::Array(blocks)) => blocks,
        Some(other) => return Err(fields.refuse("content", &other, "a string or blocks")),
        None => return Err(fields.missing("content", "a string or blocks")),
    };
    let path = fields.path("content");
    fields.finish()?;
    let mut read = Blocks::default();
    for (index, block) in blocks.into_iter().enumerate() {
        read.take(format!("{path}[{index}]"), block)?;
    }
    if !read.results.is_empty() && !template.knows("tool") {
        let reason = "the chat template of this model has no turns of tools".to_owned();
        return Err(ApiError::Unsupported { param: path, reason });
    }
    for (id, content) in read.results {
        let mut turn = Message::new("tool", template.content(content));
        turn.more.insert("tool_call_id".to_owned(), id.into());
        turns.push(turn);
    }
    if read.texts.is_empty() && read.calls.is_empty() {
        return Ok(());
    }
    let content = match read.texts.len() {
        0 | 1 => Content::Text(read.texts.pop().unwrap_or_default()),
        _ => Content::of_texts(read.texts),
    };
    let mut turn = Message::new(role, template.content(content));
    if !read.calls.is_empty() {
        turn.more.insert("tool_calls".to_owned(), read.calls.into());
    }
    turns.push(turn);
    Ok(())
}

/// The blocks of a message by their kind.
#[derive(Default)]
struct Blocks {
    texts: Vec<String>,
    calls: Vec<Value>,
    /// The id of the call that each answers.
    results: Vec<(String, Content)>,
}

impl Blocks {
    fn take(&mut self, path: String, value: Value) -> Result<(), ApiError> {
        let mut block = Fields::of(Place::Part, path, value)?;
        let expected = "\"text\", \"tool_use\" or \"tool_result\"";
        let kind = block.text("type")?.ok_or_else(|| block.missing("type", expected))?;
        match kind.as_str() {
            "text" => {
                let text = block.text("text")?;
                self.texts.push(text.ok_or_else(|| block.missing("text", "a string"))?);
            }
            "tool_use" => {
                let id = block.text("id")?;
                let name = tool_name(&mut block)?;
                let input = block.take("input");
                let input: Map<String, Value> = arguments(block.path("input"), input)?;
                self.calls.push(call(id.as_deref(), &name, input));
            }
            "tool_result" => {
                let id = block.text("tool_use_id")?;
                let id = id.ok_or_else(|| block.missing("tool_use_id", "the id of a call"))?;
                // Templates have no place for it: the text says what went wrong.
                block.flag("is_error")?;
                let content = match block.take("content") {
                    None => Content::Text(String::new()),
                    Some(content) => texts(&block.path("content"), content)?,
                };
                self.results.push((id, content));
            }
            _ => return Err(block.refuse("type", &kind.into(), expected)),
        }
        block.finish()
    }
}

/// `tools` and `tool_choice`.
fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let tools = tool_list(fields, |mut tool| {
        if let Some(kind) = tool.take("type").filter(|kind| kind != "custom") {
            return Err(tool.refuse("type", &kind, "\"custom\", the only kind of tool"));
        }
        Tool::take(tool, "input_schema")
    })?;
    let (mut choice, mut parallel) = (Choice::Auto, true);
    if let Some(value) = fields.take("tool_choice") {
        let mut chosen = Fields::of(Place::Tool, "tool_choice", value)?;
        let expected = "\"auto\", \"any\", \"tool\" or \"none\"";
        let kind = chosen.text("type")?.ok_or_else(|| chosen.missing("type", expected))?;
        choice = match kind.as_str() {
            "auto" => Choice::Auto,
            "any" => Choice::Required,
            "none" => Choice::None,
            "tool" => Choice::Named(tool_name(&mut chosen)?),
            _ => return Err(chosen.refuse("type", &kind.into(), expected)),
        };
        parallel = !chosen.flag("disable_parallel_tool_use")?.unwrap_or(false);
        chosen.finish()?;
    }
    Tools { tools, choice, parallel }.checked()
}
