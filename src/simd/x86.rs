//! AVX-512 and AVX2.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::vector::{Lanes, Run, Simd, Twice};

/// Defines a token: proof that the machine has some features. The work that `run` gets is compiled
/// with them.
macro_rules! token {
    ($(#[$doc:meta])* $name:ident: $($feature:tt)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(());

        impl $name {
            /// The token, where the machine has the features.
            pub fn detect() -> Option<Self> {
                ($(is_x86_feature_detected!($feature))&&+).then_some(Self(()))
            }

            /// Does work with the features.
            #[inline(always)]
            pub(super) fn run<W: Run<Self>>(self, work: W) -> W::Output {
                #[target_feature($(enable = $feature),+)]
                fn inner<W: Run<$name>>(token: $name, work: W) -> W::Output {
                    work.run(token)
                }
                // SAFETY: `self` exists, so the features do.
                unsafe { inner(self, work) }
            }
        }
    };
}

token! {
    /// AVX-512 F, BW, DQ and VL, with what [`Avx2`] stands for.
    Avx512: "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma" "f16c"
}
token! {
    /// AVX2, FMA and F16C.
    Avx2: "avx2" "fma" "f16c"
}
token! {
    /// AVX-512 VNNI, with what [`Avx512`] stands for.
    Avx512Vnni: "avx512vnni" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma" "f16c"
}
token! {
    /// AVX512-BF16, with what [`Avx512Vnni`] stands for.
    Avx512Bf16:
        "avx512bf16" "avx512vnni" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx2" "fma" "f16c"
}

/// A token proves every smaller set.
macro_rules! includes {
    ($($set:ident: $method:ident -> $smaller:ident),+ $(,)?) => {
        $(impl $set {
            /// The token of a smaller set.
            #[inline(always)]
            pub(super) fn $method(self) -> $smaller {
                $smaller(())
            }
        })+
    };
}

includes!(
    Avx512Bf16: vnni -> Avx512Vnni,
    Avx512Bf16: vectors -> Avx512,
    Avx512Vnni: vectors -> Avx512,
    Avx512: avx2 -> Avx2,
);

// SAFETY of every block in the implementations: the token proves the instructions, and the caller of
// an unsafe method proves its pointers.

#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    const LANES: usize = 16;
    type V = __m512;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: __m512) {
        unsafe { _mm512_stream_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16, v: __m512) {
        unsafe { put256::<STREAM>(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16, v: __m512) {
        unsafe {
            let words = _mm512_srli_epi32::<16>(rounded_bf16_512(v));
            put256::<STREAM>(p.cast(), _mm512_cvtepi32_epi16(words));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_even(self, p: *const bf16) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_odd(self, p: *const bf16) -> __m512 {
        unsafe {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p.cast()), high))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_even_odd<const STREAM: bool>(
        self,
        p: *mut bf16,
        [even, odd]: [__m512; 2],
    ) {
        unsafe {
            let even = _mm512_srli_epi32::<16>(rounded_bf16_512(even));
            let v = _mm512_mask_blend_epi16(0xaaaa_aaaa, even, rounded_bf16_512(odd));
            if STREAM {
                _mm512_stream_si512(p.cast(), v);
            } else {
                _mm512_storeu_si512(p.cast(), v);
            }
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const ROWS: usize = 6;
    type Sixteen = Self;

    #[inline(always)]
    fn sixteen(self) -> Self {
        self
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn load_even_odd(self, p: *const f32) -> [__m512; 2] {
        unsafe {
            let even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            let (low, high) = (_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)));
            [even, odd].map(|lanes| _mm512_permutex2var_ps(low, lanes, high))
        }
    }
    #[inline(always)]
    unsafe fn add_sums(self, v: [__m512; 4], p: *mut f32) {
        unsafe {
            let v = sums_within_quarters(v);
            // Quarter i + quarter i+2, then the two.
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            add128(p, _mm_permute_ps::<0b11_01_10_00>(v));
        }
    }
    #[inline(always)]
    unsafe fn add_row_sums<const M: usize>(self, v: [[__m512; 4]; M], p: *mut f32, ld: usize) {
        unsafe {
            let mut done = 0;
            while done + 4 <= M {
                // Four rows at once: a quarter each.
                let ab = halves(sums_within_quarters(v[done]), sums_within_quarters(v[done + 1]));
                let cd =
                    halves(sums_within_quarters(v[done + 2]), sums_within_quarters(v[done + 3]));
                let v = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x88>(ab, cd),
                    _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                );
                let v = _mm512_permute_ps::<0b11_01_10_00>(v);
                let p = p.add(done * ld);
                add128(p, _mm512_castps512_ps128(v));
                add128(p.add(ld), _mm512_extractf32x4_ps::<1>(v));
                add128(p.add(2 * ld), _mm512_extractf32x4_ps::<2>(v));
                add128(p.add(3 * ld), _mm512_extractf32x4_ps::<3>(v));
                done += 4;
            }
            while done < M {
                self.add_sums(v[done], p.add(done * ld));
                done += 1;
            }
        }
    }
}

/// # Safety
/// AVX was detected, and `p` is writable for four values.
#[inline(always)]
unsafe fn add128(p: *mut f32, v: __m128) {
    // SAFETY: the caller's.
    unsafe { _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), v)) }
}

/// The sums of the halves of two vectors, side by side.
/// # Safety
/// AVX-512 F was detected.
#[inline(always)]
unsafe fn halves(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let crossed = _mm512_shuffle_f32x4::<0x4e>(a, b);
        _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), crossed)
    }
}

/// The sums of the halves of each quarter of two vectors, side by side.
/// # Safety
/// AVX-512 F was detected.
#[inline(always)]
unsafe fn halves_of_quarters(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let crossed = _mm512_shuffle_pd::<0x55>(_mm512_castps_pd(a), _mm512_castps_pd(b));
        _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_castpd_ps(crossed))
    }
}

/// The sums of lane i, i+2, then of the two, within each quarter of four vectors: those of the first,
/// third, second and fourth side by side.
/// # Safety
/// AVX-512 F was detected.
#[inline(always)]
unsafe fn sums_within_quarters([a, b, c, d]: [__m512; 4]) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let (ab, cd) = (halves_of_quarters(a, b), halves_of_quarters(c, d));
        let crossed = _mm512_permute_ps::<0b10_11_00_01>(_mm512_mask_blend_ps(0xaaaa, cd, ab));
        _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, ab, cd), crossed)
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    const LANES: usize = 8;
    type V = __m256;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: __m256) {
        unsafe { _mm256_stream_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16, v: __m256) {
        unsafe { put128::<STREAM>(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16, v: __m256) {
        unsafe {
            let words = _mm256_srli_epi32::<16>(rounded_bf16_256(v));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            put128::<STREAM>(p.cast(), _mm_packus_epi32(low, high));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_even(self, p: *const bf16) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_odd(self, p: *const bf16) -> __m256 {
        unsafe {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(p.cast()), high))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_even_odd<const STREAM: bool>(
        self,
        p: *mut bf16,
        [even, odd]: [__m256; 2],
    ) {
        unsafe {
            let even = _mm256_srli_epi32::<16>(rounded_bf16_256(even));
            let v = _mm256_blend_epi16::<0b1010_1010>(even, rounded_bf16_256(odd));
            put256::<STREAM>(p.cast(), v);
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const ROWS: usize = 3;
    type Sixteen = Twice<Self>;

    #[inline(always)]
    fn sixteen(self) -> Twice<Self> {
        Twice(self)
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn load_even_odd(self, p: *const f32) -> [__m256; 2] {
        unsafe {
            let (low, high) = (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)));
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(low, high);
            let odd = _mm256_shuffle_ps::<0b11_01_11_01>(low, high);
            // Each half took from both: pairs of lanes back into order.
            [even, odd].map(|v| {
                let pairs = _mm256_castps_pd(v);
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(pairs))
            })
        }
    }
    #[inline(always)]
    unsafe fn add_sums(self, [a, b, c, d]: [__m256; 4], p: *mut f32) {
        unsafe {
            // Lane i + lane i+4 of a and b, of c and d, halves side by side.
            let ab = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x31>(a, b),
            );
            let cd = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(c, d),
                _mm256_permute2f128_ps::<0x31>(c, d),
            );
            // i + i+2, then i + i+1: a and c in the low half, b and d in the high.
            let v =
                _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            let v = _mm256_add_ps(v, _mm256_movehdup_ps(v));
            let (ac, bd) = (_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let acbd = _mm_shuffle_ps::<0b10_00_10_00>(ac, bd);
            let sums = _mm_permute_ps::<0b11_01_10_00>(acbd);
            _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), sums));
        }
    }
}

/// The rounded bf16 values in the high halves of sixteen words; NaN stays NaN.
/// # Safety
/// AVX-512 F was detected.
#[inline(always)]
unsafe fn rounded_bf16_512(v: __m512) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let half = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_add_epi32(bits, half);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000))
    }
}

/// The rounded bf16 values in the high halves of eight words; NaN stays NaN.
/// # Safety
/// AVX2 was detected.
#[inline(always)]
unsafe fn rounded_bf16_256(v: __m256) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_add_epi32(bits, half);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(rounded, quiet, nan)
    }
}

/// # Safety
/// AVX was detected; `p` is writable for 32 bytes and aligned to them when `STREAM`.
#[inline(always)]
unsafe fn put256<const STREAM: bool>(p: *mut __m256i, v: __m256i) {
    // SAFETY: the caller's.
    unsafe { if STREAM { _mm256_stream_si256(p, v) } else { _mm256_storeu_si256(p, v) } }
}

/// # Safety
/// `p` is writable for 16 bytes and aligned to them when `STREAM`.
#[inline(always)]
unsafe fn put128<const STREAM: bool>(p: *mut __m128i, v: __m128i) {
    // SAFETY: the caller's.
    unsafe { if STREAM { _mm_stream_si128(p, v) } else { _mm_storeu_si128(p, v) } }
}

/// Whether dot products of bf16 take longer than f32: twice as long on Intel's processors that have
/// AVX512-FP16, whose tiles a hypervisor may hide.
pub(super) fn slow_pairs() -> bool {
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    let intel = name.as_flattened() == b"GenuineIntel";
    const AVX512_FP16: u32 = 1 << 23;
    intel && vendor.eax >= 7 && __cpuid_count(7, 0).edx & AVX512_FP16 != 0
}
