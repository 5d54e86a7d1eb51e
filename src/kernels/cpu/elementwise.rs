//! Operations that read an activation once. They are plain loops, which the compiler vectorises for
//! each instruction set.

use std::ops::Range;

use super::{pool::Pool, shared::SharedMut, tensor::Tensor};
use crate::{
    kernels::{Activation, HostTensor, Norm, quantised},
    simd::{Isa, Simd, Vectorised, exp},
};

/// Minimum values per extra thread.
const TASK_VALUES: usize = 16 * 1024;

/// Work on rows of an activation, independent of each other. `run` must be `#[inline(always)]`.
pub(super) trait RowWise: Sync {
    /// Writes or changes `out`, the values of `rows`.
    fn run(&self, rows: Range<usize>, out: &mut [f32]);
}

/// Does `work` on all rows of `out`, in parallel where there are many.
pub(super) fn by_rows(isa: Isa, pool: &Pool, out: &mut Tensor, work: &impl RowWise) {
    struct RowTask<'a, W>(&'a W, Range<usize>, &'a mut [f32]);
    impl<W: RowWise> Vectorised for RowTask<'_, W> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            self.0.run(self.1, self.2);
        }
    }
    let (rows, width) = (out.rows(), out.width());
    if width == 0 {
        return;
    }
    let step = (TASK_VALUES / width).max(1);
    let out = SharedMut::new(out);
    pool.run(rows.div_ceil(step), |task| {
        let rows = task * step..rows.min((task + 1) * step);
        // SAFETY: these rows are this task's alone, and the region ends before `out` does.
        let values = unsafe { out.slice(rows.start * width, rows.len() * width) };
        isa.run(RowTask(work, rows, values));
    });
}

/// Widens `out.len()` elements of `w` from `start` on; the range must lie in the tensor, and be a
/// whole row where that is quantised.
pub(super) fn widen(w: &HostTensor, start: usize, out: &mut [f32]) {
    let end = start + out.len();
    if let Some(w) = w.as_f32() {
        out.copy_from_slice(&w[start..end]);
    } else if let Some(w) = w.as_bf16() {
        out.iter_mut().zip(&w[start..end]).for_each(|(out, w)| *out = w.to_f32());
    } else if let Some(w) = w.as_f16() {
        out.iter_mut().zip(&w[start..end]).for_each(|(out, w)| *out = w.to_f32());
    } else if let Some(kind) = w.dtype().blocks() {
        quantised::row(kind, w.bytes(), start / out.len().max(1), out);
    }
}

/// Multiplies columns of each row by the row's own factor, range by range.
pub(super) struct ScaleColumns(pub(super) Vec<(Range<usize>, Vec<f32>)>);

impl RowWise for ScaleColumns {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let width = out.len() / rows.len();
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            for (columns, factors) in &self.0 {
                out[columns.clone()].iter_mut().for_each(|x| *x *= factors[row]);
            }
        }
    }
}

/// `out += x`.
pub(super) struct Add<'a>(pub(super) &'a Tensor);

impl RowWise for Add<'_> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let width = self.0.width();
        let x = &self.0.data()[rows.start * width..rows.end * width];
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

/// `out = x / √(mean(x²) + eps) · (shift + gain)` over each group of `gain.width()` values.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a Tensor,
    /// `[1, group]`, or `[rows, group]`: one per row.
    pub(super) gain: &'a Tensor,
    pub(super) per_row: bool,
    pub(super) norm: Norm,
}

impl RowWise for RmsNorm<'_> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let (width, group) = (self.x.width(), self.gain.width());
        let x = self.x.data()[rows.start * width..rows.end * width].chunks_exact(width);
        for ((row, x), out) in rows.zip(x).zip(out.chunks_exact_mut(width)) {
            let start = if self.per_row { row * group } else { 0 };
            let gain = &self.gain.data()[start..start + group];
            for (x, out) in x.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
                let mut lanes = [0.0f32; 16];
                for x in x.chunks(16) {
                    for (lane, x) in lanes.iter_mut().zip(x) {
                        *lane += x * x;
                    }
                }
                let mean = lanes.iter().sum::<f32>() / group as f32;
                let scale = 1.0 / (mean + self.norm.eps).sqrt();
                for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                    *out = x * scale * (self.norm.shift + gain);
                }
            }
        }
    }
}

/// `out = activation(out) · up`.
pub(super) struct Gated<'a>(pub(super) Activation, pub(super) &'a Tensor);

impl RowWise for Gated<'_> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let width = self.1.width();
        let up = &self.1.data()[rows.start * width..rows.end * width];
        match self.0 {
            Activation::Silu => {
                for (gate, up) in out.iter_mut().zip(up) {
                    *gate = *gate / (1.0 + exp(-*gate)) * up;
                }
            }
            Activation::Gelu => {
                let (a, b) = self.0.polynomial();
                for (gate, up) in out.iter_mut().zip(up) {
                    let x = *gate;
                    *gate = x / (1.0 + exp(-x * (a + b * x * x))) * up;
                }
            }
        }
    }
}

/// `out = x` in some columns.
pub(super) struct SelectColumns<'a>(pub(super) &'a Tensor, pub(super) Range<usize>);

impl RowWise for SelectColumns<'_> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let width = self.0.width();
        let x = self.0.data()[rows.start * width..rows.end * width].chunks_exact(width);
        for (out, x) in out.chunks_exact_mut(self.1.len()).zip(x) {
            out.copy_from_slice(&x[self.1.clone()]);
        }
    }
}

/// `out = cap · tanh(out / cap)`.
pub(super) struct SoftCap(pub(super) f32);

impl RowWise for SoftCap {
    #[inline(always)]
    fn run(&self, _: Range<usize>, out: &mut [f32]) {
        soft_cap(out, self.0);
    }
}

/// `x = cap · tanh(x / cap)`.
#[inline(always)]
pub(super) fn soft_cap(values: &mut [f32], cap: f32) {
    for x in values {
        // tanh(y) = 1 − 2 / (1 + e^2y)
        *x = cap * (1.0 - 2.0 / (1.0 + exp(2.0 / cap * *x)));
    }
}

/// Rotates `half` pairs of each head of each row; `angles` is `[rows, 2, half]`: cos, then sin.
pub(super) struct Rotate<'a> {
    pub(super) angles: &'a [f32],
    pub(super) half: usize,
    pub(super) width: usize,
    pub(super) head_dim: usize,
}

impl RowWise for Rotate<'_> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let (width, half) = (self.width, self.half);
        let angles = &self.angles[rows.start * 2 * half..rows.end * 2 * half];
        for (row, angles) in out.chunks_exact_mut(width).zip(angles.chunks_exact(2 * half)) {
            let (cos, sin) = angles.split_at(half);
            for head in row.chunks_exact_mut(self.head_dim) {
                let (a, b) = head[..2 * half].split_at_mut(half);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}
