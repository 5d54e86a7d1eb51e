//! Products of tiles of bf16: what products of matrices are written over where a processor keeps
//! whole tiles in registers.

use half::bf16;

use super::{
    bf16::{Bf16Dots, tile},
    portable::Portable,
    vector::{Lanes, Run},
};

/// Rows of a tile, and columns of its sums (at most).
pub const TILE: usize = 16;
/// Inputs that one product of tiles sums over.
pub const TILE_INPUTS: usize = 32;

/// Products of tiles of bf16 with sums in f32, beside the dot products of the same processor.
pub trait Bf16Tiles: Copy + Send + Sync {
    /// The dot products.
    type D: Bf16Dots;
    /// Tile registers set to a shape. They are given back when it is dropped.
    type Shaped;

    /// The token of the dot products.
    fn dots(self) -> Self::D;
    /// Tile registers for left tiles of `rows` rows and right tiles of `columns` columns, both in
    /// 1..=[`TILE`]. A thread has one shape at a time.
    fn shaped(self, rows: usize, columns: usize) -> Self::Shaped;
    /// Rounds [`TILE_INPUTS`] values to nearest even. Subnormal ones may become 0, for which products
    /// take them anyway.
    /// # Safety
    /// `x` must be readable, `to` writable for as many values.
    unsafe fn round(self, x: *const f32, to: *mut bf16);
    /// `M` left tiles times `N` right ones, each 1 or 2. Every sum takes the products of
    /// [`TILE_INPUTS`] inputs at a time, in order, as [`tile`] adds them.
    /// # Safety
    /// `of` says what must be readable and writable.
    unsafe fn multiply<const M: usize, const N: usize>(shaped: &Self::Shaped, of: &TileProduct);
    /// `to[c, r] = from[r, c]`, or `+=` if `onto`, for a `shape` of rows × columns, both in
    /// 1..=[`TILE`]; rows lie `from.1` and `to.1` words apart.
    /// # Safety
    /// The words of `from` must be readable, those of `to` writable (and readable if `onto`).
    unsafe fn transpose(
        self,
        shape: [usize; 2],
        from: (*const f32, usize),
        to: (*mut f32, usize),
        onto: bool,
    );
}

/// A product of tiles. Distances are in bytes.
#[derive(Clone, Copy)]
pub struct TileProduct {
    /// The first left tile, rows of which lie `left_row` apart, each [`TILE_INPUTS`] values a step.
    pub left: *const bf16,
    /// Between two rows of a left tile.
    pub left_row: usize,
    /// Between two left tiles.
    pub left_tile: usize,
    /// The first right tile `[pair of inputs, column, 2]`, steps one after the other.
    pub right: *const bf16,
    /// Between two pairs of inputs of a right tile.
    pub right_row: usize,
    /// Between two right tiles.
    pub right_tile: usize,
    /// Number of steps, at least 1.
    pub steps: usize,
    /// The sums of the first tiles.
    pub sums: *mut f32,
    /// Between two rows of sums.
    pub sums_row: usize,
    /// Between the sums of two left tiles.
    pub sums_left: usize,
    /// Between the sums of two right tiles.
    pub sums_right: usize,
    /// Whether the sums start from 0, not from what `sums` holds.
    pub fresh: bool,
    /// What is prefetched meanwhile.
    pub ahead: Ahead,
}

/// Lines to prefetch in the steps of a product. Distances are in bytes.
#[derive(Clone, Copy)]
pub struct Ahead {
    /// The first.
    pub first: *const bf16,
    /// How many in each step.
    pub count: usize,
    /// Between two of a step.
    pub apart: usize,
    /// Between those of two steps.
    pub step: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Self = Self { first: std::ptr::null(), count: 0, apart: 0, step: 0 };
}

/// Work that an instruction set compiles with its features. `run` must be `#[inline(always)]`.
pub trait TileWork {
    /// Result of the work.
    type Output;
    /// Does the work.
    fn run<T: Bf16Tiles>(self, t: T) -> Self::Output;
}

/// [`TileWork`] as work for a token.
pub(super) struct OfTiles<W>(pub W);

impl<W: TileWork, T: Bf16Tiles> Run<T> for OfTiles<W> {
    type Output = W::Output;
    #[inline(always)]
    fn run(self, t: T) -> W::Output {
        self.0.run(t)
    }
}

/// The model replaces missing registers: correct, but slow.
impl Bf16Tiles for Portable {
    type D = Self;
    type Shaped = [usize; 2];

    fn dots(self) -> Self {
        self
    }
    fn shaped(self, rows: usize, columns: usize) -> [usize; 2] {
        [rows, columns]
    }
    unsafe fn round(self, x: *const f32, to: *mut bf16) {
        for at in (0..TILE_INPUTS).step_by(Self::LANES) {
            // SAFETY: the caller's; LANES divide a step.
            unsafe { self.store_bf16::<false>(to.add(at), self.load(x.add(at))) }
        }
    }
    unsafe fn multiply<const M: usize, const N: usize>(
        &[rows, columns]: &[usize; 2],
        of: &TileProduct,
    ) {
        for (m, n) in (0..M).flat_map(|m| (0..N).map(move |n| (m, n))) {
            // SAFETY: the caller's.
            unsafe {
                let to = of.sums.byte_add(m * of.sums_left + n * of.sums_right);
                let place = |i: usize| to.byte_add(i / columns * of.sums_row).add(i % columns);
                let mut sums = vec![0.0; rows * columns];
                if !of.fresh {
                    sums.iter_mut().enumerate().for_each(|(i, sum)| *sum = *place(i));
                }
                for step in 0..of.steps {
                    let left = of.left.byte_add(m * of.left_tile).add(step * TILE_INPUTS);
                    let right = of.right.byte_add(n * of.right_tile);
                    let right = right.byte_add(step * TILE_INPUTS / 2 * of.right_row);
                    let row = |p: *const bf16, distance: usize, row: usize, len: usize| {
                        std::slice::from_raw_parts(p.byte_add(row * distance), len)
                    };
                    let rows_of = |p, distance, rows: usize, len| -> Vec<bf16> {
                        (0..rows).flat_map(|i| row(p, distance, i, len)).copied().collect()
                    };
                    let a = rows_of(left, of.left_row, rows, TILE_INPUTS);
                    let b = rows_of(right, of.right_row, TILE_INPUTS / 2, 2 * columns);
                    tile(&mut sums, &a, &b, columns);
                }
                sums.into_iter().enumerate().for_each(|(i, sum)| *place(i) = sum);
            }
        }
    }
    unsafe fn transpose(
        self,
        [rows, columns]: [usize; 2],
        (from, ld_from): (*const f32, usize),
        (to, ld_to): (*mut f32, usize),
        onto: bool,
    ) {
        for (r, c) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
            // SAFETY: the caller's.
            unsafe {
                let (from, to) = (*from.add(r * ld_from + c), to.add(c * ld_to + r));
                *to = if onto { *to + from } else { from };
            }
        }
    }
}
