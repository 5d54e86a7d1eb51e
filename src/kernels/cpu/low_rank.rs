//! The second half of low-rank layers, `y += (x ⊙ scales) Bᵀ`.
//!
//! With few ranks a dot product per output would spend its time on adding up lanes. Here lanes are
//! outputs: each keeps its own sum, ranks in order (or pairs of ranks, where the instruction set
//! multiplies in pairs of bf16 and B is in bf16), whatever the number of rows.

use std::{cell::RefCell, ops::Range, sync::Arc};

use half::{bf16, f16};

use super::{
    pairs::round,
    pool::Pool,
    shared::SharedMut,
    tensor::{LINE, Line, Recycler, Tensor, brains, brains_mut, values_mut, zeroed},
};
use crate::{
    kernels::{Dtype, HostTensor, KernelError, Result, check::matrix},
    simd::{Bf16Dots, Bf16Work, Element, Isa, Lanes, Simd, Vectorised},
};

/// Outputs of a panel.
pub(super) const PANEL: usize = 64;
/// Vectors of outputs in a tile.
const WIDTH: usize = 4;
/// Rows of the largest tile.
const TILE_ROWS: usize = 6;
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
        end += x.rows().div_ceil(TASK_ROWS) * panels;
        let pairs = isa.has_bf16_dots() && b.dtype() == Dtype::Bf16;
        let rounded = pairs.then(|| round(isa, pool, buffers, x));
        grids.push(Grid { x, rounded, b, outputs: y.width(), y: SharedMut::new(y), panels, end });
    }
    pool.run(end, |task| {
        let Some(grid) = grids.iter().find(|grid| task < grid.end) else { return };
        let left = grid.end - 1 - task;
        let (start, panel) = (left / grid.panels * TASK_ROWS, left % grid.panels);
        let rows = start..grid.x.rows().min(start + TASK_ROWS);
        SCRATCH.with_borrow_mut(|scratch| {
            let panel = Panel { grid, rows, panel, scratch };
            match (&grid.rounded, grid.b.as_bf16()) {
                (Some(x), Some(b)) => isa.run_bf16(PairPanel { panel, x, b }),
                _ => isa.run(panel),
            }
        });
    });
}

/// One job cut into panels × rows.
struct Grid<'a> {
    x: &'a Tensor,
    /// `x` rounded to bf16, where it is multiplied in pairs.
    rounded: Option<Tensor>,
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

/// The sums of a panel. `add` must be `#[inline(always)]`, as [`Vectorised::run`].
trait PanelSums {
    /// Adds the panel's sums of a tile's rows to `y`.
    /// # Safety
    /// `y` has as many rows of a panel, `ldy` apart, written by this task alone.
    unsafe fn add(&self, rows: Range<usize>, y: *mut f32, ldy: usize);
}

impl Panel<'_> {
    /// Elements of B in the panel.
    fn range(&self) -> Range<usize> {
        let values = self.grid.x.width() * PANEL;
        self.panel * values..(self.panel + 1) * values
    }

    /// Adds to all rows, at most `height` at a time: in y, or in a buffer where y ends within the
    /// panel.
    #[inline(always)]
    fn tiles(&self, height: usize, work: &impl PanelSums) {
        let (outputs, first) = (self.grid.outputs, self.panel * PANEL);
        let len = PANEL.min(outputs - first);
        let mut aside = [0.0f32; TILE_ROWS * PANEL];
        for start in self.rows.clone().step_by(height) {
            let rows = start..self.rows.end.min(start + height);
            // SAFETY: these rows and outputs of y are this panel's alone.
            let y = |row: usize| unsafe { self.grid.y.slice(row * outputs + first, len) };
            if len == PANEL {
                // SAFETY: the rows of y have a whole panel and lie `outputs` apart.
                unsafe { work.add(rows, y(start).as_mut_ptr(), outputs) };
                continue;
            }
            for (row, aside) in rows.clone().zip(aside.chunks_exact_mut(PANEL)) {
                aside[..len].copy_from_slice(y(row));
            }
            // SAFETY: `aside` holds as many rows of a panel.
            unsafe { work.add(rows.clone(), aside.as_mut_ptr(), PANEL) };
            for (row, aside) in rows.zip(aside.chunks_exact(PANEL)) {
                y(row).copy_from_slice(&aside[..len]);
            }
        }
    }
}

impl Vectorised for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let range = self.range();
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
        self.add(s, &*wide);
        *self.scratch = scratch;
    }

    #[inline(always)]
    fn add<S: Simd, E: Element>(&self, s: S, b: &[E]) {
        let ranks = self.grid.x.width();
        self.tiles(S::ROWS, &FloatSums { s, x: self.grid.x.data(), ranks, b });
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

/// Some rows of one panel, multiplied in pairs of ranks.
struct PairPanel<'a> {
    panel: Panel<'a>,
    /// The rows rounded to bf16, padded with zeros.
    x: &'a Tensor,
    b: &'a [bf16],
}

impl Bf16Work for PairPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<D: Bf16Dots>(self, d: D) {
        let Self { panel, x, b } = self;
        let (b, ranks) = (&b[panel.range()], panel.grid.x.width());
        let pairs = ranks.div_ceil(2);
        let mut scratch = std::mem::take(panel.scratch);
        if scratch.len() * LINE < pairs * PANEL {
            scratch = zeroed((pairs * PANEL).div_ceil(LINE));
        }
        // [pair, output, 2]; an odd last rank is paired with zeros.
        let zipped = &mut brains_mut(values_mut(&mut scratch))[..pairs * 2 * PANEL];
        let zeros = [bf16::ZERO; PANEL];
        for (pair, zipped) in b.chunks(2 * PANEL).zip(zipped.chunks_exact_mut(2 * PANEL)) {
            let (first, second) = pair.split_at(PANEL);
            let second = if second.is_empty() { &zeros[..] } else { second };
            for at in (0..PANEL).step_by(D::S::LANES) {
                // SAFETY: both ranks have a panel of outputs, which LANES divide.
                unsafe {
                    let v = d.zip(first.as_ptr().add(at), second.as_ptr().add(at));
                    d.store_pairs(zipped.as_mut_ptr().add(2 * at), v);
                }
            }
        }
        let (x, ldx) = (brains(x.data()), 2 * x.width());
        panel.tiles(TILE_ROWS, &PairSums { d, x, ldx, b: zipped });
        *panel.scratch = scratch;
    }
}

/// Sums of pairs of ranks in bf16.
struct PairSums<'a, D> {
    d: D,
    x: &'a [bf16],
    ldx: usize,
    /// `[pair, output, 2]`
    b: &'a [bf16],
}

impl<D: Bf16Dots> PanelSums for PairSums<'_, D> {
    #[inline(always)]
    unsafe fn add(&self, rows: Range<usize>, y: *mut f32, ldy: usize) {
        let &Self { d, x, ldx, b } = self;
        let x = (&x[rows.start * ldx..rows.end * ldx], ldx);
        // SAFETY: the caller's; x has whole pairs.
        unsafe {
            match rows.len() {
                1 => sum_pairs::<D, 1>(d, x, b, (y, ldy)),
                2 => sum_pairs::<D, 2>(d, x, b, (y, ldy)),
                3 => sum_pairs::<D, 3>(d, x, b, (y, ldy)),
                4 => sum_pairs::<D, 4>(d, x, b, (y, ldy)),
                5 => sum_pairs::<D, 5>(d, x, b, (y, ldy)),
                6 => sum_pairs::<D, 6>(d, x, b, (y, ldy)),
                rows => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}

/// `y[i, ·] += Σ x[i, pair] b[pair, ·]` for `M` rows and one panel, pairs in order.
/// # Safety
/// `x` has M rows of all pairs of `b`, `ldx` values apart; `y` M rows of a panel, `ldy` apart,
/// written by this task alone.
#[inline(always)]
unsafe fn sum_pairs<D: Bf16Dots, const M: usize>(
    d: D,
    (x, ldx): (&[bf16], usize),
    b: &[bf16],
    (y, ldy): (*mut f32, usize),
) {
    let (s, lanes) = (d.vectors(), D::S::LANES);
    for at in (0..PANEL).step_by(WIDTH * lanes) {
        // SAFETY: the caller's.
        unsafe {
            let y = y.add(at);
            let mut sums = [[s.splat(0.0); WIDTH]; M];
            for i in 0..M {
                for j in 0..WIDTH {
                    sums[i][j] = s.load(y.add(i * ldy + j * lanes));
                }
            }
            for (pair, b) in b.chunks_exact(2 * PANEL).enumerate() {
                let mut wide = [d.splat_pair([bf16::ZERO; 2]); WIDTH];
                for j in 0..WIDTH {
                    wide[j] = d.pairs(b.as_ptr().add(2 * (at + j * lanes)));
                }
                for i in 0..M {
                    let at = i * ldx + 2 * pair;
                    let x = d.splat_pair([*x.get_unchecked(at), *x.get_unchecked(at + 1)]);
                    for j in 0..WIDTH {
                        sums[i][j] = d.dot(sums[i][j], wide[j], x);
                    }
                }
            }
            for i in 0..M {
                for j in 0..WIDTH {
                    s.store(y.add(i * ldy + j * lanes), sums[i][j]);
                }
            }
        }
    }
}
