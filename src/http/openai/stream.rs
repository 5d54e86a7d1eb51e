//! How streams of OpenAI's routes end.

use axum::response::sse;

use super::types::{Body, Envelope};
use crate::{engine::Usage, http::stream};

/// The end of an OpenAI stream.
pub fn done() -> sse::Event {
    sse::Event::default().data("[DONE]")
}

/// The last events of an OpenAI stream: the usage where it was asked for, and `[DONE]`.
pub fn close(envelope: &Envelope, usage: Option<Usage>) -> Vec<sse::Event> {
    let usage = usage.map(|usage| {
        stream::json(&Body {
            envelope,
            choices: Vec::new(),
            usage: Some(Some(usage.into())),
            ladle: None,
        })
    });
    usage.into_iter().chain([done()]).collect()
}
