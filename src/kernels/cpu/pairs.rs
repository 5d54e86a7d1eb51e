//! Products with bf16 weights in dot products of pairs.
//!
//! Both operands run along the inputs, so an output is a dot product: [`Simd::LANES`] sums of pairs,
//! added up in a fixed tree at the end of each of a few stretches of the inputs, stretches in order:
//! tiles of any height give the same bits.

use std::{ops::Range, sync::Arc};

use half::bf16;

use super::{
    grid::{Cut, Grid, Task, pad},
    pair_tile::PairTile,
    pool::Pool,
    shared::SharedMut,
    tensor::{Recycler, Rows, Tensor, brains, brains_mut},
};
use crate::simd::{Bf16Dots, Bf16Work, Isa, Lanes, Simd, Vectorised};

/// Values that a rounded row is padded to a multiple of: a vector of pairs of every set.
const PADDING: usize = 32;
/// Outputs of a block, whose weights of a stretch fit the second-level cache.
const BLOCK_OUTPUTS: usize = 32;
/// Outputs that a tile of rows goes over at once.
const GROUP: usize = 4;
/// Rows up to which all rows go over a group before the next group: their values of a stretch fit the
/// first-level cache. More rows go over the block tile by tile.
const FEW_ROWS: usize = 16;
/// Groups between the one that few rows are at and the one whose weights they prefetch: longer than
/// memory takes to answer.
const AHEAD_GROUPS: usize = 2;
/// Rows (at most) of a task.
const TASK_ROWS: usize = 192;
/// Bytes of weights of a task of few rows; tasks of more rows take less.
const TASK_BYTES: usize = 96 * 1024;
/// Inputs (at most) between two sums over lanes: few rows' values of them fit the first-level cache.
const STRETCH: usize = 768;

/// How the rows and outputs of a product with `inputs` inputs are cut.
pub(super) fn cut(rows: usize, inputs: usize) -> Cut {
    let rows = rows.div_ceil(rows.div_ceil(TASK_ROWS));
    let outputs = TASK_BYTES / (2 * inputs * rows.div_ceil(FEW_ROWS));
    Cut { rows, outputs: outputs.next_multiple_of(BLOCK_OUTPUTS).max(BLOCK_OUTPUTS) }
}

/// The rows of `x` rounded to bf16 and padded with zeros, two values in the place of an f32.
pub(super) fn round(isa: Isa, pool: &Pool, buffers: &Arc<Recycler>, x: Rows<'_>) -> Tensor {
    let Rows { data: x, rows, width: inputs } = x;
    let width = padded(inputs) / 2;
    let mut rounded = buffers.stale(rows, width);
    // Rounding a few rows is cheaper than waking a thread.
    let step = if rows < 32 { rows.max(1) } else { rows.div_ceil(4 * pool.threads()) };
    let out = SharedMut::new(&mut rounded);
    pool.run(rows.div_ceil(step), |task| {
        let rows = task * step..rows.min((task + 1) * step);
        // SAFETY: these rows are this task's alone.
        let out = unsafe { out.slice(rows.start * width, rows.len() * width) };
        let x = &x[rows.start * inputs..rows.end * inputs];
        isa.run(Round { x, out: brains_mut(out), inputs });
    });
    rounded
}

/// Values of a rounded row. Rows that lie a multiple of 4 KiB apart would compete for the same lines
/// of a cache.
fn padded(inputs: usize) -> usize {
    let width = inputs.next_multiple_of(PADDING);
    if width.is_multiple_of(2048) { width + PADDING } else { width }
}

struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [bf16],
    inputs: usize,
}

impl Vectorised for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows =
            self.x.chunks_exact(self.inputs).zip(self.out.chunks_exact_mut(padded(self.inputs)));
        for (x, out) in rows {
            let mut tail = [0.0; PADDING];
            for (x, out) in x.chunks(PADDING).zip(out.chunks_exact_mut(PADDING)) {
                let x = if x.len() < PADDING {
                    tail[..x.len()].copy_from_slice(x);
                    &tail[..]
                } else {
                    x
                };
                for at in (0..PADDING).step_by(S::LANES) {
                    // SAFETY: both hold PADDING values, which LANES divides.
                    unsafe {
                        s.store_bf16::<false>(out.as_mut_ptr().add(at), s.load(x.as_ptr().add(at)));
                    }
                }
            }
        }
    }
}

impl Bf16Work for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<D: Bf16Dots>(self, d: D) {
        let Grid { w, inputs, .. } = *self.grid;
        let width = inputs.next_multiple_of(2 * D::S::LANES);
        for first in self.outs.clone().step_by(BLOCK_OUTPUTS) {
            let outs = first..self.outs.end.min(first + BLOCK_OUTPUTS);
            let stored = &w[first * inputs..outs.end * inputs];
            let rows = if inputs == width {
                stored.as_ptr()
            } else {
                pad(stored, inputs, width, &mut self.scratch.padded)
            };
            // SAFETY: all outs have a row, each of whole chunks.
            unsafe { self.block(d, (rows, width), outs) };
        }
    }
}

/// A stretch of the inputs of a block of outputs.
struct Stretch {
    /// In chunks of a vector of pairs.
    chunks: Range<usize>,
    /// Whether it is the first.
    fresh: bool,
    /// Its stored weights of the block's first output, and those of the stretch after it: after the
    /// last one of a block comes the first of the next block.
    stored: [*const bf16; 2],
}

impl Stretch {
    /// The weights of an output counted from the block's first; past its `len` outputs, of the stretch
    /// after this one.
    fn weights(&self, output: usize, len: usize, inputs: usize) -> *const bf16 {
        let [here, after] = self.stored;
        let (start, output) = if output < len { (here, output) } else { (after, output - len) };
        start.wrapping_add(output * inputs)
    }
}

/// What one tile of rows sums of a block.
struct Part {
    /// Outputs, counted from the block's first.
    outs: Range<usize>,
    /// The stored weights to prefetch meanwhile.
    next: *const bf16,
    rows: Range<usize>,
    /// Number of the tile, and of how many.
    tile: (usize, usize),
}

impl Task<'_> {
    /// All rows × `outs`.
    /// # Safety
    /// `w` holds rows of whole chunks, `ldw` apart, for all `outs`.
    #[inline(always)]
    unsafe fn block<D: Bf16Dots>(&self, d: D, w: (*const bf16, usize), outs: Range<usize>) {
        let Grid { w: stored, inputs, .. } = *self.grid;
        let (chunk_len, stretches) = (2 * D::S::LANES, inputs.div_ceil(STRETCH));
        let chunks = inputs.div_ceil(chunk_len);
        let (len, tiles) = (outs.len(), self.rows.len().div_ceil(D::S::ROWS));
        let row = |tile: usize| self.rows.start + tile * self.rows.len() / tiles;
        let start = |stretch: usize| stretch * chunks / stretches;
        let at = |first: usize, stretch: usize| {
            stored.as_ptr().wrapping_add(first * inputs + start(stretch) * chunk_len)
        };
        for stretch in 0..stretches {
            let last = stretch + 1 == stretches;
            let after =
                if last { at(outs.start + BLOCK_OUTPUTS, 0) } else { at(outs.start, stretch + 1) };
            let of = Stretch {
                chunks: start(stretch)..start(stretch + 1),
                fresh: stretch == 0,
                stored: [at(outs.start, stretch), after],
            };
            // Few rows go over a group of outputs all together, many over all groups tile by tile.
            let (step, ahead) = if self.rows.len() <= FEW_ROWS {
                (GROUP, AHEAD_GROUPS * GROUP)
            } else {
                (len, len)
            };
            for first in (0..len).step_by(step) {
                for tile in 0..tiles {
                    let part = Part {
                        outs: first..len.min(first + step),
                        next: of.weights(first + ahead, len, inputs),
                        rows: row(tile)..row(tile + 1),
                        tile: (tile, tiles),
                    };
                    // SAFETY: the caller's.
                    unsafe { self.sums(d, w, outs.start, &of, part) };
                }
            }
        }
    }

    /// The sums of a part over one stretch of the inputs; the block begins at output `block`.
    /// # Safety
    /// As [`Self::block`]; the part is one of it.
    #[inline(always)]
    unsafe fn sums<D: Bf16Dots>(
        &self,
        d: D,
        (w, ldw): (*const bf16, usize),
        block: usize,
        stretch: &Stretch,
        Part { outs, next, rows, tile }: Part,
    ) {
        let Grid { inputs, outputs, y, fresh, .. } = self.grid;
        let begin = stretch.chunks.start * 2 * D::S::LANES;
        // SAFETY: the rows lie in x and y, outs are outputs; w as promised by the caller.
        unsafe {
            let x = brains(self.x.data()).as_ptr().add(rows.start * 2 * self.x.width() + begin);
            let prefetching = |row: usize| PairTile {
                x,
                ldx: 2 * self.x.width(),
                w: w.add(outs.start * ldw + begin),
                ldw,
                y: y.at(rows.start * outputs + block + outs.start),
                ldy: *outputs,
                fresh: *fresh && stretch.fresh,
                chunks: stretch.chunks.len(),
                next: next.wrapping_add(row * inputs),
                ld_next: *inputs,
            };
            let (rows, outs) = (rows.len(), outs.len());
            // The four rows of a group are spread over the first tiles: more lines at once than memory
            // delivers would hold up the sums.
            match tile {
                (_, 1) => prefetching(0).outputs::<D, 4>(d, rows, outs),
                (tile, 2) => prefetching(2 * tile).outputs::<D, 2>(d, rows, outs),
                (0, 3) => prefetching(0).outputs::<D, 2>(d, rows, outs),
                (tile, 3) => prefetching(tile + 1).outputs::<D, 1>(d, rows, outs),
                (tile @ 0..4, _) => prefetching(tile).outputs::<D, 1>(d, rows, outs),
                _ => prefetching(0).outputs::<D, 0>(d, rows, outs),
            }
        }
    }
}
