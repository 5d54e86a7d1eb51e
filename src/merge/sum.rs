//! The arithmetic of a merge on slices: weighted sums of one storage type in one pass, and the
//! f32 building blocks for everything else.
//!
//! Order of the operations on an element, in every path: `c₀x₀`, then `+ cₖxₖ` for each further
//! term, then `+ bᵣaᵣ` for each rank, all in f32, then one rounding to the storage type.

use crate::{
    kernels::Dtype,
    simd::{Element, Isa, Lanes, Simd, Vectorised},
};

/// Lanes that the kernels work on, whatever the registers of a set: [`Simd::Sixteen`].
const LANES: usize = 16;

/// How far ahead of the reads lines are requested. The hardware stops at each 4 KiB page.
const AHEAD_BYTES: usize = 2048;

/// Elements per iteration: a whole cache line of a 16-bit type, so that streamed lines are full.
const STEP: usize = 2 * LANES;

/// Rows that [`add_product`] takes at once (at most).
pub(super) const TILE_ROWS: usize = 8;

/// Terms that [`weighted_sum`] keeps in registers.
const MOST_TERMS: usize = 6;

/// A kernel on sixteen lanes. Every set widens, multiplies, adds and rounds in the same order,
/// without fused multiply-adds, so that all of them give the same bits.
trait Kernel {
    /// Scalar code from index `from` on: the whole kernel on the portable set, the last partial
    /// vector on the others.
    fn plain(self, from: usize);
    /// The whole kernel; `rows` is the height of a tile that leaves its sums in the set's registers.
    fn run<L: Lanes>(self, l: L, rows: usize);
}

/// Runs a kernel on an instruction set.
fn run<K: Kernel>(isa: Isa, kernel: K) {
    struct Work<K>(K);
    impl<K: Kernel> Vectorised for Work<K> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            if S::INTRINSICS {
                let rows = if S::LANES == LANES { TILE_ROWS } else { TILE_ROWS / 2 };
                self.0.run(s.sixteen(), rows);
            } else {
                self.0.plain(0);
            }
        }
    }
    isa.run(Work(kernel));
}

/// `out = round(Σ cₖ·sourceₖ)` in one pass, all of one storage type; every source has the length
/// of `out`. Returns whether a sum may lie outside `limits`; `None`, with `out` untouched, when
/// there are more terms than fit the registers.
///
/// No term gives zeros; a single term with coefficient 1 is copied bit for bit.
pub(super) fn weighted_sum<E: Element>(
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

/// The range of a storage type, as the kernels test it.
#[derive(Debug, Clone, Copy)]
pub(super) struct StorageRange {
    /// Sums round to finite values exactly when their magnitude is below it.
    limit: f32,
    /// A sum times it is infinite when the sum reaches `limit`, or comes near it by 1e-6.
    stretch: f32,
}

impl StorageRange {
    /// The range of `dtype`; of f32 for blocks, which are never the output of a merge.
    pub(super) fn of(dtype: Dtype) -> Self {
        let limit = match dtype {
            // Halfway from the largest value to the next that one exponent more would hold.
            Dtype::F16 => 65_520.0,
            Dtype::Bf16 => f32::from_bits(0x7f7f_8000),
            Dtype::F32 | Dtype::Quantised(_) => return Self { limit: f32::INFINITY, stretch: 1.0 },
        };
        Self { limit, stretch: f32::MAX / limit * (1.0 + 1e-6) }
    }

    fn excludes(self, sum: f32) -> bool {
        sum.abs() >= self.limit || sum.is_nan()
    }

    /// NaN in the lanes whose sum may lie outside the range, else 0.
    #[inline(always)]
    fn test<L: Lanes>(self, l: L, sums: L::V) -> L::V {
        l.mul(l.mul(sums, l.splat(self.stretch)), l.splat(0.0))
    }

    /// Whether a lane is NaN.
    #[inline(always)]
    fn any<L: Lanes>(l: L, tests: L::V) -> bool {
        assert_eq!(L::LANES, LANES, "vectors of sixteen");
        let mut lanes = [0.0; LANES];
        // SAFETY: as many values as lanes.
        unsafe { l.store(lanes.as_mut_ptr(), tests) };
        lanes.iter().any(|lane| lane.is_nan())
    }
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
                let mut low = l.mul(E::load(l, sources[0].add(i)), c[0]);
                let mut high = l.mul(E::load(l, sources[0].add(i + LANES)), c[0]);
                for k in 1..N {
                    low = l.add(low, l.mul(E::load(l, sources[k].add(i)), c[k]));
                    high = l.add(high, l.mul(E::load(l, sources[k].add(i + LANES)), c[k]));
                }
                tests = l.add(tests, self.limits.test(l, low));
                tests = l.add(tests, self.limits.test(l, high));
                let to = out.add(i);
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
pub(super) fn accumulate<E: Element>(
    isa: Isa,
    sums: &mut [f32],
    source: &[E],
    c: f32,
    first: bool,
) {
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

/// `down` `[ranks, width]` in panels `[panel, ranks, LANES]` for [`add_product`], the last one filled
/// up with zeros: a tile reads its columns in one run.
pub(super) fn panels(down: &[f32], ranks: usize) -> Vec<f32> {
    let width = down.len() / ranks.max(1);
    let mut panels = vec![0.0; width.div_ceil(LANES) * ranks * LANES];
    for (rank, row) in down.chunks_exact(width.max(1)).enumerate() {
        for (panel, columns) in row.chunks(LANES).enumerate() {
            let at = (panel * ranks + rank) * LANES;
            panels[at..at + columns.len()].copy_from_slice(columns);
        }
    }
    panels
}

/// `sums[o, :] += Σᵣ up[o, r]·down[r, :]` for `sums` `[rows, width]`, `up` `[rows, ranks]` and
/// `down` in [`panels`], ranks in order.
pub(super) fn add_product(
    isa: Isa,
    sums: &mut [f32],
    up: &[f32],
    down: &[f32],
    width: usize,
    ranks: usize,
) {
    let rows = sums.len() / width;
    assert_eq!(
        (sums.len(), up.len(), down.len()),
        (rows * width, rows * ranks, width.div_ceil(LANES) * ranks * LANES),
        "factors that fit the sums"
    );
    run(isa, AddProduct { sums, up, down, width, ranks, rows });
}

struct AddProduct<'a> {
    sums: &'a mut [f32],
    up: &'a [f32],
    down: &'a [f32],
    width: usize,
    ranks: usize,
    rows: usize,
}

impl AddProduct<'_> {
    /// `ROWS` rows from `row`, the [`LANES`] columns of a panel, held in registers over the ranks.
    ///
    /// # Safety
    /// The tile lies within the matrices.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const ROWS: usize>(&mut self, l: L, row: usize, panel: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.sums.as_mut_ptr().add(row * self.width + panel * LANES);
            let up = self.up.as_ptr().add(row * self.ranks);
            let down = self.down.as_ptr().add(panel * self.ranks * LANES);
            let mut sums = [l.splat(0.0); ROWS];
            for k in 0..ROWS {
                sums[k] = l.load(to.add(k * self.width));
            }
            for rank in 0..self.ranks {
                let a = l.load(down.add(rank * LANES));
                for k in 0..ROWS {
                    let b = l.splat(*up.add(k * self.ranks + rank));
                    sums[k] = l.add(sums[k], l.mul(b, a));
                }
            }
            for k in 0..ROWS {
                l.store(to.add(k * self.width), sums[k]);
            }
        }
    }

    /// # Safety
    /// As [`Self::tile`], for every row of a whole panel.
    #[inline(always)]
    unsafe fn panel<L: Lanes, const ROWS: usize>(&mut self, l: L, panel: usize) {
        let whole = self.rows / ROWS * ROWS;
        // SAFETY: the tiles cover rows 0..rows once.
        unsafe {
            for row in (0..whole).step_by(ROWS) {
                self.tile::<L, ROWS>(l, row, panel);
            }
            for row in whole..self.rows {
                self.tile::<L, 1>(l, row, panel);
            }
        }
    }
}

impl Kernel for AddProduct<'_> {
    /// Panels from `from` on.
    fn plain(self, from: usize) {
        let panels = self.down.chunks_exact((self.ranks * LANES).max(1)).enumerate().skip(from);
        for (panel, down) in panels {
            let columns = panel * LANES..self.width.min((panel + 1) * LANES);
            for (row, sums) in self.sums.chunks_exact_mut(self.width).enumerate() {
                let up = &self.up[row * self.ranks..(row + 1) * self.ranks];
                let sums = &mut sums[columns.clone()];
                let mut tile = [0.0; LANES];
                tile[..sums.len()].copy_from_slice(sums);
                for (b, down) in up.iter().zip(down.chunks_exact(LANES)) {
                    tile.iter_mut().zip(down).for_each(|(sum, a)| *sum += b * a);
                }
                sums.copy_from_slice(&tile[..sums.len()]);
            }
        }
    }

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L, rows: usize) {
        let whole = self.width / LANES;
        for panel in 0..whole {
            // SAFETY: a whole panel.
            unsafe {
                if rows == TILE_ROWS {
                    self.panel::<L, TILE_ROWS>(l, panel);
                } else {
                    self.panel::<L, { TILE_ROWS / 2 }>(l, panel);
                }
            }
        }
        self.plain(whole);
    }
}

/// Rounds `sums` to the storage type; equal lengths. Returns whether one may lie outside `limits`.
pub(super) fn round<E: Element>(
    isa: Isa,
    out: &mut [E],
    sums: &[f32],
    limits: StorageRange,
) -> bool {
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
                tests = l.add(tests, self.limits.test(l, low));
                tests = l.add(tests, self.limits.test(l, high));
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
