//! Vectors of f32: what kernels are written over, once for all instruction sets.

use half::{bf16, f16};

/// Vectors of [`Lanes::LANES`] f32.
///
/// A value is a token: it exists only where the machine has the instructions, which is why methods
/// without pointers are safe. These operations give the same bits in every set.
pub trait Lanes: Copy + Send + Sync {
    /// Values in a vector.
    const LANES: usize;
    /// A vector.
    type V: Copy;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

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
    /// Stores LANES values.
    /// # Safety
    /// `p` must be writable for LANES values.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Stores LANES values past the caches, where the set can.
    /// # Safety
    /// `p` must be writable for LANES values and aligned to their size.
    unsafe fn stream(self, p: *mut f32, v: Self::V);
    /// Rounds to nearest even and stores; `STREAM` as [`Lanes::stream`].
    /// # Safety
    /// `p` must be writable for LANES values, and aligned to their size when `STREAM`.
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16, v: Self::V);
    /// Rounds to nearest even and stores; `STREAM` as [`Lanes::stream`].
    /// # Safety
    /// `p` must be writable for LANES values, and aligned to their size when `STREAM`.
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16, v: Self::V);
    /// The even-numbered of 2 LANES values, widened: cheaper than neighbours.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn load_bf16_even(self, p: *const bf16) -> Self::V;
    /// The odd-numbered of 2 LANES values, widened.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn load_bf16_odd(self, p: *const bf16) -> Self::V;
    /// [`Lanes::store_bf16`] of the even-numbered and the odd-numbered of 2 LANES values.
    /// # Safety
    /// `p` must be writable for 2 LANES values, and aligned to their size when `STREAM`.
    unsafe fn store_bf16_even_odd<const STREAM: bool>(self, p: *mut bf16, v: [Self::V; 2]);

    /// Requests the cache line of `p`, which may be any address.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        let _ = p;
    }
    /// Requests the cache line of `p` for later: into the second-level cache, where the set can.
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        self.prefetch(p);
    }
    /// Orders streamed stores before whatever publishes the values.
    #[inline(always)]
    fn fence(self) {}
}

/// What products need beyond [`Lanes`]. Sums of lanes go in one fixed tree, so a result does not
/// depend on which of the summing functions gave it.
pub trait Simd: Lanes {
    /// Rows of the register tile of a product: as many as leave the sums in registers.
    const ROWS: usize;
    /// Whether the set is more than loops that the compiler vectorises.
    const INTRINSICS: bool = true;
    /// Vectors of 16 lanes on the same registers.
    type Sixteen: Lanes;

    /// The token of [`Simd::Sixteen`].
    fn sixteen(self) -> Self::Sixteen;
    /// `a · b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// 2 LANES values: the even-numbered, then the odd-numbered.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn load_even_odd(self, p: *const f32) -> [Self::V; 2];
    /// Adds the sum of each vector's lanes to one of four consecutive values.
    /// # Safety
    /// `p` must be writable for four values.
    unsafe fn add_sums(self, v: [Self::V; 4], p: *mut f32);
    /// The same for each row of a tile, whose values lie `ld` apart.
    /// # Safety
    /// `p` must be writable for `M` rows of four values.
    #[inline(always)]
    unsafe fn add_row_sums<const M: usize>(self, v: [[Self::V; 4]; M], p: *mut f32, ld: usize) {
        for i in 0..M {
            // SAFETY: the caller's.
            unsafe { self.add_sums(v[i], p.add(i * ld)) };
        }
    }
}

/// Work that an instruction set compiles with its features. `run` must be `#[inline(always)]`: its
/// body then lands in the one function of a token that has the features.
pub trait Vectorised {
    /// Result of the work.
    type Output;
    /// Does the work.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Work for one token, of whatever kind: what a token compiles with its features.
pub(super) trait Run<T> {
    /// Result of the work.
    type Output;
    /// Does the work; `#[inline(always)]`, as [`Vectorised::run`].
    fn run(self, token: T) -> Self::Output;
}

/// [`Vectorised`] work as work for a token.
pub(super) struct Floats<W>(pub W);

impl<W: Vectorised, S: Simd> Run<S> for Floats<W> {
    type Output = W::Output;
    #[inline(always)]
    fn run(self, s: S) -> W::Output {
        self.0.run(s)
    }
}

/// Two vectors of a set side by side, as one of twice the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Twice<L>(pub L);

impl<L: Lanes> Lanes for Twice<L> {
    const LANES: usize = 2 * L::LANES;
    type V = [L::V; 2];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [self.0.splat(value); 2]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.add(a[0], b[0]), self.0.add(a[1], b[1])]
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.mul(a[0], b[0]), self.0.mul(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's.
        unsafe { [self.0.load(p), self.0.load(p.add(L::LANES))] }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Self::V {
        // SAFETY: the caller's.
        unsafe { [self.0.load_f16(p), self.0.load_f16(p.add(L::LANES))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's.
        unsafe { [self.0.load_bf16(p), self.0.load_bf16(p.add(L::LANES))] }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's.
        unsafe {
            self.0.store(p, v[0]);
            self.0.store(p.add(L::LANES), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's.
        unsafe {
            self.0.stream(p, v[0]);
            self.0.stream(p.add(L::LANES), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16, v: Self::V) {
        // SAFETY: the caller's.
        unsafe {
            self.0.store_f16::<STREAM>(p, v[0]);
            self.0.store_f16::<STREAM>(p.add(L::LANES), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16, v: Self::V) {
        // SAFETY: the caller's.
        unsafe {
            self.0.store_bf16::<STREAM>(p, v[0]);
            self.0.store_bf16::<STREAM>(p.add(L::LANES), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_even(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's.
        unsafe { [self.0.load_bf16_even(p), self.0.load_bf16_even(p.add(2 * L::LANES))] }
    }
    #[inline(always)]
    unsafe fn load_bf16_odd(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's.
        unsafe { [self.0.load_bf16_odd(p), self.0.load_bf16_odd(p.add(2 * L::LANES))] }
    }
    #[inline(always)]
    unsafe fn store_bf16_even_odd<const STREAM: bool>(
        self,
        p: *mut bf16,
        [even, odd]: [Self::V; 2],
    ) {
        // SAFETY: the caller's.
        unsafe {
            self.0.store_bf16_even_odd::<STREAM>(p, [even[0], odd[0]]);
            self.0.store_bf16_even_odd::<STREAM>(p.add(2 * L::LANES), [even[1], odd[1]]);
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        self.0.prefetch(p);
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        self.0.prefetch_far(p);
    }
    #[inline(always)]
    fn fence(self) {
        self.0.fence();
    }
}
