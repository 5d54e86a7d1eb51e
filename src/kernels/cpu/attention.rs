//! Causal grouped-query attention over paged keys and values.

use super::{
    gemm::SharedMut,
    kv::{BLOCK, KvElement, KvLayer},
    pool::Pool,
    tensor::Tensor,
};
use crate::kernels::{AttentionShape, Batch};

/// Attends every row of `q` to the tokens of its own sequence, up to itself.
pub(super) fn attend<T: KvElement>(
    pool: &Pool,
    q: &Tensor,
    shape: AttentionShape,
    batch: &Batch,
    layer: &KvLayer<'_, T>,
    out: &mut Tensor,
) {
    let AttentionShape { heads, kv_heads, head_dim, window } = shape;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let out = SharedMut::new(out);
    pool.run(batch.segments.len() * kv_heads, |chunk| {
        let (segment, kv_head) = (&batch.segments[chunk / kv_heads], chunk % kv_heads);
        let group = heads / kv_heads;
        let mut sum = vec![0.0; head_dim];
        for (index, row) in segment.rows.clone().enumerate() {
            let end = segment.cached + index + 1;
            let start = window.map_or(0, |window| end.saturating_sub(window));
            for head in kv_head * group..(kv_head + 1) * group {
                let at = row * heads * head_dim + head * head_dim;
                let q = &q.data()[at..at + head_dim];
                let (mut max, mut total) = (f32::NEG_INFINITY, 0.0);
                sum.fill(0.0);
                for position in start..end {
                    let (keys, values) = layer.head(segment.blocks[position / BLOCK], kv_head);
                    let slot = position % BLOCK;
                    let keys = keys[slot..].iter().step_by(BLOCK);
                    let score = q.iter().zip(keys).map(|(q, k)| q * k.widen()).sum::<f32>() * scale;
                    let new = score.max(max);
                    let (keep, weight) = ((max - new).exp(), (score - new).exp());
                    max = new;
                    total = total * keep + weight;
                    let values = &values[slot * head_dim..(slot + 1) * head_dim];
                    for (sum, v) in sum.iter_mut().zip(values) {
                        *sum = *sum * keep + weight * v.widen();
                    }
                }
                // SAFETY: this chunk alone writes this segment's rows of these heads.
                let out = unsafe { out.slice(at, head_dim) };
                for (out, sum) in out.iter_mut().zip(&sum) {
                    *out = sum / total;
                }
            }
        }
    });
}
