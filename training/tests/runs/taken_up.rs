//! Runs that are taken up again, shared, cut short and overridden.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ladle::soup::{OpenOptions, Soup};
use safetensors::SafeTensors;

use super::{OBJECTIVES, base, command, recorded, refuse, start, succeed, task};

/// Settings of a run of two steps of four responses.
const SHORT: &str = "lora = { rank = 2, alpha = 4.0 }\nrollout = { max_new_tokens = 4 }\n\
                     sft = { epochs = 1, batch = 8, lora = { rank = 2, alpha = 4.0 } }\n";

fn short(directory: &Path, more: &str) -> PathBuf {
    task(directory, &format!("{SHORT}{more}\n{OBJECTIVES}"))
}

fn adapter(run: &Path, name: &str) -> Vec<u8> {
    fs::read(run.join("adapters").join(name).join("adapter_model.safetensors")).unwrap()
}

fn opens(soup: &Path) {
    let options =
        OpenOptions { base: Some(base()), verify_digests: true, ..OpenOptions::default() };
    assert_eq!(Soup::open(soup, &options).unwrap().backbones.len(), 2);
}

#[test]
fn a_run_over_another_data_set_base_or_reward_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // A base and a lexicon of the run's own.
    fs::create_dir(at("base")).unwrap();
    for file in fs::read_dir(base()).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), at("base").join(file.file_name())).unwrap();
    }
    fs::write(at("words.tsv"), "good\t1\nbad\t-1\n").unwrap();
    let objectives =
        OBJECTIVES.replace("regex\", pattern = \"[aeiou]", "sentiment\", lexicon = \"words.tsv");
    let settings =
        format!("rl = {{ steps = 1, batch = 4, standardise_on = 4 }}\n{SHORT}{objectives}");
    let config = task(directory.path(), &settings);
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace(&format!("{:?}", base()), &format!("{:?}", at("base"))))
        .unwrap();
    let run = at("run");
    succeed(&mut start(&config, &run));

    let resume = || {
        let mut command = command();
        command.arg("resume").arg(&run).arg("--data").arg(directory.path());
        command
    };
    succeed(&mut resume());
    let changes = [
        ("rows.jsonl", "data/rows.jsonl"),
        ("base/tokenizer.json", "base/tokenizer.json"),
        ("words.tsv", "reward plain"),
    ];
    for (file, input) in changes {
        let before = fs::read(at(file)).unwrap();
        fs::write(at(file), [&before[..], b"\n"].concat()).unwrap();
        let parts = [input, "another than this run was started with", "sha256", "expected"];
        refuse(&mut resume(), &parts);
        refuse(&mut start(&config, &run), &parts);
        let mut evaluate = command();
        evaluate.arg("evaluate").arg(&run).arg("--data").arg(directory.path());
        refuse(evaluate.arg("--out").arg(at("evaluation")), &parts);
        fs::write(at(file), before).unwrap();
    }
    succeed(&mut resume());
}

#[test]
fn backbones_start_from_one_a_and_see_the_same_prompts() {
    let directory = tempfile::tempdir().unwrap();
    let first = |lora: &str, run: &str| {
        let rl = "rl = { steps = 1, batch = 4, standardise_on = 4 }";
        let config = short(directory.path(), rl);
        let run = directory.path().join(run);
        succeed(start(&config, &run).arg("--set").arg(format!("lora.shared={lora}")));
        run
    };
    // B is 0 in the first update, so that A has no gradient and stays as it was drawn.
    let factors = |run: &Path, name: &str| -> Vec<Vec<u8>> {
        let bytes = adapter(run, name);
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut downs: Vec<_> =
            tensors.tensors().into_iter().filter(|(name, _)| name.contains("lora_A")).collect();
        downs.sort_by(|a, b| a.0.cmp(&b.0));
        downs.into_iter().map(|(_, view)| view.data().to_vec()).collect()
    };
    let shared = first("true", "shared");
    assert_eq!(factors(&shared, "short"), factors(&shared, "plain"));
    let own = first("false", "own");
    assert_eq!(factors(&own, "short"), factors(&shared, "short"));
    let pairs = factors(&own, "short").into_iter().zip(factors(&own, "plain"));
    assert!(pairs.into_iter().all(|(a, b)| a != b));
    // The first responses are those of θ_sft, whoever is trained on them.
    for run in [&shared, &own] {
        for metric in ["reward/short", "reward/plain", "response_tokens"] {
            assert_eq!(recorded(run, "short", metric), recorded(run, "plain", metric), "{metric}");
        }
    }
}

#[test]
fn a_kept_snapshot_is_the_run_that_was_configured_for_its_steps() {
    let directory = tempfile::tempdir().unwrap();
    let rl = |more: &str| {
        format!(
            "rl = {{ batch = 4, learning_rate = 1e-2, standardise_on = 4, checkpoint_every = 2, {more} }}"
        )
    };
    let whole = directory.path().join("whole");
    let text =
        succeed(&mut start(&short(directory.path(), &rl("steps = 5, keep = [3, 5]")), &whole));
    assert!(text.contains(&format!("ladle serve {}", whole.join("soup").display())), "{text}");
    let stopped = directory.path().join("stopped");
    succeed(&mut start(&short(directory.path(), &rl("steps = 3, decay_steps = 5")), &stopped));
    let kept = whole.join("keep/3");
    for name in ["sft", "short", "plain"] {
        assert!(adapter(&kept, name) == adapter(&stopped, name), "{name}");
    }
    for file in ["config.toml", "inputs.toml", "standardiser.toml"] {
        let [kept, stopped] =
            [&kept, &stopped].map(|run| fs::read_to_string(run.join(file)).unwrap());
        assert_eq!(kept, stopped, "{file}");
    }
    assert!(adapter(&whole.join("keep/5"), "short") == adapter(&whole, "short"));
    assert!(adapter(&kept, "short") != adapter(&whole, "short"));
    for run in [&whole, &kept, &whole.join("keep/5")] {
        opens(&run.join("soup"));
    }
    // There is nothing left to train.
    succeed(command().arg("resume").arg(&kept).arg("--data").arg(directory.path()));
    for (keep, decay) in [("[3, 2]", ""), ("[0]", ""), ("[6]", ""), ("[3]", "decay_steps = 4")] {
        let config = short(directory.path(), &rl(&format!("steps = 5, keep = {keep}, {decay}")));
        let key = if decay.is_empty() { "rl.keep" } else { "rl.decay_steps" };
        refuse(&mut start(&config, &directory.path().join("refused")), &[key, "expected"]);
    }
}

#[test]
fn a_run_takes_the_supervised_stage_and_the_scale_of_another() {
    let directory = tempfile::tempdir().unwrap();
    let config = short(directory.path(), "rl = { steps = 1, batch = 4, standardise_on = 4 }");
    let [first, arm, other] = ["first", "arm", "other"].map(|name| directory.path().join(name));
    let share = |out: &Path, set: &[&str]| {
        let mut command = start(&config, out);
        command.arg("--share").arg(&first);
        set.iter().for_each(|change| {
            command.args(["--set", change]);
        });
        command
    };
    refuse(&mut share(&arm, &[]), &["first", "No such file"]);
    let mut sft = command();
    sft.arg("sft").arg(&config).arg("--out").arg(&first).arg("--data").arg(directory.path());
    succeed(&mut sft);
    succeed(&mut share(&arm, &["mixing.identity=true", "rl.steps=2"]));
    assert!(adapter(&arm, "sft") == adapter(&first, "sft"));
    let [ours, theirs] =
        [&arm, &first].map(|run| fs::read_to_string(run.join("standardiser.toml")).unwrap());
    assert_eq!(ours, theirs);
    assert!(!arm.join("metrics/sft").exists(), "it was trained again");
    for change in [
        "seed=2",
        "precision=bf16",
        "sft.epochs=2",
        "rollout.max_new_tokens=5",
        "data.max_prompt_tokens=60",
    ] {
        let key = change.split_once('=').unwrap().0;
        let parts = ["--share", key.split('.').next().unwrap(), "there, expected"];
        refuse(&mut share(&other, &[change]), &parts);
    }
    fs::remove_file(first.join("standardiser.toml")).unwrap();
    refuse(&mut share(&other, &[]), &["no standardiser.toml yet", "train-backbones sft"]);
    assert!(!other.exists());
}

#[test]
fn a_key_is_overridden_by_its_path_and_an_unknown_one_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let config = short(directory.path(), "rl = { steps = 9 }");
    let run = directory.path().join("run");
    let set = |changes: &[&str]| {
        let mut command = start(&config, &run);
        changes.iter().for_each(|change| {
            command.args(["--set", change]);
        });
        command
    };
    let changes = ["rl.steps=1", "rl.batch=4", "rl.standardise_on=4", "mixing={ beta = 0.8 }"];
    let changes = [&changes[..], &["objectives.0.reward.span=5", "name=renamed"]].concat();
    succeed(&mut set(&changes));
    let kept = fs::read_to_string(run.join("config.toml")).unwrap();
    for line in ["steps = 1", "beta = 0.8", "span = 5.0", "name = \"renamed\""] {
        assert!(kept.contains(line), "{line:?} is not in: {kept}");
    }
    for (change, parts) in [
        ("rl.step=3", &["--set rl.step=3", "unknown field `step`"][..]),
        ("colour=1", &["--set colour=1", "unknown field `colour`"]),
        ("rl.steps=many", &["--set rl.steps=\"many\"", "invalid type"]),
        ("rl.steps.x=1", &["--set rl.steps.x=1", "expected a table"]),
        ("objectives.7.name=x", &["objectives.7.name", "expected an entry from 0 to 1"]),
        ("rl.steps=0", &["rl.steps is 0", "at least 1"]),
        ("rl", &["expected KEY=VALUE"]),
    ] {
        refuse(&mut set(&[change]), parts);
    }
}

/// Before, a dry run stopped at `all-minilm-l6-v2/config.json: No such file`.
#[test]
fn data_and_reward_models_that_are_not_there_are_named_with_what_gets_them() {
    let directory = tempfile::tempdir().unwrap();
    let config = short(directory.path(), "");
    let run = directory.path().join("run");
    let dry = |changes: &[&str]| {
        let mut command = start(&config, &run);
        command.arg("--dry-run");
        changes.iter().for_each(|change| {
            command.args(["--set", change]);
        });
        command
    };
    let encoder =
        "objectives.0.reward={ kind = \"embedding-cosine\", path = \"minilm\", against = \"x\" }";
    refuse(&mut dry(&[encoder]), &["minilm: no such file", "scripts/get-encoder DATA"]);
    let data = "data={ format = \"scitldr\", train = \"scitldr/train.jsonl\" }";
    refuse(&mut dry(&[data]), &["scitldr/train.jsonl: no such file", "git clone", "SciTLDR-A"]);
    refuse(&mut dry(&["data.test=none.jsonl"]), &["none.jsonl: no such file", "of your own"]);
    assert!(!run.exists());
}
