//! Requests of ladle's own routes.

use super::{
    Checked, Context, MAX_TOP_LOGPROBS,
    json::Fields,
    max_tokens, model,
    prompt::{self, Source},
    sampling::{Length, Parameters},
    solve,
};
use crate::{
    http::error::{ApiError, show},
    preference::Solution,
};

/// `POST /generate`.
pub fn generate(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = Fields::parse(body)?;
    let prompt = match prompt::source(&mut fields)? {
        Source::Prompt(prompt) => prompt::single(context.served, prompt)?,
        Source::Messages(messages) => prompt::chat(context.served, messages)?,
    };
    let logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?;
    let max_tokens = fields.integer("max_tokens", 1..=max_tokens(context))?;
    let solution = solve(context, &mut fields, None)?;
    let parameters = Parameters::take(context, &mut fields, logprobs)?;
    fields.finish()?;
    let length = Length { given: max_tokens, default: context.limits.default_max_tokens };
    parameters.into_checked(context, vec![prompt], solution, length)
}

/// `POST /v1/solve`: the preference alone.
pub fn solve_only(context: &Context<'_>, body: &[u8]) -> Result<Solution, ApiError> {
    let mut fields = Fields::parse(body)?;
    let preference = model(context.served, fields.text("model")?)?;
    let solution = solve(context, &mut fields, preference)?;
    fields.finish()?;
    Ok(solution)
}

/// `POST /tokenize`: the ids, and the longest prompt and answer together, in tokens.
pub fn tokenize(context: &Context<'_>, body: &[u8]) -> Result<(Vec<u32>, usize), ApiError> {
    let mut fields = Fields::parse(body)?;
    let special = fields.flag("add_special")?.unwrap_or(true);
    let ids = match prompt::source(&mut fields)? {
        Source::Prompt(prompt) => {
            let text = prompt
                .as_str()
                .ok_or_else(|| ApiError::value("prompt", show(&prompt), "a string"))?;
            // Unlike a prompt to be continued, the empty text is fine: it has no tokens.
            let encoded = context.served.tokenizer.encode(text, special);
            encoded.map_err(|error| prompt::not_encoded("prompt", error))?
        }
        Source::Messages(messages) => prompt::chat(context.served, messages)?.ids,
    };
    fields.finish()?;
    Ok((ids, context.served.context()))
}

/// `POST /detokenize`: the text.
pub fn detokenize(context: &Context<'_>, body: &[u8]) -> Result<String, ApiError> {
    let mut fields = Fields::parse(body)?;
    let tokens = fields
        .list("tokens")?
        .ok_or_else(|| ApiError::value("tokens", "absent", "a list of token ids"))?;
    let skip_special = fields.flag("skip_special")?.unwrap_or(false);
    fields.finish()?;
    if tokens.is_empty() {
        return Ok(String::new());
    }
    let prompt = prompt::ids(context.served, "tokens", &tokens)?;
    Ok(context.served.tokenizer.decode(&prompt.ids, skip_special))
}
