//! Raw request → checked request, in one place: what leaves here is solved, tokenised and within
//! every bound, and later stages never see what the client wrote.
//!
//! [`json`] parses a body into fields, [`prompt`] reads prompts and messages, [`sampling`] the
//! fields that all generating routes share; [`native`] and [`openai`] put each route's request
//! together.

pub mod json;
pub mod native;
pub mod openai;
pub mod prompt;
pub mod sampling;

use std::time::{Duration, Instant};

use axum::http::HeaderMap;

use self::json::Fields;
use super::{
    app::Served,
    error::{ApiError, shorten},
};
use crate::{
    config::Limits,
    engine::GenerateRequest,
    preference::{AlphaForm, Form, Solution},
};

/// Most alternatives that log-probabilities are reported for.
const MAX_TOP_LOGPROBS: usize = 20;
/// Header with a preference, for clients that can add no field.
pub const PREFERENCE_HEADER: &str = "x-preference";

/// What a request is checked against.
pub struct Context<'a> {
    pub served: &'a Served,
    pub limits: &'a Limits,
    pub headers: &'a HeaderMap,
    pub arrived: Instant,
}

/// A checked generation.
#[derive(Debug)]
pub struct Checked {
    /// One request per choice: prompt-major, `n` for each prompt.
    pub requests: Vec<GenerateRequest>,
    /// Choices per prompt.
    pub n: usize,
    pub solution: Solution,
    pub stream: bool,
    /// End a stream with the usage (OpenAI's `stream_options`).
    pub include_usage: bool,
    /// Time from arrival to the deadline.
    pub timeout: Duration,
    /// Prompts to put before the answers (`echo`), one per prompt; empty: none.
    pub echo: Vec<String>,
    /// Only the prompt is wanted (`max_tokens: 0`): the one token that is generated is dropped.
    pub prompt_only: bool,
}

impl Checked {
    /// Whether log-probabilities were asked for.
    pub fn wants_logprobs(&self) -> bool {
        self.requests.iter().any(|request| request.sampling.logprobs.is_some())
    }
}

/// The preference that counts, and its λ and c. Precedence: the body's `preference`, the model id
/// (`model`), the header, the soup's default. Only the form that counts is looked at.
fn solve(
    context: &Context<'_>,
    fields: &mut Fields,
    model: Option<String>,
) -> Result<Solution, ApiError> {
    let menu = &context.served.menu;
    let preference = if let Some(value) = fields.take("preference") {
        menu.preference("preference", Form::from_json("preference", value)?)?
    } else if let Some(text) = model {
        menu.preference("model", Form::from_text("model", &text)?)?
    } else if let Some(header) = context.headers.get(PREFERENCE_HEADER) {
        let text = header.to_str().map_err(|_| {
            ApiError::value(
                "X-Preference",
                "not ASCII",
                "a preference such as helpful=0.7,harmless=0.3",
            )
        })?;
        menu.preference("X-Preference", Form::from_text("X-Preference", text)?)?
    } else {
        menu.default_preference.clone()
    };
    let alpha = match fields.take("alpha") {
        Some(value) => menu.alpha("alpha", AlphaForm::from_json("alpha", value)?)?,
        None => menu.default_alpha.clone(),
    };
    Ok(context.served.mixing.solve(&preference, &alpha))
}

/// The preference in a model id, after its colon.
fn model(served: &Served, name: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    match name.strip_prefix(&served.name) {
        Some("") => Ok(None),
        Some(rest) if rest.starts_with(':') => Ok(Some(rest[1..].to_owned())),
        _ => Err(ApiError::Model { name: shorten(&name), known: served.name.clone() }),
    }
}

/// Largest `max_tokens`: the configured limit, else what the context leaves beside one token of
/// prompt.
fn max_tokens(context: &Context<'_>) -> usize {
    let room = context.served.context().saturating_sub(1).max(1);
    context.limits.max_tokens.map_or(room, |limit| limit.min(room))
}
