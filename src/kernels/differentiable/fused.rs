//! Fused operations with their own backward: f32 on the CPU, parallel over rows. The frozen product
//! runs on any device.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Shape, Storage, Tensor,
    backend::BackendStorage, bail,
};
use rayon::prelude::*;

use super::{Result, Rope, composed::angles};
use crate::math::exp;

type Candle<T> = candle_core::Result<T>;

/// Whether the fused CPU operations can compute on this tensor.
pub(super) fn suits(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == candle_core::DType::F32
}

/// The values of a contiguous f32 storage.
pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Candle<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused operation needs a contiguous operand, got {layout:?}"),
    }
}

/// Calls `f` with the values of a CPU tensor.
pub(super) fn read<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Candle<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => bail!("a fused CPU operation got a tensor on {:?}", x.device()),
    }
}

/// `x Wᵀ` for a frozen `W` `[out, in]`. candle's own matmul would compute and keep `∂W` as well:
/// more memory than the whole rest of a LoRA step.
struct FrozenLinear {
    weight: Tensor,
}

impl FrozenLinear {
    fn forward<S: BackendStorage>(
        &self,
        x: &S,
        layout: &Layout,
        weight: &S,
        weight_layout: &Layout,
    ) -> Candle<(S, Shape)> {
        let (rows, inner) = layout.shape().dims2()?;
        let outer = weight_layout.dims()[1];
        let y = x.matmul(weight, (1, rows, outer, inner), layout, weight_layout)?;
        Ok((y, (rows, outer).into()))
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Candle<(CpuStorage, Shape)> {
        let weight = self.weight.t()?;
        let (storage, weight_layout) = weight.storage_and_layout();
        match &*storage {
            Storage::Cpu(weight) => self.forward(x, layout, weight, weight_layout),
            _ => {
                bail!("frozen-linear: the weight is on {:?}, the input on the CPU", weight.device())
            }
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Candle<(CudaStorage, Shape)> {
        let weight = self.weight.t()?;
        let (storage, weight_layout) = weight.storage_and_layout();
        match &*storage {
            Storage::Cuda(weight) => self.forward(x, layout, weight, weight_layout),
            _ => bail!("frozen-linear: the weight is on {:?}, the input on a GPU", weight.device()),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Candle<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.matmul(&self.weight)?))
    }
}

/// `x Wᵀ` with a gradient for `x` only.
pub(super) fn frozen_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(FrozenLinear { weight: weight.contiguous()? })?)
}

/// An elementwise-shaped operation: values → values, and (values, ∂output) → ∂input.
struct Map<F, B> {
    name: &'static str,
    forward: F,
    backward: B,
}

impl<F, B> CustomOp1 for Map<F, B>
where
    F: Fn(&[f32]) -> Vec<f32>,
    B: Fn(&[f32], &[f32]) -> Vec<f32>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Candle<(CpuStorage, Shape)> {
        let y = (self.forward)(values(x, layout)?);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Candle<Option<Tensor>> {
        let input = read(x, |x| read(grad, |grad| (self.backward)(x, grad)))??;
        Ok(Some(Tensor::from_vec(input, x.shape(), x.device())?))
    }
}

/// `x / √(mean(x²) + ε) · gain` over groups of `gain.len()` columns, the gain frozen.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    let gain: Arc<[f32]> = read(gain, |gain| gain.into())?;
    let (group, backward_gain) = (gain.len(), gain.clone());
    let inverse = move |x: &[f32]| 1.0 / (dot(x, x) / group as f32 + eps).sqrt();
    let forward = move |x: &[f32]| {
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(group).zip(x.par_chunks(group)).with_min_len(16).for_each(|(y, x)| {
            let scale = inverse(x);
            for ((y, x), gain) in y.iter_mut().zip(x).zip(&*gain) {
                *y = x * scale * gain;
            }
        });
        y
    };
    // ∂xⱼ = s γⱼ gⱼ − xⱼ s³/n Σ γ g x, with s the inverse root mean square.
    let backward = move |x: &[f32], grad: &[f32]| {
        let gain = &*backward_gain;
        let mut out = vec![0f32; x.len()];
        let rows = x.par_chunks(group).zip(grad.par_chunks(group));
        out.par_chunks_mut(group).zip(rows).with_min_len(16).for_each(|(out, (x, grad))| {
            let scale = inverse(x);
            for ((out, g), gain) in out.iter_mut().zip(grad).zip(gain) {
                *out = gain * g;
            }
            let pull = dot(out, x) * scale * scale * scale / group as f32;
            for (out, x) in out.iter_mut().zip(x) {
                *out = scale * *out - x * pull;
            }
        });
        out
    };
    Ok(x.contiguous()?.apply_op1(Map { name: "rms-norm", forward, backward })?)
}

/// Half-split rotary embedding; its backward is the rotation by the opposite angles.
pub(super) fn rope(x: &Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let half = rope.inv_freq.len();
    let (cos, sin) = angles(positions, rope);
    let tables = Arc::new((cos, sin));
    let rotate = move |x: &[f32], sign: f32| {
        let (cos, sin) = &*tables;
        let mut y = vec![0f32; x.len()];
        let angles = cos.par_chunks(half).zip(sin.par_chunks(half));
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).zip(angles);
        rows.with_min_len(16).for_each(|((y, x), (cos, sin))| {
            for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                let ((y0, y1), (x0, x1)) = (y.split_at_mut(half), x.split_at(half));
                for j in 0..half {
                    let sin = sin[j] * sign;
                    y0[j] = x0[j] * cos[j] - x1[j] * sin;
                    y1[j] = x1[j] * cos[j] + x0[j] * sin;
                }
            }
        });
        y
    };
    let back = rotate.clone();
    let forward = move |x: &[f32]| rotate(x, 1.0);
    let backward = move |_: &[f32], grad: &[f32]| back(grad, -1.0);
    Ok(x.contiguous()?.apply_op1(Map { name: "rope", forward, backward })?)
}

/// Folds a slice in 16 independent lanes: one order for every length, and loops that vectorise.
#[inline]
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
pub(super) fn dot(xs: &[f32], ys: &[f32]) -> f32 {
    fold([0.0; 16], xs, ys, |sum, x, y| sum + x * y).iter().sum()
}

/// `Σ x`.
pub(super) fn sum(xs: &[f32]) -> f32 {
    fold([0.0; 16], xs, xs, |sum, x, _| sum + x).iter().sum()
}

/// The largest value.
pub(super) fn max(xs: &[f32]) -> f32 {
    let lanes = fold([f32::NEG_INFINITY; 16], xs, xs, |max, x, _| if x > max { x } else { max });
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `silu(gate) ⊙ up`.
struct SwiGlu;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Elements that one task computes.
const CHUNK: usize = 16 * 1024;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Candle<(CpuStorage, Shape)> {
        let (gate, up) = (values(gate, layout)?, values(up, up_layout)?);
        let mut y = vec![0f32; gate.len()];
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
        y.par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (gate, up))| {
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate * sigmoid(*gate) * up;
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Candle<(Option<Tensor>, Option<Tensor>)> {
        let run = |gate: &[f32], up: &[f32], grad: &[f32]| {
            let (mut dgate, mut dup) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
            let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
            let inputs = inputs.zip(grad.par_chunks(CHUNK));
            let outputs = dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK));
            outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), grad))| {
                let inputs = gate.iter().zip(up).zip(grad);
                for ((dgate, dup), ((gate, up), grad)) in dgate.iter_mut().zip(dup).zip(inputs) {
                    let s = sigmoid(*gate);
                    *dgate = grad * up * s * (1.0 + gate * (1.0 - s));
                    *dup = grad * gate * s;
                }
            });
            (dgate, dup)
        };
        let (dgate, dup) =
            read(gate, |gate| read(up, |up| read(grad, |grad| run(gate, up, grad))))???;
        let tensor = |v| Tensor::from_vec(v, gate.shape(), gate.device());
        Ok((Some(tensor(dgate)?), Some(tensor(dup)?)))
    }
}

pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        super::expect("swiglu", "elements of up", gate.elem_count(), up.elem_count())?;
    }
    Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)?)
}
