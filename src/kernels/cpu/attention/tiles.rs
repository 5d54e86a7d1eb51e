//! Attention in tiles of bf16: queries and weights are the left tiles, keys and values the right ones,
//! in pairs of adjacent rows of what the pool stores.
//!
//! Queries are rounded to bf16 once, weights after the softmax, whose sums stay in f32. A row takes
//! [`TILE_INPUTS`] tokens at a time, at fixed positions; tokens it may not see weigh exactly 0, so
//! nothing that it sums depends on which rows share its tiles.

use std::ops::Range;

use half::bf16;

use super::rows::{QueryRow, Rows, SPAN, add_by_distance, soften};
use crate::{
    kernels::{
        KV_BLOCK, Segment,
        cpu::{
            elementwise::soft_cap,
            kv::{KvLayer, Stored},
            shared::SharedMut,
            tile::LINE_BYTES,
            tiles::whole_and_rest,
        },
    },
    simd::{Ahead, Bf16Dots, Bf16Tiles, Lanes, TILE, TILE_INPUTS, TileProduct, TileWork},
};

/// Buffers of a task.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[row, head_dim]`, padded to whole steps.
    queries: Vec<bf16>,
    /// Keys of a span, `[block, pair of head_dim, KV_BLOCK, 2]`.
    keys: Vec<bf16>,
    /// Values of a span, `[pair of tokens, head_dim, 2]`.
    values: Vec<bf16>,
    /// Scores, then weights, of the rows of a pair of tiles over a span.
    scores: Vec<[f32; SPAN]>,
    /// The weights rounded.
    weights: Vec<[bf16; SPAN]>,
    /// Weighted sums of values, `[row, head_dim]`, padded to whole tiles.
    sums: Vec<f32>,
    /// What is added to a row's scores by distance.
    biases: Vec<f32>,
}

/// Some tokens of one sequence under one key/value head.
pub(super) struct TileTask<'a, T> {
    pub(super) all: &'a Rows<'a>,
    pub(super) segment: &'a Segment,
    /// Rows of the segment, counted from its first.
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
    pub(super) layer: &'a KvLayer<'a, T>,
    pub(super) out: SharedMut,
    pub(super) scratch: &'a mut Scratch,
}

/// The rows of a pair of tiles over the tokens of a span.
struct Over {
    first: usize,
    last: usize,
    rows: Range<usize>,
    wide: usize,
    columns: usize,
}

/// A query row and its running softmax.
struct Query {
    row: QueryRow,
    max: f32,
    total: f32,
}

impl<T: Stored> TileWork for TileTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<B: Bf16Tiles>(self, b: B) {
        let scratch = std::mem::take(self.scratch);
        *self.scratch = self.attend(b, scratch);
    }
}

impl<T: Stored> TileTask<'_, T> {
    #[inline(always)]
    fn attend<B: Bf16Tiles>(&self, b: B, mut scratch: Scratch) -> Scratch {
        let head_dim = self.all.shape.head_dim;
        let (wide, columns) =
            (head_dim.next_multiple_of(TILE_INPUTS), head_dim.next_multiple_of(2 * TILE));
        let mut queries: Vec<Query> = self.queries().collect();
        let rows = queries.len();
        scratch.queries.clear();
        scratch.queries.resize(rows * wide, bf16::ZERO);
        for (query, to) in queries.iter().zip(scratch.queries.chunks_exact_mut(wide)) {
            narrow(b, &self.all.q.data()[query.row.start..query.row.start + head_dim], to);
        }
        scratch.sums.clear();
        scratch.sums.resize(rows * columns, 0.0);
        scratch.scores.resize(2 * TILE, [0.0; SPAN]);
        scratch.weights.resize(2 * TILE, [bf16::ZERO; SPAN]);
        let begin = queries.iter().map(|query| query.row.seen.start).min().unwrap_or(0);
        let end = queries.iter().map(|query| query.row.seen.end).max().unwrap_or(0);
        for span in begin / SPAN..end.div_ceil(SPAN) {
            // Whole steps of tokens, which divide a span.
            let first = (span * SPAN).max(begin / TILE_INPUTS * TILE_INPUTS);
            let last = ((span + 1) * SPAN).min(end);
            self.pair(b.dots(), first..last, [wide, columns], &mut scratch);
            for part in whole_and_rest(0..rows) {
                let shaped = b.shaped(part.len().min(TILE), TILE);
                for first_row in part.clone().step_by(2 * TILE) {
                    let rows = first_row..part.end.min(first_row + 2 * TILE);
                    let over = Over { first, last, rows, wide, columns };
                    if over.rows.len() > TILE {
                        self.over::<B, 2>(b, &shaped, over, &mut queries, &mut scratch);
                    } else {
                        self.over::<B, 1>(b, &shaped, over, &mut queries, &mut scratch);
                    }
                }
            }
        }
        for (query, sums) in queries.iter().zip(scratch.sums.chunks_exact(columns)) {
            // SAFETY: this task alone writes these heads of these rows.
            let out = unsafe { self.out.slice(query.row.start, head_dim) };
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum / query.total;
            }
        }
        scratch
    }

    fn queries(&self) -> impl Iterator<Item = Query> {
        let group = self.all.shape.heads / self.all.shape.kv_heads;
        let heads = self.kv_head * group..(self.kv_head + 1) * group;
        let rows =
            self.tokens.clone().flat_map(move |token| heads.clone().map(move |head| (token, head)));
        rows.map(|(token, head)| Query {
            row: self.all.query(self.segment, token, head),
            max: f32::NEG_INFINITY,
            total: 0.0,
        })
    }

    /// Multiplies what stands for the tokens `span` by the scales of their keys (0) or values (1),
    /// where they have some.
    #[inline(always)]
    fn scale(&self, span: Range<usize>, which: usize, tokens: &mut [f32]) {
        let blocks = span.start / KV_BLOCK..span.end.div_ceil(KV_BLOCK);
        for (block, tokens) in blocks.zip(tokens.chunks_exact_mut(KV_BLOCK)) {
            let Some(scales) = self.layer.scales(self.segment.blocks[block], self.kv_head) else {
                return;
            };
            tokens.iter_mut().zip(scales[which]).for_each(|(token, scale)| *token *= scale);
        }
    }

    /// Lays keys and values of the tokens `span` out in pairs; those after its end are 0 up to a whole
    /// step. Blocks lie anywhere in the pool, so each one's next is requested meanwhile.
    #[inline(always)]
    fn pair<D: Bf16Dots>(
        &self,
        d: D,
        span: Range<usize>,
        [wide, columns]: [usize; 2],
        scratch: &mut Scratch,
    ) {
        let head_dim = self.all.shape.head_dim;
        let tokens = span.len().next_multiple_of(TILE_INPUTS);
        let Scratch { keys, values, .. } = scratch;
        // Zeros where nothing is written below: after the span, and in the padding.
        let written = if [wide, columns] == [head_dim; 2] { span.len() / TILE_INPUTS } else { 0 };
        for (buffer, width) in [(&mut *keys, wide), (&mut *values, columns)] {
            buffer.resize(buffer.len().max(tokens * width), bf16::ZERO);
            buffer[written * TILE_INPUTS * width..tokens * width].fill(bf16::ZERO);
        }
        let blocks = span.start / KV_BLOCK..span.end.div_ceil(KV_BLOCK);
        for (block, keys) in blocks.zip(keys.chunks_exact_mut(KV_BLOCK * wide)) {
            let (k, v) = self.layer.head(self.segment.blocks[block], self.kv_head);
            let next = self.segment.blocks.get(block + 1);
            let (next_k, next_v) = next.map_or((k, v), |&next| self.layer.head(next, self.kv_head));
            let pairs = k.chunks(2 * KV_BLOCK).zip(next_k.chunks(2 * KV_BLOCK));
            for ((pair, next), to) in pairs.zip(keys.chunks_exact_mut(2 * KV_BLOCK)) {
                request(d, next);
                zip(d, pair.split_at(KV_BLOCK), to);
            }
            let tokens = span.end.min((block + 1) * KV_BLOCK) - block * KV_BLOCK;
            let to = &mut values[(block * KV_BLOCK - span.start) * columns..];
            let pairs = v[..tokens * head_dim].chunks(2 * head_dim);
            let pairs = pairs.zip(next_v.chunks(2 * head_dim));
            for ((pair, next), to) in pairs.zip(to.chunks_exact_mut(2 * columns)) {
                request(d, next);
                zip(d, pair.split_at(head_dim), to);
            }
        }
    }

    /// The rows of `M` tiles over a span.
    #[inline(always)]
    fn over<B: Bf16Tiles, const M: usize>(
        &self,
        b: B,
        shaped: &B::Shaped,
        Over { first, last, rows, wide, columns }: Over,
        queries: &mut [Query],
        scratch: &mut Scratch,
    ) {
        let Scratch { queries: q, keys, values, scores, weights, sums, biases, .. } = scratch;
        let queries = &mut queries[rows.clone()];
        let end = queries.iter().map(|query| query.row.seen.end).max().unwrap_or(0).min(last);
        if end <= first {
            return;
        }
        let padded = first..end.next_multiple_of(TILE_INPUTS);
        let of = TileProduct {
            left: q[rows.start * wide..].as_ptr(),
            left_row: 2 * wide,
            left_tile: 2 * wide * TILE,
            right: keys.as_ptr(),
            right_row: 4 * KV_BLOCK,
            right_tile: 2 * wide * KV_BLOCK,
            steps: wide / TILE_INPUTS,
            sums: scores[0].as_mut_ptr(),
            sums_row: 4 * SPAN,
            sums_left: 4 * SPAN * TILE,
            sums_right: 4 * KV_BLOCK,
            fresh: true,
            ahead: Ahead::NONE,
        };
        for at in (0..padded.len()).step_by(2 * KV_BLOCK) {
            // SAFETY: rows, the span's keys in whole steps, and scores have been made room for.
            unsafe {
                let (right, sums) = (of.right.add(at * wide), of.sums.add(at));
                B::multiply::<M, 2>(shaped, &TileProduct { right, sums, ..of });
            }
        }
        for (row, query) in queries.iter_mut().enumerate() {
            let scores = &mut scores[row][..padded.len()];
            let scale = 1.0 / (self.all.shape.head_dim as f32).sqrt();
            scores.iter_mut().for_each(|score| *score *= scale);
            self.scale(first..end, 0, scores);
            let [seen_first, seen_end] =
                [query.row.seen.start, query.row.seen.end].map(|at| at.clamp(first, end));
            let seen = seen_first - first..seen_end - first;
            if let Some(bias) = &self.all.bias {
                biases.clear();
                bias.extend(biases, query.row.row, query.row.head, self.all.shape.heads);
                add_by_distance(&mut scores[seen.clone()], seen_first, query.row.position, biases);
            }
            if let Some(cap) = self.all.shape.cap {
                soft_cap(scores, cap);
            }
            let keep = soften(scores, seen, &mut query.max, &mut query.total);
            self.scale(first..end, 1, scores);
            narrow(b, scores, &mut weights[row]);
            if keep != 1.0 {
                let sums = &mut sums[(rows.start + row) * columns..][..columns];
                sums.iter_mut().for_each(|sum| *sum *= keep);
            }
        }
        let of = TileProduct {
            left: weights[0].as_ptr(),
            left_row: 2 * SPAN,
            left_tile: 2 * SPAN * TILE,
            right: values.as_ptr(),
            right_row: 4 * columns,
            right_tile: 4 * TILE,
            steps: padded.len() / TILE_INPUTS,
            sums: sums[rows.start * columns..].as_mut_ptr(),
            sums_row: 4 * columns,
            sums_left: 4 * columns * TILE,
            sums_right: 4 * TILE,
            fresh: false,
            ..of
        };
        for at in (0..columns).step_by(2 * TILE) {
            // SAFETY: as above, for weights, values and sums.
            unsafe {
                let (right, sums) = (of.right.add(2 * at), of.sums.add(at));
                B::multiply::<M, 2>(shaped, &TileProduct { right, sums, ..of });
            }
        }
    }
}

/// Requests the cache lines of `next`.
#[inline(always)]
fn request<D: Bf16Dots, T>(d: D, next: &[T]) {
    for line in next.chunks(LINE_BYTES / size_of::<T>()) {
        d.vectors().prefetch(line.as_ptr().cast());
    }
}

/// `to[2i]` and `to[2i + 1]` from the i-th of `first` and of `second`, which may be empty.
#[inline(always)]
fn zip<D: Bf16Dots, T: Stored>(d: D, (first, second): (&[T], &[T]), to: &mut [bf16]) {
    let mut done = 0;
    if let (Some(first), Some(second)) = (T::brains(first), T::brains(second)) {
        let lanes = D::S::LANES;
        while done + lanes <= second.len() {
            // SAFETY: both have LANES values more, and `to` twice as many as `first`.
            unsafe {
                let pairs = d.zip(first.as_ptr().add(done), second.as_ptr().add(done));
                d.store_pairs(to.as_mut_ptr().add(2 * done), pairs);
            }
            done += lanes;
        }
    }
    for ((i, first), to) in first.iter().enumerate().zip(to.chunks_exact_mut(2)).skip(done) {
        (to[0], to[1]) = (first.brain(), second.get(i).map_or(bf16::ZERO, |v| v.brain()));
    }
}

/// Rounds to bf16.
#[inline(always)]
fn narrow<B: Bf16Tiles>(b: B, x: &[f32], to: &mut [bf16]) {
    let mut steps = x.chunks_exact(TILE_INPUTS);
    let mut to = to.chunks_exact_mut(TILE_INPUTS);
    for (x, to) in steps.by_ref().zip(to.by_ref()) {
        // SAFETY: both hold the values of a step.
        unsafe { b.round(x.as_ptr(), to.as_mut_ptr()) }
    }
    if let (rest @ [_, ..], Some(to)) = (steps.remainder(), to.next()) {
        for (x, to) in rest.iter().zip(to) {
            *to = bf16::from_f32(*x);
        }
    }
}
