//! Keys and values of all sequences and layers, in blocks of [`KV_BLOCK`] tokens that are allocated
//! once. Sequences hold lists of blocks, so they grow without copying.
//!
//! Layout per block, layer and head: keys transposed `[head_dim, KV_BLOCK]` (the scores of a block's
//! tokens then come out side by side), values `[KV_BLOCK, head_dim]`. Blocks come first, so that only
//! as much memory is committed as tokens were ever held at once.

use std::ops::Range;

use memmap2::MmapMut;

use super::{pool::Pool, tensor::Tensor};
use crate::{
    kernels::{Batch, Dtype, KV_BLOCK, KernelError, KvShape, Result, Stored},
    memory,
    simd::{Isa, Simd, Vectorised},
};

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
            .and_then(memory::huge)
            .map_err(|source| KernelError::Memory { op: "kv pool", bytes, source })?;
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

    /// Stores the key and value rows `[kv_heads · head_dim]` of a batch, whose blocks are the pool's.
    pub(super) fn store(&mut self, isa: Isa, pool: &Pool, [k, v]: [&Tensor; 2], batch: &Batch) {
        let layer = Places {
            elements: self.elements.as_mut_ptr(),
            first: self.first,
            stride: self.stride,
            head_dim: self.head_dim,
        };
        let store = |task: usize| {
            let part = |part: usize| part * self.head_dim / PARTS;
            let columns = part(task % PARTS)..part(task % PARTS + 1);
            isa.run(StoreTask { layer: &layer, k, v, batch, head: task / PARTS, columns });
        };
        let tasks = k.width() / self.head_dim * PARTS;
        // Storing a few rows is cheaper than waking a thread.
        if k.rows() < 32 { (0..tasks).for_each(store) } else { pool.run(tasks, store) }
    }
}

/// Number of tasks that the columns of a head are divided among.
const PARTS: usize = 4;

/// Where a layer's heads lie, for tasks that write different columns.
struct Places<T> {
    elements: *mut T,
    first: usize,
    stride: usize,
    head_dim: usize,
}

// SAFETY: each task writes columns that no other one touches.
unsafe impl<T: Stored> Sync for Places<T> {}

/// Some columns of a head of all rows.
struct StoreTask<'a, T> {
    layer: &'a Places<T>,
    k: &'a Tensor,
    v: &'a Tensor,
    batch: &'a Batch,
    head: usize,
    columns: Range<usize>,
}

impl<T: Stored> Vectorised for StoreTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { layer: &Places { elements, first, stride, head_dim }, head, columns, .. } = self;
        let size = KV_BLOCK * head_dim;
        for segment in &self.batch.segments {
            for (position, row) in (segment.cached..).zip(segment.rows.clone()) {
                let block = segment.blocks[position / KV_BLOCK] as usize;
                let (start, slot) = (first + block * stride + head * 2 * size, position % KV_BLOCK);
                let from = row * self.k.width() + head * head_dim;
                let [k, v] =
                    [self.k, self.v].map(|t| &t.data()[from..from + head_dim][columns.clone()]);
                for ((column, k), v) in columns.clone().zip(k).zip(v) {
                    // SAFETY: the block is the pool's and the column the head's: inside the
                    // elements, which are borrowed for the layer's life; the column is this task's.
                    unsafe {
                        let key = elements.add(start + column * KV_BLOCK + slot);
                        key.write(T::narrow(*k));
                        elements.add(start + size + slot * head_dim + column).write(T::narrow(*v));
                    }
                }
            }
        }
    }
}
