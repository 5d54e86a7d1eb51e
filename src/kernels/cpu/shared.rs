//! Activations that the chunks of a parallel region write.

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
        Self(tensor.data_mut().as_mut_ptr())
    }

    /// Where value `start` lies.
    /// # Safety
    /// It must lie in the tensor, which must live, and be no other chunk's.
    #[inline(always)]
    pub(super) unsafe fn at(&self, start: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(start) }
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
