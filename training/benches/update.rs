//! One LoRA update of a SmolLM2-135M-shaped network: forward, backward, AdamW, f32.
//!
//! `cargo bench -p ladle-training --bench update` prints one JSON line; the same step with PEFT on
//! torch is `benches/peers/lora_update_torch.py`.

use std::{collections::BTreeMap, time::Instant};

use candle_core::Device;
use ladle::{
    kernels::{HostTensor, Rope},
    model::config::ModelConfig,
};
use ladle_training::{
    optimizer::{AdamW, AdamWConfig},
    rl::{
        lora::{LoraConfig, Policy},
        packing::{Sequence, pack},
    },
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SEQUENCES: usize = 8;
const TOKENS: usize = 128;
const REPEATS: usize = 5;

fn main() {
    let model = ModelConfig {
        model_type: "llama".into(),
        vocab_size: 49152,
        hidden_size: 576,
        intermediate_size: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        max_positions: 8192,
        norm_eps: 1e-5,
        rope: Rope {
            inv_freq: (0..32).map(|i| 1e5f32.powf(-(i as f32) / 32.0)).collect(),
            scale: 1.0,
        },
        windows: vec![None; 30],
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        tied: true,
        eos: vec![2],
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let weights: BTreeMap<_, _> = model
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let norm = name.ends_with("norm.weight");
            let count = shape.iter().product();
            let draw = |_| if norm { 1.0 } else { rng.random_range(-0.05f32..0.05) };
            let values: Vec<f32> = (0..count).map(draw).collect();
            (name, HostTensor::from_f32(&values, shape).expect("a tensor"))
        })
        .collect();
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).to_vec();
    let lora = LoraConfig { rank: 16, alpha: 32.0, targets };
    let policy = Policy::new(&model, &weights, &lora, &Device::Cpu, 1).expect("a policy");
    drop(weights);
    let mut optimizer =
        AdamW::new(policy.variables(), AdamWConfig::default()).expect("an optimiser");
    let sequences: Vec<Sequence> = (0..SEQUENCES)
        .map(|_| {
            let token = |_| rng.random_range(0..49152);
            Sequence { prompt: vec![1], response: (0..TOKENS).map(token).collect() }
        })
        .collect();
    let packed = pack(&sequences);
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        let start = Instant::now();
        let hidden = policy.hidden(&packed.batch).expect("hidden states");
        let kernels = policy.kernels();
        let scored = kernels.log_probs(&hidden, policy.head(), &packed.targets, 1.0);
        let loss = scored.expect("log-probabilities").values.mean_all().expect("a loss");
        let loss = loss.neg().expect("a loss");
        forward.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        optimizer.accumulate(&loss.backward().expect("gradients")).expect("gradients");
        optimizer.step(1e-4).expect("a step");
        backward.push(start.elapsed().as_secs_f64());
    }
    let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let (forward, backward) = (best(&forward), best(&backward));
    let tokens = (SEQUENCES * TOKENS) as f64;
    let peak = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::trim);
    println!(
        "{}",
        serde_json::json!({
            "what": "LoRA r16 q,k,v,o update, SmolLM2-135M shape, f32, 8 x 128 tokens",
            "forward_s": forward, "backward_s": backward,
            "tokens_per_s": tokens / (forward + backward), "peak_memory": peak,
        })
    );
}
