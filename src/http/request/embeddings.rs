//! Requests of `POST /v1/embeddings`.

use serde_json::Value;

use super::{Checked, Context, StreamUsage, Target, prompt, sampling::cache_salt};
use crate::{
    engine::{GenerateRequest, Pooling},
    http::error::ApiError,
};

/// Most inputs of a request.
const MAX_INPUTS: usize = 256;

/// How an embedding is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers.
    Float,
    /// Base64 of f32 in little-endian order.
    Base64,
}

/// One request per input, and how its embedding is written.
pub fn embeddings(context: &Context<'_>, body: &[u8]) -> Result<(Checked, Encoding), ApiError> {
    let Context { served, limits, arrived, .. } = context;
    if served.engine.bounds().encoded.is_some() {
        let reason =
            "embeddings are of decoders alone, and this model encodes its prompts".to_owned();
        return Err(ApiError::Unsupported { param: "model".into(), reason });
    }
    let mut fields = context.parse(body)?;
    let Target { model, solutions } = Target::take(context, &mut fields)?;
    let input = fields.take("input").ok_or_else(|| fields.missing("input", prompt::FORMS))?;
    let encoding = |value: &Value| match value.as_str()? {
        "float" => Some(Encoding::Float),
        "base64" => Some(Encoding::Base64),
        _ => None,
    };
    let expected = || "\"float\" or \"base64\"".to_owned();
    let encoding = fields.convert("encoding_format", encoding, expected)?;
    let pooling = |value: &Value| match value.as_str()? {
        "last" => Some(Pooling::Last),
        "mean" => Some(Pooling::Mean),
        _ => None,
    };
    let expected = || "\"last\" or \"mean\"".to_owned();
    let pooling = fields.convert("pooling", pooling, expected)?.unwrap_or(Pooling::Last);
    let texts = prompt::Encoding::take(&mut fields, true)?;
    let priority = context.priority(&mut fields)?;
    let salt = cache_salt(&mut fields)?;
    fields.finish()?;
    let encoder = texts.within(context, limits.request_timeout);
    let prompts = encoder.several("input", input, MAX_INPUTS)?;
    let request = |prompt: prompt::Prompt| {
        let (tokens, room) = (prompt.ids.len(), served.context());
        if tokens >= room {
            let (context, prompt) = (room, prompt.param);
            return Err(ApiError::ContextLength { context, prompt, tokens, answer: None });
        }
        Ok(GenerateRequest {
            active_from: prompt.active_from(served, &solutions[0])?,
            embed: Some(pooling),
            deadline: arrived.checked_add(limits.request_timeout),
            priority,
            client: context.client.clone(),
            cache_salt: salt.clone(),
            ..GenerateRequest::new(prompt.ids, solutions[0].coefficients.clone(), 1)
        })
    };
    let requests = prompts.into_iter().map(request).collect::<Result<_, ApiError>>()?;
    let checked = Checked {
        served: (*served).clone(),
        requests,
        n: 1,
        solutions,
        model,
        stream: false,
        usage: StreamUsage::default(),
        timeout: limits.request_timeout,
        echo: Vec::new(),
        calls: None,
        prompt_only: false,
        key: context.key.clone(),
        trace: context.trace.clone(),
    };
    Ok((checked, encoding.unwrap_or(Encoding::Float)))
}
