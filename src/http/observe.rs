//! The outermost layer: a request's id, span and metrics, and the place that is kept until the last
//! byte of its answer is sent or its client has gone.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use futures::StreamExt;
use tracing::{Instrument, Span};

use super::{
    app::{App, Progress},
    error::ErrorClass,
    spans,
    trace::{self, Trace},
};

/// Header that carries a request's id in both directions.
const REQUEST_ID: &str = "x-request-id";
/// Longest id that is taken over from a client.
const MAX_ID: usize = 128;
/// Status, in the log and the metrics only, of a request whose client went before its answer began.
const CLIENT_GONE: u16 = 499;

/// Routes that are asked every few seconds by whoever watches the server.
const PROBED: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Records a request when it is dropped: its answer's last byte is sent, or its client has gone.
struct Tail {
    app: Arc<App>,
    method: Method,
    route: String,
    status: u16,
    started: Instant,
    span: Span,
    trace: Trace,
    place: Option<Progress>,
}

impl Drop for Tail {
    fn drop(&mut self) {
        let (status, took) = (self.status, self.started.elapsed());
        self.app.telemetry.request(&self.route, status, took);
        let seconds = took.as_secs_f64();
        match PROBED.contains(&self.route.as_str()) {
            true => tracing::debug!(parent: &self.span, status, seconds, "answered"),
            false => tracing::info!(parent: &self.span, status, seconds, "answered"),
        }
        let failure = match status {
            CLIENT_GONE => Some("the client went away before its answer began".to_owned()),
            _ => {
                self.trace.set("http.response.status_code", usize::from(status));
                (status >= 500).then(|| format!("answered {status}"))
            }
        };
        self.trace.end(format!("{} {}", self.method, self.route), failure);
    }
}

/// The outermost layer.
pub async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    // The pattern, not the path: labels of metrics must not come from clients.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let shown = id.to_str().unwrap_or_default();
    let method = request.method().clone();
    let tracer = app.tracer.as_ref().filter(|_| method == Method::POST);
    let (trace, trace_id) = trace::begin(tracer, request.headers());
    let span = tracing::info_span!("request", id = shown, %method, route, trace_id);
    trace.set("http.request.method", method.as_str());
    trace.set("http.route", &route[..]);
    trace.set("ladle.request.id", shown);
    if let Some(operation) = spans::operation(&route) {
        trace.set("gen_ai.operation.name", operation);
    }
    request.extensions_mut().insert(trace.clone());
    let (status, place) = (CLIENT_GONE, None);
    let mut tail = Tail { app, method, route, status, started, span: span.clone(), trace, place };
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(reason) =
        response.extensions().get::<ErrorClass>().and_then(|class| class.rejection)
    {
        tail.app.telemetry.rejected(reason);
    }
    tail.status = response.status().as_u16();
    tail.place = response.extensions_mut().remove::<Progress>();
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::from_stream(body.into_data_stream().map(move |chunk| {
            let _held = &tail;
            chunk
        }))
    })
}

/// The client's id if it is 1 to 128 visible ASCII characters, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sensible = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    if let Some(given) = headers.get(REQUEST_ID).filter(sensible) {
        return given.clone();
    }
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Seeded by the system, so that processes differ.
    let process = PROCESS.get_or_init(|| RandomState::new().hash_one(std::process::id()));
    let id = format!("{process:016x}-{:x}", NEXT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sensible_id_is_kept_and_another_replaced() {
        let id = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            request_id(&headers)
        };
        assert_eq!(id(b"abc-123"), "abc-123");
        for bad in [&b""[..], b"has space", b"\xff", &[b'x'; 129]] {
            assert_ne!(id(bad).as_bytes(), bad);
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
