//! Requests of ladle's own routes.

use serde_json::Value;

use super::{
    Checked, Context, Model, StreamUsage, Target,
    conversation::{self, Opening},
    predict,
    prompt::{self, Encoding, Source},
    sampling::{Length, Parameters, logprobs, stream_options},
    tools::{Shape, Tools},
    variables::Variables,
};
use crate::{
    http::error::{ApiError, show},
    preference::Solved,
};

/// `POST /generate`.
pub fn generate(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = context.parse(body)?;
    let target = Target::take_compared(context, &mut fields)?;
    let source = prompt::source(&mut fields)?;
    let variables = Variables::take(&mut fields, source.template(context.served))?;
    let opening = Opening::take(&mut fields)?;
    let encoding = Encoding::take(&mut fields, source.is_prompt())?;
    let logprobs = logprobs(&mut fields, "logprobs")?;
    let length = Length::of(context, &mut fields, "max_tokens")?;
    if stream_options(&mut fields)? == StreamUsage::Always {
        let reason = "the last event carries the usage".to_owned();
        let param = "stream_options.continuous_usage_stats".to_owned();
        return Err(ApiError::Unsupported { param, reason });
    }
    let parameters = Parameters::take(context, &mut fields, logprobs)?;
    fields.finish()?;
    let encoder = encoding.within(context, parameters.timeout);
    let prompt = match source {
        Source::Prompt(prompt) => {
            variables.unused()?;
            opening.unused()?;
            encoder.single("prompt", prompt)?
        }
        Source::Messages(messages) => {
            let messages =
                conversation::messages(conversation::template(context.served)?, messages)?;
            conversation::prompt(&encoder, messages, variables, opening)?
        }
    };
    parameters.into_checked(context, target, vec![prompt], length)
}

/// `POST /v1/solve`: the preference alone.
pub fn solve_only(context: &Context<'_>, body: &[u8]) -> Result<Solved, ApiError> {
    let mut fields = context.parse(body)?;
    let Target { mut solutions, .. } = Target::take(context, &mut fields)?;
    fields.finish()?;
    let mut solution = solutions.remove(0);
    predict(context.served, &mut solution);
    Ok(Solved::new(&context.served.menu, &solution))
}

/// `POST /tokenize`: the ids, and the longest prompt and answer together, in tokens.
pub fn tokenize(context: &Context<'_>, body: &[u8]) -> Result<(Vec<u32>, usize), ApiError> {
    let mut fields = context.parse(body)?;
    Model::take(context.served, &mut fields)?;
    let source = prompt::source(&mut fields)?;
    let mut variables = Variables::take(&mut fields, source.template(context.served))?;
    let opening = Opening::take(&mut fields)?;
    let tools = Tools::take(&mut fields, Shape::Nested)?;
    let other = fields.peek("add_special_tokens").and_then(Value::as_bool);
    let mut encoding = Encoding::take(&mut fields, source.is_prompt())?;
    if let Some(one) = fields.flag("add_special")? {
        if let Some(other) = other.filter(|other| *other != one) {
            let expected = format!("add_special ({one}), its other name");
            return Err(ApiError::value("add_special_tokens", other, expected));
        }
        encoding.special = one;
    }
    fields.finish()?;
    let encoder = encoding.within(context, context.limits.request_timeout);
    let ids = match source {
        Source::Prompt(prompt) => {
            variables.unused()?;
            opening.unused()?;
            tools.unused()?;
            let text = prompt
                .as_str()
                .ok_or_else(|| ApiError::value("prompt", show(&prompt), "a string"))?;
            // Unlike a prompt to be continued, the empty text is fine: it has no tokens.
            encoder.text(text)?
        }
        Source::Messages(messages) => {
            let messages =
                conversation::messages(conversation::template(context.served)?, messages)?;
            if let Some((described, _)) = tools.offered(context.served)? {
                variables.offer(described);
            }
            conversation::prompt(&encoder, messages, variables, opening)?.ids
        }
    };
    Ok((ids, context.served.context()))
}

/// `POST /detokenize`: the text.
pub fn detokenize(context: &Context<'_>, body: &[u8]) -> Result<String, ApiError> {
    let mut fields = context.parse(body)?;
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
