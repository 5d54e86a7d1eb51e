//! Single products `y = x Wᵀ` of the CPU kernels on every instruction set of the machine: arithmetic
//! per second over the register peak of the instruction that the set multiplies with, measured in the
//! same run, and weights read per second over the bandwidth of memory.
//!
//! `cargo bench --bench products [-- THREADS]`, default all cores. Prints one JSON object.

mod machine;

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use ladle::{
    kernels::{
        Dtype, HostTensor, Kernels, Product,
        cpu::{CpuKernels, default_threads},
    },
    simd::Isa,
};
use serde_json::json;

/// Outputs and inputs of the layers of SmolLM2-135M and of Qwen2.5-0.5B.
const SHAPES: [(usize, usize); 5] =
    [(576, 576), (1536, 576), (576, 1536), (4864, 896), (896, 4864)];
const ROWS: [usize; 7] = [1, 4, 8, 16, 32, 128, 512];
/// Bytes of weights that take turns, so that they come from memory.
const BYTES: usize = 128 << 20;
/// Least seconds of a point.
const SECONDS: f64 = 0.05;

fn main() {
    let threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let threads = threads.unwrap_or_else(default_threads);
    let (bandwidth, floats) = (machine::read_bandwidth(threads), machine::peak_flops(threads));
    let sets: Vec<_> = Isa::available()
        .iter()
        .filter(|isa| isa.lanes() == 16)
        .map(|&isa| (isa, machine::peak_bf16_flops(isa, threads)))
        .collect();
    let mut points = Vec::new();
    for (outputs, inputs) in SHAPES {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            let bytes = dtype.bytes(&[outputs, inputs]).expect("whole elements");
            let one =
                HostTensor::rounded(&vec![0.01; outputs * inputs], dtype, vec![outputs, inputs])
                    .expect("a tensor");
            let weights = machine::placed(&vec![one; BYTES / bytes]);
            for &(isa, narrow) in &sets {
                let peak = narrow.filter(|_| dtype == Dtype::Bf16).unwrap_or(floats);
                let kernels = CpuKernels::with_isa(threads, isa);
                for rows in ROWS {
                    let x = kernels.tensor(rows, &vec![0.5; rows * inputs]).expect("values");
                    let (mut turns, begin) = (0, Instant::now());
                    while begin.elapsed().as_secs_f64() < SECONDS {
                        let weight = &weights[turns % weights.len()];
                        let product = Product { x: &x, weight, onto: None };
                        black_box(kernels.products(vec![product]).expect("a product"));
                        turns += 1;
                    }
                    let seconds = begin.elapsed().as_secs_f64() / turns as f64;
                    let flops = 2.0 * (rows * inputs * outputs) as f64 / seconds;
                    points.push(json!({
                        "isa": isa.name(), "dtype": dtype.to_string(), "rows": rows,
                        "outputs": outputs, "inputs": inputs,
                        "gflop_s": flops / 1e9, "of_peak": flops / peak,
                        "gb_s": bytes as f64 / seconds / 1e9,
                        "of_bandwidth": bytes as f64 / seconds / bandwidth,
                    }));
                }
            }
        }
    }
    let report = json!({
        "processor": machine::processor(),
        "threads": threads,
        "read_gb_s": bandwidth / 1e9,
        "peak_gflop_s": floats / 1e9,
        "peak_bf16_gflop_s": sets
            .iter()
            .filter_map(|(isa, peak)| Some((isa.name(), (*peak)? / 1e9)))
            .collect::<BTreeMap<_, _>>(),
        "points": points,
    });
    println!("{report:#}");
}
