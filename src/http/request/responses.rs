//! Requests of OpenAI's `POST /v1/responses`.

use serde_json::{Map, Value, json};

use super::{
    Checked, Context, Target,
    chat::Chat,
    conversation::{self, MAX_MESSAGES, Opening, texts},
    json::{Fields, Place},
    prompt::Encoding,
    sampling::{Length, Parameters, stream_options},
    tools::{Shape, Tools, arguments, tool_name},
    variables::Variables,
};
use crate::{
    chat::{ChatTemplate, Content, Message, tools::call},
    http::error::ApiError,
};

/// Fields of a request that its answer repeats.
const REPEATED: [&str; 10] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
];

/// What stands in the answer for a field that was absent.
fn absent(name: &str) -> Value {
    match name {
        "metadata" => json!({}),
        "parallel_tool_calls" => json!(true),
        "temperature" | "top_p" => json!(1.0),
        "text" => json!({"format": {"type": "text"}}),
        "tool_choice" => json!("auto"),
        "tools" => json!([]),
        _ => Value::Null,
    }
}

/// The checked request, and the fields that the answer repeats.
pub fn responses(
    context: &Context<'_>,
    body: &[u8],
) -> Result<(Checked, Map<String, Value>), ApiError> {
    let mut fields = context.parse(body)?;
    let template = conversation::template(context.served)?;
    let repeated = repeated(&fields);
    let mut turns = Vec::new();
    if let Some(text) = fields.text("instructions")? {
        turns.push(Message::new("system", template.content(text.into())));
    }
    match fields.take("input") {
        Some(Value::String(text)) => {
            turns.push(Message::new("user", template.content(text.into())))
        }
        Some(Value::Array(items)) if (1..=MAX_MESSAGES).contains(&items.len()) => {
            for (index, item) in items.into_iter().enumerate() {
                take_item(template, format!("input[{index}]"), item, &mut turns)?;
            }
        }
        Some(other) => {
            let expected = format!("a string or a list of 1 to {MAX_MESSAGES} items");
            return Err(fields.refuse("input", &other, expected));
        }
        None => return Err(fields.missing("input", "a string or a list of items")),
    }
    if let Some(value) = fields.take("reasoning") {
        let mut reasoning = Fields::of(Place::Reasoning, fields.path("reasoning"), value)?;
        if let Some(effort) = reasoning.text("effort")? {
            fields.put("reasoning_effort", effort.into());
        }
        reasoning.finish()?;
    }
    let target = Target::take(context, &mut fields)?;
    let variables = Variables::take(&mut fields, Some(template))?;
    let tools = Tools::take(&mut fields, Shape::Flat)?;
    let length = Length::of(context, &mut fields, "max_output_tokens")?;
    let mut parameters = Parameters::take_for_one(context, &mut fields)?;
    parameters.take_format(&mut fields, "text")?;
    stream_options(&mut fields)?;
    let encoding = Encoding::of_messages(&mut fields)?;
    fields.finish()?;
    let opening = Opening::Turn;
    let chat =
        Chat { target, messages: turns, variables, opening, encoding, tools, length, parameters };
    Ok((chat.into_checked(context)?, repeated))
}

fn repeated(fields: &Fields) -> Map<String, Value> {
    let field = |name: &str| fields.peek(name).cloned().unwrap_or_else(|| absent(name));
    REPEATED.into_iter().map(|name| (name.to_owned(), field(name))).collect()
}

/// An item of the input: a message, a former call, or what a tool answered to one.
fn take_item(
    template: &ChatTemplate,
    path: String,
    value: Value,
    turns: &mut Vec<Message>,
) -> Result<(), ApiError> {
    let mut item = Fields::of(Place::Message, path, value)?;
    let kind = item.text("type")?.unwrap_or_else(|| "message".to_owned());
    match kind.as_str() {
        "message" => {
            let expected = "\"system\", \"developer\", \"user\" or \"assistant\"";
            let role = item.text("role")?.ok_or_else(|| item.missing("role", expected))?;
            let role = match role.as_str() {
                "developer" if template.knows("developer") => "developer",
                "system" | "developer" => "system",
                "user" => "user",
                "assistant" => "assistant",
                _ => return Err(item.refuse("role", &role.into(), expected)),
            };
            let content = item.take("content");
            let content = content.ok_or_else(|| item.missing("content", "a string or parts"))?;
            let content = one_text(texts(&item.path("content"), content)?);
            turns.push(Message::new(role, template.content(content)));
        }
        "function_call" => {
            let (_, id) = (item.text("id")?, item.text("call_id")?);
            let name = tool_name(&mut item)?;
            let value = item.take("arguments");
            let call = call(id.as_deref(), &name, arguments(item.path("arguments"), value)?);
            // Calls of one turn follow its text and each other.
            let mut turn = match turns.pop_if(|turn| turn.role == "assistant") {
                Some(turn) => turn,
                None => Message::new("assistant", template.content(String::new().into())),
            };
            match turn.more.get_mut("tool_calls").and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => drop(turn.more.insert("tool_calls".to_owned(), json!([call]))),
            }
            turns.push(turn);
        }
        "function_call_output" => {
            if !template.knows("tool") {
                let reason = "the chat template of this model has no turns of tools".to_owned();
                return Err(ApiError::Unsupported { param: item.path("type"), reason });
            }
            let id = item.text("call_id")?;
            let id = id.ok_or_else(|| item.missing("call_id", "the id of a call"))?;
            let output = item.take("output");
            let output = output.ok_or_else(|| item.missing("output", "a string or parts"))?;
            let content = one_text(texts(&item.path("output"), output)?);
            let mut turn = Message::new("tool", template.content(content));
            turn.more.insert("tool_call_id".to_owned(), id.into());
            turns.push(turn);
        }
        _ => {
            let expected = "\"message\", \"function_call\" or \"function_call_output\"";
            return Err(item.refuse("type", &kind.into(), expected));
        }
    }
    item.finish()
}

/// One part as the text that it is.
fn one_text(content: Content) -> Content {
    match content {
        Content::Parts(mut parts) if parts.len() == 1 => match parts.remove(0)["text"].take() {
            Value::String(text) => Content::Text(text),
            _ => Content::Text(String::new()),
        },
        content => content,
    }
}
