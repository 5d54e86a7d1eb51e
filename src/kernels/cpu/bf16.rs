//! Products with bf16 weights in products of bf16: `y (+)= x Wᵀ`, `W` row-major `[out, in]`.
//!
//! Each row of x is rounded to bf16 once, laid out as the instruction set reads it, and the outputs
//! are cut into tasks: of [`pairs`] where it has dot products, of [`tiles`] where it has tiles. Both
//! sum an output in an order that instruction set and number of inputs alone fix, which is why a
//! request's tokens do not depend on who shares its batch.
//!
//! Weights are multiplied as stored, without a copy, but for rows that fill no whole vector.

use std::{cell::RefCell, sync::Arc};

use half::bf16;

use super::{
    gemm::{Arithmetic, LinearJob},
    pairs::{self, PairTask},
    pool::{Pool, in_streams},
    shared::SharedMut,
    tensor::{LINE, Line, Recycler, Tensor, brains_mut, values_mut, zeroed},
    tiles::{self, TileTask},
};
use crate::simd::{Bf16Products, Isa};

/// Products cut into tasks.
pub(super) struct NarrowProducts<'a> {
    isa: Isa,
    threads: usize,
    inputs: Vec<Rounded<'a>>,
    grids: Vec<Grid<'a>>,
    /// Number of tasks.
    pub(super) tasks: usize,
}

/// An input, and its rows as the instruction set reads them.
struct Rounded<'a> {
    x: &'a Tensor,
    rounded: Tensor,
}

/// How the rows and outputs of a job are cut.
pub(super) struct Cut {
    /// Rows of a task (at most).
    pub(super) rows: usize,
    /// Outputs of a task (at most).
    pub(super) outputs: usize,
}

impl<'a> NarrowProducts<'a> {
    /// Rounds the inputs of the jobs that are multiplied in bf16, and cuts the jobs.
    pub(super) fn new(
        isa: Isa,
        pool: &Pool,
        buffers: &Arc<Recycler>,
        jobs: &mut [LinearJob<'a>],
    ) -> Self {
        let threads = pool.threads();
        let tiled = isa.bf16_products() == Bf16Products::Tiles;
        let mut plan = Self { isa, threads, inputs: Vec::new(), grids: Vec::new(), tasks: 0 };
        for job in jobs {
            let Some(Arithmetic::Bf16) = job.arithmetic(isa) else { continue };
            let Some(w) = job.w.as_bf16() else { continue };
            let (rows, inputs, outputs) = (job.x.rows(), job.x.width(), job.y.width());
            let same = |r: &Rounded<'_>| std::ptr::eq(r.x, job.x);
            let input = plan.inputs.iter().position(same).unwrap_or_else(|| {
                let round = if tiled { tiles::round } else { pairs::round };
                let rounded = round(isa, pool, buffers, job.x);
                plan.inputs.push(Rounded { x: job.x, rounded });
                plan.inputs.len() - 1
            });
            let cut = if tiled { tiles::cut(rows, inputs) } else { pairs::cut(rows, inputs) };
            let row_tasks = rows.div_ceil(cut.rows);
            plan.tasks += row_tasks * outputs.div_ceil(cut.outputs);
            plan.grids.push(Grid {
                input,
                w,
                y: SharedMut::new(&mut job.y),
                rows,
                inputs,
                outputs,
                fresh: job.fresh,
                row_tasks,
                cut,
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
        let part = |part: usize, step: usize, len: usize| part * step..len.min((part + 1) * step);
        let rows = part(task % grid.row_tasks, grid.cut.rows, grid.rows);
        let outs = part(task / grid.row_tasks, grid.cut.outputs, grid.outputs);
        let x = &self.inputs[grid.input].rounded;
        SCRATCH.with_borrow_mut(|scratch| match self.isa.bf16_products() {
            Bf16Products::Tiles => self.isa.run_tiles(TileTask { grid, x, rows, outs, scratch }),
            _ => self.isa.run_bf16(PairTask { grid, x, rows, outs, scratch }),
        });
    }
}

thread_local! {
    /// What the task at work keeps aside.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory of a task.
#[derive(Default)]
pub(super) struct Scratch {
    /// Weights whose rows had to be padded.
    pub(super) padded: Vec<Line>,
    /// Sums that go on.
    pub(super) sums: Vec<Line>,
}

/// One job cut into outputs × rows.
pub(super) struct Grid<'a> {
    input: usize,
    pub(super) w: &'a [bf16],
    pub(super) y: SharedMut,
    rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) fresh: bool,
    row_tasks: usize,
    cut: Cut,
    /// One past the last task of this job.
    end: usize,
}

/// Rows of `inputs` weights, padded with zeros to `width` in the scratch.
pub(super) fn pad(w: &[bf16], inputs: usize, width: usize, scratch: &mut Vec<Line>) -> *const bf16 {
    reserve(scratch, (w.len() / inputs * width).div_ceil(2));
    let padded = brains_mut(values_mut(scratch)).chunks_exact_mut(width);
    for (w, padded) in w.chunks_exact(inputs).zip(padded) {
        padded[..inputs].copy_from_slice(w);
        padded[inputs..].fill(bf16::ZERO);
    }
    scratch.as_ptr().cast()
}

/// At least `values` values of a scratch.
pub(super) fn reserve(scratch: &mut Vec<Line>, values: usize) -> &mut [f32] {
    if scratch.len() * LINE < values {
        *scratch = zeroed(values.div_ceil(LINE));
    }
    &mut values_mut(scratch)[..values]
}
