//! Products with weights as stored: `y (+)= x Wᵀ`, `W` row-major `[out, in]`.
//!
//! Both operands run along the inputs, so an output is a dot product: [`Simd::LANES`] partial sums,
//! added up in a fixed tree at the end of each of a few stretches of the inputs, stretches in order.
//! Instruction set and number of inputs alone fix that order: tiles of any height give the
//! same bits, which is why a request's tokens do not depend on who shares its batch.
//!
//! Few rows read each weight once, widened in registers. Many rows widen the weights of a macro-tile
//! into a scratch that stays in the second-level cache, and go over it tile by tile.

use std::{cell::RefCell, ops::Range};

use super::{
    pool::{Pool, in_streams},
    shared::SharedMut,
    tensor::{LINE, Line, Recycler, Rows, Tensor, values_mut, zeroed},
    tile::{AHEAD_BYTES, LINE_BYTES, MicroTile, widen},
};
use crate::{
    kernels::{BlockType, Dtype, HostTensor},
    simd::{Element, Isa, Simd, Vectorised},
};

/// Outputs of a macro-tile: its scratch of [`STRETCH`] inputs takes a tenth of a second-level cache.
const MACRO_OUTPUTS: usize = 32;
/// Rows up to which weights are widened in registers, anew for each micro-tile; more rows share a
/// scratch.
const DIRECT_ROWS: usize = 16;
/// Rows (at most) of a macro-tile.
const MACRO_ROWS: usize = 192;
/// Inputs (at most) between two sums over lanes: a micro-tile's rows of them fit the first-level
/// cache.
const STRETCH: usize = 768;

/// `y = x Wᵀ`, or `y += x Wᵀ` where `y` is not `fresh`. Shapes fit: the caller has checked.
pub(super) struct LinearJob<'a> {
    pub(super) x: Rows<'a>,
    pub(super) w: &'a HostTensor,
    pub(super) y: &'a mut [f32],
    pub(super) outputs: usize,
    pub(super) fresh: bool,
}

/// The arithmetic of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// Products of bytes, weights in blocks.
    Bytes(BlockType),
    /// Products of bf16.
    Bf16,
    /// Multiply-adds of f32.
    Floats,
}

impl LinearJob<'_> {
    /// The arithmetic of the product on an instruction set; `None` where there is nothing to sum.
    pub(super) fn arithmetic(&self, isa: Isa) -> Option<Arithmetic> {
        let empty = self.x.rows == 0 || self.x.width == 0 || self.outputs == 0;
        (!empty).then(|| match self.w.dtype() {
            Dtype::Quantised(blocks) => Arithmetic::Bytes(blocks),
            Dtype::Bf16 if isa.multiplies_bf16() => Arithmetic::Bf16,
            _ => Arithmetic::Floats,
        })
    }
}

/// Independent products cut into tasks for one parallel region.
pub(super) struct DenseProducts<'a> {
    isa: Isa,
    threads: usize,
    packs: Vec<Pack<'a>>,
    grids: Vec<Grid<'a>>,
    /// Number of tasks.
    pub(super) tasks: usize,
}

impl<'a> DenseProducts<'a> {
    /// Packs the inputs of the jobs that are multiplied in f32, and cuts the jobs.
    pub(super) fn new(
        isa: Isa,
        pool: &Pool,
        buffers: &std::sync::Arc<Recycler>,
        jobs: &mut [LinearJob<'a>],
    ) -> Self {
        let chunk = 2 * isa.lanes();
        let mut packs: Vec<Pack<'_>> = Vec::new();
        let mut grids: Vec<Grid<'_>> = Vec::with_capacity(jobs.len());
        let mut tasks = 0;
        for job in jobs.iter_mut() {
            let Some(Arithmetic::Floats) = job.arithmetic(isa) else { continue };
            let interleaved = job.w.dtype() == Dtype::Bf16;
            let (rows, inputs, outputs) = (job.x.rows, job.x.width, job.outputs);
            let pack = (interleaved || inputs % chunk != 0).then(|| {
                let same = |p: &Pack<'_>| p.x.is(&job.x) && p.interleaved == interleaved;
                packs.iter().position(same).unwrap_or_else(|| {
                    let packed = buffers.stale(rows, inputs.next_multiple_of(chunk));
                    packs.push(Pack { x: job.x, interleaved, packed });
                    packs.len() - 1
                })
            });
            let row_tiles = rows.div_ceil(MACRO_ROWS);
            tasks += row_tiles * outputs.div_ceil(MACRO_OUTPUTS);
            grids.push(Grid {
                x: job.x,
                pack,
                w: job.w,
                y: SharedMut::of(job.y),
                outputs,
                fresh: job.fresh,
                tile_rows: rows.div_ceil(row_tiles),
                row_tiles,
                end: tasks,
            });
        }
        for pack in &mut packs {
            pack.fill(isa, pool, chunk);
        }
        Self { isa, threads: pool.threads(), packs, grids, tasks }
    }

    /// Does one task. Every task must be run exactly once.
    pub(super) fn run(&self, task: usize) {
        let Self { isa, packs, grids, .. } = self;
        let Some(index) = grids.iter().position(|grid| task < grid.end) else { return };
        let first = if index == 0 { 0 } else { grids[index - 1].end };
        let grid = &grids[index];
        let task = in_streams(task - first, grid.end - first, self.threads);
        let x = grid.pack.map_or(grid.x, |pack| Rows::from(&packs[pack].packed));
        SCRATCH.with_borrow_mut(|scratch| isa.run(grid.macro_tile(task, x, scratch)));
    }
}

thread_local! {
    /// Widened weights of the macro-tile at work.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// An input laid out as a weight's storage type wants it: rows padded with zeros to whole chunks of
/// two vectors and, for bf16, even-numbered values of a chunk before odd-numbered ones.
struct Pack<'a> {
    x: Rows<'a>,
    interleaved: bool,
    packed: Tensor,
}

impl Pack<'_> {
    fn fill(&mut self, isa: Isa, pool: &Pool, chunk: usize) {
        struct Fill<'a>(&'a [f32], &'a mut [f32], usize, bool);
        impl Vectorised for Fill<'_> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let Self(x, packed, inputs, interleaved) = self;
                let (chunk, width) = (2 * S::LANES, inputs.next_multiple_of(2 * S::LANES));
                for (x, packed) in x.chunks_exact(inputs).zip(packed.chunks_exact_mut(width)) {
                    let mut tail = [0.0; 64];
                    for (x, packed) in x.chunks(chunk).zip(packed.chunks_exact_mut(chunk)) {
                        let x = if x.len() < chunk {
                            tail[..x.len()].copy_from_slice(x);
                            &tail[..chunk]
                        } else {
                            x
                        };
                        if !interleaved {
                            packed.copy_from_slice(x);
                            continue;
                        }
                        // SAFETY: both hold a chunk.
                        unsafe {
                            let [even, odd] = s.load_even_odd(x.as_ptr());
                            s.store(packed.as_mut_ptr(), even);
                            s.store(packed.as_mut_ptr().add(S::LANES), odd);
                        }
                    }
                }
            }
        }
        let Rows { data: x, rows, width: inputs } = self.x;
        let (width, interleaved) = (inputs.next_multiple_of(chunk), self.interleaved);
        // Packing a few rows is cheaper than waking a thread.
        let step = if rows < 32 { rows } else { rows.div_ceil(4 * pool.threads()) };
        let packed = SharedMut::new(&mut self.packed);
        pool.run(rows.div_ceil(step), |task| {
            let rows = task * step..rows.min((task + 1) * step);
            // SAFETY: these rows are this task's alone.
            let packed = unsafe { packed.slice(rows.start * width, rows.len() * width) };
            let x = &x[rows.start * inputs..rows.end * inputs];
            isa.run(Fill(x, packed, inputs, interleaved));
        });
    }
}

/// One job cut into macro-tiles of outputs × rows.
struct Grid<'a> {
    x: Rows<'a>,
    pack: Option<usize>,
    w: &'a HostTensor,
    y: SharedMut,
    outputs: usize,
    fresh: bool,
    tile_rows: usize,
    row_tiles: usize,
    /// One past the last task of this job.
    end: usize,
}

impl Grid<'_> {
    /// Macro-tile number `index`; `x` is the input as packed.
    fn macro_tile<'a>(
        &'a self,
        index: usize,
        x: Rows<'a>,
        scratch: &'a mut Vec<Line>,
    ) -> MacroTile<'a> {
        let (row, output) = (index % self.row_tiles, index / self.row_tiles);
        MacroTile {
            x,
            rows: row * self.tile_rows..self.x.rows.min((row + 1) * self.tile_rows),
            w: self.w,
            inputs: self.x.width,
            outs: output * MACRO_OUTPUTS..self.outputs.min((output + 1) * MACRO_OUTPUTS),
            y: self.y,
            outputs: self.outputs,
            fresh: self.fresh,
            scratch,
        }
    }
}

/// A block of outputs × rows, whose weights stay in a cache.
struct MacroTile<'a> {
    x: Rows<'a>,
    rows: Range<usize>,
    w: &'a HostTensor,
    inputs: usize,
    outs: Range<usize>,
    y: SharedMut,
    outputs: usize,
    fresh: bool,
    scratch: &'a mut Vec<Line>,
}

impl Vectorised for MacroTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.fresh {
            for row in self.rows.clone() {
                let start = row * self.outputs + self.outs.start;
                // SAFETY: row < rows and outs.end ≤ outputs: inside y, written by this task alone.
                unsafe { self.y.slice(start, self.outs.len()).fill(0.0) }
            }
        }
        let chunks = self.inputs.div_ceil(2 * S::LANES);
        let stretches = self.inputs.div_ceil(STRETCH).max(1);
        let stretches =
            (0..stretches).map(|i| i * chunks / stretches..(i + 1) * chunks / stretches);
        if !self.inputs.is_multiple_of(2 * S::LANES) || self.rows.len() > DIRECT_ROWS {
            self.widened(s, stretches);
        } else if let Some(w) = self.w.as_f32() {
            self.direct(s, w, stretches);
        } else if let Some(w) = self.w.as_bf16() {
            self.direct(s, w, stretches);
        } else if let Some(w) = self.w.as_f16() {
            self.direct(s, w, stretches);
        }
    }
}

impl MacroTile<'_> {
    /// Widens weights in registers, four outputs at a time.
    #[inline(always)]
    fn direct<S: Simd, E: Element>(
        &self,
        s: S,
        w: &[E],
        stretches: impl Iterator<Item = Range<usize>> + Clone,
    ) {
        let tiles = self.rows.len().div_ceil(E::ROWS.min(S::ROWS));
        for first in self.outs.clone().step_by(4) {
            let outs = first - self.outs.start..self.outs.len().min(first - self.outs.start + 4);
            for chunks in stretches.clone() {
                let start = first * self.inputs + chunks.start * 2 * S::LANES;
                // The weights of the next outputs follow these.
                let ahead = (4 * self.inputs).max(AHEAD_BYTES / size_of::<E>());
                let next = w.as_ptr().wrapping_add(first * self.inputs + ahead);
                // SAFETY: the outputs are rows of w, each of whole chunks.
                unsafe {
                    let w = w.as_ptr().add(start);
                    // The tiles prefetch four lines a chunk together: the bf16 weights of one.
                    if tiles == 1 {
                        self.sweep::<S, E, 4>(s, w, self.inputs, &chunks, outs.clone(), next);
                    } else {
                        self.sweep::<S, E, 2>(s, w, self.inputs, &chunks, outs.clone(), next);
                    }
                }
            }
        }
    }

    /// Widens a stretch of all outputs into the scratch, then multiplies.
    #[inline(always)]
    fn widened<S: Simd>(self, s: S, stretches: impl Iterator<Item = Range<usize>> + Clone) {
        let widest = stretches.clone().map(|s| s.len()).max().unwrap_or(0) * 2 * S::LANES;
        let mut scratch = std::mem::take(self.scratch);
        if scratch.len() * LINE < self.outs.len() * widest {
            scratch = zeroed((self.outs.len() * widest).div_ceil(LINE));
        }
        for chunks in stretches {
            let wide = values_mut(&mut scratch);
            for (row, wide) in self.outs.clone().zip(wide.chunks_exact_mut(widest.max(1))) {
                let start = row * self.inputs;
                let end = self.inputs.min(chunks.end * 2 * S::LANES);
                let part = start + chunks.start * 2 * S::LANES..start + end;
                if let Some(w) = self.w.as_f32() {
                    widen(s, &w[part], wide);
                } else if let Some(w) = self.w.as_bf16() {
                    widen(s, &w[part], wide);
                } else if let Some(w) = self.w.as_f16() {
                    widen(s, &w[part], wide);
                }
            }
            let w = scratch.as_ptr().cast::<f32>();
            // SAFETY: the scratch holds the weights of all outputs over these chunks.
            unsafe { self.sweep::<S, f32, 0>(s, w, widest, &chunks, 0..self.outs.len(), w) };
        }
        *self.scratch = scratch;
    }

    /// All rows × `outs` (counted from the first of the macro-tile) over some chunks of the inputs,
    /// prefetching `AHEAD` lines a chunk from `next` on.
    /// # Safety
    /// `w` holds rows of at least `chunks.len()` chunks, `ldw` apart, for all `outs`.
    #[inline(always)]
    unsafe fn sweep<S: Simd, E: Element, const AHEAD: usize>(
        &self,
        s: S,
        w: *const E,
        ldw: usize,
        chunks: &Range<usize>,
        outs: Range<usize>,
        next: *const E,
    ) {
        let tiles = self.rows.len().div_ceil(E::ROWS.min(S::ROWS));
        for tile in 0..tiles {
            let first = self.rows.start + tile * self.rows.len() / tiles;
            let last = self.rows.start + (tile + 1) * self.rows.len() / tiles;
            let done = (chunks.start * tiles + tile * chunks.len()) * AHEAD * LINE_BYTES;
            // SAFETY: rows lie in x and y; x has whole chunks; w as promised by the caller.
            unsafe {
                let x = self.x.data.as_ptr();
                let mut tile = MicroTile {
                    x: x.add(first * self.x.width + chunks.start * 2 * S::LANES),
                    ldx: self.x.width,
                    w,
                    ldw,
                    y: self.y.at(first * self.outputs + self.outs.start + outs.start),
                    ldy: self.outputs,
                    chunks: chunks.len(),
                    next: next.cast::<u8>().wrapping_add(done),
                };
                let mut left = outs.len();
                while left >= 4 {
                    tile.rows::<S, 4, AHEAD>(s, last - first);
                    tile.w = tile.w.add(4 * ldw);
                    tile.y = tile.y.add(4);
                    left -= 4;
                }
                for _ in 0..left {
                    tile.rows::<S, 1, 0>(s, last - first);
                    tile.w = tile.w.add(ldw);
                    tile.y = tile.y.add(1);
                }
            }
        }
    }
}
