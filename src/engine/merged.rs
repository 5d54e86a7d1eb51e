//! The cache of merged models as a backend uses it, whatever the device.

use std::sync::{Arc, OnceLock};

use super::request::EngineError;
use crate::{
    config::MergeMode,
    merge::{Build, Cache, CacheEvent, Fetch, Lease, MergeError, Ticket},
    preference::ModelKey,
};

/// Called on every event of the cache of merged models, from any thread; must not block.
pub type OnCacheEvent = Arc<dyn Fn(CacheEvent) + Send + Sync>;

type Waker = Arc<dyn Fn() + Send + Sync>;

/// The merged models of a soup; none where all requests run with per-row coefficients.
pub(super) struct Merged<B: Build<Key = ModelKey>> {
    cache: Option<Cache<B>>,
    waker: Arc<OnceLock<Waker>>,
}

impl<B: Build<Key = ModelKey>> Merged<B> {
    /// Makes the cache by `open`, whose argument is what the cache calls on every event. A budget
    /// below one model is an error only in fused mode; in auto every request then runs mixed.
    pub fn open(
        mode: MergeMode,
        listener: Option<OnCacheEvent>,
        open: impl FnOnce(OnCacheEvent) -> Result<Cache<B>, MergeError>,
    ) -> Result<Self, MergeError> {
        let waker: Arc<OnceLock<Waker>> = Arc::default();
        if mode == MergeMode::Mixed {
            return Ok(Self { cache: None, waker });
        }
        let wake = waker.clone();
        let on_event = move |event| {
            if let Some(listener) = &listener {
                listener(event);
            }
            let ended = matches!(event, CacheEvent::Built { .. } | CacheEvent::Failed);
            if let Some(wake) = wake.get().filter(|_| ended) {
                wake();
            }
        };
        let cache = match open(Arc::new(on_event)) {
            Ok(cache) => Some(cache),
            Err(error @ MergeError::Budget { .. }) if mode == MergeMode::Auto => {
                tracing::warn!(%error, "all requests run with per-row coefficients");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { cache, waker })
    }

    /// Models that fit at once.
    pub fn capacity(&self) -> usize {
        self.cache.as_ref().map_or(0, Cache::capacity)
    }

    /// Gives up what nobody holds; returns how many models.
    pub fn clear(&self) -> usize {
        self.cache.as_ref().map_or(0, Cache::clear)
    }

    pub fn cached(&self, key: &ModelKey) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.contains(key))
    }

    pub fn fetch(&self, key: &ModelKey) -> Fetch<Lease<B::Value>, Ticket<B::Value>> {
        self.cache.as_ref().map_or(Fetch::NoRoom, |cache| cache.get(key))
    }

    pub fn redeem(
        &self,
        ticket: &Ticket<B::Value>,
    ) -> Option<Result<Lease<B::Value>, EngineError>> {
        Some(ticket.poll()?.map_err(|error| {
            let reason = error.to_string();
            match &*error {
                MergeError::Range { .. } => EngineError::NotFinite(reason),
                error if error.is_out_of_memory() => EngineError::Memory(reason),
                _ => EngineError::Merge(reason),
            }
        }))
    }

    /// Sets what is called when a merge has ended; once, when the engine starts.
    pub fn set_waker(&self, wake: Waker) {
        let _ = self.waker.set(wake);
    }
}
