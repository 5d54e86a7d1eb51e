//! Estimate of a run's tokens, work and memory before it starts (`--dry-run`).

use ladle::{
    model::{
        config::ModelConfig,
        names::{is_of_prompts, is_table, last_of},
    },
    soup::Activation,
};

use crate::{
    config::{Algorithm, Config, MixingConfig},
    precision::Precision,
    rl::lora::LoraConfig,
    run::Run,
};

/// Tokens, work and memory of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Each stage in the order it runs.
    pub stages: Vec<Stage>,
    /// Peak bytes.
    pub memory: f64,
}

/// One stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    pub name: String,
    /// Updates or batches.
    pub steps: u64,
    /// Tokens that are sampled.
    pub sampled: f64,
    /// Tokens that a forward and a backward run over.
    pub trained: f64,
    /// Parameters that learn.
    pub parameters: usize,
    /// Floating-point operations.
    pub operations: f64,
}

/// Parameters of the adapters of one policy.
pub fn adapter_parameters(model: &ModelConfig, lora: &LoraConfig) -> usize {
    let targets = lora.targets(model);
    let matrices = model.tensors().into_iter().filter(|(_, shape)| shape.len() == 2);
    let adapted = matrices.filter(|(name, _)| targets.contains(&last_of(name)));
    adapted.map(|(_, shape)| shape.iter().sum::<usize>() * lora.rank).sum()
}

impl Estimate {
    /// Estimates a run from its configuration and prompts.
    pub fn of(run: &Run) -> Self {
        let (config, model) = (&run.config, &run.base.model);
        let mut stages = Vec::new();
        let count = run.train.len() as f64;
        let prompt = run.train.iter().map(|p| p.tokens.len()).sum::<usize>() as f64 / count;
        let [of_prompts, of_answers] = matrices(model);
        let head = if model.tied { model.vocab_size * model.hidden_size } else { 0 };
        // A product with a frozen matrix takes 2 operations per weight and token forward, 2 back.
        let forward =
            |prompts: f64, answers: f64| 2.0 * (prompts * of_prompts + answers * of_answers);
        let with_head = forward(0.0, 1.0) + 2.0 * head as f64;
        if let Some(sft) = &config.sft {
            let response = sft.max_response_tokens as f64 / 2.0;
            let epoch = (run.train.len() as u64).div_ceil(sft.batch as u64);
            let steps = sft.steps.unwrap_or(u64::MAX).min(sft.epochs * epoch);
            let sequences = steps as f64 / epoch as f64 * count;
            let (prompts, outputs) = (sequences * prompt, sequences * response);
            stages.push(Stage {
                name: "sft".into(),
                steps,
                sampled: 0.0,
                trained: prompts + outputs,
                parameters: adapter_parameters(model, &sft.lora),
                operations: 2.0 * (forward(prompts, outputs) + outputs * 2.0 * head as f64),
            });
        }
        if let MixingConfig::Context(ric) = &config.mixing {
            let online = ric.online.as_ref();
            let stage = |name: &str, steps: u64, samples: usize| {
                let response = ric.max_response_tokens.min(config.rollout.max_new_tokens) as f64;
                let sequences = (steps * ric.batch as u64) as f64;
                let (prompts, outputs) = (sequences * prompt, sequences * response);
                let sampled = samples as f64 * config.rollout.max_new_tokens as f64;
                let decoded = sampled * with_head + forward(samples as f64 * prompt, 0.0);
                let learned = 2.0 * (forward(prompts, outputs) + outputs * 2.0 * head as f64);
                Stage {
                    name: name.into(),
                    steps,
                    sampled,
                    trained: prompts + outputs,
                    parameters: adapter_parameters(model, &config.lora),
                    operations: decoded + learned,
                }
            };
            stages.push(stage("offline", ric.steps, 0));
            stages.extend(online.map(|online| stage("online", online.steps, online.samples)));
            return Self { stages, memory: memory(config, model, config.rl.rows) };
        }
        let Config { rl, rollout, .. } = config;
        let response = rollout.max_new_tokens as f64;
        let (epochs, greedy) = match rl.algorithm {
            Algorithm::Ppo => (rl.epochs as f64, 0.0),
            Algorithm::ReMax => (1.0, 1.0 / rollout.samples as f64),
            Algorithm::Rloo | Algorithm::Modpo => (1.0, 0.0),
        };
        let responses = rl.steps as f64 * rl.batch as f64;
        for policy in config.policies() {
            let sampled = responses * response * (1.0 + greedy);
            // Responses to one prompt share its rows.
            let shared = responses * prompt / rollout.samples as f64;
            let answers = responses * response;
            let learned = match config.lora.activation {
                Activation::All => shared,
                Activation::Answer => 0.0,
            };
            let decoded = sampled * with_head;
            let read = 2.0 * forward(shared, answers);
            let outputs = answers * epochs * 4.0 * head as f64;
            stages.push(Stage {
                name: policy.to_owned(),
                steps: rl.steps,
                sampled,
                trained: epochs * (learned + answers),
                parameters: adapter_parameters(model, &config.lora),
                operations: decoded + read + 2.0 * epochs * forward(learned, answers) + outputs,
            });
        }
        let prompts = match config.lora.activation {
            Activation::All => 0,
            Activation::Answer => {
                let tokens: usize = run.train.iter().map(|prompt| prompt.tokens.len()).sum();
                rl.prompt_cache().min(tokens * values_per_token(model) * size_of::<f32>())
            }
        };
        Self { stages, memory: memory(config, model, rl.rows) + prompts as f64 }
    }
}

/// Weights that a token of a prompt and one of an answer are multiplied with, but for a tied head.
fn matrices(model: &ModelConfig) -> [f64; 2] {
    let tensors = model.tensors().into_iter();
    let matrices = tensors.filter(|(name, shape)| shape.len() == 2 && !is_table(name));
    let (mut prompts, mut all) = (0, 0);
    for (name, shape) in matrices {
        let weights = shape.iter().product::<usize>();
        all += weights;
        prompts += if is_of_prompts(&name) { weights } else { 0 };
    }
    match &model.encoder {
        None => [all as f64; 2],
        Some(_) => [prompts as f64, (all - prompts) as f64],
    }
}

/// Elements of the keys and values of a token.
fn values_per_token(model: &ModelConfig) -> usize {
    2 * model.kv_heads * model.head_dim * model.layers
}

/// Frozen weights in f32 and with [`Precision::Bf16`] twice in bf16, sampler's copy as stored,
/// activations of one micro-batch, factors with gradients and two moments, a block of logits.
fn memory(config: &Config, model: &ModelConfig, rows: usize) -> f64 {
    let all: usize = model.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let (h, ff) = (model.hidden_size, model.intermediate_size);
    let attention = (model.heads + 2 * model.kv_heads) * model.head_dim;
    // Saved for the backward, per row and layer: two residual sums and their norms, q, k, v, the
    // attention's output, gate, up and their product, LoRA's inner rows.
    let row = 4 * h + attention + model.heads * model.head_dim + 3 * ff + 7 * config.lora.rank;
    let layers = model.layers.max(model.encoder.map_or(0, |encoder| encoder.layers));
    let kept = if config.rl.recompute { h * layers + row } else { row * layers };
    let activations = rows * kept;
    let factors = 4 * adapter_parameters(model, &config.lora);
    let cache = config.rollout.slots
        * (config.data.max_prompt_tokens() + config.rollout.max_new_tokens)
        * values_per_token(model);
    // A block of logits, and the gradient of each row.
    let logits = rows * (1024 + 2 * h);
    let narrow = if config.precision == Precision::Bf16 { all } else { 0 };
    4.0 * (all + narrow + activations + factors + cache + logits) as f64 + 2.0 * all as f64
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "stage             steps   sampled tok   trained tok    parameters   TFLOP")?;
        for Stage { name, steps, sampled, trained, parameters, operations } in &self.stages {
            let tera = operations / 1e12;
            writeln!(
                f,
                "{name:<16} {steps:>6} {sampled:>13.0} {trained:>13.0} {parameters:>13} {tera:>7.0}"
            )?;
        }
        let tera = self.stages.iter().map(|stage| stage.operations).sum::<f64>() / 1e12;
        // Assumption: training reaches 30 to 60 % of a core's 160 GFLOP/s (AVX-512).
        let cores = std::thread::available_parallelism().map_or(1.0, |n| usize::from(n) as f64);
        let (fast, slow) = (tera / (0.1 * cores) / 60.0, tera / (0.04 * cores) / 60.0);
        writeln!(
            f,
            "at most (responses of full length): {fast:.0} to {slow:.0} minutes on {cores:.0} cores"
        )?;
        write!(f, "memory: about {:.1} GiB", self.memory / f64::from(1u32 << 30))
    }
}
