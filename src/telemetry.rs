//! Every metric and log span of the process, with its unit.
//!
//! Each server owns one [`Telemetry`]: a recorder of its own (nothing global, so that two servers
//! in one process don't mix their numbers) and the handles that the hot path writes to. Names begin
//! with `ladle_`; durations are seconds and sizes are bytes. A preference vector never becomes a
//! label: its weights go to one histogram per objective.

mod edges;
mod keys;
mod logs;
mod process;

use std::{any::Any, time::Duration};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use edges::*;

pub use logs::{LogError, init_logs};

/// How a metric is kept.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

/// One exported metric.
struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
}

macro_rules! metrics_table {
    ($($constant:ident $name:literal $kind:expr, $unit:ident, $help:literal;)*) => {
        $(const $constant: &str = $name;)*
        const TABLE: &[Metric] =
            &[$(Metric { name: $name, kind: $kind, unit: Unit::$unit, help: $help }),*];
    };
}

metrics_table! {
    REQUEST_DURATION "ladle_request_duration_seconds" Kind::Histogram(REQUEST_SECONDS), Seconds,
        "From the first byte of a request to the last byte of its answer, by route and status.";
    FIRST_TOKEN "ladle_time_to_first_token_seconds" Kind::Histogram(FIRST_TOKEN_SECONDS), Seconds,
        "From submission to a sequence's first token, queueing and merging included.";
    INTER_TOKEN "ladle_inter_token_latency_seconds" Kind::Histogram(INTER_TOKEN_SECONDS), Seconds,
        "Between two tokens of one sequence.";
    QUEUE "ladle_queue_time_seconds" Kind::Histogram(REQUEST_SECONDS), Seconds,
        "From submission to the step that first runs a sequence.";
    READY "ladle_ready" Kind::Gauge, Count, "1 while /ready answers 200, else 0.";
    RUNNING "ladle_requests_running" Kind::Gauge, Count, "Sequences in the running batch.";
    WAITING "ladle_requests_waiting" Kind::Gauge, Count, "Sequences in the queue.";
    SOUP_RUNNING "ladle_soup_requests_running" Kind::Gauge, Count,
        "Sequences in the running batch, by the soup.";
    SOUP_WAITING "ladle_soup_requests_waiting" Kind::Gauge, Count,
        "Sequences in the queue, by the soup.";
    REJECTED "ladle_requests_rejected_total" Kind::Counter, Count,
        "Requests refused before they ran, by reason.";
    SUCCESS "ladle_request_success_total" Kind::Counter, Count,
        "Sequences that were completed, by the reason of their end.";
    REQUEST_PROMPT "ladle_request_prompt_tokens" Kind::Histogram(REQUEST_TOKENS), Count,
        "Prompt tokens of completed sequences.";
    REQUEST_GENERATION "ladle_request_generation_tokens" Kind::Histogram(REQUEST_TOKENS), Count,
        "Generated tokens of completed sequences.";
    FAILED "ladle_requests_failed_total" Kind::Counter, Count,
        "Sequences that failed after they were accepted: deadlines, unread answers, errors.";
    CANCELLED "ladle_requests_cancelled_total" Kind::Counter, Count,
        "Sequences whose client went away before the end.";
    PREEMPTIONS "ladle_preemptions_total" Kind::Counter, Count,
        "Times a running sequence gave its KV blocks up and was computed again later.";
    PREFIX_QUERIES "ladle_prefix_cache_queries_total" Kind::Counter, Count,
        "Prompt tokens looked up in the prefix cache.";
    PREFIX_HITS "ladle_prefix_cache_hits_total" Kind::Counter, Count,
        "Prompt tokens found in the prefix cache.";
    KV_BLOCKS "ladle_kv_blocks" Kind::Gauge, Count, "KV blocks that exist.";
    KV_CACHED "ladle_kv_blocks_cached" Kind::Gauge, Count,
        "KV blocks that no sequence holds, kept for the prefix cache.";
    KV_BLOCK_TOKENS "ladle_kv_block_tokens" Kind::Gauge, Count, "Tokens of a KV block.";
    MODEL "ladle_model_info" Kind::Gauge, Count,
        "1 for each soup that is served, labelled with its model id and digest.";
    GENERATION "ladle_soup_generation" Kind::Gauge, Count, "Generation of the soup that is served, of several the first one.";
    DRAINING "ladle_soup_draining" Kind::Gauge, Count,
        "Former generations that still answer requests.";
    BUILD "ladle_build_info" Kind::Gauge, Count, "1, labelled with the version of the server.";
    PINNED "ladle_pinned_preset" Kind::Gauge, Count,
        "1 for each preset whose fused weights are made at the start and kept.";
    PROMPT_TOKENS "ladle_prompt_tokens_total" Kind::Counter, Count, "Prompt tokens computed, without those from the prefix cache.";
    GENERATED_TOKENS "ladle_generated_tokens_total" Kind::Counter, Count, "Tokens generated.";
    MERGE "ladle_merge_seconds" Kind::Histogram(FIRST_TOKEN_SECONDS), Seconds,
        "Building one set of fused weights.";
    MERGE_HITS "ladle_merge_cache_hits_total" Kind::Counter, Count, "Look-ups that found fused weights.";
    MERGE_MISSES "ladle_merge_cache_misses_total" Kind::Counter, Count,
        "Look-ups that began a merge.";
    MERGE_EVICTIONS "ladle_merge_cache_evictions_total" Kind::Counter, Count,
        "Fused weights dropped, to make room or with their soup.";
    MERGE_MODELS "ladle_merge_cache_models" Kind::Gauge, Count, "Sets of fused weights held.";
    MERGE_BYTES "ladle_merge_cache_bytes" Kind::Gauge, Bytes, "Bytes of fused weights held.";
    STEPS "ladle_steps_total" Kind::Counter, Count, "Forward passes, by execution mode.";
    PREFERENCES "ladle_step_preferences" Kind::Histogram(STEP_PREFERENCES), Count,
        "Distinct preferences in one step.";
    ROWS "ladle_step_rows" Kind::Histogram(STEP_ROWS), Count, "Token rows in one step.";
    KV_USAGE "ladle_kv_usage_ratio" Kind::Gauge, Count, "Share of the KV blocks in use, 0 to 1.";
    KEY_REQUESTS "ladle_key_requests_total" Kind::Counter, Count,
        "Requests that brought a known key, by its name.";
    KEY_TOKENS "ladle_key_tokens_total" Kind::Counter, Count,
        "Tokens of requests that have ended, by the name of their key.";
    KEY_REFUSED "ladle_key_refused_total" Kind::Counter, Count,
        "Requests that a limit of their key refused, by its name and the limit.";
    SPANS_EXPORTED "ladle_trace_spans_exported_total" Kind::Counter, Count,
        "Spans that the collector of traces took.";
    SPANS_DROPPED "ladle_trace_spans_dropped_total" Kind::Counter, Count,
        "Spans that did not fit into the queue or could not be delivered.";
    WEIGHTS "ladle_preference_weight" Kind::Histogram(WEIGHT), Count,
        "Normalised preference weight of requests, by objective.";
}

const METADATA: Metadata<'static> = Metadata::new("ladle", Level::INFO, None);

/// Why a request was refused before it ran; the label of `ladle_requests_rejected_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// A value of the request is not acceptable (400, 404, 405, 413, 415).
    Invalid,
    /// No or a wrong API key (401).
    Unauthorized,
    /// The client is over its rate (429).
    RateLimited,
    /// The queue or the server is full (503).
    Overloaded,
    /// The server is loading or draining (503).
    Unavailable,
}

impl Rejection {
    fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
        }
    }
}

/// The metrics of one server.
pub struct Telemetry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Submission to first token, seconds.
    pub first_token: Histogram,
    /// Gap between two tokens of a sequence, seconds.
    pub inter_token: Histogram,
    /// Submission to first step, seconds.
    pub queue: Histogram,
    /// Whether new work is taken.
    pub ready: Gauge,
    /// The generation that is served, and the former ones that still answer.
    pub generation: Gauge,
    pub draining: Gauge,
    /// Sequences in the running batch.
    pub running: Gauge,
    /// Sequences in the queue.
    pub waiting: Gauge,
    /// Sequences that ended by themselves, and those that `max_tokens` ended.
    pub stopped: Counter,
    pub cut: Counter,
    /// Tokens of completed sequences.
    pub request_prompt: Histogram,
    pub request_generation: Histogram,
    pub failed: Counter,
    pub cancelled: Counter,
    pub preemptions: Counter,
    /// Prompt tokens looked up in the prefix cache, and found.
    pub prefix_queries: Counter,
    pub prefix_hits: Counter,
    pub kv_blocks: Gauge,
    pub kv_cached: Gauge,
    pub kv_block_tokens: Gauge,
    /// Prompt tokens computed, without those from the prefix cache.
    pub prompt_tokens: Counter,
    pub generated_tokens: Counter,
    /// Building one set of fused weights, seconds.
    pub merge: Histogram,
    /// Look-ups that found fused weights.
    pub merge_hits: Counter,
    /// Look-ups that began a merge.
    pub merge_misses: Counter,
    /// Fused weights dropped to make room.
    pub merge_evictions: Counter,
    /// Sets of fused weights held, and their bytes.
    pub merge_models: Gauge,
    pub merge_bytes: Gauge,
    /// Forward passes over fused weights.
    pub steps_fused: Counter,
    /// Forward passes with per-row coefficients.
    pub steps_mixed: Counter,
    /// Distinct preferences in one step.
    pub step_preferences: Histogram,
    /// Token rows in one step.
    pub step_rows: Histogram,
    /// Share of the KV blocks in use, 0 to 1.
    pub kv_usage: Gauge,
    keys: keys::Names,
    /// Spans that the collector of traces took, and those that did not get there.
    pub spans_exported: Counter,
    pub spans_dropped: Counter,
}

impl Telemetry {
    /// Registers every metric with a recorder of its own.
    pub fn new() -> Self {
        let recorder = TABLE
            .iter()
            .fold(PrometheusBuilder::new(), |builder, metric| match metric.kind {
                Kind::Histogram(edges) => builder
                    .set_buckets_for_metric(Matcher::Full(metric.name.into()), edges)
                    .expect("the edges in the table are not empty"),
                Kind::Counter | Kind::Gauge => builder,
            })
            .build_recorder();
        for metric in TABLE {
            let (name, unit, help) = (metric.name.into(), Some(metric.unit), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, unit, help),
                Kind::Gauge => recorder.describe_gauge(name, unit, help),
                Kind::Histogram(_) => recorder.describe_histogram(name, unit, help),
            }
        }
        let counter = |name, labels: Vec<Label>| {
            recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
        };
        let plain = |name| counter(name, Vec::new());
        let gauge = |name| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let histogram = |name| recorder.register_histogram(&Key::from_static_name(name), &METADATA);
        for reason in [
            Rejection::Invalid,
            Rejection::Unauthorized,
            Rejection::RateLimited,
            Rejection::Overloaded,
            Rejection::Unavailable,
        ] {
            // Registered at zero, so that a rate over it exists from the first scrape.
            counter(REJECTED, vec![Label::from_static_parts("reason", reason.label())])
                .increment(0);
        }
        let version = Label::from_static_parts("version", env!("CARGO_PKG_VERSION"));
        recorder.register_gauge(&Key::from_parts(BUILD, vec![version]), &METADATA).set(1.0);
        let success =
            |reason| counter(SUCCESS, vec![Label::from_static_parts("finished_reason", reason)]);
        Self {
            stopped: success("stop"),
            cut: success("length"),
            request_prompt: histogram(REQUEST_PROMPT),
            request_generation: histogram(REQUEST_GENERATION),
            failed: plain(FAILED),
            cancelled: plain(CANCELLED),
            preemptions: plain(PREEMPTIONS),
            prefix_queries: plain(PREFIX_QUERIES),
            prefix_hits: plain(PREFIX_HITS),
            kv_blocks: gauge(KV_BLOCKS),
            kv_cached: gauge(KV_CACHED),
            kv_block_tokens: gauge(KV_BLOCK_TOKENS),
            first_token: histogram(FIRST_TOKEN),
            inter_token: histogram(INTER_TOKEN),
            queue: histogram(QUEUE),
            ready: gauge(READY),
            generation: gauge(GENERATION),
            draining: gauge(DRAINING),
            running: gauge(RUNNING),
            waiting: gauge(WAITING),
            prompt_tokens: plain(PROMPT_TOKENS),
            generated_tokens: plain(GENERATED_TOKENS),
            merge: histogram(MERGE),
            merge_hits: plain(MERGE_HITS),
            merge_misses: plain(MERGE_MISSES),
            merge_evictions: plain(MERGE_EVICTIONS),
            merge_models: gauge(MERGE_MODELS),
            merge_bytes: gauge(MERGE_BYTES),
            steps_fused: counter(STEPS, vec![Label::from_static_parts("mode", "fused")]),
            steps_mixed: counter(STEPS, vec![Label::from_static_parts("mode", "mixed")]),
            step_preferences: histogram(PREFERENCES),
            step_rows: histogram(ROWS),
            kv_usage: gauge(KV_USAGE),
            keys: keys::Names::default(),
            spans_exported: plain(SPANS_EXPORTED),
            spans_dropped: plain(SPANS_DROPPED),
            handle: recorder.handle(),
            recorder,
        }
    }

    /// Counts a finished request. `route` is the route's pattern, never the path a client sent.
    pub fn request(&self, route: &str, status: u16, took: Duration) {
        let labels =
            vec![Label::new("route", route.to_owned()), Label::new("status", status.to_string())];
        let key = Key::from_parts(REQUEST_DURATION, labels);
        self.recorder.register_histogram(&key, &METADATA).record(took.as_secs_f64());
    }

    /// Counts a request that was refused before it ran.
    pub fn rejected(&self, reason: Rejection) {
        self.count(REJECTED, vec![Label::from_static_parts("reason", reason.label())], 1);
    }

    /// Counts a request that brought a known key.
    pub fn key_request(&self, key: &str) {
        self.count(KEY_REQUESTS, vec![self.keys.label(key)], 1);
    }

    /// Counts the tokens of a request that has ended.
    pub fn key_tokens(&self, key: &str, prompt: usize, completion: usize) {
        for (kind, tokens) in [("prompt", prompt), ("completion", completion)] {
            let labels = vec![self.keys.label(key), Label::from_static_parts("kind", kind)];
            self.count(KEY_TOKENS, labels, tokens as u64);
        }
    }

    /// Counts a request that a limit of its key refused.
    pub fn key_refused(&self, key: &str, limit: &'static str) {
        let labels = vec![self.keys.label(key), Label::from_static_parts("limit", limit)];
        self.count(KEY_REFUSED, labels, 1);
    }

    fn count(&self, name: &'static str, labels: Vec<Label>, more: u64) {
        let key = Key::from_parts(name, labels);
        self.recorder.register_counter(&key, &METADATA).increment(more);
    }

    /// Whether this soup is the one that is served.
    pub fn model(&self, name: &str, digest: &str, served: bool) {
        let labels = [("model_name", name), ("digest", digest)];
        self.mark(MODEL, &labels, served);
    }

    /// Sequences of a soup, in the batch and in the queue.
    pub fn sequences(&self, name: &str, running: usize, waiting: usize) {
        self.set(SOUP_RUNNING, &[("model_name", name)], running as f64);
        self.set(SOUP_WAITING, &[("model_name", name)], waiting as f64);
    }

    /// Names the presets that are pinned.
    pub fn pinned(&self, presets: &[String]) {
        presets.iter().for_each(|preset| self.mark(PINNED, &[("preset", preset)], true));
    }

    fn mark(&self, metric: &'static str, labels: &[(&'static str, &str)], holds: bool) {
        self.set(metric, labels, f64::from(u8::from(holds)));
    }

    fn set(&self, metric: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned()));
        let key = Key::from_parts(metric, labels.collect::<Vec<_>>());
        self.recorder.register_gauge(&key, &METADATA).set(value);
    }

    /// Records the normalised weights of one request, one per objective.
    pub fn preference(&self, objectives: &[String], weights: &[f64]) {
        for (objective, weight) in objectives.iter().zip(weights) {
            let key = Key::from_parts(WEIGHTS, vec![Label::new("objective", objective.clone())]);
            self.recorder.register_histogram(&key, &METADATA).record(*weight);
        }
    }

    /// The Prometheus text exposition of everything recorded so far. Of former soups nothing is told:
    /// who joins on the soup's name must find one.
    pub fn render(&self) -> String {
        let text = self.handle.render();
        let former = |line: &&str| line.starts_with(MODEL) && line.ends_with(" 0\n");
        text.split_inclusive('\n').filter(|line| !former(line)).collect::<String>()
            + &process::render()
    }

    /// Folds recorded samples into their buckets; called every few seconds, so that memory does not
    /// grow where nobody scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

/// The text that a panic was raised with.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_table_is_exported_with_its_help() {
        let telemetry = Telemetry::new();
        telemetry.request("/generate", 200, Duration::from_millis(400));
        telemetry.preference(&["helpful".into()], &[0.7]);
        telemetry.model("soup", "d1gest", true);
        telemetry.sequences("soup", 1, 2);
        telemetry.pinned(&["brief".into()]);
        telemetry.key_request("team");
        telemetry.key_tokens("team", 3, 4);
        telemetry.key_refused("team", "max_in_flight");
        for histogram in [
            &telemetry.first_token,
            &telemetry.inter_token,
            &telemetry.queue,
            &telemetry.request_prompt,
            &telemetry.request_generation,
            &telemetry.merge,
            &telemetry.step_preferences,
            &telemetry.step_rows,
        ] {
            histogram.record(1.0);
        }
        let text = telemetry.render();
        for metric in TABLE {
            assert!(
                text.contains(&format!("# HELP {} ", metric.name)),
                "{} in\n{text}",
                metric.name
            );
        }
        let bucket = "ladle_request_duration_seconds_bucket{route=\"/generate\",status=\"200\",le=\"0.5\"} 1";
        assert!(text.contains(bucket), "{text}");
        assert!(text.contains("le=\"0.3\"} 0"), "{text}");
    }

    #[test]
    fn two_servers_do_not_share_numbers() {
        let (one, two) = (Telemetry::new(), Telemetry::new());
        one.generated_tokens.increment(5);
        one.rejected(Rejection::RateLimited);
        assert!(one.render().contains("ladle_generated_tokens_total 5"));
        assert!(two.render().contains("ladle_generated_tokens_total 0"));
        assert!(two.render().contains("ladle_requests_rejected_total{reason=\"rate_limited\"} 0"));
    }
}
