//! Requests of OpenAI's routes.

use super::{
    Checked, Context, EchoedPrompt, Target,
    chat::Chat,
    conversation::{self, Opening},
    json::Fields,
    prompt::{self, Encoding, Prompt},
    sampling::{Length, Parameters, logprobs, stream_options},
    tools::{Shape, Tools},
    variables::Variables,
};
use crate::http::error::ApiError;

/// The `max_tokens` of a completion that names none (OpenAI's API).
const COMPLETION_TOKENS: usize = 16;

/// `POST /v1/chat/completions`.
pub fn chat(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = context.parse(body)?;
    let target = Target::take(context, &mut fields)?;
    let messages =
        fields.take("messages").ok_or_else(|| fields.missing("messages", "a list of messages"))?;
    let variables = Variables::take(&mut fields, context.served.chat.as_ref())?;
    let opening = Opening::take(&mut fields)?;
    let tools = Tools::take(&mut fields, Shape::Nested)?;
    let encoding = Encoding::take(&mut fields, false)?;
    let length = chat_length(context, &mut fields)?;
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let logprobs = match logprobs(&mut fields, "top_logprobs")? {
        Some(top) if !wanted && top > 0 => {
            return Err(ApiError::value("top_logprobs", top, "logprobs to be true beside it"));
        }
        top => wanted.then(|| top.unwrap_or(0)),
    };
    let usage = stream_options(&mut fields)?;
    let parameters = Parameters::take(context, &mut fields, logprobs)?;
    fields.finish()?;
    let messages = conversation::messages(conversation::template(context.served)?, messages)?;
    let chat = Chat { target, messages, variables, opening, encoding, tools, length, parameters };
    Ok(Checked { usage, ..chat.into_checked(context)? })
}

/// `max_completion_tokens`, or its older name `max_tokens`.
fn chat_length(context: &Context<'_>, fields: &mut Fields) -> Result<Length, ApiError> {
    let old = Length::take(context, fields, "max_tokens", 1)?;
    let new = Length::take(context, fields, "max_completion_tokens", 1)?;
    let (given, param) = match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let expected = format!("max_tokens ({old}), its older name");
            return Err(ApiError::value("max_completion_tokens", new, expected));
        }
        (_, Some(new)) => (Some(new), "max_completion_tokens"),
        (old, None) => (old, "max_tokens"),
    };
    Ok(Length { given, param, default: context.limits.default_max_tokens })
}

/// `POST /v1/completions`.
pub fn completions(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = context.parse(body)?;
    let target = Target::take(context, &mut fields)?;
    let prompt = fields.take("prompt").ok_or_else(|| fields.missing("prompt", prompt::FORMS))?;
    let encoding = Encoding::take(&mut fields, true)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = logprobs(&mut fields, "logprobs")?;
    let given = Length::take(context, &mut fields, "max_tokens", usize::from(!echo))?;
    let best_of = fields.integer("best_of", 1..=context.limits.max_n)?;
    let usage = stream_options(&mut fields)?;
    let parameters = Parameters::take(context, &mut fields, logprobs)?;
    if let Some(best_of) = best_of.filter(|best_of| *best_of != parameters.n) {
        let reason =
            format!("got {best_of}, expected n ({}); all n choices are returned", parameters.n);
        return Err(ApiError::Unsupported { param: "best_of".into(), reason });
    }
    fields.finish()?;
    if echo && logprobs.is_some() && context.served.engine.bounds().encoded.is_some() {
        let reason = "is true beside logprobs, expected false: the model encodes a prompt and does not \
                      continue it";
        return Err(ApiError::Value { param: "echo".into(), message: format!("echo {reason}") });
    }
    let encoder = encoding.within(context, parameters.timeout);
    let prompts = encoder.several("prompt", prompt, context.limits.max_n)?;
    let prompt_only = given == Some(0);
    let echoed = |prompt: &Prompt| {
        let tokenizer = &context.served.tokenizer;
        let offsets = logprobs.map(|_| prompt.offsets(tokenizer)).transpose()?.unwrap_or_default();
        Ok(EchoedPrompt { text: prompt.text(tokenizer), offsets })
    };
    let echoes = match echo {
        true => prompts.iter().map(echoed).collect::<Result<_, ApiError>>()?,
        false => Vec::new(),
    };
    let length = Length {
        given: given.map(|given| given.max(1)),
        param: "max_tokens",
        default: COMPLETION_TOKENS,
    };
    let mut checked = parameters.into_checked(context, target, prompts, length)?;
    if echo {
        for request in &mut checked.requests {
            request.prompt_logprobs = logprobs;
        }
    }
    Ok(Checked { usage, echo: echoes, prompt_only, ..checked })
}
