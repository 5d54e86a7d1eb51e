//! Whole runs of the binary on a tiny model: interrupted ones, known optima, bad input.

mod answer_only;
mod taken_up;
mod types;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use ladle::soup::{OpenOptions, Soup};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

fn base() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/soup-tiny/base")
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train-backbones"));
    command.env("LADLE_LOG", "warn").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(command: &mut Command) -> Output {
    command.output().expect("the binary starts")
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = finish(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refuse(command: &mut Command, parts: &[&str]) {
    let output = finish(command);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it succeeded");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// A directory with data and a configuration; `settings` are further lines of TOML.
fn task(directory: &Path, settings: &str) -> PathBuf {
    let rows: String = (0..24)
        .map(|row| {
            let (question, answer) = (format!("What is {row} and why?"), format!("It is {row}."));
            format!("{}\n", serde_json::json!({"question": question, "answer": answer}))
        })
        .collect();
    fs::write(directory.join("rows.jsonl"), rows).unwrap();
    let base = base();
    let config = format!(
        r#"
name = "tiny"
base = {base:?}
{settings}
[data]
format = "jsonl"
template = "{{{{ question }}}}"
reference = "answer"
train = "rows.jsonl"
validation = "rows.jsonl"
test = "rows.jsonl"
"#
    );
    let path = directory.join("config.toml");
    fs::write(&path, config).unwrap();
    path
}

fn start(config: &Path, out: &Path) -> Command {
    let mut command = command();
    command.arg("run").arg(config).arg("--out").arg(out);
    command.arg("--data").arg(config.parent().unwrap());
    command
}

const OBJECTIVES: &str = r#"
[[objectives]]
name = "short"
reward = { kind = "brevity", full = 1, span = 8, least = 0 }
[[objectives]]
name = "plain"
reward = { kind = "regex", pattern = "[aeiou]" }
"#;

/// Weights of every adapter that a run left.
fn adapters(run: &Path) -> Vec<(String, Vec<u8>)> {
    let names = ["sft", "short", "plain"];
    let read = |name: &str| {
        fs::read(run.join("adapters").join(name).join("adapter_model.safetensors")).unwrap()
    };
    names.map(|name| (name.to_owned(), read(name))).to_vec()
}

fn killed_and_whole(settings: &str, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let config = task(directory.path(), settings);
    let (whole, killed) = (directory.path().join("whole"), directory.path().join("killed"));
    succeed(&mut start(&config, &whole));

    // Each attempt is killed as it logs a line: one a step when the step has been computed (debug),
    // one when it has been recorded, before its checkpoint. Progress, not the clock, decides.
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut kills = 0;
    while kills < 8 {
        // `run` again on its own directory goes on, as `resume` does.
        let mut child = start(&config, &killed)
            .env("RUST_LOG", "debug")
            .env("LADLE_LOG", "debug")
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let steps = log.map(Result::unwrap).filter(|line| line.contains("step"));
        let wanted = rng.random_range(3..=8);
        if steps.take(wanted).count() < wanted {
            assert!(child.wait().unwrap().success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    succeed(&mut start(&config, &killed));
    assert!(kills > 2, "the run ended after {kills} kills: too few to show anything");
    for ((name, whole), (_, killed)) in adapters(&whole).iter().zip(&adapters(&killed)) {
        assert!(whole == killed, "{name} differs after {kills} kills");
    }
    let lines = |run: &Path| fs::read_to_string(run.join("metrics/plain/metrics.jsonl")).unwrap();
    assert_eq!(lines(&whole), lines(&killed));
}

#[test]
fn a_killed_ppo_run_ends_with_the_weights_of_an_undisturbed_one() {
    killed_and_whole(
        &format!(
            r#"
lora = {{ rank = 4, alpha = 8.0, dropout = 0.1 }}
sft = {{ epochs = 2, batch = 8, lora = {{ rank = 4, alpha = 8.0, dropout = 0.2 }} }}
rollout = {{ max_new_tokens = 6, slots = 8 }}
rl = {{ steps = 6, batch = 8, minibatch = 4, epochs = 2, learning_rate = 1e-3, standardise_on = 16, checkpoint_every = 2 }}
balance = {{ strategy = "delta", every = 2 }}
{OBJECTIVES}"#
        ),
        1,
    );
}

#[test]
fn a_killed_remax_run_ends_with_the_weights_of_an_undisturbed_one() {
    killed_and_whole(
        &format!(
            r#"
lora = {{ rank = 4, alpha = 8.0 }}
sft = {{ epochs = 1, batch = 8, lora = {{ rank = 4, alpha = 8.0 }} }}
rollout = {{ max_new_tokens = 6, slots = 8, samples = 2 }}
rl = {{ algorithm = "remax", recompute = true, steps = 7, batch = 8, learning_rate = 1e-3, standardise_on = 16, checkpoint_every = 3 }}
balance = {{ strategy = "inverse", every = 2 }}
{OBJECTIVES}"#
        ),
        2,
    );
}

#[test]
fn a_finished_run_leaves_a_soup_that_opens() {
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        r#"
lora = {{ rank = 2, alpha = 4.0 }}
rollout = {{ max_new_tokens = 4 }}
rl = {{ steps = 2, batch = 4, standardise_on = 4 }}
balance = {{ strategy = "inverse", every = 1 }}
mixing = {{ beta = 0.8 }}
{OBJECTIVES}"#
    );
    let config = task(directory.path(), &settings);
    let run = directory.path().join("run");
    // One process a backbone, as an array of jobs runs them; the last one makes the soup.
    succeed(start(&config, &run).args(["--only", "plain"]));
    assert!(!run.join("soup").exists());
    succeed(start(&config, &run).args(["--only", "short"]));
    let options = OpenOptions { base: None, verify_digests: true };
    let soup = Soup::open(&run.join("soup"), &options).unwrap();
    assert_eq!(soup.backbones.len(), 2);
    assert!((soup.mixing.column(0)[0] - 0.8).abs() < 1e-12);
    let realised = soup.manifest.mixing.realised.unwrap();
    assert!((realised[0][0] + realised[1][0] - 1.0).abs() < 1e-9);
    // The weights on record are those that the steps used: their mean is the realised column.
    for (row, name) in ["short", "plain"].into_iter().enumerate() {
        let used = recorded(&run, "short", &format!("weight/{name}"));
        assert!((used[0] - [0.8, 0.2][row]).abs() < 1e-12, "{used:?}");
        assert!((used.iter().sum::<f64>() / 2.0 - realised[row][0]).abs() < 1e-12, "{used:?}");
    }
    // Going on with a finished run leaves what was put into its soup.
    fs::write(run.join("soup/front.json"), "{}").unwrap();
    succeed(command().arg("resume").arg(&run).arg("--data").arg(directory.path()));
    assert!(run.join("soup/front.json").is_file());
}

#[test]
fn an_evaluation_compares_methods_and_goes_on_where_it_was_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, mixing: &str| {
        let settings = format!(
            r#"
lora = {{ rank = 2, alpha = 4.0 }}
rollout = {{ max_new_tokens = 6 }}
rl = {{ steps = 2, batch = 8, minibatch = 8, epochs = 1, learning_rate = 5e-2, standardise_on = 4 }}
mixing = {{ {mixing} }}
{OBJECTIVES}"#
        );
        let out = directory.path().join(name);
        succeed(&mut start(&task(directory.path(), &settings), &out));
        out
    };
    let (bone, rewarded) = (run("bone", "beta = 0.7"), run("rewarded", "identity = true"));
    let evaluate = |out: &Path| {
        let mut command = command();
        command.arg("evaluate").arg(&bone).arg("--against").arg(&rewarded).arg("--out").arg(out);
        command.arg("--data").arg(directory.path()).args(["--prompts", "5", "--grid", "4"]);
        command.args(["--alphas", "0,0.5", "--dev-prompts", "3"]);
        command
    };
    let whole = directory.path().join("whole");
    succeed(&mut evaluate(&whole));
    let read = |out: &Path, name: &str| fs::read_to_string(out.join(name)).unwrap();
    let front: Value = serde_json::from_str(&read(&whole, "front.json")).unwrap();
    let methods: Vec<&str> = front["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["method"].as_str().unwrap())
        .collect();
    let at_zero: Vec<&str> = methods.iter().copied().filter(|m| !m.contains(", α")).collect();
    let expected = [
        "θ_sft",
        "bone soup (nominal)",
        "bone soup (realised)",
        "aba",
        "bone soup (clamped)",
        "mod on bone backbones",
        "rewarded soup",
        "mod",
    ];
    assert_eq!(at_zero, expected);
    // α is chosen on validation rows, and reported beside 0 where it is another.
    for selected in front["selected"].as_array().unwrap() {
        let (name, best) =
            (selected["method"].as_str().unwrap(), selected["best"].as_f64().unwrap());
        assert_eq!(selected["scores"].as_array().unwrap().len(), 2);
        let twin = format!("{name}, α = {best}");
        assert_eq!(methods.contains(&twin.as_str()), best != 0.0, "{twin}");
    }
    assert_eq!(front["selected"].as_array().unwrap().len(), 3);
    let method = |name: &str| {
        let all = front["methods"].as_array().unwrap();
        all.iter().find(|method| method["method"] == name).unwrap()
    };
    // θ_sft is at 0 nats from itself, by two kernels.
    let kl = method("θ_sft")["points"][0]["kl"].as_f64().unwrap();
    assert!(kl.abs() < 0.05, "{kl}");
    assert_eq!(method("bone soup (clamped)")["points"][0]["lambda"], serde_json::json!([1.0, 0.0]));
    // At its own column Bone Soup is the backbone that was trained for it.
    let oracles = front["oracles"].as_array().unwrap();
    let names: Vec<&str> = oracles.iter().map(|o| o["name"].as_str().unwrap()).collect();
    let label = rewarded.display().to_string();
    assert_eq!(names[..2], ["short", "plain"]);
    assert_eq!(names[2..], [format!("short of {label}"), format!("plain of {label}")]);
    assert_eq!(oracles[0]["gaps"][0], serde_json::json!(["bone soup (nominal)", 0.0]));
    assert!(method("bone soup (nominal)")["oracle_gap"].is_number());
    assert_eq!(method("bone soup (nominal)")["gain"]["over"], "rewarded soup");
    assert!(!method("rewarded soup")["verdicts"].as_array().unwrap().is_empty());
    let means: Vec<f64> = front["objectives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["mean"].as_f64().unwrap())
        .collect();
    let stds: Vec<f64> = front["objectives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["std"].as_f64().unwrap())
        .collect();
    for (j, reference) in front["reference_point"].as_array().unwrap().iter().enumerate() {
        assert!((reference.as_f64().unwrap() - (means[j] - 0.5 * stds[j])).abs() < 1e-12);
    }
    assert_eq!(front["prompts"], 5);
    for method in front["methods"].as_array().unwrap() {
        assert_eq!(method["points"].as_array().unwrap().len(), 5);
        assert!(method["metrics"]["hypervolume"].as_f64().unwrap() >= 0.0);
    }
    // With constant weights the realised B is the nominal one.
    assert_eq!(method("bone soup (nominal)")["points"], method("bone soup (realised)")["points"]);
    let table = read(&whole, "samples.csv");
    assert!(table.starts_with("method,mu:short,mu:plain,row,seed,finished,reward:short"));
    assert_eq!(table.matches("\"rewarded soup\"").count(), 25);
    let page = read(&whole, "report.html");
    assert!(page.contains("<svg") && page.contains("rewarded soup") && !page.contains("http"));

    // Half of the answers and a line cut short, as a kill leaves them.
    let stopped = directory.path().join("stopped");
    fs::create_dir(&stopped).unwrap();
    fs::copy(whole.join("evaluation.toml"), stopped.join("evaluation.toml")).unwrap();
    let answers = fs::read(whole.join("answers.jsonl")).unwrap();
    fs::write(stopped.join("answers.jsonl"), &answers[..answers.len() / 2]).unwrap();
    succeed(&mut evaluate(&stopped));
    assert_eq!(read(&whole, "front.json"), read(&stopped, "front.json"));
    assert_eq!(read(&whole, "samples.csv"), read(&stopped, "samples.csv"));

    refuse(evaluate(&whole).args(["--seeds", "2"]), &["another evaluation"]);
    refuse(evaluate(&whole).args(["--methods", "bones"]), &["bones", "bone, realised"]);
    refuse(evaluate(&whole).args(["--preferences", "1,0;0,1;1,0"]), &["no preference of the grid"]);

    // Runs may join later; methods of one name are told apart by their runs.
    succeed(evaluate(&whole).arg("--against").arg(&bone));
    let front: Value = serde_json::from_str(&read(&whole, "front.json")).unwrap();
    let twin = format!("aba of {}", bone.display());
    assert!(front["methods"].as_array().unwrap().iter().any(|m| m["method"] == twin.as_str()));

    // A run that is not there yet is told apart from one that is broken.
    let begun = directory.path().join("begun");
    fs::create_dir(&begun).unwrap();
    for file in ["config.toml", "inputs.toml"] {
        fs::copy(rewarded.join(file), begun.join(file)).unwrap();
    }
    let parts = ["begun", "no finished soup", "not trained: short, plain", "resume"];
    refuse(evaluate(&whole).arg("--oracle").arg(&begun), &parts);

    // A realised B with a tie is on record; its method is left out, the others are measured.
    let manifest = bone.join("soup/soup.toml");
    let mut soup: toml::Table = fs::read_to_string(&manifest).unwrap().parse().unwrap();
    let tied = toml::Value::try_from([[0.5, 0.5], [0.5, 0.5]]).unwrap();
    soup["mixing"].as_table_mut().unwrap().insert("realised".into(), tied);
    fs::write(&manifest, soup.to_string()).unwrap();
    let tied = directory.path().join("tied");
    succeed(evaluate(&tied).args(["--methods", "bone,realised"]));
    let front: Value = serde_json::from_str(&read(&tied, "front.json")).unwrap();
    assert_eq!(front["left_out"][0]["method"], "bone soup (realised)");
    assert!(front["left_out"][0]["reason"].as_str().unwrap().contains("not dominated"));
    assert!(
        front["methods"].as_array().unwrap().iter().any(|m| m["method"] == "bone soup (nominal)")
    );
}

/// A metric of a backbone's steps.
fn recorded(run: &Path, backbone: &str, metric: &str) -> Vec<f64> {
    let path = run.join("metrics").join(backbone).join("metrics.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let steps = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    steps.map(|step| step[metric].as_f64().unwrap()).collect()
}

/// Reward of objective `name` in the last steps of backbone `backbone`.
fn reached(run: &Path, backbone: &str, name: &str) -> f64 {
    let steps = recorded(run, backbone, &format!("reward/{name}"));
    steps[steps.len() - 5..].iter().sum::<f64>() / 5.0
}

/// A bandit in language: a response earns 1 by its first token alone, so the optimum of each
/// backbone (B = I) is to say it always.
fn reaches_the_optimum(algorithm: &str, seed: u64) {
    let kl = if algorithm == "modpo" { 0.1 } else { 0.0 };
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        r#"
seed = {seed}
lora = {{ rank = 4, alpha = 8.0 }}
rollout = {{ max_new_tokens = 1, slots = 32, samples = 4 }}
rl = {{ algorithm = "{algorithm}", steps = 40, batch = 32, minibatch = 32, epochs = 2, learning_rate = 2e-2, kl = {kl}, kl_target = 0.0, kl_stop = 1e9, standardise_on = 64, checkpoint_every = 100 }}
mixing = {{ identity = true }}
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
    for name in ["vowels", "others"] {
        let reward = reached(&run, name, name);
        assert!(reward > 0.9, "{algorithm}, seed {seed}, {name}: {reward}");
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
    let settings = format!(
        r#"
seed = {seed}
lora = {{ rank = 4, alpha = 8.0 }}
rollout = {{ max_new_tokens = 1, slots = 32, samples = 8 }}
rl = {{ algorithm = "rloo", steps = 40, batch = 32, learning_rate = 2e-2, kl = 0.0, kl_target = 0.0, standardise_on = 64, checkpoint_every = 100 }}
balance = {{ strategy = "{strategy}", every = 10 }}
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
        for (strategy, seed) in ["average", "inverse", "delta", "gdpo"].into_iter().zip(1..) {
            scope.spawn(move || one_policy_reaches_the_optimum(strategy, seed));
        }
    });
}

#[test]
fn single_policies_are_compared_with_each_other_and_as_oracles() {
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, mixing: &str, balance: &str| {
        let settings = format!(
            r#"
lora = {{ rank = 2, alpha = 4.0 }}
rollout = {{ max_new_tokens = 6, samples = 4 }}
rl = {{ algorithm = "rloo", steps = 2, batch = 8, learning_rate = 5e-2, standardise_on = 4 }}
balance = {{ {balance} }}
mixing = {{ {mixing} }}
{OBJECTIVES}"#
        );
        let out = directory.path().join(name);
        succeed(&mut start(&task(directory.path(), &settings), &out));
        out
    };
    let average = run("average", "weights = [1, 1]", "");
    let gdpo = run("gdpo", "weights = [1, 1]", "strategy = \"gdpo\"");
    let twice = run("twice", "weights = [2, 1]", "");
    let bone = run("bone", "beta = 0.7", "");
    let evaluate = |subject: &Path, out: &str| {
        let mut command = command();
        command.arg("evaluate").arg(subject).arg("--out").arg(directory.path().join(out));
        command.arg("--data").arg(directory.path()).args(["--prompts", "4", "--grid", "2"]);
        command
    };
    let front = |out: &str| -> Value {
        let path = directory.path().join(out).join("front.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let labelled = |label: &str, run: &Path| format!("{label}={}", run.display());
    let mut policies = evaluate(&average, "policies");
    policies.arg("--against").arg(labelled("gdpo", &gdpo));
    policies.arg("--against").arg(labelled("twice", &twice));
    succeed(&mut policies);
    let compared = front("policies");
    let methods = compared["methods"].as_array().unwrap();
    let names: Vec<&str> = methods.iter().map(|m| m["method"].as_str().unwrap()).collect();
    assert_eq!(names, ["θ_sft", "average", "gdpo", "average of twice"]);
    // One model for every preference.
    let points = methods[2]["points"].as_array().unwrap();
    assert!(points.iter().all(|point| point["mean"] == points[0]["mean"]));
    assert_eq!(methods[2]["gain"]["over"], "average");

    // As an oracle it counts for the preference that it was trained for.
    let mut oracles = evaluate(&bone, "oracles");
    oracles.arg("--oracle").arg(labelled("twice", &twice));
    succeed(oracles.args(["--methods", "bone,oracle"]));
    let measured = front("oracles");
    let of_twice = measured["oracles"].as_array().unwrap().last().unwrap();
    assert_eq!(of_twice["name"], "policy of twice");
    let preference = of_twice["point"]["preference"].as_array().unwrap();
    assert!((preference[0].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(of_twice["gaps"][0][0], "bone soup (nominal)");
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = task(directory.path(), &format!("sft = {{}}\n{OBJECTIVES}"));
    let run = directory.path().join("run");
    let plan = succeed(start(&config, &run).arg("--dry-run"));
    for part in ["sft", "short", "plain", "parameters", "memory", "minutes"] {
        assert!(plan.contains(part), "{part:?} is not in: {plan}");
    }
    assert!(!run.exists());
}

#[test]
fn bad_configurations_are_refused_by_name_before_anything_is_computed() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let cases: [(&str, &[&str]); 19] = [
        ("colour = 1", &["colour", "unknown field"]),
        ("rl = { step = 3 }", &["step", "unknown field"]),
        ("rl = { steps = 0 }", &["rl.steps is 0", "at least 1"]),
        ("mixing = { beta = 0.3 }", &["0.3"]),
        ("mixing = { matrix = [[0.5, 0.5], [0.5, 0.5]] }", &["mixing"]),
        ("rollout = { samples = 3 }", &["rl.batch is 64", "rollout.samples"]),
        ("lora = { targets = [\"q\"] }", &["q", "q_proj"]),
        ("lora = { dropout = 1.0 }", &["lora.dropout is 1", "less than 1"]),
        ("sft = { lora = { alpha = 0.0 } }", &["sft.lora.alpha is 0", "above 0"]),
        ("optimizer = { beta2 = 1.0 }", &["optimizer.beta2 is 1", "less than 1"]),
        ("balance = { every = 0 }", &["balance.every is 0", "at least 1"]),
        ("balance = { floor = 0.0 }", &["balance.floor is 0", "above 0"]),
        ("balance = { shift = -1.0 }", &["balance.shift is -1", "at least 0"]),
        ("mixing = { identity = false }", &["mixing.identity is false", "true"]),
        ("mixing = { weights = [1.0] }", &["mixing.weights is [1.0]", "one weight"]),
        ("mixing = { weights = [1.0, -1.0] }", &["mixing.weights is [1.0, -1.0]", "at least 0"]),
        (
            "rl = { algorithm = \"modpo\", kl = 0.0 }\nrollout = { samples = 2 }",
            &["rl.kl is 0", "β"],
        ),
        (
            "rl = { algorithm = \"modpo\" }\nrollout = { samples = 2 }",
            &["rl.kl_target is 3", "modpo"],
        ),
        ("balance = { strategy = \"gdpo\" }", &["rl.algorithm is PPO", "rloo", "gdpo"]),
    ];
    for (settings, parts) in cases {
        let config = task(directory.path(), &format!("{settings}\n{OBJECTIVES}"));
        refuse(&mut start(&config, &run), parts);
    }
    // The tiny model has 256 positions.
    let config =
        task(directory.path(), &format!("rollout = {{ max_new_tokens = 255 }}\n{OBJECTIVES}"));
    refuse(&mut start(&config, &run), &["rollout.max_new_tokens is 255 after prompts", "max_pos"]);
    let config =
        task(directory.path(), &format!("sft = {{ max_response_tokens = 1 }}\n{OBJECTIVES}"));
    refuse(&mut start(&config, &run), &["sft.max_response_tokens is 1", "reference"]);
    fs::remove_dir_all(&run).unwrap();
    // What the soup would refuse once all is trained.
    for name in ["plain words", "sft", "..", "short"] {
        let objectives = OBJECTIVES.replace("\"plain\"", &format!("{name:?}"));
        let config = task(directory.path(), &objectives);
        refuse(&mut start(&config, &run), &["objectives[1].name", name, "a name of its own"]);
    }
    let unlabelled = OBJECTIVES.replace("regex\", pattern = \"[aeiou]", "accuracy");
    let config = task(directory.path(), &format!("sft = {{}}\n{unlabelled}"));
    refuse(&mut start(&config, &run), &["reward `plain`", "no field `label`"]);
    assert!(!run.exists());
    let unknown = OBJECTIVES.replace("regex", "regexp");
    let config = task(directory.path(), &unknown);
    refuse(&mut start(&config, &run), &["regexp"]);
    let config = task(directory.path(), OBJECTIVES);
    refuse(start(&config, &run).args(["--only", "long"]), &["long", "short, plain"]);
    fs::write(directory.path().join("rows.jsonl"), "{\"question\": \"a\", \"answer\": \"b\"}\n{\n")
        .unwrap();
    refuse(&mut start(&config, &run), &["rows.jsonl", ":2"]);
    fs::remove_file(directory.path().join("rows.jsonl")).unwrap();
    refuse(&mut start(&config, &run), &["rows.jsonl"]);
}

/// The soup of the run would be refused once all is trained.
#[test]
fn a_base_that_cannot_be_served_is_refused_before_anything_is_computed() {
    let directory = tempfile::tempdir().unwrap();
    let [run, copy] = ["run", "copy"].map(|name| directory.path().join(name));
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(base()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    fs::write(copy.join("generation_config.json"), "{\"eos_token_id\": 99999}").unwrap();
    let config = task(directory.path(), OBJECTIVES);
    let text = fs::read_to_string(&config).unwrap();
    let [own, other] = [base(), copy].map(|path| format!("base = {path:?}"));
    assert!(text.contains(&own));
    fs::write(&config, text.replace(&own, &other)).unwrap();
    refuse(&mut start(&config, &run), &["base ", "token 99999"]);
    assert!(!run.exists());
}

#[test]
fn what_nothing_could_be_selected_from_is_refused_before_anything_is_trained() {
    let directory = tempfile::tempdir().unwrap();
    let config = task(directory.path(), OBJECTIVES);
    let [run, other] = ["run", "other"].map(|name| directory.path().join(name));
    let select = |out: &Path, arguments: &[&str]| {
        let mut command = command();
        command.arg("select-beta").arg(&config).arg("--out").arg(out);
        command.arg("--data").arg(directory.path()).args(arguments);
        command
    };
    refuse(&mut select(&run, &["--betas", "0.6,1.2"]), &["beta is 1.2", "expected"]);
    refuse(&mut select(&run, &["--prompts", "0"]), &["--prompts is 0", "at least 1"]);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("validation =", "# validation =")).unwrap();
    refuse(&mut select(&other, &[]), &["data.validation"]);
    assert!(!run.join("standardiser.toml").exists() && !other.join("standardiser.toml").exists());
}

#[test]
fn another_configuration_in_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let settings = |steps: u64| {
        format!(
            "rl = {{ steps = {steps}, batch = 4, standardise_on = 4 }}\nrollout = {{ max_new_tokens = 2 }}\n{OBJECTIVES}"
        )
    };
    succeed(&mut start(&task(directory.path(), &settings(1)), &run));
    refuse(&mut start(&task(directory.path(), &settings(2)), &run), &["config.toml", "resume"]);
}
