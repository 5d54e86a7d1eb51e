//! Events and counters of a cache of models.

use std::time::Duration;

/// An event of a cache, for metrics and for waking those that wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CacheEvent {
    /// A model was there.
    Hit,
    /// A build was begun.
    Miss,
    /// A request joined a build that was under way.
    Joined,
    /// A request found no room.
    NoRoom,
    /// A model was given up for another.
    Evicted {
        /// Bytes that it held.
        bytes: usize,
    },
    /// A build ended and its tickets are ready.
    Built {
        /// How long it took.
        elapsed: Duration,
        /// Bytes that the model holds.
        bytes: usize,
    },
    /// A build failed; its tickets have the error, and the next request tries anew.
    Failed,
    /// A build was skipped because all its tickets were dropped before it began.
    Abandoned,
}

/// Counters and sizes of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CacheStats {
    /// Requests that found their model.
    pub hits: u64,
    /// Requests that began a build.
    pub misses: u64,
    /// Requests that joined a build.
    pub joined: u64,
    /// Requests that found no room.
    pub no_room: u64,
    /// Models given up for others.
    pub evictions: u64,
    /// Builds that ended well.
    pub builds: u64,
    /// Builds that failed.
    pub failures: u64,
    /// Builds skipped because nobody waited any more.
    pub abandoned: u64,
    /// Time spent in builds that ended well.
    pub build_seconds: f64,
    /// Models held, being built included.
    pub models: usize,
    /// Models that a lease or ticket holds.
    pub leased: usize,
    /// Bytes of the models held.
    pub bytes: usize,
    /// Most bytes.
    pub budget: usize,
}

impl CacheStats {
    pub(super) fn count(&mut self, event: CacheEvent) {
        match event {
            CacheEvent::Hit => self.hits += 1,
            CacheEvent::Miss => self.misses += 1,
            CacheEvent::Joined => self.joined += 1,
            CacheEvent::NoRoom => self.no_room += 1,
            CacheEvent::Evicted { .. } => self.evictions += 1,
            CacheEvent::Failed => self.failures += 1,
            CacheEvent::Abandoned => self.abandoned += 1,
            CacheEvent::Built { elapsed, .. } => {
                self.builds += 1;
                self.build_seconds += elapsed.as_secs_f64();
            }
        }
    }
}
