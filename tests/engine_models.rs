//! Which mode the requests of `auto` run in: the decisions alone, with the prior of the cost model.

#[allow(dead_code)] // its other users need more of it
#[path = "support/hash_soup.rs"]
mod hash_soup;

use std::sync::Arc;

use hash_soup::{Controls, HashSoup};
use ladle::{
    config::MergeMode,
    engine::{
        Mode,
        backend::Backend,
        cost::{CostModel, Footprint, Machine, Pass},
        models::{Lanes, Models, Readiness, Wanted},
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
        let mut soup = HashSoup::new(Arc::new(controls));
        for n in 0..merged {
            while !matches!(soup.fetch(&key(n)), Fetch::Ready(_)) {
                std::thread::yield_now();
            }
        }
        let cost = CostModel::new(soup.facts().footprint, Machine::default());
        let models = Models::new(MergeMode::Auto, "soup".to_owned(), cost, None);
        Self { soup, models }
    }

    fn enter(&mut self, n: usize, repeatable: bool) -> Lanes {
        self.models.enter(&self.soup, wanted(&[n], repeatable), None)
    }
}

#[test]
fn a_lone_request_runs_fused_where_its_weights_are_and_many_share_a_mixed_pass() {
    let mut world = World::new(3);
    assert_eq!(world.enter(3, false).mode, Mode::Mixed, "not merged");
    let mut world = World::new(3);
    let alone = world.enter(0, false);
    assert_eq!(alone.mode, Mode::Fused);
    assert_eq!(world.enter(0, false).mode, Mode::Fused, "shares the pass of the first");
    for n in [1, 2] {
        assert_eq!(world.enter(n, false).mode, Mode::Mixed, "another pass would cost more");
    }
    assert_eq!(world.models.ready(&mut world.soup, &alone, &mut 0), Readiness::Ready);
}

#[test]
fn the_mode_of_a_repeatable_request_is_the_same_in_any_company_and_with_any_cache() {
    for merged in [0, 3] {
        for company in [0, 1, 20] {
            let mut world = World::new(merged);
            for n in 0..company {
                world.enter(n % 5, n % 2 == 0);
            }
            assert_eq!(world.enter(0, true).mode, Mode::Mixed, "{merged} merged, {company}");
        }
    }
}

#[test]
fn requests_submitted_together_run_in_one_mode_whatever_comes_between() {
    let mut world = World::new(1);
    let first = world.enter(0, false);
    assert_eq!(first.mode, Mode::Fused);
    (1..21).for_each(|n| drop(world.enter(n, true)));
    let World { soup, models } = &mut world;
    assert_eq!(models.enter(&*soup, wanted(&[0], false), None).mode, Mode::Mixed, "by cost");
    assert_eq!(models.enter(&*soup, wanted(&[0], false), Some(&first)).mode, Mode::Fused);
    assert_eq!(models.enter(&*soup, wanted(&[0], true), Some(&first)).mode, Mode::Mixed);
    assert_eq!(models.enter(&*soup, wanted(&[1], false), Some(&first)).mode, Mode::Mixed);
}

#[test]
fn lanes_that_have_left_count_no_more() {
    let mut world = World::new(1);
    let mut company: Vec<Lanes> = (1..21).map(|n| world.enter(n, n % 2 == 0)).collect();
    company.push(world.enter(0, false));
    assert_eq!(company[20].mode, Mode::Mixed);
    company.iter().for_each(|lanes| world.models.leave(lanes));
    assert!(world.models.is_empty());
    assert_eq!(world.enter(0, false).mode, Mode::Fused);
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
        assert_eq!(lanes.mode, Mode::Fused);
        assert_eq!(world.models.ready(&mut world.soup, &lanes, &mut 0), Readiness::Ready);
        world.models.release_unused([].iter());
        assert!(world.models.lease(&key(0)).is_some());
    }
    // Combined logits run fused only where every lane's model is pinned.
    let World { soup, models } = &mut world;
    assert_eq!(models.enter(&*soup, wanted(&[0, 1], true), None).mode, Mode::Mixed);
}
