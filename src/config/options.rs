//! The options, each defined once: flag, environment variable, key of the file, help and default.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, str::FromStr};

use serde::Deserialize;

use super::{
    ApiKey, ByteSize, KvType, LogFormat, MergeMode, OnFailure, Processor, Residence, Sampler,
    SoupAddress,
};

/// Defines groups of options, which are `None` where they are not given.
///
/// `name: Type = "8080"` has this default, written as a user would write it, and a method of the
/// option's name that gives the value or the default. `name: Type | "all cores"` has none; the text
/// says what holds without it. Groups in brackets become fields, parsed with the rest.
macro_rules! options {
    ($(
        $(#[doc = $about:literal])+
        $group:ident [$($part:ident: $part_type:ident),*] {$(
            $(#[doc = $doc:literal])+
            #[arg($($arg:tt)*)]
            $name:ident: $type:ty $(= $default:literal)? $(| $text:literal)?,
        )*}
    )*) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, Default, PartialEq, clap::Args)]
        pub struct $group {
            $(
                $(#[doc = $doc])+
                #[arg($($arg)*, help = help(concat!($($doc),+), &[$($default)? $($text)?]))]
                pub $name: Option<$type>,
            )*
            $(#[command(flatten)] pub $part: $part_type,)*
        }

        impl $group {
            /// These options, with `lower`'s where these are silent.
            pub fn over(self, lower: Self) -> Self {
                Self {
                    $($part: self.$part.over(lower.$part),)*
                    $($name: self.$name.or(lower.$name),)*
                }
            }

            /// Takes a value of a configuration file; false where no option has this key.
            pub(super) fn set(&mut self, key: &str, value: &toml::Value) -> Result<bool, String> {
                match key {
                    $(stringify!($name) => {
                        let value = <$type>::deserialize(value.clone());
                        self.$name = Some(value.map_err(|error| error.to_string())?);
                        Ok(true)
                    })*
                    _ => Ok(false $(|| self.$part.set(key, value)?)*),
                }
            }

            $($(
                #[doc = concat!("`", stringify!($name), "`, or its default: ", $default, ".")]
                pub fn $name(&self) -> $type {
                    self.$name.clone().unwrap_or_else(|| default($default))
                }
            )?)*
        }
    )*};
}

options! {
    /// Where base models are.
    StoreOptions [] {
        /// Where imported base models are kept.
        #[arg(long, env = "LADLE_MODELS_DIR", value_name = "DIR")]
        models_dir: PathBuf | "$LADLE_HOME/models",
        /// Never use the network.
        #[arg(long, env = "LADLE_OFFLINE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        offline: bool = "false",
    }

    /// What is logged, and how.
    LogOptions [] {
        /// Log filter, such as `info` or `ladle=debug`.
        #[arg(long, env = "LADLE_LOG", value_name = "FILTER")]
        log: String = "info",
        /// How log lines are written.
        #[arg(long, env = "LADLE_LOG_FORMAT", value_name = "FORMAT")]
        log_format: LogFormat = "text",
    }

    /// Where traces go, and which. The variables are OpenTelemetry's own.
    TraceOptions [] {
        /// Collector of traces (OTLP over HTTP), such as http://127.0.0.1:4318; they are sent to its
        /// /v1/traces.
        #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
        otlp_endpoint: String | "there are no traces",
        /// Whole address for traces, instead of the collector's /v1/traces.
        #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value_name = "URL")]
        otlp_traces_endpoint: String,
        /// How they are sent; nothing else than http/protobuf is spoken.
        #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_name = "PROTOCOL")]
        otlp_protocol: String = "http/protobuf",
        /// Headers for the collector, such as `authorization=Bearer%20KEY`, comma-separated, values
        /// percent-encoded.
        #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", value_name = "NAME=VALUE", hide_env_values = true)]
        otlp_headers: ApiKey,
        /// Milliseconds that the collector may take to answer.
        #[arg(long, env = "OTEL_EXPORTER_OTLP_TIMEOUT", value_name = "MILLISECONDS")]
        otlp_timeout: NonZeroUsize = "10000",
        /// How they are compressed: none or gzip.
        #[arg(long, env = "OTEL_EXPORTER_OTLP_COMPRESSION", value_name = "HOW")]
        otlp_compression: String = "none",
        /// Name of the service in traces.
        #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
        service_name: String = "ladle",
        /// Further attributes of the process in traces, comma-separated, values percent-encoded.
        #[arg(long, env = "OTEL_RESOURCE_ATTRIBUTES", value_name = "NAME=VALUE")]
        resource_attributes: String,
        /// Which traces are recorded: always_on, always_off, traceidratio, or one of these after
        /// `parentbased_`, which does as the caller's `traceparent` says where there is one.
        #[arg(long, env = "OTEL_TRACES_SAMPLER", value_name = "SAMPLER")]
        traces_sampler: Sampler = "parentbased_always_on",
        /// Share of traces that traceidratio records, 0 to 1.
        #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "SHARE")]
        traces_sampler_arg: f64 = "1",
        /// Spans that may wait to be sent; more are dropped.
        #[arg(long, env = "OTEL_BSP_MAX_QUEUE_SIZE", value_name = "N")]
        trace_queue: NonZeroUsize = "2048",
        /// Milliseconds that spans may wait for others to be sent with.
        #[arg(long, env = "OTEL_BSP_SCHEDULE_DELAY", value_name = "MILLISECONDS")]
        trace_delay: u32 = "5000",
        /// Put each request's preference on its span.
        #[arg(long, env = "LADLE_TRACE_PREFERENCES", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        trace_preferences: bool = "false",
    }

    /// The options of `ladle serve` as given, before defaults and checks.
    ServeOptions [store: StoreOptions, logs: LogOptions, traces: TraceOptions] {
        /// The soup directory (holds soup.toml), or an address that it is fetched from: s3://, gs://,
        /// https:// or http://.
        #[arg(long, env = "LADLE_SOUP", value_name = "DIR")]
        soup: PathBuf,
        /// Soups that are served beside it, each under its own name: directories or addresses,
        /// comma-separated.
        #[arg(long, env = "LADLE_WITH_SOUP", value_name = "DIR", value_delimiter = ',')]
        with_soup: Vec<PathBuf>,
        /// Directory below which requests for `/admin/soups` find soups; needs named keys.
        #[arg(long, env = "LADLE_SOUP_ROOT", value_name = "DIR")]
        soup_root: PathBuf,
        /// Addresses that requests for `/admin/soups` may name, with all below them, such as
        /// s3://models/soups; comma-separated; needs named keys.
        #[arg(long, env = "LADLE_SOUP_SOURCE", value_name = "PREFIX", value_delimiter = ',')]
        soup_source: Vec<SoupAddress>,
        /// Where fetched soups are kept.
        #[arg(long, env = "LADLE_SOUP_CACHE", value_name = "DIR")]
        soup_cache: PathBuf | "$LADLE_HOME/soups",
        /// Address to listen on.
        #[arg(long, env = "LADLE_HOST", value_name = "ADDRESS")]
        host: String = "127.0.0.1",
        /// Port to listen on; 0 takes a free one.
        #[arg(long, env = "LADLE_PORT")]
        port: u16 = "8080",
        /// Directory of the base model, instead of the one that the soup names.
        #[arg(long, env = "LADLE_BASE", value_name = "DIR")]
        base: PathBuf,
        /// Check the sha256 of every weight file at the start.
        #[arg(long, env = "LADLE_VERIFY", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        verify: bool = "true",
        /// Where the weights of the base and of full backbones lie.
        #[arg(long, env = "LADLE_WEIGHTS", value_name = "WHERE")]
        weights: Residence = "copied",
        /// How preferences are executed.
        #[arg(long, env = "LADLE_MERGE_MODE", value_name = "MODE")]
        merge_mode: MergeMode = "auto",
        /// Presets of the soup (not of those beside it) whose merged weights are made at the start and
        /// kept, comma-separated; requests for them run fused.
        #[arg(long, env = "LADLE_PIN", value_name = "PRESET", value_delimiter = ',')]
        pin: Vec<String>,
        /// What computes: cpu, cuda or cuda:N.
        #[arg(long, env = "LADLE_DEVICE")]
        device: Processor = "cpu",
        /// GPU memory to use for everything.
        #[arg(long, env = "LADLE_DEVICE_MEMORY", value_name = "SIZE")]
        device_memory: ByteSize | "nine tenths of what is free",
        /// Memory of the process, of which all budgets are parts; a soup that does not fit is refused.
        #[arg(long, env = "LADLE_MAX_MEMORY", value_name = "SIZE")]
        max_memory: ByteSize | "the control group's limit, where there is one",
        /// Byte budget of fused weights.
        #[arg(long, env = "LADLE_MERGE_CACHE", value_name = "SIZE")]
        merge_cache: ByteSize | "2GiB, or what max_memory leaves; on a GPU what is left",
        /// Byte budget of keys and values.
        #[arg(long, env = "LADLE_KV_CACHE", value_name = "SIZE")]
        kv_cache: ByteSize | "1GiB, or a part of what max_memory leaves; on a GPU a quarter of what is left",
        /// How keys and values are stored.
        #[arg(long, env = "LADLE_KV_DTYPE", value_name = "TYPE")]
        kv_dtype: KvType = "auto",
        /// Compute threads.
        #[arg(long, env = "LADLE_THREADS", value_name = "N")]
        threads: NonZeroUsize | "all cores",
        /// Sequences in one batch.
        #[arg(long, env = "LADLE_MAX_SEQUENCES", value_name = "N")]
        max_sequences: NonZeroUsize = "64",
        /// Token rows in one step, and tokens of the longest prompt that an encoder reads.
        #[arg(long, env = "LADLE_MAX_STEP_TOKENS", value_name = "N")]
        max_step_tokens: NonZeroUsize = "512",
        /// Sequences that may wait; beyond it a request gets 503.
        #[arg(long, env = "LADLE_MAX_QUEUE", value_name = "N")]
        max_queue: NonZeroUsize = "1024",
        /// Tokens of prompt and answer together.
        #[arg(long, env = "LADLE_MAX_CONTEXT", value_name = "N")]
        max_context: NonZeroUsize | "the model's context",
        /// Answer length where a request names none.
        #[arg(long, env = "LADLE_DEFAULT_MAX_TOKENS", value_name = "N")]
        default_max_tokens: NonZeroUsize = "256",
        /// Largest `max_tokens` of a request.
        #[arg(long, env = "LADLE_MAX_TOKENS", value_name = "N")]
        max_tokens: NonZeroUsize | "the context",
        /// Largest `n` of a request, and prompts × n of a completion.
        #[arg(long, env = "LADLE_MAX_N", value_name = "N")]
        max_n: NonZeroUsize = "16",
        /// Largest request body.
        #[arg(long, env = "LADLE_MAX_BODY", value_name = "SIZE")]
        max_body: ByteSize = "4MiB",
        /// Memory for request bodies of more than 64 KiB, all together; beyond it a request gets 503.
        #[arg(long, env = "LADLE_BODY_MEMORY", value_name = "SIZE")]
        body_memory: ByteSize | "64MiB, or max_body if that is more",
        /// Requests in progress; beyond it a request gets 503.
        #[arg(long, env = "LADLE_MAX_IN_FLIGHT", value_name = "N")]
        max_in_flight: NonZeroUsize = "1024",
        /// Connections; beyond it one that waits for a request is closed, or a new one gets 503. Fewer
        /// where the limit of open files allows no more.
        #[arg(long, env = "LADLE_MAX_CONNECTIONS", value_name = "N")]
        max_connections: NonZeroUsize = "2048",
        /// Connections from one address (IPv6: one /64); beyond it 429.
        #[arg(long, env = "LADLE_MAX_ADDRESS_CONNECTIONS", value_name = "N")]
        max_address_connections: NonZeroUsize | "half of max_connections",
        /// Requests per minute of one client (API key, else address); beyond it 429.
        #[arg(long, env = "LADLE_RATE_LIMIT", value_name = "N")]
        rate_limit: NonZeroUsize | "none",
        /// Seconds until a request gets 504; a request may ask for less.
        #[arg(long, env = "LADLE_REQUEST_TIMEOUT", value_name = "SECONDS")]
        request_timeout: f64 = "600",
        /// Seconds that a client may take to send a body, and again for each further 64 KiB of it.
        #[arg(long, env = "LADLE_BODY_TIMEOUT", value_name = "SECONDS")]
        body_timeout: f64 = "30",
        /// Seconds that a client may take to send the head of a request.
        #[arg(long, env = "LADLE_HEADER_TIMEOUT", value_name = "SECONDS")]
        header_timeout: f64 = "10",
        /// Seconds until a connection without a request is closed.
        #[arg(long, env = "LADLE_IDLE_TIMEOUT", value_name = "SECONDS")]
        idle_timeout: f64 = "75",
        /// Seconds until a client that takes nothing of its answer is dropped.
        #[arg(long, env = "LADLE_WRITE_TIMEOUT", value_name = "SECONDS")]
        write_timeout: f64 = "20",
        /// Seconds that running requests get to finish after SIGTERM or SIGINT.
        #[arg(long, env = "LADLE_DRAIN_TIMEOUT", value_name = "SECONDS")]
        drain_timeout: f64 = "30",
        /// Seconds of one step of the engine after which `/ready` says 503.
        #[arg(long, env = "LADLE_STEP_TIMEOUT", value_name = "SECONDS")]
        step_timeout: f64 = "300",
        /// What is done when the engine's thread ends, or a step outlasts its time.
        #[arg(long, env = "LADLE_ON_ENGINE_FAILURE", value_name = "WHAT")]
        on_engine_failure: OnFailure = "restart",
        /// Keys that clients must present, comma-separated. Other users of the machine can read a
        /// command line: the environment or a file is better.
        #[arg(long = "api-key", env = "LADLE_API_KEYS", value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
        api_keys: Vec<ApiKey>,
        /// File of keys, one a line; empty lines and lines that begin with # are skipped.
        #[arg(long, env = "LADLE_API_KEYS_FILE", value_name = "FILE")]
        api_keys_file: PathBuf,
        /// File of named keys with rights of their own, which `ladle key new` writes; read again on
        /// SIGHUP.
        #[arg(long, env = "LADLE_NAMED_KEYS", value_name = "FILE")]
        named_keys: PathBuf,
        /// Let clients of different keys find each other's prompts in the prefix cache.
        #[arg(long, env = "LADLE_SHARE_PREFIXES", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        share_prefixes: bool = "false",
        /// Certificate chain (PEM): the server speaks TLS; read again on SIGHUP.
        #[arg(long, env = "LADLE_TLS_CERT", value_name = "FILE")]
        tls_cert: PathBuf,
        /// Its private key (PEM).
        #[arg(long, env = "LADLE_TLS_KEY", value_name = "FILE")]
        tls_key: PathBuf,
        /// Address and port that answer `/metrics` without a key; then the other port does not.
        #[arg(long, env = "LADLE_METRICS_ADDR", value_name = "ADDRESS:PORT")]
        metrics_addr: SocketAddr,
        /// Origins whose web pages may call this server (CORS), comma-separated; `*` for all.
        #[arg(long, env = "LADLE_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
        allow_origin: Vec<String>,
    }
}

/// Help of an option from its doc comment, with the default at its end.
fn help(doc: &str, default: &[&str]) -> String {
    let doc = doc.trim().trim_end_matches('.');
    match default {
        [default] => format!("{doc} [default: {default}]"),
        _ => doc.to_owned(),
    }
}

fn default<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("the default {text:?} is not a value of its option"))
}
