/// `POST /generate`.
pub fn generate(context: &Context<'_>, body: &[u8]) -> Result<Checked, ApiError> {
    let mut fields = Fields::parse(body)?;
    let prompt = match (fields.take("prompt"), fields.take("messages")) {
        (Some(prompt), None) => prompt::single(context.served, prompt)?,
        (None, Some(messages)) => prompt::chat(context.served, messages)?,
        (given, _) => {
            let got = if given.is_some() { "given beside messages" } else { "absent" };
            return Err(ApiError::value("prompt", got, "either prompt or messages"));
        }
    };
    let logprobs = fields.integer("logprobs", 0..=MAX_TOP)?;
    let max_tokens = fields.integer("max_tokens", 1..=max_tokens(context))?;
    let solution = solve(context, &mut fields, None)?;
    let knobs = Knobs::take(context, &mut fields, logprobs)?;
    fields.finish()?;
    let length = Length { given: max_tokens, default: context.limits.default_max_tokens };
    knobs.into_checked(context, vec![prompt], solution, length)
}

/// `POST /v1/solve`: the preference alone.
pub fn solve_only(context: &Context<'_>, body: &[u8]) -> Result<Solution, ApiError> {
    let mut fields = Fields::parse(body)?;
    let spec = model(context.served, fields.text("model")?)?;
    let solution = solve(context, &mut fields, spec)?;
    fields.finish()?;
    Ok(solution)
}

fn tokens(context: &Context<'_>, body: &[u8]) -> Result<(Vec<u32>, usize), ApiError> {
    let mut fields = Fields::parse(body)?;
    let special = fields.flag("add_special")?.unwrap_or(true);
    let prompt = match (fields.text("prompt")?, fields.take("messages")) {
        // Unlike a prompt to be continued, the empty text has tokens to tell: none.
        (Some(text), None) => context.served.tokenizer.encode(&text, special).map_err(|error| {
            ApiError::Value { param: "prompt".into(), message: format!("prompt: {error}") }
        })?,
        (None, Some(messages)) => prompt::chat(context.served, messages)?.ids,
        (given, _) => {
            let got = if given.is_some() { "given beside messages" } else { "absent" };
            return Err(ApiError::value("prompt", got, "either prompt or messages"));
        }
    };
    fields.finish()?;
    Ok((prompt, context.served.context()))
}

fn text(context: &Context<'_>, body: &[u8]) -> Result<String, ApiError> {
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
