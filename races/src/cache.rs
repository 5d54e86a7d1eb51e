//! The cache of merged models: one build a key, never more models than the budget, no lease lost.

#[allow(dead_code)]
mod source {
    #[allow(dead_code)]
    pub mod event {
        include!(concat!(env!("OUT_DIR"), "/merge_cache_event.rs"));
    }
    include!(concat!(env!("OUT_DIR"), "/merge_cache.rs"));
}

/// What can go wrong, as far as the cache knows.
#[derive(Debug)]
#[allow(dead_code)]
pub enum MergeError {
    Budget { budget: usize, model: usize },
    Threads(String),
    Panicked(String),
    Closed,
    Planned,
    Memory,
}

impl MergeError {
    fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Memory)
    }
}

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use shuttle::thread;
use source::{Build, Cache, Fetch, Lease};

/// Models that live at once, at most.
const BUDGET: usize = 2;

/// Counts of what was built and of what lives. Plain, so that counting is no step of a schedule.
#[derive(Default)]
struct Counts {
    alive: AtomicUsize,
    most: AtomicUsize,
    builds: Mutex<Vec<u32>>,
}

struct Model {
    key: u32,
    counts: Arc<Counts>,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.counts.alive.fetch_sub(1, SeqCst);
    }
}

struct Builder {
    counts: Arc<Counts>,
    /// Builds of this key fail.
    fails: Option<u32>,
}

impl Build for Builder {
    type Key = u32;
    type Value = Model;

    fn bytes(&self) -> usize {
        1
    }

    fn build(&self, key: &u32) -> Result<Model, MergeError> {
        self.counts.builds.lock().unwrap().push(*key);
        if self.fails == Some(*key) {
            return Err(MergeError::Planned);
        }
        thread::yield_now();
        let alive = self.counts.alive.fetch_add(1, SeqCst) + 1;
        self.counts.most.fetch_max(alive, SeqCst);
        Ok(Model { key: *key, counts: self.counts.clone() })
    }
}

fn cache(fails: Option<u32>) -> (Arc<Cache<Builder>>, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let builder = Builder { counts: counts.clone(), fails };
    (Arc::new(Cache::new(builder, BUDGET, |_| ()).unwrap()), counts)
}

/// A lease on a model, waiting for it; `None` where there is no room.
fn lease(cache: &Cache<Builder>, key: u32) -> Option<Lease<Model>> {
    let lease = match cache.get(&key) {
        Fetch::Ready(lease) => lease,
        Fetch::Building(ticket) => ticket.wait().unwrap(),
        Fetch::NoRoom => return None,
    };
    assert_eq!(lease.key, key, "another model");
    Some(lease)
}

#[test]
fn requests_for_one_model_share_one_build() {
    crate::check(|| {
        let (cache, counts) = cache(None);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let cache = cache.clone();
                thread::spawn(move || lease(&cache, 7).expect("there is room"))
            })
            .collect();
        let leases: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(*counts.builds.lock().unwrap(), [7]);
        drop((leases, cache));
        assert_eq!(counts.alive.load(SeqCst), 0, "a model is still there");
    });
}

#[test]
fn models_keep_to_the_budget_whoever_holds_them() {
    crate::check(|| {
        let (cache, counts) = cache(None);
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let cache = cache.clone();
                thread::spawn(move || {
                    for key in [number, number + 1] {
                        let held = lease(&cache, key);
                        thread::yield_now();
                        assert!(held.is_none_or(|held| held.key == key));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(counts.most.load(SeqCst) <= BUDGET, "more models than fit");
        assert_eq!(cache.stats().leased, 0, "a lease is lost");
        cache.clear();
        assert_eq!((cache.stats().models, counts.alive.load(SeqCst)), (0, 0));
    });
}

#[test]
fn a_failed_build_reaches_all_who_wait_and_the_next_request_tries_anew() {
    crate::check(|| {
        let (cache, counts) = cache(Some(7));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let cache = cache.clone();
                thread::spawn(move || match cache.get(&7) {
                    Fetch::Building(ticket) => assert!(ticket.wait().is_err()),
                    Fetch::Ready(_) => panic!("there is no such model"),
                    Fetch::NoRoom => panic!("there is room"),
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let built = counts.builds.lock().unwrap().len();
        assert!((1..=2).contains(&built), "{built} builds");
        assert_eq!(cache.stats().models, 0, "a failure stays");
    });
}

#[test]
fn tickets_of_a_cache_that_is_closed_fail_and_its_thread_ends() {
    crate::check(|| {
        let (cache, _) = cache(None);
        let other = cache.clone();
        let thread = thread::spawn(move || match other.get(&1) {
            Fetch::Building(ticket) => drop(ticket.wait()),
            Fetch::Ready(_) | Fetch::NoRoom => panic!("nobody asked before"),
        });
        cache.close();
        thread.join().unwrap();
        drop(cache);
    });
}

#[test]
fn a_build_that_nobody_waits_for_any_more_leaves_its_place() {
    crate::check(|| {
        let (cache, counts) = cache(None);
        drop(cache.get(&1));
        drop(cache.get(&2));
        // Both may be in the making or given up; there is room for another in the end.
        let held = loop {
            match lease(&cache, 3) {
                Some(held) => break held,
                None => thread::yield_now(),
            }
        };
        assert!(counts.most.load(SeqCst) <= BUDGET);
        drop((held, cache));
    });
}
