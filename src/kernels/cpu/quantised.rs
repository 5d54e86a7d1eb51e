//! Products with quantised weights: `y (+)= x Wᵀ`, W in the blocks of [`crate::kernels::quantised`].
//!
//! Each row of x is rounded, block by block of the weights' length, to signed bytes q of one scale e
//! (the largest magnitude becomes 127), so that with a weight's `d · (u − z)` or `d · u + m`
//!
//! `y = Σ_blocks e·d·(Σ u·q − z·Σ q) [+ m·e·Σ q]`:
//!
//! whole sums of bytes, exact in 32 bits, and per block and output one multiply-add in f32. Blocks
//! are added in order whatever the tile and instruction set, so a row's result does not depend on
//! the other rows. The rounding of x changes a product by at most half an e per weight's magnitude.

use std::ops::Range;

use super::{
    gemm::{Arithmetic, LinearJob},
    pool::{Pool, in_streams},
    shared::SharedMut,
    tensor::{Recycler, Rows, Tensor},
    tile::AHEAD_BYTES,
};
use crate::{
    kernels::{
        BlockType, HostTensor,
        quantised::{CODEBOOK, GROUP, Group},
    },
    simd::{ByteTile, ByteWork, Bytes, Isa, Lanes, Simd, Vectorised},
};

/// Groups of sixteen outputs in a task.
const TASK_GROUPS: usize = 2;
/// Rows (at most) of a task.
const TASK_ROWS: usize = 192;
/// Inputs (at most, but a block) between two visits to y: a group's weights of them stay in the
/// first-level cache while all rows go by.
const STRETCH: usize = 768;
/// The numbers of the codebook as unsigned bytes.
const TABLE: [u8; 16] = {
    let (mut table, mut i) = ([0; 16], 0);
    while i < 16 {
        table[i] = CODEBOOK[i].cast_unsigned() ^ 0x80;
        i += 1;
    }
    table
};

/// Products cut into tasks.
pub(super) struct QuantisedProducts<'a> {
    isa: Isa,
    threads: usize,
    inputs: Vec<Rounded<'a>>,
    grids: Vec<Grid<'a>>,
    /// Number of tasks.
    pub(super) tasks: usize,
}

impl<'a> QuantisedProducts<'a> {
    /// Rounds the inputs of jobs whose weights are quantised, and cuts the jobs.
    pub(super) fn new(
        isa: Isa,
        pool: &Pool,
        buffers: &std::sync::Arc<Recycler>,
        jobs: &mut [LinearJob<'a>],
    ) -> Self {
        let threads = pool.threads();
        let mut plan = Self { isa, threads, inputs: Vec::new(), grids: Vec::new(), tasks: 0 };
        for job in jobs {
            let Some(Arithmetic::Bytes(kind)) = job.arithmetic(isa) else { continue };
            let (rows, inputs, outputs) = (job.x.rows, job.x.width, job.outputs);
            let form = Form { values: kind.values(), zero: kind.zero() };
            let same = |r: &Rounded<'_>| r.x.is(&job.x) && r.form == form;
            let input = plan.inputs.iter().position(same).unwrap_or_else(|| {
                plan.inputs.push(Rounded::new(isa, pool, buffers, job.x, form));
                plan.inputs.len() - 1
            });
            let row_tasks = rows.div_ceil(TASK_ROWS);
            plan.tasks += row_tasks * (outputs / GROUP).div_ceil(TASK_GROUPS);
            plan.grids.push(Grid {
                input,
                w: job.w,
                kind,
                y: SharedMut::of(job.y),
                rows,
                inputs,
                outputs,
                fresh: job.fresh,
                row_tasks,
                end: plan.tasks,
            });
        }
        plan
    }

    /// Does one task. Every task must be run exactly once.
    pub(super) fn run(&self, task: usize) {
        let Some(index) = self.grids.iter().position(|grid| task < grid.end) else { return };
        let first = if index == 0 { 0 } else { self.grids[index - 1].end };
        let grid = &self.grids[index];
        let task = in_streams(task - first, grid.end - first, self.threads);
        let (row, group) = (task % grid.row_tasks, task / grid.row_tasks);
        let step = grid.rows.div_ceil(grid.row_tasks);
        let groups = group * TASK_GROUPS..(grid.outputs / GROUP).min((group + 1) * TASK_GROUPS);
        let rows = row * step..grid.rows.min((row + 1) * step);
        let part = ByteTask { grid, x: &self.inputs[grid.input].packed, groups, rows };
        match grid.kind {
            BlockType::Q8_0 => self.isa.run_bytes(Codes::<{ BlockType::Q8_0 as usize }>(part)),
            BlockType::Q4_0 => self.isa.run_bytes(Codes::<{ BlockType::Q4_0 as usize }>(part)),
            BlockType::Q4_1 => self.isa.run_bytes(Codes::<{ BlockType::Q4_1 as usize }>(part)),
            BlockType::Q5_0 => self.isa.run_bytes(Codes::<{ BlockType::Q5_0 as usize }>(part)),
            BlockType::Q5_1 => self.isa.run_bytes(Codes::<{ BlockType::Q5_1 as usize }>(part)),
            BlockType::Q6 => self.isa.run_bytes(Codes::<{ BlockType::Q6 as usize }>(part)),
            BlockType::Iq4Nl => self.isa.run_bytes(Codes::<{ BlockType::Iq4Nl as usize }>(part)),
        }
    }
}

/// How inputs are rounded: values of a block, and z.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Form {
    values: usize,
    zero: i32,
}

impl Form {
    /// Words of a packed row.
    fn width(self, inputs: usize) -> usize {
        inputs / 4 + 3 * (inputs / self.values)
    }
}

/// Rows of inputs as bytes. A packed row holds, in words of 32 bits: the codes, four to a word; the
/// scale e of each block; −z·Σq of each block (i32); e·Σq of each block.
struct Rounded<'a> {
    x: Rows<'a>,
    form: Form,
    packed: Tensor,
}

impl<'a> Rounded<'a> {
    fn new(
        isa: Isa,
        pool: &Pool,
        buffers: &std::sync::Arc<Recycler>,
        x: Rows<'a>,
        form: Form,
    ) -> Self {
        let Rows { data: values, rows, width: inputs } = x;
        let width = form.width(inputs);
        let mut packed = buffers.stale(rows, width);
        // Rounding a few rows is cheaper than waking a thread.
        let step = if rows < 16 { rows } else { rows.div_ceil(4 * pool.threads()) };
        let out = SharedMut::new(&mut packed);
        pool.run(rows.div_ceil(step), |task| {
            let rows = task * step..rows.min((task + 1) * step);
            // SAFETY: these rows are this task's alone.
            let packed = unsafe { out.slice(rows.start * width, rows.len() * width) };
            let x = &values[rows.start * inputs..rows.end * inputs];
            match form.values {
                16 => isa.run(Round::<16> { x, packed, inputs, form }),
                _ => isa.run(Round::<32> { x, packed, inputs, form }),
            }
        });
        Self { x, form, packed }
    }
}

/// Rounds rows in blocks of `VALUES`.
struct Round<'a, const VALUES: usize> {
    x: &'a [f32],
    packed: &'a mut [f32],
    inputs: usize,
    form: Form,
}

impl<const VALUES: usize> Vectorised for Round<'_, VALUES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (width, blocks) = (self.form.width(self.inputs), self.inputs / VALUES);
        let rows = self.x.chunks_exact(self.inputs).zip(self.packed.chunks_exact_mut(width));
        for (x, packed) in rows {
            let (codes, sums) = packed.split_at_mut(self.inputs / 4);
            for (block, x) in x.chunks_exact(VALUES).enumerate() {
                // As integers, magnitudes have the same order, and NaN is the largest.
                let most = x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
                let most = f32::from_bits(most);
                let scale = most / 127.0;
                let inverse = if most > f32::MIN_POSITIVE * 256.0 { 127.0 / most } else { 0.0 };
                // The sum of this and a small number has the nearest integer in its low bits.
                const MAGIC: f32 = 12_582_912.0;
                let mut rounded = [0i8; VALUES];
                for (q, &x) in rounded.iter_mut().zip(x) {
                    *q = (x * inverse + MAGIC).to_bits() as i8;
                }
                let sum: i32 = rounded.iter().map(|&q| i32::from(q)).sum();
                for (word, q) in codes[block * VALUES / 4..].iter_mut().zip(rounded.chunks_exact(4))
                {
                    let bytes = [q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8];
                    *word = f32::from_bits(u32::from_le_bytes(bytes));
                }
                sums[block] = scale;
                sums[blocks + block] = f32::from_bits((-self.form.zero * sum) as u32);
                sums[2 * blocks + block] = scale * sum as f32;
            }
        }
    }
}

/// One job cut into groups of outputs × rows.
struct Grid<'a> {
    input: usize,
    w: &'a HostTensor,
    kind: BlockType,
    y: SharedMut,
    rows: usize,
    inputs: usize,
    outputs: usize,
    fresh: bool,
    row_tasks: usize,
    /// One past the last task of this job.
    end: usize,
}

/// Some groups of outputs of some rows.
struct ByteTask<'a> {
    grid: &'a Grid<'a>,
    x: &'a Tensor,
    groups: Range<usize>,
    rows: Range<usize>,
}

/// A task whose blocks are of the type of that number in [`BlockType::ALL`].
struct Codes<'a, const KIND: usize>(ByteTask<'a>);

impl<const KIND: usize> ByteWork for Codes<'_, KIND> {
    type Output = ();

    #[inline(always)]
    fn run<B: Bytes>(self, b: B) {
        let ByteTask { grid, x, groups, rows } = self.0;
        let blocks = grid.inputs / grid.kind.values();
        let stretches = grid.inputs.div_ceil(STRETCH);
        let tiles = rows.len().div_ceil(B::ROWS);
        for group in groups {
            let w = grid.kind.group(grid.w.bytes(), grid.inputs, group);
            for stretch in 0..stretches {
                let part = stretch * blocks / stretches..(stretch + 1) * blocks / stretches;
                for tile in 0..tiles {
                    let first = rows.start + tile * rows.len() / tiles;
                    let last = rows.start + (tile + 1) * rows.len() / tiles;
                    // SAFETY: these rows × outputs are inside y and written by this task alone; the packed
                    // rows and the group have all blocks.
                    unsafe {
                        let tile = GroupTile::<KIND> {
                            x: x.data().as_ptr().add(first * x.width()).cast(),
                            ldx: x.width(),
                            inputs: grid.inputs,
                            w,
                            blocks: part.clone(),
                            y: grid.y.at(first * grid.outputs + group * GROUP),
                            ldy: grid.outputs,
                            fresh: grid.fresh && stretch == 0,
                            ahead: if tile == 0 { AHEAD_BYTES } else { 0 },
                        };
                        b.tile(last - first, &tile);
                    }
                }
            }
        }
    }
}

/// A micro-tile: some rows × sixteen outputs over some blocks of inputs.
struct GroupTile<'a, const KIND: usize> {
    x: *const u32,
    ldx: usize,
    inputs: usize,
    w: Group<'a>,
    blocks: Range<usize>,
    y: *mut f32,
    ldy: usize,
    fresh: bool,
    /// Distance in bytes of the prefetches of more than two rows; 0 for all but the first tile, whose
    /// prefetches serve all. With a branch instead the compiler loads all of x before it, onto the
    /// stack.
    ahead: usize,
}

impl<const KIND: usize> ByteTile for GroupTile<'_, KIND> {
    type Output = ();

    /// # Safety
    /// `x` holds R packed rows of `inputs`, `w` all blocks of a group, `y` R rows of sixteen values
    /// that this task alone writes.
    #[inline(always)]
    unsafe fn run<B: Bytes, const R: usize, const V: usize>(&self, b: B) {
        let (s, lanes) = (b.vectors(), B::S::LANES);
        let kind = const { BlockType::ALL[KIND] };
        let (values, runs, above) = (kind.values(), kind.code_bytes() / 4, kind.upper_bits());
        let all = self.inputs / values;
        let mut sums = [[s.splat(0.0); V]; R];
        // SAFETY: the caller's; every offset below is inside those.
        unsafe {
            if !self.fresh {
                for r in 0..R {
                    for v in 0..V {
                        sums[r][v] = s.load(self.y.add(r * self.ldy + v * lanes));
                    }
                }
            }
            for block in self.blocks.clone() {
                let bits = |r: usize, at: usize| *self.x.add(r * self.ldx + at) as i32;
                let float = |r: usize, at: usize| s.splat(f32::from_bits(bits(r, at) as u32));
                let scale_at = self.inputs / 4 + block;
                let mut ints = [[b.sums(0); V]; R];
                for r in 0..R {
                    ints[r] = [b.sums(bits(r, scale_at + all)); V];
                }
                for run in 0..runs {
                    let at = (block * runs + run) * 4 * GROUP;
                    let codes = self.w.codes.as_ptr().add(at);
                    let ahead = if R <= 2 { AHEAD_BYTES } else { self.ahead };
                    s.prefetch_far(codes.wrapping_add(ahead));
                    let x = block * values / 4 + run;
                    for v in 0..V {
                        let codes = b.codes(codes.add(4 * v * lanes));
                        if kind.is_in_halves() {
                            let (mut low, mut high) = (b.low(codes), b.high(codes));
                            if above > 0 {
                                let at = 4 * (block * GROUP + v * lanes);
                                let upper = b.codes(self.w.upper.as_ptr().add(at));
                                let (left, mask) = (4 - above * run, ((1 << above) - 1) << 4);
                                low = b.over(low, b.low(upper), left as u32, mask);
                                high = b.over(high, b.high(upper), left as u32, mask);
                            }
                            if kind.has_codebook() {
                                (low, high) = (b.look_up(low, &TABLE), b.look_up(high, &TABLE));
                            }
                            for r in 0..R {
                                ints[r][v] = b.dot(ints[r][v], low, bits(r, x));
                                ints[r][v] = b.dot(ints[r][v], high, bits(r, x + runs));
                            }
                        } else {
                            for r in 0..R {
                                ints[r][v] = b.dot(ints[r][v], codes, bits(r, x));
                            }
                        }
                    }
                }
                for v in 0..V {
                    let at = 2 * (block * GROUP + v * lanes);
                    let scale = s.load_f16(self.w.scales.as_ptr().add(at).cast());
                    for r in 0..R {
                        let whole = s.mul(b.widen(ints[r][v]), float(r, scale_at));
                        sums[r][v] = s.fma(whole, scale, sums[r][v]);
                    }
                    if kind.has_minima() {
                        let minimum = s.load_f16(self.w.minima.as_ptr().add(at).cast());
                        for r in 0..R {
                            sums[r][v] = s.fma(minimum, float(r, scale_at + 2 * all), sums[r][v]);
                        }
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    s.store(self.y.add(r * self.ldy + v * lanes), sums[r][v]);
                }
            }
        }
    }
}
