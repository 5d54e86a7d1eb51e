//! The simulator on loads small enough for pencil and paper.

use simulate::{
    load::{Arrivals, Lengths, Load, Preferences, lru_sizes},
    machine::{Kind, Machine, Shape, Soup},
    policy::{Engine, Plugin, Policy, System},
    run::{Outcome, simulate},
};

/// 1 MB/s of memory, products for nothing, 1 s of host time a step.
fn machine() -> Machine {
    Machine {
        name: String::new(),
        bandwidth: 1e6,
        peak: 1e30,
        sustained: [1.0, 1.0],
        memory: 1e6,
        launch: 0.0,
        step: 1.0,
        row: 0.0,
        merge: 5e5,
        link: 1e5,
        host_bandwidth: 1e30,
        devices: 1.0,
        fabric: [1.0, 0.0],
        told: None,
    }
}

/// One block of width 10: 4·100 + 3·10·20 = 1000 weights, head and embedding 500 each; keys and
/// values 40 bytes a token; a rank-1 adapter 4·20 + 3·30 = 170 weights.
fn soup(kind: Kind) -> Soup {
    let shape = Shape {
        layers: 1.0,
        hidden: 10.0,
        inner: 20.0,
        heads: 1.0,
        kv_heads: 1.0,
        vocabulary: 50.0,
        tied: false,
    };
    Soup { name: String::new(), shape, backbones: 3.0, kind }
}

fn run(policy: Policy, kind: Kind, clients: usize, rounds: usize) -> Outcome {
    run_warm(policy, kind, clients, rounds, false)
}

fn run_warm(policy: Policy, kind: Kind, clients: usize, rounds: usize, warm_up: bool) -> Outcome {
    let engine = Engine {
        step_tokens: 64,
        prefill_chunk: 64,
        lanes: 8,
        max_waiting: 8,
        block_tokens: 16,
        kv_share: 0.5,
        max_adapters: 8,
        plugin: Plugin { slots: 8, cells: 231, seconds: 2.0, disk: 1e4 },
    };
    let fixed = |tokens: usize| Lengths { median: tokens as f64, sigma: 0.0, most: tokens };
    let load = Load {
        arrivals: Arrivals::Clients { clients, rounds, warm_up },
        preferences: Preferences::PerClient,
        prompt: fixed(100),
        output: fixed(3),
    };
    let (machine, soup) = (machine(), soup(kind));
    simulate(System { machine: &machine, soup: &soup, engine: &engine, policy }, load, 1)
}

fn near(got: f64, expected: f64) {
    assert!((got / expected - 1.0).abs() < 1e-9, "{got} instead of {expected}");
}

const LORA: Kind = Kind::Lora { rank: 1 };
/// Seconds to read the weights: merged (block and head), and with three adapters.
const MERGED: f64 = 3000e-6;
const MIXED: f64 = MERGED + 3.0 * 340e-6;
/// Seconds to read the keys and values of a token.
const KEY: f64 = 40e-6;

#[test]
fn one_request_takes_two_chunks_and_two_steps() {
    let outcome = run(Policy::OneMix, LORA, 1, 1);
    let step = |keys: f64| 1.0 + MIXED + KEY * keys;
    let first = step(64.0) + step(100.0);
    near(outcome.first_token_ms[0], first * 1e3);
    near(outcome.gap_ms[0], step(101.0) * 1e3);
    near(outcome.gap_ms[1], step(102.0) * 1e3);
    near(outcome.tokens_per_s, 3.0 / (first + step(101.0) + step(102.0)));
    near(outcome.lanes, 1.0);
}

#[test]
fn a_merge_delays_the_first_token_of_the_first_request_only() {
    let outcome = run(Policy::Fused, LORA, 1, 2);
    let first = 2.0 * (1.0 + MERGED) + KEY * 164.0;
    // Reads base, embedding and adapters, writes a model, at 0.5 MB/s.
    let merge = 2.0 * (2.0 * 4000e-6 + 3.0 * 340e-6);
    near(outcome.first_token_ms[0], first * 1e3);
    near(outcome.first_token_ms[1], (first + merge) * 1e3);
    assert_eq!((outcome.builds, outcome.hits, outcome.fused_rows), (1, Some(0.5), 1.0));
}

#[test]
fn a_warm_up_is_not_counted() {
    let outcome = run_warm(Policy::Fused, LORA, 2, 1, true);
    // 64 rows of the first, then 36 of it and 28 of the second, each mix its own pass.
    near(outcome.first_token_ms[0], (2.0 + 3.0 * MERGED + KEY * (64.0 + 100.0 + 28.0)) * 1e3);
    assert_eq!((outcome.builds, outcome.hits), (2, Some(1.0)));
}

#[test]
fn mixes_share_a_pass_or_wait_for_each_other() {
    let together = run(Policy::Auto, LORA, 2, 1);
    let apart = run(Policy::OneMix, LORA, 2, 1);
    let alone = 4.0 * (1.0 + MIXED) + KEY * (64.0 + 100.0 + 101.0 + 102.0);
    near(apart.tokens_per_s, 6.0 / (2.0 * alone));
    // Rows of the two in each step: 64; 36 + 28; 1 + 63; 1 + 9; 1; 1.
    let keys = 64.0 + (100.0 + 28.0) + (101.0 + 91.0) + (102.0 + 100.0) + 101.0 + 102.0;
    near(together.tokens_per_s, 6.0 / (6.0 * (1.0 + MIXED) + KEY * keys));
    assert_eq!((apart.distinct, together.distinct), ([1.0; 2], [1.0, 2.0]));
    assert_eq!(together.fused_rows, 0.0);
}

#[test]
fn full_checkpoints_are_read_once_per_mix_or_all_at_once() {
    let swapped = run(Policy::OneAdapter, Kind::Full, 1, 1);
    // The model comes over the link: 4000 bytes at 0.1 MB/s.
    near(swapped.first_token_ms[0], (0.04 + 2.0 * (1.0 + MERGED) + KEY * 164.0) * 1e3);
    let mixed = run(Policy::Auto, Kind::Full, 1, 1);
    near(mixed.first_token_ms[0], (2.0 * (1.0 + 4.0 * MERGED) + KEY * 164.0) * 1e3);
}

#[test]
fn a_mix_of_the_resolver_is_written_and_read_before_its_first_token() {
    let outcome = run(Policy::Plugin, LORA, 1, 2);
    // An adapter of rank 3 has 1020 bytes. Two are made at once.
    let first = 2.0 * (1.0 + MERGED + 1020e-6) + KEY * 164.0;
    let (read, moved) = (0.102, 0.0102);
    near(outcome.first_token_ms[0], first * 1e3);
    near(outcome.first_token_ms[1], (first + (2.0 + read) / 2.0 + read + moved) * 1e3);
    assert_eq!((outcome.builds, outcome.hits), (1, Some(0.5)));
    // As many clients as want, there are no more mixes than the grid has.
    let grid = Plugin { slots: 8, cells: 3, seconds: 0.0, disk: 1.0 };
    let mix = |weight: f64| ladle::preference::Coefficients {
        backbones: vec![weight, 0.0],
        sft: 1.0 - weight,
    };
    let cells: std::collections::BTreeSet<u64> =
        (0..100).map(|k| grid.on_grid(&mix(f64::from(k))).backbones[0] as u64).collect();
    assert_eq!(cells, [0, 1, 2].into());
}

#[test]
fn an_lru_cache_of_equally_likely_mixes_hits_by_its_share() {
    let lengths = Lengths { median: 1.0, sigma: 0.0, most: 1 };
    let load = Load {
        arrivals: Arrivals::Clients { clients: 1, rounds: 1, warm_up: false },
        preferences: Preferences::Zipf { n: 100, s: 0.0 },
        prompt: lengths,
        output: lengths,
    };
    let sizes = lru_sizes(load, 20_000, &[0.25, 0.5, 1.0], 3);
    let sizes: Vec<f64> = sizes.iter().map(|size| size.unwrap() as f64).collect();
    assert!((sizes[0] - 25.0).abs() <= 2.0 && (sizes[1] - 50.0).abs() <= 3.0, "{sizes:?}");
    assert_eq!(sizes[2], 100.0);
    let uniform = Load { preferences: Preferences::Uniform, ..load };
    assert_eq!(lru_sizes(uniform, 1000, &[0.5], 3), [None]);
}
