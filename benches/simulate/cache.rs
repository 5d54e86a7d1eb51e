//! A backend in simulated time: it computes nothing and keeps merged weights (or adapters, or
//! swapped-in models) in an LRU cache of a number of slots, filled one after another.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ladle::{
    engine::{
        backend::{Backend, Facts},
        cost::Footprint,
    },
    kernels::{Batch, KernelError},
    merge::Fetch,
    preference::ModelKey,
};

struct Entry {
    lease: Arc<()>,
    ready: f64,
    used: u64,
}

/// A place in the queue for a slot, which is not given to others while it exists.
pub struct Waiting {
    key: ModelKey,
    _lease: Arc<()>,
}

/// The backend.
pub struct Slots {
    /// Simulated time in seconds.
    pub now: f64,
    /// Models put into slots so far.
    pub builds: usize,
    capacity: usize,
    /// Seconds to fill a slot with a mix never seen before, and with one seen before.
    build: [f64; 2],
    footprint: Footprint,
    entries: HashMap<ModelKey, Entry>,
    seen: HashSet<ModelKey>,
    busy_until: f64,
    clock: u64,
}

impl Slots {
    /// No slot is filled.
    pub fn new(capacity: usize, build: [f64; 2], footprint: Footprint) -> Self {
        Self {
            now: 0.0,
            builds: 0,
            capacity,
            build,
            footprint,
            entries: HashMap::new(),
            seen: HashSet::new(),
            busy_until: 0.0,
            clock: 0,
        }
    }

    /// Whether a slot is being filled.
    pub fn busy(&self) -> bool {
        self.now < self.busy_until
    }

    /// When the next slot is filled.
    pub fn next_ready(&self) -> Option<f64> {
        let later = self.entries.values().map(|entry| entry.ready).filter(|&at| at > self.now);
        later.min_by(f64::total_cmp)
    }

    fn take(&mut self, key: &ModelKey) -> Option<Arc<()>> {
        self.clock += 1;
        let entry = self.entries.get_mut(key).filter(|entry| entry.ready <= self.now)?;
        entry.used = self.clock;
        Some(entry.lease.clone())
    }

    /// Makes room for one more; false if everything is leased or being filled.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < self.capacity {
            return true;
        }
        let idle = |entry: &Entry| Arc::strong_count(&entry.lease) == 1 && entry.ready <= self.now;
        let idle = self.entries.iter().filter(|(_, entry)| idle(entry));
        let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
        oldest.is_some_and(|key| self.entries.remove(&key).is_some())
    }
}

impl Backend for Slots {
    type Lease = Arc<()>;
    type Ticket = Waiting;
    type Logits = ();

    fn facts(&self) -> Facts {
        Facts {
            vocabulary: 0,
            backbones: 0,
            answer_only: false,
            context: 0,
            start: None,
            blocks: 0,
            block_tokens: 0,
            digest: String::new(),
            merged_models: self.capacity,
            mixes: true,
            footprint: self.footprint,
        }
    }

    fn terms(&self, _: &ModelKey) -> Vec<f32> {
        Vec::new()
    }

    fn cached(&self, key: &ModelKey) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.ready <= self.now)
    }

    fn fetch(&mut self, key: &ModelKey) -> Fetch<Arc<()>, Waiting> {
        if let Some(lease) = self.take(key) {
            return Fetch::Ready(lease);
        }
        if let Some(entry) = self.entries.get(key) {
            return Fetch::Building(Waiting { _lease: entry.lease.clone(), key: key.clone() });
        }
        if !self.make_room() {
            return Fetch::NoRoom;
        }
        let seen = !self.seen.insert(key.clone());
        self.busy_until = self.busy_until.max(self.now) + self.build[usize::from(seen)];
        self.builds += 1;
        let lease = Arc::new(());
        let ready = self.busy_until;
        let entry = Entry { lease: lease.clone(), ready, used: self.clock };
        self.entries.insert(key.clone(), entry);
        if ready <= self.now {
            return Fetch::Ready(lease);
        }
        Fetch::Building(Waiting { key: key.clone(), _lease: lease })
    }

    fn redeem(&self, ticket: &Waiting) -> Option<Result<Arc<()>, ladle::engine::EngineError>> {
        let entry = self.entries.get(&ticket.key)?;
        (entry.ready <= self.now).then(|| Ok(entry.lease.clone()))
    }

    fn set_waker(&mut self, _: Arc<dyn Fn() + Send + Sync>) {}

    fn forward(&mut self, _: Option<&Arc<()>>, _: &Batch) -> Result<(), KernelError> {
        Ok(())
    }

    fn values<'a>(&self, _: &'a mut ()) -> &'a mut [f32] {
        &mut []
    }

    fn reset(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}
