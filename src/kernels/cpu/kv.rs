//! Keys and values of all sequences and layers, in blocks of [`KV_BLOCK`] tokens that are allocated
//! once. Sequences hold lists of blocks, so they grow without copying.
//!
//! Layout per block, layer and head: keys transposed `[head_dim, KV_BLOCK]` (the scores of a block's
//! tokens then come out side by side), values `[KV_BLOCK, head_dim]`. Blocks come first, so that only
//! as much memory is committed as tokens were ever held at once.

use std::ops::Range;

use memmap2::MmapMut;

use crate::kernels::{Dtype, KV_BLOCK, KernelError, KvShape, Result, Stored};

/// The cache of [`super::CpuKernels`].
#[derive(Debug)]
pub struct KvPool {
    shape: KvShape,
    memory: MmapMut,
}

impl KvPool {
    /// Reserves the whole pool; pages are committed as blocks are first used.
    pub fn new(shape: KvShape) -> Result<Self> {
        if !matches!(shape.dtype, Dtype::F32 | Dtype::Bf16) {
            return Err(KernelError::Dtype { op: "kv pool", dtype: shape.dtype.to_string() });
        }
        let bytes = shape.block_bytes().and_then(|bytes| bytes.checked_mul(shape.blocks));
        let memory = bytes
            .ok_or_else(|| std::io::Error::other("the size overflows"))
            .and_then(|bytes| MmapMut::map_anon(bytes.max(1)))
            .map_err(|source| KernelError::Memory { op: "kv pool", bytes, source })?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage); // only a hint
        Ok(Self { shape, memory })
    }

    /// Size of the pool.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Elements of one head of one block: keys, then as many values.
    fn head_elements(&self) -> usize {
        2 * KV_BLOCK * self.shape.head_dim
    }

    /// Keys and values as one slice of elements. `T` must be the pool's storage type.
    fn elements<T: Stored>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.shape.dtype);
        let len = self.memory.len() / size_of::<T>();
        // SAFETY: the map is page-aligned and holds `len` elements of which every bit pattern is
        // valid; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), len) }
    }

    /// One layer of all blocks. `T` must be the pool's storage type, `layer` one of its layers.
    pub(super) fn layer<T: Stored>(&mut self, layer: usize) -> KvLayer<'_, T> {
        let KvShape { layers, kv_heads, head_dim, .. } = self.shape;
        assert!(layer < layers, "layer {layer} of {layers}");
        let size = kv_heads * self.head_elements();
        let (first, stride) = (layer * size, layers * size);
        KvLayer { elements: self.elements(), first, stride, head_dim }
    }
}

/// One layer of a pool.
pub(super) struct KvLayer<'a, T> {
    elements: &'a mut [T],
    /// The layer's first element of block 0.
    first: usize,
    /// Elements from a block to the next.
    stride: usize,
    head_dim: usize,
}

impl<T: Stored> KvLayer<'_, T> {
    /// Elements of a head of a block: keys, then as many values.
    fn place(&self, block: u32, head: usize) -> Range<usize> {
        let size = 2 * KV_BLOCK * self.head_dim;
        let start = self.first + block as usize * self.stride + head * size;
        start..start + size
    }

    /// Keys `[head_dim, KV_BLOCK]` and values `[KV_BLOCK, head_dim]` of a head of a block.
    pub(super) fn head(&self, block: u32, head: usize) -> (&[T], &[T]) {
        self.elements[self.place(block, head)].split_at(KV_BLOCK * self.head_dim)
    }

    /// Stores the key and value rows `[kv_heads · head_dim]` of the token in `slot` of `block`.
    pub(super) fn store(&mut self, block: u32, slot: usize, k: &[f32], v: &[f32]) {
        let rows = k.chunks_exact(self.head_dim).zip(v.chunks_exact(self.head_dim));
        for (head, (k, v)) in rows.enumerate() {
            let place = self.place(block, head);
            let (keys, values) = self.elements[place].split_at_mut(KV_BLOCK * self.head_dim);
            for (key, &k) in keys[slot..].iter_mut().step_by(KV_BLOCK).zip(k) {
                *key = T::narrow(k);
            }
            let slot = &mut values[slot * self.head_dim..(slot + 1) * self.head_dim];
            for (value, &v) in slot.iter_mut().zip(v) {
                *value = T::narrow(v);
            }
        }
    }
}
