//! The pool of compute threads, the cache of merged models and the places of the queue, as the server
//! has them, under every order of their threads that shuttle tries.
//!
//! Shuttle takes all atomic operations for sequentially consistent: an order that is too weak for the
//! hardware is not found here.
#![cfg(test)]

mod cache;
mod places;
mod pool;
mod standard;

/// Runs `body` under schedules drawn at random, and under some with few preemptions at the places that
/// matter. `SCHEDULES` in the environment says how many of each.
fn check(body: impl Fn() + Send + Sync + Copy + 'static) {
    let schedules = std::env::var("SCHEDULES").map_or(2_000, |n| n.parse().expect("a number"));
    shuttle::check_random(body, schedules);
    shuttle::check_pct(body, schedules, 3);
}

/// What the sources under test use of the rest of the server.
mod telemetry {
    use std::any::Any;

    pub fn panic_text(_: &(dyn Any + Send)) -> &str {
        "a panic"
    }
}
