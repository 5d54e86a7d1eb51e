//! The options of `ladle serve`: raw flags, environment and file → a checked [`ServeConfig`].
//!
//! A flag beats its environment variable (`LADLE_…`), which beats the file (`--config FILE.toml`,
//! the same names with underscores), which beats the default. Every limit of the server is here.

mod checked;
mod values;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use checked::{Limits, ServeConfig, defaults};
pub use values::{ApiKey, ByteSize, Processor};

/// Why options don't make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration file does not parse, or has a key that doesn't exist.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        message: String,
    },
    /// A value is out of its bounds.
    #[error("{option} is {got}, expected {expected}")]
    Value {
        /// The option, as in a file.
        option: &'static str,
        /// The value given.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// An option without a default was not given.
    #[error("no {option} given: {hint}")]
    Missing {
        /// The option.
        option: &'static str,
        /// How to give it.
        hint: &'static str,
    },
}

/// How preferences are executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeMode {
    /// Chosen per step by the cost model.
    #[default]
    Auto,
    /// Always materialise the merged weights.
    Fused,
    /// Always per-row coefficients.
    Mixed,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

macro_rules! options {
    ($($(#[$attribute:meta])* $name:ident: $type:ty,)*) => {
        /// Options as given, before defaults and checks; the keys of the configuration file.
        #[derive(Debug, Clone, Default, PartialEq, clap::Args, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct ServeOptions {
            $($(#[$attribute])* pub $name: Option<$type>,)*
        }

        impl ServeOptions {
            /// These options, with `lower`'s where these are silent.
            pub fn over(self, lower: Self) -> Self {
                Self { $($name: self.$name.or(lower.$name),)* }
            }
        }
    };
}

options! {
    /// The soup directory (holds soup.toml).
    #[arg(long, env = "LADLE_SOUP", value_name = "DIR")]
    soup: PathBuf,
    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, env = "LADLE_HOST")]
    host: String,
    /// Port to listen on; 0 takes a free one [default: 8080].
    #[arg(long, env = "LADLE_PORT")]
    port: u16,
    /// Directory of the base model, instead of the one that the soup names.
    #[arg(long, env = "LADLE_BASE")]
    base: PathBuf,
    /// Where imported base models are kept [default: $LADLE_HOME/models].
    #[arg(long, env = "LADLE_MODELS_DIR")]
    models_dir: PathBuf,
    /// Never use the network to find the base model.
    #[arg(long, env = "LADLE_OFFLINE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    offline: bool,
    /// Check the sha256 of every weight file at the start [default: true].
    #[arg(long, env = "LADLE_VERIFY", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    verify: bool,
    /// How preferences are executed [default: auto].
    #[arg(long, env = "LADLE_MERGE_MODE")]
    merge_mode: MergeMode,
    /// What computes: cpu, cuda or cuda:N [default: cpu].
    #[arg(long, env = "LADLE_DEVICE")]
    device: Processor,
    /// GPU memory to use for everything [default: nine tenths of what is free].
    #[arg(long, env = "LADLE_DEVICE_MEMORY", value_name = "SIZE")]
    device_memory: ByteSize,
    /// Byte budget of fused weights [default: 2GiB; on a GPU what is left].
    #[arg(long, env = "LADLE_MERGE_CACHE", value_name = "SIZE")]
    merge_cache: ByteSize,
    /// Byte budget of keys and values [default: 1GiB; on a GPU a quarter of what is left].
    #[arg(long, env = "LADLE_KV_CACHE", value_name = "SIZE")]
    kv_cache: ByteSize,
    /// Compute threads [default: all cores].
    #[arg(long, env = "LADLE_THREADS", value_name = "N")]
    threads: NonZeroUsize,
    /// Sequences in one batch [default: 64].
    #[arg(long, env = "LADLE_MAX_SEQUENCES", value_name = "N")]
    max_sequences: NonZeroUsize,
    /// Token rows in one step [default: 512].
    #[arg(long, env = "LADLE_MAX_STEP_TOKENS", value_name = "N")]
    max_step_tokens: NonZeroUsize,
    /// Sequences that may wait; beyond it a request gets 503 [default: 1024].
    #[arg(long, env = "LADLE_MAX_QUEUE", value_name = "N")]
    max_queue: NonZeroUsize,
    /// Tokens of prompt and answer together [default: the model's context].
    #[arg(long, env = "LADLE_MAX_CONTEXT", value_name = "N")]
    max_context: NonZeroUsize,
    /// Answer length where a request names none [default: 256].
    #[arg(long, env = "LADLE_DEFAULT_MAX_TOKENS", value_name = "N")]
    default_max_tokens: NonZeroUsize,
    /// Largest `max_tokens` of a request [default: the context].
    #[arg(long, env = "LADLE_MAX_TOKENS", value_name = "N")]
    max_tokens: NonZeroUsize,
    /// Largest `n` of a request, and prompts × n of a completion [default: 16].
    #[arg(long, env = "LADLE_MAX_N", value_name = "N")]
    max_n: NonZeroUsize,
    /// Largest request body [default: 4MiB].
    #[arg(long, env = "LADLE_MAX_BODY", value_name = "SIZE")]
    max_body: ByteSize,
    /// Requests in progress; beyond it a request gets 503 [default: 1024].
    #[arg(long, env = "LADLE_MAX_IN_FLIGHT", value_name = "N")]
    max_in_flight: NonZeroUsize,
    /// Requests per minute of one client (API key, else address); beyond it 429 [default: none].
    #[arg(long, env = "LADLE_RATE_LIMIT", value_name = "N")]
    rate_limit: NonZeroUsize,
    /// Seconds until a request gets 504; a request may ask for less [default: 600].
    #[arg(long, env = "LADLE_REQUEST_TIMEOUT", value_name = "SECONDS")]
    request_timeout: f64,
    /// Seconds a client may take to send a body [default: 30].
    #[arg(long, env = "LADLE_BODY_TIMEOUT", value_name = "SECONDS")]
    body_timeout: f64,
    /// Seconds that running requests get to finish after SIGTERM or SIGINT [default: 30].
    #[arg(long, env = "LADLE_DRAIN_TIMEOUT", value_name = "SECONDS")]
    drain_timeout: f64,
    /// Keys that clients must present, comma-separated; better in the environment or a file than on
    /// a command line, which other users can read.
    #[arg(long = "api-key", env = "LADLE_API_KEYS", value_delimiter = ',', hide_env_values = true)]
    api_keys: Vec<ApiKey>,
    /// File of keys, one a line; empty lines and lines that begin with # are skipped.
    #[arg(long, env = "LADLE_API_KEYS_FILE", value_name = "FILE")]
    api_keys_file: PathBuf,
    /// Origins whose web pages may call this server (CORS), comma-separated; `*` for all.
    #[arg(long, env = "LADLE_ALLOW_ORIGIN", value_delimiter = ',')]
    allow_origin: Vec<String>,
    /// Log filter, such as `info` or `ladle=debug` [default: info].
    #[arg(long, env = "LADLE_LOG", value_name = "FILTER")]
    log: String,
    /// How log lines are written [default: text].
    #[arg(long, env = "LADLE_LOG_FORMAT")]
    log_format: LogFormat,
}

impl ServeOptions {
    /// Reads a configuration file; an unknown key is an error that names it.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(&read(path)?).map_err(|error| ConfigError::File {
            path: path.to_owned(),
            message: error.to_string(),
        })
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn file(text: &str) -> Result<ServeOptions, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ServeOptions::from_file(file.path())
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_the_defaults() {
        let flags = ServeOptions { port: Some(9000), ..Default::default() };
        let text = "soup = \"s\"\nport = 9001\nmerge_cache = \"512MiB\"\nkv_cache = 1048576\nmerge_mode = \"mixed\"";
        let config = flags.over(file(text).unwrap()).check().unwrap();
        let budgets = (config.merge_cache, config.kv_cache);
        assert_eq!((config.port, budgets), (9000, (Some(512 << 20), Some(1 << 20))));
        assert_eq!(config.device, Processor::Cpu);
        assert_eq!(config.merge_mode, MergeMode::Mixed);
        assert_eq!(config.address(), "127.0.0.1:9000");
        assert_eq!(config.limits.request_timeout, Duration::from_secs(600));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_line() {
        let error = file("port = 1\nmerge_cahce = 5").unwrap_err().to_string();
        assert!(error.contains("merge_cahce") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn values_out_of_bounds_name_option_value_and_range() {
        let soup = || Some("s".into());
        let timeout =
            ServeOptions { soup: soup(), request_timeout: Some(-1.0), ..Default::default() };
        let error = timeout.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "request_timeout is -1, expected a number of seconds above 0, at most 86400"
        );
        let timeout =
            ServeOptions { soup: soup(), drain_timeout: Some(f64::NAN), ..Default::default() };
        assert!(timeout.check().is_err());
        let body = ServeOptions { soup: soup(), max_body: Some(ByteSize(1)), ..Default::default() };
        assert!(body.check().unwrap_err().to_string().contains("1KiB to 1GiB"));
        assert!(ServeOptions::default().check().unwrap_err().to_string().contains("no soup given"));
        let keys = ServeOptions {
            soup: soup(),
            api_keys: Some(vec![ApiKey(" ".into())]),
            ..Default::default()
        };
        assert!(keys.check().unwrap_err().to_string().contains("empty key"));
    }

    #[test]
    fn keys_are_read_from_a_file_and_never_printed() {
        let keys = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(keys.path(), "# team a\nsecret-a\n\n  secret-b \n").unwrap();
        let options = ServeOptions {
            soup: Some("s".into()),
            api_keys_file: Some(keys.path().into()),
            ..Default::default()
        };
        let config = options.check().unwrap();
        assert_eq!(config.api_keys, [ApiKey("secret-a".into()), ApiKey("secret-b".into())]);
        assert!(!format!("{config:?}").contains("secret"));
    }
}
