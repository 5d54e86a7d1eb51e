//! The vector instructions that the kernels are written over, once for all instruction sets.
//!
//! A [`Simd`] value is a token: it exists only where the machine has its instructions. Kernels are
//! [`Vectorised`] values whose body is inlined into one function per instruction set, compiled with
//! that set's features; [`Isa::run`] calls the right one.

use half::{bf16, f16};

/// Vector operations on [`Simd::LANES`] f32. Sums of lanes go in one fixed tree, so a result does
/// not depend on which of the summing functions gave it.
pub(super) trait Simd: Copy + Send + Sync {
    /// Values in a vector.
    const LANES: usize;
    /// Rows of the register tile of a product: as many as leave the sums in registers.
    const ROWS: usize;
    /// A vector.
    type V: Copy;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// LANES values.
    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// LANES values, widened.
    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// LANES values, widened.
    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// The even-numbered of 2 LANES values, widened: cheaper than neighbours.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn load_bf16_even(self, p: *const bf16) -> Self::V;
    /// The odd-numbered of 2 LANES values, widened.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn load_bf16_odd(self, p: *const bf16) -> Self::V;
    /// 2 LANES values: the even-numbered, then the odd-numbered.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn load_even_odd(self, p: *const f32) -> [Self::V; 2];
    /// Stores LANES values.
    /// # Safety
    /// `p` must be writable for LANES values.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Adds the sum of each vector's lanes to one of four consecutive values.
    /// # Safety
    /// `p` must be writable for four values.
    unsafe fn add_sums(self, v: [Self::V; 4], p: *mut f32);
    /// Brings a line towards the caches; any address will do.
    fn prefetch(self, p: *const u8);
}

/// Work that [`Isa::run`] compiles once per instruction set. `run` must be `#[inline(always)]`.
pub(super) trait Vectorised {
    /// Does the work.
    fn run<S: Simd>(self, s: S);
}

/// An instruction set of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Avx512),
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    /// What every machine has.
    Portable,
}

impl Isa {
    /// Every instruction set of this machine, best first.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(x86::Avx512::detect().map(|s| Self(Set::Avx512(s))));
            all.extend(x86::Avx2::detect().map(|s| Self(Set::Avx2(s))));
        }
        all.push(Self(Set::Portable));
        all
    }

    /// The best instruction set of this machine.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "avx2",
            Set::Portable => "portable",
        }
    }

    /// f32 in one of its vectors.
    pub(super) fn lanes(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => x86::Avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => x86::Avx2::LANES,
            Set::Portable => Portable::LANES,
        }
    }

    #[inline(always)]
    pub(super) fn run(self, work: impl Vectorised) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(s) => s.run(work),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(s) => s.run(work),
            Set::Portable => work.run(Portable),
        }
    }
}

/// Arrays that the compiler vectorises with what the target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Portable;

const WIDE: usize = 8;

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(usize) -> f32) -> [f32; WIDE] {
        let mut out = [0.0; WIDE];
        for (lane, out) in out.iter_mut().enumerate() {
            *out = f(lane);
        }
        out
    }
}

impl Simd for Portable {
    const LANES: usize = WIDE;
    const ROWS: usize = 2;
    type V = [f32; WIDE];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; WIDE]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        self.map(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        self.map(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Two roundings: f32::mul_add is a library call where there is no such instruction.
        self.map(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's.
        unsafe { p.cast::<Self::V>().read() }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Self::V {
        // SAFETY: the caller's.
        let v = unsafe { p.cast::<[f16; WIDE]>().read() };
        self.map(|i| v[i].to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's.
        let v = unsafe { p.cast::<[u16; WIDE]>().read() };
        self.map(|i| f32::from_bits(u32::from(v[i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_bf16_even(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's.
        let v = unsafe { p.cast::<[u16; 2 * WIDE]>().read() };
        self.map(|i| f32::from_bits(u32::from(v[2 * i]) << 16))
    }
    #[inline(always)]
    unsafe fn load_bf16_odd(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's.
        let v = unsafe { p.cast::<[u16; 2 * WIDE]>().read() };
        self.map(|i| f32::from_bits(u32::from(v[2 * i + 1]) << 16))
    }
    #[inline(always)]
    unsafe fn load_even_odd(self, p: *const f32) -> [Self::V; 2] {
        // SAFETY: the caller's.
        unsafe { [0, 1].map(|odd| std::array::from_fn(|i| *p.add(2 * i + odd))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's.
        unsafe { p.cast::<Self::V>().write(v) }
    }
    #[inline(always)]
    unsafe fn add_sums(self, v: [Self::V; 4], p: *mut f32) {
        for (i, v) in v.iter().enumerate() {
            let mut half = [0.0; 4];
            for (lane, half) in half.iter_mut().enumerate() {
                *half = v[lane] + v[lane + 4];
            }
            // SAFETY: the caller's.
            unsafe { *p.add(i) += (half[0] + half[2]) + (half[1] + half[3]) };
        }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! AVX-512 and AVX2.

    use std::arch::x86_64::*;

    use super::{Simd, Vectorised, bf16, f16};

    macro_rules! token {
        ($name:ident, $features:literal, $($feature:tt),+) => {
            #[doc = concat!("Proof that the machine has ", $features, ".")]
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name(());

            impl $name {
                /// The token, where the machine has the features.
                pub(super) fn detect() -> Option<Self> {
                    ($(is_x86_feature_detected!($feature))&&+).then_some(Self(()))
                }

                #[inline(always)]
                pub(super) fn run<W: Vectorised>(self, work: W) {
                    #[target_feature(enable = $features)]
                    fn inner<W: Vectorised>(s: $name, work: W) {
                        work.run(s);
                    }
                    // SAFETY: `self` exists, so the features do.
                    unsafe { inner(self, work) }
                }
            }
        };
    }

    token!(
        Avx512,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx2",
        "fma",
        "f16c"
    );
    token!(Avx2, "avx2,fma,f16c", "avx2", "fma", "f16c");

    // SAFETY of every block in the two implementations: the token proves the instructions, and the
    // caller of an unsafe method proves its pointers.

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx512 {
        const LANES: usize = 16;
        const ROWS: usize = 6;
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
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
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
        unsafe fn load_even_odd(self, p: *const f32) -> [__m512; 2] {
            unsafe {
                let even =
                    _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
                let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
                let (low, high) = (_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)));
                [even, odd].map(|lanes| _mm512_permutex2var_ps(low, lanes, high))
            }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn add_sums(self, [a, b, c, d]: [__m512; 4], p: *mut f32) {
            unsafe {
                // Lane i + lane i+8 of a and b, of c and d; then i + i+4, the four side by side.
                let ab = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x44>(a, b),
                    _mm512_shuffle_f32x4::<0xee>(a, b),
                );
                let cd = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x44>(c, d),
                    _mm512_shuffle_f32x4::<0xee>(c, d),
                );
                let v = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0x88>(ab, cd),
                    _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                );
                let v = _mm512_add_ps(v, _mm512_permute_ps::<0b01_00_11_10>(v));
                let v = _mm512_add_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v));
                let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
                let sums = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, v));
                _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), sums));
            }
        }
        #[inline(always)]
        fn prefetch(self, p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    }

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx2 {
        const LANES: usize = 8;
        const ROWS: usize = 3;
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
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
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
        unsafe fn store(self, p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
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
                let v = _mm256_add_ps(
                    _mm256_shuffle_ps::<0x44>(ab, cd),
                    _mm256_shuffle_ps::<0xee>(ab, cd),
                );
                let v = _mm256_add_ps(v, _mm256_movehdup_ps(v));
                let (ac, bd) = (_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let acbd = _mm_shuffle_ps::<0b10_00_10_00>(ac, bd);
                let sums = _mm_permute_ps::<0b11_01_10_00>(acbd);
                _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), sums));
            }
        }
        #[inline(always)]
        fn prefetch(self, p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    }
}
