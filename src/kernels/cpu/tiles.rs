//! Products with bf16 weights in tiles.
//!
//! Weights are the left tiles, as they are stored; rows of x are the columns of the right ones, laid
//! out in pairs of inputs as they are rounded. Sums come as `[output, row]` and are turned round as
//! they go to y. An output takes [`TILE_INPUTS`] inputs at a time, in order, whatever the rows.

use std::{ops::Range, sync::Arc};

use half::bf16;

use super::{
    grid::{Cut, Grid, Task, pad, reserve},
    pool::Pool,
    shared::SharedMut,
    tensor::{Line, Recycler, Rows, Tensor, brains},
};
use crate::simd::{Ahead, Bf16Tiles, Isa, TILE, TILE_INPUTS, TileProduct, TileWork};

/// Rows (at most) of a task: whole pairs of tiles.
const TASK_ROWS: usize = 192;
/// Bytes of weights of a task of few rows; tasks of more rows take less.
const TASK_BYTES: usize = 96 * 1024;
/// Outputs that a task takes a multiple of: a pair of tiles.
const BLOCK_OUTPUTS: usize = 2 * TILE;
/// Values of a tile's sums while they are kept.
const SUMS: usize = TILE * TILE;
/// Steps (at most) between two rests of the sums in memory: rows and weights of them stay in the
/// second-level cache.
const STRETCH: usize = 32;

/// How the rows and outputs of a product with `inputs` inputs are cut.
pub(super) fn cut(rows: usize, inputs: usize) -> Cut {
    let rows = rows.div_ceil(rows.div_ceil(TASK_ROWS)).next_multiple_of(2 * TILE);
    let outputs = TASK_BYTES / (2 * inputs * rows.div_ceil(2 * TILE));
    Cut { rows, outputs: outputs.next_multiple_of(BLOCK_OUTPUTS).max(BLOCK_OUTPUTS) }
}

/// The rows of `x` rounded to bf16, padded with zeros to whole steps, sixteen after sixteen, each
/// `[pair of inputs, row, 2]`.
pub(super) fn round(isa: Isa, pool: &Pool, buffers: &Arc<Recycler>, x: Rows<'_>) -> Tensor {
    let Rows { data: x, rows, width: inputs } = x;
    let width = inputs.next_multiple_of(TILE_INPUTS) / 2;
    let mut rounded = buffers.stale(rows, width);
    let out = SharedMut::new(&mut rounded);
    // Rounding a few rows is cheaper than waking a thread.
    let step = if rows < 32 { rows.max(1) } else { TILE };
    pool.run(rows.div_ceil(step), |task| {
        let rows = task * step..rows.min((task + 1) * step);
        for first in rows.clone().step_by(TILE) {
            let count = TILE.min(rows.end - first);
            // SAFETY: these rows are this task's alone.
            let out = unsafe { out.slice(first * width, count * width) };
            let x = &x[first * inputs..(first + count) * inputs];
            isa.run_tiles(Round { x, out, inputs });
        }
    });
    rounded
}

/// A tile of rows.
struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    inputs: usize,
}

impl TileWork for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<T: Bf16Tiles>(self, t: T) {
        let Self { x, out, inputs } = self;
        let rows = x.len() / inputs;
        let mut step = [[bf16::ZERO; TILE_INPUTS]; TILE];
        for (at, out) in out.chunks_exact_mut(rows * TILE_INPUTS / 2).enumerate() {
            let at = at * TILE_INPUTS;
            let len = TILE_INPUTS.min(inputs - at);
            for (x, step) in x.chunks_exact(inputs).zip(&mut step) {
                let mut tail = [0.0; TILE_INPUTS];
                let x = if len < TILE_INPUTS {
                    tail[..len].copy_from_slice(&x[at..]);
                    tail.as_ptr()
                } else {
                    x[at..].as_ptr()
                };
                // SAFETY: both hold the inputs of a step.
                unsafe { t.round(x, step.as_mut_ptr()) }
            }
            let pairs = TILE_INPUTS / 2;
            let (from, to) = (step.as_ptr().cast(), out.as_mut_ptr());
            // SAFETY: a step holds sixteen pairs of each row, and so does `out`.
            unsafe { t.transpose([rows, pairs], (from, pairs), (to, rows), false) };
        }
    }
}

impl TileWork for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<T: Bf16Tiles>(self, t: T) {
        let Self { grid, x, rows, outs, scratch } = self;
        let inputs = grid.inputs;
        let width = inputs.next_multiple_of(TILE_INPUTS);
        let stored = &grid.w[outs.start * inputs..outs.end * inputs];
        let w = if inputs == width {
            stored.as_ptr()
        } else {
            pad(stored, inputs, width, &mut scratch.padded)
        };
        let region = Region { grid, x: brains(x.data()), w, width, first: outs.start };
        for rows in whole_and_rest(rows) {
            for outs in whole_and_rest(outs.clone()) {
                // SAFETY: `w` holds all outs, x all rows.
                unsafe { region.multiply(t, rows.clone(), outs, &mut scratch.sums) };
            }
        }
    }
}

/// A range as one of whole tiles and the rest, each where it is not empty.
pub(super) fn whole_and_rest(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let whole = range.end - range.len() % TILE;
    [range.start..whole, whole..range.end].into_iter().filter(|range| !range.is_empty())
}

/// What the parts of a task have in common.
struct Region<'a> {
    grid: &'a Grid<'a>,
    x: &'a [bf16],
    /// The weights of the first output, rows `width` apart.
    w: *const bf16,
    width: usize,
    first: usize,
}

/// A pair of tiles of outputs × a pair of tiles of rows, or one instead of a pair.
#[derive(Clone, Copy)]
struct Pair {
    first_out: usize,
    out_tiles: usize,
    first_row: usize,
    row_tiles: usize,
}

/// Tiles so many at a time: the first of them and how many they are.
fn groups(tiles: usize, of: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tiles).step_by(of).map(move |first| (first, of.min(tiles - first)))
}

impl Region<'_> {
    /// Rows × outputs: whole tiles, or a part of one.
    /// # Safety
    /// `w` holds all outs, x all rows.
    #[inline(always)]
    unsafe fn multiply<T: Bf16Tiles>(
        &self,
        t: T,
        rows: Range<usize>,
        outs: Range<usize>,
        sums: &mut Vec<Line>,
    ) {
        let shape = [outs.len().min(TILE), rows.len().min(TILE)];
        let shaped = t.shaped(shape[0], shape[1]);
        let [out_tiles, row_tiles] = [outs.len(), rows.len()].map(|len| len.div_ceil(TILE));
        let steps = self.width / TILE_INPUTS;
        let stretches = if row_tiles <= 2 { 1 } else { steps.div_ceil(STRETCH) };
        let kept = if stretches == 1 { 4 } else { row_tiles * out_tiles };
        let sums = reserve(sums, kept * SUMS).as_mut_ptr();
        // The weights of the next outputs are prefetched meanwhile, in equal parts: with a tile of rows,
        // which mostly waits for memory, line after line, else a line of each output in each step.
        let few = row_tiles == 1;
        let together = if few { 1 } else { 2 };
        let count = (together * TILE).div_ceil(row_tiles.div_ceil(2));
        let line = size_of::<Line>();
        let [apart, step] = if few { [line, count * line] } else { [2 * self.width, line] };
        for stretch in 0..stretches {
            let steps = stretch * steps / stretches..(stretch + 1) * steps / stretches;
            for (out, m) in groups(out_tiles, together) {
                for (row, n) in groups(row_tiles, 2) {
                    let pair = Pair {
                        first_out: outs.start + out * TILE,
                        out_tiles: m,
                        first_row: rows.start + row * TILE,
                        row_tiles: n,
                    };
                    let at = if stretches == 1 { 0 } else { out * row_tiles + row * m };
                    // SAFETY: the caller's; `sums` holds what is kept.
                    unsafe {
                        let sums = sums.add(at * SUMS);
                        let next = pair.first_out + together * TILE;
                        let first = self.weights(next + row / 2 * count);
                        let first = first.wrapping_add(steps.start * TILE_INPUTS);
                        let of = TileProduct {
                            sums,
                            fresh: stretch == 0,
                            ahead: Ahead { first, count, apart, step },
                            ..self.product(pair, &steps, shape[1])
                        };
                        match (m, n) {
                            (2, 2) => T::multiply::<2, 2>(&shaped, &of),
                            (2, 1) => T::multiply::<2, 1>(&shaped, &of),
                            (1, 2) => T::multiply::<1, 2>(&shaped, &of),
                            _ => T::multiply::<1, 1>(&shaped, &of),
                        }
                        if stretch + 1 == stretches {
                            self.store(t, pair, shape, sums);
                        }
                    }
                }
            }
        }
    }

    /// The weights of an output of the task, or where they would lie.
    fn weights(&self, out: usize) -> *const bf16 {
        self.w.wrapping_add((out - self.first) * self.width)
    }

    /// A pair over some steps; rows lie in tiles of `columns`.
    #[inline(always)]
    fn product(&self, pair: Pair, steps: &Range<usize>, columns: usize) -> TileProduct {
        let right = pair.first_row * self.width + steps.start * TILE_INPUTS * columns;
        TileProduct {
            left: self.weights(pair.first_out).wrapping_add(steps.start * TILE_INPUTS),
            left_row: 2 * self.width,
            left_tile: 2 * TILE * self.width,
            right: self.x[right..].as_ptr(),
            right_row: 4 * columns,
            right_tile: 2 * TILE * self.width,
            steps: steps.len(),
            sums: std::ptr::null_mut(),
            sums_row: 4 * TILE,
            sums_left: 4 * pair.row_tiles * SUMS,
            sums_right: 4 * SUMS,
            fresh: true,
            ahead: Ahead::NONE,
        }
    }

    /// Turns the sums of a pair round on their way to y.
    /// # Safety
    /// `sums` holds them, and this task alone writes their places in y.
    #[inline(always)]
    unsafe fn store<T: Bf16Tiles>(&self, t: T, pair: Pair, shape: [usize; 2], sums: *const f32) {
        let outputs = self.grid.outputs;
        for i in 0..pair.out_tiles {
            for j in 0..pair.row_tiles {
                let first = (pair.first_row + j * TILE) * outputs + pair.first_out + i * TILE;
                // SAFETY: the caller's.
                unsafe {
                    let from = (sums.add((i * pair.row_tiles + j) * SUMS), TILE);
                    let to = (self.grid.y.at(first), outputs);
                    t.transpose(shape, from, to, !self.grid.fresh);
                }
            }
        }
    }
}
