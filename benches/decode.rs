//! Prefill and decode speed of the CPU kernels on random weights in bf16, f32 and quantised, beside
//! what the machine's memory and arithmetic allow in the same run.
//!
//! `cargo bench --bench decode [-- THREADS] [--shape NAME] [--dtype NAME] [--mode merged] [--what decode]`; all cores, the
//! shape of SmolLM2-135M (others: `qwen2.5-0.5b`, `qwen2.5-1.5b`) and every dtype; `LADLE_ISA` sets
//! the instruction set. Prints one JSON object.

mod machine;

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use ladle::{
    kernels::{
        Batch, BlockType, ColumnScale, Dtype, HostTensor, KV_BLOCK, KvShape, RowCoefficients,
        Segment,
        cpu::{CpuKernels, KvPool, default_threads, panels},
    },
    model::{
        config::ModelConfig,
        decoder::Decoder,
        linear::{LowRank, Parameter},
    },
    simd::Isa,
};
use serde_json::{Value, json};

const PROMPT: usize = 128;
const PREFILL: usize = 512;
const STEPS: usize = 24;
/// Low-rank terms and their rank in the mixed runs.
const TERMS: usize = 3;
const RANK: usize = 16;
/// The stacked rank.
const RANKS: usize = TERMS * RANK;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let threads = arguments.iter().find_map(|argument| argument.parse().ok());
    let kernels = CpuKernels::with_isa(threads.unwrap_or_else(default_threads), Isa::chosen());
    let threads = kernels.threads();
    let (bandwidth, peak) = (machine::read_bandwidth(threads), machine::peak_flops(threads));
    let pairs = machine::peak_bf16_flops(kernels.isa(), threads);
    let shape = option("--shape").unwrap_or_else(|| "smollm2-135m".to_owned());
    let config = model(&shape);
    let mut runs = Vec::new();
    let quantised = BlockType::ALL.map(Dtype::Quantised);
    for dtype in [Dtype::Bf16, Dtype::F32].into_iter().chain(quantised) {
        if option("--dtype").is_some_and(|wanted| wanted != dtype.to_string()) {
            continue;
        }
        let peak = pairs.filter(|_| dtype == Dtype::Bf16).unwrap_or(peak);
        for mixed in [false, true] {
            let mode = if mixed { "mixed" } else { "merged" };
            if option("--mode").is_some_and(|wanted| wanted != mode) {
                continue;
            }
            let what = option("--what");
            runs.extend(measure(
                &kernels,
                &config,
                dtype,
                mixed,
                what.as_deref(),
                [bandwidth, peak],
            ));
        }
    }
    let report = json!({
        "processor": machine::processor(),
        "shape": shape,
        "isa": kernels.isa().name(),
        "threads": threads,
        "read_gb_s": bandwidth / 1e9,
        "peak_gflop_s": peak / 1e9,
        "peak_bf16_gflop_s": pairs.map(|peak| peak / 1e9),
        "runs": runs,
    });
    println!("{report:#}");
}

/// The configuration of a published model.
fn model(name: &str) -> ModelConfig {
    let json = match name {
        "smollm2-135m" => json!({
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0, "tie_word_embeddings": true,
        }),
        "qwen2.5-0.5b" => json!({
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "tie_word_embeddings": true,
        }),
        "qwen2.5-1.5b" => json!({
            "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960,
            "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
            "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "tie_word_embeddings": true,
        }),
        _ => panic!("--shape {name}: smollm2-135m, qwen2.5-0.5b and qwen2.5-1.5b are known"),
    };
    ModelConfig::from_json(&json).expect("the configuration is right")
}

fn measure(
    kernels: &CpuKernels,
    config: &ModelConfig,
    dtype: Dtype,
    mixed: bool,
    what: Option<&str>,
    [bandwidth, peak]: [f64; 2],
) -> Vec<Value> {
    let parameters: usize =
        config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    // As imports store them: matrices in blocks, the table in Q8_0, everything else and the
    // adapters in bf16.
    let plain = if dtype.blocks().is_some() { Dtype::Bf16 } else { dtype };
    let stored = |name: &str, shape: &[usize]| match dtype {
        Dtype::Quantised(_) if shape.len() < 2 => plain,
        Dtype::Quantised(_) if name.contains("embed") => Dtype::Quantised(BlockType::Q8_0),
        dtype => dtype,
    };
    let bytes: usize =
        config.tensors().iter().filter_map(|(name, shape)| stored(name, shape).bytes(shape)).sum();
    let mut random = Random(1);
    let all = config.tensors();
    let weights = machine::placed(
        &all.iter()
            .map(|(name, shape)| random.tensor(stored(name, shape), shape))
            .collect::<Vec<_>>(),
    );
    let names = all.iter().map(|(name, _)| name.as_str());
    let weights: BTreeMap<_, _> = names.zip(weights).collect();
    let decoder = Decoder::load(config.clone(), |name| {
        let shape = weights[name].shape().to_vec();
        let mut parameter = Parameter::merged(weights[name].clone());
        if let (true, [out, inputs]) = (mixed && name.contains("proj"), shape.as_slice()) {
            parameter.low_rank = Some(LowRank {
                down: random.tensor(plain, &[RANKS, *inputs]),
                up: panels(&random.tensor(plain, &[*out, RANKS])).expect("a plain matrix"),
                scales: (0..TERMS)
                    .map(|term| ColumnScale {
                        columns: term * RANK..(term + 1) * RANK,
                        term: Some(term),
                        factor: 2.0,
                    })
                    .collect(),
            });
        }
        Ok::<_, std::convert::Infallible>(parameter)
    })
    .unwrap_or_else(|never| match never {});
    let shape = KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        blocks: 16 * (PREFILL / KV_BLOCK),
        dtype: if dtype == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 }.into(),
    };
    let mut cache = KvPool::new(shape).expect("memory for the cache");
    let mut forward = |sequences: usize, cached: usize, tokens: usize| {
        let rows = sequences * tokens;
        let mut batch = Batch {
            tokens: (0..rows).map(|row| (row * 977 % config.vocab_size) as u32).collect(),
            positions: (0..rows).map(|row| (cached + row % tokens) as u32).collect(),
            ..Batch::default()
        };
        for sequence in 0..sequences {
            let first = (sequence * (PREFILL / KV_BLOCK)) as u32;
            batch.segments.push(Segment {
                rows: sequence * tokens..(sequence + 1) * tokens,
                cached,
                blocks: (first..first + (PREFILL / KV_BLOCK) as u32).collect(),
            });
            batch.outputs.push((sequence + 1) * tokens - 1);
        }
        batch.coefficients = mixed.then(|| RowCoefficients {
            terms: TERMS,
            values: (0..rows * TERMS).map(|i| (i % 7) as f32 / 7.0 - 0.2).collect(),
        });
        let start = Instant::now();
        black_box(decoder.forward(kernels, &batch, &mut cache).expect("a forward pass"));
        start.elapsed().as_secs_f64()
    };

    let mut runs = Vec::new();
    let mut push = |what: &str, rows: usize, outputs: usize, seconds: f64| {
        let bytes = bytes as f64;
        // The head multiplies the rows that are sampled, the last of each sequence.
        let head = (config.hidden_size * config.vocab_size) as f64;
        let flops = 2.0 * ((parameters as f64 - head) * rows as f64 + head * outputs as f64);
        runs.push(json!({
            "dtype": dtype.to_string(), "mode": if mixed { "mixed" } else { "merged" },
            "what": what, "rows": rows, "ms": seconds * 1e3, "tok_s": rows as f64 / seconds,
            "gb_s": bytes / seconds / 1e9, "of_bandwidth": bytes / seconds / bandwidth,
            "gflop_s": flops / seconds / 1e9, "of_peak": flops / seconds / peak,
        }));
    };
    let wanted = |name: &str| what.is_none_or(|what| what == name);
    if wanted("prefill") {
        forward(1, 0, PREFILL);
        let best = (0..3).map(|_| forward(1, 0, PREFILL)).fold(f64::INFINITY, f64::min);
        push("prefill", PREFILL, 1, best);
    }
    if wanted("prompts") {
        forward(16, 0, PROMPT - 28);
        let best = (0..2).map(|_| forward(16, 0, PROMPT - 28)).fold(f64::INFINITY, f64::min);
        push("prompts", 16 * (PROMPT - 28), 16, best);
    }
    for sequences in [1, 4, 8, 16].into_iter().filter(|_| wanted("decode")) {
        forward(sequences, 0, PROMPT);
        let mut steps: Vec<f64> =
            (0..STEPS).map(|step| forward(sequences, PROMPT + step, 1)).collect();
        steps.sort_by(f64::total_cmp);
        push("decode", sequences, sequences, steps[STEPS / 2]);
    }
    runs
}

/// A small generator: values need not be good, only not all alike.
struct Random(u64);

impl Random {
    fn value(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.1
    }

    fn tensor(&mut self, dtype: Dtype, shape: &[usize]) -> HostTensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.value()).collect();
        HostTensor::rounded(&values, dtype, shape.to_vec()).expect("a tensor")
    }
}
