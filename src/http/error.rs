//! The one table from an error to a status, and the one shape in which errors leave the server:
//! `{"error": {"message", "type", "param", "code"}}`, as OpenAI's clients expect it.

use std::any::Any;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{
    engine::Ailment,
    preference::FormError,
    telemetry::{Rejection, panic_text},
};

/// Largest head of a request, bytes; the connection's buffers are bounded by it too.
pub const MAX_HEAD: usize = 16 << 10;
/// Characters of a value shown in an error.
const SHOWN: usize = 80;

/// Why a request gets no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    Json(String),
    /// The body is not declared as JSON.
    #[error("content-type is {got}, expected application/json")]
    ContentType { got: String },
    /// The body is compressed or otherwise encoded.
    #[error("content-encoding is {got}, expected identity: send the body as it is")]
    ContentEncoding { got: String },
    /// A value is not acceptable.
    #[error("{message}")]
    Value {
        /// The field, with its path, or the header.
        param: String,
        message: String,
    },
    /// A field that this route doesn't know.
    #[error("unknown field {name:?};{} the fields are {known}", did_you_mean(suggestion))]
    UnknownField {
        /// The field, with its path.
        name: String,
        /// A known one, with its path, that is spelled almost alike.
        suggestion: Option<String>,
        known: String,
    },
    /// A field that asks for something that this server doesn't do.
    #[error("{param} is not supported: {reason}")]
    Unsupported {
        /// The field, with its path.
        param: String,
        /// The value, those that are accepted, and what to use instead.
        reason: String,
    },
    /// The prompt, or prompt and answer, do not fit the model's context.
    #[error(
        "This model's maximum context length is {context} tokens. However, {}",
        exceeded(prompt, *tokens, *answer)
    )]
    ContextLength {
        context: usize,
        prompt: &'static str,
        tokens: usize,
        /// The field that asks for the answer's length, and the length; `None` where the prompt
        /// alone leaves no room.
        answer: Option<(&'static str, usize)>,
    },
    /// The prompt has more tokens than the context; how many was not counted to the end.
    #[error(
        "This model's maximum context length is {context} tokens. However, your {prompt} resulted \
         in more than that. Please reduce the length of the {prompt}."
    )]
    PromptLength { context: usize, prompt: &'static str },
    /// The body is one of very many small values.
    #[error("the body holds more than {limit} values")]
    TooManyValues { limit: usize },
    /// No key, or none that is known.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The key lets its holder in, but not to this.
    #[error("{0}")]
    Forbidden(String),
    /// Another generation of the soup is served than the one to be replaced.
    #[error("if_generation is {given}, and generation {current} is served")]
    Generation { given: u64, current: u64 },
    /// A replacement must wait for another to end.
    #[error("{0}; retry later")]
    Replacing(String),
    /// The place that a soup is fetched from does not give it now.
    #[error("the soup was not fetched: {0}")]
    Source(String),
    /// No such model.
    #[error("model {name:?} does not exist: {reason}")]
    Model {
        name: String,
        /// What is wrong with its name, or which model there is.
        reason: String,
    },
    /// No such route.
    #[error("no route {path}; /openapi.json lists the routes")]
    Route { path: String },
    /// The route has other methods.
    #[error("method {method} is not allowed on {path}")]
    Method { method: String, path: String },
    /// The body did not arrive in time.
    #[error("the body did not arrive within {seconds} s")]
    BodyTimeout { seconds: f64 },
    /// The connection broke while the body arrived.
    #[error("the body could not be read: {0}")]
    BodyRead(String),
    /// The body is too large.
    #[error("the body is larger than the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    /// The client is over its rate.
    #[error("more than {limit} requests per minute; retry in {retry_after} s")]
    RateLimited { limit: usize, retry_after: u64 },
    /// The key is at one of its limits.
    #[error("{limit} of the key {key:?} is {most}: {why}; retry in {retry_after} s")]
    KeyLimit {
        key: String,
        /// The limit, as the file of keys names it.
        limit: &'static str,
        most: usize,
        why: String,
        retry_after: u64,
    },
    /// The address tried too many keys.
    #[error("more than {limit} wrong keys per minute from this address; retry in {retry_after} s")]
    WrongKeys { limit: usize, retry_after: u64 },
    /// The queue, or the server, is full.
    #[error("{message}; retry in {retry_after} s")]
    Overloaded { message: String, retry_after: u64 },
    /// The client has too many connections.
    #[error("{limit} connections of this client are open, the limit")]
    ConnectionLimit { limit: usize },
    /// What came is not a request.
    #[error("the head of the request is not HTTP/1.1")]
    Head,
    /// The head of the request is too large.
    #[error("the head of the request is larger than the limit of {MAX_HEAD} bytes or 100 headers")]
    HeadTooLarge,
    /// The path is too long.
    #[error("the path of the request is too long")]
    UriTooLong,
    /// The head of the request did not arrive in time.
    #[error("the head of the request did not arrive within {seconds} s")]
    HeadTimeout { seconds: f64 },
    /// The model is still being loaded.
    #[error("the model is being loaded; retry later")]
    Loading,
    /// The server is about to stop.
    #[error("the server is draining; retry elsewhere")]
    Draining,
    /// The engine has ended or hangs.
    #[error("{0}; retry later")]
    Engine(Ailment),
    /// The client reads more slowly than the answer comes.
    #[error("the answer was not read as fast as it came")]
    Unread,
    /// The deadline passed.
    #[error("the request did not finish within its deadline of {seconds} s")]
    Deadline { seconds: f64 },
    /// The server's fault.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What a client sees of an error besides its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorClass {
    pub status: StatusCode,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// OpenAI's `code`.
    pub code: &'static str,
    /// Label in the metrics, for requests that were refused before they ran.
    pub rejection: Option<Rejection>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    /// A value that is not acceptable: `param` is `got`, expected `expected`.
    pub fn value(
        param: impl Into<String>,
        got: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        let param = param.into();
        let message = format!("{param} is {got}, expected {expected}");
        Self::Value { param, message }
    }

    /// The table.
    pub fn class(&self) -> ErrorClass {
        use Rejection::*;
        use StatusCode as S;
        let (status, kind, code, rejection) = match self {
            Self::Json(_) => (S::BAD_REQUEST, INVALID, "invalid_json", Some(Invalid)),
            Self::Value { .. } => (S::BAD_REQUEST, INVALID, "invalid_value", Some(Invalid)),
            Self::UnknownField { .. } => (S::BAD_REQUEST, INVALID, "unknown_field", Some(Invalid)),
            Self::Unsupported { .. } => (S::BAD_REQUEST, INVALID, "unsupported", Some(Invalid)),
            Self::ContextLength { .. } | Self::PromptLength { .. } => {
                (S::BAD_REQUEST, INVALID, "context_length_exceeded", Some(Invalid))
            }
            Self::Head => (S::BAD_REQUEST, INVALID, "invalid_head", Some(Invalid)),
            Self::BodyRead(_) => (S::BAD_REQUEST, INVALID, "body_not_read", Some(Invalid)),
            Self::Unauthorized(_) => {
                (S::UNAUTHORIZED, "authentication_error", "invalid_api_key", Some(Unauthorized))
            }
            Self::Forbidden(_) => {
                (S::FORBIDDEN, "permission_error", "not_permitted", Some(Unauthorized))
            }
            Self::Generation { .. } => {
                (S::PRECONDITION_FAILED, INVALID, "generation_mismatch", Some(Invalid))
            }
            Self::Replacing(_) => (S::CONFLICT, INVALID, "replacement_in_progress", Some(Invalid)),
            Self::Model { .. } => (S::NOT_FOUND, INVALID, "model_not_found", Some(Invalid)),
            Self::Route { .. } => (S::NOT_FOUND, INVALID, "route_not_found", Some(Invalid)),
            Self::Method { .. } => {
                (S::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", Some(Invalid))
            }
            Self::BodyTimeout { .. } => {
                (S::REQUEST_TIMEOUT, INVALID, "body_timeout", Some(Invalid))
            }
            Self::Unread => (S::REQUEST_TIMEOUT, INVALID, "answer_not_read", None),
            Self::HeadTimeout { .. } => {
                (S::REQUEST_TIMEOUT, INVALID, "head_timeout", Some(Invalid))
            }
            Self::UriTooLong => (S::URI_TOO_LONG, INVALID, "uri_too_long", Some(Invalid)),
            Self::HeadTooLarge => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID, "head_too_large", Some(Invalid))
            }
            Self::TooLarge { .. } | Self::TooManyValues { .. } => {
                (S::PAYLOAD_TOO_LARGE, INVALID, "body_too_large", Some(Invalid))
            }
            Self::ContentType { .. } => {
                (S::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_content_type", Some(Invalid))
            }
            Self::ContentEncoding { .. } => {
                (S::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_content_encoding", Some(Invalid))
            }
            Self::RateLimited { .. } | Self::KeyLimit { .. } | Self::WrongKeys { .. } => {
                (S::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded", Some(RateLimited))
            }
            Self::ConnectionLimit { .. } => (
                S::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "too_many_connections",
                Some(RateLimited),
            ),
            Self::Overloaded { .. } => {
                (S::SERVICE_UNAVAILABLE, SERVER, "overloaded", Some(Overloaded))
            }
            Self::Loading => (S::SERVICE_UNAVAILABLE, SERVER, "loading", Some(Unavailable)),
            Self::Draining => (S::SERVICE_UNAVAILABLE, SERVER, "draining", Some(Unavailable)),
            Self::Engine(Ailment::Stopped) => {
                (S::SERVICE_UNAVAILABLE, SERVER, "engine_stopped", Some(Unavailable))
            }
            Self::Engine(Ailment::Stuck(_)) => {
                (S::SERVICE_UNAVAILABLE, SERVER, "engine_stuck", Some(Unavailable))
            }
            Self::Source(_) => (S::BAD_GATEWAY, SERVER, "source_unreachable", Some(Unavailable)),
            Self::Deadline { .. } => (S::GATEWAY_TIMEOUT, SERVER, "deadline_exceeded", None),
            Self::Internal(_) => (S::INTERNAL_SERVER_ERROR, SERVER, "internal_error", None),
        };
        ErrorClass { status, kind, code, rejection }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Value { param, .. } | Self::Unsupported { param, .. } => Some(param),
            Self::ContextLength { answer: Some((param, _)), .. } => Some(param),
            Self::ContextLength { prompt, .. } | Self::PromptLength { prompt, .. } => Some(prompt),
            Self::UnknownField { name, .. } => Some(name),
            Self::ContentType { .. } => Some("content-type"),
            Self::ContentEncoding { .. } => Some("content-encoding"),
            Self::Model { .. } => Some("model"),
            Self::Source(_) => Some("source"),
            Self::Generation { .. } => Some("if_generation"),
            Self::KeyLimit { limit, .. } => Some(limit),
            _ => None,
        }
    }

    /// Seconds after which trying again makes sense.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after, .. }
            | Self::KeyLimit { retry_after, .. }
            | Self::WrongKeys { retry_after, .. }
            | Self::Overloaded { retry_after, .. } => Some(*retry_after),
            Self::Loading | Self::ConnectionLimit { .. } => Some(1),
            Self::Draining | Self::Engine(_) | Self::Replacing(_) => Some(5),
            _ => None,
        }
    }

    /// The JSON of the error, also used for an error in the middle of a stream. What went wrong inside
    /// the server stays in its log.
    pub fn body(&self) -> Value {
        let ErrorClass { kind, code, .. } = self.class();
        let message = match self {
            Self::Internal(_) => "internal error; the server's log says more".to_owned(),
            told => told.to_string(),
        };
        json!({"error": {
            "message": message,
            "type": kind,
            "param": self.param(),
            "code": code,
        }})
    }

    /// What a panic in a handler becomes. The panic's text stays in the log.
    pub fn from_panic(panic: Box<dyn Any + Send>) -> Response {
        tracing::error!(panic = panic_text(&*panic), "a request handler panicked");
        Self::Internal("the request's handler failed".into()).into_response()
    }
}

impl From<FormError> for ApiError {
    fn from(error: FormError) -> Self {
        match error {
            FormError::Value { field, got, expected } => {
                Self::value(shorten(&field), shorten(&got), expected)
            }
            FormError::Objective { field, name, known } => {
                let error =
                    FormError::Objective { field: field.clone(), name: shorten(&name), known };
                let param = format!("{field}.{}", shorten(&name));
                Self::Value { param, message: error.to_string() }
            }
            FormError::Repeated { ref field, .. } => {
                Self::Value { param: field.clone(), message: error.to_string() }
            }
        }
    }
}

impl ApiError {
    /// The answer, without a line in the log.
    pub fn answer(self) -> Response {
        let class = self.class();
        let mut response = (class.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if class.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }
        // The layer that counts requests reads the reason from here.
        response.extensions_mut().insert(class);
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let class = self.class();
        if class.status.is_server_error() {
            tracing::warn!(code = class.code, "{self}");
        }
        self.answer()
    }
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|name| format!(" did you mean {name:?}?")).unwrap_or_default()
}

fn exceeded(prompt: &str, tokens: usize, answer: Option<(&str, usize)>) -> String {
    match answer {
        None => format!(
            "your {prompt} resulted in {tokens} tokens, which leaves no room for an answer. Please \
             reduce the length of the {prompt}."
        ),
        Some((param, asked)) => format!(
            "you requested {} tokens ({tokens} in the {prompt}, {asked} in the completion). Please \
             reduce the length of the {prompt} or {param}.",
            tokens.saturating_add(asked)
        ),
    }
}

/// A value as JSON, shortened.
pub fn show(value: &Value) -> String {
    match value {
        Value::Array(items) if items.len() > 16 => format!("a list of {} items", items.len()),
        Value::Object(map) if map.len() > 16 => format!("an object of {} fields", map.len()),
        // Cut before it is escaped: the text may be megabytes.
        Value::String(text) => format!("{:?}", shorten(text)),
        other => shorten(&other.to_string()),
    }
}

/// The first characters of a text.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
