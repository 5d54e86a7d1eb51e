//! The ranks of a low-rank layer in pairs.

use std::ops::Range;

use half::bf16;

use super::panel::{NarrowPanels, PANEL, PanelSums, TILE_ROWS, WIDTH};
use crate::{
    kernels::cpu::{
        grid::reserve,
        tensor::{Line, brains, brains_mut},
    },
    simd::{Bf16Dots, Bf16Work, Lanes},
};

/// A panel `[rank, output]` as `[pair of ranks, output, 2]` with `pairs` pairs, filled up with zeros.
#[inline(always)]
pub(super) fn zip<'a, D: Bf16Dots>(
    d: D,
    b: &[bf16],
    pairs: usize,
    scratch: &'a mut Vec<Line>,
) -> &'a [bf16] {
    let zipped = brains_mut(reserve(scratch, pairs * PANEL));
    let zeros = [bf16::ZERO; PANEL];
    let mut ranks = b.chunks_exact(PANEL);
    for zipped in zipped.chunks_exact_mut(2 * PANEL) {
        let [first, second] = [ranks.next(), ranks.next()].map(|rank| rank.unwrap_or(&zeros));
        for at in (0..PANEL).step_by(D::S::LANES) {
            // SAFETY: both ranks have a panel of outputs, which LANES divide.
            unsafe {
                let v = d.zip(first.as_ptr().add(at), second.as_ptr().add(at));
                d.store_pairs(zipped.as_mut_ptr().add(2 * at), v);
            }
        }
    }
    zipped
}

impl Bf16Work for NarrowPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<D: Bf16Dots>(self, d: D) {
        let Self { panels, x, b } = self;
        let mut scratch = std::mem::take(panels.scratch);
        let pairs = panels.grid.x.width().div_ceil(2);
        let (x, ldx) = (brains(x.data()), 2 * x.width());
        for panel in panels.panels.clone() {
            let b = zip(d, &b[panels.range(panel)], pairs, &mut scratch);
            panels.tiles(panel, panels.rows.clone(), TILE_ROWS, &PairSums { d, x, ldx, b });
        }
        *panels.scratch = scratch;
    }
}

/// Sums of pairs of ranks in bf16.
struct PairSums<'a, D> {
    d: D,
    x: &'a [bf16],
    ldx: usize,
    /// `[pair, output, 2]`
    b: &'a [bf16],
}

impl<D: Bf16Dots> PanelSums for PairSums<'_, D> {
    #[inline(always)]
    unsafe fn add(&self, rows: Range<usize>, y: *mut f32, ldy: usize) {
        let &Self { d, x, ldx, b } = self;
        let x = (&x[rows.start * ldx..rows.end * ldx], ldx);
        // SAFETY: the caller's; x has whole pairs.
        unsafe {
            match rows.len() {
                1 => sum_pairs::<D, 1>(d, x, b, (y, ldy)),
                2 => sum_pairs::<D, 2>(d, x, b, (y, ldy)),
                3 => sum_pairs::<D, 3>(d, x, b, (y, ldy)),
                4 => sum_pairs::<D, 4>(d, x, b, (y, ldy)),
                5 => sum_pairs::<D, 5>(d, x, b, (y, ldy)),
                6 => sum_pairs::<D, 6>(d, x, b, (y, ldy)),
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}

/// `y[i, ·] += Σ x[i, pair] b[pair, ·]` for `M` rows and one panel, pairs in order.
/// # Safety
/// `x` has M rows of all pairs of `b`, `ldx` values apart; `y` M rows of a panel, `ldy` apart,
/// written by this task alone.
#[inline(always)]
unsafe fn sum_pairs<D: Bf16Dots, const M: usize>(
    d: D,
    (x, ldx): (&[bf16], usize),
    b: &[bf16],
    (y, ldy): (*mut f32, usize),
) {
    let (s, lanes) = (d.vectors(), D::S::LANES);
    for at in (0..PANEL).step_by(WIDTH * lanes) {
        // SAFETY: the caller's.
        unsafe {
            let y = y.add(at);
            let mut sums = [[s.splat(0.0); WIDTH]; M];
            for i in 0..M {
                for j in 0..WIDTH {
                    sums[i][j] = s.load(y.add(i * ldy + j * lanes));
                }
            }
            for (pair, b) in b.chunks_exact(2 * PANEL).enumerate() {
                let mut wide = [d.splat_pair([bf16::ZERO; 2]); WIDTH];
                for j in 0..WIDTH {
                    wide[j] = d.pairs(b.as_ptr().add(2 * (at + j * lanes)));
                }
                for i in 0..M {
                    let at = i * ldx + 2 * pair;
                    let x = d.splat_pair([*x.get_unchecked(at), *x.get_unchecked(at + 1)]);
                    for j in 0..WIDTH {
                        sums[i][j] = d.dot(sums[i][j], wide[j], x);
                    }
                }
            }
            for i in 0..M {
                for j in 0..WIDTH {
                    s.store(y.add(i * ldy + j * lanes), sums[i][j]);
                }
            }
        }
    }
}
