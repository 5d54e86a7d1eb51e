//! The life of a served soup: loaded, watched over, replaced, removed.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{MutexGuard, mpsc};

use super::{
    announce::announce,
    app::{Addition, App},
    error::ApiError,
    generations::{Change, Generations, Next},
    load::{self, LoadError, is_served},
    request::soups::{Source, Wish},
    served::{Beside, Served},
};
use crate::{
    config::{OnFailure, ServeConfig},
    engine::Ailment,
    import::StoreError,
    telemetry::Telemetry,
};

/// Makes a running soup of a configuration, beside those that run.
pub type Load =
    dyn Fn(&ServeConfig, Arc<Telemetry>, &Beside) -> Result<Served, LoadError> + Send + Sync;

/// Interval at which an engine is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Pauses before an engine is started again: the first, and the longest of those that double.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// What the lives of all soups of a server share.
pub struct Lives<'a> {
    pub app: &'a App,
    pub load: Arc<Load>,
    /// Where the server listens.
    pub address: SocketAddr,
}

/// A soup that runs, and the configuration that it was loaded by.
pub struct Running {
    pub soup: Arc<Generations>,
    pub changes: mpsc::Receiver<Change>,
    pub config: Arc<ServeConfig>,
    pub served: Arc<Served>,
}

/// Why a soup is served no more though nobody asked for that.
pub enum Ended {
    /// Its engine failed, and the configuration says to end with it.
    Engine(Ailment),
    /// It could not be loaded again.
    Load(LoadError),
}

impl Lives<'_> {
    /// Loads a soup of the start.
    pub async fn begin(
        &self,
        (soup, changes): (Arc<Generations>, mpsc::Receiver<Change>),
        config: ServeConfig,
    ) -> Result<Running, LoadError> {
        let config = Arc::new(fetched(config).await?);
        let loading = self.app.loading.lock().await;
        let loaded = self.loaded(&loading, &config, None).await?;
        self.check_name(&loaded)?;
        let served = self.published(&soup, &config, loaded);
        Ok(Running { soup, changes, config, served })
    }

    /// Serves a soup that is wished for beside the others, loaded as `config` says, and tells who asked
    /// once it is there; then as [`Self::live`].
    pub async fn add(
        &self,
        Addition { wish, outcome }: Addition,
        config: &ServeConfig,
    ) -> Result<(), Ended> {
        let added = self.added(&wish, config).await;
        // Who asked may have gone.
        let _ =
            outcome.send(added.as_ref().map(|added| added.served.clone()).map_err(Clone::clone));
        let Ok(running) = added else { return Ok(()) };
        let soup = running.soup.clone();
        match self.live(running).await {
            Err(Ended::Load(error)) => {
                tracing::error!(%error, "a soup that was added is removed");
                self.remove(&soup);
                Ok(())
            }
            ended => ended,
        }
    }

    async fn added(&self, wish: &Wish, config: &ServeConfig) -> Result<Running, ApiError> {
        let config = wished(&wish.source, config).await?;
        let loading = self.app.loading.lock().await;
        self.wait_for_former()?;
        let loaded = self.loaded(&loading, &config, None).await.map_err(refused)?;
        check_digest(wish, &loaded)?;
        self.check_name(&loaded).map_err(refused)?;
        let (soup, changes) = Generations::new();
        let served = self.published(&soup, &config, loaded);
        self.app.soups.add(soup.clone());
        Ok(Running { soup, changes, config, served })
    }

    /// Watches over a running soup, starts its engine again where it ends, and changes it as asked,
    /// until it is removed.
    pub async fn live(&self, running: Running) -> Result<(), Ended> {
        let Running { soup, mut changes, mut config, mut served } = running;
        let exits = config.on_engine_failure == OnFailure::Exit;
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let ailment = loop {
                let Change { to, outcome } = tokio::select! {
                    ailment = self.failure(&served, exits) => break ailment,
                    Some(change) = changes.recv() => change,
                };
                let changed = match to {
                    Next::Removed if self.remove(&soup) => {
                        let _ = outcome.send(Ok(None));
                        return Ok(());
                    }
                    Next::Removed => Err(ApiError::value(
                        "name",
                        format!("{:?}", served.name),
                        "one beside the first soup, which stays",
                    )),
                    Next::Reloaded => self.replace(&soup, &served, &mut config, None).await,
                    Next::Wish(wish) => self.replace(&soup, &served, &mut config, Some(wish)).await,
                };
                if let Ok(Some(new)) = &changed {
                    served = new.clone();
                }
                // Who asked may have gone.
                let _ = outcome.send(changed);
            };
            if exits {
                return Err(Ended::Engine(ailment));
            }
            if begun.elapsed() > LAST_PAUSE {
                pause = FIRST_PAUSE;
            }
            let seconds = pause.as_secs_f64();
            tracing::error!(
                soup = served.name,
                seconds,
                "{ailment}: it is started again after a pause"
            );
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
            let loading = self.app.loading.lock().await;
            let loaded = self.loaded(&loading, &config, Some(&served)).await;
            let loaded = loaded.map_err(Ended::Load)?;
            served = self.published(&soup, &config, loaded);
        }
    }

    /// Completes when the engine of `served` has ended, or is stuck where `stuck` counts. The log tells
    /// once that it is stuck, and once that it has moved on.
    async fn failure(&self, served: &Served, stuck: bool) -> Ailment {
        let mut told = false;
        loop {
            let ailment = served.engine.ailment(self.app.step_timeout);
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

    /// Puts another generation in the place of `served`: as wished, or else what is where it came
    /// from. `None`: those files have not changed. Whatever fails here changes nothing.
    async fn replace(
        &self,
        soup: &Generations,
        served: &Arc<Served>,
        config: &mut Arc<ServeConfig>,
        wish: Option<Wish>,
    ) -> Result<Option<Arc<Served>>, ApiError> {
        let current = served.generation;
        if let Some(given) =
            wish.as_ref().and_then(|wish| wish.generation).filter(|g| *g != current)
        {
            return Err(ApiError::Generation { given, current });
        }
        let place = async {
            match &wish {
                Some(wish) => wished(&wish.source, config).await,
                None => fetched((**config).clone()).await.map(Arc::new).map_err(unfetched),
            }
        };
        let new = tokio::select! {
            new = place => new?,
            // What ended is not left lying until a download has ended, too.
            ailment = self.failure(served, false) => return Err(ApiError::Engine(ailment)),
        };
        if wish.is_none() {
            let (config, served) = (new.clone(), served.clone());
            if on_thread(move || is_served(&config, &served)).await.map_err(refused)? {
                return Ok(None);
            }
        }
        let loading = self.app.loading.lock().await;
        self.wait_for_former()?;
        let loaded = self.loaded(&loading, &new, Some(served)).await.map_err(refused)?;
        if let Some(wish) = &wish {
            check_digest(wish, &loaded)?;
        }
        if loaded.name != served.name {
            let reason = format!("its name is {:?}, expected {:?}", loaded.name, served.name);
            return Err(refused(reason));
        }
        *config = new;
        Ok(Some(self.published(soup, config, loaded)))
    }

    /// Takes a soup out of those that are served; false for the first one.
    fn remove(&self, soup: &Arc<Generations>) -> bool {
        let served = soup.current();
        let removed = self.app.soups.remove(soup);
        if let Some(served) = served.filter(|_| removed) {
            self.app.telemetry.model(&served.name, &served.digest, false);
            self.app.telemetry.sequences(&served.name, 0, 0);
            tracing::info!(soup = served.name, "removed");
        }
        removed
    }

    /// Refuses a soup beside one of its name.
    fn check_name(&self, loaded: &Served) -> Result<(), LoadError> {
        match self.app.soups.named(&loaded.name) {
            Ok(_) => Err(LoadError::Repeated(loaded.name.clone())),
            Err(_) => Ok(()),
        }
    }

    /// Refuses what needs memory while a former generation still has its own.
    fn wait_for_former(&self) -> Result<(), ApiError> {
        match self.app.soups.draining().first() {
            None => Ok(()),
            Some((generation, requests)) => Err(ApiError::Replacing(format!(
                "generation {generation} still answers {requests} sequences"
            ))),
        }
    }

    /// Loads a soup, which must have the presets of all keys, on a thread of its own. No other is
    /// loaded while the guard is held, which is until this one is published.
    async fn loaded(
        &self,
        _: &MutexGuard<'_, ()>,
        config: &Arc<ServeConfig>,
        former: Option<&Arc<Served>>,
    ) -> Result<Served, LoadError> {
        let (load, telemetry, config) =
            (self.load.clone(), self.app.telemetry.clone(), config.clone());
        let beside = self.app.beside(former.cloned());
        let loaded = on_thread(move || load(&config, telemetry, &beside)).await?;
        self.app.check_presets(&loaded)?;
        Ok(loaded)
    }

    fn published(&self, soup: &Generations, config: &ServeConfig, loaded: Served) -> Arc<Served> {
        let served = self.app.publish(soup, loaded);
        announce(&served, config, self.address);
        served
    }
}

/// The configuration of a soup whose files are on this machine.
async fn fetched(config: ServeConfig) -> Result<ServeConfig, LoadError> {
    on_thread(move || load::fetched(config)).await
}

/// The configuration for a wished source, whose files are on this machine then.
async fn wished(source: &Source, config: &ServeConfig) -> Result<Arc<ServeConfig>, ApiError> {
    // A base that is not here is not fetched because a request says so.
    let here = ServeConfig { offline: true, ..config.clone() };
    let config = match source {
        Source::Directory(soup) => ServeConfig { soup: soup.clone(), address: None, ..here },
        Source::Address(address) => ServeConfig { address: Some(address.clone()), ..here },
    };
    fetched(config).await.map(Arc::new).map_err(unfetched)
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(LoadError::Panicked(error.to_string())))
}

fn check_digest(wish: &Wish, loaded: &Served) -> Result<(), ApiError> {
    match wish.digest.as_ref().filter(|digest| **digest != loaded.digest) {
        None => Ok(()),
        Some(given) => {
            Err(ApiError::value("digest", given, format!("{}, the soup's", loaded.digest)))
        }
    }
}

fn unfetched(error: LoadError) -> ApiError {
    match error {
        LoadError::Store(StoreError::Fetch(error)) if error.may_pass() => {
            ApiError::Source(error.to_string())
        }
        error => refused(error),
    }
}

fn refused(reason: impl std::fmt::Display) -> ApiError {
    ApiError::Value { param: "source".into(), message: format!("the soup is refused: {reason}") }
}
