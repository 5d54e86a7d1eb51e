//! Keys and values of all sequences and layers, in blocks of [`KV_BLOCK`] tokens that are allocated
//! once. Sequences hold lists of blocks, so they grow without copying.
//!
//! Layout per block, layer and head: keys transposed `[head_dim, KV_BLOCK]` (the scores of a block's
//! tokens then come out side by side), values `[KV_BLOCK, head_dim]`, and for int8 f32 scales of the keys
//! and of the values, `[KV_BLOCK]` each. Blocks come first, so that only as much memory is committed as
//! tokens were ever held at once.

use std::ops::Range;

use half::bf16;
use memmap2::MmapMut;

use super::{pool::Pool, tensor::Tensor};
use crate::{
    kernels::{Dtype, KV_BLOCK, KernelError, KvDtype, KvShape, Result, Segment},
    memory,
    simd::{Element, Isa, Simd, Vectorised},
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
        match shape.dtype {
            KvDtype::Plain(Dtype::F32 | Dtype::Bf16) | KvDtype::Int8 => {}
            other => {
                return Err(KernelError::Dtype { op: "kv pool", dtype: other.to_string() });
            }
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

    /// One layer of all blocks. `T` must be the pool's storage type, `layer` one of its layers.
    pub(super) fn layer<T: Stored>(&mut self, layer: usize) -> KvLayer<'_, T> {
        let KvShape { layers, kv_heads, head_dim, .. } = self.shape;
        assert_eq!(T::DTYPE, self.shape.dtype);
        assert!(layer < layers, "layer {layer} of {layers}");
        let len = self.memory.len() / size_of::<T>();
        // SAFETY: the map is page-aligned and holds `len` elements of which every bit pattern is
        // valid; the borrow is exclusive.
        let elements =
            unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast::<T>(), len) };
        let head = 2 * KV_BLOCK * (head_dim + T::SCALE);
        let size = kv_heads * head;
        KvLayer { elements, first: layer * size, stride: layers * size, head, head_dim }
    }
}

/// A storage type of keys and values.
///
/// # Safety
/// Every bit pattern is a value, and the alignment is at most f32's.
pub(super) unsafe trait Stored: Copy + Send + Sync + 'static {
    /// Its name.
    const DTYPE: KvDtype;
    /// Elements that the scale of a row takes; 0: there is none.
    const SCALE: usize;

    /// Stored value, before its scale.
    fn widen(self) -> f32;
    /// The same rounded to bf16, exact where the type is no wider.
    fn brain(self) -> bf16;
    /// The values, where they are stored in bf16.
    fn brains(values: &[Self]) -> Option<&[bf16]>;
    /// Nearest stored value to `value · inverse`.
    fn narrow(value: f32, inverse: f32) -> Self;
    /// LANES values, widened.
    /// # Safety
    /// `p` must be readable for LANES values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
}

macro_rules! plain {
    ($($type:ty: $dtype:ident, $brains:expr);*) => {$(
        // SAFETY: every bit pattern is a value, by `Element`.
        unsafe impl Stored for $type {
            const DTYPE: KvDtype = KvDtype::Plain(Dtype::$dtype);
            const SCALE: usize = 0;

            #[inline(always)]
            fn widen(self) -> f32 {
                Element::widen(self)
            }
            #[inline(always)]
            fn brain(self) -> bf16 {
                bf16::from_f32(Element::widen(self))
            }
            #[inline(always)]
            fn brains(values: &[Self]) -> Option<&[bf16]> {
                let brains: fn(&[Self]) -> Option<&[bf16]> = $brains;
                brains(values)
            }
            #[inline(always)]
            fn narrow(value: f32, _: f32) -> Self {
                Element::narrow(value)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
                // SAFETY: the caller's.
                unsafe { Element::load(s, p) }
            }
        }
    )*};
}
plain!(f32: F32, |_| None; bf16: Bf16, |values| Some(values));

// SAFETY: every byte is an i8.
unsafe impl Stored for i8 {
    const DTYPE: KvDtype = KvDtype::Int8;
    const SCALE: usize = size_of::<f32>();

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    fn brain(self) -> bf16 {
        // A byte has no bits below those of a bf16.
        bf16::from_bits((f32::from(self).to_bits() >> 16) as u16)
    }
    #[inline(always)]
    fn brains(_: &[Self]) -> Option<&[bf16]> {
        None
    }
    #[inline(always)]
    fn narrow(value: f32, inverse: f32) -> Self {
        (value * inverse).round_ties_even() as Self
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        let mut wide = [0.0; KV_BLOCK];
        for (lane, wide) in wide.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: the caller's.
            *wide = f32::from(unsafe { *p.add(lane) });
        }
        // SAFETY: the array holds LANES values.
        unsafe { s.load(wide.as_ptr()) }
    }
}

/// One layer of a pool.
pub(super) struct KvLayer<'a, T> {
    elements: &'a mut [T],
    /// The layer's first element of block 0.
    first: usize,
    /// Elements from a block to the next.
    stride: usize,
    /// Elements of a head of a block.
    head: usize,
    head_dim: usize,
}

impl<T: Stored> KvLayer<'_, T> {
    fn place(&self, block: u32, head: usize) -> Range<usize> {
        let start = self.first + block as usize * self.stride + head * self.head;
        start..start + self.head
    }

    /// Keys `[head_dim, KV_BLOCK]` and values `[KV_BLOCK, head_dim]` of a head of a block.
    pub(super) fn head(&self, block: u32, head: usize) -> (&[T], &[T]) {
        let size = KV_BLOCK * self.head_dim;
        let (keys, rest) = self.elements[self.place(block, head)].split_at(size);
        (keys, &rest[..size])
    }

    /// Scales of the keys and of the values of a head of a block, where the type has them.
    #[inline(always)]
    pub(super) fn scales(&self, block: u32, head: usize) -> Option<[&[f32; KV_BLOCK]; 2]> {
        if T::SCALE == 0 {
            return None;
        }
        let scales = &self.elements[self.place(block, head)][2 * KV_BLOCK * self.head_dim..];
        let scales = scales.as_ptr().cast::<[f32; KV_BLOCK]>();
        // SAFETY: after the elements of a head, whose bytes are a multiple of f32's size in memory that
        // is aligned to a page, lie two arrays of scales.
        Some(unsafe { [&*scales, &*scales.add(1)] })
    }

    /// Stores the key and value rows `[kv_heads · head_dim]` of segments, whose blocks are the pool's.
    pub(super) fn store(
        &mut self,
        isa: Isa,
        pool: &Pool,
        [k, v]: [&Tensor; 2],
        segments: &[Segment],
    ) {
        let layer = Places {
            elements: self.elements.as_mut_ptr(),
            first: self.first,
            stride: self.stride,
            head: self.head,
            head_dim: self.head_dim,
        };
        let store = |task: usize| {
            let part = |part: usize| part * self.head_dim / PARTS;
            let columns = part(task % PARTS)..part(task % PARTS + 1);
            let (head, scales) = (task / PARTS, task.is_multiple_of(PARTS));
            isa.run(StoreTask { layer: &layer, k, v, segments, head, columns, scales });
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
    head: usize,
    head_dim: usize,
}

// SAFETY: each task writes columns that no other one touches.
unsafe impl<T: Stored> Sync for Places<T> {}

/// Some columns of a head of all rows.
struct StoreTask<'a, T> {
    layer: &'a Places<T>,
    k: &'a Tensor,
    v: &'a Tensor,
    segments: &'a [Segment],
    head: usize,
    columns: Range<usize>,
    /// Whether the task writes the scales of the rows.
    scales: bool,
}

impl<T: Stored> Vectorised for StoreTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { layer, head, columns, .. } = self;
        let head_dim = layer.head_dim;
        let size = KV_BLOCK * head_dim;
        for segment in self.segments {
            for (position, row) in (segment.cached..).zip(segment.rows.clone()) {
                let block = segment.blocks[position / KV_BLOCK] as usize;
                let start = layer.first + block * layer.stride + head * layer.head;
                let slot = position % KV_BLOCK;
                let from = row * self.k.width() + head * head_dim;
                let rows = [self.k, self.v].map(|t| &t.data()[from..from + head_dim]);
                let mut inverses = [1.0; 2];
                if T::SCALE != 0 {
                    let scales = rows.map(scale);
                    inverses = scales.map(|scale| if scale > 0.0 { 1.0 / scale } else { 0.0 });
                    if self.scales {
                        // SAFETY: the scales lie after the head's elements, and this task alone
                        // writes them.
                        unsafe {
                            let to = layer.elements.add(start + 2 * size).cast::<f32>();
                            to.add(slot).write(scales[0]);
                            to.add(KV_BLOCK + slot).write(scales[1]);
                        }
                    }
                }
                let [k, v] = rows.map(|row| &row[columns.clone()]);
                for ((column, k), v) in columns.clone().zip(k).zip(v) {
                    // SAFETY: the block is the pool's and the column the head's: inside the
                    // elements, which are borrowed for the layer's life; the column is this task's.
                    unsafe {
                        let key = layer.elements.add(start + column * KV_BLOCK + slot);
                        key.write(T::narrow(*k, inverses[0]));
                        let value = layer.elements.add(start + size + slot * head_dim + column);
                        value.write(T::narrow(*v, inverses[1]));
                    }
                }
            }
        }
    }
}

/// The scale of a row: its largest magnitude over 127; NaN where a value is.
#[inline(always)]
fn scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0f32, |max, x| if x.abs() > max { x.abs() } else { max });
    // A value that is not finite makes the sum so.
    let sum = row.iter().fold(0f32, |sum, x| sum + x * 0.0);
    largest / 127.0 + sum
}
