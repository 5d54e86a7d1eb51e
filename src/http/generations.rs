//! The generations of the served soup: the one that takes requests, and former ones, each of which
//! lives until the last request that began with it has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::oneshot;

use super::{error::ApiError, request::soups::Wish, served::Served};
use crate::engine::{EngineStats, EngineWatch};

/// A wish for another generation, on its way.
pub struct Replacement {
    /// `None`: the one that is served from where it came, if its files have changed.
    pub wish: Option<Wish>,
    /// Told what came of it.
    pub outcome: oneshot::Sender<Result<Option<Arc<Served>>, ApiError>>,
}

/// All generations.
#[derive(Default)]
pub struct Generations {
    current: RwLock<Option<Arc<Served>>>,
    former: Mutex<Former>,
}

#[derive(Default)]
struct Former {
    /// Those that still hold something.
    engines: Vec<(u64, EngineWatch)>,
    /// Counts of the others.
    ended: EngineStats,
}

impl Generations {
    /// The one that takes requests.
    pub fn current(&self) -> Option<Arc<Served>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `served` the one that takes requests; returns the one that did.
    pub fn publish(&self, served: Arc<Served>) -> Option<Arc<Served>> {
        let former =
            self.current.write().unwrap_or_else(PoisonError::into_inner).replace(served)?;
        self.former().engines.push((former.generation, former.engine.watch()));
        Some(former)
    }

    /// Former generations that still answer, with their requests.
    pub fn draining(&self) -> Vec<(u64, usize)> {
        let requests = |stats: EngineStats| stats.running + stats.waiting;
        let former = self.former();
        former.engines.iter().map(|(at, engine)| (*at, requests(engine.stats()))).collect()
    }

    /// Counts of all generations together.
    pub fn stats(&self) -> Option<EngineStats> {
        let current = self.current()?.engine.stats();
        let former = self.former();
        let engines = former.engines.iter().map(|(_, engine)| engine.stats());
        Some(engines.fold(current, |sum, stats| sum.plus(&stats)).plus(&former.ended))
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
