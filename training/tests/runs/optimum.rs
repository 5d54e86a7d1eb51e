//! Training reaches optima that are known.

use super::*;

/// Reward of objective `name` in the last steps of backbone `backbone`.
fn reached(run: &Path, backbone: &str, name: &str) -> f64 {
    let steps = recorded(run, backbone, &format!("reward/{name}"));
    steps[steps.len() - 5..].iter().sum::<f64>() / 5.0
}

/// A bandit in language: a response earns 1 by its first token alone, so the optimum of each
/// backbone (B = I) is to say it always.
fn reaches_the_optimum(algorithm: &str, seed: u64) {
    reaches_the_optimum_on(&base(), "rank = 4, alpha = 8.0", 1.0, algorithm, seed);
}

/// The same on another base, with adapters of the given settings and at another temperature.
pub fn reaches_the_optimum_on(
    base: &Path,
    lora: &str,
    temperature: f64,
    algorithm: &str,
    seed: u64,
) {
    let kl = if algorithm == "modpo" { 0.1 } else { 0.0 };
    let own = if algorithm == "ppo" { "minibatch = 32, epochs = 2, kl_stop = 1e9, " } else { "" };
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        r#"
seed = {seed}
lora = {{ {lora} }}
rollout = {{ max_new_tokens = 1, slots = 32, samples = 4, temperature = {temperature:?} }}
rl = {{ algorithm = "{algorithm}", steps = 40, batch = 32, {own}learning_rate = 2e-2, kl = {kl}, kl_target = 0.0, standardise_on = 64, checkpoint_every = 100 }}
mixing = {{ identity = true }}
[[objectives]]
name = "vowels"
reward = {{ kind = "regex", pattern = "^ ?[aeiou]" }}
[[objectives]]
name = "others"
reward = {{ kind = "regex", pattern = "^ ?[b-df-hj-np-tv-z]" }}
"#
    );
    let config = task_on(base, directory.path(), &settings);
    let run = directory.path().join("run");
    succeed(start(&config, &run).env("RAYON_NUM_THREADS", "1"));
    for name in ["vowels", "others"] {
        let reward = reached(&run, name, name);
        assert!(reward > 0.9, "{algorithm}, seed {seed}, {name}: {reward}");
    }
    if algorithm == "rloo" && seed == 1 && base == super::base() {
        soups_reach_the_optimum(directory.path(), &run);
    }
}

/// Rewarded Soup and MOD on these backbones. A response earns one reward or the other, so the optimum
/// of a preference is always that of its larger weight.
fn soups_reach_the_optimum(directory: &Path, run: &Path) {
    let out = directory.join("evaluation");
    let mut command = command();
    command.arg("evaluate").arg(run).arg("--out").arg(&out).arg("--data").arg(directory);
    command.args(["--methods", "rewarded,mod", "--preferences", "1,0;0.9,0.1;0.1,0.9;0,1"]);
    succeed(command.env("RAYON_NUM_THREADS", "1"));
    let front: Value = serde_json::from_slice(&fs::read(out.join("front.json")).unwrap()).unwrap();
    let methods = front["methods"].as_array().unwrap();
    assert_eq!([&methods[1]["method"], &methods[2]["method"]], ["rewarded soup", "mod"]);
    for method in &methods[1..] {
        for (point, larger) in method["points"].as_array().unwrap().iter().zip([0, 0, 1, 1]) {
            let reward = point["mean"][larger].as_f64().unwrap();
            assert!(reward > 0.8, "{}: {point}", method["method"]);
        }
    }
}

#[test]
fn backbones_reach_a_known_optimum_over_five_seeds() {
    thread::scope(|scope| {
        for seed in 1..=5 {
            scope.spawn(move || {
                for algorithm in ["ppo", "remax", "rloo"] {
                    reaches_the_optimum(algorithm, seed);
                }
            });
        }
    });
}

#[test]
fn pairs_with_a_margin_reach_a_known_optimum() {
    thread::scope(|scope| {
        for seed in 1..=2 {
            scope.spawn(move || reaches_the_optimum("modpo", seed));
        }
    });
}

/// One policy without B for two rewards of which a response earns one or the other by its first
/// token: a weight of 3 to 1 makes the first reward's token the only optimum, whatever the strategy.
fn one_policy_reaches_the_optimum(strategy: &str, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    // MODPO orders pairs by the first reward; the second makes the margin.
    let (trained, balance) = match strategy {
        "modpo" => ("algorithm = \"modpo\", kl = 0.1", String::new()),
        _ => ("algorithm = \"rloo\", kl = 0.0", format!("strategy = \"{strategy}\", every = 10")),
    };
    let settings = format!(
        r#"
seed = {seed}
lora = {{ rank = 4, alpha = 8.0 }}
rollout = {{ max_new_tokens = 1, slots = 32, samples = 8 }}
rl = {{ {trained}, steps = 40, batch = 32, learning_rate = 2e-2, kl_target = 0.0, standardise_on = 64, checkpoint_every = 100 }}
balance = {{ {balance} }}
mixing = {{ weights = [3.0, 0.1] }}
[[objectives]]
name = "vowels"
reward = {{ kind = "regex", pattern = "^ ?[aeiou]" }}
[[objectives]]
name = "others"
reward = {{ kind = "regex", pattern = "^ ?[b-df-hj-np-tv-z]" }}
"#
    );
    let config = task(directory.path(), &settings);
    let run = directory.path().join("run");
    succeed(start(&config, &run).env("RAYON_NUM_THREADS", "1"));
    let reward = reached(&run, "policy", "vowels");
    assert!(reward > 0.9, "{strategy}, seed {seed}: {reward}");
    // It opens as a soup of one backbone, and has no matrix of two.
    let soup = Soup::open(&run.join("soup"), &OpenOptions::default()).unwrap();
    assert_eq!(soup.mixing.rows(), [[1.0]]);
    assert!(soup.manifest.objectives[0].description.contains(strategy));
    refuse(
        command().arg("select-alpha").arg(&run).arg("--data").arg(directory.path()),
        &["mixing.weights", "one policy has no B"],
    );
}

#[test]
fn one_policy_with_preset_weights_reaches_a_known_optimum_by_every_strategy() {
    thread::scope(|scope| {
        for (strategy, seed) in
            ["average", "inverse", "delta", "gdpo", "modpo"].into_iter().zip(1..)
        {
            scope.spawn(move || one_policy_reaches_the_optimum(strategy, seed));
        }
    });
}
