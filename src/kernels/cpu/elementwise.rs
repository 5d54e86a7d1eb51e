//! Everything that goes once over an activation. Plain loops: compiled for each instruction set,
//! they become vectors by themselves.

use std::ops::Range;

use super::{
    gemm::SharedMut,
    pool::Pool,
    simd::{Isa, Simd, Vectorised},
    tensor::Tensor,
};
use crate::kernels::HostTensor;

/// Values for which another thread is worth the noise.
const TASK_VALUES: usize = 16 * 1024;

/// Work on rows of an activation, independent of each other. `run` must be `#[inline(always)]`.
pub(super) trait RowWise: Sync {
    /// Writes or changes `out`, the values of `rows`.
    fn run(&self, rows: Range<usize>, out: &mut [f32]);
}

/// Does `work` on all rows of `out`, in parallel where there are many.
pub(super) fn by_rows(isa: Isa, pool: &Pool, out: &mut Tensor, work: &impl RowWise) {
    struct Part<'a, W>(&'a W, Range<usize>, &'a mut [f32]);
    impl<W: RowWise> Vectorised for Part<'_, W> {
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
        isa.run(Part(work, rows, values));
    });
}

/// Widens `out.len()` elements of `w` from `start` on; the range must lie in the tensor.
pub(super) fn widen(w: &HostTensor, start: usize, out: &mut [f32]) {
    let end = start + out.len();
    if let Some(w) = w.as_f32() {
        out.copy_from_slice(&w[start..end]);
    } else if let Some(w) = w.as_bf16() {
        out.iter_mut().zip(&w[start..end]).for_each(|(out, w)| *out = w.to_f32());
    } else if let Some(w) = w.as_f16() {
        out.iter_mut().zip(&w[start..end]).for_each(|(out, w)| *out = w.to_f32());
    }
}

/// eˣ to 2 units in the last place, 0 below −87.3 (where f32 leaves its normal range), e⁸⁸ above 88.
/// NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.3;
    const HIGH: f32 = 88.0;
    // 1.5 · 2²³: adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough that its products with small integers are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < LOW { LOW } else { x };
    let clamped = if clamped > HIGH { HIGH } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = (p * r * r + r) + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < LOW { 0.0 } else { p * power }
}

/// `out = x / √(mean(x²) + eps) · gain` over each group of `gain.width()` values.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a Tensor,
    /// `[1, group]`, or `[rows, group]`: one per row.
    pub(super) gain: &'a Tensor,
    pub(super) per_row: bool,
    pub(super) eps: f32,
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
                let scale = 1.0 / (mean + self.eps).sqrt();
                for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                    *out = x * scale * gain;
                }
            }
        }
    }
}

/// `out = silu(out) · up`.
pub(super) struct Swiglu<'a>(pub(super) &'a Tensor);

impl RowWise for Swiglu<'_> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let width = self.0.width();
        let up = &self.0.data()[rows.start * width..rows.end * width];
        for (gate, up) in out.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

/// Rotates each head of each row; `angles` is `[rows, 2, head_dim / 2]`: cos, then sin.
pub(super) struct Rotate<'a> {
    pub(super) angles: &'a [f32],
    pub(super) width: usize,
    pub(super) head_dim: usize,
}

impl RowWise for Rotate<'_> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, out: &mut [f32]) {
        let (width, head_dim) = (self.width, self.head_dim);
        let angles = self.angles[rows.start * head_dim..rows.end * head_dim].chunks_exact(head_dim);
        for (row, angles) in out.chunks_exact_mut(width).zip(angles) {
            let (cos, sin) = angles.split_at(head_dim / 2);
            for head in row.chunks_exact_mut(head_dim) {
                let (a, b) = head.split_at_mut(head_dim / 2);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in 0..2_000_000 {
            let x = -87.2 + step as f32 * (175.0 / 2_000_000.0);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
    }

    #[test]
    fn exp_has_the_values_that_a_softmax_relies_on() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }
}
