//! A cache of merged models with a byte budget. A key is built once however many requests ask for
//! it, a leased model is never evicted, and builds run on a thread of their own beside decoding.
//!
//! A cache belongs to one soup, so keys identify models within it.
//!
//! Eviction follows reference counts: the cache holds one reference to a model's slot, every
//! [`Lease`] and [`Ticket`] another. A slot may be evicted when the cache's reference is the only
//! one. New references are made under the lock or from one that is held, so an evicted slot cannot
//! gain one.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

mod event;

use super::MergeError;
use crate::telemetry::panic_text;
pub use event::{CacheEvent, CacheStats};

/// Builder of the models of a cache.
pub trait Build: Send + Sync + 'static {
    /// Identity of a model.
    type Key: Clone + Eq + Hash + Send + Sync + 'static;
    /// A built model.
    type Value: Send + Sync + 'static;

    /// Bytes of a model; the same for all of them.
    fn bytes(&self) -> usize;
    /// Frees memory that is kept for later builds.
    fn relieve(&self) {}
    /// Builds one model. Called on the cache's thread, one build at a time.
    fn build(&self, key: &Self::Key) -> Result<Self::Value, MergeError>;
}

/// Result of [`Cache::get`].
#[derive(Debug, Clone, PartialEq)]
pub enum Fetch<Lease, Ticket> {
    /// The model is here and stays while the lease is held.
    Ready(Lease),
    /// It is being built, for this caller or an earlier one. The ticket holds its place.
    Building(Ticket),
    /// The budget is taken by models on lease or in building: ask again when one is given back.
    NoRoom,
}

type Outcome<V> = Result<Arc<V>, Arc<MergeError>>;

/// A place in the cache, kept as long as references to it exist.
struct Slot<V> {
    outcome: OnceLock<Outcome<V>>,
}

/// A model that stays while this is held.
pub struct Lease<V> {
    // Dropped before the slot, so that an unused slot implies that the memory can be reused.
    model: Arc<V>,
    _slot: Arc<Slot<V>>,
}

impl<V> Clone for Lease<V> {
    fn clone(&self) -> Self {
        Self { model: self.model.clone(), _slot: self._slot.clone() }
    }
}

impl<V> Deref for Lease<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.model
    }
}

impl<V> fmt::Debug for Lease<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}

/// A place in the queue for a model; the model is not evicted before its tickets are used or
/// dropped.
pub struct Ticket<V> {
    slot: Arc<Slot<V>>,
}

impl<V> Ticket<V> {
    /// The outcome, once the build has ended.
    pub fn poll(&self) -> Option<Result<Lease<V>, Arc<MergeError>>> {
        self.slot.outcome.get().map(|outcome| self.lease(outcome))
    }

    /// Blocks until the build has ended.
    pub fn wait(&self) -> Result<Lease<V>, Arc<MergeError>> {
        self.lease(self.slot.outcome.wait())
    }

    fn lease(&self, outcome: &Outcome<V>) -> Result<Lease<V>, Arc<MergeError>> {
        let model = outcome.clone()?;
        Ok(Lease { model, _slot: self.slot.clone() })
    }
}

impl<V> Clone for Ticket<V> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone() }
    }
}

impl<V> fmt::Debug for Ticket<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

struct Entry<V> {
    slot: Arc<Slot<V>>,
    /// Time of the last request, on [`State::clock`].
    used: u64,
}

impl<V> Entry<V> {
    fn is_held(&self) -> bool {
        Arc::strong_count(&self.slot) > 1
    }
}

/// State under the lock.
struct State<B: Build> {
    entries: HashMap<B::Key, Entry<B::Value>>,
    clock: u64,
    counters: CacheStats,
}

/// State shared by callers and the build thread.
struct Core<B: Build> {
    builder: B,
    /// Most models at a time: budget over bytes.
    capacity: usize,
    budget: usize,
    state: Mutex<State<B>>,
    closing: AtomicBool,
    on_event: Box<dyn Fn(CacheEvent) + Send + Sync>,
}

/// A build to make; the reference to its slot keeps the model's place.
struct BuildJob<B: Build> {
    key: B::Key,
    slot: Arc<Slot<B::Value>>,
}

/// The cache. Dropping it ends the build under way and fails those that wait.
pub struct Cache<B: Build> {
    core: Arc<Core<B>>,
    jobs: Option<mpsc::Sender<BuildJob<B>>>,
    thread: Option<JoinHandle<()>>,
}

impl<B: Build> Cache<B> {
    /// An empty cache of at most `budget` bytes. `on_event` is called from whichever thread an
    /// event happens on, outside the lock, and must not block.
    pub fn new(
        builder: B,
        budget: usize,
        on_event: impl Fn(CacheEvent) + Send + Sync + 'static,
    ) -> Result<Self, MergeError> {
        let model = builder.bytes();
        let capacity = budget / model.max(1);
        if capacity == 0 {
            return Err(MergeError::Budget { budget, model });
        }
        let state = State { entries: HashMap::new(), clock: 0, counters: CacheStats::default() };
        let core = Arc::new(Core {
            builder,
            capacity,
            budget,
            state: Mutex::new(state),
            closing: AtomicBool::new(false),
            on_event: Box::new(on_event),
        });
        let (jobs, queue) = mpsc::channel();
        let worker = core.clone();
        let thread = std::thread::Builder::new()
            .name("merge".to_owned())
            .spawn(move || worker.work(&queue))
            .map_err(|error| MergeError::Threads(error.to_string()))?;
        Ok(Self { core, jobs: Some(jobs), thread: Some(thread) })
    }

    /// The model of `key`: here, being built, or without room. Never blocks on a build.
    pub fn get(&self, key: &B::Key) -> Fetch<Lease<B::Value>, Ticket<B::Value>> {
        let mut evicted = None;
        let mut job = None;
        let (fetch, event) = {
            let mut state = self.core.lock();
            state.clock += 1;
            let used = state.clock;
            let (fetch, event) = if let Some(entry) = state.entries.get_mut(key) {
                entry.used = used;
                let slot = entry.slot.clone();
                match slot.outcome.get() {
                    Some(Ok(model)) => {
                        let lease = Lease { model: model.clone(), _slot: slot };
                        (Fetch::Ready(lease), CacheEvent::Hit)
                    }
                    _ => (Fetch::Building(Ticket { slot }), CacheEvent::Joined),
                }
            } else {
                if state.entries.len() >= self.core.capacity {
                    evicted = state.evict(self.core.builder.bytes());
                }
                if state.entries.len() >= self.core.capacity {
                    (Fetch::NoRoom, CacheEvent::NoRoom)
                } else {
                    let slot = Arc::new(Slot { outcome: OnceLock::new() });
                    state.entries.insert(key.clone(), Entry { slot: slot.clone(), used });
                    job = Some(BuildJob { key: key.clone(), slot: slot.clone() });
                    (Fetch::Building(Ticket { slot }), CacheEvent::Miss)
                }
            };
            state.counters.count(event);
            (fetch, event)
        };
        // The evicted memory is freed before the build that needs it begins.
        if let Some((model, event)) = evicted {
            drop(model);
            (self.core.on_event)(event);
        }
        (self.core.on_event)(event);
        if let (Some(job), Some(jobs)) = (job, &self.jobs)
            && let Err(mpsc::SendError(job)) = jobs.send(job)
        {
            // The build thread has ended: the ticket must fail, not wait.
            let event = self.core.finish(job, Err(MergeError::Closed), Duration::ZERO);
            (self.core.on_event)(event);
        }
        fetch
    }

    /// Whether the model of `key` is here. Neither begins a build nor counts as a request.
    pub fn contains(&self, key: &B::Key) -> bool {
        let state = self.core.lock();
        let slot = state.entries.get(key).map(|entry| &entry.slot);
        slot.is_some_and(|slot| matches!(slot.outcome.get(), Some(Ok(_))))
    }

    /// Gives up all models that nobody holds, and their memory; returns how many.
    pub fn clear(&self) -> usize {
        self.core.clear()
    }

    /// Lets no further build begin: those that are queued fail with [`MergeError::Closed`].
    pub fn close(&self) {
        self.core.closing.store(true, Ordering::Release);
    }

    /// Most models at a time.
    pub fn capacity(&self) -> usize {
        self.core.capacity
    }

    /// Counters and sizes now.
    pub fn stats(&self) -> CacheStats {
        let state = self.core.lock();
        CacheStats {
            models: state.entries.len(),
            leased: state.entries.values().filter(|entry| entry.is_held()).count(),
            bytes: state.entries.len() * self.core.builder.bytes(),
            budget: self.core.budget,
            ..state.counters
        }
    }
}

impl<B: Build> Drop for Cache<B> {
    fn drop(&mut self) {
        self.close();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Panics of builds are caught; a panic of the event hook has been reported.
            let _ = thread.join();
        }
        // Whoever counts models hears that they are gone.
        self.clear();
    }
}

impl<B: Build> State<B> {
    /// Takes out the model, of `bytes`, that was asked for longest ago among those that nobody
    /// holds.
    fn evict(&mut self, bytes: usize) -> Option<(Entry<B::Value>, CacheEvent)> {
        let free = self.entries.iter().filter(|(_, entry)| !entry.is_held());
        let key = free.min_by_key(|(_, entry)| entry.used)?.0.clone();
        let event = CacheEvent::Evicted { bytes };
        self.counters.count(event);
        Some((self.entries.remove(&key)?, event))
    }
}

impl<B: Build> Core<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self) -> usize {
        let mut evicted = Vec::new();
        {
            let mut state = self.lock();
            while let Some(model) = state.evict(self.builder.bytes()) {
                evicted.push(model);
            }
        }
        let count = evicted.len();
        for (model, event) in evicted {
            drop(model);
            (self.on_event)(event);
        }
        self.builder.relieve();
        count
    }

    fn work(&self, queue: &mpsc::Receiver<BuildJob<B>>) {
        for job in queue {
            if self.abandon(&job) {
                (self.on_event)(CacheEvent::Abandoned);
                continue;
            }
            let start = Instant::now();
            let outcome = if self.closing.load(Ordering::Acquire) {
                Err(MergeError::Closed)
            } else {
                match self.build(&job.key) {
                    // Retry with the whole budget.
                    Err(error) if error.is_out_of_memory() && self.clear() > 0 => {
                        self.build(&job.key)
                    }
                    outcome => outcome,
                }
            };
            let event = self.finish(job, outcome, start.elapsed());
            (self.on_event)(event);
        }
    }

    /// Takes a build out of the cache when the cache and the job are all that refers to it.
    fn abandon(&self, job: &BuildJob<B>) -> bool {
        let mut state = self.lock();
        let abandoned = Arc::strong_count(&job.slot) == 2;
        if abandoned {
            state.entries.remove(&job.key);
            state.counters.count(CacheEvent::Abandoned);
        }
        abandoned
    }

    fn build(&self, key: &B::Key) -> Result<B::Value, MergeError> {
        catch_unwind(AssertUnwindSafe(|| self.builder.build(key)))
            .unwrap_or_else(|panic| Err(MergeError::Panicked(panic_text(&*panic).to_owned())))
    }

    /// Publishes an outcome. A failure leaves the cache first, so that no later request sees it.
    fn finish(
        &self,
        job: BuildJob<B>,
        outcome: Result<B::Value, MergeError>,
        elapsed: Duration,
    ) -> CacheEvent {
        let mut state = self.lock();
        let event = match outcome {
            Ok(_) => CacheEvent::Built { elapsed, bytes: self.builder.bytes() },
            Err(_) => {
                state.entries.remove(&job.key);
                CacheEvent::Failed
            }
        };
        state.counters.count(event);
        // Setting cannot fail: a slot has one job, which sets it once.
        let _ = job.slot.outcome.set(outcome.map(Arc::new).map_err(Arc::new));
        // Dropped within the lock, so that this reference is gone when the outcome is seen.
        drop(job);
        event
    }
}
