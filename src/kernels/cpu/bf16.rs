//! Products with bf16 weights in products of bf16: `y (+)= x Wᵀ`, `W` row-major `[out, in]`.
//!
//! Each row of x is rounded to bf16 once, laid out as the instruction set reads it, and the outputs
//! are cut into tasks: of [`pairs`] where it has dot products, of [`tiles`] where it has tiles. Both
//! sum an output in an order that instruction set and number of inputs alone fix, which is why a
//! request's tokens do not depend on who shares its batch.
//!
//! Weights are multiplied as stored, without a copy, but for rows that fill no whole vector.

use std::{cell::RefCell, sync::Arc};

use super::{
    gemm::{Arithmetic, LinearJob},
    grid::{Grid, Scratch, Task},
    pairs,
    pool::{Pool, in_streams},
    shared::SharedMut,
    tensor::{Recycler, Rows, Tensor},
    tiles,
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
    x: Rows<'a>,
    rounded: Tensor,
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
            let (rows, inputs, outputs) = (job.x.rows, job.x.width, job.outputs);
            let same = |r: &Rounded<'_>| r.x.is(&job.x);
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
                y: SharedMut::of(job.y),
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
        SCRATCH.with_borrow_mut(|scratch| {
            let task = Task { grid, x, rows, outs, scratch };
            match self.isa.bf16_products() {
                Bf16Products::Tiles => self.isa.run_tiles(task),
                _ => self.isa.run_bf16(task),
            }
        });
    }
}

thread_local! {
    /// What the task at work keeps aside.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
