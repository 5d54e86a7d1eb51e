//! Size of a cache of keys and values, for every set of kernels.

use std::fmt;

use super::Dtype;

/// Tokens in a block of the cache.
pub const KV_BLOCK: usize = 16;

/// Storage type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// Floats: f32 or bf16, on a GPU f16 too.
    Plain(Dtype),
    /// Integers −127..=127 with an f32 scale for the key and one for the value of each token and head:
    /// `x ≈ scale · round(x / scale)`, `scale = max |x| / 127`.
    Int8,
}

impl From<Dtype> for KvDtype {
    fn from(dtype: Dtype) -> Self {
        Self::Plain(dtype)
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Int8 => f.write_str("int8"),
        }
    }
}

/// Size of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Blocks of [`KV_BLOCK`] tokens, shared by all sequences.
    pub blocks: usize,
    /// Storage type.
    pub dtype: KvDtype,
}

impl KvShape {
    /// Bytes of a head of a block: keys, as many values, and for int8 the scales of both; `None` where
    /// that overflows.
    pub fn head_bytes(&self) -> Option<usize> {
        let row = match self.dtype {
            KvDtype::Plain(dtype) => self.head_dim.checked_mul(dtype.size()),
            KvDtype::Int8 => self.head_dim.checked_add(size_of::<f32>()),
        };
        row?.checked_mul(2 * KV_BLOCK)
    }

    /// Bytes that one block takes over all layers; `None` where that overflows.
    pub fn block_bytes(&self) -> Option<usize> {
        self.head_bytes()?.checked_mul(self.layers)?.checked_mul(self.kv_heads)
    }
}
