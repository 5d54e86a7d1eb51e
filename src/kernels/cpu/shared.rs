//! Shared access to an activation whose parts are written by the chunks of a parallel region.

use super::tensor::Tensor;

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
        Self::of(tensor.data_mut())
    }

    /// A pointer to `values`.
    pub(super) fn of(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// The address of value `start`.
    /// # Safety
    /// It must lie in the values, which must be alive, and belong to this chunk alone.
    #[inline(always)]
    pub(super) unsafe fn at(&self, start: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(start) }
    }

    /// `len` values from `start` on.
    /// # Safety
    /// They must lie in the values, which must be alive, and belong to this chunk alone.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
