//! Attention with its backward, parallel over (tree, key/value head), one block of queries at
//! a time. Only the output is saved; the backward computes the probabilities again.

use std::ops::Range;

use ladle::{kernels::AttentionShape, simd::exp, vectorised};
use rayon::prelude::*;

use super::{
    bias::Bias,
    product::{View, product},
    rows::{dot, max, sum, tanh},
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
    /// s ← cap · tanh(s / cap); the slopes of that, 1 − tanh², into `slopes`.
    fn cap_scores<'a>(scores: &'a mut [f32], slopes: &'a mut [f32], cap: f32) {
        for (score, slope) in scores.iter_mut().zip(slopes) {
            let tanh = tanh(*score / cap);
            *score = cap * tanh;
            *slope = 1.0 - tanh * tanh;
        }
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
    /// What is added to the scores of trees of stored rows.
    pub bias: Option<Bias>,
    /// Whether stored keys and values have gradients.
    pub learned: bool,
}

/// Packed q `[rows, heads · d]`, k and v `[rows, kv_heads · d]`, and k and v of stored rows.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// Stored keys and values of each tree, `[stored rows, kv_heads · d]`; empty where it has none.
    /// Where all trees see stored rows alone, k and v are empty.
    pub stored: &'a [[&'a [f32]; 2]],
}

/// Gradients of all inputs.
pub(super) struct Gradients {
    pub q: Vec<f32>,
    /// Of k and v.
    pub own: [Vec<f32>; 2],
    /// Of the stored keys and values of each tree; empty where they are constants.
    pub stored: Vec<[Vec<f32>; 2]>,
}

/// Those of one task: `[len, group · d]`, `[len, d]` each and `[stored rows, d]` each, empty where they
/// are not wanted.
struct Part {
    q: Vec<f32>,
    own: [Vec<f32>; 2],
    stored: [Vec<f32>; 2],
}

/// What one thread computes: the query heads of one key/value head over one tree.
struct Task<'a> {
    tree: &'a Tree,
    /// Stored keys and values that the tree continues.
    stored: [&'a [f32]; 2],
    /// The key/value head.
    head: usize,
}

/// Consecutive columns of a block's scores.
struct Run {
    /// Whether they stand for stored rows.
    stored: bool,
    /// Those rows, or rows of the tree.
    rows: Range<usize>,
    /// The first column.
    at: usize,
}

impl Attention {
    /// The output, `[rows, heads · d]`.
    pub(super) fn forward(&self, inputs: Inputs<'_>) -> Vec<f32> {
        let tasks = self.tasks(inputs);
        let parts: Vec<_> = tasks.par_iter().map(|task| self.attend(inputs, task)).collect();
        let d = self.shape.head_dim;
        self.gather(&tasks, self.shape.heads * d, self.group() * d, &parts)
    }

    /// The gradients of q, k, v and, where they are learned, of the stored rows.
    pub(super) fn backward(&self, inputs: Inputs<'_>, output: &[f32], grad: &[f32]) -> Gradients {
        let tasks = self.tasks(inputs);
        let task = |task: &Task<'_>| self.gradients(inputs, output, grad, task);
        let parts: Vec<Part> = tasks.par_iter().map(task).collect();
        let AttentionShape { heads, kv_heads, head_dim: d, .. } = self.shape;
        let (mut q, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let stored =
            parts.chunks(kv_heads).map(|heads| [0, 1].map(|of| gather_stored(heads, of, d)));
        let stored = stored.collect();
        for Part { q: of_q, own: [key, value], .. } in parts {
            q.push(of_q);
            keys.push(key);
            values.push(value);
        }
        let own = match inputs.k {
            [] => Default::default(),
            _ => [keys, values].map(|parts| self.gather(&tasks, kv_heads * d, d, &parts)),
        };
        Gradients { q: self.gather(&tasks, heads * d, self.group() * d, &q), own, stored }
    }

    /// The results of the tasks, `part` columns each, side by side.
    fn gather(
        &self,
        tasks: &[Task<'_>],
        width: usize,
        part: usize,
        results: &[Vec<f32>],
    ) -> Vec<f32> {
        let mut out = vec![0f32; self.rows * width];
        for (Task { tree, head, .. }, values) in tasks.iter().zip(results) {
            scatter(&mut out, width, tree.rows.start, head * part, values, part);
        }
        out
    }

    /// Query heads per key/value head.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    fn tasks<'a>(&'a self, inputs: Inputs<'a>) -> Vec<Task<'a>> {
        let trees = self.trees.iter().zip(inputs.stored);
        let heads = 0..self.shape.kv_heads;
        let of = |(tree, &stored)| heads.clone().map(move |head| Task { tree, stored, head });
        trees.flat_map(of).collect()
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

    /// Keys and values of a run, `[run, d]` each.
    fn keys_and_values<'a>(
        &self,
        inputs: Inputs<'a>,
        task: &Task<'a>,
        run: &Run,
    ) -> [View<&'a [f32]>; 2] {
        let (from, rows) = match run.stored {
            true => (task.stored, run.rows.clone()),
            false => ([inputs.k, inputs.v], offset(task.tree, &run.rows)),
        };
        from.map(|x| self.head(x, rows.clone(), task.head, self.shape.kv_heads))
    }

    /// Attention weights of a block of one query head: `[block, seen]` into `weights`, and the slopes
    /// of the soft cap at its scores into `slopes` where there is one.
    fn weights(
        &self,
        inputs: Inputs<'_>,
        task: &Task<'_>,
        head: usize,
        block: &Range<usize>,
        [weights, slopes]: [&mut Vec<f32>; 2],
    ) {
        let AttentionShape { heads, head_dim, window, cap, .. } = self.shape;
        let seen = task.tree.seen(block, window);
        let (m, n) = (block.len(), width(&seen));
        let q = self.head(inputs.q, offset(task.tree, block), head, heads);
        weights.clear();
        weights.resize(m * n, 0.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let runs: Vec<Run> = runs(&seen).collect();
        for run in &runs {
            let [k, _] = self.keys_and_values(inputs, task, run);
            let scores = View::strided(&mut weights[run.at..], m, run.rows.len(), n);
            product(scores, false, q, k.t(), scale);
        }
        if let Some(cap) = cap {
            slopes.resize(m * n, 0.0);
            cap_scores(weights, slopes, cap);
        }
        if let Some(bias) = &self.bias {
            for (row, scores) in block.clone().zip(weights.chunks_exact_mut(n)) {
                bias.add(scores, head, seen[0].start, task.tree.position(row));
            }
        }
        for (row, weights) in block.clone().zip(weights.chunks_exact_mut(n)) {
            let visible = task.tree.visible(row, window);
            let mut at = 0;
            let visible = [0, 1, 2].map(|part: usize| {
                let (rows, seen) = (&visible[part], &seen[part]);
                let place = |row: usize| row.max(seen.start) - seen.start + at;
                let columns = place(rows.start)..place(rows.end);
                at += seen.len();
                columns
            });
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

    /// Output of all query heads of a task: `[len, group · d]`.
    fn attend(&self, inputs: Inputs<'_>, task: &Task<'_>) -> Vec<f32> {
        let (d, group, tree) = (self.shape.head_dim, self.group(), task.tree);
        let mut out = vec![0f32; tree.rows.len() * group * d];
        let (mut weights, mut slopes) = (Vec::new(), Vec::new());
        for member in 0..group {
            for block in tree.blocks(QUERY_BLOCK) {
                let seen = tree.seen(&block, self.shape.window);
                let head = task.head * group + member;
                self.weights(inputs, task, head, &block, [&mut weights, &mut slopes]);
                let (m, n) = (block.len(), width(&seen));
                let start = (block.start * group + member) * d;
                for run in runs(&seen) {
                    let [_, v] = self.keys_and_values(inputs, task, &run);
                    let w = View::strided(&weights[run.at..], m, run.rows.len(), n);
                    product(View::strided(&mut out[start..], m, d, group * d), true, w, v, 1.0);
                }
            }
        }
        out
    }

    /// Gradients of one task, from the output and its gradient.
    ///
    /// With P the weights, D = Σ dO ⊙ O per row: dV = Pᵀ dO, dS = P ⊙ (dO Vᵀ − D),
    /// dQ = dS K / √d, dK = dSᵀ Q / √d; a soft cap multiplies dS by its slopes.
    fn gradients(&self, inputs: Inputs<'_>, output: &[f32], grad: &[f32], task: &Task<'_>) -> Part {
        let AttentionShape { heads, head_dim: d, .. } = self.shape;
        let (group, tree) = (self.group(), task.tree);
        let len = tree.rows.len();
        let scale = 1.0 / (d as f32).sqrt();
        let zeros =
            |rows: usize, wanted: bool| [(); 2].map(|()| vec![0.0; rows * d * usize::from(wanted)]);
        let mut out = Part {
            q: vec![0.0; len * group * d],
            own: zeros(len, !inputs.k.is_empty()),
            stored: zeros(tree.before, self.learned),
        };
        let (mut weights, mut slopes, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for member in 0..group {
            let head = task.head * group + member;
            for block in tree.blocks(QUERY_BLOCK) {
                let seen = tree.seen(&block, self.shape.window);
                self.weights(inputs, task, head, &block, [&mut weights, &mut slopes]);
                let (m, n) = (block.len(), width(&seen));
                let rows = offset(tree, &block);
                let g = self.head(grad, rows.clone(), head, heads);
                let o = self.head(output, rows.clone(), head, heads);
                let q = self.head(inputs.q, rows, head, heads);
                scores.clear();
                scores.resize(m * n, 0.0);
                for run in runs(&seen) {
                    let [_, v] = self.keys_and_values(inputs, task, &run);
                    let dp = View::strided(&mut scores[run.at..], m, run.rows.len(), n);
                    product(dp, false, g, v.t(), 1.0);
                }
                for row in 0..m {
                    let at = row * g.row_stride..row * g.row_stride + d;
                    let of_row = row * n..(row + 1) * n;
                    let (g, o) = (&g.data[at.clone()], &o.data[at]);
                    score_gradients(&mut scores[of_row.clone()], &weights[of_row], g, o);
                }
                if self.shape.cap.is_some() {
                    scores.iter_mut().zip(&slopes).for_each(|(score, slope)| *score *= slope);
                }
                let start = (block.start * group + member) * d;
                for run in runs(&seen) {
                    let len = run.rows.len();
                    let [k, _] = self.keys_and_values(inputs, task, &run);
                    let p = View::strided(&weights[run.at..], m, len, n);
                    let s = View::strided(&scores[run.at..], m, len, n);
                    let dq = View::strided(&mut out.q[start..], m, d, group * d);
                    product(dq, true, s, k, scale);
                    let [dk, dv] = if run.stored { &mut out.stored } else { &mut out.own };
                    if dk.is_empty() {
                        continue;
                    }
                    let dk = View::new(&mut dk[run.rows.start * d..], len, d);
                    product(dk, true, s.t(), q, scale);
                    let dv = View::new(&mut dv[run.rows.start * d..], len, d);
                    product(dv, true, p.t(), g, 1.0);
                }
            }
        }
        out
    }
}

/// The gradients of the stored keys (0) or values (1) of a tree, from those of its key/value heads.
fn gather_stored(heads: &[Part], of: usize, d: usize) -> Vec<f32> {
    let width = heads.len() * d;
    let mut out = vec![0f32; heads.iter().map(|part| part.stored[of].len()).sum()];
    for (head, part) in heads.iter().enumerate() {
        scatter(&mut out, width, 0, head * d, &part.stored[of], d);
    }
    out
}

/// Rows of the batch, from rows of the tree.
fn offset(tree: &Tree, rows: &Range<usize>) -> Range<usize> {
    tree.rows.start + rows.start..tree.rows.start + rows.end
}

/// Columns of a block's scores.
fn width(seen: &[Range<usize>; 3]) -> usize {
    seen.iter().map(Range::len).sum()
}

/// The runs of columns of a block's scores: stored rows, the first segment's, the block's own.
fn runs(seen: &[Range<usize>; 3]) -> impl Iterator<Item = Run> {
    let mut at = 0;
    let runs = seen.clone().into_iter().zip([true, false, false]).map(move |(rows, stored)| {
        let run = Run { stored, at, rows };
        at += run.rows.len();
        run
    });
    runs.filter(|run| !run.rows.is_empty())
}

/// Copies `[len, width]` into the columns from `column` of the rows from `row` of `out`
/// `[rows, stride]`.
fn scatter(out: &mut [f32], stride: usize, row: usize, column: usize, part: &[f32], width: usize) {
    for (index, part) in part.chunks_exact(width).enumerate() {
        out[(row + index) * stride + column..][..width].copy_from_slice(part);
    }
}
