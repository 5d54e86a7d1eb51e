//! Sixteen f32 lanes: the seam between the merge kernels and the instruction sets.
//!
//! Every set widens, multiplies, adds and rounds in the same order (no fused multiply-add), so all
//! of them produce the same bits.

use std::fmt;

use half::{bf16, f16};

use crate::kernels::HostTensor;

/// Lanes of one vector.
pub(super) const LANES: usize = 16;

/// A storage type of weights.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// +0.
    const ZERO: Self;
    /// The elements of a tensor of this type.
    fn of(tensor: &HostTensor) -> Option<&[Self]>;
    /// Exact value as f32.
    fn widen(self) -> f32;
    /// Nearest value, ties to even; NaN stays NaN.
    fn narrow(value: f32) -> Self;
    /// Widens [`LANES`] elements.
    ///
    /// # Safety
    /// `from` is readable for [`LANES`] elements and the caller runs with the features of `L`.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
    /// Rounds [`LANES`] values; `STREAM` goes past the caches where the set can.
    ///
    /// # Safety
    /// `to` is writable for [`LANES`] elements, aligned to their total size when `STREAM`, and the
    /// caller runs with the features of `L`.
    unsafe fn store<L: Lanes, const STREAM: bool>(values: L, to: *mut Self);
}

macro_rules! element {
    ($type:ty, $of:ident, $zero:expr, $load:ident, $store:ident, $widen:expr, $narrow:expr) => {
        impl Element for $type {
            const ZERO: Self = $zero;
            fn of(tensor: &HostTensor) -> Option<&[Self]> {
                tensor.$of()
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            fn narrow(value: f32) -> Self {
                $narrow(value)
            }
            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const Self) -> L {
                // SAFETY: passed on to the caller.
                unsafe { L::$load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store<L: Lanes, const STREAM: bool>(values: L, to: *mut Self) {
                // SAFETY: passed on to the caller.
                unsafe { values.$store::<STREAM>(to.cast()) }
            }
        }
    };
}

element!(f32, as_f32, 0.0, load_f32, store_f32, |v: f32| v, |v: f32| v);
element!(f16, as_f16, f16::ZERO, load_f16, store_f16, |v: f16| widen_f16(v.to_bits()), |v: f32| {
    f16::from_bits(narrow_f16(v))
});
element!(
    bf16,
    as_bf16,
    bf16::ZERO,
    load_bf16,
    store_bf16,
    |v: bf16| widen_bf16(v.to_bits()),
    |v: f32| bf16::from_bits(narrow_bf16(v))
);

/// Sixteen f32 values in the registers of one instruction set.
///
/// # Safety
/// Every method may only run where the set's features were detected; loads and stores touch
/// [`LANES`] elements, and a store with `STREAM` needs an address aligned to what it writes.
pub(super) trait Lanes: Copy {
    /// Rows that the low-rank product keeps in registers at once: 4 or 8.
    const ROWS: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn load_f32(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn store_f32<const STREAM: bool>(self, to: *mut f32);
    unsafe fn store_f16<const STREAM: bool>(self, to: *mut u16);
    unsafe fn store_bf16<const STREAM: bool>(self, to: *mut u16);
}

/// Work that any instruction set can do.
pub(super) trait Kernel {
    /// Does what lies from index `from` on, in plain code that compilers vectorise: all of it where
    /// there are no lanes, else the rest that fills no vector.
    fn plain(self, from: usize);
    /// Does all of it on the lanes of one set.
    ///
    /// # Safety
    /// The features of `L` were detected.
    unsafe fn run<L: Lanes>(self);
}

/// An instruction set that the merge kernels run on, and that this machine was seen to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// No intrinsics: what the compiler makes of the target's baseline.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// Every level that this machine can run, slowest first.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut levels = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
                levels.push(Self(Set::Avx2));
            }
            if is_x86_feature_detected!("avx512f") {
                levels.push(Self(Set::Avx512));
            }
        }
        levels
    }

    /// The fastest level of this machine.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::PORTABLE)
    }

    /// Runs a kernel on this level.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: only `available` makes levels other than the portable one, from detection.
        unsafe {
            match self.0 {
                Set::Portable => kernel.plain(0),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => x86::run_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::Avx512 => x86::run_avx512(kernel),
            }
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
        })
    }
}

/// Asks for the cache line at `address`, which need not be mapped.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Orders streaming stores before whatever publishes the merged bytes.
#[inline(always)]
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[inline(always)]
fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Round to nearest, ties to even: half of the last kept place is added, less one when that place
/// is even. A NaN is only made quiet, since the addition could carry it into infinity.
#[inline(always)]
fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // An arithmetic shift: compilers know how to pack its result without SSE4.
    ((if value.is_nan() { bits | 0x0040_0000 } else { rounded }) as i32 >> 16) as u16
}

/// A product with 2¹¹² moves the exponent from bias 15 to 127, of subnormals too. Masks made by
/// shifts instead of branches, so that compilers vectorise it for any target.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    const INFINITY: i32 = 0x7c00 << 13;
    let word = i32::from(bits as i16) << 13;
    let magnitude = word & 0x0fff_e000;
    let finite = f32::from_bits(magnitude as u32) * f32::from_bits((127 + 112) << 23);
    let special = ((INFINITY - 1 - magnitude) >> 31) & 0x7f80_0000;
    let quiet = ((INFINITY - magnitude) >> 31) & 0x0040_0000;
    f32::from_bits(finite.to_bits() | (special | quiet | (word & i32::MIN)) as u32)
}

/// Round to nearest, ties to even. Below 2⁻¹⁴ the place of rounding is fixed at 2⁻²⁴, which is
/// where the addition of ½ puts it.
#[inline(always)]
fn narrow_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal =
        magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let infinite = if magnitude >= 143 << 23 { 0x7c00 } else { finite };
    let nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    let value = if magnitude > 0x7f80_0000 { nan } else { infinite };
    (value | ((bits >> 16) & 0x8000)) as u16
}

#[cfg(target_arch = "x86_64")]
#[path = "lanes_x86.rs"]
mod x86;
