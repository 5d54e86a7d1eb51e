//! Prefill and decode speed of the CPU kernels on a model of SmolLM2-135M's shape with random
//! weights in bf16, f32 and quantised, beside what the machine's memory and arithmetic allow in the
//! same run.
//!
//! `cargo bench --bench decode [-- THREADS]`, default all cores. Prints one JSON object.

use std::{hint::black_box, time::Instant};

use ladle::{
    kernels::{
        Batch, BlockType, ColumnScale, Dtype, HostTensor, KV_BLOCK, KvShape, RowCoefficients,
        Segment,
        cpu::{CpuKernels, KvPool, panels},
    },
    model::{
        config::ModelConfig,
        decoder::Decoder,
        linear::{LowRank, Parameter},
    },
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
    let threads = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let kernels = threads.map_or_else(CpuKernels::default, CpuKernels::new);
    let threads = kernels.threads();
    let (bandwidth, peak) = (read_bandwidth(threads), peak_flops(threads));
    let mut runs = Vec::new();
    let quantised = BlockType::ALL.map(Dtype::Quantised);
    for dtype in [Dtype::Bf16, Dtype::F32].into_iter().chain(quantised) {
        for mixed in [false, true] {
            runs.extend(measure(&kernels, dtype, mixed, bandwidth, peak));
        }
    }
    let report = json!({
        "isa": kernels.isa().name(),
        "threads": threads,
        "read_gb_s": bandwidth / 1e9,
        "peak_gflop_s": peak / 1e9,
        "runs": runs,
    });
    println!("{report:#}");
}

fn measure(
    kernels: &CpuKernels,
    dtype: Dtype,
    mixed: bool,
    bandwidth: f64,
    peak: f64,
) -> Vec<Value> {
    let config = ModelConfig::from_json(&json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "tie_word_embeddings": true,
    }))
    .expect("the configuration is right");
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
    let shapes: std::collections::BTreeMap<_, _> = config.tensors().into_iter().collect();
    let decoder = Decoder::load(config.clone(), |name| {
        let shape = shapes[name].clone();
        let mut parameter = Parameter::merged(random.tensor(stored(name, &shape), &shape));
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
        dtype: if dtype == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 },
    };
    let mut cache = KvPool::new(shape).expect("memory for the cache");
    let mut forward = |sequences: usize, cached: usize, tokens: usize| {
        let rows = sequences * tokens;
        let mut batch = Batch {
            tokens: (0..rows).map(|row| (row * 977 % 49152) as u32).collect(),
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
    let mut push = |what: &str, rows: usize, seconds: f64| {
        let bytes = bytes as f64;
        let flops = 2.0 * parameters as f64 * rows as f64;
        runs.push(json!({
            "dtype": dtype.to_string(), "mode": if mixed { "mixed" } else { "merged" },
            "what": what, "rows": rows, "ms": seconds * 1e3, "tok_s": rows as f64 / seconds,
            "gb_s": bytes / seconds / 1e9, "of_bandwidth": bytes / seconds / bandwidth,
            "gflop_s": flops / seconds / 1e9, "of_peak": flops / seconds / peak,
        }));
    };
    forward(1, 0, PREFILL);
    let best = (0..3).map(|_| forward(1, 0, PREFILL)).fold(f64::INFINITY, f64::min);
    push("prefill", PREFILL, best);
    for sequences in [1, 4, 8, 16] {
        forward(sequences, 0, PROMPT);
        let mut steps: Vec<f64> =
            (0..STEPS).map(|step| forward(sequences, PROMPT + step, 1)).collect();
        steps.sort_by(f64::total_cmp);
        push("decode", sequences, steps[STEPS / 2]);
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

/// Bytes per second that all threads together read from memory.
fn read_bandwidth(threads: usize) -> f64 {
    let memory = vec![1u64; 1 << 25];
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in memory.chunks(memory.len().div_ceil(threads)) {
                scope.spawn(move || {
                    let mut sums = [0u64; 32];
                    for part in part.chunks_exact(32) {
                        for (sum, value) in sums.iter_mut().zip(part) {
                            *sum ^= value;
                        }
                    }
                    black_box(sums);
                });
            }
        });
        (memory.len() * 8) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

/// Fused multiply-adds per second of all threads together, times two.
fn peak_flops(threads: usize) -> f64 {
    const TURNS: usize = 20_000_000;
    let pass = || {
        let start = Instant::now();
        let flops: f64 = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| multiply_add(TURNS))).collect();
            all.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
        });
        flops / start.elapsed().as_secs_f64()
    };
    (0..3).map(|_| pass()).fold(0.0, f64::max)
}

/// Runs `turns` rounds of independent multiply-adds; returns the floating-point operations done.
fn multiply_add(turns: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f")]
        fn wide(turns: usize) -> f64 {
            let mut sums = [_mm512_set1_ps(1.0); 12];
            let factor = black_box(_mm512_set1_ps(0.5));
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, factor, factor);
                }
            }
            black_box(sums);
            (turns * 12 * 16 * 2) as f64
        }
        #[target_feature(enable = "avx2,fma")]
        fn narrow(turns: usize) -> f64 {
            let mut sums = [_mm256_set1_ps(1.0); 12];
            let factor = black_box(_mm256_set1_ps(0.5));
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, factor, factor);
                }
            }
            black_box(sums);
            (turns * 12 * 8 * 2) as f64
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the feature.
            return unsafe { wide(turns) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has the features.
            return unsafe { narrow(turns) };
        }
    }
    let mut sums = [1.0f32; 32];
    let factor = black_box(0.5f32);
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = *sum * factor + factor;
        }
    }
    black_box(sums);
    (turns * 32 * 2) as f64
}
