//! The checked configuration, and how options become one.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use super::{ApiKey, ConfigError, LogFormat, MergeMode, Processor, ServeOptions, read};

/// Defaults that the engine shares with the server's options.
pub mod defaults {
    /// Sequences in one batch.
    pub const MAX_SEQUENCES: usize = 64;
    /// Token rows in one step.
    pub const MAX_STEP_TOKENS: usize = 512;
    /// Sequences that may wait.
    pub const MAX_QUEUE: usize = 1024;
}

/// Bounds on what a request may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Answer length, tokens, where a request names none.
    pub default_max_tokens: usize,
    /// Largest `max_tokens`; `None`: the context.
    pub max_tokens: Option<usize>,
    /// Largest `n`, and prompts × n.
    pub max_n: usize,
    /// Largest body, bytes.
    pub max_body: u64,
    /// Requests in progress.
    pub max_in_flight: usize,
    /// Requests per minute of one client; `None`: no limit.
    pub rate_limit: Option<usize>,
    /// Longest a request may take.
    pub request_timeout: Duration,
    /// Longest a body may take to arrive.
    pub body_timeout: Duration,
}

/// A checked configuration of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// The soup directory.
    pub soup: PathBuf,
    /// Host to listen on.
    pub host: String,
    /// Port to listen on; 0: a free one.
    pub port: u16,
    /// Directory of the base model, instead of the one that the soup names.
    pub base: Option<PathBuf>,
    /// Where imported base models are kept; `None`: `$LADLE_HOME/models`.
    pub models_dir: Option<PathBuf>,
    /// Never use the network.
    pub offline: bool,
    /// Check digests at the start.
    pub verify: bool,
    /// How preferences are executed.
    pub merge_mode: MergeMode,
    /// What computes.
    pub device: Processor,
    /// GPU memory to use; `None`: nine tenths of what is free.
    pub device_memory: Option<u64>,
    /// Byte budget of fused weights; `None`: the device's default.
    pub merge_cache: Option<u64>,
    /// Byte budget of keys and values; `None`: the device's default.
    pub kv_cache: Option<u64>,
    /// Compute threads; `None`: all cores.
    pub threads: Option<usize>,
    /// Sequences in one batch.
    pub max_sequences: usize,
    /// Token rows in one step.
    pub max_step_tokens: usize,
    /// Sequences that may wait.
    pub max_queue: usize,
    /// Tokens of prompt and answer together; `None`: the model's context.
    pub max_context: Option<usize>,
    /// Bounds on requests.
    pub limits: Limits,
    /// Time that running requests get after a signal.
    pub drain_timeout: Duration,
    /// Keys that clients must present; empty: none is asked for.
    pub api_keys: Vec<ApiKey>,
    /// Origins allowed by CORS.
    pub allow_origin: Vec<String>,
    /// Log filter.
    pub log: String,
    /// How log lines are written.
    pub log_format: LogFormat,
}

impl ServeOptions {
    /// Fills in defaults and checks every bound.
    pub fn check(self) -> Result<ServeConfig, ConfigError> {
        let size =
            |value: Option<NonZeroUsize>, default: usize| value.map_or(default, NonZeroUsize::get);
        let max_body = self.max_body.map_or(4 << 20, |bytes| bytes.0);
        // Bodies are held in memory; a gibibyte each is surely a slip of the pen.
        if !(1024..=1 << 30).contains(&max_body) {
            return Err(ConfigError::Value {
                option: "max_body",
                got: max_body.to_string(),
                expected: "1KiB to 1GiB".into(),
            });
        }
        let max_in_flight = size(self.max_in_flight, 1024);
        if max_in_flight > 1_000_000 {
            return Err(ConfigError::Value {
                option: "max_in_flight",
                got: max_in_flight.to_string(),
                expected: "at most 1000000".into(),
            });
        }
        let mut api_keys = self.api_keys.unwrap_or_default();
        if let Some(path) = &self.api_keys_file {
            let text = read(path)?;
            let lines = text.lines().map(str::trim);
            api_keys.extend(
                lines
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .map(|line| ApiKey(line.to_owned())),
            );
            if api_keys.is_empty() {
                return Err(ConfigError::Value {
                    option: "api_keys_file",
                    got: format!("{} without a key", path.display()),
                    expected: "at least one key, one a line".into(),
                });
            }
        }
        if api_keys.iter().any(|key| key.0.trim().is_empty()) {
            return Err(ConfigError::Value {
                option: "api_keys",
                got: "an empty key".into(),
                expected: "keys of at least one character".into(),
            });
        }
        Ok(ServeConfig {
            soup: self.soup.ok_or(ConfigError::Missing {
                option: "soup",
                hint: "name its directory, as in `ladle serve --soup backbones`",
            })?,
            host: self.host.unwrap_or_else(|| "127.0.0.1".into()),
            port: self.port.unwrap_or(8080),
            base: self.base,
            models_dir: self.models_dir,
            offline: self.offline.unwrap_or(false),
            verify: self.verify.unwrap_or(true),
            merge_mode: self.merge_mode.unwrap_or_default(),
            device: self.device.unwrap_or_default(),
            device_memory: self.device_memory.map(|bytes| bytes.0),
            merge_cache: self.merge_cache.map(|bytes| bytes.0),
            kv_cache: self.kv_cache.map(|bytes| bytes.0),
            threads: self.threads.map(NonZeroUsize::get),
            max_sequences: size(self.max_sequences, defaults::MAX_SEQUENCES),
            max_step_tokens: size(self.max_step_tokens, defaults::MAX_STEP_TOKENS),
            max_queue: size(self.max_queue, defaults::MAX_QUEUE),
            max_context: self.max_context.map(NonZeroUsize::get),
            limits: Limits {
                default_max_tokens: size(self.default_max_tokens, 256),
                max_tokens: self.max_tokens.map(NonZeroUsize::get),
                max_n: size(self.max_n, 16),
                max_body,
                max_in_flight,
                rate_limit: self.rate_limit.map(NonZeroUsize::get),
                request_timeout: seconds("request_timeout", self.request_timeout, 600.0)?,
                body_timeout: seconds("body_timeout", self.body_timeout, 30.0)?,
            },
            drain_timeout: seconds("drain_timeout", self.drain_timeout, 30.0)?,
            api_keys,
            allow_origin: self.allow_origin.unwrap_or_default(),
            log: self.log.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or_default(),
        })
    }
}

impl ServeConfig {
    /// `host:port` as `bind` takes it, IPv6 in brackets.
    pub fn address(&self) -> String {
        match self.host.parse() {
            Ok(ip) => SocketAddr::new(ip, self.port).to_string(),
            Err(_) => format!("{}:{}", self.host, self.port),
        }
    }
}

fn seconds(
    option: &'static str,
    value: Option<f64>,
    default: f64,
) -> Result<Duration, ConfigError> {
    let value = value.unwrap_or(default);
    // A day is above any sensible wait and far below what overflows an `Instant`.
    if value > 0.0 && value <= 86_400.0 {
        return Ok(Duration::from_secs_f64(value));
    }
    let expected = "a number of seconds above 0, at most 86400".into();
    Err(ConfigError::Value { option, got: value.to_string(), expected })
}
