//! The soups that are served side by side.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    error::{ApiError, shorten},
    generations::Generations,
    served::Served,
};
use crate::engine::EngineStats;

/// The soups that are served, and those that were.
pub struct Roster {
    /// The first is the one that answers who names none.
    soups: RwLock<Vec<Arc<Generations>>>,
    removed: Mutex<Removed>,
}

#[derive(Default)]
struct Removed {
    /// Those that still answer.
    soups: Vec<Arc<Generations>>,
    /// Counts of the others.
    ended: EngineStats,
}

impl Roster {
    /// The soups of a start, not loaded yet; at least one.
    pub fn new(soups: Vec<Arc<Generations>>) -> Self {
        Self { soups: RwLock::new(soups), removed: Mutex::default() }
    }

    /// All, the first one first.
    pub fn all(&self) -> Vec<Arc<Generations>> {
        self.read().clone()
    }

    /// The ones that take requests; fails while any is still being loaded.
    pub fn served(&self) -> Result<Vec<Arc<Served>>, ApiError> {
        let served: Option<_> = self.read().iter().map(|soup| soup.current()).collect();
        served.ok_or(ApiError::Loading)
    }

    /// The one that answers who names none.
    pub fn first(&self) -> Result<Arc<Served>, ApiError> {
        self.read().first().and_then(|soup| soup.current()).ok_or(ApiError::Loading)
    }

    /// The soup that a model id (`NAME` or `NAME:PREFERENCE`) names.
    pub fn named(&self, id: &str) -> Result<(Arc<Generations>, Arc<Served>), ApiError> {
        let name = id.split_once(':').map_or(id, |(name, _)| name);
        let soups = self.all();
        let loaded = soups.iter().filter_map(|soup| Some((soup, soup.current()?)));
        let loaded: Vec<_> = loaded.collect();
        if let Some((soup, served)) = loaded.iter().find(|(_, served)| served.name == name) {
            return Ok(((*soup).clone(), served.clone()));
        }
        if loaded.len() < soups.len() {
            return Err(ApiError::Loading);
        }
        let names: Vec<_> = loaded.iter().map(|(_, served)| format!("{:?}", served.name)).collect();
        let reason = format!("this server has {}", names.join(", "));
        Err(ApiError::Model { name: shorten(id), reason })
    }

    /// Whether there is one only.
    pub fn is_single(&self) -> bool {
        self.read().len() == 1
    }

    /// Takes another soup in, whose name none has.
    pub fn add(&self, soup: Arc<Generations>) {
        self.write().push(soup);
    }

    /// Takes a soup out: nobody finds it any more, what it answers it ends. False for the first one,
    /// which stays.
    pub fn remove(&self, soup: &Arc<Generations>) -> bool {
        // Held throughout, so that its counts are in every sum once.
        let mut removed = self.removed();
        let mut soups = self.write();
        let at = soups.iter().position(|other| Arc::ptr_eq(other, soup));
        let Some(at) = at.filter(|at| *at > 0) else { return false };
        let soup = soups.remove(at);
        soup.publish(None);
        removed.soups.push(soup);
        true
    }

    /// Counts of all soups together.
    pub fn stats(&self) -> EngineStats {
        let removed = self.removed();
        let soups = self.all().into_iter().chain(removed.soups.iter().cloned());
        let sum = soups.map(|soup| soup.stats()).reduce(|sum, stats| sum.plus(&stats));
        sum.unwrap_or_default().plus(&removed.ended)
    }

    /// Former generations of all soups that still answer, with their requests.
    pub fn draining(&self) -> Vec<(u64, usize)> {
        let removed = self.removed().soups.clone();
        self.all().iter().chain(&removed).flat_map(|soup| soup.draining()).collect()
    }

    /// Fails what former generations have not completed.
    pub fn abort_former(&self) {
        let removed = self.removed().soups.clone();
        self.all().iter().chain(&removed).for_each(|soup| soup.abort_former());
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Generations>>> {
        self.soups.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Generations>>> {
        self.soups.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The removed ones, after those are let go that answer nothing any more.
    fn removed(&self) -> MutexGuard<'_, Removed> {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let Removed { soups, ended } = &mut *removed;
        soups.retain(|soup| {
            let gone = soup.current().is_none() && soup.draining().is_empty();
            if gone {
                *ended = ended.plus(&soup.stats());
            }
            !gone
        });
        removed
    }
}
