//! The micro-tile of a product: the sums that stay in registers.

use crate::simd::{Element, Simd};

/// Bytes of a cache line.
pub(super) const LINE_BYTES: usize = 64;
/// How far ahead of their use (at least) weights are prefetched into the second-level cache, in
/// bytes: longer than memory takes to answer at the rate of its bandwidth.
pub(super) const AHEAD_BYTES: usize = 32 * 1024;

/// A micro-tile: `y[i, j] += Σ x[i, ·] w[j, ·]`.
pub(super) struct MicroTile<E> {
    pub(super) x: *const f32,
    pub(super) ldx: usize,
    pub(super) w: *const E,
    pub(super) ldw: usize,
    pub(super) y: *mut f32,
    pub(super) ldy: usize,
    pub(super) chunks: usize,
    /// Address to prefetch from meanwhile.
    pub(super) next: *const u8,
}

impl<E: Element> MicroTile<E> {
    /// `rows` × `N` sums over all chunks, added to `y`; `AHEAD` lines a chunk are prefetched from
    /// `next` on.
    /// # Safety
    /// `x` holds `rows` rows, `w` `N` rows of `chunks` chunks; `y` is `rows` × `N`, written
    /// by this task alone; `rows` is in 1..=`S::ROWS`.
    #[inline(always)]
    pub(super) unsafe fn rows<S: Simd, const N: usize, const AHEAD: usize>(
        &self,
        s: S,
        rows: usize,
    ) {
        // SAFETY: the caller's; rows ≤ S::ROWS by the cut into tiles.
        unsafe {
            match rows {
                1 => self.sum::<S, 1, N, AHEAD>(s),
                2 => self.sum::<S, 2, N, AHEAD>(s),
                3 if S::ROWS >= 3 => self.sum::<S, 3, N, AHEAD>(s),
                4 if S::ROWS >= 4 => self.sum::<S, 4, N, AHEAD>(s),
                5 if S::ROWS >= 5 => self.sum::<S, 5, N, AHEAD>(s),
                6 if S::ROWS >= 6 => self.sum::<S, 6, N, AHEAD>(s),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
    }

    #[inline(always)]
    unsafe fn sum<S: Simd, const M: usize, const N: usize, const AHEAD: usize>(&self, s: S) {
        let mut sums = [[s.splat(0.0); N]; M];
        // SAFETY: the caller's.
        unsafe {
            for chunk in 0..self.chunks {
                let (x, w) = (self.x.add(chunk * 2 * S::LANES), self.w.add(chunk * 2 * S::LANES));
                for line in 0..AHEAD {
                    let line = chunk * AHEAD + line;
                    s.prefetch_far(self.next.wrapping_add(line * LINE_BYTES));
                }
                let mut wide = [s.splat(0.0); N];
                for j in 0..N {
                    wide[j] = E::first(s, w.add(j * self.ldw));
                }
                for i in 0..M {
                    let x = s.load(x.add(i * self.ldx));
                    for j in 0..N {
                        sums[i][j] = s.fma(x, wide[j], sums[i][j]);
                    }
                }
                for j in 0..N {
                    wide[j] = E::second(s, w.add(j * self.ldw));
                }
                for i in 0..M {
                    let x = s.load(x.add(i * self.ldx + S::LANES));
                    for j in 0..N {
                        sums[i][j] = s.fma(x, wide[j], sums[i][j]);
                    }
                }
            }
            add_tile(s, sums, self.y, self.ldy);
        }
    }
}

/// Adds the lanes of the sums of a tile of `M` rows and `N` outputs (4, or fewer) to `y`.
/// # Safety
/// `y` is `M` × `N`, its rows `ld` apart, written by this task alone.
#[inline(always)]
pub(super) unsafe fn add_tile<S: Simd, const M: usize, const N: usize>(
    s: S,
    sums: [[S::V; N]; M],
    y: *mut f32,
    ld: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        if N == 4 {
            let mut rows = [[s.splat(0.0); 4]; M];
            for i in 0..M {
                for j in 0..N {
                    rows[i][j] = sums[i][j];
                }
            }
            return s.add_row_sums(rows, y, ld);
        }
        for i in 0..M {
            for j in 0..N {
                let mut sum = [0.0; 4];
                s.add_sums([sums[i][j]; 4], sum.as_mut_ptr());
                *y.add(i * ld + j) += sum[0];
            }
        }
    }
}

/// Widens `w` into chunks ordered as [`Element::first`] and [`Element::second`] give them, the last
/// one padded with zeros.
#[inline(always)]
pub(super) fn widen<S: Simd, E: Element>(s: S, w: &[E], wide: &mut [f32]) {
    let mut tail = [E::ZERO; 64];
    for (w, wide) in w.chunks(2 * S::LANES).zip(wide.chunks_exact_mut(2 * S::LANES)) {
        let w = if w.len() < 2 * S::LANES {
            tail[..w.len()].copy_from_slice(w);
            &tail[..2 * S::LANES]
        } else {
            w
        };
        // SAFETY: both slices have 2 LANES elements.
        unsafe {
            s.store(wide.as_mut_ptr(), E::first(s, w.as_ptr()));
            s.store(wide.as_mut_ptr().add(S::LANES), E::second(s, w.as_ptr()));
        }
    }
}
