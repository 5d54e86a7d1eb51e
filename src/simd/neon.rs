//! NEON, which every aarch64 machine has.

use std::arch::{aarch64::*, asm};

use half::{bf16, f16};

use super::vector::{Lanes, Run, Simd, Twice};

/// NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neon(());

impl Neon {
    /// The token, where the machine has the features.
    pub fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// Does work; the target's baseline has the features.
    #[inline(always)]
    pub(super) fn run<W: Run<Self>>(self, work: W) -> W::Output {
        work.run(self)
    }
}

// SAFETY of every block in the implementations: the token proves the instructions, and the caller of
// an unsafe method proves its pointers. The conversions of f16 are written as instructions because
// their intrinsics are not stable.

#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Neon {
    const LANES: usize = 4;
    type V = float32x4_t;

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> float32x4_t {
        unsafe {
            let (half, wide): (uint16x4_t, float32x4_t) = (vld1_u16(p.cast()), vdupq_n_f32(0.0));
            let mut wide = wide;
            asm!(
                "fcvtl {wide:v}.4s, {half:v}.4h",
                wide = inout(vreg) wide,
                half = in(vreg) half,
                options(pure, nomem, nostack, preserves_flags)
            );
            wide
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16, v: float32x4_t) {
        unsafe {
            let half: uint16x4_t;
            asm!(
                "fcvtn {half:v}.4h, {wide:v}.4s",
                half = out(vreg) half,
                wide = in(vreg) v,
                options(pure, nomem, nostack, preserves_flags)
            );
            vst1_u16(p.cast(), half);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16, v: float32x4_t) {
        unsafe { vst1_u16(p.cast(), vshrn_n_u32::<16>(rounded_bf16(v))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_even(self, p: *const bf16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vld1q_u32(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_odd(self, p: *const bf16) -> float32x4_t {
        unsafe {
            let pairs = vld1q_u32(p.cast());
            vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff_0000)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_even_odd<const STREAM: bool>(
        self,
        p: *mut bf16,
        [even, odd]: [float32x4_t; 2],
    ) {
        unsafe { vst1q_u32(p.cast(), vsriq_n_u32::<16>(rounded_bf16(odd), rounded_bf16(even))) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        unsafe {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        unsafe {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags));
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    const ROWS: usize = 6;
    type Sixteen = Twice<Twice<Self>>;

    #[inline(always)]
    fn sixteen(self) -> Twice<Twice<Self>> {
        Twice(Twice(self))
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn load_even_odd(self, p: *const f32) -> [float32x4_t; 2] {
        unsafe {
            let float32x4x2_t(even, odd) = vld2q_f32(p);
            [even, odd]
        }
    }
    #[inline(always)]
    unsafe fn add_sums(self, [a, b, c, d]: [float32x4_t; 4], p: *mut f32) {
        unsafe {
            // Neighbours, then pairs of neighbours.
            let sums = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
            vst1q_f32(p, vaddq_f32(vld1q_f32(p), sums));
        }
    }
}

/// The rounded bf16 values in the high halves of four words; NaN stays NaN.
/// # Safety
/// NEON was detected.
#[inline(always)]
unsafe fn rounded_bf16(v: float32x4_t) -> uint32x4_t {
    // SAFETY: the caller's.
    unsafe {
        let bits = vreinterpretq_u32_f32(v);
        let even = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(even, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
        vbslq_u32(vceqq_f32(v, v), rounded, quiet)
    }
}
