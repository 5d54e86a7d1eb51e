//! What a product in bf16 is cut into, and the memory of its tasks.

use std::ops::Range;

use half::bf16;

use super::{
    shared::SharedMut,
    tensor::{LINE, Line, Tensor, brains_mut, values_mut, zeroed},
};

/// How the rows and outputs of a job are cut.
pub(super) struct Cut {
    /// Rows of a task (at most).
    pub(super) rows: usize,
    /// Outputs of a task (at most).
    pub(super) outputs: usize,
}

/// Some outputs of some rows: work of [`super::pairs`] or of [`super::tiles`].
pub(super) struct Task<'a> {
    pub(super) grid: &'a Grid<'a>,
    /// The rows rounded, as the work reads them.
    pub(super) x: &'a Tensor,
    pub(super) rows: Range<usize>,
    pub(super) outs: Range<usize>,
    pub(super) scratch: &'a mut Scratch,
}

/// Memory of a task.
#[derive(Default)]
pub(super) struct Scratch {
    /// Weights whose rows had to be padded.
    pub(super) padded: Vec<Line>,
    /// Sums that go on.
    pub(super) sums: Vec<Line>,
}

/// One job cut into outputs × rows.
pub(super) struct Grid<'a> {
    pub(super) input: usize,
    pub(super) w: &'a [bf16],
    pub(super) y: SharedMut,
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) fresh: bool,
    pub(super) row_tasks: usize,
    pub(super) cut: Cut,
    /// One past the last task of this job.
    pub(super) end: usize,
}

/// Rows of `inputs` weights, padded with zeros to `width` in the scratch.
pub(super) fn pad(w: &[bf16], inputs: usize, width: usize, scratch: &mut Vec<Line>) -> *const bf16 {
    reserve(scratch, (w.len() / inputs * width).div_ceil(2));
    let padded = brains_mut(values_mut(scratch)).chunks_exact_mut(width);
    for (w, padded) in w.chunks_exact(inputs).zip(padded) {
        padded[..inputs].copy_from_slice(w);
        padded[inputs..].fill(bf16::ZERO);
    }
    scratch.as_ptr().cast()
}

/// At least `values` values of a scratch.
pub(super) fn reserve(scratch: &mut Vec<Line>, values: usize) -> &mut [f32] {
    if scratch.len() * LINE < values {
        *scratch = zeroed(values.div_ceil(LINE));
    }
    &mut values_mut(scratch)[..values]
}
