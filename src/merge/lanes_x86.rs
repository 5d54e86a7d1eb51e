//! The lanes in AVX2 and AVX-512 registers.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

/// Runs a kernel with AVX2 code.
///
/// # Safety
/// AVX2 and F16C were detected.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: the features are the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

/// Runs a kernel with AVX-512 code.
///
/// # Safety
/// AVX-512 F was detected.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: the features are the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

/// The rounded bf16 values in the low halves of eight words.
///
/// # Safety
/// AVX2 was detected.
#[inline(always)]
unsafe fn round_bf16(value: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(value);
        let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_add_epi32(bits, half);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
}

// SAFETY for every block below: the trait's contract gives the features, the extent and, for
// streams, the alignment.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            )
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_f32<const STREAM: bool>(self, to: *mut f32) {
        unsafe {
            if STREAM {
                _mm256_stream_ps(to, self.0);
                _mm256_stream_ps(to.add(8), self.1);
            } else {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, to: *mut u16) {
        unsafe {
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1);
            if STREAM {
                _mm_stream_si128(to.cast(), low);
                _mm_stream_si128(to.add(8).cast(), high);
            } else {
                _mm_storeu_si128(to.cast(), low);
                _mm_storeu_si128(to.add(8).cast(), high);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, to: *mut u16) {
        unsafe {
            // The pack works within 128-bit halves; the permutation puts the quarters in order.
            let packed = _mm256_packus_epi32(round_bf16(self.0), round_bf16(self.1));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            if STREAM {
                _mm256_stream_si256(to.cast(), packed);
            } else {
                _mm256_storeu_si256(to.cast(), packed);
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

impl Avx512 {
    /// # Safety
    /// As [`Lanes::store_bf16`].
    #[inline(always)]
    unsafe fn put<const STREAM: bool>(values: __m256i, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe {
            if STREAM {
                _mm256_stream_si256(to.cast(), values);
            } else {
                _mm256_storeu_si256(to.cast(), values);
            }
        }
    }
}

// SAFETY for every block below: the trait's contract gives the features, the extent and, for
// streams, the alignment.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    const ROWS: usize = 8;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store_f32<const STREAM: bool>(self, to: *mut f32) {
        unsafe {
            if STREAM {
                _mm512_stream_ps(to, self.0);
            } else {
                _mm512_storeu_ps(to, self.0);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, to: *mut u16) {
        unsafe { Self::put::<STREAM>(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0), to) }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, to: *mut u16) {
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, half);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
            let packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept));
            Self::put::<STREAM>(packed, to);
        }
    }
}
