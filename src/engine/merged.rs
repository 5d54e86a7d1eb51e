//! The cache of merged models as a backend uses it, whatever the device.

use std::sync::{Arc, OnceLock};

use super::{backend::Fetch, request::EngineError};
use crate::{
    config::MergeMode,
    merge::{Build, Cache, CacheEvent, Fetch as CacheFetch, Lease, MergeError, MergeKey, Ticket},
    preference::Coefficients,
};

/// Called on every event of the cache of merged models, from any thread; must not block.
pub type OnCacheEvent = Arc<dyn Fn(CacheEvent) + Send + Sync>;

type Waker = Arc<dyn Fn() + Send + Sync>;

/// The merged models of a soup; none where all requests run with per-row coefficients.
pub(super) struct Merged<B: Build<Key = MergeKey>> {
    cache: Option<Cache<B>>,
    waker: Arc<OnceLock<Waker>>,
}

impl<B: Build<Key = MergeKey>> Merged<B> {
    /// Makes the cache by `open`, which is given what the cache is to call on every event. A budget
    /// below one model is an error only where merged models are all there is.
    pub fn open(
        mode: MergeMode,
        told: Option<OnCacheEvent>,
        open: impl FnOnce(OnCacheEvent) -> Result<Cache<B>, MergeError>,
    ) -> Result<Self, MergeError> {
        let waker: Arc<OnceLock<Waker>> = Arc::default();
        if mode == MergeMode::Mixed {
            return Ok(Self { cache: None, waker });
        }
        let wake = waker.clone();
        let on_event = move |event| {
            if let Some(told) = &told {
                told(event);
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

    pub fn cached(&self, c: &Coefficients) -> Option<Lease<B::Value>> {
        self.cache.as_ref()?.peek(&MergeKey::of(c))
    }

    pub fn fetch(&self, c: &Coefficients) -> Fetch<Lease<B::Value>, Ticket<B::Value>> {
        match self.cache.as_ref().map(|cache| cache.get(&MergeKey::of(c))) {
            Some(CacheFetch::Ready(lease)) => Fetch::Ready(lease),
            Some(CacheFetch::Building(ticket)) => Fetch::Building(ticket),
            Some(CacheFetch::NoRoom) | None => Fetch::NoRoom,
        }
    }

    pub fn redeem(
        &self,
        ticket: &Ticket<B::Value>,
    ) -> Option<Result<Lease<B::Value>, EngineError>> {
        Some(ticket.poll()?.map_err(|error| {
            let reason = error.to_string();
            if error.is_out_of_memory() {
                EngineError::Memory(reason)
            } else {
                EngineError::Merge(reason)
            }
        }))
    }

    /// Sets what is called when a merge has ended; once, when the engine starts.
    pub fn set_waker(&self, wake: Waker) {
        let _ = self.waker.set(wake);
    }
}
