//! Runs whose adapters are active on the answer only.

use std::{fs, path::Path};

use ladle::soup::{Activation, ActiveFrom, OpenOptions, Soup};
use serde_json::Value;

use super::{OBJECTIVES, command, engine::served, killed_and_whole, refuse, start, succeed, task};

/// Kills and resumes a run of these settings of `rl`; the run starts with an empty cache each time.
fn killed(rl: &str, dropout: f64, seed: u64) {
    killed_and_whole(
        &format!(
            r#"
lora = {{ rank = 4, alpha = 8.0, activation = "answer", dropout = {dropout} }}
sft = {{ epochs = 1, batch = 8, lora = {{ rank = 4, alpha = 8.0 }} }}
rollout = {{ max_new_tokens = 6, slots = 8, samples = 2 }}
rl = {{ {rl}, steps = 6, batch = 8, learning_rate = 1e-3, standardise_on = 16, checkpoint_every = 2 }}
{OBJECTIVES}"#
        ),
        seed,
    );
}

#[test]
fn a_killed_rloo_run_with_adapters_on_the_answer_ends_with_the_weights_of_an_undisturbed_one() {
    killed(r#"algorithm = "rloo""#, 0.0, 3);
}

#[test]
fn a_killed_ppo_run_with_adapters_on_the_answer_ends_with_the_weights_of_an_undisturbed_one() {
    killed("minibatch = 4, epochs = 2", 0.1, 4);
}

#[test]
fn a_killed_remax_run_with_adapters_on_the_answer_ends_with_the_weights_of_an_undisturbed_one() {
    killed(r#"algorithm = "remax", recompute = true, prompt_cache_mib = 0"#, 0.0, 5);
}

#[test]
fn a_run_with_adapters_on_the_answer_leaves_such_a_soup_and_is_evaluated_as_it_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        r#"
lora = {{ rank = 2, alpha = 4.0, activation = "answer" }}
sft = {{ epochs = 1, batch = 8, lora = {{ rank = 2, alpha = 4.0 }} }}
rollout = {{ max_new_tokens = 4 }}
rl = {{ steps = 2, batch = 8, minibatch = 8, epochs = 1, learning_rate = 5e-2, standardise_on = 4 }}
{OBJECTIVES}"#
    );
    let (config, run) = (task(directory.path(), &settings), directory.path().join("run"));
    succeed(&mut start(&config, &run));
    let options = OpenOptions { verify_digests: true, ..OpenOptions::default() };
    let soup = Soup::open(&run.join("soup"), &options).unwrap();
    assert_eq!(soup.manifest.activation, Activation::Answer);
    assert_eq!(soup.active_from, ActiveFrom::GenerationPrompt);

    let out = directory.path().join("evaluated");
    let evaluate = |out: &Path| {
        let mut command = command();
        command.arg("evaluate").arg(&run).arg("--out").arg(out).arg("--data").arg(directory.path());
        command.args(["--prompts", "3", "--grid", "3", "--alphas", "0"]);
        command
    };
    succeed(&mut evaluate(&out));
    // Through a server, which is sent the messages, it is the same.
    let (server, through) = (served(&run.join("soup")), directory.path().join("through"));
    succeed(evaluate(&through).args(["--engine", &server.url]));
    let read = |out: &Path| fs::read_to_string(out.join("samples.csv")).unwrap();
    assert_eq!(read(&out), read(&through));
    // So it is as a soup from elsewhere, on the scale of this run.
    let elsewhere = directory.path().join("elsewhere");
    succeed(evaluate(&elsewhere).arg("--soup").arg(run.join("soup")));
    let front = |out: &Path| fs::read_to_string(out.join("front.json")).unwrap();
    assert_eq!(front(&out), front(&elsewhere));
    let front: Value = serde_json::from_str(&front(&out)).unwrap();
    let methods = front["methods"].as_array().unwrap().iter();
    let names: Vec<&str> = methods.map(|m| m["method"].as_str().unwrap()).collect();
    assert!(names.contains(&"θ_sft") && names.contains(&"bone soup (nominal)"), "{names:?}");
}

#[test]
fn settings_of_adapters_on_the_answer_that_mean_nothing_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    for (settings, parts) in [
        (
            "sft = { epochs = 1, lora = { rank = 2, alpha = 4.0, activation = \"answer\" } }",
            ["sft.lora.activation", "θ_sft computes prompts and answers"],
        ),
        ("lora = { activation = \"prompt\" }", ["activation", "`all` or `answer`"]),
        (
            "rl = { prompt_cache_mib = 64 }",
            ["rl.prompt_cache_mib", "left out unless lora.activation is \"answer\""],
        ),
    ] {
        let config = task(directory.path(), &format!("{settings}\n{OBJECTIVES}"));
        refuse(&mut start(&config, &run), &parts);
    }
}
