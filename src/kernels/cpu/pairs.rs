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
        for first in self.outs.clone().step_by(BLOCK_OUTPUTS) {
            let outs = first..self.outs.end.min(first + BLOCK_OUTPUTS);
            let stored = &w[first * inputs..outs.end * inputs];
            let rows = if inputs == width {
                stored.as_ptr()
            } else {
                pad(stored, inputs, width, self.scratch)
            };
            // SAFETY: all outs have a row, each of whole chunks.
            unsafe { self.block(d, (rows, width), outs) };
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

impl PairTask<'_> {
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
