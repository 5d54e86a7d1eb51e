//! Row-wise operations and their backwards on slices, parallel over rows.

use ladle::{
    kernels::{Activation, Rope},
    simd::exp,
    vectorised,
};
use rayon::prelude::*;

use crate::autograd::angles;

/// Elements that one task computes.
pub(super) const CHUNK: usize = 16 * 1024;

/// `out += x`.
pub(super) fn add(out: &mut [f32], x: &[f32]) {
    let chunks = out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.for_each(|(out, x)| out.iter_mut().zip(x).for_each(|(out, x)| *out += x));
}

/// Folds a slice in 16 independent lanes, a fixed order in which loops vectorise.
#[inline(always)]
fn fold(
    mut lanes: [f32; 16],
    xs: &[f32],
    ys: &[f32],
    f: impl Fn(f32, f32, f32) -> f32,
) -> [f32; 16] {
    let (chunks, others) = (xs.chunks_exact(16), ys.chunks_exact(16));
    let (rest, other_rest) = (chunks.remainder(), others.remainder());
    for (xs, ys) in chunks.zip(others) {
        for ((lane, x), y) in lanes.iter_mut().zip(xs).zip(ys) {
            *lane = f(*lane, *x, *y);
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(rest).zip(other_rest) {
        *lane = f(*lane, *x, *y);
    }
    lanes
}

/// `Σ x y`.
#[inline(always)]
pub(crate) fn dot(xs: &[f32], ys: &[f32]) -> f32 {
    fold([0.0; 16], xs, ys, |sum, x, y| sum + x * y).iter().sum()
}

/// `Σ x`.
#[inline(always)]
pub(crate) fn sum(xs: &[f32]) -> f32 {
    fold([0.0; 16], xs, xs, |sum, x, _| sum + x).iter().sum()
}

/// The largest value.
#[inline(always)]
pub(crate) fn max(xs: &[f32]) -> f32 {
    let lanes = fold([f32::NEG_INFINITY; 16], xs, xs, |max, x, _| if x > max { x } else { max });
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// 1 − 2 / (1 + e²ˣ).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// `cap · tanh(x / cap)`, in place.
pub(super) fn soft_cap(x: &mut [f32], cap: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x = cap * tanh(*x / cap)));
}

/// The gradient of the input, in place of that of the result `y`: times 1 − (y / cap)².
pub(super) fn soft_cap_back(grad: &mut [f32], y: &[f32], cap: f32) {
    let chunks = grad.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK));
    chunks.for_each(|(grad, y)| {
        grad.iter_mut().zip(y).for_each(|(grad, y)| *grad *= 1.0 - (y / cap) * (y / cap));
    });
}

/// Gains of a norm.
pub(super) struct Gains {
    /// One group, or one per row.
    pub values: Vec<f32>,
    /// Columns of a group.
    pub group: usize,
    /// Groups in a row.
    pub groups: usize,
}

impl Gains {
    /// The gain of group number `index` of the whole activation.
    fn of(&self, index: usize) -> &[f32] {
        let row = if self.values.len() == self.group { 0 } else { index / self.groups };
        &self.values[row * self.group..][..self.group]
    }
}

/// 1 / √(mean(x²) + ε).
#[inline(always)]
fn inverse(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

vectorised! {
    fn norm_group<'a>(y: &'a mut [f32], x: &'a [f32], gain: &'a [f32], eps: f32) {
        let scale = inverse(x, eps);
        for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
            *y = x * scale * gain;
        }
    }
}

vectorised! {
    // ∂xⱼ = s γⱼ gⱼ − xⱼ s³/n Σ γ g x, with s the inverse root mean square; `grad` ends as γ g.
    fn norm_group_back<'a>(out: &'a mut [f32], grad: &'a mut [f32], x: &'a [f32], gain: &'a [f32], eps: f32) {
        let scale = inverse(x, eps);
        for (g, gain) in grad.iter_mut().zip(gain) {
            *g *= gain;
        }
        let pull = dot(grad, x) * scale * scale * scale / x.len() as f32;
        for ((out, g), x) in out.iter_mut().zip(&*grad).zip(x) {
            *out += scale * g - x * pull;
        }
    }
}

/// `y = x / √(mean(x²) + ε) · gain`, group by group.
pub(super) fn rms_norm(y: &mut [f32], x: &[f32], gains: &Gains, eps: f32) {
    let groups = y.par_chunks_mut(gains.group).zip(x.par_chunks(gains.group)).enumerate();
    let groups = groups.with_min_len(16);
    groups.for_each(|(index, (y, x))| norm_group(y, x, gains.of(index), eps));
}

/// Adds the gradient of the norm's input to `out`; overwrites `grad`.
pub(super) fn rms_norm_back(out: &mut [f32], grad: &mut [f32], x: &[f32], gains: &Gains, eps: f32) {
    let group = gains.group;
    let groups = out.par_chunks_mut(group).zip(grad.par_chunks_mut(group)).zip(x.par_chunks(group));
    groups.enumerate().with_min_len(16).for_each(|(index, ((out, grad), x))| {
        norm_group_back(out, grad, x, gains.of(index), eps);
    });
}

/// Angles of a rotary embedding: cos and sin of `positions[t] · inv_freq[j]`, times the scale.
pub(super) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    head_dim: usize,
}

impl Angles {
    pub(super) fn new(positions: &[u32], rope: &Rope) -> Self {
        let (cos, sin) = angles(positions, rope);
        Self { cos, sin, half: rope.inv_freq.len(), head_dim: rope.head_dim }
    }

    /// Rotates each head of `x` `[rows, width]` in place, half-split; `sign` −1 is the backward.
    pub(super) fn rotate(&self, x: &mut [f32], width: usize, sign: f32) {
        let half = self.half;
        let angles = self.cos.par_chunks(half).zip(self.sin.par_chunks(half));
        x.par_chunks_mut(width).zip(angles).with_min_len(16).for_each(|(x, (cos, sin))| {
            for x in x.chunks_exact_mut(self.head_dim) {
                let (x0, x1) = x[..2 * half].split_at_mut(half);
                for j in 0..half {
                    let (a, b, sin) = (x0[j], x1[j], sin[j] * sign);
                    x0[j] = a * cos[j] - b * sin;
                    x1[j] = b * cos[j] + a * sin;
                }
            }
        });
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

vectorised! {
    // x · σ(x (a + b x²)) · up.
    fn gate_chunk<'a>(y: &'a mut [f32], gate: &'a [f32], up: &'a [f32], polynomial: (f32, f32)) {
        let (a, b) = polynomial;
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            let square = if b == 0.0 { 0.0 } else { gate * gate };
            *y = gate * sigmoid(gate * (a + b * square)) * up;
        }
    }
}

vectorised! {
    // With s = σ(x (a + b x²)): ∂ = s (1 + x (1 − s) (a + 3 b x²)).
    fn gate_chunk_back<'a>(
        dgate: &'a mut [f32],
        grad: &'a mut [f32],
        gate: &'a [f32],
        up: &'a [f32],
        polynomial: (f32, f32),
    ) {
        let (a, b) = polynomial;
        let inputs = gate.iter().zip(up);
        for ((dgate, grad), (gate, up)) in dgate.iter_mut().zip(grad).zip(inputs) {
            let square = if b == 0.0 { 0.0 } else { gate * gate };
            let s = sigmoid(gate * (a + b * square));
            *dgate = *grad * up * s * (1.0 + gate * (1.0 - s) * (a + 3.0 * b * square));
            *grad *= gate * s;
        }
    }
}

/// `activation(gate) ⊙ up`.
pub(super) fn gated(activation: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let (mut y, polynomial) = (vec![0f32; gate.len()], activation.polynomial());
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    let chunks = y.par_chunks_mut(CHUNK).zip(inputs);
    chunks.for_each(|(y, (gate, up))| gate_chunk(y, gate, up, polynomial));
    y
}

/// The gradient of the gate; `grad`, that of the result, becomes that of `up`.
pub(super) fn gated_back(
    activation: Activation,
    grad: &mut [f32],
    gate: &[f32],
    up: &[f32],
) -> Vec<f32> {
    let polynomial = activation.polynomial();
    let mut dgate = vec![0f32; gate.len()];
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    let outputs = dgate.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK));
    outputs.zip(inputs).for_each(|((dgate, grad), (gate, up))| {
        gate_chunk_back(dgate, grad, gate, up, polynomial);
    });
    dgate
}
