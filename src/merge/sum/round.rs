//! Rounding of sums to a storage type.

use super::kernel::{Kernel, LANES, STEP, StorageRange, run};
use crate::simd::{Element, Isa, Lanes};

/// Rounds `sums` to the storage type; equal lengths. Returns whether one may lie outside `limits`.
pub fn round<E: Element>(isa: Isa, out: &mut [E], sums: &[f32], limits: StorageRange) -> bool {
    assert_eq!(out.len(), sums.len(), "as many sums as outputs");
    let mut outside = false;
    run(isa, Round { out, sums, limits, outside: &mut outside });
    outside
}

struct Round<'a, E> {
    out: &'a mut [E],
    sums: &'a [f32],
    limits: StorageRange,
    outside: &'a mut bool,
}

impl<E: Element> Round<'_, E> {
    /// # Safety
    /// `out` is aligned to a cache line when `STREAM`.
    #[inline(always)]
    unsafe fn body<L: Lanes, const STREAM: bool>(self, l: L) {
        let (out, len) = (self.out.as_mut_ptr(), self.out.len());
        // SAFETY: the loop stays below the common length; STEP keeps the alignment.
        unsafe {
            let mut tests = l.splat(0.0);
            let mut i = 0;
            while i + STEP <= len {
                let (from, to) = (self.sums.as_ptr().add(i), out.add(i));
                let (low, high) = (l.load(from), l.load(from.add(LANES)));
                tests = l.add(tests, self.limits.test(l, low, high));
                E::store::<L, STREAM>(l, to, low);
                E::store::<L, STREAM>(l, to.add(LANES), high);
                i += STEP;
            }
            *self.outside |= StorageRange::any(l, tests);
            if STREAM {
                l.fence();
            }
            self.plain(i);
        }
    }
}

impl<E: Element> Kernel for Round<'_, E> {
    fn plain(self, from: usize) {
        let mut beyond = false;
        for (out, sum) in self.out[from..].iter_mut().zip(&self.sums[from..]) {
            beyond |= self.limits.excludes(*sum);
            *out = E::narrow(*sum);
        }
        *self.outside |= beyond;
    }

    #[inline(always)]
    fn run<L: Lanes>(self, l: L, _: usize) {
        // SAFETY: lengths were compared when this was made, and the alignment is looked at here.
        unsafe {
            if self.out.as_ptr().addr().is_multiple_of(64) {
                self.body::<L, true>(l);
            } else {
                self.body::<L, false>(l);
            }
        }
    }
}
