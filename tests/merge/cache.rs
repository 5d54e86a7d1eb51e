//! The cache of merged models: invariants under load, single flight, leases, failures.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use ladle::{
    kernels::Dtype,
    merge::{
        Build, Cache, CacheEvent, Fetch, FusedCache, FusedOptions, MergeError, Merger, SoupPlan,
    },
    preference::{Coefficients, ModelKey},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::soups::{self, Kind};

const BYTES: usize = 100;

/// Models that count themselves while they live.
#[derive(Default)]
struct World {
    alive: Mutex<HashSet<u32>>,
    most: AtomicUsize,
    built: AtomicUsize,
}

struct Model {
    key: u32,
    world: Arc<World>,
}

impl Drop for Model {
    fn drop(&mut self) {
        self.world.alive.lock().unwrap().remove(&self.key);
    }
}

type Script = dyn Fn(u32) -> Result<(), MergeError> + Send + Sync;

struct Builder {
    world: Arc<World>,
    /// What a build does before it makes its model.
    script: Box<Script>,
}

impl Build for Builder {
    type Key = u32;
    type Value = Model;

    fn bytes(&self) -> usize {
        BYTES
    }

    fn build(&self, key: &u32) -> Result<Model, MergeError> {
        (self.script)(*key)?;
        let mut alive = self.world.alive.lock().unwrap();
        assert!(alive.insert(*key), "{key} was built while it was alive");
        self.world.most.fetch_max(alive.len(), Ordering::Relaxed);
        self.world.built.fetch_add(1, Ordering::Relaxed);
        Ok(Model { key: *key, world: self.world.clone() })
    }
}

fn cache(
    models: usize,
    script: impl Fn(u32) -> Result<(), MergeError> + Send + Sync + 'static,
) -> (Cache<Builder>, Arc<World>) {
    let world = Arc::new(World::default());
    let builder = Builder { world: world.clone(), script: Box::new(script) };
    (Cache::new(builder, models * BYTES + BYTES / 2, |_| ()).unwrap(), world)
}

fn take(cache: &Cache<Builder>, key: u32) -> ladle::merge::Lease<Model> {
    match cache.get(&key) {
        Fetch::Ready(lease) => lease,
        Fetch::Building(ticket) => ticket.wait().unwrap(),
        Fetch::NoRoom => panic!("no room for {key}"),
    }
}

#[test]
fn many_threads_with_random_keys_never_pass_the_budget_nor_lose_a_lease() {
    let (cache, world) = cache(3, |key| {
        if key.is_multiple_of(3) {
            std::thread::yield_now();
        }
        if key == 7 { Err(MergeError::Missing { tensor: "seven".into() }) } else { Ok(()) }
    });
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (cache, served, world) = (&cache, &served, &world);
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(thread);
                let mut held = Vec::new();
                for _ in 0..1500 {
                    let key = rng.random_range(0..10);
                    match cache.get(&key) {
                        Fetch::Ready(lease) => held.push((key, lease)),
                        Fetch::Building(ticket) if rng.random_bool(0.8) => match ticket.wait() {
                            Ok(lease) => held.push((key, lease)),
                            Err(error) => {
                                assert_eq!(key, 7);
                                assert!(error.to_string().contains("seven"));
                            }
                        },
                        Fetch::Building(_) | Fetch::NoRoom => {}
                    }
                    for (key, lease) in &held {
                        assert_eq!(lease.key, *key);
                        assert!(world.alive.lock().unwrap().contains(key), "{key} was evicted");
                    }
                    let stats = cache.stats();
                    assert!(stats.bytes <= stats.budget && stats.models <= 3, "{stats:?}");
                    if held.len() > 1 || rng.random_bool(0.5) {
                        served.fetch_add(held.len(), Ordering::Relaxed);
                        held.clear();
                    }
                }
            });
        }
    });
    assert!(served.into_inner() > 100);
    assert!(world.most.load(Ordering::Relaxed) <= 3);
    // Whatever is still queued was abandoned or ends soon; then nothing is held.
    while cache.stats().leased > 0 {
        std::thread::yield_now();
    }
    cache.clear();
    assert_eq!(cache.stats().models, 0);
    assert!(world.alive.lock().unwrap().is_empty());
    let stats = cache.stats();
    assert_eq!(stats.misses, stats.builds + stats.failures + stats.abandoned);
    assert_eq!(stats.builds, stats.evictions);
    assert_eq!(stats.builds as usize, world.built.load(Ordering::Relaxed));
}

#[test]
fn one_build_serves_all_who_ask_meanwhile() {
    let (start, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (cache, world) = cache(2, move |_| {
        gate.lock().unwrap().recv().unwrap();
        Ok(())
    });
    let tickets: Vec<_> = (0..40)
        .map(|_| match cache.get(&5) {
            Fetch::Building(ticket) => ticket,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(tickets[0].poll().is_none());
    start.send(()).unwrap();
    std::thread::scope(|scope| {
        for ticket in &tickets {
            scope.spawn(|| assert_eq!(ticket.wait().unwrap().key, 5));
        }
    });
    assert_eq!(world.built.load(Ordering::Relaxed), 1);
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.joined, stats.hits), (1, 39, 0));
}

#[test]
fn a_build_does_not_hold_up_what_is_there() {
    let (start, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (cache, _) = cache(2, move |key| {
        if key == 2 {
            gate.lock().unwrap().recv().unwrap();
        }
        Ok(())
    });
    drop(take(&cache, 1));
    let Fetch::Building(slow) = cache.get(&2) else { panic!("2 is new") };
    for _ in 0..100 {
        let Fetch::Ready(lease) = cache.get(&1) else { panic!("1 is there") };
        assert_eq!(lease.key, 1);
    }
    assert!(slow.poll().is_none());
    start.send(()).unwrap();
    assert_eq!(slow.wait().unwrap().key, 2);
}

#[test]
fn a_failure_reaches_all_who_wait_and_the_next_request_tries_anew() {
    let (start, gate) = mpsc::channel::<&'static str>();
    let gate = Mutex::new(gate);
    let (cache, _) = cache(1, move |_| {
        let script = gate.lock().unwrap().recv().unwrap();
        match script {
            "fail" => Err(MergeError::Missing { tensor: "x".into() }),
            "panic" => panic!("on purpose"),
            _ => Ok(()),
        }
    });
    for (script, message) in
        [("fail", "the merged model has no tensor x"), ("panic", "merging panicked: on purpose")]
    {
        let Fetch::Building(first) = cache.get(&1) else { panic!() };
        let Fetch::Building(second) = cache.get(&1) else { panic!() };
        start.send(script).unwrap();
        assert_eq!(first.wait().unwrap_err().to_string(), message);
        assert_eq!(second.wait().unwrap_err().to_string(), message);
        assert_eq!(cache.stats().models, 0);
    }
    start.send("ok").unwrap();
    assert_eq!(take(&cache, 1).key, 1);
}

#[test]
fn leased_models_stay_and_a_full_budget_has_no_room_until_one_is_given_back() {
    let (cache, world) = cache(2, |_| Ok(()));
    let one = take(&cache, 1);
    let two = take(&cache, 2);
    assert!(matches!(cache.get(&3), Fetch::NoRoom));
    assert_eq!(cache.clear(), 0);
    assert_eq!((one.key, two.key, cache.stats().bytes), (1, 2, 2 * BYTES));
    drop(one);
    let three = take(&cache, 3);
    assert_eq!(*world.alive.lock().unwrap(), HashSet::from([2, 3]));
    assert_eq!(three.key, 3);
}

#[test]
fn what_was_asked_for_longest_ago_goes_first() {
    let (cache, world) = cache(3, |_| Ok(()));
    for key in [1, 2, 3, 1, 4, 1, 5] {
        drop(take(&cache, key));
    }
    assert_eq!(*world.alive.lock().unwrap(), HashSet::from([4, 1, 5]));
    assert!(cache.contains(&1) && !cache.contains(&2));
}

#[test]
fn builds_that_nobody_waits_for_are_skipped() {
    let (start, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (cache, world) = cache(3, move |_| {
        gate.lock().unwrap().recv().unwrap();
        Ok(())
    });
    let Fetch::Building(first) = cache.get(&1) else { panic!() };
    drop(cache.get(&2));
    let Fetch::Building(third) = cache.get(&3) else { panic!() };
    start.send(()).unwrap();
    start.send(()).unwrap();
    first.wait().unwrap();
    third.wait().unwrap();
    assert_eq!(*world.alive.lock().unwrap(), HashSet::from([1, 3]));
    assert_eq!(cache.stats().abandoned, 1);
}

#[test]
fn events_are_reported_as_they_are_counted() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let builder = Builder { world: Arc::default(), script: Box::new(|_| Ok(())) };
    let cache = Cache::new(builder, BYTES, move |event| sink.lock().unwrap().push(event)).unwrap();
    for key in [1, 1, 2] {
        drop(take(&cache, key));
    }
    drop(cache);
    let seen = std::mem::take(&mut *events.lock().unwrap());
    let count = |f: &dyn Fn(&CacheEvent) -> bool| seen.iter().filter(|event| f(event)).count();
    assert_eq!(count(&|e| *e == CacheEvent::Miss), 2);
    assert_eq!(count(&|e| *e == CacheEvent::Hit), 1);
    // One made room, and one went with the cache.
    assert_eq!(count(&|e| matches!(e, CacheEvent::Evicted { bytes: BYTES })), 2);
    let built = |e: &CacheEvent| matches!(e, CacheEvent::Built { bytes: BYTES, .. });
    assert_eq!(count(&built), 2);
}

#[test]
fn closing_the_cache_fails_what_was_still_queued() {
    let (start, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (cache, _) = cache(2, move |_| {
        let _ = gate.lock().unwrap().recv();
        Ok(())
    });
    let Fetch::Building(_first) = cache.get(&1) else { panic!() };
    let Fetch::Building(second) = cache.get(&2) else { panic!() };
    cache.close();
    drop(start);
    assert!(matches!(*second.wait().unwrap_err(), MergeError::Closed));
}

#[test]
fn a_budget_below_one_model_is_refused_with_both_numbers() {
    let builder = Builder { world: Arc::default(), script: Box::new(|_| Ok(())) };
    let error = Cache::new(builder, BYTES - 1, |_| ()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the budget for merged weights is 99 bytes, expected at least 100 (one merged model)"
    );
}

#[test]
fn merged_models_come_back_with_the_right_weights_through_recycled_slabs() {
    let kinds = [Kind::Full, Kind::Adapter];
    let soup = soups::soup(4, soups::config(40, 24, 90, true), Dtype::Bf16, None, &kinds);
    let plan = SoupPlan::new(&soup, &soup.config).unwrap();
    let merger = Merger::new(plan.clone(), None).unwrap();
    let budget = 2 * merger.layout().bytes();
    let options = FusedOptions { budget, dtype: None, threads: 2, pace: None };
    let cache = FusedCache::open(plan, soup.config.clone(), &options, |_| ()).unwrap();
    for round in 0..6 {
        let first = f64::from(round % 4) * 0.25;
        let c = Coefficients { backbones: vec![first, 1.0 - first], sft: 0.0 };
        let model = match cache.get(&ModelKey::of(&c)) {
            Fetch::Ready(model) => model,
            Fetch::Building(ticket) => ticket.wait().unwrap(),
            Fetch::NoRoom => panic!("nothing is leased"),
        };
        assert_eq!(model.decoder().config(), &soup.config);
        for (name, _) in soup.config.tensors() {
            let alone = merger.tensor(&name, &c).unwrap();
            assert_eq!(model.tensor(&name).unwrap().bytes(), alone.bytes(), "{name}");
        }
    }
    let stats = cache.stats();
    assert_eq!((stats.models, stats.leased, stats.builds, stats.evictions), (2, 0, 6, 4));
}

/// Coefficients that carry a weight past the largest of its storage type give an error, never
/// infinities, and the slab serves the next model.
#[test]
fn a_model_beyond_the_range_of_its_storage_type_is_an_error_of_whoever_asks() {
    let mut soup = soups::soup(4, soups::config(40, 24, 90, true), Dtype::F16, None, &[Kind::Full]);
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut values = soup.base[name].to_f32();
    values[7] = 40_000.0;
    let shape = soup.base[name].shape().to_vec();
    soup.base.insert(name.into(), soups::stored(&values, &shape, Dtype::F16));
    let plan = SoupPlan::new(&soup, &soup.config).unwrap();
    let budget = Merger::new(plan.clone(), None).unwrap().layout().bytes();
    let options = FusedOptions { budget, dtype: None, threads: 2, pace: None };
    let cache = FusedCache::open(plan, soup.config.clone(), &options, |_| ()).unwrap();
    let get = |backbone: f64| {
        let c = Coefficients { backbones: vec![backbone], sft: 1.0 - backbone };
        match cache.get(&ModelKey::of(&c)) {
            Fetch::Ready(model) => Ok(model),
            Fetch::Building(ticket) => ticket.wait(),
            Fetch::NoRoom => panic!("nothing is leased"),
        }
    };
    let error = get(-1.0).err().unwrap().to_string();
    assert!(error.contains(name) && error.contains("element 7 leaves the range of f16"), "{error}");
    let model = get(0.5).unwrap();
    assert!(model.tensor(name).unwrap().to_f32().iter().all(|value| value.is_finite()));
}
