//! Products of low-rank factors, added to sums.

use super::kernel::{Kernel, LANES, TILE_ROWS, run};
use crate::simd::{Isa, Lanes};

/// `down` `[ranks, width]` in panels `[panel, ranks, LANES]` for [`add_product`], the last one filled
/// up with zeros: a tile reads its columns in one run.
pub fn panels(down: &[f32], ranks: usize) -> Vec<f32> {
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
pub fn add_product(
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
