//! The generations of a served soup: the one that takes requests, and former ones, each of which
//! lives until the last request that began with it has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot};

use super::{error::ApiError, request::soups::Wish, served::Served};
use crate::engine::{EngineStats, EngineWatch};

/// A change that is asked of a soup, on its way.
pub struct Change {
    pub to: Next,
    /// Told what came of it: what is served now, `None` where nothing changed or nothing is left.
    pub outcome: oneshot::Sender<Result<Option<Arc<Served>>, ApiError>>,
}

/// What a soup is to become.
pub enum Next {
    /// Another of its name.
    Wish(Wish),
    /// What is where it came from, if those files have changed.
    Reloaded,
    /// Served no more.
    Removed,
}

/// All generations of one soup.
pub struct Generations {
    current: RwLock<Option<Arc<Served>>>,
    former: Mutex<Former>,
    changes: mpsc::Sender<Change>,
}

#[derive(Default)]
struct Former {
    /// Those that still hold something.
    engines: Vec<(u64, EngineWatch)>,
    /// Counts of the others.
    ended: EngineStats,
}

impl Generations {
    /// Those of a soup that is not loaded yet, and what will be asked of it. One change may wait for
    /// another.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Change>) {
        let (changes, asked) = mpsc::channel(1);
        let (current, former) = (RwLock::default(), Mutex::default());
        (Arc::new(Self { current, former, changes }), asked)
    }

    /// The one that takes requests.
    pub fn current(&self) -> Option<Arc<Served>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `next` the one that takes requests, or none; returns the one that did.
    pub fn publish(&self, next: Option<Arc<Served>>) -> Option<Arc<Served>> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let former = std::mem::replace(&mut *current, next)?;
        self.former().engines.push((former.generation, former.engine.watch()));
        Some(former)
    }

    /// Asks for a change and waits for what comes of it; who asks need not wait.
    pub async fn change(&self, to: Next) -> Result<Option<Arc<Served>>, ApiError> {
        let (outcome, told) = oneshot::channel();
        self.changes.try_send(Change { to, outcome }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => {
                ApiError::Replacing("other changes of the soup are in progress".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => ApiError::Draining,
        })?;
        // Dropped unanswered when the server stops.
        told.await.unwrap_or(Err(ApiError::Draining))
    }

    /// Former generations that still answer, with their requests.
    pub fn draining(&self) -> Vec<(u64, usize)> {
        let requests = |stats: EngineStats| stats.running + stats.waiting;
        let former = self.former();
        former.engines.iter().map(|(at, engine)| (*at, requests(engine.stats()))).collect()
    }

    /// Counts of all generations together.
    pub fn stats(&self) -> EngineStats {
        let current = self.current().map(|served| served.engine.stats()).unwrap_or_default();
        let former = self.former();
        let engines = former.engines.iter().map(|(_, engine)| engine.stats());
        engines.fold(current, |sum, stats| sum.plus(&stats)).plus(&former.ended)
    }

    /// Fails what former generations have not completed.
    pub fn abort_former(&self) {
        self.former().engines.iter().for_each(|(_, engine)| engine.abort());
    }

    /// The former ones, after those are let go that hold nothing any more.
    fn former(&self) -> MutexGuard<'_, Former> {
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        let Former { engines, ended } = &mut *former;
        engines.retain(|(generation, engine)| {
            if engine.is_gone() {
                tracing::info!(generation, "its last request has ended, its memory is given back");
                *ended = ended.plus(&engine.stats().counters());
            }
            !engine.is_gone()
        });
        former
    }
}
