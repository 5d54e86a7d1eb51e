//! Loading soups, the watch over a running engine, and its replacement.

use std::{sync::Arc, time::Duration};

use super::{
    app::App,
    error::ApiError,
    generations::Replacement,
    load::{self, LoadError, is_served},
    request::soups::Source,
    served::Served,
};
use crate::{config::ServeConfig, engine::Ailment, import::StoreError, telemetry::Telemetry};

/// Makes a running soup of a configuration; the former one may still run.
pub type Load = dyn Fn(&ServeConfig, Arc<Telemetry>, Option<&Served>) -> Result<Served, LoadError>
    + Send
    + Sync;

/// Interval at which it is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Completes when the engine of `served` has ended, or is stuck where `stuck` counts. The log tells
/// once that it is stuck, and once that it has moved on.
pub async fn failure(app: &App, served: &Served, stuck: bool) -> Ailment {
    let mut told = false;
    loop {
        let ailment = served.engine.ailment(app.step_timeout);
        match ailment {
            Some(Ailment::Stopped) => return Ailment::Stopped,
            Some(ailment) if stuck => return ailment,
            Some(ailment) if !told => tracing::error!("{ailment}: not ready"),
            None if told => tracing::warn!("the engine has moved on: ready again"),
            _ => {}
        }
        told = ailment.is_some();
        tokio::select! {
            () = served.engine.stopped() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Loads a soup on a thread of its own.
pub async fn loaded(
    app: &App,
    config: &Arc<ServeConfig>,
    load: &Arc<Load>,
) -> Result<Served, LoadError> {
    let (load, telemetry, config) = (load.clone(), app.telemetry.clone(), config.clone());
    let former = app.generations.current();
    on_thread(move || load(&config, telemetry, former.as_deref())).await
}

/// The configuration of a soup whose files are on this machine.
pub async fn fetched(config: ServeConfig) -> Result<ServeConfig, LoadError> {
    on_thread(move || load::fetched(config)).await
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(LoadError::Panicked(error.to_string())))
}

/// Loads what is to replace the served soup, and the configuration that it was loaded by; `None`: its
/// files have not changed. Whatever fails here changes nothing.
pub async fn replacement(
    app: &App,
    config: &Arc<ServeConfig>,
    wish: &Replacement,
    load: &Arc<Load>,
) -> Result<Option<(Arc<ServeConfig>, Served)>, ApiError> {
    let (served, wish) = (app.served()?, wish.wish.as_ref());
    let current = served.generation;
    if let Some(given) = wish.and_then(|wish| wish.generation).filter(|given| *given != current) {
        return Err(ApiError::Generation { given, current });
    }
    if let Some((generation, requests)) = app.generations.draining().first() {
        return Err(ApiError::Replacing(format!(
            "generation {generation} still answers {requests} sequences"
        )));
    }
    // A base that is not here is not fetched because a request says so.
    let here = ServeConfig { offline: true, ..(**config).clone() };
    let config = match wish.map(|wish| &wish.source) {
        Some(Source::Directory(soup)) => ServeConfig { soup: soup.clone(), address: None, ..here },
        Some(Source::Address(address)) => ServeConfig { address: Some(address.clone()), ..here },
        None => (**config).clone(),
    };
    let config = tokio::select! {
        config = fetched(config) => Arc::new(config.map_err(|error| match error {
            LoadError::Store(StoreError::Fetch(error)) if error.may_pass() => ApiError::Source(error.to_string()),
            error => refused(error),
        })?),
        // What ended is not left lying until a download has ended, too.
        ailment = failure(app, &served, false) => return Err(ApiError::Engine(ailment)),
    };
    if wish.is_none() {
        let (config, served) = (config.clone(), served.clone());
        if on_thread(move || is_served(&config, &served)).await.map_err(refused)? {
            return Ok(None);
        }
    }
    let new = loaded(app, &config, load).await.map_err(refused)?;
    if let Some(given) = wish.and_then(|wish| wish.digest.as_ref()).filter(|d| **d != new.digest) {
        return Err(ApiError::value("digest", given, format!("{}, the soup's", new.digest)));
    }
    if new.name != served.name {
        return Err(refused(format!("its name is {:?}, expected {:?}", new.name, served.name)));
    }
    app.check_presets(&new).map_err(refused)?;
    Ok(Some((config, new)))
}

fn refused(reason: impl std::fmt::Display) -> ApiError {
    ApiError::Value { param: "source".into(), message: format!("the soup is refused: {reason}") }
}
