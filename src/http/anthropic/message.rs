//! Parts of an answer in Anthropic's shape.

use serde_json::{Value, json};

use crate::{
    engine::{FinishReason, Usage},
    http::calls,
};

/// An answer without content.
pub fn empty(model: &str) -> Value {
    json!({
        "id": calls::id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
    })
}

/// Tokens of an answer.
pub fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

/// Why an answer is complete, as Anthropic names it.
pub fn stop_reason(reason: FinishReason, stop: &Option<String>, called: bool) -> &'static str {
    match (reason, stop) {
        (FinishReason::Length, _) => "max_tokens",
        (FinishReason::Stop, Some(_)) => "stop_sequence",
        (FinishReason::Stop, None) if called => "tool_use",
        (FinishReason::Stop, None) => "end_turn",
    }
}
