//! One step of reinforcement learning (sampling, reference, update) on random prompts: `cargo bench
//! --workspace --bench step -- BASE CONFIG all|answer PROMPTS PROMPT RESPONSE REPEATS` prints one JSON
//! line.
//!
//! BASE is a Hugging Face directory, CONFIG the configuration of a run, of which the adapters, the
//! algorithm, the samples and the optimiser count: `training/configs/scitldr.toml`. A step has PROMPTS
//! prompts of PROMPT tokens, and responses of exactly RESPONSE tokens to each; where adapters are
//! active on the answer, they are so from the last three tokens of the prompt on. Each repeat makes
//! two steps on the same prompts: `first`, which no step has seen, and `again`, as a later epoch or
//! another backbone meets them. `benches/run-step` runs it in turns and beside PEFT.

use std::{fs, path::Path, sync::Arc, time::Instant};

use candle_core::Device;
use ladle::soup::Activation;
use ladle_training::{
    config::Config,
    optimizer::AdamW,
    rl::{
        packing::Sequence,
        policy::Policy,
        prompt_cache::PromptCache,
        rollout::{Request, Sampler, Sampling, decoder},
        update::{Experience, Updater, reference_log_probs},
        value_head::ValueHead,
    },
    setup::Base,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// kB under `key` in this process's status; 0 where there is no such file.
fn status(key: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0.0)
}

/// CPU seconds of this process: other work on the machine changes them less than the time that passes.
fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = after_name.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

struct Shape {
    prompts: usize,
    prompt: usize,
    response: usize,
}

/// A run's parts that a step uses.
struct Bench {
    base: Base,
    config: Config,
    policy: Policy,
    updater: Updater,
    value_head: ValueHead,
    sampler: Sampler,
    cache: Arc<PromptCache>,
}

impl Bench {
    fn open(base: &Path, config: &Path, activation: Activation, shape: &Shape) -> Self {
        let base = Base::open(base).expect("the base model");
        let mut config = Config::read(config).expect("the configuration");
        config.lora.activation = activation;
        config.rollout.max_new_tokens = shape.response;
        let cache = Arc::new(PromptCache::new(config.rl.prompt_cache()));
        let policy = Policy::new(&base.model, &base.weights, &config.lora, &Device::Cpu, 1);
        let policy = policy.expect("a policy").recomputing(config.rl.recompute);
        let policy = policy.in_precision(config.precision).expect("bf16 weights");
        let policy = policy.keeping(cache.clone());
        let value_head = ValueHead::new(base.model.hidden_size, &Device::Cpu).expect("a head");
        let optimizer = |variables| AdamW::new(variables, config.optimizer).expect("an optimiser");
        let updater = Updater {
            adapters: optimizer(policy.variables()),
            values: optimizer(value_head.variables()),
        };
        let (kernels, longest) = (config.precision.kernels(), shape.prompt + shape.response);
        let sampler = Sampler::new(&base.model, kernels, config.rollout.slots, longest);
        let sampler = sampler.expect("a sampler");
        Self { base, config, policy, updater, value_head, sampler, cache }
    }

    /// Seconds of sampling, reference and update of step number `step` on these prompts, and CPU
    /// seconds of the latter two.
    fn step(&mut self, prompts: &[Vec<u32>], step: u64) -> serde_json::Value {
        self.cache.begin_step();
        let Self { base, config, policy, updater, value_head, sampler, .. } = self;
        let samples = config.rollout.samples;
        let active_from = |prompt: &Vec<u32>| config.lora.term().map(|_| prompt.len() - 3);
        let start = Instant::now();
        let factors = policy.lora().expect("the factors");
        let adapters = [(&factors, config.lora.term())];
        let decoder = decoder(&base.model, &base.weights, &adapters).expect("a decoder");
        let each = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, samples));
        let requests = each.zip(0..).map(|(prompt, stream)| Request {
            active_from: active_from(prompt),
            ..Request::drawn(prompt, stream)
        });
        let requests: Vec<_> = requests.collect();
        let sampling = Sampling {
            temperature: config.rollout.temperature,
            max_new_tokens: config.rollout.max_new_tokens,
            // Every response has its full length.
            end: Vec::new(),
            seed: step,
            keep_hidden: false,
        };
        let rollouts = sampler.sample(&decoder, &requests, &sampling).expect("responses");
        let (sampled, cpu) = (start.elapsed(), cpu_seconds());
        let sequences: Vec<_> = requests
            .into_iter()
            .zip(&rollouts)
            .map(|(request, rollout)| Sequence {
                prompt: request.prompt,
                response: rollout.tokens.clone(),
                active_from: request.active_from,
            })
            .collect();
        let rows = config.rl.rows;
        reference_log_probs(policy, &sequences, rows, config.rollout.temperature).expect("values");
        let referred = start.elapsed();
        let mut rng = ChaCha8Rng::seed_from_u64(step);
        let batch = sequences.into_iter().zip(rollouts).map(|(sequence, rollout)| {
            let advantage = rng.random_range(-1f32..1.0);
            let advantages = vec![advantage; rollout.tokens.len()];
            let log_probs = rollout.log_probs;
            let (values, returns) = (Vec::new(), Vec::new());
            Experience { sequence, log_probs, values, advantages, returns }
        });
        let batch: Vec<_> = batch.collect();
        let order = (1, step);
        updater.update(policy, value_head, &batch, config, 1e-4, order).expect("an update");
        let updated = start.elapsed();
        let [sampling, reference, update] =
            [sampled, referred - sampled, updated - referred].map(|time| time.as_secs_f64());
        serde_json::json!({
            "sampling_s": sampling, "reference_s": reference, "update_s": update,
            "learning_cpu_s": cpu_seconds() - cpu,
        })
    }
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [base, config, activation, numbers @ ..] = &arguments[..] else {
        println!(
            "usage: cargo bench --workspace --bench step -- BASE CONFIG all|answer PROMPTS PROMPT RESPONSE REPEATS"
        );
        return;
    };
    let numbers = numbers.iter().map(|number| number.parse().expect("a number"));
    let [prompts, prompt, response, repeats] =
        numbers.collect::<Vec<usize>>().try_into().expect("four numbers");
    let activation = match activation.as_str() {
        "all" => Activation::All,
        "answer" => Activation::Answer,
        other => panic!("activation is {other}, expected all or answer"),
    };
    let shape = Shape { prompts, prompt, response };
    let mut bench = Bench::open(Path::new(base), Path::new(config), activation, &shape);
    // The peak starts anew.
    fs::write("/proc/self/clear_refs", "5").expect("a Linux system");
    let before = status("VmRSS");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut times = [Vec::new(), Vec::new()];
    for repeat in 0..repeats {
        let vocabulary = bench.base.model.vocab_size as u32;
        let mut token = || rng.random_range(0..vocabulary);
        let prompts = std::iter::repeat_with(|| (0..shape.prompt).map(|_| token()).collect());
        let prompts: Vec<Vec<u32>> = prompts.take(shape.prompts).collect();
        for (again, times) in times.iter_mut().enumerate() {
            times.push(bench.step(&prompts, (2 * repeat + again) as u64));
        }
    }
    let [first, again] = times;
    let counts = bench.cache.counts();
    let report = serde_json::json!({
        "first": first, "again": again, "samples": bench.config.rollout.samples,
        "prompt_rows": { "computed": counts.computed, "found": counts.found },
        "before_mib": before / 1024.0, "peak_mib": status("VmHWM") / 1024.0,
        "threads": rayon::current_num_threads(),
    });
    println!("{report}");
}
