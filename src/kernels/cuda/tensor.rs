//! Activations, weights and keys and values in device memory.

use std::{any::Any, sync::Arc};

use super::{
    device::Device,
    memory::{Memory, Recycled},
};
use crate::kernels::{Dtype, KvShape, Result};

/// Activations `[rows, width]`, f32, row-major. Clones share memory until one of them is changed.
pub struct Tensor<D: Device> {
    pub(super) data: Arc<Recycled<D>>,
    /// The same rounded to the weights' type: what a product reads.
    pub(super) small: Option<Arc<Recycled<D>>>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<D: Device> Tensor<D> {
    pub(super) fn new(memory: &Memory<D>, rows: usize, width: usize) -> Result<Self> {
        let data = Arc::new(memory.take(rows * width * 4)?);
        Ok(Self { data, small: None, rows, width })
    }

    /// Token rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(super) fn len(&self) -> u64 {
        (self.rows * self.width) as u64
    }

    pub(super) fn address(&self) -> u64 {
        self.data.address()
    }

    /// Address of the rounded copy; 0 for none.
    pub(super) fn small_address(&self) -> u64 {
        self.small.as_ref().map_or(0, |small| small.address())
    }
}

impl<D: Device> Clone for Tensor<D> {
    fn clone(&self) -> Self {
        Self {
            data: self.data.clone(),
            small: self.small.clone(),
            rows: self.rows,
            width: self.width,
        }
    }
}

/// A parameter on the device: its own memory or a place in a merged model's.
#[derive(Clone)]
pub struct Weight {
    address: u64,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Keeps the memory.
    _memory: Arc<dyn Any + Send + Sync>,
}

impl Weight {
    /// A weight at `address`, which `memory` keeps valid for its size.
    pub fn new(
        address: u64,
        dtype: Dtype,
        shape: Vec<usize>,
        memory: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { address, dtype, shape, _memory: memory }
    }

    /// First byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Shape, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Keys and values of all sequences and layers. Layout per layer, block and head: keys
/// `[KV_BLOCK, head_dim]`, values transposed `[head_dim, KV_BLOCK]`.
pub struct KvCache<D: Device> {
    pub(super) shape: KvShape,
    /// Bytes of one layer.
    pub(super) layer: usize,
    pub(super) address: u64,
    _buffer: D::Buffer,
}

impl<D: Device> KvCache<D> {
    /// Keeps `buffer`, which holds `shape` and is zeroed, so that what no token has written yet is
    /// a number.
    pub(super) fn new(shape: KvShape, layer: usize, address: u64, buffer: D::Buffer) -> Self {
        Self { shape, layer, address, _buffer: buffer }
    }

    /// Size of the cache.
    pub fn shape(&self) -> KvShape {
        self.shape
    }
}
