//! Causal attention with its backward, parallel over (tree, key/value head), one block of queries at
//! a time. Only the output is saved; the backward computes the probabilities again.

use std::ops::Range;

use ladle::{kernels::AttentionShape, simd::exp, vectorised};
use rayon::prelude::*;

use super::{
    product::{View, product},
    rows::{dot, max, sum},
};
use crate::autograd::tree::Tree;

vectorised! {
    /// The largest value.
    fn greatest<'a>(xs: &'a [f32]) -> f32 {
        max(xs)
    }
}

vectorised! {
    /// x ← e^(x − largest); their sum.
    fn exponentials<'a>(xs: &'a mut [f32], largest: f32) -> f32 {
        xs.iter_mut().for_each(|x| *x = exp(*x - largest));
        sum(xs)
    }
}

vectorised! {
    /// dS = P ⊙ (dP − Σ dO ⊙ O) of one row, in place of dP.
    fn score_gradients<'a>(scores: &'a mut [f32], weights: &'a [f32], grad: &'a [f32], output: &'a [f32]) {
        let dot = dot(grad, output);
        for (score, weight) in scores.iter_mut().zip(weights) {
            *score = weight * (*score - dot);
        }
    }
}

/// Queries of one block, so that the scores of a block against all its keys stay in the cache.
const QUERY_BLOCK: usize = 64;

/// The operation: shape and attention structure.
pub(super) struct Attention {
    /// Heads and window.
    pub shape: AttentionShape,
    /// Attention structure of the batch.
    pub trees: Vec<Tree>,
    /// Rows of the batch.
    pub rows: usize,
}

/// Packed q `[rows, heads · d]`, k and v `[rows, kv_heads · d]`.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// Gradients of q, k and v: of one task `[len, group · d]`, `[len, d]`, `[len, d]`, or of all.
pub(super) struct Gradients {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Attention {
    /// The output, `[rows, heads · d]`.
    pub(super) fn forward(&self, inputs: Inputs<'_>) -> Vec<f32> {
        let tasks = self.tasks();
        let parts: Vec<_> =
            tasks.par_iter().map(|(tree, head)| self.attend(inputs, tree, *head)).collect();
        let d = self.shape.head_dim;
        self.gather(&tasks, self.shape.heads * d, self.group() * d, &parts)
    }

    pub(super) fn backward(&self, inputs: Inputs<'_>, output: &[f32], grad: &[f32]) -> Gradients {
        let tasks = self.tasks();
        let task =
            |(tree, head): &(&Tree, usize)| self.gradients(inputs, output, grad, tree, *head);
        let parts: Vec<Gradients> = tasks.par_iter().map(task).collect();
        let AttentionShape { heads, kv_heads, head_dim: d, .. } = self.shape;
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            q.push(part.q);
            k.push(part.k);
            v.push(part.v);
        }
        Gradients {
            q: self.gather(&tasks, heads * d, self.group() * d, &q),
            k: self.gather(&tasks, kv_heads * d, d, &k),
            v: self.gather(&tasks, kv_heads * d, d, &v),
        }
    }

    /// The results of the tasks, `part` columns each, side by side.
    fn gather(
        &self,
        tasks: &[(&Tree, usize)],
        width: usize,
        part: usize,
        results: &[Vec<f32>],
    ) -> Vec<f32> {
        let mut out = vec![0f32; self.rows * width];
        for ((tree, head), values) in tasks.iter().zip(results) {
            scatter(&mut out, width, tree.rows.start, head * part, values, part);
        }
        out
    }

    /// Query heads per key/value head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    fn tasks(&self) -> Vec<(&Tree, usize)> {
        let heads = 0..self.shape.kv_heads;
        self.trees.iter().flat_map(|tree| heads.clone().map(move |head| (tree, head))).collect()
    }

    /// Columns of one head in a packed tensor of `heads` heads, for the given rows.
    fn head<'a>(
        &self,
        x: &'a [f32],
        rows: Range<usize>,
        head: usize,
        heads: usize,
    ) -> View<&'a [f32]> {
        let (d, width) = (self.shape.head_dim, heads * self.shape.head_dim);
        View::strided(&x[rows.start * width + head * d..], rows.len(), d, width)
    }

    /// Attention weights of a block of one query head: `[block, seen]` into `weights`.
    fn weights(
        &self,
        inputs: Inputs<'_>,
        tree: &Tree,
        head: usize,
        block: &Range<usize>,
        weights: &mut Vec<f32>,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, window } = self.shape;
        let seen = tree.seen(block, window);
        let (m, n) = (block.len(), width(&seen));
        let q = self.head(inputs.q, offset(tree, block), head, heads);
        weights.clear();
        weights.resize(m * n, 0.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (keys, at) in columns(&seen) {
            let k = self.head(inputs.k, offset(tree, &keys), head / self.group(), kv_heads);
            let scores = View::strided(&mut weights[at..], m, keys.len(), n);
            product(scores, false, q, k.t(), scale);
        }
        for (row, weights) in block.clone().zip(weights.chunks_exact_mut(n)) {
            let [shared, own] = tree.visible(row, window);
            let place = |rows: Range<usize>, seen: &Range<usize>, at: usize| {
                let place = |row: usize| row.max(seen.start) - seen.start + at;
                place(rows.start)..place(rows.end)
            };
            let visible = [place(shared, &seen[0], 0), place(own, &seen[1], seen[0].len())];
            let largest =
                |largest: f32, rows: &Range<usize>| largest.max(greatest(&weights[rows.clone()]));
            let largest = visible.iter().fold(f32::NEG_INFINITY, largest);
            let (mut total, mut next) = (0.0, 0);
            for rows in &visible {
                weights[next..rows.start].fill(0.0);
                total += exponentials(&mut weights[rows.clone()], largest);
                next = rows.end;
            }
            weights[next..].fill(0.0);
            let inverse = 1.0 / total;
            weights[..next].iter_mut().for_each(|w| *w *= inverse);
        }
    }

    /// Output of all query heads of one key/value head over one tree: `[len, group · d]`.
    fn attend(&self, inputs: Inputs<'_>, tree: &Tree, kv_head: usize) -> Vec<f32> {
        let (d, group, len) = (self.shape.head_dim, self.group(), tree.rows.len());
        let mut out = vec![0f32; len * group * d];
        let mut weights = Vec::new();
        for member in 0..group {
            for block in tree.blocks(QUERY_BLOCK) {
                let seen = tree.seen(&block, self.shape.window);
                self.weights(inputs, tree, kv_head * group + member, &block, &mut weights);
                let (m, n) = (block.len(), width(&seen));
                let start = (block.start * group + member) * d;
                for (keys, at) in columns(&seen) {
                    let v = self.head(inputs.v, offset(tree, &keys), kv_head, self.shape.kv_heads);
                    let w = View::strided(&weights[at..], m, keys.len(), n);
                    product(View::strided(&mut out[start..], m, d, group * d), true, w, v, 1.0);
                }
            }
        }
        out
    }

    /// Gradients of one task, from the output and its gradient.
    ///
    /// With P the weights, D = Σ dO ⊙ O per row: dV = Pᵀ dO, dS = P ⊙ (dO Vᵀ − D),
    /// dQ = dS K / √d, dK = dSᵀ Q / √d.
    fn gradients(
        &self,
        inputs: Inputs<'_>,
        output: &[f32],
        grad: &[f32],
        tree: &Tree,
        kv_head: usize,
    ) -> Gradients {
        let AttentionShape { heads, kv_heads, head_dim: d, .. } = self.shape;
        let (group, len) = (self.group(), tree.rows.len());
        let scale = 1.0 / (d as f32).sqrt();
        let mut out = Gradients {
            q: vec![0.0; len * group * d],
            k: vec![0.0; len * d],
            v: vec![0.0; len * d],
        };
        let (mut weights, mut scores) = (Vec::new(), Vec::new());
        for member in 0..group {
            let head = kv_head * group + member;
            for block in tree.blocks(QUERY_BLOCK) {
                let seen = tree.seen(&block, self.shape.window);
                self.weights(inputs, tree, head, &block, &mut weights);
                let (m, n) = (block.len(), width(&seen));
                let rows = offset(tree, &block);
                let g = self.head(grad, rows.clone(), head, heads);
                let o = self.head(output, rows.clone(), head, heads);
                let q = self.head(inputs.q, rows, head, heads);
                scores.clear();
                scores.resize(m * n, 0.0);
                for (keys, at) in columns(&seen) {
                    let v = self.head(inputs.v, offset(tree, &keys), kv_head, kv_heads);
                    let dp = View::strided(&mut scores[at..], m, keys.len(), n);
                    product(dp, false, g, v.t(), 1.0);
                }
                for row in 0..m {
                    let at = row * g.row_stride..row * g.row_stride + d;
                    let of_row = row * n..(row + 1) * n;
                    let (g, o) = (&g.data[at.clone()], &o.data[at]);
                    score_gradients(&mut scores[of_row.clone()], &weights[of_row], g, o);
                }
                let start = (block.start * group + member) * d;
                for (keys, at) in columns(&seen) {
                    let len = keys.len();
                    let p = View::strided(&weights[at..], m, len, n);
                    let s = View::strided(&scores[at..], m, len, n);
                    let k = self.head(inputs.k, offset(tree, &keys), kv_head, kv_heads);
                    let dq = View::strided(&mut out.q[start..], m, d, group * d);
                    product(dq, true, s, k, scale);
                    let dk = View::new(&mut out.k[keys.start * d..], len, d);
                    product(dk, true, s.t(), q, scale);
                    let dv = View::new(&mut out.v[keys.start * d..], len, d);
                    product(dv, true, p.t(), g, 1.0);
                }
            }
        }
        out
    }
}

/// Rows of the batch, from rows of the tree.
fn offset(tree: &Tree, rows: &Range<usize>) -> Range<usize> {
    tree.rows.start + rows.start..tree.rows.start + rows.end
}

/// Columns of a block's scores.
fn width(seen: &[Range<usize>; 2]) -> usize {
    seen[0].len() + seen[1].len()
}

/// The rows of the tree that the columns of a block's scores stand for, with the first column of
/// each run.
fn columns(seen: &[Range<usize>; 2]) -> impl Iterator<Item = (Range<usize>, usize)> {
    let [shared, own] = seen.clone();
    let runs = [(shared.clone(), 0), (own, shared.len())];
    runs.into_iter().filter(|(rows, _)| !rows.is_empty())
}

/// Copies `[len, width]` into the columns from `column` of the rows from `row` of `out`
/// `[rows, stride]`.
fn scatter(out: &mut [f32], stride: usize, row: usize, column: usize, part: &[f32], width: usize) {
    for (index, part) in part.chunks_exact(width).enumerate() {
        out[(row + index) * stride + column..][..width].copy_from_slice(part);
    }
}
