//! Shapes that the OpenAI routes share.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use crate::{
    engine::Usage,
    http::{calls, run::Echo},
};

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct UsageBody {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }
    }
}

/// What all answers and chunks of one request have in common.
#[derive(Debug, Clone, Serialize)]
pub struct Envelope {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
}

impl Envelope {
    /// A new answer of `model`, the id that was asked for: `prefix` begins the answer's id, `object`
    /// names its kind.
    pub fn new(prefix: &str, object: &'static str, model: String, echo: &Echo) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let digest = &echo.soup.digest;
        Self {
            id: calls::id(prefix),
            object,
            created: now.as_secs(),
            model,
            system_fingerprint: format!("ladle-{}", digest.get(..12).unwrap_or(digest)),
        }
    }
}

/// An answer or a chunk.
#[derive(Debug, Clone, Serialize)]
pub struct Body<'a> {
    #[serde(flatten)]
    pub envelope: &'a Envelope,
    /// The choices, in the route's own shape.
    pub choices: Vec<Value>,
    /// Outer `None`: absent; inner `None`: `null`, as in all chunks before the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<UsageBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ladle: Option<Echo>,
}
