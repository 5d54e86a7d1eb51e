//! The micro-tile of a product in pairs of bf16: the sums that stay in registers.

use half::bf16;

use super::tile::add_tile;
use crate::simd::{Bf16Dots, Lanes, Simd};

/// A micro-tile: `y[i, j] (+)= Σ x[i, ·] w[j, ·]`.
pub(super) struct PairTile {
    pub(super) x: *const bf16,
    pub(super) ldx: usize,
    pub(super) w: *const bf16,
    pub(super) ldw: usize,
    pub(super) y: *mut f32,
    pub(super) ldy: usize,
    /// Whether the sums replace what `y` holds.
    pub(super) fresh: bool,
    pub(super) chunks: usize,
    /// Rows of weights to prefetch meanwhile, chunk by chunk, and how far they lie apart.
    pub(super) next: *const bf16,
    pub(super) ld_next: usize,
}

impl PairTile {
    /// `rows` × `outputs` sums over all chunks of a vector of pairs. `AHEAD` rows are prefetched with
    /// each four outputs, four rows on each time.
    /// # Safety
    /// As [`Self::rows`], for all outputs.
    #[inline(always)]
    pub(super) unsafe fn outputs<D: Bf16Dots, const AHEAD: usize>(
        mut self,
        d: D,
        rows: usize,
        outputs: usize,
    ) {
        // SAFETY: the caller's.
        unsafe {
            for _ in 0..outputs / 4 {
                self.rows::<D, 4, AHEAD>(d, rows);
                self.w = self.w.add(4 * self.ldw);
                self.y = self.y.add(4);
                self.next = self.next.wrapping_add(4 * self.ld_next);
            }
            for _ in 0..outputs % 4 {
                self.rows::<D, 1, 0>(d, rows);
                self.w = self.w.add(self.ldw);
                self.y = self.y.add(1);
            }
        }
    }

    /// `rows` × `N` sums.
    /// # Safety
    /// `x` holds `rows` rows, `w` `N` rows of `chunks` chunks; `y` is `rows` × `N`, written
    /// by this task alone; `rows` is in 1..=`S::ROWS`.
    #[inline(always)]
    unsafe fn rows<D: Bf16Dots, const N: usize, const AHEAD: usize>(&self, d: D, rows: usize) {
        // SAFETY: the caller's; rows ≤ S::ROWS by the cut into tiles.
        unsafe {
            match rows {
                1 => self.sum::<D, 1, N, AHEAD>(d),
                2 => self.sum::<D, 2, N, AHEAD>(d),
                3 if D::S::ROWS >= 3 => self.sum::<D, 3, N, AHEAD>(d),
                4 if D::S::ROWS >= 4 => self.sum::<D, 4, N, AHEAD>(d),
                5 if D::S::ROWS >= 5 => self.sum::<D, 5, N, AHEAD>(d),
                6 if D::S::ROWS >= 6 => self.sum::<D, 6, N, AHEAD>(d),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
    }

    #[inline(always)]
    unsafe fn sum<D: Bf16Dots, const M: usize, const N: usize, const AHEAD: usize>(&self, d: D) {
        let (s, chunk_len) = (d.vectors(), 2 * D::S::LANES);
        let mut sums = [[s.splat(0.0); N]; M];
        // SAFETY: the caller's.
        unsafe {
            for chunk in 0..self.chunks {
                let (x, w) = (self.x.add(chunk * chunk_len), self.w.add(chunk * chunk_len));
                for row in 0..AHEAD {
                    let next = self.next.wrapping_add(row * self.ld_next + chunk * chunk_len);
                    s.prefetch_far(next.cast());
                }
                let mut wide = [d.splat_pair([bf16::ZERO; 2]); N];
                for j in 0..N {
                    wide[j] = d.pairs(w.add(j * self.ldw));
                }
                for i in 0..M {
                    let x = d.pairs(x.add(i * self.ldx));
                    for j in 0..N {
                        sums[i][j] = d.dot(sums[i][j], wide[j], x);
                    }
                }
            }
            if self.fresh {
                for i in 0..M {
                    self.y.add(i * self.ldy).cast::<[f32; N]>().write([0.0; N]);
                }
            }
            add_tile(s, sums, self.y, self.ldy);
        }
    }
}
