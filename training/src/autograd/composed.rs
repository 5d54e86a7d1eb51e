//! Operations composed of several differentiable operations of candle.

use candle_core::{D, DType, Result, Tensor};
use ladle::kernels::{AttentionShape, Norm, Rope};

use super::tree::Tree;

/// `x / √(mean(x²) + ε) · (shift + gain)` over groups of `group` columns; `gain` is `[group]` or
/// `[rows, 1, group]`.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, group: usize, norm: Norm) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let x = x.reshape((rows, width / group, group))?;
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(norm.eps))?.sqrt()?;
    let gain = gain.affine(1.0, f64::from(norm.shift))?;
    x.broadcast_div(&scale)?.broadcast_mul(&gain)?.reshape((rows, width))
}

/// Half-split rotary embedding of each head of `x`.
pub(super) fn rope(x: &Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let half = rope.inv_freq.len();
    let (cos, sin) = angles(positions, rope);
    let cos = Tensor::from_vec(cos, (rows, 1, half), x.device())?;
    let sin = Tensor::from_vec(sin, (rows, 1, half), x.device())?;
    let x = x.reshape((rows, width / rope.head_dim, rope.head_dim))?;
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let rest = x.narrow(2, 2 * half, rope.head_dim - 2 * half)?;
    Tensor::cat(&[first, second, rest], 2)?.reshape((rows, width))
}

/// cos and sin of `positions[t] · inv_freq[j]`, times the rope's scale: `[rows, half]` each.
pub(crate) fn angles(positions: &[u32], rope: &Rope) -> (Vec<f32>, Vec<f32>) {
    positions
        .iter()
        .flat_map(|&position| rope.inv_freq.iter().map(move |freq| position as f32 * freq))
        .map(|angle| (angle.cos() * rope.scale, angle.sin() * rope.scale))
        .unzip()
}

/// `cap · tanh(x / cap)`.
pub(super) fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    (x / f64::from(cap))?.tanh()? * f64::from(cap)
}

/// Causal grouped-query attention, one tree of segments after another.
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: AttentionShape,
    trees: &[Tree],
) -> Result<Tensor> {
    let AttentionShape { heads, kv_heads, head_dim, window, cap } = shape;
    let mut outputs = Vec::with_capacity(trees.len());
    for tree in trees {
        let len = tree.rows.len();
        let take = |x: &Tensor, heads: usize| -> Result<Tensor> {
            let x = x.narrow(0, tree.rows.start, len)?.reshape((len, heads, head_dim))?;
            x.transpose(0, 1)?.contiguous()
        };
        // Query head h reads key/value head h / (heads / kv_heads).
        let repeat = |x: Tensor| -> Result<Tensor> {
            let shape = (kv_heads, heads / kv_heads, len, head_dim);
            x.unsqueeze(1)?.broadcast_as(shape)?.reshape((heads, len, head_dim))
        };
        let query = take(q, heads)?;
        let key = repeat(take(k, kv_heads)?)?;
        let value = repeat(take(v, kv_heads)?)?;
        let mask: Vec<f32> = (0..len)
            .flat_map(|row| {
                let visible = tree.visible(row, window);
                (0..len).map(move |column| visible.iter().any(|rows| rows.contains(&column)))
            })
            .map(|seen| if seen { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let mask = Tensor::from_vec(mask, (1, len, len), q.device())?;
        let scores = (query.matmul(&key.t()?)? * (1.0 / (head_dim as f64).sqrt()))?;
        let scores = match cap {
            None => scores,
            Some(cap) => soft_cap(&scores, cap)?,
        };
        let scores = scores.broadcast_add(&mask)?;
        // softmax in steps: candle's fused one has no backward.
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let attended = weights.matmul(&value)?;
        outputs.push(attended.transpose(0, 1)?.reshape((len, heads * head_dim))?);
    }
    if outputs.is_empty() {
        return Tensor::zeros((0, heads * head_dim), DType::F32, q.device());
    }
    Tensor::cat(&outputs, 0)
}
