//! Dot products of pairs of bf16: the instructions' exact models, and the instruction where it is.
//!
//! `vdpbf16ps` (AVX512-BF16) and `tdpbf16ps` (AMX-BF16) multiply pairs of bf16 and add to f32 by
//! fused multiply-adds, rounded to nearest even, that take subnormal inputs for 0 and give 0 for
//! subnormal results, whatever the control register says. They differ in the order of the sums.

use half::bf16;

use super::{
    portable::{Portable, each, widen_bf16},
    vector::{Lanes, Run, Simd},
};

/// Dot products of pairs of bf16, one lane a sum, beside the vectors of the same registers.
pub trait Bf16Dots: Copy + Send + Sync {
    /// The vectors.
    type S: Simd;
    /// Two bf16 of each lane.
    type P: Copy;

    /// The token of the vectors.
    fn vectors(self) -> Self::S;
    /// The same pair in all lanes.
    fn splat_pair(self, pair: [bf16; 2]) -> Self::P;
    /// `sums + a₁b₁ + a₀b₀` in each lane, as [`dot`].
    fn dot(self, sums: <Self::S as Lanes>::V, a: Self::P, b: Self::P) -> <Self::S as Lanes>::V;
    /// LANES pairs.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn pairs(self, p: *const bf16) -> Self::P;
    /// Stores LANES pairs.
    /// # Safety
    /// `p` must be writable for 2 LANES values.
    unsafe fn store_pairs(self, p: *mut bf16, v: Self::P);
    /// LANES pairs of a value of `first` and one of `second`.
    /// # Safety
    /// Both must be readable for LANES values.
    unsafe fn zip(self, first: *const bf16, second: *const bf16) -> Self::P;
}

/// Work that an instruction set compiles with its features. `run` must be `#[inline(always)]`.
pub trait Bf16Work {
    /// Result of the work.
    type Output;
    /// Does the work.
    fn run<D: Bf16Dots>(self, d: D) -> Self::Output;
}

/// [`Bf16Work`] as work for a token.
pub(super) struct OfPairs<W>(pub W);

impl<W: Bf16Work, D: Bf16Dots> Run<D> for OfPairs<W> {
    type Output = W::Output;
    #[inline(always)]
    fn run(self, d: D) -> W::Output {
        self.0.run(d)
    }
}

/// One lane of `vdpbf16ps`: `(sum + a₁b₁) + a₀b₀`, the odd-numbered product first.
pub fn dot(sum: f32, a: [bf16; 2], b: [bf16; 2]) -> f32 {
    multiply_add(a[0], b[0], multiply_add(a[1], b[1], sum))
}

/// `tdpbf16ps`: `c[m, n] += Σₖ a[m, 2k] b[k, 2n] + Σₖ a[m, 2k+1] b[k, 2n+1]`, the sums of the even-
/// and the odd-numbered products apart, each over k in order, then added, then added to c.
///
/// `c` is `[rows, columns]`; `a` `[rows, 2 · pairs]`; `b` `[pairs, 2 · columns]`, two rows of the
/// right matrix interleaved. A tile register holds 16 rows of 64 bytes.
pub fn tile(c: &mut [f32], a: &[bf16], b: &[bf16], columns: usize) {
    let width = 2 * columns;
    let rows = c.len() / columns;
    let pairs = b.len() / width;
    assert_eq!((c.len(), a.len(), b.len()), (rows * columns, rows * 2 * pairs, pairs * width));
    for (a, c) in a.chunks_exact(2 * pairs).zip(c.chunks_exact_mut(columns)) {
        for (n, c) in c.iter_mut().enumerate() {
            let [even, odd] = [0, 1].map(|parity| {
                (0..pairs).fold(0.0, |sum, k| {
                    multiply_add(a[2 * k + parity], b[k * width + 2 * n + parity], sum)
                })
            });
            *c = flushed_sum(*c, flushed_sum(even, odd));
        }
    }
}

/// `a · b + c` as the instructions round it.
fn multiply_add(a: bf16, b: bf16, c: f32) -> f32 {
    let [a, b] = [a, b].map(|v| flush(widen_bf16(v.to_bits())));
    let c = flush(c);
    // The product of two bf16 is exact in f64.
    flush_tiny(a.mul_add(b, c), f64::from(a) * f64::from(b), f64::from(c))
}

/// `a + b` as the instructions round it.
fn flushed_sum(a: f32, b: f32) -> f32 {
    let (a, b) = (flush(a), flush(b));
    flush_tiny(a + b, f64::from(a), f64::from(b))
}

/// 0 of the same sign for a subnormal.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

/// 0 of the same sign where `rounded`, the sum of `a` and `b` in f32, is tiny: below the least normal
/// after rounding to 24 bits with an exponent of any size.
fn flush_tiny(rounded: f32, a: f64, b: f64) -> f32 {
    if rounded.abs() != f32::MIN_POSITIVE {
        return flush(rounded);
    }
    // 24 bits have a place of rounding twice as fine there as subnormals have, so a sum may round to
    // the least normal in f32 and still be tiny: sum and error of the sum (Knuth's two-sum) tell.
    let sign = f64::from(rounded.signum());
    let (a, b) = (a * sign, b * sign);
    let sum = a + b;
    let virtual_b = sum - a;
    let error = (a - (sum - virtual_b)) + (b - virtual_b);
    let least = f64::from(f32::MIN_POSITIVE);
    let edge = least - least * f64::from(f32::EPSILON) / 4.0;
    if sum < edge || sum == edge && error < 0.0 { 0f32.copysign(rounded) } else { rounded }
}

/// The model replaces a missing instruction: correct, but slow.
impl Bf16Dots for Portable {
    type S = Self;
    type P = [[bf16; 2]; Self::LANES];

    fn vectors(self) -> Self {
        self
    }
    fn splat_pair(self, pair: [bf16; 2]) -> Self::P {
        [pair; Self::LANES]
    }
    fn dot(self, sums: [f32; Self::LANES], a: Self::P, b: Self::P) -> [f32; Self::LANES] {
        each(|i| dot(sums[i], a[i], b[i]))
    }
    unsafe fn pairs(self, p: *const bf16) -> Self::P {
        // SAFETY: the caller's.
        unsafe { p.cast::<Self::P>().read() }
    }
    unsafe fn store_pairs(self, p: *mut bf16, v: Self::P) {
        // SAFETY: the caller's.
        unsafe { p.cast::<Self::P>().write(v) }
    }
    unsafe fn zip(self, first: *const bf16, second: *const bf16) -> Self::P {
        // SAFETY: the caller's.
        std::array::from_fn(|i| unsafe { [*first.add(i), *second.add(i)] })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::Bf16Dots;
    use crate::simd::x86::{Avx512, Avx512Bf16};

    // SAFETY of every block: the token proves the instructions, the caller its pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Bf16Dots for Avx512Bf16 {
        type S = Avx512;
        type P = __m512i;

        #[inline(always)]
        fn vectors(self) -> Avx512 {
            self.vectors()
        }
        #[inline(always)]
        fn splat_pair(self, [low, high]: [bf16; 2]) -> __m512i {
            let word = u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
            unsafe { _mm512_set1_epi32(word as i32) }
        }
        #[inline(always)]
        fn dot(self, sums: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: both types are 64 bytes of which every pattern is a value.
            unsafe {
                let [a, b] = [a, b].map(|v| std::mem::transmute::<__m512i, __m512bh>(v));
                _mm512_dpbf16_ps(sums, a, b)
            }
        }
        #[inline(always)]
        unsafe fn pairs(self, p: *const bf16) -> __m512i {
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn store_pairs(self, p: *mut bf16, v: __m512i) {
            unsafe { _mm512_storeu_si512(p.cast(), v) }
        }
        #[inline(always)]
        unsafe fn zip(self, first: *const bf16, second: *const bf16) -> __m512i {
            unsafe {
                let [first, second] = [first, second]
                    .map(|p| _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast::<__m256i>())));
                _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
            }
        }
    }
}
