//! What the machine can do, measured whenever a line comes: for [`run-limits`](run-limits), which
//! measures a server in between.
//!
//! `cargo bench --bench limits`. For each line of its input it prints a JSON object: bytes per second that
//! all cores read from memory, and arithmetic per second of the products of the chosen instruction set in
//! registers.

#[allow(dead_code, reason = "weights are placed by other benches")]
mod machine;

use std::io::BufRead;

use ladle::{kernels::cpu::default_threads, simd::Isa};
use serde_json::json;

fn main() {
    let (threads, isa) = (default_threads(), Isa::chosen());
    for _ in std::io::stdin().lock().lines() {
        let peak = machine::peak_bf16_flops(isa, threads);
        let limits = json!({
            "isa": isa.to_string(),
            "read": machine::read_bandwidth(threads),
            "peak": peak.unwrap_or_else(|| machine::peak_flops(threads)),
        });
        println!("{limits}");
    }
}
