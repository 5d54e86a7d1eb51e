//! Query rows, what they see, and the softmax of their scores.

use std::ops::Range;

use crate::{
    kernels::{AttentionShape, KV_BLOCK, RelativeBias, Segment, Sight, cpu::tensor::Tensor},
    simd::exp,
};

/// Tokens of a span: the scores of a tile stay in the first-level cache.
pub(super) const SPAN: usize = 512;
/// The query rows of a layer and what they see.
pub(in crate::kernels::cpu) struct Rows<'a> {
    pub q: &'a Tensor,
    pub shape: AttentionShape,
    pub segments: &'a [Segment],
    pub sight: Sight,
    pub bias: Option<RelativeBias<'a, Tensor>>,
}

/// A row of a segment under one head.
pub(super) struct QueryRow {
    /// Its first value in q and in the output.
    pub(super) start: usize,
    /// Positions that it sees.
    pub(super) seen: Range<usize>,
    /// Its own position.
    pub(super) position: usize,
    /// Number of the row in the batch.
    pub(super) row: usize,
    pub(super) head: usize,
}

impl Rows<'_> {
    /// The `token`-th row of a segment under `head`.
    pub(super) fn query(&self, segment: &Segment, token: usize, head: usize) -> QueryRow {
        let row = segment.rows.start + token;
        let position = segment.cached + token;
        let end = match self.sight {
            Sight::Causal => position + 1,
            Sight::Segment => segment.cached + segment.rows.len(),
            Sight::Cached => segment.cached,
        };
        let begin = self.shape.window.map_or(0, |window| end.saturating_sub(window));
        let start = row * self.q.width() + head * self.shape.head_dim;
        QueryRow { start, seen: begin..end, position, row, head }
    }
}

impl RelativeBias<'_, Tensor> {
    /// Appends the biases of a row and head, distance by distance.
    pub(super) fn extend(&self, biases: &mut Vec<f32>, row: usize, head: usize, heads: usize) {
        let start = if self.table.rows() == 1 { 0 } else { row * self.table.width() };
        let table = &self.table.data()[start..start + self.table.width()];
        let bias = |&bucket: &u16| table[usize::from(bucket) * heads + head];
        biases.extend(self.buckets.iter().map(bias));
    }
}

/// Adds to the scores of the positions from `first` on what `bias` has for their distances from `row`:
/// from −reach to reach, greater ones being those of the ends.
#[inline(always)]
pub(super) fn add_by_distance(scores: &mut [f32], first_position: usize, row: usize, bias: &[f32]) {
    let (Some(&first), Some(&last)) = (bias.first(), bias.last()) else { return };
    let reach = bias.len() / 2;
    // The positions: farther before than the reach, within it, farther after.
    let before = row.saturating_sub(reach).saturating_sub(first_position).min(scores.len());
    let after = (row + reach + 1).saturating_sub(first_position).clamp(before, scores.len());
    let within = (first_position + before + reach).saturating_sub(row).min(bias.len());
    scores[..before].iter_mut().for_each(|score| *score += first);
    let pairs = scores[before..after].iter_mut().zip(&bias[within..]);
    pairs.for_each(|(score, bias)| *score += bias);
    scores[after..].iter_mut().for_each(|score| *score += last);
}

/// One step of the online softmax: turns the scores of a row over whole blocks into weights, 0 outside
/// `seen`; returns the factor for what was summed before.
#[inline(always)]
pub(super) fn soften(
    weights: &mut [f32],
    seen: Range<usize>,
    max: &mut f32,
    total: &mut f32,
) -> f32 {
    if seen.is_empty() {
        weights.fill(0.0);
        return 1.0;
    }
    weights[..seen.start].fill(f32::NEG_INFINITY);
    weights[seen.end..].fill(f32::NEG_INFINITY);
    let mut lanes = [f32::NEG_INFINITY; KV_BLOCK];
    for weights in weights.chunks_exact(KV_BLOCK) {
        for (lane, &weight) in lanes.iter_mut().zip(weights) {
            *lane = if weight > *lane { weight } else { *lane };
        }
    }
    let new = lanes.iter().copied().fold(*max, f32::max);
    let mut lanes = [0.0; KV_BLOCK];
    for weights in weights.chunks_exact_mut(KV_BLOCK) {
        for (lane, weight) in lanes.iter_mut().zip(weights) {
            *weight = exp(*weight - new);
            *lane += *weight;
        }
    }
    let keep = exp(*max - new);
    *total = *total * keep + lanes.iter().sum::<f32>();
    *max = new;
    keep
}
