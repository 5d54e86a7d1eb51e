//! The GPU code without a GPU: the kernels' own source, compiled for the host, under the launches
//! that a GPU gets, against the CPU kernels and the definitions in f64, and under the driver's calls,
//! against a driver that follows NVIDIA's manual. What is left for a GPU to show is that its driver
//! does so too, and the speed.

#[path = "../common/mod.rs"]
mod common;
mod driver;
mod emulator;
#[path = "../common/soup.rs"]
mod fixtures;
mod kernels;
mod merge;
mod models;
mod serve;
#[path = "../merge/soups.rs"]
#[allow(dead_code)] // its other user needs more of it
mod soups;

use std::sync::Arc;

use emulator::Emulator;
use ladle::kernels::{Dtype, cuda::CudaKernels};

/// Room enough, threads in ascending order.
fn roomy() -> Arc<Emulator> {
    Emulator::new(1 << 30, false)
}

/// Kernels in either order of threads.
fn both_orders(dtype: Dtype) -> [CudaKernels<Emulator>; 2] {
    [false, true].map(|order| CudaKernels::new(Emulator::new(1 << 30, order), dtype).unwrap())
}

/// Values in −1..1, different for each seed.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}
