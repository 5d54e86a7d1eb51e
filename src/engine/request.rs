//! Requests to the engine and its answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{client::Client, pooling::Pooling};
use crate::{grammar::Grammar, preference::Coefficients, sampling::SamplingParams};

/// How the backbones act together on one request.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Combine {
    /// One model with the weights Σ cᵢθᵢ.
    #[default]
    Weights,
    /// MOD (`docs/algorithms.md` §2.3): every backbone decodes the same sequence as its own row of the batch,
    /// and the next token is drawn from Σ wᵢ·logitsᵢ. One weight per backbone, Σw = 1.
    Logits(Vec<f64>),
}

/// One generation. [`crate::engine::EngineHandle::submit`] checks it.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Token ids of the prompt, special tokens included; at least one.
    pub prompt: Vec<u32>,
    /// The model: c over (θ₁..θₙ, θ_sft), rounded to the grid of [`crate::preference::ModelKey`].
    pub coefficients: Coefficients,
    /// Position in the prompt from which the model computes; θ_sft computes the tokens before
    /// (`docs/algorithms.md` §2.4). Given exactly where the soup's backbones are active on the answer
    /// only: [`crate::soup::ActiveFrom::position`].
    pub active_from: Option<usize>,
    /// Weights or logits.
    pub combine: Combine,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What the answer is held to; not beside `ignore_eos`, as the end of the grammar is the end of the
    /// answer.
    pub grammar: Option<Grammar>,
    /// Only the embedding of the prompt is wanted, made of these tokens' final hidden states: no token
    /// is drawn. One of all tokens does not use the prefix cache.
    pub embed: Option<Pooling>,
    /// Most tokens to generate, at least 1; prompt + this fit the context.
    pub max_tokens: usize,
    /// Strings that end the answer; they and what follows are not delivered.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Log-probabilities of the prompt's tokens, with this many alternatives each (`echo`).
    /// Such a request does not use the prefix cache.
    pub prompt_logprobs: Option<usize>,
    /// Fail with [`EngineError::Deadline`] when not finished by then.
    pub deadline: Option<Instant>,
    /// Higher goes first; a step is worth [`super::StepLimits::aging`] of waiting.
    pub priority: i32,
    /// Whom it is counted for.
    pub client: Client,
    /// Its prefix is found by requests of the same salt alone; `None`: by those without one.
    pub cache_salt: Option<Arc<str>>,
    /// Events that may lie unread; with more the request fails with [`EngineError::Unread`].
    pub max_unread: usize,
}

impl GenerateRequest {
    /// A request with plain sampling and no extras.
    pub fn new(prompt: Vec<u32>, coefficients: Coefficients, max_tokens: usize) -> Self {
        Self {
            prompt,
            coefficients,
            active_from: None,
            combine: Combine::Weights,
            sampling: SamplingParams::default(),
            grammar: None,
            embed: None,
            max_tokens,
            stop: Vec::new(),
            ignore_eos: false,
            prompt_logprobs: None,
            deadline: None,
            priority: 0,
            client: Client::Local,
            cache_salt: None,
            max_unread: usize::MAX,
        }
    }

    /// Whether the same request, sent again, must get the same answer: nothing of it is drawn, or
    /// it is drawn with a seed.
    pub fn is_repeatable(&self) -> bool {
        self.sampling.is_repeatable() || self.prompt_logprobs.is_some() || self.embed.is_some()
    }
}

/// What happens to a request, in this order: `Started`, at most one `Prompt`, an `Embedding` or one
/// `Token` for each sampled token, and last `Finished` or `Failed`. A request that fails early has only `Failed`.
#[derive(Debug, Clone)]
pub enum Event {
    /// The request joined the batch.
    Started(Started),
    /// Log-probabilities of the prompt, when asked for: one entry per token but the first.
    Prompt(Vec<TokenLogprob>),
    /// The embedding of the prompt, where that is wanted: the mean of normed final hidden states.
    Embedding(Vec<f32>),
    /// A token was generated.
    Token(Token),
    /// The answer is complete.
    Finished(Finished),
    /// The answer will not be completed.
    Failed(EngineError),
}

/// How a model is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Merged weights, one forward per distinct c.
    Fused,
    /// Per-row coefficients, one forward for all c.
    Mixed,
}

impl Mode {
    /// `fused` or `mixed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::Mixed => "mixed",
        }
    }
}

/// Whether fused weights were there when the request asked for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheOutcome {
    /// They were in the cache.
    Hit,
    /// They had to be merged.
    Miss,
}

/// How a request started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its mode in its first step.
    pub mode: Mode,
    /// In fused mode, whether the weights were there; `None` in mixed mode.
    pub cache: Option<CacheOutcome>,
    /// From submission to the first step, without `merge`.
    pub queue: Duration,
    /// Waited for merged weights.
    pub merge: Duration,
    /// Tokens of the prompt that the prefix cache held.
    pub cached_tokens: usize,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Text that became certain with it: empty while a character is unfinished or a stop string may
    /// have begun, longer than the token when such text is released. The texts of all tokens,
    /// concatenated, are the answer.
    pub text: String,
    /// Its log-probability, when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens and their log-probabilities, when asked for.
    pub top: Vec<(u32, f32)>,
}

/// A token of the prompt with its log-probability given those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The most likely tokens in its place.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// End of sequence, or a stop string.
    Stop,
    /// `max_tokens`.
    Length,
}

impl FinishReason {
    /// `stop` or `length`, as OpenAI names them.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why the answer ended.
    pub reason: FinishReason,
    /// The stop string that was met.
    pub stop: Option<String>,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of those, found in the prefix cache.
    pub cached_tokens: usize,
    /// Generated, an end-of-sequence token included.
    pub completion_tokens: usize,
}

/// Times of a request, all from its submission except `merge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// To its first step, without `merge`.
    pub queue: Duration,
    /// Waited for merged weights.
    pub merge: Duration,
    /// To its first token.
    pub first_token: Duration,
    /// To its end.
    pub total: Duration,
}

/// Why a request failed after it was accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The deadline passed.
    #[error("the deadline passed after {generated} of at most {max_tokens} tokens")]
    Deadline {
        /// Tokens generated until then.
        generated: usize,
        /// Tokens asked for.
        max_tokens: usize,
    },
    /// The merged model gives NaN or no probabilities at all: coefficients too large for it.
    #[error("the model with these coefficients gives no distribution: {0}")]
    NotFinite(String),
    /// The next token's mask would cost more than a grammar may.
    #[error("the grammar of the answer is too complex: {0}")]
    Grammar(String),
    /// The device does not do what the request needs.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Its weights could not be merged.
    #[error("merging the weights failed: {0}")]
    Merge(String),
    /// The device has no memory for the request, although everything that nobody holds was freed.
    #[error("not enough device memory at the moment: {0}")]
    Memory(String),
    /// A forward pass failed.
    #[error("the forward pass failed: {0}")]
    Forward(String),
    /// Nobody reads the answer as fast as it is generated.
    #[error("{unread} parts of the answer lie unread")]
    Unread {
        /// Events that were not taken.
        unread: usize,
    },
    /// The engine was stopped before the answer was complete.
    #[error("the engine was stopped")]
    Stopped,
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full.
    #[error("{waiting} requests are waiting, the limit is {limit}")]
    QueueFull {
        /// Waiting now.
        waiting: usize,
        /// `EngineConfig::max_waiting`.
        limit: usize,
    },
    /// The client has all places of the queue that one client may have.
    #[error("{waiting} requests of this client are waiting, the limit for one is {limit}")]
    ShareFull {
        /// Waiting now.
        waiting: usize,
        /// Three quarters of `EngineConfig::max_waiting`.
        limit: usize,
    },
    /// The engine finishes accepted requests and takes no new ones.
    #[error("the server is draining")]
    Draining,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// A field has a value that cannot be served.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of [`GenerateRequest`] (or of its sampling parameters).
        field: &'static str,
        /// The value given and the values that are accepted.
        reason: String,
    },
}
