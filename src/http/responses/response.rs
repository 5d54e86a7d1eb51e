//! A response and its items.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::{
    engine::{FinishReason, Usage},
    http::{
        calls::{self, Call},
        run::Run,
    },
};

/// What all states of one response have in common.
pub struct Envelope {
    id: String,
    created: u64,
    model: String,
    /// Fields of the request.
    repeated: Map<String, Value>,
}

impl Envelope {
    /// A new response to a request with these fields.
    pub fn new(model: String, repeated: Map<String, Value>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { id: calls::id("resp_"), created: now.as_secs(), model, repeated }
    }

    /// The response while it runs, or its end, with this output.
    pub fn response(&self, run: &Run, status: &str, output: Vec<Value>) -> Value {
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": null,
            "model": self.model,
            "output": output,
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": null,
            "ladle": run.echo(),
        });
        for (name, value) in &self.repeated {
            response[name] = value.clone();
        }
        response
    }

    /// The whole response.
    pub fn complete(&self, run: &Run, reason: Option<FinishReason>, output: Vec<Value>) -> Value {
        let cut = reason == Some(FinishReason::Length);
        let status = if cut { "incomplete" } else { "completed" };
        let mut response = self.response(run, status, output);
        if cut {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["usage"] = usage(run.usage());
        response
    }
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// An item of text.
pub fn message(id: &str, text: &str, status: &str) -> Value {
    json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": [part(text)]})
}

/// The content of an item of text.
pub fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// An item that is a call.
pub fn function_call(id: &str, call: &Call, status: &str) -> Value {
    json!({
        "type": "function_call",
        "id": id,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    })
}
