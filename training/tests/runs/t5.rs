//! Runs on an encoder–decoder model.

use candle_core::{Device, safetensors::load};
use ladle::{kernels::cpu::CpuKernels, soup::Adapter};
use ladle_training::{
    rl::rollout::{Adapted, Request, Sampler, Sampling, decoder},
    setup::Base,
};

use super::{engine::served, optimum::reaches_the_optimum_on, *};

/// Adapters of every linear layer of encoder and decoder.
const LORA: &str = "rank = 4, alpha = 8.0";

/// Tied and ReLU, or untied and gated.
fn t5(gated: bool) -> PathBuf {
    let name = if gated { "soup-t5-gated" } else { "soup-t5" };
    base().join("../..").join(name).join("base").canonicalize().unwrap()
}

fn killed(rl: &str, gated: bool, seed: u64) {
    let settings = format!(
        r#"
lora = {{ {LORA}, dropout = 0.1 }}
sft = {{ epochs = 1, batch = 8, lora = {{ {LORA}, dropout = 0.2 }} }}
rollout = {{ max_new_tokens = 6, slots = 8, samples = 2 }}
rl = {{ {rl}, steps = 6, batch = 8, learning_rate = 1e-3, standardise_on = 16, checkpoint_every = 2 }}
{OBJECTIVES}"#
    );
    killed_and_whole_on(&t5(gated), &settings, seed);
}

#[test]
fn a_killed_ppo_run_on_t5_ends_with_the_weights_of_an_undisturbed_one() {
    killed("minibatch = 4, epochs = 2", false, 6);
}

#[test]
fn a_killed_remax_run_on_t5_ends_with_the_weights_of_an_undisturbed_one() {
    killed(r#"algorithm = "remax""#, true, 7);
}

/// Its logits are small, so that nothing has a probability near 1 but at a low temperature.
#[test]
fn a_t5_reaches_a_known_optimum() {
    thread::scope(|scope| {
        for algorithm in ["ppo", "remax", "rloo", "modpo"] {
            scope.spawn(move || reaches_the_optimum_on(&t5(false), LORA, 0.1, algorithm, 1));
        }
    });
}

/// Questions of words that the tokenizer has.
fn questions() -> Vec<String> {
    let words = "the soup is served from a ladle and every guest asks for another taste what front \
                 preference point on simplex how much of each objective reader wants";
    let words: Vec<&str> = words.split(' ').collect();
    (0..24).map(|row| words[row % 20..][..5].join(" ")).collect()
}

/// What the policy answers with the kernels that sampled it, its soup answers in the engine and through
/// a server; its adapters have the names and shapes that PEFT gives them.
#[test]
fn the_soup_of_a_run_on_t5_answers_as_the_policy_did() {
    let directory = tempfile::tempdir().unwrap();
    let settings = format!(
        r#"
lora = {{ {LORA} }}
sft = {{ epochs = 1, batch = 8, learning_rate = 1e-2, lora = {{ {LORA} }} }}
rollout = {{ max_new_tokens = 8, samples = 2 }}
rl = {{ algorithm = "rloo", steps = 4, batch = 8, learning_rate = 2e-2, standardise_on = 8 }}
mixing = {{ identity = true }}
{OBJECTIVES}"#
    );
    let config = task_on(&t5(true), directory.path(), &settings);
    let row = |question| serde_json::json!({"question": question, "answer": "a ladle of soup"});
    let rows = questions().into_iter().map(|question| format!("{}\n", row(question)));
    fs::write(directory.path().join("rows.jsonl"), rows.collect::<String>()).unwrap();
    let run = directory.path().join("run");
    let plan = succeed(start(&config, &run).arg("--dry-run"));
    assert!(plan.contains("short") && plan.contains("memory"), "{plan}");
    succeed(&mut start(&config, &run));
    let adapter = |name: &str| run.join("adapters").join(name);

    let base = Base::open(&t5(true)).unwrap();
    let [sft, short] = ["sft", "short"].map(|name| Adapter::open(&adapter(name)).unwrap().modules);
    let end = base.tokenizer.eos().to_vec();
    let sampling =
        Sampling { temperature: 1.0, max_new_tokens: 8, end, seed: 1, keep_hidden: false };
    let questions = questions().into_iter();
    let requests = questions.map(|question| {
        let tokens = base.tokenizer.encode(&question, true).unwrap();
        Request { greedy: true, ..Request::drawn(&tokens, 0) }
    });
    let requests: Vec<_> = requests.collect();
    let answers = |adapters: &[Adapted<'_>]| -> Vec<String> {
        let policy = decoder(&base.model, &base.weights, adapters).unwrap();
        let mut sampler = Sampler::new(&base.model, CpuKernels::new(1), 8, 80).unwrap();
        let answers = sampler.sample(&policy, &requests, &sampling).unwrap();
        answers.iter().map(|answer| base.tokenizer.decode(&answer.tokens, true)).collect()
    };
    let answered = answers(&[(&sft, None), (&short, None)]);
    let before = answers(&[(&sft, None)]);
    assert!(answered != before && before != answers(&[]), "training changed nothing");

    let evaluate = |out: &Path| {
        let mut command = command();
        command.arg("evaluate").arg(&run).arg("--out").arg(out).arg("--data").arg(directory.path());
        command.args(["--prompts", "6", "--grid", "2", "--temperature", "0"]);
        command.args(["--methods", "rewarded"]);
        command
    };
    let [here, there] = ["here", "there"].map(|name| directory.path().join(name));
    succeed(&mut evaluate(&here));
    let server = served(&run.join("soup"));
    succeed(evaluate(&there).args(["--engine", &server.url]));
    let samples = |out: &Path| fs::read_to_string(out.join("samples.csv")).unwrap();
    assert_eq!(samples(&here), samples(&there));
    let samples = samples(&here);
    for (method, expected) in [("rewarded soup", &answered), ("θ_sft", &before)] {
        let mut found = 0;
        for (answer, line) in expected.iter().zip(1..) {
            let beginning = format!("\"{method}\",1,0,\"line-{line}\",");
            for row in samples.lines().filter(|row| row.starts_with(&beginning)) {
                assert!(row.ends_with(&format!(",\"{answer}\"")), "{row}, expected {answer:?}");
                found += 1;
            }
        }
        assert_eq!(found, 6, "{samples}");
    }

    let settings = fs::read(adapter("short").join("adapter_config.json")).unwrap();
    let settings: Value = serde_json::from_slice(&settings).unwrap();
    assert_eq!(settings["task_type"], "SEQ_2_SEQ_LM");
    let shapes = |path: PathBuf| -> Vec<_> {
        let tensors = load(path, &Device::Cpu).unwrap().into_iter();
        let factors = tensors.filter(|(name, _)| name.starts_with("base_model."));
        let mut shapes: Vec<_> =
            factors.map(|(name, tensor)| (name, tensor.dims().to_vec())).collect();
        shapes.sort();
        shapes
    };
    // `make_t5_training.py`.
    let peft = super::base().join("../../lora-training/t5-gated/reference.safetensors");
    assert_eq!(shapes(adapter("short").join("adapter_model.safetensors")), shapes(peft));
}

#[test]
fn settings_that_a_t5_cannot_have_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let with = |more: &str| format!("lora = {{ {LORA}{more} }}");
    for (settings, parts) in [
        (with(r#", activation = "answer""#), ["lora.activation is answer", "encoder"]),
        (format!("{}\nrl = {{ recompute = true }}", with("")), ["rl.recompute is true", "encoder"]),
    ] {
        let config = task_on(&t5(false), directory.path(), &format!("{settings}\n{OBJECTIVES}"));
        refuse(&mut start(&config, &run), &parts);
    }
    assert!(!run.exists());
}
