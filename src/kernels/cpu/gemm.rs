//! Products with weights as stored: `y (+)= x Wᵀ`, `W` row-major `[out, in]`.
//!
//! Both operands run along the inputs, so an output is a dot product: [`Simd::LANES`] partial sums,
//! added up in a fixed tree at the end of each of a few stretches of the inputs, stretches in order.
//! Instruction set and number of inputs alone fix that order: tiles of any height and any blocking
//! give the same bits, which is why a request's tokens do not depend on who shares its batch.
//!
//! Few rows read each weight once, widened in registers. Many rows widen a block of outputs into a
//! scratch that stays in the second-level cache, and go over it tile by tile.

use std::{cell::RefCell, ops::Range};

use half::{bf16, f16};

use super::{
    pool::Pool,
    simd::{Isa, Simd, Vectorised},
    tensor::{LINE, Line, Recycler, Tensor, values_mut, zeroed},
};
use crate::kernels::{Dtype, HostTensor};

/// Outputs of a block: its scratch of [`STRETCH`] inputs takes a tenth of a second-level cache.
const BLOCK_OUTPUTS: usize = 32;
/// Rows up to which weights are widened in registers, anew for each tile: beyond, the scratch pays.
const DIRECT_ROWS: usize = 16;
/// Rows of a block, when there are many.
const BLOCK_ROWS: usize = 192;
/// Inputs (at most) between two summings of lanes: a tile's rows of them fit the first-level cache.
const STRETCH: usize = 768;

/// A pointer that the chunks of one region write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct SharedMut(*mut f32);
// SAFETY: users write disjoint elements of a buffer that outlives the region.
unsafe impl Sync for SharedMut {}
// SAFETY: as above.
unsafe impl Send for SharedMut {}

impl SharedMut {
    /// A pointer to the values of `tensor`.
    pub(super) fn new(tensor: &mut Tensor) -> Self {
        Self(tensor.data_mut().as_mut_ptr())
    }

    /// `len` values from `start` on.
    /// # Safety
    /// They must lie in the tensor, which must live, and be no other chunk's.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// `y = x Wᵀ`, or `y += x Wᵀ` where `y` is not `fresh`. Shapes fit: the caller has checked.
pub(super) struct Job<'a> {
    pub(super) x: &'a Tensor,
    pub(super) w: &'a HostTensor,
    pub(super) y: Tensor,
    pub(super) fresh: bool,
}

/// Does independent products in one parallel region.
pub(super) fn products(
    isa: Isa,
    pool: &Pool,
    buffers: &std::sync::Arc<Recycler>,
    jobs: &mut [Job<'_>],
) {
    let chunk = 2 * isa.lanes();
    let mut packs: Vec<Pack<'_>> = Vec::new();
    let mut blocks: Vec<Grid<'_>> = Vec::with_capacity(jobs.len());
    let mut tasks = 0;
    for job in jobs {
        let interleaved = job.w.dtype() == Dtype::Bf16;
        let (rows, inputs, outputs) = (job.x.rows(), job.x.width(), job.y.width());
        if inputs == 0 && job.fresh {
            job.y.data_mut().fill(0.0);
        }
        if rows == 0 || outputs == 0 || inputs == 0 {
            continue;
        }
        let pack = (interleaved || inputs % chunk != 0).then(|| {
            let same = |p: &Pack<'_>| std::ptr::eq(p.x, job.x) && p.interleaved == interleaved;
            packs.iter().position(same).unwrap_or_else(|| {
                let packed = buffers.stale(rows, inputs.next_multiple_of(chunk));
                packs.push(Pack { x: job.x, interleaved, packed });
                packs.len() - 1
            })
        });
        let row_blocks = rows.div_ceil(BLOCK_ROWS);
        tasks += row_blocks * outputs.div_ceil(BLOCK_OUTPUTS);
        blocks.push(Grid {
            x: job.x,
            pack,
            w: job.w,
            y: SharedMut::new(&mut job.y),
            outputs,
            fresh: job.fresh,
            block_rows: rows.div_ceil(row_blocks),
            row_blocks,
            threads: pool.threads(),
            end: tasks,
        });
    }
    for pack in &mut packs {
        pack.fill(isa, pool, chunk);
    }
    pool.run(tasks, |task| {
        let Some(index) = blocks.iter().position(|grid| task < grid.end) else { return };
        let first = if index == 0 { 0 } else { blocks[index - 1].end };
        let grid = &blocks[index];
        let x = grid.pack.map_or(grid.x, |pack| &packs[pack].packed);
        SCRATCH.with_borrow_mut(|scratch| isa.run(grid.block(task - first, x, scratch)));
    });
}

thread_local! {
    /// Widened weights of the block at work.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// An input laid out as a weight's storage type wants it: rows padded with zeros to whole chunks of
/// two vectors and, for bf16, even-numbered values of a chunk before odd-numbered ones.
struct Pack<'a> {
    x: &'a Tensor,
    interleaved: bool,
    packed: Tensor,
}

impl Pack<'_> {
    fn fill(&mut self, isa: Isa, pool: &Pool, chunk: usize) {
        struct Rows<'a>(&'a [f32], &'a mut [f32], usize, bool);
        impl Vectorised for Rows<'_> {
            #[inline(always)]
            fn run<S: Simd>(self, _: S) {
                let Self(x, packed, inputs, interleaved) = self;
                let width = inputs.next_multiple_of(2 * S::LANES);
                for (x, packed) in x.chunks_exact(inputs).zip(packed.chunks_exact_mut(width)) {
                    let chunks = x.chunks(2 * S::LANES).zip(packed.chunks_exact_mut(2 * S::LANES));
                    for (x, packed) in chunks {
                        let (first, second) = packed.split_at_mut(S::LANES);
                        if x.len() < 2 * S::LANES {
                            first.fill(0.0);
                            second.fill(0.0);
                            for (i, &x) in x.iter().enumerate() {
                                let at = if interleaved { i / 2 } else { i % S::LANES };
                                let odd = if interleaved { i % 2 } else { i / S::LANES };
                                if odd == 0 { first[at] = x } else { second[at] = x }
                            }
                        } else if interleaved {
                            for i in 0..S::LANES {
                                first[i] = x[2 * i];
                                second[i] = x[2 * i + 1];
                            }
                        } else {
                            first.copy_from_slice(&x[..S::LANES]);
                            second.copy_from_slice(&x[S::LANES..]);
                        }
                    }
                }
            }
        }
        let (rows, inputs) = (self.x.rows(), self.x.width());
        let width = inputs.next_multiple_of(chunk);
        let (x, interleaved) = (self.x.data(), self.interleaved);
        // Few rows are packed sooner than another thread hears of it.
        let step = if rows < 32 { rows } else { rows.div_ceil(4 * pool.threads()) };
        let packed = SharedMut::new(&mut self.packed);
        pool.run(rows.div_ceil(step), |task| {
            let rows = task * step..rows.min((task + 1) * step);
            // SAFETY: these rows are this task's alone.
            let packed = unsafe { packed.slice(rows.start * width, rows.len() * width) };
            let x = &x[rows.start * inputs..rows.end * inputs];
            isa.run(Rows(x, packed, inputs, interleaved));
        });
    }
}

/// One job cut into blocks of outputs × rows.
struct Grid<'a> {
    x: &'a Tensor,
    pack: Option<usize>,
    w: &'a HostTensor,
    y: SharedMut,
    outputs: usize,
    fresh: bool,
    block_rows: usize,
    row_blocks: usize,
    threads: usize,
    /// One past the last task of this job.
    end: usize,
}

impl Grid<'_> {
    /// Block number `index`; `x` is the input as packed.
    fn block<'a>(&'a self, index: usize, x: &'a Tensor, scratch: &'a mut Vec<Line>) -> Block<'a> {
        let (row, output) = (index % self.row_blocks, index / self.row_blocks);
        let outs = |block: usize| {
            let first = (block * BLOCK_OUTPUTS).min(self.outputs);
            first..self.outputs.min(first + BLOCK_OUTPUTS)
        };
        Block {
            x,
            rows: row * self.block_rows..self.x.rows().min((row + 1) * self.block_rows),
            w: self.w,
            inputs: self.x.width(),
            outs: outs(output),
            ahead: outs(output + self.threads),
            y: self.y,
            outputs: self.outputs,
            fresh: self.fresh,
            scratch,
        }
    }
}

/// A block of outputs of some rows.
struct Block<'a> {
    x: &'a Tensor,
    rows: Range<usize>,
    w: &'a HostTensor,
    inputs: usize,
    outs: Range<usize>,
    /// Outputs that this thread is likely to do next.
    ahead: Range<usize>,
    y: SharedMut,
    outputs: usize,
    fresh: bool,
    scratch: &'a mut Vec<Line>,
}

impl Vectorised for Block<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.fresh {
            for row in self.rows.clone() {
                let start = row * self.outputs + self.outs.start;
                // SAFETY: row < rows and outs.end ≤ outputs: inside y, and this block's alone.
                unsafe { self.y.slice(start, self.outs.len()).fill(0.0) }
            }
        }
        if let Some(w) = self.w.as_f32() {
            self.typed(s, w);
        } else if let Some(w) = self.w.as_bf16() {
            self.typed(s, w);
        } else if let Some(w) = self.w.as_f16() {
            self.typed(s, w);
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn typed<S: Simd, E: Element>(self, s: S, w: &[E]) {
        let whole = self.inputs % (2 * S::LANES) == 0;
        let chunks = self.inputs.div_ceil(2 * S::LANES);
        let tiles = self.rows.len().div_ceil(E::ROWS.min(S::ROWS));
        let stretches = self.inputs.div_ceil(STRETCH).max(1);
        let stretch = |i: usize| i * chunks / stretches..(i + 1) * chunks / stretches;
        if whole && self.rows.len() <= DIRECT_ROWS {
            // SAFETY: the rows outs of w, each of whole chunks.
            unsafe {
                let w = w.as_ptr().add(self.outs.start * self.inputs);
                for out in (0..self.outs.len()).step_by(4) {
                    let outs = out..self.outs.len().min(out + 4);
                    // The next four rows of the weight lie right behind these.
                    let mut ahead = Ahead::over(
                        w.wrapping_add(outs.end * self.inputs),
                        outs.len() * self.inputs,
                        chunks * tiles,
                    );
                    for chunks in (0..stretches).map(stretch) {
                        self.sweep(s, w, self.inputs, &chunks, outs.clone(), 0, &mut ahead);
                    }
                }
            }
            return;
        }
        let Self { ref outs, inputs, .. } = self;
        let widest = (0..stretches).map(|i| stretch(i).len()).max().unwrap_or(0) * 2 * S::LANES;
        let mut ahead = Ahead::over(
            w.as_ptr().wrapping_add(self.ahead.start * inputs),
            self.ahead.len() * inputs,
            chunks * tiles * outs.len().div_ceil(4),
        );
        let mut scratch = std::mem::take(self.scratch);
        if scratch.len() * LINE < outs.len() * widest {
            scratch = zeroed((outs.len() * widest).div_ceil(LINE));
        }
        for chunks in (0..stretches).map(stretch) {
            let wide = values_mut(&mut scratch);
            for (row, wide) in outs.clone().zip(wide.chunks_exact_mut(widest.max(1))) {
                let start = row * inputs + chunks.start * 2 * S::LANES;
                let end = (row + 1) * inputs;
                let end = end.min(row * inputs + chunks.end * 2 * S::LANES);
                widen(s, &w[start..end], wide);
            }
            // SAFETY: the scratch holds outs rows of these chunks.
            unsafe {
                let (skipped, w) = (chunks.start, scratch.as_ptr().cast::<f32>());
                self.sweep(s, w, widest, &chunks, 0..outs.len(), skipped, &mut ahead);
            }
        }
        *self.scratch = scratch;
    }

    /// All rows × `outs` (counted from the block's first) over some chunks of the inputs.
    /// # Safety
    /// `w` holds rows of at least `chunks.end − skipped` chunks, `ldw` apart, for all `outs`.
    #[allow(clippy::too_many_arguments)] // the innermost level: all of it is needed at once
    #[inline(always)]
    unsafe fn sweep<S: Simd, E: Element>(
        &self,
        s: S,
        w: *const E,
        ldw: usize,
        chunks: &Range<usize>,
        outs: Range<usize>,
        skipped: usize,
        ahead: &mut Ahead,
    ) {
        let tiles = self.rows.len().div_ceil(E::ROWS.min(S::ROWS));
        for tile in 0..tiles {
            let first = self.rows.start + tile * self.rows.len() / tiles;
            let last = self.rows.start + (tile + 1) * self.rows.len() / tiles;
            // SAFETY: rows lie in x and y; x has whole chunks; w as promised by the caller.
            unsafe {
                let x = self.x.data().as_ptr();
                let mut tile = Tile {
                    x: x.add(first * self.x.width() + chunks.start * 2 * S::LANES),
                    ldx: self.x.width(),
                    w: w.add(outs.start * ldw + (chunks.start - skipped) * 2 * S::LANES),
                    ldw,
                    y: self.y.0.add(first * self.outputs + self.outs.start + outs.start),
                    ldy: self.outputs,
                    chunks: chunks.len(),
                    ahead: *ahead,
                };
                let mut left = outs.len();
                while left >= 4 {
                    tile.rows::<S, 4>(s, last - first);
                    tile.ahead.advance(chunks.len());
                    tile.w = tile.w.add(4 * ldw);
                    tile.y = tile.y.add(4);
                    left -= 4;
                }
                for _ in 0..left {
                    tile.rows::<S, 1>(s, last - first);
                    tile.w = tile.w.add(ldw);
                    tile.y = tile.y.add(1);
                }
                *ahead = tile.ahead;
            }
        }
    }
}

/// A register tile: `y[i, j] += Σ x[i, ·] w[j, ·]`.
struct Tile<E> {
    x: *const f32,
    ldx: usize,
    w: *const E,
    ldw: usize,
    y: *mut f32,
    ldy: usize,
    chunks: usize,
    ahead: Ahead,
}

/// Weights to bring nearer while tiles compute, some cache lines a chunk: spread evenly, since more
/// than the memory delivers would stall the computation instead of hiding behind it.
#[derive(Clone, Copy)]
struct Ahead {
    next: *const u8,
    /// Lines a chunk; 0 when there is nothing left to do.
    lines: usize,
    /// Lines left.
    left: usize,
}

impl Ahead {
    const LINE: usize = 64;

    /// `count` elements from `first` on, over the next `chunks` chunks of tiles.
    #[inline(always)]
    fn over<E>(first: *const E, count: usize, chunks: usize) -> Self {
        let left = (count * size_of::<E>()).div_ceil(Self::LINE);
        Self { next: first.cast(), lines: left.div_ceil(chunks.max(1)), left }
    }

    /// Passes what `chunks` chunks brought.
    #[inline(always)]
    fn advance(&mut self, chunks: usize) {
        let lines = chunks * self.lines;
        self.next = self.next.wrapping_add(lines * Self::LINE);
        self.left = self.left.saturating_sub(lines);
        self.lines = if self.left == 0 { 0 } else { self.lines };
    }
}

impl<E: Element> Tile<E> {
    #[inline(always)]
    unsafe fn rows<S: Simd, const N: usize>(&self, s: S, rows: usize) {
        // SAFETY: the caller's; rows ≤ S::ROWS by the cut into tiles.
        unsafe {
            match rows {
                1 => self.sum::<S, 1, N>(s),
                2 => self.sum::<S, 2, N>(s),
                3 if S::ROWS >= 3 => self.sum::<S, 3, N>(s),
                4 if S::ROWS >= 4 => self.sum::<S, 4, N>(s),
                5 if S::ROWS >= 5 => self.sum::<S, 5, N>(s),
                6 if S::ROWS >= 6 => self.sum::<S, 6, N>(s),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
    }

    #[inline(always)]
    unsafe fn sum<S: Simd, const M: usize, const N: usize>(&self, s: S) {
        let mut sums = [[s.splat(0.0); N]; M];
        // SAFETY: the caller's.
        unsafe {
            for chunk in 0..self.chunks {
                let (x, w) = (self.x.add(chunk * 2 * S::LANES), self.w.add(chunk * 2 * S::LANES));
                for line in chunk * self.ahead.lines..(chunk + 1) * self.ahead.lines {
                    s.prefetch(self.ahead.next.wrapping_add(line * Ahead::LINE));
                }
                let mut wide = [s.splat(0.0); N];
                for j in 0..N {
                    wide[j] = E::first(s, w.add(j * self.ldw));
                }
                for i in 0..M {
                    let x = s.load(x.add(i * self.ldx));
                    for j in 0..N {
                        sums[i][j] = s.fma(x, wide[j], sums[i][j]);
                    }
                }
                for j in 0..N {
                    wide[j] = E::second(s, w.add(j * self.ldw));
                }
                for i in 0..M {
                    let x = s.load(x.add(i * self.ldx + S::LANES));
                    for j in 0..N {
                        sums[i][j] = s.fma(x, wide[j], sums[i][j]);
                    }
                }
            }
            for i in 0..M {
                let y = self.y.add(i * self.ldy);
                if N == 4 {
                    s.add_sums([sums[i][0], sums[i][1], sums[i][2], sums[i][3]], y);
                } else {
                    for j in 0..N {
                        let mut sum = [0.0; 4];
                        s.add_sums([sums[i][j]; 4], sum.as_mut_ptr());
                        *y.add(j) += sum[0];
                    }
                }
            }
        }
    }
}

/// Widens `w` into chunks ordered as [`Element::first`] and [`Element::second`] give them, the last
/// one padded with zeros.
#[inline(always)]
fn widen<S: Simd, E: Element>(s: S, w: &[E], wide: &mut [f32]) {
    let mut tail = [E::ZERO; 64];
    for (w, wide) in w.chunks(2 * S::LANES).zip(wide.chunks_exact_mut(2 * S::LANES)) {
        let w = if w.len() < 2 * S::LANES {
            tail[..w.len()].copy_from_slice(w);
            &tail[..2 * S::LANES]
        } else {
            w
        };
        // SAFETY: both slices have 2 LANES elements.
        unsafe {
            s.store(wide.as_mut_ptr(), E::first(s, w.as_ptr()));
            s.store(wide.as_mut_ptr().add(S::LANES), E::second(s, w.as_ptr()));
        }
    }
}

/// Storage types of weights.
trait Element: Copy {
    const ZERO: Self;
    /// Rows of a tile (at most): widening takes registers too.
    const ROWS: usize;
    /// The first LANES of 2 LANES values, in the order of [`Pack`].
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn first<S: Simd>(s: S, p: *const Self) -> S::V;
    /// The other LANES values.
    /// # Safety
    /// `p` must be readable for 2 LANES values.
    unsafe fn second<S: Simd>(s: S, p: *const Self) -> S::V;
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const ROWS: usize = 6;
    #[inline(always)]
    unsafe fn first<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn second<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load(p.add(S::LANES)) }
    }
}

impl Element for bf16 {
    const ZERO: Self = Self::ZERO;
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn first<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load_bf16_even(p) }
    }
    #[inline(always)]
    unsafe fn second<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load_bf16_odd(p) }
    }
}

impl Element for f16 {
    const ZERO: Self = Self::ZERO;
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn first<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load_f16(p) }
    }
    #[inline(always)]
    unsafe fn second<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.load_f16(p.add(S::LANES)) }
    }
}
