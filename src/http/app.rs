//! State that the handlers share: the served soup once it is loaded, limits, keys and metrics.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    auth::Keys,
    bodies::BodyMemory,
    checks::Checks,
    error::ApiError,
    failures::Failures,
    generations::Generations,
    keys::{self, Key, KeyError},
    rate::Buckets,
    request::soups::Wish,
    roster::Roster,
    served::{Beside, Served},
    tls::{Tls, TlsError},
    trace::Tracer,
};
use crate::{
    config::{RequestLimits, ServeConfig, SoupAddress},
    engine::{Ailment, Client, Full, Place, Places},
    telemetry::Telemetry,
    turns::Turns,
};

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

/// A soup that is to be served beside the others.
pub struct Addition {
    pub wish: Wish,
    /// Told what came of it.
    pub outcome: oneshot::Sender<Result<Arc<Served>, ApiError>>,
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
    /// What is served, and what was.
    pub soups: Roster,
    /// One soup is loaded at a time, so that each is counted when the next one asks for memory.
    pub loading: tokio::sync::Mutex<()>,
    turns: Arc<Turns>,
    additions: mpsc::Sender<Addition>,
    draining: AtomicBool,
}

impl App {
    /// The state of a server that has loaded nothing yet: `soups` are those of the start, and
    /// `additions` is where others are asked for.
    pub fn new(
        config: &ServeConfig,
        telemetry: Arc<Telemetry>,
        soups: Vec<Arc<Generations>>,
        additions: mpsc::Sender<Addition>,
    ) -> Result<Self, AccessError> {
        let tls = config.tls.as_ref().map(|(cert, key)| Tls::open(cert, key)).transpose()?;
        let traces = config.traces.as_ref();
        let tracer = traces.map(|traces| Tracer::start(traces, &telemetry)).transpose()?;
        Ok(Self {
            tls: tls.map(Arc::new),
            keys: RwLock::new(Arc::new(Keys::new(&config.api_keys, named(config, &[])?))),
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
            soups: Roster::new(soups),
            loading: tokio::sync::Mutex::default(),
            turns: Arc::default(),
            additions,
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

    /// What a soup is loaded beside, in the place of `former`.
    pub fn beside(&self, former: Option<Arc<Served>>) -> Beside {
        let running = self.soups.all().iter().filter_map(|soup| soup.current()).collect();
        Beside { running, former, turns: self.turns.clone() }
    }

    /// Makes a loaded soup the generation that takes requests; those of the former one end on it.
    pub fn publish(&self, soup: &Generations, served: Served) -> Arc<Served> {
        let served = Arc::new(served);
        if let Some(former) = soup.publish(Some(served.clone())) {
            self.telemetry.model(&former.name, &former.digest, false);
        }
        self.telemetry.model(&served.name, &served.digest, true);
        self.telemetry.pinned(&self.config.pin);
        served
    }

    /// The soup that a model id names; none named: the first one.
    pub fn served(&self, model: Option<&str>) -> Result<Arc<Served>, ApiError> {
        match model {
            None => self.soups.first(),
            Some(id) => self.soups.named(id).map(|(_, served)| served),
        }
    }

    /// Where requests may have soups loaded from: the directory below which, and the addresses.
    pub fn soup_sources(&self) -> (Option<&Path>, &[SoupAddress]) {
        (self.config.soup_root.as_deref(), &self.config.soup_sources)
    }

    /// Serves another soup, as wished, beside those that are served. Who asks need not wait for it.
    pub async fn add(&self, wish: Wish) -> Result<Arc<Served>, ApiError> {
        let (outcome, told) = oneshot::channel();
        let sent = self.additions.send(Addition { wish, outcome }).await;
        sent.map_err(|_| ApiError::Draining)?;
        // Dropped unanswered when the server stops.
        told.await.unwrap_or(Err(ApiError::Draining))
    }

    /// Refuses keys of presets that the soup does not have.
    pub fn check_presets(&self, served: &Served) -> Result<(), KeyError> {
        named(&self.config, &[served]).map(|_| ())
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
        let served = self.soups.served().unwrap_or_default();
        match named(&self.config, &served.iter().map(|served| &**served).collect::<Vec<_>>()) {
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
        self.served(None).map_or(1, |served| served.engine.retry_after().as_secs())
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

/// The named keys, whose presets each of `served` must have; `None` where no file of them is configured.
fn named(config: &ServeConfig, served: &[&Served]) -> Result<Option<Vec<Key>>, KeyError> {
    let Some(path) = config.named_keys.as_deref() else { return Ok(None) };
    let keys = keys::read(path)?;
    for served in served {
        keys::check_presets(path, &keys, &served.menu)?;
    }
    Ok(Some(keys))
}
