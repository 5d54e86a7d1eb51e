//! The second half of low-rank layers, `y += (x ⊙ scales) Bᵀ`.
//!
//! With few ranks a dot product per output would spend its time on adding up lanes. Here lanes are
//! outputs: each keeps its own sum, ranks in order, whatever the number of rows.

use std::{cell::RefCell, ops::Range, sync::Arc};

use half::{bf16, f16};

use super::{
    pool::Pool,
    shared::SharedMut,
    tensor::{LINE, Line, Tensor, values_mut, zeroed},
};
use crate::{
    kernels::{Dtype, HostTensor, KernelError, Result, check::matrix},
    simd::{Element, Isa, Simd, Vectorised},
};

/// Outputs of a panel.
pub(super) const PANEL: usize = 64;
/// Vectors of outputs in a tile.
const WIDTH: usize = 4;
/// Rows (at most) of a task.
const TASK_ROWS: usize = 192;

thread_local! {
    /// The panel at work, widened.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// B factors `[out, rank]` laid out as the CPU's `scaled_products` read them: `[panel, rank, 64]`,
/// the last panel filled up with zeros. The dtype stays.
pub fn panels(up: &HostTensor) -> Result<HostTensor> {
    let op = "panels";
    let (out, rank) = matrix(op, up.shape())?;
    if let Dtype::Quantised(_) = up.dtype() {
        return Err(KernelError::Dtype { op, dtype: up.dtype().to_string() });
    }
    let (size, count) = (up.dtype().size(), out.div_ceil(PANEL));
    let mut bytes = vec![0; count * rank * PANEL * size];
    for (at, element) in up.bytes().chunks_exact(size).enumerate() {
        let (o, r) = (at / rank, at % rank);
        let to = ((o / PANEL * rank + r) * PANEL + o % PANEL) * size;
        bytes[to..to + size].copy_from_slice(element);
    }
    let len = bytes.len();
    Ok(HostTensor::new(Arc::new(bytes), 0..len, up.dtype(), vec![count, rank, PANEL])?)
}

/// `y += x Bᵀ`, `b` in panels. Shapes fit: the caller has checked.
pub(super) struct LowRankJob<'a> {
    pub(super) x: Tensor,
    pub(super) b: &'a HostTensor,
    pub(super) y: Tensor,
}

/// Does the jobs in one parallel region.
pub(super) fn multiply(isa: Isa, pool: &Pool, jobs: &mut [LowRankJob<'_>]) {
    let mut grids = Vec::with_capacity(jobs.len());
    let mut end = 0;
    for LowRankJob { x, b, y } in jobs.iter_mut().filter(|job| job.x.width() > 0) {
        let panels = y.width().div_ceil(PANEL);
        end += x.rows().div_ceil(TASK_ROWS) * panels;
        grids.push(Grid { x, b, outputs: y.width(), y: SharedMut::new(y), panels, end });
    }
    pool.run(end, |task| {
        let Some(grid) = grids.iter().find(|grid| task < grid.end) else { return };
        let left = grid.end - 1 - task;
        let (start, panel) = (left / grid.panels * TASK_ROWS, left % grid.panels);
        let rows = start..grid.x.rows().min(start + TASK_ROWS);
        SCRATCH.with_borrow_mut(|scratch| isa.run(Panel { grid, rows, panel, scratch }));
    });
}

/// One job cut into panels × rows.
struct Grid<'a> {
    x: &'a Tensor,
    b: &'a HostTensor,
    outputs: usize,
    y: SharedMut,
    panels: usize,
    /// One past the last task of this job.
    end: usize,
}

/// Some rows of one panel.
struct Panel<'a> {
    grid: &'a Grid<'a>,
    rows: Range<usize>,
    panel: usize,
    scratch: &'a mut Vec<Line>,
}

impl Vectorised for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let values = self.grid.x.width() * PANEL;
        let range = self.panel * values..(self.panel + 1) * values;
        if let Some(b) = self.grid.b.as_f32() {
            self.add(s, &b[range]);
        } else if let Some(b) = self.grid.b.as_bf16() {
            self.add_narrow::<S, bf16>(s, &b[range]);
        } else if let Some(b) = self.grid.b.as_f16() {
            self.add_narrow::<S, f16>(s, &b[range]);
        }
    }
}

impl Panel<'_> {
    /// Widens the panel once where several tiles read it.
    #[inline(always)]
    fn add_narrow<S: Simd, E: Element>(self, s: S, b: &[E]) {
        if self.rows.len() <= S::ROWS {
            return self.add(s, b);
        }
        let mut scratch = std::mem::take(self.scratch);
        if scratch.len() * LINE < b.len() {
            scratch = zeroed(b.len().div_ceil(LINE));
        }
        let wide = &mut values_mut(&mut scratch)[..b.len()];
        for (b, wide) in b.chunks_exact(S::LANES).zip(wide.chunks_exact_mut(S::LANES)) {
            // SAFETY: both hold LANES values, which divide a panel's rows.
            unsafe { s.store(wide.as_mut_ptr(), E::load(s, b.as_ptr())) }
        }
        let Self { grid, rows, panel, .. } = self;
        Panel { grid, rows, panel, scratch: &mut Vec::new() }.add(s, &*wide);
        *self.scratch = scratch;
    }

    #[inline(always)]
    fn add<S: Simd, E: Element>(self, s: S, b: &[E]) {
        let Self { grid, rows, panel, .. } = self;
        let (ranks, first) = (grid.x.width(), panel * PANEL);
        let len = PANEL.min(grid.outputs - first);
        // A panel that is not full is summed in a buffer of its own.
        let mut aside = [0.0f32; 6 * PANEL];
        for start in rows.clone().step_by(S::ROWS) {
            let rows = start..rows.end.min(start + S::ROWS);
            let x = &grid.x.data()[rows.start * ranks..rows.end * ranks];
            // SAFETY: these rows and outputs of y are this panel's alone.
            let y = |row: usize| unsafe { grid.y.slice(row * grid.outputs + first, len) };
            if len == PANEL {
                // SAFETY: the rows of y have a whole panel and lie `outputs` apart.
                unsafe { tiles(s, x, ranks, b, y(start).as_mut_ptr(), grid.outputs) };
                continue;
            }
            for (row, aside) in rows.clone().zip(aside.chunks_exact_mut(PANEL)) {
                aside[..len].copy_from_slice(y(row));
            }
            // SAFETY: `aside` holds S::ROWS rows of a panel.
            unsafe { tiles(s, x, ranks, b, aside.as_mut_ptr(), PANEL) };
            for (row, aside) in rows.zip(aside.chunks_exact(PANEL)) {
                y(row).copy_from_slice(&aside[..len]);
            }
        }
    }
}

/// `y[i, ·] += Σᵣ x[i, r] b[r, ·]` for the rows of `x` `[rows, ranks]` and one panel.
/// # Safety
/// `y` has as many rows (at most `S::ROWS`) of a panel, `ldy` apart, written by this task alone.
#[inline(always)]
unsafe fn tiles<S: Simd, E: Element>(
    s: S,
    x: &[f32],
    ranks: usize,
    b: &[E],
    y: *mut f32,
    ldy: usize,
) {
    for at in (0..PANEL).step_by(WIDTH * S::LANES) {
        // SAFETY: the caller's.
        unsafe {
            let (b, y) = (b.as_ptr().add(at), y.add(at));
            match x.len() / ranks {
                1 => sum::<S, E, 1>(s, x, ranks, b, y, ldy),
                2 => sum::<S, E, 2>(s, x, ranks, b, y, ldy),
                3 if S::ROWS >= 3 => sum::<S, E, 3>(s, x, ranks, b, y, ldy),
                4 if S::ROWS >= 4 => sum::<S, E, 4>(s, x, ranks, b, y, ldy),
                5 if S::ROWS >= 5 => sum::<S, E, 5>(s, x, ranks, b, y, ldy),
                6 if S::ROWS >= 6 => sum::<S, E, 6>(s, x, ranks, b, y, ldy),
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}

/// # Safety
/// As [`tiles`], for `M` rows and a tile's outputs from `b` and `y` on.
#[inline(always)]
unsafe fn sum<S: Simd, E: Element, const M: usize>(
    s: S,
    x: &[f32],
    ranks: usize,
    b: *const E,
    y: *mut f32,
    ldy: usize,
) {
    // SAFETY: the caller's; x has M rows of `ranks`.
    unsafe {
        let mut sums = [[s.splat(0.0); WIDTH]; M];
        for i in 0..M {
            for j in 0..WIDTH {
                sums[i][j] = s.load(y.add(i * ldy + j * S::LANES));
            }
        }
        for rank in 0..ranks {
            let mut wide = [s.splat(0.0); WIDTH];
            for j in 0..WIDTH {
                wide[j] = E::load(s, b.add(rank * PANEL + j * S::LANES));
            }
            for i in 0..M {
                let x = s.splat(*x.get_unchecked(i * ranks + rank));
                for j in 0..WIDTH {
                    sums[i][j] = s.fma(x, wide[j], sums[i][j]);
                }
            }
        }
        for i in 0..M {
            for j in 0..WIDTH {
                s.store(y.add(i * ldy + j * S::LANES), sums[i][j]);
            }
        }
    }
}
