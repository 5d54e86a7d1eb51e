//! The engine's decisions against a reference: requests of all kinds, clients that leave, merges that
//! end late or fail, passes that are refused, memory that is lost. After each event the books are
//! checked, and every row that is attended to is compared with what its request alone would have.
//!
//! A failure prints the fewest events that still show it. A million events:
//!
//! ```sh
//! cargo test --release --test simulation -- --ignored --nocapture
//! ```
//!
//! `SEED=7` in the environment draws other events.

mod events;
mod soup;
mod world;

use std::cell::RefCell;

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

use events::{event, settings};
use world::{KINDS, Totals, World};

/// Events of one history, on average.
const EVENTS: usize = 500;

/// Simulates `histories` of about [`EVENTS`] events each.
fn simulate(histories: u32) {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("SEED={seed}, {histories} histories of about {EVENTS} events");
    let (rng_seed, failure_persistence) = (RngSeed::Fixed(seed), None);
    let config =
        ProptestConfig { cases: histories, rng_seed, failure_persistence, ..Default::default() };
    let totals = RefCell::new(Totals::default());
    let history = (settings(), prop::collection::vec(event(), 1..2 * EVENTS));
    let outcome = TestRunner::new(config).run(&history, |(settings, events)| {
        let mut world = World::new(&settings);
        events.iter().for_each(|event| world.apply(event));
        world.drain();
        for (what, times) in world.totals {
            *totals.borrow_mut().entry(what).or_default() += times;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("SEED={seed}: {error}");
    }
    let totals = totals.into_inner();
    println!("{totals:#?}");
    let missing = KINDS.iter().find(|what| !totals.contains_key(*what));
    assert_eq!(missing, None, "this never happened");
}

#[test]
fn random_histories_agree_with_the_reference() {
    simulate(16);
}

#[test]
#[ignore = "a million events; see the head of this file"]
fn a_million_events_agree_with_the_reference() {
    simulate(1_100_000 / EVENTS as u32);
}
