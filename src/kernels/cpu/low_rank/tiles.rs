//! The ranks of a low-rank layer in tiles: rows of x are the left ones, a panel's outputs the right
//! ones.

use std::ops::Range;

use half::bf16;

use super::{
    pairs::zip,
    panel::{MOST_ROWS, NarrowPanels, PANEL, PanelSums},
};
use crate::{
    kernels::cpu::{tensor::brains, tiles::whole_and_rest},
    simd::{Ahead, Bf16Tiles, TILE, TILE_INPUTS, TileProduct, TileWork},
};

impl TileWork for NarrowPanels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<T: Bf16Tiles>(self, t: T) {
        let Self { panels, x, b } = self;
        let steps = panels.grid.x.width().div_ceil(TILE_INPUTS);
        let mut scratch = std::mem::take(panels.scratch);
        let (x, ldx) = (brains(x.data()), 2 * x.width());
        for rows in whole_and_rest(panels.rows.clone()) {
            let shaped = &t.shaped(rows.len().min(TILE), TILE);
            for panel in panels.panels.clone() {
                let pairs = steps * TILE_INPUTS / 2;
                let b = zip(t.dots(), &b[panels.range(panel)], pairs, &mut scratch);
                let sums = TileSums::<T> { shaped, x, ldx, b, steps };
                panels.tiles(panel, rows.clone(), MOST_ROWS, &sums);
            }
        }
        *panels.scratch = scratch;
    }
}

/// Sums of the ranks of a tile at a time.
struct TileSums<'a, T: Bf16Tiles> {
    shaped: &'a T::Shaped,
    x: &'a [bf16],
    ldx: usize,
    /// `[pair, output, 2]`
    b: &'a [bf16],
    steps: usize,
}

impl<T: Bf16Tiles> PanelSums for TileSums<'_, T> {
    #[inline(always)]
    unsafe fn add(&self, rows: Range<usize>, y: *mut f32, ldy: usize) {
        for first in (0..PANEL).step_by(2 * TILE) {
            // SAFETY: x has the rows, b the panel; y is the caller's.
            unsafe {
                let of = TileProduct {
                    left: self.x[rows.start * self.ldx..].as_ptr(),
                    left_row: 2 * self.ldx,
                    left_tile: 2 * TILE * self.ldx,
                    right: self.b[2 * first..].as_ptr(),
                    right_row: 4 * PANEL,
                    right_tile: 4 * TILE,
                    steps: self.steps,
                    sums: y.add(first),
                    sums_row: 4 * ldy,
                    sums_left: 4 * TILE * ldy,
                    sums_right: 4 * TILE,
                    fresh: false,
                    ahead: Ahead::NONE,
                };
                match rows.len().div_ceil(TILE) {
                    2 => T::multiply::<2, 2>(self.shaped, &of),
                    _ => T::multiply::<1, 2>(self.shaped, &of),
                }
            }
        }
    }
}
