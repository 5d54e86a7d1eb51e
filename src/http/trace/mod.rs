//! Traces of requests, for an OpenTelemetry collector. Spans are recorded where answers are written,
//! never by the engine.
//!
//! Without opentelemetry-otlp, which with the ten crates that it brings takes some 27 CPU-seconds of a
//! cold build: what a server of requests needs of it is a message and a thread.

mod context;
mod export;
mod span;

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::http::HeaderMap;

use self::{
    context::{Remote, digits, in_share, remote},
    export::Exporter,
    span::{Attribute, Span},
};
use crate::{config::Traces, telemetry::Telemetry};

pub use span::Value;

/// Records the traces of one server.
pub struct Tracer {
    exporter: Exporter,
    parent_based: bool,
    share: f64,
    preferences: bool,
}

impl Tracer {
    /// Starts what sends them.
    pub fn start(traces: &Traces, telemetry: &Telemetry) -> io::Result<Self> {
        let exporter = Exporter::start(traces, telemetry)?;
        let Traces { parent_based, share, preferences, .. } = *traces;
        Ok(Self { exporter, parent_based, share, preferences })
    }

    /// Waits until what was recorded is on its way, for that long at most.
    pub async fn flush(&self, longest: Duration) {
        self.exporter.flush(longest).await;
    }
}

/// The trace of one request; clones are the same. One that is not recorded does nothing.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Recording>>);

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trace(…)")
    }
}

struct Recording {
    tracer: Arc<Tracer>,
    trace: [u8; 16],
    /// The request's own span.
    span: [u8; 8],
    remote: Option<Remote>,
    began: Instant,
    at: SystemTime,
    attributes: Mutex<Vec<Attribute>>,
}

/// The trace of a request that arrived with these headers, and its id for the log: the caller's, or
/// one of its own where it is recorded.
pub fn begin(tracer: Option<&Arc<Tracer>>, headers: &HeaderMap) -> (Trace, Option<String>) {
    let remote = remote(headers);
    let Some(tracer) = tracer else {
        return (Trace::default(), remote.map(|remote| digits(&remote.trace)));
    };
    let trace = remote.as_ref().map_or_else(rand::random, |remote| remote.trace);
    let id = Some(digits(&trace));
    let recorded = match &remote {
        Some(remote) if tracer.parent_based => remote.sampled,
        _ => in_share(tracer.share, trace),
    };
    if !recorded {
        return (Trace::default(), id);
    }
    let recording = Recording {
        tracer: tracer.clone(),
        trace,
        span: rand::random(),
        remote,
        began: Instant::now(),
        at: SystemTime::now(),
        attributes: Mutex::default(),
    };
    (Trace(Some(Arc::new(recording))), id)
}

impl Trace {
    /// Whether anything that it is told is kept.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Whether preferences may be told.
    pub fn takes_preferences(&self) -> bool {
        self.0.as_ref().is_some_and(|recording| recording.tracer.preferences)
    }

    /// Says something about the request.
    pub fn set(&self, name: impl Into<String>, value: impl Into<Value>) {
        if let Some(recording) = &self.0 {
            recording.attributes().push((name.into(), value.into()));
        }
    }

    /// A part of the request.
    fn part(&self, name: &str, (from, to): (Instant, Instant), about: &[Attribute], done: bool) {
        let Some(recording) = &self.0 else { return };
        recording.tracer.exporter.send(Span {
            trace: recording.trace,
            id: rand::random(),
            parent: Some(recording.span),
            state: None,
            name: name.to_owned(),
            server: false,
            from: recording.nanoseconds(from),
            to: recording.nanoseconds(to),
            attributes: about.to_vec(),
            failure: (!done).then(|| "the answer was not completed".to_owned()),
        });
    }

    /// The end of the request.
    pub fn end(&self, name: String, failure: Option<String>) {
        let Some(recording) = &self.0 else { return };
        let remote = recording.remote.as_ref();
        recording.tracer.exporter.send(Span {
            trace: recording.trace,
            id: recording.span,
            parent: remote.map(|remote| remote.span),
            state: remote.and_then(|remote| remote.state.clone()),
            name,
            server: true,
            from: recording.nanoseconds(recording.began),
            to: recording.nanoseconds(Instant::now()),
            attributes: std::mem::take(&mut recording.attributes()),
            failure,
        });
    }
}

impl Recording {
    fn attributes(&self) -> std::sync::MutexGuard<'_, Vec<Attribute>> {
        self.attributes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A time since 1970, by a clock that does not jump within the request.
    fn nanoseconds(&self, instant: Instant) -> u64 {
        let at = self.at + instant.saturating_duration_since(self.began);
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The phases of one choice, a span each: what begins one ends the one before.
pub struct Phases {
    trace: Trace,
    about: Vec<Attribute>,
    open: Option<(&'static str, Instant)>,
}

impl Phases {
    /// The first phase of a choice; `choice` is its number where there are several.
    pub fn new(trace: Trace, choice: Option<usize>, name: &'static str, at: Instant) -> Self {
        let about = choice.map(|index| ("ladle.choice.index".to_owned(), index.into()));
        let open = trace.is_recorded().then_some((name, at));
        Self { trace, about: about.into_iter().collect(), open }
    }

    /// The next phase.
    pub fn begin(&mut self, name: &'static str, at: Instant) {
        if self.open.is_some() {
            self.end(at);
            self.open = Some((name, at));
        }
    }

    /// The end of the last one.
    pub fn end(&mut self, at: Instant) {
        if let Some((name, since)) = self.open.take() {
            self.trace.part(name, (since, at), &self.about, true);
        }
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        if let Some((name, since)) = self.open.take() {
            self.trace.part(name, (since, Instant::now()), &self.about, false);
        }
    }
}
