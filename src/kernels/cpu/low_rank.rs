//! The second half of low-rank layers, `y += (x ⊙ scales) Bᵀ`.
//!
//! With few ranks a dot product per output would spend its time on adding up lanes. Here lanes are
//! outputs: each keeps its own sum, ranks in order, whatever the number of rows; where the
//! instruction set multiplies in bf16 and B is in bf16, pairs of ranks in order or the ranks of a tile
//! at a time.

mod pairs;
mod panel;
mod tiles;

use std::{cell::RefCell, ops::Range, sync::Arc};

use half::{bf16, f16};

pub(super) use self::panel::PANEL;
use self::panel::{Grid, NarrowPanels, PanelSums, Panels, WIDTH};
use super::{
    grid::reserve,
    pairs::round,
    pool::Pool,
    shared::SharedMut,
    tensor::{Line, Recycler, Rows, Tensor},
};
use crate::{
    kernels::{Dtype, HostTensor, KernelError, Result, check::matrix},
    simd::{Bf16Products, Element, Isa, Simd, TILE, Vectorised},
};

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
pub(super) fn multiply(
    isa: Isa,
    pool: &Pool,
    buffers: &Arc<Recycler>,
    jobs: &mut [LowRankJob<'_>],
) {
    let mut grids = Vec::with_capacity(jobs.len());
    let mut end = 0;
    for LowRankJob { x, b, y } in jobs.iter_mut().filter(|job| job.x.width() > 0) {
        let panels = y.width().div_ceil(PANEL);
        // A panel of few rows is too little for a task.
        let together = if x.rows() <= TILE { panels.div_ceil(pool.threads()).max(1) } else { 1 };
        end += x.rows().div_ceil(TASK_ROWS) * panels.div_ceil(together);
        let pairs = isa.multiplies_bf16() && b.dtype() == Dtype::Bf16;
        let rounded = pairs.then(|| round(isa, pool, buffers, Rows::from(&*x)));
        let (outputs, y) = (y.width(), SharedMut::new(y));
        grids.push(Grid { x, rounded, b, outputs, y, panels, together, end });
    }
    pool.run(end, |task| {
        let Some(grid) = grids.iter().find(|grid| task < grid.end) else { return };
        let left = grid.end - 1 - task;
        let strips = grid.panels.div_ceil(grid.together);
        let part = |at: usize, step: usize, len: usize| at * step..len.min((at + 1) * step);
        let rows = part(left / strips, TASK_ROWS, grid.x.rows());
        let panels = part(left % strips, grid.together, grid.panels);
        SCRATCH.with_borrow_mut(|scratch| {
            let panels = Panels { grid, rows, panels, scratch };
            let (Some(x), Some(b)) = (&grid.rounded, grid.b.as_bf16()) else {
                return isa.run(panels);
            };
            let panels = NarrowPanels { panels, x, b };
            match isa.bf16_products() {
                Bf16Products::Tiles => isa.run_tiles(panels),
                _ => isa.run_bf16(panels),
            }
        });
    });
}

impl Vectorised for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let b = self.grid.b;
        for panel in self.panels.clone() {
            let range = self.range(panel);
            if let Some(b) = b.as_f32() {
                self.add(s, panel, &b[range]);
            } else if let Some(b) = b.as_bf16() {
                self.add_narrow::<S, bf16>(s, panel, &b[range]);
            } else if let Some(b) = b.as_f16() {
                self.add_narrow::<S, f16>(s, panel, &b[range]);
            }
        }
    }
}

impl Panels<'_> {
    /// Widens a panel once where several tiles read it.
    #[inline(always)]
    fn add_narrow<S: Simd, E: Element>(&mut self, s: S, panel: usize, b: &[E]) {
        if self.rows.len() <= S::ROWS {
            return self.add(s, panel, b);
        }
        let mut scratch = std::mem::take(self.scratch);
        let wide = reserve(&mut scratch, b.len());
        for (b, wide) in b.chunks_exact(S::LANES).zip(wide.chunks_exact_mut(S::LANES)) {
            // SAFETY: both hold LANES values, which divide a panel's rows.
            unsafe { s.store(wide.as_mut_ptr(), E::load(s, b.as_ptr())) }
        }
        self.add(s, panel, &*wide);
        *self.scratch = scratch;
    }

    #[inline(always)]
    fn add<S: Simd, E: Element>(&self, s: S, panel: usize, b: &[E]) {
        let ranks = self.grid.x.width();
        let work = FloatSums { s, x: self.grid.x.data(), ranks, b };
        self.tiles(panel, self.rows.clone(), S::ROWS, &work);
    }
}

/// Sums of single ranks in f32.
struct FloatSums<'a, S, E> {
    s: S,
    x: &'a [f32],
    ranks: usize,
    b: &'a [E],
}

impl<S: Simd, E: Element> PanelSums for FloatSums<'_, S, E> {
    #[inline(always)]
    unsafe fn add(&self, rows: Range<usize>, y: *mut f32, ldy: usize) {
        let &Self { s, x, ranks, b } = self;
        // SAFETY: the caller's.
        unsafe { tiles(s, &x[rows.start * ranks..rows.end * ranks], ranks, b, y, ldy) }
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
