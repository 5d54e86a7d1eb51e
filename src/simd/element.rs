//! The storage types of weights.

use half::{bf16, f16};

use super::{
    portable::{narrow_bf16, narrow_f16, widen_bf16, widen_f16},
    vector::Lanes,
};

/// A storage type of weights, keys and values.
///
/// # Safety
/// Every bit pattern is a value.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// +0.
    const ZERO: Self;
    /// Rows of a product's register tile (at most): widening takes registers too.
    const ROWS: usize;

    /// Exact value as f32.
    fn widen(self) -> f32;
    /// Nearest value, ties to even; NaN stays NaN.
    fn narrow(value: f32) -> Self;
    /// LANES values, widened.
    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load<L: Lanes>(l: L, p: *const Self) -> L::V;
    /// Rounds and stores LANES values; `STREAM` as [`Lanes::stream`].
    /// # Safety
    /// `p` must be writable for LANES values, and aligned to their size when `STREAM`.
    unsafe fn store<L: Lanes, const STREAM: bool>(l: L, p: *mut Self, v: L::V);
    /// LANES of 2 LANES values, widened: those that are the cheapest to widen first.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    #[inline(always)]
    unsafe fn first<L: Lanes>(l: L, p: *const Self) -> L::V {
        // SAFETY: the caller's.
        unsafe { Self::load(l, p) }
    }
    /// The other LANES values.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    #[inline(always)]
    unsafe fn second<L: Lanes>(l: L, p: *const Self) -> L::V {
        // SAFETY: the caller's.
        unsafe { Self::load(l, p.add(L::LANES)) }
    }
    /// Rounds and stores 2 LANES values: those of [`Element::first`], those of [`Element::second`].
    /// # Safety
    /// As [`Element::store`], for 2 LANES values.
    #[inline(always)]
    unsafe fn store_both<L: Lanes, const STREAM: bool>(l: L, p: *mut Self, v: [L::V; 2]) {
        // SAFETY: the caller's.
        unsafe {
            Self::store::<L, STREAM>(l, p, v[0]);
            Self::store::<L, STREAM>(l, p.add(L::LANES), v[1]);
        }
    }
}

// SAFETY: every word is an f32.
unsafe impl Element for f32 {
    const ZERO: Self = 0.0;
    const ROWS: usize = 6;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, p: *const Self) -> L::V {
        // SAFETY: the caller's.
        unsafe { l.load(p) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes, const STREAM: bool>(l: L, p: *mut Self, v: L::V) {
        // SAFETY: the caller's.
        unsafe { if STREAM { l.stream(p, v) } else { l.store(p, v) } }
    }
}

// SAFETY: every half-word is an f16.
unsafe impl Element for f16 {
    const ZERO: Self = Self::ZERO;
    const ROWS: usize = 4;

    #[inline(always)]
    fn widen(self) -> f32 {
        widen_f16(self.to_bits())
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_bits(narrow_f16(value))
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, p: *const Self) -> L::V {
        // SAFETY: the caller's.
        unsafe { l.load_f16(p) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes, const STREAM: bool>(l: L, p: *mut Self, v: L::V) {
        // SAFETY: the caller's.
        unsafe { l.store_f16::<STREAM>(p, v) }
    }
}

// SAFETY: every half-word is a bf16.
unsafe impl Element for bf16 {
    const ZERO: Self = Self::ZERO;
    const ROWS: usize = 4;

    #[inline(always)]
    fn widen(self) -> f32 {
        widen_bf16(self.to_bits())
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_bits(narrow_bf16(value))
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, p: *const Self) -> L::V {
        // SAFETY: the caller's.
        unsafe { l.load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes, const STREAM: bool>(l: L, p: *mut Self, v: L::V) {
        // SAFETY: the caller's.
        unsafe { l.store_bf16::<STREAM>(p, v) }
    }
    /// The even-numbered values: a shift widens them.
    #[inline(always)]
    unsafe fn first<L: Lanes>(l: L, p: *const Self) -> L::V {
        // SAFETY: the caller's.
        unsafe { l.load_bf16_even(p) }
    }
    /// The odd-numbered values: a mask widens them.
    #[inline(always)]
    unsafe fn second<L: Lanes>(l: L, p: *const Self) -> L::V {
        // SAFETY: the caller's.
        unsafe { l.load_bf16_odd(p) }
    }
    #[inline(always)]
    unsafe fn store_both<L: Lanes, const STREAM: bool>(l: L, p: *mut Self, v: [L::V; 2]) {
        // SAFETY: the caller's.
        unsafe { l.store_bf16_even_odd::<STREAM>(p, v) }
    }
}
