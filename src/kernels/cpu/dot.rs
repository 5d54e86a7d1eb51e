//! Products of four bytes at a time, once for all instruction sets: what products with quantised
//! weights are written over, as [`super::simd`] is for all others.

use super::simd::Isa;

/// A vector of i32 sums, one lane an output, and what goes with it.
pub(super) trait Dot: Copy + Send + Sync {
    /// Outputs in a vector.
    const LANES: usize;
    /// Rows of the register tile over sixteen outputs (at most).
    const ROWS: usize;
    /// f32 of each lane.
    type F: Copy;
    /// i32 of each lane.
    type I: Copy;
    /// Four codes (unsigned bytes) of each lane.
    type C: Copy;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F;
    /// All lanes `value`.
    fn sums(self, value: i32) -> Self::I;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To f32; the sums here are exact in it.
    fn widen(self, sums: Self::I) -> Self::F;
    /// The low half of each byte.
    fn low(self, codes: Self::C) -> Self::C;
    /// The high half of each byte.
    fn high(self, codes: Self::C) -> Self::C;
    /// `sums + Σ₄ codes · x`, x four signed bytes, lowest first.
    fn dot(self, sums: Self::I, codes: Self::C, x: i32) -> Self::I;
    /// LANES values.
    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Stores LANES values.
    /// # Safety
    /// `p` must be writable for LANES values.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// LANES f16, widened.
    /// # Safety
    /// `p` must be readable for 2 LANES bytes.
    unsafe fn halves(self, p: *const u8) -> Self::F;
    /// 4 LANES codes.
    /// # Safety
    /// `p` must be readable for 4 LANES bytes.
    unsafe fn codes(self, p: *const u8) -> Self::C;
    /// Brings a line towards the caches; any address will do.
    fn prefetch(self, p: *const u8);
    /// Does a register tile of `rows` rows.
    /// # Safety
    /// As `tile`; `rows` is in 1..=ROWS.
    unsafe fn tile<T: Tile>(self, rows: usize, tile: &T);
}

/// A register tile over sixteen outputs. `run` must be `#[inline(always)]`.
pub(super) trait Tile {
    /// Does `R` rows; `V` vectors make sixteen outputs.
    /// # Safety
    /// The implementation's.
    unsafe fn run<D: Dot, const R: usize, const V: usize>(&self, d: D);
}

/// Work that [`Level::run`] compiles once per instruction set. `run` must be `#[inline(always)]`.
pub(super) trait Dotted {
    /// Does the work.
    fn run<D: Dot>(self, d: D);
}

/// What the machine offers for products of bytes.
#[derive(Clone, Copy)]
pub(super) enum Level {
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni(x86::Vnni),
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    /// What every machine has.
    Portable,
}

impl Level {
    /// The best within an instruction set; AVX-512 without VNNI goes with AVX2.
    pub(super) fn of(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let vnni = (isa.name() == "avx512").then(x86::Vnni::detect).flatten();
            let avx2 = (isa.name() != "portable").then(x86::Avx2::detect).flatten();
            if let Some(level) = vnni.map(Self::Vnni).or(avx2.map(Self::Avx2)) {
                return level;
            }
        }
        let _ = isa;
        Self::Portable
    }

    #[inline(always)]
    pub(super) fn run(self, work: impl Dotted) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(d) => d.run(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(d) => d.run(work),
            Self::Portable => work.run(Portable),
        }
    }
}

/// Arrays that the compiler vectorises with what the target has.
#[derive(Clone, Copy)]
struct Portable;

const WIDE: usize = 8;

#[inline(always)]
fn lanes<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; WIDE] {
    let mut out = [T::default(); WIDE];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = f(lane);
    }
    out
}

impl Dot for Portable {
    const LANES: usize = WIDE;
    const ROWS: usize = 2;
    type F = [f32; WIDE];
    type I = [i32; WIDE];
    type C = [u32; WIDE];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; WIDE]
    }
    #[inline(always)]
    fn sums(self, value: i32) -> Self::I {
        [value; WIDE]
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn widen(self, sums: Self::I) -> Self::F {
        lanes(|i| sums[i] as f32)
    }
    #[inline(always)]
    fn low(self, codes: Self::C) -> Self::C {
        lanes(|i| codes[i] & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn high(self, codes: Self::C) -> Self::C {
        lanes(|i| codes[i] >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    fn dot(self, sums: Self::I, codes: Self::C, x: i32) -> Self::I {
        let x = [0, 8, 16, 24].map(|at| i32::from((x >> at) as i8));
        lanes(|i| {
            let code = |at: u32| (codes[i] >> at & 0xff) as i32;
            sums[i] + code(0) * x[0] + code(8) * x[1] + code(16) * x[2] + code(24) * x[3]
        })
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller's.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: the caller's.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8) -> Self::F {
        // SAFETY: the caller's.
        let bits = unsafe { p.cast::<[u16; WIDE]>().read_unaligned() };
        lanes(|i| half::f16::from_bits(bits[i]).to_f32())
    }
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> Self::C {
        // SAFETY: the caller's.
        let codes = unsafe { p.cast::<[u32; WIDE]>().read_unaligned() };
        lanes(|i| u32::from_le(codes[i]))
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    unsafe fn tile<T: Tile>(self, rows: usize, tile: &T) {
        // SAFETY: the caller's.
        unsafe {
            match rows {
                1 => tile.run::<Self, 1, 2>(self),
                _ => tile.run::<Self, 2, 2>(self),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! AVX-512 with VNNI, and AVX2.

    use std::arch::x86_64::*;

    use super::{Dot, Dotted, Tile};

    macro_rules! token {
        ($name:ident, $features:literal, $($feature:tt),+) => {
            #[doc = concat!("Proof that the machine has ", $features, ".")]
            #[derive(Clone, Copy)]
            pub struct $name(());

            impl $name {
                /// The token, where the machine has the features.
                pub(super) fn detect() -> Option<Self> {
                    ($(is_x86_feature_detected!($feature))&&+).then_some(Self(()))
                }

                #[inline(always)]
                pub(super) fn run<W: Dotted>(self, work: W) {
                    #[target_feature(enable = $features)]
                    fn inner<W: Dotted>(d: $name, work: W) {
                        work.run(d);
                    }
                    // SAFETY: `self` exists, so the features do.
                    unsafe { inner(self, work) }
                }
            }
        };
    }

    token!(
        Vnni,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512vnni",
        "avx2",
        "fma",
        "f16c"
    );
    token!(Avx2, "avx2,fma,f16c", "avx2", "fma", "f16c");

    // SAFETY of every block in the two implementations: the token proves the instructions, and the
    // caller of an unsafe method proves its pointers.

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Dot for Vnni {
        const LANES: usize = 16;
        const ROWS: usize = 8;
        type F = __m512;
        type I = __m512i;
        type C = __m512i;

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        fn sums(self, value: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(value) }
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
        fn dot(self, sums: __m512i, codes: __m512i, x: i32) -> __m512i {
            unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x)) }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn halves(self, p: *const u8) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn codes(self, p: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        fn prefetch(self, p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn tile<T: Tile>(self, rows: usize, tile: &T) {
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

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Dot for Avx2 {
        const LANES: usize = 8;
        const ROWS: usize = 2;
        type F = __m256;
        type I = __m256i;
        type C = __m256i;

        #[inline(always)]
        fn splat(self, value: f32) -> __m256 {
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        fn sums(self, value: i32) -> __m256i {
            unsafe { _mm256_set1_epi32(value) }
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
        unsafe fn load(self, p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn halves(self, p: *const u8) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn codes(self, p: *const u8) -> __m256i {
            unsafe { _mm256_loadu_si256(p.cast()) }
        }
        #[inline(always)]
        fn prefetch(self, p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn tile<T: Tile>(self, rows: usize, tile: &T) {
            unsafe {
                match rows {
                    1 => tile.run::<Self, 1, 2>(self),
                    _ => tile.run::<Self, 2, 2>(self),
                }
            }
        }
    }
}
