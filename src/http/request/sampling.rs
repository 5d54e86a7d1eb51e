//! The fields that all generating routes share, and the engine requests they make.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    Checked, Context, StreamUsage, Target,
    constraint::{self, Asked},
    json::{Fields, Place, whole},
    prompt::Prompt,
    timeout,
};
use crate::{
    engine::{Combine, GenerateRequest},
    http::error::{ApiError, show},
    preference::{Alpha, Solution},
    sampling::SamplingParams,
};

/// Most alternatives that log-probabilities are reported for.
const MAX_TOP_LOGPROBS: usize = 20;
const MAX_BIASES: usize = 1024;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 512;
/// Parts of a streamed answer that may lie unread.
const MAX_UNREAD: usize = 1024;

/// How long an answer may get, in tokens.
pub struct Length {
    /// As asked for; [`usize::MAX`] stands for anything larger.
    pub given: Option<usize>,
    /// The field that asks.
    pub param: &'static str,
    /// Where nothing is asked for.
    pub default: usize,
}

impl Length {
    /// Takes the field `param`: at least `least`, at most what the server allows. What the context
    /// leaves is known only beside a prompt.
    pub fn take(
        context: &Context<'_>,
        fields: &mut Fields,
        param: &'static str,
        least: usize,
    ) -> Result<Option<usize>, ApiError> {
        let room = context.served.context().saturating_sub(1).max(1);
        let allowed = context.limits.max_tokens.filter(|limit| *limit < room);
        let length = |value: &Value| {
            let number = whole(value)?;
            if number < 0 {
                return None;
            }
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            (number >= least && allowed.is_none_or(|allowed| number <= allowed)).then_some(number)
        };
        let most = allowed.unwrap_or(room);
        fields.convert(param, length, || format!("a whole number in [{least}, {most}]"))
    }

    /// The length that the field `param` asks for, else the server's default.
    pub fn of(
        context: &Context<'_>,
        fields: &mut Fields,
        param: &'static str,
    ) -> Result<Self, ApiError> {
        let given = Self::take(context, fields, param, 1)?;
        Ok(Self { given, param, default: context.limits.default_max_tokens })
    }

    /// The tokens to generate after a prompt: what was asked for must fit, the default is cut.
    /// `context` is the most of prompt and answer together.
    fn after(&self, prompt: &Prompt, context: usize) -> Result<usize, ApiError> {
        let tokens = prompt.ids.len();
        let room = context.saturating_sub(tokens);
        let asked = self.given.unwrap_or(self.default.min(room));
        if room == 0 || asked > room {
            return Err(ApiError::ContextLength {
                context,
                prompt: prompt.param,
                tokens,
                answer: (room > 0).then_some((self.param, asked)),
            });
        }
        Ok(asked)
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
    /// Time from arrival to the deadline.
    pub timeout: Duration,
    priority: i32,
    cache_salt: Option<Arc<str>>,
    combine_logits: bool,
    /// What the answer is held to.
    pub constraint: Option<Asked>,
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
            top_k: top_k(fields, vocabulary)?,
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?.unwrap_or(1.0)
                as f32,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0)
                as f32,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
            bias: logit_bias(fields, vocabulary)?,
            seed: fields.bits("seed")?,
            logprobs,
        };
        let longest = limits.request_timeout;
        let timeout = fields.number("timeout", timeout::range(longest))?;
        let logits = |value: &Value| match value.as_str()? {
            "weights" => Some(false),
            "logits" => Some(true),
            _ => None,
        };
        let combine = || "\"weights\" or \"logits\"".to_owned();
        Ok(Self {
            sampling,
            stop: stop(fields, "stop")?,
            n: fields.integer("n", 1..=limits.max_n)?.unwrap_or(1),
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            stream: fields.flag("stream")?.unwrap_or(false),
            timeout: timeout.map_or(longest, Duration::from_secs_f64),
            priority: context.priority(fields)?,
            cache_salt: cache_salt(fields)?,
            combine_logits: fields.convert("combine", logits, combine)?.unwrap_or(false),
            constraint: constraint::take(fields)?,
        })
    }

    /// As [`Self::take`], on a route that gives one answer, without log-probabilities.
    pub fn take_for_one(context: &Context<'_>, fields: &mut Fields) -> Result<Self, ApiError> {
        let parameters = Self::take(context, fields, None)?;
        match parameters.n {
            1 => Ok(parameters),
            n => Err(ApiError::value("n", n, "1: this route gives one answer")),
        }
    }

    /// Takes the `format` of the answer from the object `name`.
    pub fn take_format(&mut self, fields: &mut Fields, name: &'static str) -> Result<(), ApiError> {
        let Some(value) = fields.take(name) else { return Ok(()) };
        let mut output = Fields::of(Place::Output, fields.path(name), value)?;
        if let Some(format) = output.take("format") {
            let asked = constraint::format(output.path("format"), format)?;
            self.constraint = constraint::one(self.constraint.take().into_iter().chain(asked))?;
        }
        output.finish()
    }

    /// Adds the stop strings of another field to those of `stop`.
    pub fn add_stops(&mut self, fields: &mut Fields, name: &'static str) -> Result<(), ApiError> {
        self.stop.extend(stop(fields, name)?);
        Ok(())
    }

    /// One request per choice, each within the context.
    pub fn into_checked(
        self,
        context: &Context<'_>,
        target: Target,
        prompts: Vec<Prompt>,
        length: Length,
    ) -> Result<Checked, ApiError> {
        let choices = prompts.len() * self.n;
        if choices > context.limits.max_n {
            let got = format!("{} for {} prompts", self.n, prompts.len());
            let expected = format!("at most {} choices in all", context.limits.max_n);
            return Err(ApiError::value("n", got, expected));
        }
        let grammar = match self.constraint {
            Some(asked) if self.ignore_eos => {
                let expected = format!("false beside {}, whose end ends the answer", asked.field);
                return Err(ApiError::value("ignore_eos", true, expected));
            }
            asked => asked.map(|asked| asked.compile(&context.served.grammars)).transpose()?,
        };
        let Target { model, solutions } = target;
        let compared = solutions.len() > 1;
        if compared && self.n > 1 {
            let expected = "1 beside preferences, each of which gets one answer";
            return Err(ApiError::value("n", self.n, expected));
        }
        let most = context.limits.max_tokens.unwrap_or(usize::MAX);
        let length = Length { default: length.default.min(most), ..length };
        let combine = |solution| match self.combine_logits {
            true => logits(solution),
            false => Ok(Combine::Weights),
        };
        let combined = solutions.iter().map(combine).collect::<Result<Vec<_>, ApiError>>()?;
        let lanes = if self.combine_logits { context.served.mixing.len() } else { 1 };
        let fits = context.served.context_of(lanes);
        let mut requests = Vec::with_capacity(choices.max(solutions.len()));
        for prompt in prompts {
            let max_tokens = length.after(&prompt, fits)?;
            for (solution, combine) in solutions.iter().zip(&combined) {
                let active_from = prompt.active_from(context.served, solution)?;
                for _ in 0..self.n {
                    // Seeded choices differ from each other and are each reproducible. Answers that
                    // are compared differ by their preference alone.
                    let choice = if compared { 0 } else { requests.len() as u64 };
                    let seed = self.sampling.seed.map(|seed| seed.wrapping_add(choice));
                    let c = solution.coefficients.clone();
                    requests.push(GenerateRequest {
                        active_from,
                        combine: combine.clone(),
                        sampling: SamplingParams { seed, ..self.sampling.clone() },
                        grammar: grammar.clone(),
                        stop: self.stop.clone(),
                        ignore_eos: self.ignore_eos,
                        deadline: context.deadline(self.timeout).at,
                        priority: self.priority,
                        client: context.client.clone(),
                        cache_salt: self.cache_salt.clone(),
                        max_unread: MAX_UNREAD,
                        ..GenerateRequest::new(prompt.ids.clone(), c, max_tokens)
                    });
                }
            }
        }
        Ok(Checked {
            served: context.served.clone(),
            requests,
            n: self.n * solutions.len(),
            solutions,
            model,
            stream: self.stream,
            usage: StreamUsage::default(),
            timeout: self.timeout,
            echo: Vec::new(),
            calls: None,
            prompt_only: false,
            key: context.key.clone(),
            trace: context.trace.clone(),
        })
    }
}

/// Longest `cache_salt`, bytes.
const MAX_SALT: usize = 512;

/// `cache_salt`; the empty one is none.
pub fn cache_salt(fields: &mut Fields) -> Result<Option<Arc<str>>, ApiError> {
    let salt = |value: &Value| value.as_str().filter(|text| text.len() <= MAX_SALT).map(Arc::from);
    let expected = || format!("a text of at most {MAX_SALT} bytes");
    let salt: Option<Arc<str>> = fields.convert("cache_salt", salt, expected)?;
    Ok(salt.filter(|salt| !salt.is_empty()))
}

/// `top_k`: 0 and −1 are off, as in vLLM, SGLang and llama.cpp.
fn top_k(fields: &mut Fields, vocabulary: usize) -> Result<Option<usize>, ApiError> {
    let k = |value: &Value| match whole(value)? {
        -1 | 0 => Some(None),
        k => usize::try_from(k).ok().filter(|k| *k <= vocabulary).map(Some),
    };
    let expected = || format!("a whole number in [1, {vocabulary}], or 0 or -1 for all");
    fields.convert("top_k", k, expected).map(Option::flatten)
}

/// `logit_bias`: `{"ID": bias}`, or llama.cpp's `[[ID, bias]]`.
fn logit_bias(fields: &mut Fields, vocabulary: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let expected = || format!("at most {MAX_BIASES} biases, such as {{\"42\": -100}}");
    let pairs: Vec<(String, Value)> = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MAX_BIASES => map.into_iter().collect(),
        Some(Value::Array(pairs)) if pairs.len() <= MAX_BIASES => {
            let pair = |pair: Value| match pair.as_array().map(Vec::as_slice) {
                Some([id, bias]) => Ok((id.to_string(), bias.clone())),
                _ => Err(fields.refuse("logit_bias", &pair, "pairs of a token id and a bias")),
            };
            pairs.into_iter().map(pair).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(fields.refuse("logit_bias", &other, expected())),
    };
    let bias = |(id, bias): (String, Value)| {
        let token = id.parse().ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
            let expected = format!("token ids below {vocabulary}");
            ApiError::value("logit_bias", show(&id.clone().into()), expected)
        })?;
        let bias = bias.as_f64().filter(|bias| bias.abs() <= 100.0).ok_or_else(|| {
            let path = format!("logit_bias.{id}");
            ApiError::value(path, show(&bias), "a number in [-100, 100]")
        })?;
        Ok((token, bias as f32))
    };
    let biases = pairs.into_iter().map(bias).collect::<Result<Vec<_>, ApiError>>()?;
    Ok(biases.into_iter().filter(|(_, bias)| *bias != 0.0).collect())
}

/// `logprobs` as a number of alternatives; `false` is off.
pub fn logprobs(fields: &mut Fields, name: &'static str) -> Result<Option<usize>, ApiError> {
    let count = |value: &Value| match value {
        Value::Bool(false) => Some(None),
        other => {
            let count = usize::try_from(whole(other)?).ok()?;
            (count <= MAX_TOP_LOGPROBS).then_some(Some(count))
        }
    };
    let expected = || format!("a whole number in [0, {MAX_TOP_LOGPROBS}]");
    fields.convert(name, count, expected).map(Option::flatten)
}

/// The weights of logits-level mixing: λ, which for B = I is μ as in MOD.
fn logits(solution: &Solution) -> Result<Combine, ApiError> {
    if solution.predicted.is_some() {
        let expected = "weights beside target: the soup's front was measured of merged weights";
        return Err(ApiError::value("combine", "logits", expected));
    }
    let zero = match &solution.alpha {
        Alpha::Scalar(alpha) => *alpha == 0.0,
        Alpha::PerObjective(alphas) => alphas.iter().all(|alpha| *alpha == 0.0),
    };
    if zero {
        Ok(Combine::Logits(solution.lambda.clone()))
    } else {
        let expected = "0 beside combine \"logits\", which mixes the backbones alone";
        Err(ApiError::value("alpha", "not 0", expected))
    }
}

/// Stop strings: a string or a list of strings.
fn stop(fields: &mut Fields, name: &'static str) -> Result<Vec<String>, ApiError> {
    let expected = || {
        format!(
            "a string or a list of at most {MAX_STOPS} strings, each of 1 to {MAX_STOP_BYTES} bytes"
        )
    };
    let items = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) if items.len() <= MAX_STOPS => items,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => return Err(fields.refuse(name, &other, expected())),
    };
    let check = |item: Value| match item {
        Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text),
        other => Err(ApiError::value(name, show(&other), expected())),
    };
    items.into_iter().map(check).collect()
}

/// `stream_options`; without `stream` they have no effect.
pub fn stream_options(fields: &mut Fields) -> Result<StreamUsage, ApiError> {
    let Some(value) = fields.take("stream_options") else { return Ok(StreamUsage::Never) };
    let mut options = Fields::of(Place::StreamOptions, "stream_options", value)?;
    let at_end = options.flag("include_usage")?.unwrap_or(false);
    let always = options.flag("continuous_usage_stats")?.unwrap_or(false);
    options.finish()?;
    Ok(match (at_end, always) {
        (false, _) => StreamUsage::Never,
        (true, false) => StreamUsage::AtEnd,
        (true, true) => StreamUsage::Always,
    })
}
