//! The way of spans to the collector: a bounded queue and a thread of its own. Who records a span
//! never waits; what does not fit, or cannot be delivered, is counted and dropped.

use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use metrics::Counter;
use tokio::sync::oneshot;
use ureq::{
    Agent,
    tls::{RootCerts, TlsConfig},
};

use super::span::{Span, encode};
use crate::{config::Traces, telemetry::Telemetry};

/// Spans in one message to the collector.
const BATCH: usize = 512;
/// Bytes read of the collector's answer.
const ANSWER: u64 = 64 << 10;

enum Message {
    Span(Box<Span>),
    /// Sends what there is, then tells.
    Flush(oneshot::Sender<()>),
}

/// The queue's beginning.
pub struct Exporter {
    queue: SyncSender<Message>,
    dropped: Counter,
}

impl Exporter {
    /// Starts the thread that sends. Nothing is sent yet.
    pub fn start(traces: &Traces, telemetry: &Telemetry) -> io::Result<Self> {
        let (queue, spans) = sync_channel(traces.queue);
        let sender = Sender::new(traces.clone(), telemetry);
        thread::Builder::new().name("traces".to_owned()).spawn(move || sender.run(&spans))?;
        Ok(Self { queue, dropped: telemetry.spans_dropped.clone() })
    }

    /// Queues a span, or drops it where the queue is full.
    pub fn send(&self, span: Span) {
        if self.queue.try_send(Message::Span(Box::new(span))).is_err() {
            self.dropped.increment(1);
        }
    }

    /// Waits until what was queued is delivered or dropped, for that long at most; not for a full
    /// queue, whose collector is away.
    pub async fn flush(&self, longest: Duration) {
        let (tell, told) = oneshot::channel();
        if self.queue.try_send(Message::Flush(tell)).is_ok() {
            // Its time is up, or the thread has ended.
            let _ = tokio::time::timeout(longest, told).await;
        }
    }
}

/// The thread's own.
struct Sender {
    agent: Agent,
    traces: Traces,
    exported: Counter,
    dropped: Counter,
}

impl Sender {
    fn new(traces: Traces, telemetry: &Telemetry) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .user_agent(concat!("ladle/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(traces.timeout))
            .build()
            .into();
        let (exported, dropped) =
            (telemetry.spans_exported.clone(), telemetry.spans_dropped.clone());
        Self { agent, traces, exported, dropped }
    }

    /// Sends batches until the server is gone.
    fn run(&self, spans: &Receiver<Message>) {
        let mut failing = false;
        while let Ok(first) = spans.recv() {
            let (batch, flushed) = gather(first, spans, self.traces.delay);
            if !batch.is_empty() {
                let sent = self.deliver(&batch);
                let counter = if sent.is_ok() { &self.exported } else { &self.dropped };
                counter.increment(batch.len() as u64);
                let url = &self.traces.url;
                match &sent {
                    Err(error) if !failing => {
                        tracing::warn!(url, error, "traces cannot be delivered and are dropped");
                    }
                    Ok(()) if failing => tracing::info!(url, "traces are delivered again"),
                    _ => {}
                }
                failing = sent.is_err();
            }
            if let Some(flushed) = flushed {
                // Who waited may have gone.
                let _ = flushed.send(());
            }
        }
    }

    fn deliver(&self, batch: &[Span]) -> Result<(), String> {
        let mut request =
            self.agent.post(&self.traces.url).header("content-type", "application/x-protobuf");
        for (name, value) in &self.traces.headers {
            request = request.header(name, &value.0);
        }
        let mut body = encode(&self.traces.resource, batch);
        if self.traces.gzip {
            request = request.header("content-encoding", "gzip");
            let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
            compressed.write_all(&body).map_err(|error| error.to_string())?;
            body = compressed.finish().map_err(|error| error.to_string())?;
        }
        let response = request.send(&body[..]).map_err(|error| error.to_string())?;
        let status = response.status();
        // Read, so that the connection can be used again; what it says is not needed.
        let _ = response.into_body().into_with_config().limit(ANSWER).read_to_vec();
        if status.is_success() { Ok(()) } else { Err(format!("the collector answered {status}")) }
    }
}

/// The spans of one batch: what comes within `delay`, or before somebody waits for it.
fn gather(
    first: Message,
    spans: &Receiver<Message>,
    delay: Duration,
) -> (Vec<Span>, Option<oneshot::Sender<()>>) {
    let (end, mut batch, mut next) = (Instant::now() + delay, Vec::new(), Ok(first));
    loop {
        match next {
            Ok(Message::Span(span)) => batch.push(*span),
            Ok(Message::Flush(tell)) => return (batch, Some(tell)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return (batch, None);
            }
        }
        if batch.len() >= BATCH {
            return (batch, None);
        }
        next = spans.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}
