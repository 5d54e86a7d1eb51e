//! Which mode the requests of `auto` run in: the decisions alone, with the prior of the cost model.

#[allow(dead_code)] // its other users need more of it
#[path = "support/hash_soup.rs"]
mod hash_soup;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hash_soup::{Controls, HashSoup};
use ladle::{
    config::MergeMode,
    engine::{
        Mode,
        backend::Backend,
        cost::{CostModel, Footprint, Machine, Pass},
        models::{Lanes, Models, Readiness, StepModel, Wanted},
    },
    merge::Fetch,
    preference::{Coefficients, ModelKey},
};

/// A LoRA soup of 135 M parameters in bf16 with three rank-16 adapters: a mixed pass costs a little
/// more than a fused one, and is shared by all.
const LORA: Footprint = Footprint {
    fused: Pass { bytes: 270e6, flops_per_row: 270e6 },
    mixed: Pass { bytes: 285e6, flops_per_row: 285e6 },
    merge_bytes: 555e6,
    merge_flops: 13e9,
};

fn key(n: usize) -> ModelKey {
    ModelKey::of(&Coefficients { backbones: vec![0.5 + n as f64 * 1e-3, 0.25, 0.0], sft: 0.25 })
}

struct World {
    controls: Arc<Controls>,
    soup: HashSoup,
    models: Models<HashSoup>,
}

fn wanted(models: &[usize], repeatable: bool) -> Wanted {
    Wanted { keys: models.iter().map(|&n| key(n)).collect(), from: 0, repeatable, owner: None }
}

impl World {
    /// Models `0..merged` are in the cache.
    fn new(merged: usize) -> Self {
        let controls = Controls { footprint: LORA, merged_models: 8, ..Controls::default() };
        let controls = Arc::new(controls);
        let mut soup = HashSoup::new(controls.clone());
        for n in 0..merged {
            while !matches!(soup.fetch(&key(n)), Fetch::Ready(_)) {
                std::thread::yield_now();
            }
        }
        let cost = CostModel::new(soup.facts().footprint, Machine::default());
        let models = Models::new(MergeMode::Auto, "soup".to_owned(), cost, None);
        Self { controls, soup, models }
    }

    fn enter(&mut self, n: usize, repeatable: bool) -> Lanes {
        self.models.enter(&self.soup, wanted(&[n], repeatable))
    }

    /// The modes of requests in a step to which each brings a row.
    fn step(&mut self, running: &[Lanes]) -> Vec<Mode> {
        let (mut free, mut mixed) = (BTreeMap::<ModelKey, usize>::new(), 0);
        for lanes in running {
            match lanes.fixed {
                None => {
                    lanes.keys.iter().for_each(|key| *free.entry(key.clone()).or_default() += 1)
                }
                Some(Mode::Mixed) => mixed += lanes.keys.len(),
                Some(Mode::Fused) => {}
            }
        }
        self.models.decide(&mut self.soup, &free, mixed);
        running.iter().map(|lanes| self.models.mode_of_all(lanes)).collect()
    }
}

#[test]
fn a_lone_request_runs_fused_where_its_weights_are_and_many_share_a_mixed_pass() {
    let mut world = World::new(3);
    let unmerged = world.enter(3, false);
    assert_eq!(world.step(&[unmerged]), [Mode::Mixed], "not merged");
    let mut world = World::new(3);
    let mut running = vec![world.enter(0, false)];
    assert_eq!(world.step(&running), [Mode::Fused]);
    assert!(world.models.lease(&key(0)).is_some());
    running.push(world.enter(0, false));
    assert_eq!(world.step(&running), [Mode::Fused; 2], "one pass");
    running.extend([1, 2].map(|n| world.enter(n, false)));
    assert_eq!(world.step(&running), [Mode::Mixed; 4], "one pass instead of three");
    world.models.release_unused(running.iter());
    assert!(world.models.lease(&key(0)).is_none());
}

#[test]
fn a_free_request_changes_its_mode_as_its_company_and_the_cache_do() {
    let mut world = World::new(1);
    let mut running = vec![world.enter(0, false)];
    assert_eq!(world.step(&running), [Mode::Fused]);
    running.extend((1..21).map(|n| world.enter(n, n % 2 == 0)));
    assert_eq!(world.step(&running), [Mode::Mixed; 21], "one pass for all");
    running.drain(1..).for_each(|lanes| world.models.leave(&lanes));
    assert_eq!(world.step(&running), [Mode::Fused]);
    world.models.leave(&running[0]);
    assert!(world.models.is_empty());
    // Merged while it runs.
    let mut running = vec![world.enter(5, false)];
    assert_eq!(world.step(&running), [Mode::Mixed]);
    while !matches!(world.soup.fetch(&key(5)), Fetch::Ready(_)) {
        std::thread::yield_now();
    }
    assert_eq!(world.step(&running), [Mode::Fused]);
    running.push(world.enter(5, true));
    assert_eq!(running[1].fixed, Some(Mode::Mixed), "it can be repeated");
}

#[test]
fn the_mode_of_a_repeatable_request_is_the_same_in_any_company_and_with_any_cache() {
    for merged in [0, 3] {
        for company in [0, 1, 20] {
            let mut world = World::new(merged);
            let mut running: Vec<Lanes> =
                (0..company).map(|n| world.enter(n % 5, n % 2 == 0)).collect();
            running.push(world.enter(0, true));
            let modes = world.step(&running);
            assert_eq!(modes[company], Mode::Mixed, "{merged} merged, {company}");
        }
    }
}

#[test]
fn a_pinned_model_runs_fused_for_everybody() {
    let mut world = World::new(1);
    let Fetch::Ready(lease) = world.soup.fetch(&key(0)) else { panic!("it is merged") };
    world.models.pin(key(0), lease);
    for n in 1..21 {
        world.enter(n, n % 2 == 0);
    }
    for repeatable in [true, false] {
        let lanes = world.enter(0, repeatable);
        assert_eq!(lanes.fixed, Some(Mode::Fused));
        assert_eq!(world.models.ready(&mut world.soup, &lanes, &mut 0), Readiness::Ready);
        world.models.release_unused([].iter());
        assert!(world.models.lease(&key(0)).is_some());
    }
    // Combined logits run fused only where every lane's model is pinned.
    let World { soup, models, .. } = &mut world;
    assert_eq!(models.enter(&*soup, wanted(&[0, 1], true)).fixed, Some(Mode::Mixed));
}

#[test]
fn requests_wait_for_a_merge_as_far_as_they_outnumber_the_others() {
    let mut world = World::new(0);
    world.controls.merging.hold_after(0);
    let hot: Vec<Lanes> = (0..5).map(|_| world.enter(0, false)).collect();
    assert_eq!(world.models.waiting(), 0);
    let step = [StepModel { key: key(0), mode: Mode::Mixed, rows: 5, free: 5 }];
    for _ in 0..10_000 {
        world.models.promote(&mut world.soup, &step, Duration::ZERO);
    }
    assert_eq!(world.models.waiting(), 5);
    // Repeatable requests stay mixed.
    let repeatable = world.enter(0, true);
    assert_eq!(world.models.waiting(), 4);
    world.models.leave(&repeatable);
    let others: Vec<Lanes> = (1..9).map(|n| world.enter(n, false)).collect();
    assert_eq!(world.models.waiting(), 0);
    others[4..].iter().for_each(|lanes| world.models.leave(lanes));
    assert_eq!(world.models.waiting(), 1);
    world.models.leave(&hot[0]);
    assert_eq!(world.models.waiting(), 0);
    others[..4].iter().for_each(|lanes| world.models.leave(lanes));
    assert_eq!(world.models.waiting(), 4);
    world.controls.merging.open();
    while world.models.building(&world.soup) > 0 {
        std::thread::yield_now();
    }
    assert_eq!(world.models.waiting(), 0);
}
