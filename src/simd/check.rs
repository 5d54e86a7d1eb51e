//! The self-check of an instruction set: everything that kernels are written over, on a few values,
//! against the portable set. A set that differs anywhere is not used: what a compiler, a hypervisor
//! or a processor gets wrong costs speed and never an answer.

use std::fmt;

use half::{bf16, f16};

use super::{
    bf16::{Bf16Dots, Bf16Work},
    bytes::{ByteTile, ByteWork, Bytes},
    tiles::{Ahead, Bf16Tiles, TILE, TILE_INPUTS, TileProduct, TileWork},
    vector::{Lanes, Simd, Vectorised},
};

/// Values that each operation is tried on: whole vectors of every set.
const LEN: usize = 64;

/// Results of a set, operation by operation, as bits.
pub struct Outcome(Vec<(&'static str, Vec<u32>)>);

/// An operation whose bits differ from the portable set's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: value {index} has the bits {got:08x}, expected {expected:08x}")]
pub struct Mismatch {
    /// The operation.
    pub operation: &'static str,
    /// Number of the value.
    pub index: usize,
    /// Its bits by the portable set.
    pub expected: u32,
    /// Its bits by the set under test.
    pub got: u32,
}

impl Outcome {
    /// The first difference from what the portable set gives for the same work.
    pub fn compare(&self, expected: &Self) -> Result<(), Mismatch> {
        for ((operation, got), (_, expected)) in self.0.iter().zip(&expected.0) {
            let mut values = got.iter().zip(expected).enumerate();
            if let Some((index, (&got, &expected))) = values.find(|(_, (got, want))| got != want) {
                return Err(Mismatch { operation, index, expected, got });
            }
        }
        Ok(())
    }

    fn floats(&mut self, operation: &'static str, values: &[f32]) {
        self.0.push((operation, values.iter().map(|v| v.to_bits()).collect()));
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(operation, _)| operation)).finish()
    }
}

/// A line of memory, as streamed stores want it.
#[repr(align(64))]
struct Aligned<T>([T; LEN]);

/// Whole numbers of one byte, of both signs: their products and sums are exact in any order.
fn whole(index: usize, seed: usize) -> f32 {
    ((index * 37 + seed * 11) % 31) as f32 - 15.0
}

/// Values that conversions round in every way: ties, carries, subnormals, overflows, specials.
fn edges() -> [f32; LEN] {
    const SPECIAL: [u32; 16] = [
        0x0000_0000,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc1_2345,
        0x0000_0001,
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x7f7f_ffff,
        0x477f_efff,
        0x477f_f000,
        0x3300_0000,
        0x3300_0001,
        0x387f_ffff,
        0xb8ff_e000,
    ];
    std::array::from_fn(|i| match SPECIAL.get(i) {
        Some(&bits) => f32::from_bits(bits),
        None => f32::from_bits(0x3f00_0000 + (i as u32).wrapping_mul(0x0123_4567) % 0x0200_0000),
    })
}

/// The operations on vectors.
pub struct VectorCheck;

impl Vectorised for VectorCheck {
    type Output = Outcome;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Outcome {
        let mut outcome = Outcome(Vec::new());
        lanes(s, &mut outcome);
        lanes(s.sixteen(), &mut outcome);
        products(s, &mut outcome);
        outcome
    }
}

/// Arithmetic, loads and stores.
#[inline(always)]
fn lanes<L: Lanes>(l: L, outcome: &mut Outcome) {
    let (x, edges) = (std::array::from_fn::<_, LEN, _>(|i| whole(i, 1)), edges());
    let halves = edges.map(f16::from_f32);
    let brains = edges.map(bf16::from_f32);
    let mut out = [[0f32; LEN]; 4];
    let (mut f, mut h, mut b) =
        (Aligned([0f32; LEN]), Aligned([f16::ZERO; LEN]), Aligned([bf16::ZERO; LEN]));
    let (mut h2, mut b2) = ([f16::ZERO; LEN], [bf16::ZERO; LEN]);
    let (mut pairs, mut pairs2) = (Aligned([bf16::ZERO; LEN]), [bf16::ZERO; LEN]);
    for at in (0..LEN).step_by(L::LANES) {
        // SAFETY: LANES divides LEN, and the streamed arrays are aligned to 64 bytes.
        unsafe {
            let v = l.load(edges.as_ptr().add(at));
            let whole = l.load(x.as_ptr().add(at));
            let sum = l.add(l.mul(whole, l.splat(3.0)), v);
            l.store(out[0].as_mut_ptr().add(at), sum);
            l.stream(f.0.as_mut_ptr().add(at), v);
            l.store(out[1].as_mut_ptr().add(at), l.load_f16(halves.as_ptr().add(at)));
            l.store(out[2].as_mut_ptr().add(at), l.load_bf16(brains.as_ptr().add(at)));
            l.store_f16::<true>(h.0.as_mut_ptr().add(at), v);
            l.store_f16::<false>(h2.as_mut_ptr().add(at), v);
            l.store_bf16::<true>(b.0.as_mut_ptr().add(at), v);
            l.store_bf16::<false>(b2.as_mut_ptr().add(at), v);
        }
    }
    let [even, odd] =
        [0, 1].map(|odd| std::array::from_fn::<_, { LEN / 2 }, _>(|i| edges[2 * i + odd]));
    for at in (0..LEN).step_by(2 * L::LANES) {
        // SAFETY: 2 LANES divide LEN, and the streamed array is aligned to 64 bytes.
        unsafe {
            let from = brains.as_ptr().add(at);
            let both = [l.load_bf16_even(from), l.load_bf16_odd(from)];
            l.store_bf16_even_odd::<true>(pairs.0.as_mut_ptr().add(at), both);
            let both = [&even, &odd].map(|half| l.load(half.as_ptr().add(at / 2)));
            l.store_bf16_even_odd::<false>(pairs2.as_mut_ptr().add(at), both);
        }
    }
    l.fence();
    l.prefetch(x.as_ptr().cast());
    outcome.floats("sums", &out[0]);
    outcome.floats("streamed stores", &f.0);
    outcome.floats("loads of f16", &out[1]);
    outcome.floats("loads of bf16", &out[2]);
    for (operation, values) in [("streamed stores of f16", h.0), ("stores of f16", h2)] {
        outcome.0.push((operation, values.map(|v| u32::from(v.to_bits())).to_vec()));
    }
    for (operation, values) in [
        ("streamed stores of bf16", b.0),
        ("stores of bf16", b2),
        ("streamed stores of pairs", pairs.0),
        ("stores of pairs", pairs2),
    ] {
        outcome.0.push((operation, values.map(|v| u32::from(v.to_bits())).to_vec()));
    }
}

/// Dot products over every way to load, summed over the lanes.
#[inline(always)]
fn products<S: Simd>(s: S, outcome: &mut Outcome) {
    let x = std::array::from_fn::<_, LEN, _>(|i| whole(i, 2));
    let w = [3, 4, 5, 6].map(|seed| std::array::from_fn::<_, LEN, _>(|i| whole(i, seed)));
    let halves = w.map(|w| w.map(f16::from_f32));
    let brains = w.map(|w| w.map(bf16::from_f32));
    let mut sums = [[s.splat(0.0); 4]; 4];
    for at in (0..LEN).step_by(2 * S::LANES) {
        for k in 0..4 {
            // SAFETY: 2 LANES divide LEN.
            unsafe {
                let x = x.as_ptr().add(at);
                let [even, odd] = s.load_even_odd(x);
                for (half, parity) in [even, odd].into_iter().enumerate() {
                    let (near, at) = (s.load(x.add(half * S::LANES)), at + half * S::LANES);
                    let [mut a, mut b, mut c, d] = sums.map(|sums| sums[k]);
                    a = s.fma(near, s.load(w[k].as_ptr().add(at)), a);
                    b = s.fma(near, s.load_f16(halves[k].as_ptr().add(at)), b);
                    c = s.fma(near, s.load_bf16(brains[k].as_ptr().add(at)), c);
                    let pairs = brains[k].as_ptr().add(at - half * S::LANES);
                    let brain =
                        if half == 0 { s.load_bf16_even(pairs) } else { s.load_bf16_odd(pairs) };
                    for (sums, v) in sums.iter_mut().zip([a, b, c, s.fma(parity, brain, d)]) {
                        sums[k] = v;
                    }
                }
            }
        }
    }
    let names = ["products of f32", "products of f16", "products of bf16", "products of pairs"];
    for (operation, sums) in names.into_iter().zip(sums) {
        let mut out = [1.0; 4];
        // SAFETY: four values.
        unsafe { s.add_sums(sums, out.as_mut_ptr()) };
        outcome.floats(operation, &out);
    }
}

/// The products of bytes.
pub struct ByteCheck;

impl ByteWork for ByteCheck {
    type Output = Outcome;

    #[inline(always)]
    fn run<B: Bytes>(self, b: B) -> Outcome {
        let mut outcome = Outcome(Vec::new());
        for rows in 1..=2 {
            // SAFETY: the tile reads and writes what it owns.
            let sums = unsafe { b.tile(rows, &Sums) };
            // The second row is the first with another x: both are there whatever the tile.
            outcome.floats("products of bytes", &sums[..16 * rows]);
        }
        outcome
    }
}

/// Sixteen outputs of one or two rows: whole codes, low and high halves of codes, upper bits over
/// them, entries of a table.
struct Sums;

impl ByteTile for Sums {
    type Output = [f32; 32];

    #[inline(always)]
    unsafe fn run<B: Bytes, const R: usize, const V: usize>(&self, b: B) -> [f32; 32] {
        // Two products of extremes side by side leave 16 bits and must not saturate.
        let codes: [u8; LEN] =
            std::array::from_fn(|i| if i % 5 == 0 { 255 } else { (i * 29) as u8 });
        let table: [u8; 16] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let x = |row: usize, run: i32| 0x7f7f_8080i32.wrapping_add(run * 77 + row as i32);
        let s = b.vectors();
        let mut out = [0.0; 32];
        for row in 0..R.min(2) {
            for v in 0..V {
                // SAFETY: V vectors are sixteen outputs of four codes.
                unsafe {
                    let codes = b.codes(codes.as_ptr().add(4 * v * B::S::LANES));
                    let sums = b.dot(b.sums(-7), codes, x(row, 0));
                    let sums = b.dot(sums, b.low(codes), x(row, 1));
                    let (low, high) = (b.low(codes), b.high(codes));
                    let sums = b.dot(sums, high, x(row, 2));
                    let sums = b.dot(sums, b.over(low, high, 4, 0x30), x(row, 3));
                    let sums = b.dot(sums, b.over(high, low, 1, 0x10), x(row, 4));
                    let sums = b.dot(sums, b.look_up(low, &table), x(row, 5));
                    let to = out.as_mut_ptr().add(16 * row + v * B::S::LANES);
                    s.store(to, b.widen(sums));
                }
            }
        }
        out
    }
}

/// Values among which are subnormal ones and some whose products are tiny.
fn varied(i: usize) -> f32 {
    match i % 8 {
        0 => f32::from_bits(0x0040_0000),
        1 => f32::from_bits(0x0090_0000 + ((i as u32) << 16)),
        2 => -1.0e-20 * (i as f32 + 1.0),
        3 => 3.0e-19,
        _ => whole(i, 7) * 1.01,
    }
}

/// The dot products of bf16.
pub struct Bf16Check;

impl Bf16Work for Bf16Check {
    type Output = Outcome;

    #[inline(always)]
    fn run<D: Bf16Dots>(self, d: D) -> Outcome {
        let mut a: [bf16; 2 * LEN] = std::array::from_fn(|i| bf16::from_f32(varied(i)));
        let mut b: [bf16; 2 * LEN] = std::array::from_fn(|i| bf16::from_f32(varied(i * 3 + 1)));
        let mut start: [f32; LEN] = std::array::from_fn(|i| varied(i * 5 + 2) * 1.000_1);
        // A subnormal sum, and a subnormal product.
        (start[20], a[40], a[41]) = (1.0e-39, bf16::ZERO, bf16::ZERO);
        (start[21], a[42], a[43]) = (0.0, bf16::from_f32(1.0e-19), bf16::ZERO);
        b[42] = bf16::from_f32(1.0e-20);
        // 2²⁴ − 2²⁴ + 1: another order of the sums loses the 1.
        for lane in [5, 62] {
            start[lane] = 16_777_216.0;
            (a[2 * lane], a[2 * lane + 1]) = (bf16::ONE, bf16::from_f32(-16_777_216.0));
            (b[2 * lane], b[2 * lane + 1]) = (bf16::ONE, bf16::ONE);
        }
        let s = d.vectors();
        let (mut out, mut zipped) = ([[0.0; LEN]; 2], [bf16::ZERO; 2 * LEN]);
        for at in (0..LEN).step_by(D::S::LANES) {
            // SAFETY: LANES divides LEN.
            unsafe {
                let [first, second] = [&a, &b].map(|v| v.as_ptr().add(at));
                d.store_pairs(zipped.as_mut_ptr().add(2 * at), d.zip(first, second));
                let [a, b] = [&a, &b].map(|v| d.pairs(v.as_ptr().add(2 * at)));
                let sums = d.dot(s.load(start.as_ptr().add(at)), a, b);
                s.store(out[0].as_mut_ptr().add(at), sums);
                let sums = d.dot(sums, d.splat_pair([bf16::ONE, bf16::NEG_ONE]), b);
                s.store(out[1].as_mut_ptr().add(at), sums);
            }
        }
        let mut outcome = Outcome(Vec::new());
        outcome.floats("dot products of bf16", out.as_flattened());
        outcome.0.push(("pairs of bf16", zipped.map(|v| u32::from(v.to_bits())).to_vec()));
        outcome
    }
}

/// The products of tiles of bf16.
pub struct TileCheck;

impl TileWork for TileCheck {
    type Output = Outcome;

    #[inline(always)]
    fn run<T: Bf16Tiles>(self, t: T) -> Outcome {
        const STEPS: usize = 2;
        const SUMS: usize = TILE * TILE;
        let brain = |i: usize| bf16::from_f32(varied(i));
        let left: [bf16; 2 * TILE * STEPS * TILE_INPUTS] = std::array::from_fn(|i| brain(i * 5));
        let right: [bf16; 2 * TILE * STEPS * TILE_INPUTS] =
            std::array::from_fn(|i| brain(i * 3 + i / 64));
        let (mut sums, mut turned) = ([0.0; 4 * SUMS], [0.0; 4 * SUMS]);
        let (mut one, mut rounded) = ([0.0; TILE], [bf16::ZERO; TILE_INPUTS]);
        let wide: [f32; TILE_INPUTS] = std::array::from_fn(|i| edges()[i + 16]);
        // SAFETY: both hold a step's values.
        unsafe { t.round(wide.as_ptr(), rounded.as_mut_ptr()) };
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = varied(at * 5 + 2) * 1.000_1;
        }
        // Whole tiles, then parts of tiles that go on from their sums.
        for (rows, columns, fresh) in [(TILE, TILE, true), (5, 3, false)] {
            let shaped = t.shaped(rows, columns);
            // SAFETY: every array holds the tiles that it is read or written for.
            unsafe {
                let of = TileProduct {
                    left: left.as_ptr(),
                    left_row: 2 * STEPS * TILE_INPUTS,
                    left_tile: 2 * TILE * STEPS * TILE_INPUTS,
                    right: right.as_ptr(),
                    right_row: 4 * columns,
                    right_tile: 4 * columns * STEPS * TILE_INPUTS / 2,
                    steps: STEPS,
                    sums: sums.as_mut_ptr(),
                    sums_row: 4 * TILE,
                    sums_left: 8 * SUMS,
                    sums_right: 4 * SUMS,
                    fresh,
                    ahead: Ahead { first: left.as_ptr(), count: TILE, apart: 64, step: 64 },
                };
                T::multiply::<2, 2>(&shaped, &of);
                let of = TileProduct { fresh: false, ..of };
                T::multiply::<2, 1>(&shaped, &of);
                T::multiply::<1, 2>(&shaped, &of);
                T::multiply::<1, 1>(&shaped, &of);
                drop(shaped);
                for (tile, columns) in [columns, columns, 1, 1].into_iter().enumerate() {
                    let from = (sums.as_ptr().add(tile * SUMS), TILE);
                    let to = (turned.as_mut_ptr().add(tile * SUMS), TILE);
                    t.transpose([rows, columns], from, to, !fresh);
                    t.transpose([rows, columns], from, to, true);
                }
                t.transpose([1, TILE], (sums.as_ptr(), TILE), (one.as_mut_ptr(), 1), false);
            }
        }
        let mut outcome = Outcome(Vec::new());
        outcome.floats("products of tiles of bf16", &sums);
        outcome.floats("turned tiles", &turned);
        outcome.floats("turned rows", &one);
        let rounded = rounded.map(|v| u32::from(v.to_bits()));
        outcome.0.push(("steps rounded to bf16", rounded.to_vec()));
        outcome
    }
}
