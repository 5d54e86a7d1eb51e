//! Requests of ladle's own routes.

use super::{
    Checked, Context, Model, StreamUsage, Target,
    conversation::{self, Opening},
    json::Fields,
    prompt::{self, Source},
    sampling::{Length, Parameters, logprobs, stream_options},
    tools::Tools,
    variables::Variables,
};
use crate::{
    http::error::{ApiError, show},
    preference::Solution,
};

/// `POST /generate`.
pub fn generate(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = Fields::parse(body)?;
    let target = Target::take_compared(context, &mut fields)?;
    let source = prompt::source(&mut fields)?;
    let variables = Variables::take(&mut fields, source.template(context.served))?;
    let opening = Opening::take(&mut fields)?;
    let special = fields.flag("add_special_tokens")?;
    let logprobs = logprobs(&mut fields, "logprobs")?;
    let length = Length {
        given: Length::take(context, &mut fields, "max_tokens", 1)?,
        param: "max_tokens",
        default: context.limits.default_max_tokens,
    };
    if stream_options(&mut fields)? == StreamUsage::Always {
        let reason = "the last event carries the usage".to_owned();
        let param = "stream_options.continuous_usage_stats".to_owned();
        return Err(ApiError::Unsupported { param, reason });
    }
    let parameters = Parameters::take(context, &mut fields, logprobs)?;
    fields.finish()?;
    let prompt = match source {
        Source::Prompt(prompt) => {
            variables.unused()?;
            opening.unused()?;
            prompt::single(context.served, "prompt", prompt, special.unwrap_or(true))?
        }
        Source::Messages(messages) => {
            let messages =
                conversation::messages(conversation::template(context.served)?, messages)?;
            let special = special.unwrap_or(false);
            conversation::prompt(context.served, messages, variables, opening, special)?
        }
    };
    parameters.into_checked(context, target, vec![prompt], length)
}

/// `POST /v1/solve`: the preference alone.
pub fn solve_only(context: &Context<'_>, body: &[u8]) -> Result<Solution, ApiError> {
    let mut fields = Fields::parse(body)?;
    let Target { mut solutions, .. } = Target::take(context, &mut fields)?;
    fields.finish()?;
    Ok(solutions.remove(0))
}

/// `POST /tokenize`: the ids, and the longest prompt and answer together, in tokens.
pub fn tokenize(context: &Context<'_>, body: &[u8]) -> Result<(Vec<u32>, usize), ApiError> {
    let mut fields = Fields::parse(body)?;
    Model::take(context.served, &mut fields)?;
    let source = prompt::source(&mut fields)?;
    let mut variables = Variables::take(&mut fields, source.template(context.served))?;
    let opening = Opening::take(&mut fields)?;
    let tools = Tools::take(&mut fields)?;
    let special = match (fields.flag("add_special")?, fields.flag("add_special_tokens")?) {
        (Some(one), Some(other)) if one != other => {
            let expected = format!("add_special ({one}), its other name");
            return Err(ApiError::value("add_special_tokens", other, expected));
        }
        (one, other) => one.or(other),
    };
    fields.finish()?;
    let ids = match source {
        Source::Prompt(prompt) => {
            variables.unused()?;
            opening.unused()?;
            tools.unused()?;
            let text = prompt
                .as_str()
                .ok_or_else(|| ApiError::value("prompt", show(&prompt), "a string"))?;
            // Unlike a prompt to be continued, the empty text is fine: it has no tokens.
            let encoded = context.served.tokenizer.encode_prompt(text, special.unwrap_or(true));
            encoded.map_err(|error| prompt::not_encoded("prompt", error))?
        }
        Source::Messages(messages) => {
            let messages =
                conversation::messages(conversation::template(context.served)?, messages)?;
            if let Some((described, _)) = tools.offered(context.served)? {
                variables.offer(described);
            }
            let special = special.unwrap_or(false);
            conversation::prompt(context.served, messages, variables, opening, special)?.ids
        }
    };
    Ok((ids, context.served.context()))
}

/// `POST /detokenize`: the text.
pub fn detokenize(context: &Context<'_>, body: &[u8]) -> Result<String, ApiError> {
    let mut fields = Fields::parse(body)?;
    Model::take(context.served, &mut fields)?;
    let tokens =
        fields.list("tokens")?.ok_or_else(|| fields.missing("tokens", "a list of token ids"))?;
    let skip_special = fields.flag("skip_special")?.unwrap_or(false);
    fields.finish()?;
    if tokens.is_empty() {
        return Ok(String::new());
    }
    let prompt = prompt::ids(context.served, "tokens", &tokens)?;
    Ok(context.served.tokenizer.decode(&prompt.ids, skip_special))
}
