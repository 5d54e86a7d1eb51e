//! State that the handlers share: the served soup once it is loaded, limits, keys and metrics.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use super::{
    auth::Keys,
    bodies::BodyMemory,
    checks::Checks,
    error::ApiError,
    failures::Failures,
    keys::{self, Key, KeyError},
    rate::Buckets,
    tls::{Tls, TlsError},
    trace::Tracer,
};
use crate::{
    chat::{ChatTemplate, ControlTokens, tools::CallFormat},
    config::{RequestLimits, ServeConfig},
    engine::{Ailment, Client, EngineHandle, Full, Place, Places},
    files::Seen,
    grammar::Compiler,
    preference::{Front, Menu, MixingMatrix},
    soup::ActiveFrom,
    telemetry::Telemetry,
    tokenizer::Tokenizer,
};

/// A soup that is loaded and running.
pub struct Served {
    pub engine: EngineHandle,
    /// The soup's name: the model id.
    pub name: String,
    pub digest: String,
    /// Where its base is.
    pub base: PathBuf,
    /// Byte budget of fused weights, where one was given or follows from the memory of the process.
    pub merge_cache: Option<u64>,
    /// Objectives, presets, defaults and bounds.
    pub menu: Menu,
    /// B.
    pub mixing: MixingMatrix,
    /// The measured front, or why it predicts nothing.
    pub front: Result<Front, String>,
    /// The first token of a sequence that the backbones act on.
    pub active_from: ActiveFrom,
    pub tokenizer: Tokenizer,
    /// Makes grammars of what requests hold their answers to.
    pub grammars: Compiler,
    /// The base's chat template; `None`: it takes prompts only.
    pub chat: Option<ChatTemplate>,
    /// How the model writes calls of tools, or why it cannot be offered any.
    pub calls: Result<Arc<CallFormat>, &'static str>,
    /// The answer of `GET /tokenizer_info`.
    pub tokenizer_info: Value,
    /// What a text from messages is searched for.
    pub control: ControlTokens,
    /// The answer of `GET /v1/soup`.
    pub description: Value,
    /// When it was loaded, seconds since 1970.
    pub created: u64,
    /// Its weight files, without those that were found changed since they were loaded.
    pub unchanged: Mutex<Vec<Seen>>,
}

impl Served {
    /// Longest prompt and answer together, in tokens.
    pub fn context(&self) -> usize {
        self.context_of(1)
    }

    /// Logs which files were changed on disk since they were loaded, each once.
    pub fn look_at_files(&self) {
        let mut unchanged = self.unchanged.lock().unwrap_or_else(PoisonError::into_inner);
        unchanged.retain(|file| {
            let changed = file.changed();
            if changed {
                tracing::warn!(
                    path = %file.path.display(),
                    "changed on disk: what was loaded is served until the server is restarted"
                );
            }
            !changed
        });
    }

    /// The same for a request that decodes its sequence `lanes` times side by side.
    pub fn context_of(&self, lanes: usize) -> usize {
        let bounds = self.engine.bounds();
        let blocks = bounds.kv_blocks / lanes.max(1);
        bounds.context.min(blocks.saturating_mul(bounds.block_tokens))
    }
}

/// The place of a request in progress: taken once its body has arrived, kept to its answer's end.
#[derive(Clone, Default)]
pub struct Progress(Arc<OnceLock<Vec<Place>>>);

impl Progress {
    /// Takes a place, or says that the server is full or about to stop, or that the key has as many as
    /// it may.
    pub fn take(&self, app: &App, client: &Client, key: Option<&Key>) -> Result<(), ApiError> {
        if app.draining() {
            return Err(ApiError::Draining);
        }
        let limit = key.and_then(|key| key.max_in_flight);
        let place = app.places.take(client, 1, limit).map_err(|full| {
            let (key, retry_after) = (key.map(|key| key.name.as_str()), app.retry_after());
            let overloaded = |message| ApiError::Overloaded { message, retry_after };
            match full {
                Full::All { taken } => {
                    overloaded(format!("{taken} requests are in progress, the limit"))
                }
                Full::Client { taken, .. } => overloaded(format!(
                    "{taken} requests of this client are in progress, the limit for one"
                )),
                Full::Own { most } => {
                    let why = "as many of its requests are in progress".to_owned();
                    app.over_limit(key.unwrap_or_default(), "max_in_flight", most, why, retry_after)
                }
            }
        })?;
        // A request takes one place.
        let _ = self.0.set(place);
        Ok(())
    }
}

/// Keys or a certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The thread that sends traces does not start.
    #[error("traces: {0}")]
    Traces(#[from] std::io::Error),
}

/// The state of one server.
pub struct App {
    pub limits: RequestLimits,
    /// Requests of each client in a minute, and tokens of each key.
    pub requests: Buckets,
    pub tokens: Buckets,
    /// One for each request in progress.
    pub places: Arc<Places>,
    /// Wrong keys by address.
    pub failures: Failures,
    pub bodies: BodyMemory,
    pub checks: Checks,
    pub telemetry: Arc<Telemetry>,
    /// Where traces are recorded.
    pub tracer: Option<Arc<Tracer>>,
    /// Longest step of the engine while the server counts as ready.
    pub step_timeout: Duration,
    /// The certificate, where connections are TLS.
    pub tls: Option<Arc<Tls>>,
    keys: RwLock<Arc<Keys>>,
    config: ServeConfig,
    served: RwLock<Option<Arc<Served>>>,
    draining: AtomicBool,
}

impl App {
    /// The state of a server that has loaded nothing yet.
    pub fn new(config: &ServeConfig, telemetry: Arc<Telemetry>) -> Result<Self, AccessError> {
        let tls = config.tls.as_ref().map(|(cert, key)| Tls::open(cert, key)).transpose()?;
        let traces = config.traces.as_ref();
        let tracer = traces.map(|traces| Tracer::start(traces, &telemetry)).transpose()?;
        Ok(Self {
            tls: tls.map(Arc::new),
            keys: RwLock::new(Arc::new(Keys::new(&config.api_keys, named(config, None)?))),
            config: config.clone(),
            requests: Buckets::default(),
            tokens: Buckets::default(),
            places: Arc::new(Places::new(config.limits.max_in_flight)),
            failures: Failures::default(),
            bodies: BodyMemory::new(config.limits.body_memory),
            checks: Checks::default(),
            limits: config.limits.clone(),
            telemetry,
            tracer: tracer.map(Arc::new),
            step_timeout: config.step_timeout,
            served: RwLock::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Whether metrics have an address of their own.
    pub fn metrics_apart(&self) -> bool {
        self.config.metrics_addr.is_some()
    }

    /// The accepted keys.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a loaded soup available, in the place of one whose engine has ended.
    pub fn publish(&self, served: Served) -> Arc<Served> {
        let served = Arc::new(served);
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Some(served.clone());
        served
    }

    /// The soup, or that it is not loaded yet.
    pub fn served(&self) -> Result<Arc<Served>, ApiError> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        served.clone().ok_or(ApiError::Loading)
    }

    /// Refuses keys of presets that the soup does not have.
    pub fn check_presets(&self, served: &Served) -> Result<(), KeyError> {
        named(&self.config, Some(served)).map(|_| ())
    }

    /// The error of a request that exceeds a limit of its key, and its count.
    pub fn over_limit(
        &self,
        key: &str,
        limit: &'static str,
        most: usize,
        why: String,
        retry_after: u64,
    ) -> ApiError {
        self.telemetry.key_refused(key, limit);
        ApiError::KeyLimit { key: key.to_owned(), limit, most, why, retry_after }
    }

    /// Reads again what may change while the server runs.
    pub fn reload(&self) {
        match self.tls.as_ref().map(|tls| tls.reload()) {
            None => {}
            Some(Ok(())) => tracing::info!("SIGHUP: the certificate was read"),
            Some(Err(error)) => tracing::error!(%error, "SIGHUP: the certificate stays as it was"),
        }
        match named(&self.config, self.served().ok().as_deref()) {
            Ok(None) => tracing::info!("SIGHUP: there are no named keys to read"),
            Ok(named) => {
                let count = named.as_ref().map_or(0, Vec::len);
                let keys = Arc::new(Keys::new(&self.config.api_keys, named));
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                tracing::info!(count, "SIGHUP: named keys were read");
            }
            Err(error) => tracing::error!(%error, "SIGHUP: the keys stay as they were"),
        }
    }

    /// What a request hears whose engine takes no work or has dropped it.
    pub fn stopped(&self) -> ApiError {
        if self.draining() { ApiError::Draining } else { ApiError::Engine(Ailment::Stopped) }
    }

    /// Seconds after which a full server may have room again.
    pub fn retry_after(&self) -> u64 {
        self.served().map_or(1, |served| served.engine.retry_after().as_secs())
    }

    /// Whether new work is refused.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Refuses new work from now on; running requests continue.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// The named keys, whose presets `served` must have; `None` where no file of them is configured.
fn named(config: &ServeConfig, served: Option<&Served>) -> Result<Option<Vec<Key>>, KeyError> {
    let Some(path) = config.named_keys.as_deref() else { return Ok(None) };
    let keys = keys::read(path)?;
    if let Some(served) = served {
        keys::check_presets(path, &keys, &served.menu)?;
    }
    Ok(Some(keys))
}
