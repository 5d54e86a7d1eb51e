//! What a GPU has to show: that it computes what the CPU computes, and how fast. `scripts/gpu-check`
//! runs it; raw numbers go to a JSON file. `--emulated` runs the same on the tests' host emulation,
//! with tiny shapes: its numbers say nothing, but that it runs at all does.

mod checks;
#[path = "../../tests/cuda/emulator.rs"]
#[allow(dead_code)] // the tests need more of it
mod emulator;
mod soup;
mod speed;

use std::{path::PathBuf, sync::Arc};

use clap::Parser;
use ladle::kernels::cuda::{Device, Gpu, device::Urgency, image::kernel_caches};
use serde_json::{Value, json};

/// Sizes of a run.
#[derive(Debug, Clone)]
struct Scale {
    model: ladle::model::config::ModelConfig,
    /// Values of the pool that weights are windows of.
    pool: usize,
    rank: usize,
    prompt: usize,
    steps: usize,
    batches: Vec<usize>,
    merges: usize,
}

#[derive(Parser)]
struct Args {
    /// File to write.
    #[arg(long)]
    out: PathBuf,
    /// The GPU's number.
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// Layers of the 7B-shaped model (32 in the real one).
    #[arg(long, default_value_t = 32)]
    layers: usize,
    /// Directory of any tokenizer.
    #[arg(long, default_value = "tests/fixtures/soup-tiny/base")]
    tokenizer: PathBuf,
    /// On the host emulation.
    #[arg(long)]
    emulated: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let report = if args.emulated {
        let scale = Scale {
            model: soup::config(128, 192, (2, 1, 64), 300, 1),
            pool: 1 << 18,
            rank: 8,
            prompt: 20,
            steps: 2,
            batches: vec![1, 3],
            merges: 2,
        };
        run(emulator::Emulator::new(1 << 30, false), &scale, &args, json!(null))
    } else {
        let scale = Scale {
            model: soup::seven_b(args.layers),
            pool: 1 << 29,
            rank: 64,
            prompt: 128,
            steps: 64,
            batches: vec![1, 16, 64, 256],
            merges: 10,
        };
        let gpu = Gpu::open(args.gpu, &kernel_caches()).unwrap_or_else(|error| fail(&error));
        let copy = copy_bandwidth(&gpu);
        run(gpu, &scale, &args, copy)
    };
    let text = serde_json::to_string_pretty(&report).unwrap();
    std::fs::write(&args.out, &text).unwrap();
    println!("{text}");
    if report["correct"] != true {
        fail("the device does not compute what the CPU computes");
    }
}

#[allow(clippy::print_stderr)]
fn fail(reason: impl std::fmt::Display) -> ! {
    eprintln!("error: {reason}");
    std::process::exit(1)
}

fn run<D: Device>(device: Arc<D>, scale: &Scale, args: &Args, copy: Value) -> Value {
    let (free, total) = device.memory().unwrap();
    let checks = checks::all(&device, args.emulated);
    let correct = checks.iter().all(|check| check["passed"] == true);
    // Numbers of a device that computes something else would mean nothing.
    let speed = if correct { speed::all(&device, scale, &args.tokenizer) } else { json!(null) };
    json!({
        "device": device.name(),
        "memory_bytes": {"free": free, "total": total},
        "emulated": args.emulated,
        "model": {"shape": "llama-2-7b", "layers": scale.model.layers},
        "correct": correct,
        "checks": checks,
        "copy_bytes_per_s": copy,
        "speed": speed,
    })
}

/// Bytes read and written per second by a copy within the device: the mark for merges.
fn copy_bandwidth(gpu: &Arc<Gpu>) -> Value {
    const BYTES: usize = 4 << 30;
    let stream = gpu.stream(Urgency::Decode).unwrap();
    let (from, to) = (gpu.allocate(BYTES).unwrap(), gpu.allocate(BYTES).unwrap());
    let copy = || {
        // SAFETY: both buffers are that long and outlive the copy.
        unsafe { gpu.copy(&stream, gpu.address(&to), gpu.address(&from), BYTES).unwrap() };
    };
    copy();
    gpu.synchronize(&stream).unwrap();
    let begin = std::time::Instant::now();
    (0..10).for_each(|_| copy());
    gpu.synchronize(&stream).unwrap();
    json!(10.0 * 2.0 * BYTES as f64 / begin.elapsed().as_secs_f64())
}
