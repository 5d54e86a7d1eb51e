//! Grouped-query attention over paged keys and values.
//!
//! A task is one key/value head and some tokens of one sequence; a tile is a few of its query rows
//! (tokens × heads of the group) that go over the context together. The context is taken in spans
//! of [`SPAN`] tokens at fixed positions, with the running maximum and sum of an online softmax
//! between them. Nothing that a row sums depends on which rows share its tile: tokens it may not see
//! weigh exactly 0. Where the instruction set has tiles of bf16 and keys and values are at most as
//! wide, [`tiles`] does the same with them.

mod rows;
mod tiles;

use std::{cell::RefCell, ops::Range};

pub(super) use self::rows::Rows;
use self::{
    rows::{QueryRow, SPAN, add_by_distance, soften},
    tiles::TileTask,
};
use super::{
    elementwise::soft_cap,
    kv::{KvLayer, Stored},
    pool::Pool,
    shared::SharedMut,
    tensor::Tensor,
};
use crate::{
    kernels::{Dtype, KV_BLOCK, KvDtype, Segment},
    simd::{Bf16Products, Isa, Simd, Vectorised},
};

/// Tokens of a task.
const TASK_TOKENS: usize = 32;
/// Query rows of the largest tile.
const MAX_ROWS: usize = 6;

/// Attends every row to tokens of its own sequence.
pub(super) fn attend<T: Stored>(
    isa: Isa,
    pool: &Pool,
    rows: &Rows<'_>,
    layer: &KvLayer<'_, T>,
    out: &mut Tensor,
) {
    let out = SharedMut::new(out);
    let shape = rows.shape;
    let mut tasks = Vec::with_capacity(rows.segments.len() * shape.kv_heads);
    for segment in rows.segments {
        // The last tokens attend to the most and start first.
        for first in (0..segment.rows.len()).step_by(TASK_TOKENS).rev() {
            let tokens = first..segment.rows.len().min(first + TASK_TOKENS);
            tasks.extend((0..shape.kv_heads).map(|head| (segment, tokens.clone(), head)));
        }
    }
    let tiled =
        T::DTYPE != KvDtype::Plain(Dtype::F32) && isa.bf16_products() == Bf16Products::Tiles;
    pool.run(tasks.len(), |task| {
        let (segment, tokens, kv_head) = tasks[task].clone();
        if tiled {
            return TILE_SCRATCH.with_borrow_mut(|scratch| {
                isa.run_tiles(TileTask {
                    all: rows,
                    segment,
                    tokens,
                    kv_head,
                    layer,
                    out,
                    scratch,
                });
            });
        }
        SCRATCH.with_borrow_mut(|scratch| {
            isa.run(Task { all: rows, segment, tokens, kv_head, layer, out, scratch });
        });
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
    static TILE_SCRATCH: RefCell<tiles::Scratch> = RefCell::default();
}

/// Buffers of a tile.
struct Scratch {
    /// Scores, then weights, of the rows over a span.
    weights: [[f32; SPAN]; MAX_ROWS],
    /// Weighted sums of values, `[rows, head_dim]`.
    sums: Vec<f32>,
    /// What is added to the scores of a tile's rows by distance, `[rows, distances]`; empty: nothing.
    biases: Vec<f32>,
}

impl Scratch {
    const fn new() -> Self {
        Self { weights: [[0.0; SPAN]; MAX_ROWS], sums: Vec::new(), biases: Vec::new() }
    }
}

struct Task<'a, T> {
    all: &'a Rows<'a>,
    segment: &'a Segment,
    /// Rows of the segment, counted from its first.
    tokens: Range<usize>,
    kv_head: usize,
    layer: &'a KvLayer<'a, T>,
    out: SharedMut,
    scratch: &'a mut Scratch,
}

impl<T: Stored> Vectorised for Task<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { all, segment, tokens, kv_head, layer, out, scratch } = self;
        let &Rows { q, shape, ref bias, .. } = all;
        let group = shape.heads / shape.kv_heads;
        let rows = tokens.len() * group;
        let tile = MAX_ROWS.min(S::ROWS);
        for first in (0..rows).step_by(tile) {
            let count = tile.min(rows - first);
            let mut tile = QueryTile {
                q: [&[]; MAX_ROWS],
                seen: [const { 0..0 }; MAX_ROWS],
                positions: [0; MAX_ROWS],
                segment,
                layer,
                kv_head,
                scale: 1.0 / (shape.head_dim as f32).sqrt(),
                cap: shape.cap,
                scratch: &mut *scratch,
            };
            let mut starts = [0; MAX_ROWS];
            tile.scratch.biases.clear();
            for i in 0..count {
                let (token, head) = ((first + i) / group, (first + i) % group);
                let head = kv_head * group + head;
                let QueryRow { start, seen, position, row, head } =
                    all.query(segment, tokens.start + token, head);
                tile.q[i] = &q.data()[start..start + shape.head_dim];
                tile.seen[i] = seen;
                tile.positions[i] = position;
                if let Some(bias) = bias {
                    bias.extend(&mut tile.scratch.biases, row, head, shape.heads);
                }
                starts[i] = start;
            }
            let totals = match count {
                1 => tile.attend::<S, 1>(s),
                2 => tile.attend::<S, 2>(s),
                3 if S::ROWS >= 3 => tile.attend::<S, 3>(s),
                4 if S::ROWS >= 4 => tile.attend::<S, 4>(s),
                5 if S::ROWS >= 5 => tile.attend::<S, 5>(s),
                6 if S::ROWS >= 6 => tile.attend::<S, 6>(s),
                _ => unreachable!("a tile of {count} rows"),
            };
            let sums = tile.scratch.sums.chunks_exact(shape.head_dim);
            for ((start, total), sums) in starts.iter().zip(totals).zip(sums).take(count) {
                // SAFETY: this task alone writes these heads of these rows.
                let out = unsafe { out.slice(*start, shape.head_dim) };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum / total;
                }
            }
        }
    }
}

struct QueryTile<'a, T> {
    /// Query rows `[head_dim]`.
    q: [&'a [f32]; MAX_ROWS],
    /// Positions that each row sees.
    seen: [Range<usize>; MAX_ROWS],
    /// Position of each row.
    positions: [usize; MAX_ROWS],
    segment: &'a Segment,
    layer: &'a KvLayer<'a, T>,
    kv_head: usize,
    scale: f32,
    cap: Option<f32>,
    scratch: &'a mut Scratch,
}

impl<T: Stored> QueryTile<'_, T> {
    /// Leaves the rows' weighted sums of values in the scratch; returns the sums of the weights.
    #[inline(always)]
    fn attend<S: Simd, const M: usize>(&mut self, s: S) -> [f32; MAX_ROWS] {
        let head_dim = self.q[0].len();
        let begin = self.seen[..M].iter().map(|seen| seen.start).min().unwrap_or(0);
        let end = self.seen[..M].iter().map(|seen| seen.end).max().unwrap_or(0);
        self.scratch.sums.clear();
        self.scratch.sums.resize(M * head_dim, 0.0);
        let (mut max, mut total) = ([f32::NEG_INFINITY; M], [0.0; MAX_ROWS]);
        for span in begin / SPAN..end.div_ceil(SPAN) {
            let span = begin.max(span * SPAN)..end.min((span + 1) * SPAN);
            self.scores::<S, M>(s, &span);
            for i in 0..M {
                let seen = span.start.max(self.seen[i].start)..span.end.min(self.seen[i].end);
                let Scratch { weights, biases, .. } = &mut *self.scratch;
                // Whole blocks, so that a position always has the same lane.
                let origin = span.start / KV_BLOCK * KV_BLOCK;
                let weights = &mut weights[i][origin % SPAN..]
                    [..(span.end - origin).next_multiple_of(KV_BLOCK)];
                let here =
                    if seen.is_empty() { 0..0 } else { seen.start - origin..seen.end - origin };
                if !biases.is_empty() {
                    let distances = biases.len() / M;
                    let bias = &biases[i * distances..(i + 1) * distances];
                    add_by_distance(
                        &mut weights[here.clone()],
                        seen.start,
                        self.positions[i],
                        bias,
                    );
                }
                if let Some(cap) = self.cap {
                    soft_cap(weights, cap);
                }
                let keep = soften(weights, here, &mut max[i], &mut total[i]);
                self.scale_weights(i, &span);
                for sum in &mut self.scratch.sums[i * head_dim..(i + 1) * head_dim] {
                    *sum *= keep;
                }
            }
            let mut column = 0;
            while column + 4 * S::LANES <= head_dim {
                self.weigh::<S, M, 4>(s, &span, column);
                column += 4 * S::LANES;
            }
            while column + S::LANES <= head_dim {
                self.weigh::<S, M, 1>(s, &span, column);
                column += S::LANES;
            }
            if column < head_dim {
                self.weigh_rest::<M>(&span, column);
            }
        }
        total
    }

    /// Multiplies the weights of a row over `span` by the scales of the values, where they have some.
    #[inline(always)]
    fn scale_weights(&mut self, row: usize, span: &Range<usize>) {
        for block in span.start / KV_BLOCK..span.end.div_ceil(KV_BLOCK) {
            let place = self.segment.blocks[block];
            let Some([_, values]) = self.layer.scales(place, self.kv_head) else { return };
            let at = block * KV_BLOCK % SPAN;
            let last = KV_BLOCK.min(span.end - block * KV_BLOCK);
            let weights = &mut self.scratch.weights[row][at..at + last];
            weights.iter_mut().zip(values).for_each(|(weight, scale)| *weight *= scale);
        }
    }

    /// Keys and values of the block that holds `position`.
    #[inline(always)]
    fn block(&self, position: usize) -> (&[T], &[T]) {
        self.layer.head(self.segment.blocks[position / KV_BLOCK], self.kv_head)
    }

    /// `scale · q k` of all positions of the blocks that `span` touches, at their place in the span.
    #[inline(always)]
    fn scores<S: Simd, const M: usize>(&mut self, s: S, span: &Range<usize>) {
        let head_dim = self.q[0].len();
        let scale = s.splat(self.scale);
        for block in span.start / KV_BLOCK..span.end.div_ceil(KV_BLOCK) {
            let keys = self.block(block * KV_BLOCK).0.as_ptr();
            let scales = self.layer.scales(self.segment.blocks[block], self.kv_head);
            for part in 0..KV_BLOCK / S::LANES {
                // Two sums a row: one chain of dependent additions would leave the FMA units idle.
                let mut sums = [[s.splat(0.0); 2]; M];
                for d in 0..head_dim / 2 {
                    for parity in 0..2 {
                        let d = 2 * d + parity;
                        // SAFETY: keys are [head_dim, KV_BLOCK], and LANES divides KV_BLOCK.
                        let key = unsafe { T::load(s, keys.add(d * KV_BLOCK + part * S::LANES)) };
                        for i in 0..M {
                            // SAFETY: d < head_dim, the length of every row.
                            let q = s.splat(unsafe { *self.q[i].get_unchecked(d) });
                            sums[i][parity] = s.fma(q, key, sums[i][parity]);
                        }
                    }
                }
                let scale = match scales {
                    None => scale,
                    Some([keys, _]) => {
                        // SAFETY: LANES divides KV_BLOCK, the length of the scales.
                        s.mul(scale, unsafe { s.load(keys.as_ptr().add(part * S::LANES)) })
                    }
                };
                let at = block * KV_BLOCK % SPAN + part * S::LANES;
                for i in 0..M {
                    let score = s.mul(scale, s.add(sums[i][0], sums[i][1]));
                    let weights = &mut self.scratch.weights[i][at..at + S::LANES];
                    // SAFETY: the slice has LANES values.
                    unsafe { s.store(weights.as_mut_ptr(), score) };
                }
            }
        }
    }

    /// Adds `weight · value` of the span's positions to `N` vectors of columns from `column` on.
    #[inline(always)]
    fn weigh<S: Simd, const M: usize, const N: usize>(
        &mut self,
        s: S,
        span: &Range<usize>,
        column: usize,
    ) {
        let head_dim = self.q[0].len();
        let mut sums = [[s.splat(0.0); N]; M];
        let mut position = span.start;
        while position < span.end {
            let values = self.block(position).1.as_ptr();
            let last = span.end.min((position / KV_BLOCK + 1) * KV_BLOCK);
            for position in position..last {
                let mut value = [s.splat(0.0); N];
                for j in 0..N {
                    let at = position % KV_BLOCK * head_dim + column + j * S::LANES;
                    // SAFETY: values are [KV_BLOCK, head_dim] and these columns lie in a row.
                    value[j] = unsafe { T::load(s, values.add(at)) };
                }
                for i in 0..M {
                    let weight = s.splat(self.scratch.weights[i][position % SPAN]);
                    for j in 0..N {
                        sums[i][j] = s.fma(weight, value[j], sums[i][j]);
                    }
                }
            }
            position = last;
        }
        for i in 0..M {
            for j in 0..N {
                let start = i * head_dim + column + j * S::LANES;
                let out = self.scratch.sums[start..start + S::LANES].as_mut_ptr();
                // SAFETY: the slice has LANES values.
                unsafe { s.store(out, s.add(s.load(out), sums[i][j])) };
            }
        }
    }

    /// The same for the columns from `column` on that fill no vector.
    fn weigh_rest<const M: usize>(&mut self, span: &Range<usize>, column: usize) {
        let head_dim = self.q[0].len();
        for i in 0..M {
            for d in column..head_dim {
                let mut sum = 0.0;
                for position in span.clone() {
                    let value = self.block(position).1[position % KV_BLOCK * head_dim + d];
                    sum += self.scratch.weights[i][position % SPAN] * value.widen();
                }
                self.scratch.sums[i * head_dim + d] += sum;
            }
        }
    }
}
