//! The pool of compute threads.

#[allow(dead_code, unused_imports)]
mod source {
    include!(concat!(env!("OUT_DIR"), "/kernels_cpu_pool.rs"));
    pub fn team(threads: usize) -> Pool {
        Pool::new(threads)
    }
    pub fn run(pool: &Pool, chunks: usize, f: impl Fn(usize) + Sync) {
        pool.run(chunks, f);
    }
}

use std::sync::Arc;

use shuttle::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use source::{run, team};

/// Runs a region of `chunks` and checks that each was called once before it returned.
fn region(pool: &source::Pool, chunks: usize) {
    let counts: Vec<_> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
    run(pool, chunks, |chunk| {
        counts[chunk].fetch_add(1, SeqCst);
    });
    assert!(counts.iter().all(|count| count.load(SeqCst) == 1), "a chunk is lost or doubled");
}

#[test]
fn every_chunk_of_every_region_runs_once() {
    crate::check(|| {
        let pool = team(3);
        for chunks in [3, 1, 4, 2] {
            region(&pool, chunks);
        }
    });
}

#[test]
fn workers_that_sleep_wake() {
    crate::check(|| {
        let pool = team(2);
        for _ in 0..3 {
            // Each chunk waits for the other one, so both threads are needed.
            let meeting = Barrier::new(2);
            run(&pool, 2, |_| {
                meeting.wait();
            });
        }
    });
}

#[test]
fn regions_of_two_threads_do_not_mix() {
    crate::check(|| {
        let pool = Arc::new(team(2));
        let other = pool.clone();
        let thread = thread::spawn(move || region(&other, 3));
        region(&pool, 3);
        thread.join().unwrap();
    });
}

#[test]
fn a_pool_that_is_dropped_ends_its_threads() {
    // A worker that misses the end would wait forever, which is a deadlock to shuttle.
    crate::check(|| {
        region(&team(3), 2);
        drop(team(2));
    });
}
