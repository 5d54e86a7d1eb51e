//! What the machine can do, measured in the run that it is compared with.

use std::{hint::black_box, sync::Arc, time::Instant};

use half::bf16;
use ladle::{
    kernels::HostTensor,
    simd::{
        Ahead, Bf16Dots, Bf16Products, Bf16Tiles, Bf16Work, Isa, Lanes, Simd, TILE, TILE_INPUTS,
        TileProduct, TileWork, Vectorised,
    },
};
use memmap2::MmapMut;

/// The processor, as the system names it.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let part = |name: &str| field(name).unwrap_or_default();
    format!("{} family {} model {}", part("model name"), part("cpu family"), part("model\t"))
}

/// Memory on huge pages, where the system has them. Merged weights have them, and the system keeps
/// files in large pages of its own: small ones read at two thirds to nine tenths.
fn huge(bytes: usize) -> MmapMut {
    let memory = MmapMut::map_anon(bytes.max(1)).expect("memory");
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage); // only a hint
    memory
}

/// Copies of tensors, laid out in memory as served weights are: one after the other.
pub fn placed(tensors: &[HostTensor]) -> Vec<HostTensor> {
    let ends: Vec<usize> = tensors
        .iter()
        .scan(0usize, |end, tensor| {
            *end = end.next_multiple_of(64) + tensor.bytes().len();
            Some(*end)
        })
        .collect();
    let mut memory = huge(ends.last().copied().unwrap_or(0));
    let ranges: Vec<_> =
        ends.iter().zip(tensors).map(|(end, tensor)| end - tensor.bytes().len()..*end).collect();
    for (range, tensor) in ranges.iter().zip(tensors) {
        memory[range.clone()].copy_from_slice(tensor.bytes());
    }
    let memory = Arc::new(memory);
    let view = |(range, tensor): (_, &HostTensor)| {
        HostTensor::new(memory.clone(), range, tensor.dtype(), tensor.shape().to_vec())
            .expect("a tensor of the same size")
    };
    ranges.into_iter().zip(tensors).map(view).collect()
}

/// Values to be read in vectors as wide as the machine's: narrower ones read more slowly.
struct Read<'a>(&'a [f32]);

impl Vectorised for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat(0.0); 4];
        for values in self.0.chunks_exact(4 * S::LANES) {
            for (sum, values) in sums.iter_mut().zip(values.chunks_exact(S::LANES)) {
                // SAFETY: there are as many values.
                *sum = s.add(*sum, unsafe { s.load(values.as_ptr()) });
            }
        }
        black_box(sums);
    }
}

/// Bytes per second that all threads together read from memory.
pub fn read_bandwidth(threads: usize) -> f64 {
    // Long enough that the start of the threads takes no part of the time.
    let mut memory = huge(1 << 30);
    memory.fill(1);
    // SAFETY: maps are aligned to pages, and every pattern is a number.
    let (_, memory, _) = unsafe { memory.align_to::<f32>() };
    let isa = Isa::chosen();
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in memory.chunks(memory.len().div_ceil(threads)) {
                scope.spawn(move || isa.run(Read(part)));
            }
        });
        size_of_val(memory) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

/// Fused multiply-adds of f32 per second of all threads together, times two.
pub fn peak_flops(threads: usize) -> f64 {
    peak(threads, multiply_add)
}

/// Products of bf16 per second of all threads together, times two, by what `isa` multiplies them with;
/// `None` where it does not.
pub fn peak_bf16_flops(isa: Isa, threads: usize) -> Option<f64> {
    match isa.bf16_products() {
        Bf16Products::None => None,
        Bf16Products::Dots => Some(peak(threads, |turns| isa.run_bf16(Dots(turns)))),
        Bf16Products::Tiles => Some(peak(threads, |turns| isa.run_tiles(Tiles(turns / 50)))),
    }
}

/// Rounds of dot products that do not wait for each other.
struct Dots(usize);

impl Bf16Work for Dots {
    type Output = f64;

    #[inline(always)]
    fn run<D: Bf16Dots>(self, d: D) -> f64 {
        let s = d.vectors();
        let mut sums = [s.splat(1.0); 12];
        let factor = d.splat_pair(black_box([bf16::ONE; 2]));
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = d.dot(*sum, factor, factor);
            }
        }
        black_box(sums);
        (self.0 * 12 * D::S::LANES * 4) as f64
    }
}

/// Rounds of products of 2 × 2 tiles in the first-level cache.
struct Tiles(usize);

/// Something that begins with a cache line.
#[repr(align(64))]
struct Lines<T>(T);

impl TileWork for Tiles {
    type Output = f64;

    #[inline(always)]
    fn run<T: Bf16Tiles>(self, t: T) -> f64 {
        const STEPS: usize = 6;
        const TILES: usize = 2 * TILE * STEPS * TILE_INPUTS;
        let [left, right] = [const { &Lines([bf16::ONE; TILES]) }; 2].map(|Lines(tiles)| tiles);
        let Lines(mut sums) = Lines([0.0; 4 * TILE * TILE]);
        let shaped = t.shaped(TILE, TILE);
        let of = TileProduct {
            left: left.as_ptr(),
            left_row: 2 * STEPS * TILE_INPUTS,
            left_tile: TILES,
            right: right.as_ptr(),
            right_row: 4 * TILE,
            right_tile: TILES,
            steps: STEPS,
            sums: sums.as_mut_ptr(),
            sums_row: 4 * TILE,
            sums_left: 8 * TILE * TILE,
            sums_right: 4 * TILE * TILE,
            fresh: true,
            ahead: Ahead::NONE,
        };
        for _ in 0..self.0 {
            // SAFETY: the arrays hold two tiles each, `sums` four.
            unsafe { T::multiply::<2, 2>(&shaped, &of) };
        }
        drop(shaped);
        black_box(sums);
        (self.0 * STEPS * 4 * 2 * TILE * TILE * TILE_INPUTS) as f64
    }
}

fn peak(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    const TURNS: usize = 10_000_000;
    let pass = || {
        let start = Instant::now();
        let flops: f64 = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(TURNS))).collect();
            all.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
        });
        flops / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
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
