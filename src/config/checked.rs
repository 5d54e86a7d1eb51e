//! The checked configuration, and how options become one.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    address::SoupAddress,
    environment,
    error::OptionError,
    options::ServeOptions,
    traces::Traces,
    values::{ApiKey, KvType, LogFormat, MergeMode, OnFailure, Processor, Residence},
};

/// Bounds on what a request may ask for; `None` and units as in [`ServeOptions`].
#[derive(Debug, Clone, PartialEq)]
pub struct RequestLimits {
    /// Answer length where a request names none.
    pub default_max_tokens: usize,
    /// Largest `max_tokens`; `None`: the context.
    pub max_tokens: Option<usize>,
    /// Largest `n`, and prompts × n.
    pub max_n: usize,
    /// Bytes.
    pub max_body: u64,
    /// Bytes, for all bodies of more than 64 KiB together.
    pub body_memory: u64,
    pub max_in_flight: usize,
    /// Requests per minute of one client; `None`: no limit.
    pub rate_limit: Option<usize>,
    pub request_timeout: Duration,
    pub body_timeout: Duration,
}

/// Bounds on connections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConnectionLimits {
    /// Connections in all.
    pub most: usize,
    /// Connections from one address, or one IPv6 network of 64 bits.
    pub most_of_client: usize,
    /// For the head of a request.
    pub header_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
    /// For a client that takes nothing of its answer.
    pub write_timeout: Duration,
}

/// A checked configuration of the server; each field is explained at its option in
/// [`ServeOptions`].
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// Directory of the soup. Of one at an `address`: the address, until it is fetched.
    pub soup: PathBuf,
    /// Where the soup is fetched from, if it is.
    pub address: Option<SoupAddress>,
    /// Directories and addresses of the soups that are served beside it.
    pub beside: Vec<(PathBuf, Option<SoupAddress>)>,
    /// What requests may have fetched, with all below it.
    pub soup_sources: Vec<SoupAddress>,
    /// `None`: `$LADLE_HOME/soups`.
    pub soup_cache: Option<PathBuf>,
    /// `None`: requests name no directories.
    pub soup_root: Option<PathBuf>,
    pub host: String,
    /// 0: a free one.
    pub port: u16,
    pub base: Option<PathBuf>,
    /// `None`: `$LADLE_HOME/models`.
    pub models_dir: Option<PathBuf>,
    pub offline: bool,
    pub verify: bool,
    pub weights: Residence,
    pub merge_mode: MergeMode,
    pub pin: Vec<String>,
    pub device: Processor,
    /// Bytes; `None`: nine tenths of what is free.
    pub device_memory: Option<u64>,
    /// Bytes; `None`: the control group's limit.
    pub max_memory: Option<u64>,
    /// Bytes; `None`: the device's default.
    pub merge_cache: Option<u64>,
    /// Bytes; `None`: the device's default.
    pub kv_cache: Option<u64>,
    pub kv_dtype: KvType,
    /// `None`: all cores.
    pub threads: Option<usize>,
    pub max_sequences: usize,
    pub max_step_tokens: usize,
    pub max_queue: usize,
    /// `None`: the model's context.
    pub max_context: Option<usize>,
    pub limits: RequestLimits,
    pub connections: ConnectionLimits,
    pub drain_timeout: Duration,
    pub step_timeout: Duration,
    pub on_engine_failure: OnFailure,
    /// Requests need no key where neither these nor named ones are given.
    pub api_keys: Vec<ApiKey>,
    pub named_keys: Option<PathBuf>,
    pub share_prefixes: bool,
    pub metrics_addr: Option<SocketAddr>,
    /// Certificate chain and private key; `None`: no TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub allow_origin: Vec<String>,
    pub log: String,
    pub log_format: LogFormat,
    /// `None`: there are none.
    pub traces: Option<Traces>,
}

impl ServeConfig {
    /// The configuration of each soup of the start, the first one's first.
    pub fn soups(&self) -> impl Iterator<Item = Self> {
        let beside = self.beside.iter().map(|(soup, address)| {
            let (soup, address) = (soup.clone(), address.clone());
            Self { soup, address, ..self.for_others() }
        });
        std::iter::once(self.clone()).chain(beside)
    }

    /// What holds for soups that are served beside the first one.
    pub fn for_others(&self) -> Self {
        Self { pin: Vec::new(), ..self.clone() }
    }
}

impl ServeOptions {
    /// Fills in defaults and checks every bound.
    pub fn check(self) -> Result<ServeConfig, OptionError> {
        // Bodies are held in memory; a limit above a gibibyte is taken for a typo.
        let max_body = self.max_body().0;
        if !(1024..=1 << 30).contains(&max_body) {
            return Err(OptionError::Value {
                option: "max_body",
                got: max_body.to_string(),
                expected: "1KiB to 1GiB".into(),
            });
        }
        let body_memory = self.body_memory.map_or(max_body.max(64 << 20), |bytes| bytes.0);
        if body_memory < max_body {
            return Err(OptionError::Value {
                option: "body_memory",
                got: body_memory.to_string(),
                expected: format!("at least max_body, {max_body}"),
            });
        }
        let max_in_flight = self.max_in_flight().get();
        if max_in_flight > 1_000_000 {
            return Err(OptionError::Value {
                option: "max_in_flight",
                got: max_in_flight.to_string(),
                expected: "at most 1000000".into(),
            });
        }
        let soup_sources = self.soup_source.clone().unwrap_or_default();
        if (self.soup_root.is_some() || !soup_sources.is_empty()) && self.named_keys.is_none() {
            let hint = "soup_root and soup_source need a named key with the right to replace soups";
            return Err(OptionError::Missing { option: "named_keys", hint });
        }
        let soup = self.soup.clone().ok_or(OptionError::Missing {
            option: "soup",
            hint: "name its directory, as in `ladle serve backbones`",
        })?;
        let address = address_of("soup", &soup)?;
        let beside = self.with_soup.iter().flatten().map(|soup| {
            let address = address_of("with_soup", soup)?;
            Ok((soup.clone(), address))
        });
        let beside: Vec<_> = beside.collect::<Result<_, OptionError>>()?;
        let remote = address.is_some() || beside.iter().any(|(_, address)| address.is_some());
        if self.store.offline() && (remote || !soup_sources.is_empty()) {
            return Err(OptionError::Value {
                option: "offline",
                got: "true".into(),
                expected: "false, as soup, with_soup or soup_source are addresses".into(),
            });
        }
        Ok(ServeConfig {
            soup,
            address,
            beside,
            soup_sources,
            soup_cache: self.soup_cache.clone(),
            soup_root: self.soup_root.clone(),
            host: self.host(),
            port: self.port(),
            base: self.base.clone(),
            models_dir: self.store.models_dir.clone(),
            offline: self.store.offline(),
            verify: self.verify(),
            weights: self.weights(),
            merge_mode: self.merge_mode(),
            device: self.device(),
            device_memory: self.device_memory.map(|bytes| bytes.0),
            max_memory: self.max_memory.map(|bytes| bytes.0),
            merge_cache: self.merge_cache.map(|bytes| bytes.0),
            kv_cache: self.kv_cache.map(|bytes| bytes.0),
            kv_dtype: self.kv_dtype(),
            threads: self.threads.map(NonZeroUsize::get),
            max_sequences: self.max_sequences().get(),
            max_step_tokens: self.max_step_tokens().get(),
            max_queue: self.max_queue().get(),
            max_context: self.max_context.map(NonZeroUsize::get),
            limits: RequestLimits {
                default_max_tokens: self.default_max_tokens().get(),
                max_tokens: self.max_tokens.map(NonZeroUsize::get),
                max_n: self.max_n().get(),
                max_body,
                body_memory,
                max_in_flight,
                rate_limit: self.rate_limit.map(NonZeroUsize::get),
                request_timeout: seconds("request_timeout", self.request_timeout())?,
                body_timeout: seconds("body_timeout", self.body_timeout())?,
            },
            connections: ConnectionLimits {
                most: self.max_connections().get(),
                most_of_client: match self.max_address_connections {
                    Some(most) => most.get(),
                    None => self.max_connections().get().div_ceil(2),
                },
                header_timeout: seconds("header_timeout", self.header_timeout())?,
                idle_timeout: seconds("idle_timeout", self.idle_timeout())?,
                write_timeout: seconds("write_timeout", self.write_timeout())?,
            },
            drain_timeout: seconds("drain_timeout", self.drain_timeout())?,
            step_timeout: seconds("step_timeout", self.step_timeout())?,
            on_engine_failure: self.on_engine_failure(),
            api_keys: self.keys()?,
            named_keys: self.named_keys.clone(),
            share_prefixes: self.share_prefixes(),
            metrics_addr: self.metrics_addr,
            tls: self.tls()?,
            log: self.logs.log(),
            log_format: self.logs.log_format(),
            traces: self.traces.check(environment::variables())?,
            pin: self.pin.unwrap_or_default(),
            allow_origin: self.allow_origin.unwrap_or_default(),
        })
    }

    /// Certificate and key: both or neither.
    fn tls(&self) -> Result<Option<(PathBuf, PathBuf)>, OptionError> {
        let missing = |option, hint| Err(OptionError::Missing { option, hint });
        match (&self.tls_cert, &self.tls_key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some((cert.clone(), key.clone()))),
            (Some(_), None) => missing("tls_key", "tls_cert needs its private key"),
            (None, Some(_)) => missing("tls_cert", "tls_key needs its certificate"),
        }
    }

    /// The keys given, and those of the file of keys.
    fn keys(&self) -> Result<Vec<ApiKey>, OptionError> {
        let mut keys = self.api_keys.clone().unwrap_or_default();
        if let Some(path) = &self.api_keys_file {
            let text = read(path)?;
            let lines = text.lines().map(str::trim);
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
            keys.extend(lines.map(|line| ApiKey(line.to_owned())));
            if keys.is_empty() {
                return Err(OptionError::Value {
                    option: "api_keys_file",
                    got: format!("{} without a key", path.display()),
                    expected: "at least one key, one a line".into(),
                });
            }
        }
        if keys.iter().any(|key| key.0.trim().is_empty()) {
            return Err(OptionError::Value {
                option: "api_keys",
                got: "an empty key".into(),
                expected: "keys of at least one character".into(),
            });
        }
        Ok(keys)
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

pub(super) fn read(path: &Path) -> Result<String, OptionError> {
    std::fs::read_to_string(path)
        .map_err(|source| OptionError::Read { path: path.to_owned(), source })
}

fn seconds(option: &'static str, value: f64) -> Result<Duration, OptionError> {
    // A day is above any sensible wait and far below what overflows an `Instant`.
    if value > 0.0 && value <= 86_400.0 {
        return Ok(Duration::from_secs_f64(value));
    }
    let expected = "a number of seconds above 0, at most 86400".into();
    Err(OptionError::Value { option, got: value.to_string(), expected })
}
/// The address of a soup, where its option names one and no directory.
fn address_of(option: &'static str, soup: &Path) -> Result<Option<SoupAddress>, OptionError> {
    let address = soup.to_str().filter(|text| SoupAddress::is_meant(text));
    address.map(str::parse::<SoupAddress>).transpose().map_err(|_| {
        let (got, expected) = (soup.display().to_string(), SoupAddress::EXPECTED.to_owned());
        OptionError::Value { option, got, expected }
    })
}
