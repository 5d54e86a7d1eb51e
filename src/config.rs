//! Options of the command line: raw flags, environment and file → a checked [`ServeConfig`].
//!
//! A flag beats its environment variable (`LADLE_…`), which beats the file (`--config FILE.toml`,
//! the same names with underscores), which beats the default. Every limit of the server is here.

mod address;
mod checked;
pub mod environment;
mod error;
mod options;
pub mod program;
mod traces;
mod values;

use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, ValueDeserializer};

pub use address::{Scheme, SoupAddress};
pub use checked::{ConnectionLimits, RequestLimits, ServeConfig};
pub use error::OptionError;
pub use options::{LogOptions, ServeOptions, StoreOptions, TraceOptions};
pub use traces::Traces;
pub use values::{
    ApiKey, ByteSize, KvType, LogFormat, MergeMode, OnFailure, Processor, Residence, Sampler,
};

impl ServeOptions {
    /// Reads a configuration file; an unknown key is an error that names it.
    pub fn from_file(path: &Path) -> Result<Self, OptionError> {
        let text = checked::read(path)?;
        let table = DeTable::parse(&text).map_err(|error| OptionError::Syntax {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        let mut options = Self::default();
        for (key, value) in table.into_inner() {
            let at = key.span().start;
            let key = key.into_inner();
            let taken = toml::Value::deserialize(ValueDeserializer::from(value))
                .map_err(|error| error.to_string())
                .and_then(|value| options.set(&key, &value));
            let message = match taken {
                Ok(true) => continue,
                Ok(false) => format!("unknown key `{key}`"),
                Err(message) => format!("`{key}`: {message}"),
            };
            let line = 1 + text[..at].matches('\n').count();
            return Err(OptionError::Key { path: path.to_owned(), line, message });
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn file(text: &str) -> Result<ServeOptions, OptionError> {
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
    fn a_wrong_key_or_value_of_a_file_is_refused_by_name_and_line() {
        for (text, parts) in [
            ("port = 1\nmerge_cahce = 5", ["line 2", "`merge_cahce`"]),
            ("port = 1\nport = 2", ["line 2", "port"]),
            ("# a comment\n\nport = \"x\"", ["line 3", "`port`"]),
            ("log_format = 'yaml'", ["line 1", "yaml"]),
            ("max_queue = 0", ["line 1", "`max_queue`"]),
        ] {
            let error = file(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn every_group_of_options_can_stand_in_a_file() {
        let text =
            "models_dir = 'm'\noffline = true\nlog_format = 'json'\nport = 1\ntrace_queue = 9";
        let options = file(text).unwrap();
        assert_eq!(options.store.models_dir, Some("m".into()));
        assert!(options.store.offline());
        assert_eq!((options.logs.log_format(), options.port()), (LogFormat::Json, 1));
        assert_eq!((options.logs.log(), options.traces.trace_queue().get()), ("info".into(), 9));
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
