//! The fields that all generating routes share, and the requests they make.

use std::time::Duration;

use serde_json::Value;

use super::{Checked, Context, json::Fields, prompt::Prompt};
use crate::{
    engine::{Combine, GenerateRequest},
    http::error::{ApiError, shorten, show},
    preference::{Alpha, Solution},
    sampling::SamplingParams,
};

/// Most stop strings of a request, and the longest one in bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 512;

/// How long an answer may get.
pub struct Length {
    /// As asked for.
    pub given: Option<usize>,
    /// Where nothing is asked for.
    pub default: usize,
}

impl Length {
    /// The tokens to generate after a prompt: what was asked for must fit, the default is cut.
    fn after(&self, prompt: &Prompt, context: usize) -> Result<usize, ApiError> {
        let (tokens, param) = (prompt.ids.len(), prompt.param);
        let room = context.saturating_sub(tokens);
        if room == 0 {
            let message = format!(
                "{param} has {tokens} tokens, expected at most {}: the context is {context} tokens, prompt and answer together",
                context.saturating_sub(1)
            );
            return Err(ApiError::ContextLength { param: param.into(), message });
        }
        match self.given {
            Some(given) if given > room => {
                let message = format!(
                    "max_tokens is {given}, expected at most {room}: {param} has {tokens} tokens and the context is {context}"
                );
                Err(ApiError::ContextLength { param: "max_tokens".into(), message })
            }
            Some(given) => Ok(given),
            None => Ok(self.default.min(room)),
        }
    }
}

/// The fields that all generating routes share.
pub struct Parameters {
    sampling: SamplingParams,
    stop: Vec<String>,
    /// Choices per prompt.
    pub n: usize,
    ignore_eos: bool,
    stream: bool,
    timeout: Duration,
    priority: i32,
    logits: bool,
}

impl Parameters {
    /// Takes them from a body; log-probabilities have another form on each route.
    pub fn take(
        context: &Context<'_>,
        fields: &mut Fields,
        logprobs: Option<usize>,
    ) -> Result<Self, ApiError> {
        let limits = context.limits;
        let vocabulary = context.served.engine.bounds().vocabulary;
        let sampling = SamplingParams {
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
            // OpenAI allows 0: only the most likely token, as with the smallest positive number.
            top_p: (fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32)
                .max(f32::MIN_POSITIVE),
            top_k: fields.integer("top_k", 1..=vocabulary.max(1))?,
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?.unwrap_or(1.0)
                as f32,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0)
                as f32,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
            seed: fields.bits("seed")?,
            logprobs,
        };
        let longest = limits.request_timeout.as_secs_f64();
        let timeout = match fields.number("timeout", 0.001..=longest)? {
            Some(seconds) => Duration::from_secs_f64(seconds),
            None => limits.request_timeout,
        };
        let logits = match fields.text("combine")?.as_deref() {
            None | Some("weights") => false,
            Some("logits") => true,
            Some(other) => {
                return Err(ApiError::value(
                    "combine",
                    format!("{:?}", shorten(other)),
                    "\"weights\" or \"logits\"",
                ));
            }
        };
        Ok(Self {
            sampling,
            stop: stop(fields)?,
            n: fields.integer("n", 1..=limits.max_n)?.unwrap_or(1),
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            stream: fields.flag("stream")?.unwrap_or(false),
            timeout,
            priority: fields.signed("priority", -100..=100)?.unwrap_or(0),
            logits,
        })
    }

    /// One request per choice, each within the context.
    pub fn into_checked(
        self,
        context: &Context<'_>,
        prompts: Vec<Prompt>,
        solution: Solution,
        length: Length,
    ) -> Result<Checked, ApiError> {
        let choices = prompts.len() * self.n;
        if choices > context.limits.max_n {
            let got = format!("{} for {} prompts", self.n, prompts.len());
            return Err(ApiError::value(
                "n",
                got,
                format!("at most {} choices in all", context.limits.max_n),
            ));
        }
        let most = context.limits.max_tokens.unwrap_or(usize::MAX);
        let length = Length { default: length.default.min(most), ..length };
        let combine = if self.logits { logits(&solution)? } else { Combine::Weights };
        let mut requests = Vec::with_capacity(choices);
        for prompt in prompts {
            let max_tokens = length.after(&prompt, context.served.context())?;
            for _ in 0..self.n {
                // Seeded choices differ from each other and are each reproducible.
                let seed = self.sampling.seed.map(|seed| seed.wrapping_add(requests.len() as u64));
                requests.push(GenerateRequest {
                    combine: combine.clone(),
                    sampling: SamplingParams { seed, ..self.sampling.clone() },
                    stop: self.stop.clone(),
                    ignore_eos: self.ignore_eos,
                    deadline: context.arrived.checked_add(self.timeout),
                    priority: self.priority,
                    ..GenerateRequest::new(
                        prompt.ids.clone(),
                        solution.coefficients.clone(),
                        max_tokens,
                    )
                });
            }
        }
        Ok(Checked {
            requests,
            n: self.n,
            solution,
            stream: self.stream,
            include_usage: false,
            timeout: self.timeout,
            echo: Vec::new(),
            prompt_only: false,
        })
    }
}

/// The weights of logits-level mixing: λ, which for B = I is μ as in MOD.
fn logits(solution: &Solution) -> Result<Combine, ApiError> {
    let zero = match &solution.alpha {
        Alpha::Scalar(alpha) => *alpha == 0.0,
        Alpha::PerObjective(alphas) => alphas.iter().all(|alpha| *alpha == 0.0),
    };
    if zero {
        Ok(Combine::Logits(solution.lambda.clone()))
    } else {
        Err(ApiError::value(
            "alpha",
            "not 0",
            "0 beside combine \"logits\", which mixes the backbones alone",
        ))
    }
}

/// `stop`: a string or a list of strings.
fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = || {
        format!(
            "a string or a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_BYTES} bytes"
        )
    };
    let items = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) if items.len() <= MAX_STOPS => items,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => return Err(fields.refuse("stop", &other, expected())),
    };
    let check = |item: Value| match item {
        Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text),
        other => Err(ApiError::value("stop", show(&other), expected())),
    };
    items.into_iter().map(check).collect()
}
