//! Activations on the CPU: f32 `[rows, width]` in 64-byte lines that are recycled, so that a steady
//! decode loop neither allocates nor touches fresh pages.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use half::bf16;

/// One cache line; the unit of allocation, so that rows of usual widths start on a line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line {
    _values: [f32; LINE],
}

/// Values in a [`Line`].
pub(super) const LINE: usize = 16;

/// `lines` lines of zeros.
pub(super) fn zeroed(lines: usize) -> Vec<Line> {
    vec![Line { _values: [0.0; LINE] }; lines]
}

/// The values of some lines.
pub(super) fn values(lines: &[Line]) -> &[f32] {
    // SAFETY: a Line is exactly LINE f32 without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE) }
}

/// The values of some lines, to write.
pub(super) fn values_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a Line is exactly LINE f32 without padding, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE) }
}

/// A buffer of f32 as twice as many bf16.
pub(super) fn brains(values: &[f32]) -> &[bf16] {
    // SAFETY: an f32 has the size of two bf16, of which every pattern is a value.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), 2 * values.len()) }
}

/// A buffer of f32 as twice as many bf16, to write.
pub(super) fn brains_mut(values: &mut [f32]) -> &mut [bf16] {
    // SAFETY: an f32 has the size of two bf16, every pattern of either is a value, and the borrow is
    // exclusive.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), 2 * values.len()) }
}

/// Freed buffers of each size class (powers of two lines).
type Free = [Vec<Vec<Line>>; usize::BITS as usize];

/// Takes buffers back and gives them out again.
pub(super) struct Recycler {
    free: Mutex<Free>,
}

impl Default for Recycler {
    fn default() -> Self {
        Self { free: Mutex::new([const { Vec::new() }; usize::BITS as usize]) }
    }
}

impl Recycler {
    /// A tensor whose contents are whatever its buffer last held.
    pub(super) fn stale(self: &Arc<Self>, rows: usize, width: usize) -> Tensor {
        let lines = rows.saturating_mul(width).div_ceil(LINE).max(1).next_power_of_two();
        let free = self.lock()[lines.trailing_zeros() as usize].pop();
        let lines = free.unwrap_or_else(|| zeroed(lines));
        Tensor { lines, rows, width, home: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        // The lists are only pushed to and popped from, so a panic cannot leave them inconsistent.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Activations `[rows, width]`, f32, row-major. Its buffer goes back to the kernels when dropped.
pub struct Tensor {
    lines: Vec<Line>,
    rows: usize,
    width: usize,
    home: Arc<Recycler>,
}

impl Tensor {
    /// Token rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All `rows × width` values.
    pub fn data(&self) -> &[f32] {
        &values(&self.lines)[..self.rows * self.width]
    }

    /// All `rows × width` values, to change.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut values_mut(&mut self.lines)[..self.rows * self.width]
    }

    /// One row; `None` past the last.
    pub fn row(&self, row: usize) -> Option<&[f32]> {
        self.data().chunks_exact(self.width).nth(row)
    }

    /// A tensor of the same shape and kernels, contents unspecified.
    pub(super) fn stale_like(&self) -> Self {
        self.home.stale(self.rows, self.width)
    }
}

/// Rows that a product reads, `[rows, width]`, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    /// Whether both are the same place in memory.
    pub(super) fn is(&self, other: &Rows<'_>) -> bool {
        std::ptr::eq(self.data, other.data) && self.width == other.width
    }
}

impl<'a> From<&'a Tensor> for Rows<'a> {
    fn from(x: &'a Tensor) -> Self {
        Self { data: x.data(), rows: x.rows, width: x.width }
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        let mut copy = self.stale_like();
        copy.data_mut().copy_from_slice(self.data());
        copy
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let lines = mem::take(&mut self.lines);
        self.home.lock()[lines.len().trailing_zeros() as usize].push(lines);
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor(f32 [{}, {}])", self.rows, self.width)
    }
}
