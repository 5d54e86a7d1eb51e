//! Whole runs of the binary on a tiny model: interrupted ones, known optima, bad input.

mod answer_only;
mod choices;
mod context;
mod engine;
mod evaluations;
mod optimum;
mod refused;
mod reward_service;
#[path = "../support/mod.rs"]
mod support;
mod t5;
mod taken_up;
mod targets;
mod types;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use ladle::soup::{
    OpenOptions, Soup, SoupError,
    bones::Bones,
    init::{Recipe, init},
    manifest::BaseEntry,
};
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
    task_on(&base(), directory, settings)
}

/// The same on another base.
fn task_on(base: &Path, directory: &Path, settings: &str) -> PathBuf {
    let rows: String = (0..24)
        .map(|row| {
            let (question, answer) = (format!("What is {row} and why?"), format!("It is {row}."));
            format!("{}\n", serde_json::json!({"question": question, "answer": answer}))
        })
        .collect();
    fs::write(directory.join("rows.jsonl"), rows).unwrap();
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

/// The contents of a file of every directory below one, by the directory's name.
fn of_each(parent: &Path, file: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(parent).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path().join(file)).unwrap())
        })
        .collect();
    all.sort();
    all
}

/// A metric of a backbone's steps.
fn recorded(run: &Path, backbone: &str, metric: &str) -> Vec<f64> {
    let path = run.join("metrics").join(backbone).join("metrics.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let steps = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    steps.map(|step| step[metric].as_f64().unwrap()).collect()
}

fn killed_and_whole(settings: &str, seed: u64) {
    killed_and_whole_on(&base(), settings, seed);
}

fn killed_and_whole_on(base: &Path, settings: &str, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let config = task_on(base, directory.path(), settings);
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
    for (parent, file) in [("adapters", "adapter_model.safetensors"), ("metrics", "metrics.jsonl")]
    {
        let each = [&whole, &killed].map(|run| of_each(&run.join(parent), file));
        let names = each[0].iter().map(|(name, _)| name);
        assert!(names.clone().eq(each[1].iter().map(|(name, _)| name)));
        for ((name, whole), (_, killed)) in each[0].iter().zip(&each[1]) {
            assert!(whole == killed, "{parent}/{name} differs after {kills} kills");
        }
    }
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
fn a_killed_remax_run_in_bf16_ends_with_the_weights_of_an_undisturbed_one() {
    killed_and_whole(
        &format!(
            r#"
precision = "bf16"
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
    let options = OpenOptions { verify_digests: true, ..OpenOptions::default() };
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
    // The backbones' own records make the same soup.
    let dirs = ["plain", "short"].map(|name| run.join("adapters").join(name));
    let bones = Bones::read(&dirs).unwrap();
    bones.check_sft(None).unwrap();
    let told = bones.common().unwrap();
    assert_eq!((told.steps, told.seed, told.shared_a), (2, 1, true));
    let last = recorded(&run, "short", "kl")[1];
    assert_eq!(told.kl.last, Some(last));
    let base_dir = base();
    let base = BaseEntry {
        path: Some(told.base.name.clone().into()),
        sha256: told.base.sha256.clone(),
        ..BaseEntry::default()
    };
    let recipe = Recipe {
        name: "tiny".into(),
        base,
        sft: None,
        objectives: bones.objectives(),
        backbones: bones.backbones(),
        mixing: bones.mixing(),
        activation: told.activation,
    };
    let options = OpenOptions { base: Some(base_dir), ..options };
    let passes = |_: &Soup| Ok::<_, SoupError>(());
    let made = init(&directory.path().join("made"), &recipe, &options, passes).unwrap();
    assert_eq!(made, Soup::open(&run.join("soup"), &options).unwrap().manifest);
    // Going on with a finished run leaves what was put into its soup.
    fs::write(run.join("soup/front.json"), "{}").unwrap();
    succeed(command().arg("resume").arg(&run).arg("--data").arg(directory.path()));
    assert!(run.join("soup/front.json").is_file());
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
