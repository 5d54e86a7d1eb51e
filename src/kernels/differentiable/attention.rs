//! Fused causal attention with its backward: f32 on the CPU, parallel over (tree, key/value
//! head), one block of queries at a time. Nothing but the output is kept; the backward computes the
//! probabilities again.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::{
    AttentionShape, Result,
    fused::{dot, max, read, sum, values},
    tree::Tree,
};
use crate::math::exp;

/// Queries of one block: the scores of a block against all its keys stay in the cache.
const BLOCK: usize = 64;

/// A strided matrix inside a slice.
#[derive(Clone, Copy)]
struct View<T> {
    data: T,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<T> View<T> {
    /// A row-major matrix.
    fn new(data: T, rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Elements from the first to the last of the matrix.
    fn extent(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// `out ← out·keep + scale · a b`, on this thread.
fn product(out: View<&mut [f32]>, keep: bool, a: View<&[f32]>, b: View<&[f32]>, scale: f32) {
    assert!(a.rows == out.rows && b.columns == out.columns && a.columns == b.rows);
    assert!(a.extent() <= a.data.len() && b.extent() <= b.data.len());
    assert!(out.extent() <= out.data.len());
    // SAFETY: every index the product touches is below the extents checked above, and `out` is
    // borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm(
            out.rows,
            out.columns,
            a.columns,
            out.data.as_mut_ptr(),
            out.column_stride as isize,
            out.row_stride as isize,
            keep,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The operation: shape, and which rows attend to each other.
struct Attention {
    shape: AttentionShape,
    trees: Vec<Tree>,
    rows: usize,
}

/// Packed q `[rows, heads · d]`, k and v `[rows, kv_heads · d]`.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// Gradients of one task: `[len, group · d]`, `[len, d]`, `[len, d]`.
struct Gradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Attention {
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
        View::new(&x[rows.start * width + head * d..], rows.len(), d, width)
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
        let offset = |r: &Range<usize>| tree.rows.start + r.start..tree.rows.start + r.end;
        let q = self.head(inputs.q, offset(block), head, heads);
        let k = self.head(inputs.k, offset(&seen), head / self.group(), kv_heads);
        weights.clear();
        weights.resize(block.len() * seen.len(), 0.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let scores = View::new(&mut weights[..], block.len(), seen.len(), seen.len());
        product(scores, false, q, k.t(), scale);
        for (row, weights) in block.clone().zip(weights.chunks_exact_mut(seen.len())) {
            let visible = tree.visible(row, window);
            let visible = visible.map(|r| r.start.max(seen.start)..r.end.max(seen.start));
            let visible = visible.map(|r| r.start - seen.start..r.end - seen.start);
            let largest =
                |largest: f32, rows: &Range<usize>| largest.max(max(&weights[rows.clone()]));
            let largest = visible.iter().fold(f32::NEG_INFINITY, largest);
            let (mut total, mut next) = (0.0, 0);
            for rows in &visible {
                weights[next..rows.start].fill(0.0);
                let weights = &mut weights[rows.clone()];
                weights.iter_mut().for_each(|w| *w = exp(*w - largest));
                total += sum(weights);
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
            for block in blocks(len) {
                let seen = tree.seen(&block, self.shape.window);
                self.weights(inputs, tree, kv_head * group + member, &block, &mut weights);
                let rows = tree.rows.start + seen.start..tree.rows.start + seen.end;
                let v = self.head(inputs.v, rows, kv_head, self.shape.kv_heads);
                let w = View::new(&weights[..], block.len(), seen.len(), seen.len());
                let start = (block.start * group + member) * d;
                product(View::new(&mut out[start..], block.len(), d, group * d), false, w, v, 1.0);
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
            for block in blocks(len) {
                let seen = tree.seen(&block, self.shape.window);
                self.weights(inputs, tree, head, &block, &mut weights);
                let (m, n) = (block.len(), seen.len());
                let rows = tree.rows.start + block.start..tree.rows.start + block.end;
                let keys = tree.rows.start + seen.start..tree.rows.start + seen.end;
                let g = self.head(grad, rows.clone(), head, heads);
                let o = self.head(output, rows.clone(), head, heads);
                let q = self.head(inputs.q, rows, head, heads);
                let k = self.head(inputs.k, keys.clone(), kv_head, kv_heads);
                let v = self.head(inputs.v, keys, kv_head, kv_heads);

                scores.clear();
                scores.resize(m * n, 0.0);
                product(View::new(&mut scores[..], m, n, n), false, g, v.t(), 1.0);
                let p = View::new(&weights[..], m, n, n);
                product(View::new(&mut out.v[seen.start * d..], n, d, d), true, p.t(), g, 1.0);
                for row in 0..m {
                    let at = row * g.row_stride;
                    let dot = dot(&g.data[at..at + d], &o.data[at..at + d]);
                    let weights = &weights[row * n..(row + 1) * n];
                    for (score, weight) in scores[row * n..(row + 1) * n].iter_mut().zip(weights) {
                        *score = weight * (*score - dot);
                    }
                }
                let s = View::new(&scores[..], m, n, n);
                let start = (block.start * group + member) * d;
                product(View::new(&mut out.q[start..], m, d, group * d), false, s, k, scale);
                product(View::new(&mut out.k[seen.start * d..], n, d, d), true, s.t(), q, scale);
            }
        }
        out
    }
}

fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(len))
}

/// Copies `[len, width]` into the columns from `column` of the rows from `row` of `out`
/// `[rows, stride]`.
fn scatter(out: &mut [f32], stride: usize, row: usize, column: usize, part: &[f32], width: usize) {
    for (index, part) in part.chunks_exact(width).enumerate() {
        out[(row + index) * stride + column..][..width].copy_from_slice(part);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let inputs =
            Inputs { q: values(q, q_layout)?, k: values(k, k_layout)?, v: values(v, v_layout)? };
        let tasks = self.tasks();
        let parts: Vec<_> =
            tasks.par_iter().map(|(tree, head)| self.attend(inputs, tree, *head)).collect();
        let (width, part) =
            (self.shape.heads * self.shape.head_dim, self.group() * self.shape.head_dim);
        let mut out = vec![0f32; self.rows * width];
        for ((tree, head), values) in tasks.iter().zip(&parts) {
            scatter(&mut out, width, tree.rows.start, head * part, values, part);
        }
        Ok((CpuStorage::F32(out), (self.rows, width).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let tasks = self.tasks();
        let run = |inputs: Inputs<'_>, output: &[f32], grad: &[f32]| -> Vec<Gradients> {
            let task =
                |(tree, head): &(&Tree, usize)| self.gradients(inputs, output, grad, tree, *head);
            tasks.par_iter().map(task).collect()
        };
        let parts = read(q, |q| {
            read(k, |k| {
                read(v, |v| {
                    read(output, |output| read(grad, |grad| run(Inputs { q, k, v }, output, grad)))
                })
            })
        })?????;
        let d = self.shape.head_dim;
        let gather = |like: &Tensor, part: usize, pick: fn(&Gradients) -> &[f32]| {
            let width = like.dims()[1];
            let mut out = vec![0f32; self.rows * width];
            for ((tree, head), values) in tasks.iter().zip(&parts) {
                scatter(&mut out, width, tree.rows.start, head * part, pick(values), part);
            }
            Tensor::from_vec(out, like.shape(), like.device())
        };
        Ok((
            Some(gather(q, self.group() * d, |g| &g.q)?),
            Some(gather(k, d, |g| &g.k)?),
            Some(gather(v, d, |g| &g.v)?),
        ))
    }
}

/// Causal grouped-query attention of each tree of segments to itself; shapes are checked by the caller.
pub(super) fn fused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: AttentionShape,
    trees: Vec<Tree>,
) -> Result<Tensor> {
    let rows = trees.last().map_or(0, |tree| tree.rows.end);
    let op = Attention { shape, trees, rows };
    Ok(q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)?)
}
