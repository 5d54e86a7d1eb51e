//! The server's life: bind, load, serve, drain.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use axum::http::HeaderValue;
use tokio::{net::TcpListener, sync::oneshot};
use tower_http::cors::AllowOrigin;

use super::{
    app::{App, Served},
    connection,
    load::{LoadError, load},
    router::router,
};
use crate::{
    config::{LogFormat, OptionError, ServeConfig, ServeOptions},
    telemetry::{LogError, Telemetry, init_logs},
};

/// Interval at which samples of histograms are folded and served files are looked at.
const UPKEEP: Duration = Duration::from_secs(5);
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
/// once the soup is loaded.
pub async fn serve(
    config: ServeConfig,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let telemetry = Arc::new(Telemetry::new());
    let app = Arc::new(App::new(&config, telemetry));
    let routes = router(app.clone(), origins(&config.allow_origin)?);
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening");

    let upkeep = tokio::spawn(upkeep(app.clone()));
    let (close, closed) = oneshot::channel();
    // Fails only if the sender was dropped: then the server shuts down as well.
    let connections = connection::serve(listener, routes, async { _ = closed.await });
    let life = async {
        let outcome = live(&app, config, stop).await;
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
    upkeep.abort();
    outcome
}

/// What is done every now and then.
async fn upkeep(app: Arc<App>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        app.telemetry.upkeep();
        let app = app.clone();
        let look = move || app.served().map(Served::look_at_files);
        // A look that panics is no reason to stop looking.
        let _ = tokio::task::spawn_blocking(look).await;
    }
}

/// From loading to the end of draining.
async fn live(
    app: &Arc<App>,
    config: ServeConfig,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (drain_timeout, telemetry) = (config.drain_timeout, app.telemetry.clone());
    let in_flight = config.limits.max_in_flight;
    tokio::pin!(stop);
    let loading = tokio::task::spawn_blocking(move || load(&config, telemetry));
    let loaded = tokio::select! {
        loaded = loading => loaded,
        () = &mut stop => return Ok(()),
    };
    match loaded {
        Ok(served) => app.publish(served?),
        Err(error) => return Err(LoadError::Panicked(error.to_string()).into()),
    }
    stop.await;
    tracing::info!("draining");
    app.drain();
    let everyone = u32::try_from(in_flight).unwrap_or(u32::MAX);
    let idle =
        tokio::time::timeout(drain_timeout, app.permits.acquire_many(everyone)).await.is_ok();
    if let Ok(served) = app.served() {
        if idle {
            served.engine.drain();
        } else {
            tracing::warn!(seconds = drain_timeout.as_secs_f64(), "requests still ran and are cut");
            served.engine.abort();
        }
        if tokio::time::timeout(GRACE, served.engine.stopped()).await.is_err() {
            tracing::warn!("the engine did not stop in time");
        }
    }
    Ok(())
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
