//! Requests of OpenAI's routes.

use serde_json::Value;

use super::{
    Checked, Context, MAX_TOP_LOGPROBS,
    json::Fields,
    max_tokens, model, prompt,
    sampling::{Length, Parameters},
    solve,
};
use crate::http::error::ApiError;

/// The `max_tokens` of a completion that names none (OpenAI's API).
const COMPLETION_TOKENS: usize = 16;
/// `POST /v1/chat/completions`.
pub fn chat(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = Fields::parse(body)?;
    openai_only(&mut fields)?;
    let preference = model(context.served, fields.text("model")?)?;
    let messages = fields
        .take("messages")
        .ok_or_else(|| ApiError::value("messages", "absent", "a list of messages"))?;
    let prompt = prompt::chat(context.served, messages)?;
    let limit = max_tokens(context);
    let given = match (
        fields.integer("max_tokens", 1..=limit)?,
        fields.integer("max_completion_tokens", 1..=limit)?,
    ) {
        (Some(old), Some(new)) if old != new => {
            return Err(ApiError::value(
                "max_completion_tokens",
                new,
                format!("max_tokens ({old}), its older name"),
            ));
        }
        (old, new) => new.or(old),
    };
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let logprobs = match fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)? {
        Some(top) if !wanted && top > 0 => {
            return Err(ApiError::value("top_logprobs", top, "logprobs to be true beside it"));
        }
        top => wanted.then(|| top.unwrap_or(0)),
    };
    let solution = solve(context, &mut fields, preference)?;
    let include_usage = stream_options(&mut fields)?;
    let parameters = Parameters::take(context, &mut fields, logprobs)?;
    fields.finish()?;
    let length = Length { given, default: context.limits.default_max_tokens };
    Ok(Checked {
        include_usage,
        ..parameters.into_checked(context, vec![prompt], solution, length)?
    })
}

/// `POST /v1/completions`.
pub fn completions(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = Fields::parse(body)?;
    openai_only(&mut fields)?;
    let preference = model(context.served, fields.text("model")?)?;
    let prompt =
        fields.take("prompt").ok_or_else(|| ApiError::value("prompt", "absent", prompt::FORMS))?;
    let prompts = prompt::several(context.served, prompt, context.limits.max_n)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?;
    let given = fields.integer("max_tokens", usize::from(!echo)..=max_tokens(context))?;
    let best_of = fields.integer("best_of", 1..=context.limits.max_n)?;
    let solution = solve(context, &mut fields, preference)?;
    let include_usage = stream_options(&mut fields)?;
    let parameters = Parameters::take(context, &mut fields, logprobs)?;
    if best_of.is_some_and(|best_of| best_of != parameters.n) {
        let reason = "all n choices are returned, so it must equal n";
        return Err(ApiError::Unsupported { param: "best_of".into(), reason });
    }
    fields.finish()?;
    let prompt_only = given == Some(0);
    let texts: Vec<String> = match echo {
        true => prompts.iter().map(|prompt| prompt.text(&context.served.tokenizer)).collect(),
        false => Vec::new(),
    };
    let length = Length { given: given.map(|given| given.max(1)), default: COMPLETION_TOKENS };
    let mut checked = parameters.into_checked(context, prompts, solution, length)?;
    if echo {
        for request in &mut checked.requests {
            request.prompt_logprobs = logprobs;
        }
    }
    Ok(Checked { include_usage, echo: texts, prompt_only, ..checked })
}

/// `stream_options`: whether the usage is wanted at the end.
fn stream_options(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(value) = fields.take("stream_options") else { return Ok(false) };
    let mut options = Fields::of("stream_options", value)?;
    let include_usage = options.flag("include_usage")?.unwrap_or(false);
    options.ignore(&["include_obfuscation"]);
    options.finish()?;
    Ok(include_usage)
}

/// Fields of OpenAI's API that have no counterpart here: harmless ones are dropped, those that
/// would change the answer's meaning are refused unless they ask for what happens anyway.
fn openai_only(fields: &mut Fields) -> Result<(), ApiError> {
    fields.ignore(&[
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "prediction",
        "reasoning_effort",
        "verbosity",
    ]);
    let empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    for name in ["tools", "functions", "logit_bias", "suffix", "audio", "web_search_options"] {
        fields.without(name, empty, "this server generates text only, without tools or biases")?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.without(
            name,
            |value| value == "none" || value == "auto",
            "there are no tools to choose from",
        )?;
    }
    let text_only = |value: &Value| *value == serde_json::json!(["text"]);
    fields.without("modalities", text_only, "only [\"text\"] is generated")?;
    let reason = "output cannot be constrained; only {\"type\": \"text\"} is possible";
    fields.without("response_format", |value| value["type"] == "text", reason)?;
    Ok(())
}
