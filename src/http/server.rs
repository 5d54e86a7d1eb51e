//! The server's life: bind, load, serve, drain.

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::http::HeaderValue;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tower_http::cors::AllowOrigin;

use super::{
    app::{AccessError, Addition, App},
    connection, connections,
    generations::{Change, Generations, Next},
    life::{Ended, Lives, Load},
    load::{LoadError, load},
    router::{metrics_router, router},
    served::{Beside, Served},
};
use crate::{
    config::{ConnectionLimits, LogFormat, OptionError, ServeConfig, ServeOptions},
    memory,
    telemetry::{LogError, Telemetry, init_logs},
};

/// Interval at which samples of histograms are folded, served files are looked at and memory is given
/// back.
const UPKEEP: Duration = Duration::from_secs(5);
/// Connections to the address of metrics.
const SCRAPERS: usize = 16;
/// Time for connections to close after the engine has stopped.
const GRACE: Duration = Duration::from_secs(5);

/// Why the server did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An allowed origin that is not one.
    #[error("allow_origin is {0:?}, expected an origin such as https://example.org, or *")]
    Origin(String),
    /// The options are not right.
    #[error(transparent)]
    Config(#[from] OptionError),
    /// Logging cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The soup cannot be served.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The file of named keys is not right, or the certificate.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The engine ended or hung, and the configuration says to end with it.
    #[error("{0}")]
    Engine(String),
    /// The runtime or the listener failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl From<Ended> for ServeError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Engine(ailment) => Self::Engine(ailment.to_string()),
            Ended::Load(error) => Self::Load(error),
        }
    }
}

/// Listens on the configured address.
pub async fn bind(config: &ServeConfig) -> Result<TcpListener, ServeError> {
    let address = config.address();
    TcpListener::bind(&address).await.map_err(|source| ServeError::Bind { address, source })
}

/// `ladle serve`: options as given, those of a configuration file under them → a running server.
pub fn command(options: ServeOptions, file: Option<&Path>) -> Result<(), ServeError> {
    let options = match file {
        Some(path) => options.over(ServeOptions::from_file(path)?),
        None => options,
    };
    let config = options.check()?;
    init_logs(&config.log, config.log_format == LogFormat::Json)?;
    run(config)
}

/// Binds, serves until SIGTERM or SIGINT, drains, returns.
pub fn run(config: ServeConfig) -> Result<(), ServeError> {
    memory::use_one_arena();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let listener = bind(&config).await?;
        serve(config, listener, signal()).await
    });
    // A soup that is still being loaded is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Serves on `listener` until `stop`, then drains: new work is refused with 503 while what runs
/// gets `drain_timeout` to finish. Health and readiness are answered from the start, generations
/// once the soup is loaded. An engine that ends meanwhile is started again or ends the server, as
/// `on_engine_failure` says.
pub async fn serve(
    config: ServeConfig,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    serve_loaded(config, listener, stop, load).await
}

/// As [`serve`], with what `load` makes of the configuration and the soups beside, again after each
/// engine that ends, and for each replacement and addition.
pub async fn serve_loaded(
    config: ServeConfig,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
    load: impl Fn(&ServeConfig, Arc<Telemetry>, &Beside) -> Result<Served, LoadError>
    + Send
    + Sync
    + 'static,
) -> Result<(), ServeError> {
    let telemetry = Arc::new(Telemetry::new());
    let soups: Vec<_> = config.soups().map(|config| (config, Generations::new())).collect();
    let generations = soups.iter().map(|(_, (generations, _))| generations.clone()).collect();
    let (add, additions) = mpsc::channel(1);
    let app = Arc::new(App::new(&config, telemetry, generations, add)?);
    let routes = router(app.clone(), origins(&config.allow_origin)?);
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening");

    let tasks = [
        tokio::spawn(upkeep(app.clone())),
        #[cfg(unix)]
        tokio::spawn(reload_on_hangup(app.clone())),
    ];
    let (close, closed) = oneshot::channel();
    // Fails only if the sender was dropped: then the server shuts down as well.
    let limits = ConnectionLimits {
        most: connections::affordable(config.connections.most),
        ..config.connections
    };
    let connections = connection::serve(listener, routes, limits, app.tls.clone(), async {
        _ = closed.await;
    });
    let metrics = metrics(&app, &config).await?;
    let life = async {
        let outcome = tokio::select! {
            outcome = live(&app, &config, soups, address, Arc::new(load), additions) => outcome,
            () = stop => {
                drain(&app, config.drain_timeout).await;
                Ok(())
            }
        };
        let _ = close.send(());
        outcome
    };
    let serving = async {
        tokio::pin!(life, connections);
        tokio::select! {
            () = &mut connections => Ok(()),
            outcome = &mut life => {
                if tokio::time::timeout(GRACE, connections).await.is_err() {
                    tracing::warn!("connections were still open and are cut");
                }
                outcome
            }
        }
    };
    let outcome = serving.await;
    tasks.iter().chain(&metrics).for_each(JoinHandle::abort);
    if let Some(tracer) = &app.tracer {
        tracer.flush(GRACE).await;
    }
    outcome
}

/// Serves metrics on their own address, where they have one.
async fn metrics(
    app: &Arc<App>,
    config: &ServeConfig,
) -> Result<Option<JoinHandle<()>>, ServeError> {
    let Some(address) = config.metrics_addr else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    let refuse = |source| ServeError::Bind { address: address.to_string(), source };
    let listener = bound.map_err(refuse)?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening for metrics");
    let routes = metrics_router(app.clone());
    let never = std::future::pending();
    let limits =
        ConnectionLimits { most: SCRAPERS, most_of_client: SCRAPERS, ..config.connections };
    Ok(Some(tokio::spawn(connection::serve(listener, routes, limits, None, never))))
}

/// What is done every now and then.
async fn upkeep(app: Arc<App>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        app.telemetry.upkeep();
        let app = app.clone();
        let look = move || {
            app.soups.draining();
            memory::give_back();
            let served = app.soups.served().unwrap_or_default();
            served.iter().for_each(|served| served.look_at_files());
        };
        // A look that panics is no reason to stop looking.
        let _ = tokio::task::spawn_blocking(look).await;
    }
}

/// Loads the soups of the start one after another, then lets all live, those that are added too.
async fn live(
    app: &App,
    config: &ServeConfig,
    soups: Vec<(ServeConfig, (Arc<Generations>, mpsc::Receiver<Change>))>,
    address: SocketAddr,
    load: Arc<Load>,
    mut additions: mpsc::Receiver<Addition>,
) -> Result<(), ServeError> {
    let lives = &Lives { app, load, address };
    let mut running = Vec::new();
    for (config, generations) in soups {
        running.push(lives.begin(generations, config).await?);
    }
    let further = config.for_others();
    let mut all: FuturesUnordered<BoxFuture<'_, Result<(), Ended>>> =
        running.into_iter().map(|running| lives.live(running).boxed()).collect();
    loop {
        tokio::select! {
            Some(ended) = all.next() => ended?,
            Some(addition) = additions.recv() => all.push(lives.add(addition, &further).boxed()),
        }
    }
}

/// Refuses new work and lets what runs finish, within its time.
async fn drain(app: &App, timeout: Duration) {
    tracing::info!("draining");
    app.drain();
    let idle = tokio::time::timeout(timeout, app.places.empty()).await.is_ok();
    let served: Vec<_> = app.soups.all().iter().filter_map(|soup| soup.current()).collect();
    if idle {
        served.iter().for_each(|served| served.engine.drain());
    } else {
        let seconds = timeout.as_secs_f64();
        tracing::warn!(seconds, "requests still ran and are cut");
        served.iter().for_each(|served| served.engine.abort());
        app.soups.abort_former();
    }
    let stopped = join_all(served.iter().map(|served| served.engine.stopped()));
    if tokio::time::timeout(GRACE, stopped).await.is_err() {
        tracing::warn!("an engine did not stop in time");
    }
}

/// SIGHUP, which by itself would end the process, reloads what can be reloaded.
#[cfg(unix)]
async fn reload_on_hangup(app: Arc<App>) {
    let hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let Ok(mut hangups) = hangups else { return };
    while hangups.recv().await.is_some() {
        app.reload();
        for soup in app.soups.all() {
            let name = soup.current().map(|served| served.name.clone());
            match soup.change(Next::Reloaded).await {
                Ok(Some(served)) => tracing::info!(
                    soup = name,
                    generation = served.generation,
                    "SIGHUP: the soup was loaded again"
                ),
                Ok(None) => tracing::info!(soup = name, "SIGHUP: the soup has not changed"),
                Err(error) => {
                    tracing::error!(soup = name, %error, "SIGHUP: the soup stays as it was");
                }
            }
        }
    }
}

/// SIGTERM or SIGINT. A second one ends the process at once.
pub async fn signal() {
    async fn one() {
        let interrupt = async {
            // Without a handler the signal ends the process by itself.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        #[cfg(unix)]
        let terminate = async {
            match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                Ok(mut signals) => _ = signals.recv().await,
                Err(_) => std::future::pending::<()>().await,
            }
        };
        #[cfg(not(unix))]
        let terminate = std::future::pending::<()>();
        tokio::select! {
            () = interrupt => {}
            () = terminate => {}
        }
    }
    one().await;
    tokio::spawn(async {
        one().await;
        tracing::warn!("stopped by a second signal");
        std::process::exit(130);
    });
}

fn origins(allowed: &[String]) -> Result<Option<AllowOrigin>, ServeError> {
    if allowed.is_empty() {
        return Ok(None);
    }
    if allowed.iter().any(|origin| origin == "*") {
        return Ok(Some(AllowOrigin::any()));
    }
    let parse = |origin: &String| {
        let sensible = origin.starts_with("http://") || origin.starts_with("https://");
        let value = HeaderValue::from_str(origin).ok().filter(|_| sensible);
        value.ok_or_else(|| ServeError::Origin(origin.clone()))
    };
    let origins: Vec<HeaderValue> = allowed.iter().map(parse).collect::<Result<_, _>>()?;
    Ok(Some(AllowOrigin::list(origins)))
}
