//! The chunks of OpenAI's streams.

use axum::response::sse;
use serde_json::Value;

use super::types::{Body, Envelope};
use crate::http::{error::ApiError, request::StreamUsage, run::Run, stream};

/// How the chunks of one answer are written.
pub struct Chunks {
    envelope: Envelope,
    usage: StreamUsage,
    /// No chunk has been written yet.
    first: bool,
}

impl Chunks {
    pub fn new(envelope: Envelope, usage: StreamUsage) -> Self {
        Self { envelope, usage, first: true }
    }

    /// A chunk of one choice. The first chunk and the one that completes the answer say what was
    /// solved.
    pub fn chunk(&mut self, run: &Run, choice: Value) -> sse::Event {
        let first = std::mem::replace(&mut self.first, false);
        let last = run.is_complete() && !choice["finish_reason"].is_null();
        stream::json(&Body {
            envelope: &self.envelope,
            choices: vec![choice],
            usage: match self.usage {
                StreamUsage::Never => None,
                StreamUsage::AtEnd => Some(None),
                StreamUsage::Always => Some(Some(run.usage().into())),
            },
            ladle: (first || last).then(|| run.echo()),
        })
    }

    /// The end: the usage where it was asked for, and `[DONE]`.
    pub fn end(&self, run: &Run) -> Vec<sse::Event> {
        let usage = (self.usage != StreamUsage::Never).then(|| {
            let usage = Some(Some(run.usage().into()));
            stream::json(&Body {
                envelope: &self.envelope,
                choices: Vec::new(),
                usage,
                ladle: None,
            })
        });
        usage.into_iter().chain([done()]).collect()
    }
}

/// The end of an answer that will not be completed.
pub fn failure(error: &ApiError) -> Vec<sse::Event> {
    vec![stream::json(&error.body()), done()]
}

fn done() -> sse::Event {
    sse::Event::default().data("[DONE]")
}
