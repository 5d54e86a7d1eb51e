//! Weighted sums of one storage type, and sums in f32.

use super::kernel::{AHEAD_BYTES, Kernel, LANES, STEP, StorageRange, run};
use crate::simd::{Element, Isa, Lanes};

/// Terms that [`weighted_sum`] keeps in registers.
const MOST_TERMS: usize = 6;

/// `out = round(Σ cₖ·sourceₖ)` in one pass, all of one storage type; every source has the length
/// of `out`. Returns whether a sum may lie outside `limits`; `None`, with `out` untouched, when
/// there are more terms than fit the registers.
///
/// No term gives zeros; a single term with coefficient 1 is copied bit for bit.
pub fn weighted_sum<E: Element>(
    isa: Isa,
    out: &mut [E],
    terms: &[(&[E], f32)],
    limits: StorageRange,
) -> Option<bool> {
    match terms {
        [] => out.fill(E::ZERO),
        [(source, 1.0)] => out.copy_from_slice(source),
        _ if terms.len() > MOST_TERMS => return None,
        [_] => return Some(sum_of::<E, 1>(isa, out, terms, limits)),
        [_, _] => return Some(sum_of::<E, 2>(isa, out, terms, limits)),
        [_, _, _] => return Some(sum_of::<E, 3>(isa, out, terms, limits)),
        [_, _, _, _] => return Some(sum_of::<E, 4>(isa, out, terms, limits)),
        [_, _, _, _, _] => return Some(sum_of::<E, 5>(isa, out, terms, limits)),
        _ => return Some(sum_of::<E, MOST_TERMS>(isa, out, terms, limits)),
    }
    Some(false)
}

fn sum_of<E: Element, const N: usize>(
    isa: Isa,
    out: &mut [E],
    terms: &[(&[E], f32)],
    limits: StorageRange,
) -> bool {
    let mut sources = [terms[0].0; N];
    let mut coefficients = [0.0; N];
    for (k, &(source, c)) in terms.iter().enumerate() {
        assert_eq!(source.len(), out.len(), "a source as long as the output");
        (sources[k], coefficients[k]) = (source, c);
    }
    let sources = sources.map(<[E]>::as_ptr);
    let mut outside = false;
    run(isa, WeightedSum { out, sources, coefficients, limits, outside: &mut outside });
    outside
}

struct WeightedSum<'a, E, const N: usize> {
    out: &'a mut [E],
    /// Each readable for `out.len()` elements.
    sources: [*const E; N],
    coefficients: [f32; N],
    limits: StorageRange,
    outside: &'a mut bool,
}

impl<E: Element, const N: usize> WeightedSum<'_, E, N> {
    /// # Safety
    /// `sources` are as long as `out`, which is aligned to a cache line when `STREAM`.
    #[inline(always)]
    unsafe fn body<L: Lanes, const STREAM: bool>(self, l: L) {
        let (sources, coefficients) = (self.sources, self.coefficients);
        let (out, len) = (self.out.as_mut_ptr(), self.out.len());
        // SAFETY: the loop stays below `len`, which bounds every source too; iterations of STEP
        // elements keep the alignment.
        unsafe {
            let mut c = [l.splat(0.0); N];
            for k in 0..N {
                c[k] = l.splat(coefficients[k]);
            }
            let mut tests = l.splat(0.0);
            let mut i = 0;
            while i + STEP <= len {
                for source in sources {
                    let line = source.add(i).cast::<u8>().wrapping_add(AHEAD_BYTES);
                    l.prefetch(line);
                    if size_of::<E>() * STEP > 64 {
                        l.prefetch(line.wrapping_add(64));
                    }
                }
                let mut first = l.mul(E::first(l, sources[0].add(i)), c[0]);
                let mut second = l.mul(E::second(l, sources[0].add(i)), c[0]);
                for k in 1..N {
                    first = l.add(first, l.mul(E::first(l, sources[k].add(i)), c[k]));
                    second = l.add(second, l.mul(E::second(l, sources[k].add(i)), c[k]));
                }
                tests = l.add(tests, self.limits.test(l, first, second));
                E::store_both::<L, STREAM>(l, out.add(i), [first, second]);
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

impl<E: Element, const N: usize> Kernel for WeightedSum<'_, E, N> {
    fn plain(self, from: usize) {
        let Self { out, sources, coefficients, limits, outside } = self;
        let len = out.len();
        let out = out.as_mut_ptr();
        let mut beyond = false;
        for i in from..len {
            // SAFETY: `len` bounds the output and every source. Pointers, because a bounds check
            // per source keeps the loop from being vectorised.
            unsafe {
                let mut sum = (*sources[0].add(i)).widen() * coefficients[0];
                for k in 1..N {
                    sum += (*sources[k].add(i)).widen() * coefficients[k];
                }
                beyond |= limits.excludes(sum);
                *out.add(i) = E::narrow(sum);
            }
        }
        *outside |= beyond;
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

/// `sums = c·source` when `first`, else `sums += c·source`; equal lengths.
pub fn accumulate<E: Element>(isa: Isa, sums: &mut [f32], source: &[E], c: f32, first: bool) {
    assert_eq!(source.len(), sums.len(), "a source as long as the sums");
    if first {
        run(isa, Accumulate::<E, true> { sums, source, c });
    } else {
        run(isa, Accumulate::<E, false> { sums, source, c });
    }
}

struct Accumulate<'a, E, const FIRST: bool> {
    sums: &'a mut [f32],
    source: &'a [E],
    c: f32,
}

impl<E: Element, const FIRST: bool> Kernel for Accumulate<'_, E, FIRST> {
    fn plain(self, from: usize) {
        for (sum, value) in self.sums[from..].iter_mut().zip(&self.source[from..]) {
            let term = value.widen() * self.c;
            *sum = if FIRST { term } else { *sum + term };
        }
    }

    #[inline(always)]
    fn run<L: Lanes>(self, l: L, _: usize) {
        let (sums, len) = (self.sums.as_mut_ptr(), self.sums.len());
        // SAFETY: the loop stays below the common length.
        unsafe {
            let factor = l.splat(self.c);
            let mut i = 0;
            while i + LANES <= len {
                let from = self.source.as_ptr().add(i);
                l.prefetch(from.cast::<u8>().wrapping_add(AHEAD_BYTES));
                let to = sums.add(i);
                let term = l.mul(E::load(l, from), factor);
                l.store(to, if FIRST { term } else { l.add(l.load(to), term) });
                i += LANES;
            }
            self.plain(i);
        }
    }
}
