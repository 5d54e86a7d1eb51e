//! Server-sent events: one engine event in, the dialect's events out. The response body owns the
//! [`Run`], so a client that goes away drops it and frees its work.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderValue, header::CONTENT_TYPE},
    response::{
        IntoResponse, Response, Sse,
        sse::{self, KeepAlive},
    },
};
use futures::StreamExt;
use serde::Serialize;

use super::{error::ApiError, run::Run};
use crate::engine::Event;

/// A comment is sent after this much silence, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How a route writes its stream.
pub trait Dialect: Send + 'static {
    /// An event of choice `index`.
    fn event(&mut self, run: &Run, index: usize, event: Event) -> Vec<sse::Event>;
    /// All choices are complete.
    fn end(&mut self, run: &Run) -> Vec<sse::Event>;
    /// The answer will not be completed.
    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event>;
}

/// Answers with the events of `run`.
pub fn respond(run: Run, dialect: impl Dialect) -> Response {
    let batches = futures::stream::unfold(Some((run, dialect)), |state| async {
        let (mut run, mut dialect) = state?;
        match run.next().await {
            Some(Ok((index, event))) => {
                let events = dialect.event(&run, index, event);
                Some((events, Some((run, dialect))))
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a stream failed");
                Some((dialect.failure(&error), None))
            }
            None => Some((dialect.end(&run), None)),
        }
    });
    let events = batches
        .flat_map(|events| futures::stream::iter(events.into_iter().map(Ok::<_, Infallible>)));
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    // nginx would collect the answer before passing it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// An event whose data is `value` as JSON.
pub fn json(value: &impl Serialize) -> sse::Event {
    // Cannot fail: keys are strings and no serialiser fails. An event without data keeps the stream
    // well-formed in any case.
    serde_json::to_string(value).map(|text| sse::Event::default().data(text)).unwrap_or_default()
}
