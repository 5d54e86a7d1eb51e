//! Products with bf16 weights in dot products of pairs: `y (+)= x Wᵀ`, `W` row-major `[out, in]`.
//!
//! Each row of x is rounded to bf16 once. Both operands run along the inputs, so an output is a dot
//! product: [`Simd::LANES`] sums of pairs, added up in a fixed tree at the end of each of a few
//! stretches of the inputs, stretches in order. Instruction set and number of inputs alone fix that
//! order: tiles of any height give the same bits, which is why a request's tokens do not depend on
//! who shares its batch.
//!
//! Weights are multiplied as stored, without a copy, but for rows that fill no whole vector.

use std::{cell::RefCell, ops::Range, sync::Arc};

use half::bf16;

use super::{
    gemm::{Arithmetic, LinearJob},
    pair_tile::PairTile,
    pool::{Pool, in_streams},
    shared::SharedMut,
    tensor::{LINE, Line, Recycler, Tensor, brains, brains_mut, values_mut, zeroed},
    tile::AHEAD_BYTES,
};
use crate::simd::{Bf16Dots, Bf16Work, Isa, Lanes, Simd, Vectorised};

/// Values that a rounded row is padded to a multiple of: a vector of pairs of every set.
const PADDING: usize = 32;
/// Outputs that many rows go over before the next rows: weights that fit the second-level cache.
const BLOCK_OUTPUTS: usize = 32;
/// Rows up to which all rows go over four outputs before the next outputs.
const FEW_ROWS: usize = 16;
/// Rows (at most) of a task.
const TASK_ROWS: usize = 192;
/// Bytes of weights of a task of few rows; tasks of more rows take less.
const TASK_BYTES: usize = 96 * 1024;
/// Inputs (at most) between two sums over lanes: a tile's rows of them fit the first-level cache.
const STRETCH: usize = 1536;

/// Products cut into tasks.
pub(super) struct PairProducts<'a> {
    isa: Isa,
    threads: usize,
    inputs: Vec<Rounded<'a>>,
    grids: Vec<Grid<'a>>,
    /// Number of tasks.
    pub(super) tasks: usize,
}

/// An input, and its rows as [`round`] gives them.
struct Rounded<'a> {
    x: &'a Tensor,
    rounded: Tensor,
}

impl<'a> PairProducts<'a> {
    /// Rounds the inputs of the jobs that are multiplied in pairs, and cuts the jobs.
    pub(super) fn new(
        isa: Isa,
        pool: &Pool,
        buffers: &Arc<Recycler>,
        jobs: &mut [LinearJob<'a>],
    ) -> Self {
        let threads = pool.threads();
        let mut plan = Self { isa, threads, inputs: Vec::new(), grids: Vec::new(), tasks: 0 };
        for job in jobs {
            let Some(Arithmetic::Pairs) = job.arithmetic(isa) else { continue };
            let Some(w) = job.w.as_bf16() else { continue };
            let (rows, inputs, outputs) = (job.x.rows(), job.x.width(), job.y.width());
            let same = |r: &Rounded<'_>| std::ptr::eq(r.x, job.x);
            let input = plan.inputs.iter().position(same).unwrap_or_else(|| {
                let rounded = round(isa, pool, buffers, job.x);
                plan.inputs.push(Rounded { x: job.x, rounded });
                plan.inputs.len() - 1
            });
            let row_tasks = rows.div_ceil(TASK_ROWS);
            let times = rows.div_ceil(row_tasks).div_ceil(FEW_ROWS);
            let task_outputs = TASK_BYTES / (2 * inputs * times);
            let task_outputs = task_outputs.next_multiple_of(BLOCK_OUTPUTS).max(BLOCK_OUTPUTS);
            plan.tasks += row_tasks * outputs.div_ceil(task_outputs);
            plan.grids.push(Grid {
                input,
                w,
                y: SharedMut::new(&mut job.y),
                rows,
                inputs,
                outputs,
                fresh: job.fresh,
                row_tasks,
                task_outputs,
                end: plan.tasks,
            });
        }
        plan
    }

    /// Does one task. Every task must be run exactly once.
    pub(super) fn run(&self, task: usize) {
        let Some(index) = self.grids.iter().position(|grid| task < grid.end) else { return };
        let first = if index == 0 { 0 } else { self.grids[index - 1].end };
        let grid = &self.grids[index];
        let task = in_streams(task - first, grid.end - first, self.threads);
        let (row, part) = (task % grid.row_tasks, task / grid.row_tasks);
        let step = grid.rows.div_ceil(grid.row_tasks);
        SCRATCH.with_borrow_mut(|scratch| {
            self.isa.run_bf16(PairTask {
                grid,
                x: &self.inputs[grid.input].rounded,
                rows: row * step..grid.rows.min((row + 1) * step),
                outs: part * grid.task_outputs..grid.outputs.min((part + 1) * grid.task_outputs),
                scratch,
            });
        });
    }
}

thread_local! {
    /// Weights of the block at work, where their rows had to be padded.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// The rows of `x` rounded to bf16 and padded with zeros, two values in the place of an f32.
pub(super) fn round(isa: Isa, pool: &Pool, buffers: &Arc<Recycler>, x: &Tensor) -> Tensor {
    let (rows, inputs) = (x.rows(), x.width());
    let width = padded(inputs) / 2;
    let mut rounded = buffers.stale(rows, width);
    // Rounding a few rows is cheaper than waking a thread.
    let step = if rows < 32 { rows.max(1) } else { rows.div_ceil(4 * pool.threads()) };
    let out = SharedMut::new(&mut rounded);
    pool.run(rows.div_ceil(step), |task| {
        let rows = task * step..rows.min((task + 1) * step);
        // SAFETY: these rows are this task's alone.
        let out = unsafe { out.slice(rows.start * width, rows.len() * width) };
        let x = &x.data()[rows.start * inputs..rows.end * inputs];
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

/// One job cut into outputs × rows.
struct Grid<'a> {
    input: usize,
    w: &'a [bf16],
    y: SharedMut,
    rows: usize,
    inputs: usize,
    outputs: usize,
    fresh: bool,
    row_tasks: usize,
    task_outputs: usize,
    /// One past the last task of this job.
    end: usize,
}

/// Some outputs of some rows.
struct PairTask<'a> {
    grid: &'a Grid<'a>,
    x: &'a Tensor,
    rows: Range<usize>,
    outs: Range<usize>,
    scratch: &'a mut Vec<Line>,
}

impl Bf16Work for PairTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<D: Bf16Dots>(self, d: D) {
        let Grid { w, inputs, .. } = *self.grid;
        let width = inputs.next_multiple_of(2 * D::S::LANES);
        let step = if self.rows.len() <= FEW_ROWS { 4 } else { BLOCK_OUTPUTS };
        for first in self.outs.clone().step_by(step) {
            let outs = first..self.outs.end.min(first + step);
            let (start, ahead) = (first * inputs, (outs.len() * inputs).max(AHEAD_BYTES / 2));
            let next = w.as_ptr().wrapping_add(start + ahead).cast::<u8>();
            let stored = &w[start..start + outs.len() * inputs];
            let rows = if inputs == width {
                stored.as_ptr()
            } else {
                pad(stored, inputs, width, self.scratch)
            };
            // SAFETY: all outs have a row, each of whole chunks.
            unsafe { self.block(d, (rows, width), outs, next) };
        }
    }
}

/// Rows of `inputs` weights, padded with zeros to `width` in the scratch.
fn pad(w: &[bf16], inputs: usize, width: usize, scratch: &mut Vec<Line>) -> *const bf16 {
    let lines = (w.len() / inputs * width).div_ceil(2 * LINE);
    if scratch.len() < lines {
        *scratch = zeroed(lines);
    }
    let padded = brains_mut(values_mut(scratch)).chunks_exact_mut(width);
    for (w, padded) in w.chunks_exact(inputs).zip(padded) {
        padded[..inputs].copy_from_slice(w);
        padded[inputs..].fill(bf16::ZERO);
    }
    scratch.as_ptr().cast()
}

impl PairTask<'_> {
    /// All rows × `outs`, prefetching as many weights as these from `next` on.
    /// # Safety
    /// `w` holds rows of whole chunks, `ldw` apart, for all `outs`.
    #[inline(always)]
    unsafe fn block<D: Bf16Dots>(
        &self,
        d: D,
        (w, ldw): (*const bf16, usize),
        outs: Range<usize>,
        mut next: *const u8,
    ) {
        let (chunk_len, inputs) = (2 * D::S::LANES, self.grid.inputs);
        let chunks = inputs.div_ceil(chunk_len);
        let stretches = inputs.div_ceil(STRETCH);
        let tiles = self.rows.len().div_ceil(D::S::ROWS);
        for stretch in 0..stretches {
            let chunks = stretch * chunks / stretches..(stretch + 1) * chunks / stretches;
            for tile in 0..tiles {
                let row = |tile: usize| self.rows.start + tile * self.rows.len() / tiles;
                let rows = row(tile)..row(tile + 1);
                // SAFETY: the rows lie in x and y, outs are outputs; w as promised by the caller.
                unsafe {
                    let at = chunks.start * chunk_len;
                    let tile_of_rows = PairTile {
                        x: brains(self.x.data()).as_ptr().add(rows.start * 2 * self.x.width() + at),
                        ldx: 2 * self.x.width(),
                        w: w.add(at),
                        ldw,
                        y: self.grid.y.at(rows.start * self.grid.outputs + outs.start),
                        ldy: self.grid.outputs,
                        fresh: self.grid.fresh && stretch == 0,
                        chunks: chunks.len(),
                        next,
                    };
                    // A line for each that is read: by the only tile, or by the first two.
                    next = match (tiles, tile) {
                        (1, _) => tile_of_rows.outputs::<D, 4>(d, rows.len(), outs.len()),
                        (_, 0 | 1) => tile_of_rows.outputs::<D, 2>(d, rows.len(), outs.len()),
                        _ => tile_of_rows.outputs::<D, 0>(d, rows.len(), outs.len()),
                    };
                }
            }
        }
    }
}
