//! What the span of a request says about its generation, in the names of OpenTelemetry's conventions
//! for generative AI. No text is told, and preferences only where they are asked for.

use super::{
    request::Checked,
    served::Served,
    trace::{Trace, Value},
};
use crate::engine::Usage;

/// What a route does, by its pattern; `None`: it generates nothing.
pub fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" | "/v1/responses" | "/v1/messages" => Some("chat"),
        "/v1/completions" | "/generate" => Some("text_completion"),
        "/v1/embeddings" => Some("embeddings"),
        _ => None,
    }
}

/// The request as it is submitted.
pub fn asked(trace: &Trace, checked: &Checked, served: &Served) {
    let Some(request) = checked.requests.first().filter(|_| trace.is_recorded()) else { return };
    trace.set("gen_ai.provider.name", "ladle");
    trace.set("gen_ai.request.model", &served.name[..]);
    trace.set("gen_ai.response.model", &served.name[..]);
    trace.set("ladle.soup.digest", &served.digest[..]);
    if checked.requests.len() > 1 {
        trace.set("gen_ai.request.choice.count", checked.requests.len());
    }
    if request.embed.is_none() {
        let sampling = &request.sampling;
        trace.set("gen_ai.request.max_tokens", request.max_tokens);
        trace.set("gen_ai.request.stream", checked.stream);
        trace.set("gen_ai.request.temperature", sampling.temperature);
        trace.set("gen_ai.request.top_p", sampling.top_p);
        trace.set("gen_ai.request.frequency_penalty", sampling.frequency_penalty);
        trace.set("gen_ai.request.presence_penalty", sampling.presence_penalty);
        if let Some(k) = sampling.top_k {
            trace.set("gen_ai.request.top_k", k);
        }
        if let Some(seed) = sampling.seed {
            // The convention's type is signed.
            trace.set("gen_ai.request.seed", Value::Whole(seed as i64));
        }
    }
    if let [solution] = &checked.solutions[..]
        && trace.takes_preferences()
    {
        for (name, weight) in served.menu.objectives.iter().zip(solution.preference.weights()) {
            trace.set(format!("ladle.preference.{name}"), Value::Real(*weight));
        }
    }
}

/// The answer as far as it came.
pub fn answered(trace: &Trace, usage: Usage, reasons: Vec<String>) {
    trace.set("gen_ai.usage.input_tokens", usage.prompt_tokens);
    trace.set("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens);
    trace.set("gen_ai.usage.output_tokens", usage.completion_tokens);
    if !reasons.is_empty() {
        trace.set("gen_ai.response.finish_reasons", Value::Texts(reasons));
    }
}
