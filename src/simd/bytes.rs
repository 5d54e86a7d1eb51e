//! Products of four bytes at a time: what products with quantised weights are written over.

use super::{
    portable::{Portable, each},
    vector::{Lanes, Run, Simd},
};

/// Sums of products of bytes in i32, one lane an output, beside the vectors of the same registers.
pub trait Bytes: Copy + Send + Sync {
    /// The vectors.
    type S: Simd;
    /// i32 of each lane.
    type I: Copy;
    /// Four codes (unsigned bytes) of each lane.
    type C: Copy;
    /// Rows of the register tile over sixteen outputs (at most).
    const ROWS: usize;

    /// The token of the vectors.
    fn vectors(self) -> Self::S;
    /// All lanes `value`.
    fn sums(self, value: i32) -> Self::I;
    /// To f32, rounded to nearest.
    fn widen(self, sums: Self::I) -> <Self::S as Lanes>::V;
    /// The low half of each byte.
    fn low(self, codes: Self::C) -> Self::C;
    /// The high half of each byte.
    fn high(self, codes: Self::C) -> Self::C;
    /// Each byte with some bits of a byte of `upper`, which is below 16, moved to the `left`, at most
    /// four places: those of `mask`.
    fn over(self, codes: Self::C, upper: Self::C, left: u32, mask: u8) -> Self::C;
    /// Of each byte, which is below 16, the entry of a table.
    fn look_up(self, places: Self::C, table: &[u8; 16]) -> Self::C;
    /// `sums + Σ₄ codes · x`, x four signed bytes, lowest first.
    fn dot(self, sums: Self::I, codes: Self::C, x: i32) -> Self::I;
    /// 4 LANES codes.
    /// # Safety
    /// `p` must be readable for 4 LANES bytes.
    unsafe fn codes(self, p: *const u8) -> Self::C;
    /// Does `rows` rows of a register tile.
    /// # Safety
    /// As `tile`; `rows` is in 1..=ROWS.
    unsafe fn tile<T: ByteTile>(self, rows: usize, tile: &T) -> T::Output;
}

/// A register tile over sixteen outputs. `run` must be `#[inline(always)]`.
pub trait ByteTile {
    /// What a tile gives.
    type Output;
    /// Does `R` rows; `V` vectors make sixteen outputs.
    /// # Safety
    /// The implementation's.
    unsafe fn run<B: Bytes, const R: usize, const V: usize>(&self, b: B) -> Self::Output;
}

/// Work that an instruction set compiles with its features. `run` must be `#[inline(always)]`.
pub trait ByteWork {
    /// What the work gives.
    type Output;
    /// Does the work.
    fn run<B: Bytes>(self, b: B) -> Self::Output;
}

/// [`ByteWork`] as work for a token.
pub(super) struct OfBytes<W>(pub W);

impl<W: ByteWork, B: Bytes> Run<B> for OfBytes<W> {
    type Output = W::Output;
    #[inline(always)]
    fn run(self, b: B) -> W::Output {
        self.0.run(b)
    }
}

impl Bytes for Portable {
    type S = Self;
    type I = [i32; Self::LANES];
    type C = [u32; Self::LANES];
    const ROWS: usize = 2;

    #[inline(always)]
    fn vectors(self) -> Self {
        self
    }
    #[inline(always)]
    fn sums(self, value: i32) -> Self::I {
        [value; Self::LANES]
    }
    #[inline(always)]
    fn widen(self, sums: Self::I) -> [f32; Self::LANES] {
        each(|i| sums[i] as f32)
    }
    #[inline(always)]
    fn low(self, codes: Self::C) -> Self::C {
        each(|i| codes[i] & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high(self, codes: Self::C) -> Self::C {
        each(|i| codes[i] >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn over(self, codes: Self::C, upper: Self::C, left: u32, mask: u8) -> Self::C {
        each(|i| codes[i] | upper[i] << left & u32::from_ne_bytes([mask; 4]))
    }
    #[inline(always)]
    fn look_up(self, places: Self::C, table: &[u8; 16]) -> Self::C {
        let entry = |place: u8| table[usize::from(place & 15)];
        each(|i| u32::from_ne_bytes(places[i].to_ne_bytes().map(entry)))
    }
    #[inline(always)]
    fn dot(self, sums: Self::I, codes: Self::C, x: i32) -> Self::I {
        let x = [0, 8, 16, 24].map(|at| i32::from((x >> at) as i8));
        each(|i| {
            let code = |at: u32| (codes[i] >> at & 0xff) as i32;
            sums[i] + code(0) * x[0] + code(8) * x[1] + code(16) * x[2] + code(24) * x[3]
        })
    }
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> Self::C {
        // SAFETY: the caller's.
        let codes = unsafe { p.cast::<[u32; Self::LANES]>().read_unaligned() };
        each(|i| u32::from_le(codes[i]))
    }
    #[inline(always)]
    unsafe fn tile<T: ByteTile>(self, rows: usize, tile: &T) -> T::Output {
        // SAFETY: the caller's.
        unsafe {
            match rows {
                1 => tile.run::<Self, 1, 2>(self),
                _ => tile.run::<Self, 2, 2>(self),
            }
        }
    }
}

// SAFETY of every block in the implementations below: the token proves the instructions, and the
// caller of an unsafe method proves its pointers.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ByteTile, Bytes};
    use crate::simd::x86::{Avx2, Avx512, Avx512Vnni};

    impl Bytes for Avx512Vnni {
        type S = Avx512;
        type I = __m512i;
        type C = __m512i;
        const ROWS: usize = 8;

        #[inline(always)]
        fn vectors(self) -> Avx512 {
            self.vectors()
        }
        #[inline(always)]
        fn sums(self, value: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(value) }
        }
        #[inline(always)]
        fn widen(self, sums: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(sums) }
        }
        #[inline(always)]
        fn low(self, codes: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(codes, _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        fn high(self, codes: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(codes), _mm512_set1_epi8(15)) }
        }
        #[inline(always)]
        fn over(self, codes: __m512i, upper: __m512i, left: u32, mask: u8) -> __m512i {
            unsafe {
                let upper = _mm512_sll_epi32(upper, _mm_cvtsi32_si128(left.cast_signed()));
                let mask = _mm512_set1_epi8(mask.cast_signed());
                _mm512_or_si512(codes, _mm512_and_si512(upper, mask))
            }
        }
        #[inline(always)]
        fn look_up(self, places: __m512i, table: &[u8; 16]) -> __m512i {
            unsafe {
                let table = _mm_loadu_si128(table.as_ptr().cast());
                _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), places)
            }
        }
        #[inline(always)]
        fn dot(self, sums: __m512i, codes: __m512i, x: i32) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x)) }
        }
        #[inline(always)]
        unsafe fn codes(self, p: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn tile<T: ByteTile>(self, rows: usize, tile: &T) -> T::Output {
            unsafe {
                match rows {
                    1 => tile.run::<Self, 1, 1>(self),
                    2 => tile.run::<Self, 2, 1>(self),
                    3 => tile.run::<Self, 3, 1>(self),
                    4 => tile.run::<Self, 4, 1>(self),
                    5 => tile.run::<Self, 5, 1>(self),
                    6 => tile.run::<Self, 6, 1>(self),
                    7 => tile.run::<Self, 7, 1>(self),
                    _ => tile.run::<Self, 8, 1>(self),
                }
            }
        }
    }

    impl Bytes for Avx2 {
        type S = Self;
        type I = __m256i;
        type C = __m256i;
        const ROWS: usize = 2;

        #[inline(always)]
        fn vectors(self) -> Self {
            self
        }
        #[inline(always)]
        fn sums(self, value: i32) -> __m256i {
            unsafe { _mm256_set1_epi32(value) }
        }
        #[inline(always)]
        fn widen(self, sums: __m256i) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(sums) }
        }
        #[inline(always)]
        fn low(self, codes: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(codes, _mm256_set1_epi8(15)) }
        }
        #[inline(always)]
        fn high(self, codes: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(codes), _mm256_set1_epi8(15)) }
        }
        #[inline(always)]
        fn over(self, codes: __m256i, upper: __m256i, left: u32, mask: u8) -> __m256i {
            unsafe {
                let upper = _mm256_sll_epi32(upper, _mm_cvtsi32_si128(left.cast_signed()));
                let mask = _mm256_set1_epi8(mask.cast_signed());
                _mm256_or_si256(codes, _mm256_and_si256(upper, mask))
            }
        }
        #[inline(always)]
        fn look_up(self, places: __m256i, table: &[u8; 16]) -> __m256i {
            unsafe {
                let table = _mm_loadu_si128(table.as_ptr().cast());
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), places)
            }
        }
        #[inline(always)]
        fn dot(self, sums: __m256i, codes: __m256i, x: i32) -> __m256i {
            // Bytes are widened to 16 bits first: the product of bytes would saturate.
            unsafe {
                let x = _mm256_set1_epi32(x);
                let even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
                let even_x = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                let odd =
                    _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), _mm256_srai_epi16::<8>(x));
                let both = _mm256_add_epi32(_mm256_madd_epi16(even, even_x), odd);
                _mm256_add_epi32(sums, both)
            }
        }
        #[inline(always)]
        unsafe fn codes(self, p: *const u8) -> __m256i {
            unsafe { _mm256_loadu_si256(p.cast()) }
        }
        #[inline(always)]
        unsafe fn tile<T: ByteTile>(self, rows: usize, tile: &T) -> T::Output {
            unsafe {
                match rows {
                    1 => tile.run::<Self, 1, 2>(self),
                    _ => tile.run::<Self, 2, 2>(self),
                }
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks)]
mod neon {
    use std::arch::aarch64::*;

    use super::{ByteTile, Bytes};
    use crate::simd::neon::Neon;

    impl Bytes for Neon {
        type S = Self;
        type I = int32x4_t;
        type C = uint8x16_t;
        const ROWS: usize = 2;

        #[inline(always)]
        fn vectors(self) -> Self {
            self
        }
        #[inline(always)]
        fn sums(self, value: i32) -> int32x4_t {
            unsafe { vdupq_n_s32(value) }
        }
        #[inline(always)]
        fn widen(self, sums: int32x4_t) -> float32x4_t {
            unsafe { vcvtq_f32_s32(sums) }
        }
        #[inline(always)]
        fn low(self, codes: uint8x16_t) -> uint8x16_t {
            unsafe { vandq_u8(codes, vdupq_n_u8(15)) }
        }
        #[inline(always)]
        fn high(self, codes: uint8x16_t) -> uint8x16_t {
            unsafe { vshrq_n_u8::<4>(codes) }
        }
        #[inline(always)]
        fn over(self, codes: uint8x16_t, upper: uint8x16_t, left: u32, mask: u8) -> uint8x16_t {
            unsafe {
                let upper = vshlq_u8(upper, vdupq_n_s8(left as i8));
                vorrq_u8(codes, vandq_u8(upper, vdupq_n_u8(mask)))
            }
        }
        #[inline(always)]
        fn look_up(self, places: uint8x16_t, table: &[u8; 16]) -> uint8x16_t {
            unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), places) }
        }
        #[inline(always)]
        fn dot(self, sums: int32x4_t, codes: uint8x16_t, x: i32) -> int32x4_t {
            // Products of an unsigned and a signed byte fit 16 bits.
            unsafe {
                let x = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(x)));
                let wide = |half| vreinterpretq_s16_u16(vmovl_u8(half));
                let first = vpaddlq_s16(vmulq_s16(wide(vget_low_u8(codes)), x));
                let second = vpaddlq_s16(vmulq_s16(wide(vget_high_u8(codes)), x));
                vaddq_s32(sums, vpaddq_s32(first, second))
            }
        }
        #[inline(always)]
        unsafe fn codes(self, p: *const u8) -> uint8x16_t {
            unsafe { vld1q_u8(p) }
        }
        #[inline(always)]
        unsafe fn tile<T: ByteTile>(self, rows: usize, tile: &T) -> T::Output {
            unsafe {
                match rows {
                    1 => tile.run::<Self, 1, 4>(self),
                    _ => tile.run::<Self, 2, 4>(self),
                }
            }
        }
    }
}
