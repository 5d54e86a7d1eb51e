//! A fixed team of threads for regions of a few microseconds: a forward pass of a small model has
//! hundreds of them, and waking sleeping threads for each would cost more than the work. Workers
//! spin for a short while after a region and sleep when nothing follows.

use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::JoinHandle,
};

/// Iterations of the spin loop before a worker sleeps: about 100 µs, longer than the serial stretches
/// inside a forward pass and shorter than the wait for a next request.
const SPINS: u32 = 4_000;

/// Low half of the state: chunks not yet claimed. High half: number of the region.
const REMAINING: u64 = u32::MAX as u64;

/// The place of chunk `index` of `chunks`, so that each of `threads` that take chunks in turn goes
/// along a stretch of its own: what it prefetches past the end of a chunk is its next one.
pub(super) fn in_streams(index: usize, chunks: usize, threads: usize) -> usize {
    let (stream, place) = (index % threads, index / threads);
    stream * (chunks / threads) + stream.min(chunks % threads) + place
}

/// A region in progress: `call(data, chunk)` for each chunk.
#[derive(Clone, Copy)]
struct Region {
    call: unsafe fn(*const (), usize),
    data: *const (),
    chunks: usize,
}

struct Team {
    /// Region number and unclaimed chunks in one word, so that a claim proves which region it is of.
    state: AtomicU64,
    /// Written by the leader while no chunk is claimed or unclaimed; read only after a claim.
    region: UnsafeCell<Region>,
    /// Chunks of the region that have not returned.
    pending: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `region` is written only while every chunk has returned and read only between a claim and
// the return of the claimed chunk; its pointer is to a closure that is Sync.
unsafe impl Sync for Team {}
// SAFETY: as above.
unsafe impl Send for Team {}

impl Team {
    /// Claims and runs chunks until none is left unclaimed.
    fn work(&self) {
        let mut state = self.state.load(Acquire);
        while state & REMAINING != 0 {
            if let Err(now) = self.state.compare_exchange_weak(state, state - 1, AcqRel, Acquire) {
                state = now;
                continue;
            }
            // SAFETY: the claim succeeded, so the region lives until its chunk is counted below.
            let Region { call, data, chunks } = unsafe { *self.region.get() };
            let chunk = chunks - (state & REMAINING) as usize;
            // SAFETY: `data` is the closure that `call` was made for, alive as said above.
            let result = catch_unwind(AssertUnwindSafe(|| unsafe { call(data, chunk) }));
            if result.is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.pending.fetch_sub(1, AcqRel);
            state = self.state.load(Acquire);
        }
    }

    fn worker(&self) {
        let mut spins = 0;
        while !self.stop.load(Relaxed) {
            if self.state.load(Acquire) & REMAINING != 0 {
                self.work();
                spins = 0;
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.sleep();
                spins = 0;
            }
        }
    }

    fn sleep(&self) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Announce first, look second; the leader publishes first, looks for sleepers second: with
        // sequential consistency at least one of the two sees the other.
        self.sleepers.fetch_add(1, SeqCst);
        while self.state.load(SeqCst) & REMAINING == 0 && !self.stop.load(SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }
}

/// The team. The thread that calls [`Pool::run`] is one of its members.
pub(super) struct Pool {
    shared: Arc<Team>,
    leader: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A team of `threads`, the caller included; fewer if the system refuses threads.
    pub(super) fn new(threads: usize) -> Self {
        unsafe fn nothing(_: *const (), _: usize) {}
        let shared = Arc::new(Team {
            state: AtomicU64::new(0),
            region: UnsafeCell::new(Region { call: nothing, data: std::ptr::null(), chunks: 0 }),
            pending: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("ladle-cpu-{index}"));
                builder.spawn(move || shared.worker()).ok()
            })
            .collect();
        Self { shared, leader: Mutex::new(()), workers }
    }

    /// Members of the team.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` once for every chunk in `0..chunks`, on any threads, and returns when all are
    /// done. A region inside a region, or beside one of another thread, runs on its caller alone.
    pub(super) fn run<F: Fn(usize) + Sync>(&self, chunks: usize, f: F) {
        unsafe fn call<F: Fn(usize)>(data: *const (), chunk: usize) {
            // SAFETY: `data` is the `&F` below, which outlives the region.
            unsafe { (*data.cast::<F>())(chunk) }
        }
        let alone = self.workers.is_empty() || chunks <= 1 || chunks as u64 > REMAINING;
        let Some(leader) = (!alone).then(|| self.leader.try_lock().ok()).flatten() else {
            return (0..chunks).for_each(f);
        };
        let shared = &*self.shared;
        // SAFETY: the last region's chunks have all returned and we hold the leader's lock.
        unsafe {
            *shared.region.get() =
                Region { call: call::<F>, data: std::ptr::from_ref(&f).cast(), chunks };
        }
        shared.pending.store(chunks, Relaxed);
        let number = (shared.state.load(Relaxed) >> 32).wrapping_add(1);
        shared.state.store(number << 32 | chunks as u64, SeqCst);
        shared.wake_sleepers();
        shared.work();
        let mut turns = 0u32;
        while shared.pending.load(Acquire) != 0 {
            // Others may need this core to finish their chunk.
            turns += 1;
            if turns.is_multiple_of(4096) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        let panicked = shared.panicked.swap(false, Relaxed);
        // Before a panic, which would poison the lock for all later regions.
        drop(leader);
        if panicked {
            panic!("a kernel panicked on a worker thread");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        {
            let _guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_exactly_once_over_many_regions() {
        let pool = Pool::new(4);
        for chunks in [0, 1, 2, 3, 7, 64, 1000] {
            for _ in 0..50 {
                let counts: Vec<_> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, |chunk| {
                    counts[chunk].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
            }
        }
    }

    #[test]
    fn chunks_in_streams_are_each_taken_once() {
        for (chunks, threads) in [(1, 1), (1, 4), (7, 1), (7, 2), (8, 3), (3, 5), (100, 7)] {
            let mut places: Vec<_> =
                (0..chunks).map(|index| in_streams(index, chunks, threads)).collect();
            let next = places.iter().zip(&places[threads.min(chunks)..]);
            assert!(next.into_iter().all(|(place, next)| place + 1 == *next));
            places.sort_unstable();
            assert!(places.into_iter().eq(0..chunks));
        }
    }

    #[test]
    fn a_region_inside_a_region_runs_on_its_caller() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        pool.run(8, |_| {
            pool.run(8, |_| {
                total.fetch_add(1, Relaxed);
            })
        });
        assert_eq!(total.load(Relaxed), 64);
    }

    #[test]
    fn sleeping_workers_wake_for_the_next_region() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            while pool.shared.sleepers.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            let meeting = std::sync::Barrier::new(2);
            pool.run(2, |_| {
                meeting.wait();
            });
        }
    }

    #[test]
    fn a_panic_in_a_chunk_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(16, |chunk| assert_ne!(chunk, 5));
        }));
        assert!(result.is_err());
        // Two chunks that wait for each other: the team still has both its members.
        let meeting = std::sync::Barrier::new(2);
        pool.run(2, |_| {
            meeting.wait();
        });
    }
}
