//! A panel of outputs of a low-rank layer, and the rows that are added to it.

use std::ops::Range;

use half::bf16;

use crate::{
    kernels::{
        HostTensor,
        cpu::{
            shared::SharedMut,
            tensor::{Line, Tensor},
        },
    },
    simd::TILE,
};

/// Outputs of a panel.
pub(in crate::kernels::cpu) const PANEL: usize = 64;
/// Vectors of outputs in a tile.
pub(super) const WIDTH: usize = 4;
/// Rows of the largest tile of vectors.
pub(super) const TILE_ROWS: usize = 6;
/// Rows of the largest tile of any kind.
pub(super) const MOST_ROWS: usize = 2 * TILE;

/// One job cut into panels × rows.
pub(super) struct Grid<'a> {
    pub(super) x: &'a Tensor,
    /// `x` rounded to bf16, where it is multiplied in bf16.
    pub(super) rounded: Option<Tensor>,
    pub(super) b: &'a HostTensor,
    pub(super) outputs: usize,
    pub(super) y: SharedMut,
    pub(super) panels: usize,
    /// Panels (at most) of a task.
    pub(super) together: usize,
    /// One past the last task of this job.
    pub(super) end: usize,
}

/// Some rows of some panels.
pub(super) struct Panels<'a> {
    pub(super) grid: &'a Grid<'a>,
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
    pub(super) scratch: &'a mut Vec<Line>,
}

/// Some rows of some panels, multiplied in bf16.
pub(super) struct NarrowPanels<'a> {
    pub(super) panels: Panels<'a>,
    /// The rows rounded to bf16, padded with zeros.
    pub(super) x: &'a Tensor,
    pub(super) b: &'a [bf16],
}

/// The sums of a panel. `add` must be `#[inline(always)]`, as [`Vectorised::run`].
pub(super) trait PanelSums {
    /// Adds the panel's sums of a tile's rows to `y`.
    /// # Safety
    /// `y` has as many rows of a panel, `ldy` apart, written by this task alone.
    unsafe fn add(&self, rows: Range<usize>, y: *mut f32, ldy: usize);
}

impl Panels<'_> {
    /// Elements of B in a panel.
    pub(super) fn range(&self, panel: usize) -> Range<usize> {
        let values = self.grid.x.width() * PANEL;
        panel * values..(panel + 1) * values
    }

    /// Adds a panel to `rows`, at most `height` at a time: in y, or in a buffer where y ends within the
    /// panel.
    #[inline(always)]
    pub(super) fn tiles(
        &self,
        panel: usize,
        rows: Range<usize>,
        height: usize,
        work: &impl PanelSums,
    ) {
        let (outputs, first) = (self.grid.outputs, panel * PANEL);
        let len = PANEL.min(outputs - first);
        let mut aside = [0.0f32; MOST_ROWS * PANEL];
        for start in rows.clone().step_by(height) {
            let rows = start..rows.end.min(start + height);
            // SAFETY: these rows and outputs of y are this panel's alone.
            let y = |row: usize| unsafe { self.grid.y.slice(row * outputs + first, len) };
            if len == PANEL {
                // SAFETY: the rows of y have a whole panel and lie `outputs` apart.
                unsafe { work.add(rows, y(start).as_mut_ptr(), outputs) };
                continue;
            }
            for (row, aside) in rows.clone().zip(aside.chunks_exact_mut(PANEL)) {
                aside[..len].copy_from_slice(y(row));
            }
            // SAFETY: `aside` holds as many rows of a panel.
            unsafe { work.add(rows.clone(), aside.as_mut_ptr(), PANEL) };
            for (row, aside) in rows.zip(aside.chunks_exact(PANEL)) {
                y(row).copy_from_slice(&aside[..len]);
            }
        }
    }
}
