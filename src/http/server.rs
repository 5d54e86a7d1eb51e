//! The server's life: bind, load, serve, drain.

use std::{
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderValue;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tower_http::cors::AllowOrigin;

use super::{
    announce::announce,
    app::{AccessError, App},
    connection, connections,
    generations::Replacement,
    life::{self, Load},
    load::{LoadError, load},
    router::{metrics_router, router},
    served::Served,
};
use crate::{
    config::{ConnectionLimits, LogFormat, OnFailure, OptionError, ServeConfig, ServeOptions},
    memory,
    telemetry::{LogError, Telemetry, init_logs},
};

/// Interval at which samples of histograms are folded, served files are looked at and memory is given
/// back.
const UPKEEP: Duration = Duration::from_secs(5);
/// Pauses before an engine is started again: the first, and the longest of those that double.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(60);
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

/// As [`serve`], with what `load` makes of the configuration and the former soup, again after each
/// engine that ends and for each replacement.
pub async fn serve_loaded(
    config: ServeConfig,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
    load: impl Fn(&ServeConfig, Arc<Telemetry>, Option<&Served>) -> Result<Served, LoadError>
    + Send
    + Sync
    + 'static,
) -> Result<(), ServeError> {
    let telemetry = Arc::new(Telemetry::new());
    // One replacement may wait for another.
    let (wish, replacements) = mpsc::channel(1);
    let app = Arc::new(App::new(&config, telemetry, wish)?);
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
        let outcome = live(&app, config, address, stop, Arc::new(load), replacements).await;
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
            app.generations.draining();
            memory::give_back();
            app.served().map(|served| served.look_at_files())
        };
        // A look that panics is no reason to stop looking.
        let _ = tokio::task::spawn_blocking(look).await;
    }
}

/// From loading to the end of draining.
async fn live(
    app: &App,
    config: ServeConfig,
    address: SocketAddr,
    stop: impl Future<Output = ()> + Send,
    load: Arc<Load>,
    mut replacements: mpsc::Receiver<Replacement>,
) -> Result<(), ServeError> {
    let exits = config.on_engine_failure == OnFailure::Exit;
    tokio::pin!(stop);
    let mut config = tokio::select! {
        fetched = life::fetched(config) => Arc::new(fetched?),
        () = &mut stop => return Ok(()),
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let loaded = tokio::select! {
            loaded = life::loaded(app, &config, &load) => loaded?,
            () = &mut stop => return Ok(()),
        };
        app.check_presets(&loaded).map_err(AccessError::from)?;
        let mut served = app.publish(loaded);
        announce(&served, &config, address);
        let begun = Instant::now();
        let ailment = loop {
            let wish = tokio::select! {
                ailment = life::failure(app, &served, exits) => break ailment,
                () = &mut stop => return drain(app, &config).await,
                Some(wish) = replacements.recv() => wish,
            };
            let loaded = tokio::select! {
                loaded = life::replacement(app, &config, &wish, &load) => loaded,
                () = &mut stop => return drain(app, &config).await,
            };
            let outcome = loaded.map(|new| {
                let (by, new) = new?;
                (config, served) = (by, app.publish(new));
                announce(&served, &config, address);
                Some(served.clone())
            });
            // Who asked may have gone.
            let _ = wish.outcome.send(outcome);
        };
        if exits {
            return Err(ServeError::Engine(ailment.to_string()));
        }
        if begun.elapsed() > LAST_PAUSE {
            pause = FIRST_PAUSE;
        }
        let seconds = pause.as_secs_f64();
        tracing::error!(seconds, "{ailment}: it is started again after a pause");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut stop => return drain(app, &config).await,
        }
        pause = LAST_PAUSE.min(pause * 2);
    }
}

/// Refuses new work and lets what runs finish, within its time.
async fn drain(app: &App, config: &ServeConfig) -> Result<(), ServeError> {
    tracing::info!("draining");
    app.drain();
    let idle = tokio::time::timeout(config.drain_timeout, app.places.empty()).await.is_ok();
    let Ok(served) = app.served() else { return Ok(()) };
    if idle {
        served.engine.drain();
    } else {
        let seconds = config.drain_timeout.as_secs_f64();
        tracing::warn!(seconds, "requests still ran and are cut");
        served.engine.abort();
        app.generations.abort_former();
    }
    if tokio::time::timeout(GRACE, served.engine.stopped()).await.is_err() {
        tracing::warn!("the engine did not stop in time");
    }
    Ok(())
}

/// SIGHUP, which by itself would end the process, reloads what can be reloaded.
#[cfg(unix)]
async fn reload_on_hangup(app: Arc<App>) {
    let hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let Ok(mut hangups) = hangups else { return };
    while hangups.recv().await.is_some() {
        app.reload();
        match app.replace(None).await {
            Ok(Some(served)) => tracing::info!(
                soup = served.name,
                generation = served.generation,
                "SIGHUP: the soup was loaded again"
            ),
            Ok(None) => tracing::info!("SIGHUP: the soup has not changed"),
            Err(error) => tracing::error!(%error, "SIGHUP: the soup stays as it was"),
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
