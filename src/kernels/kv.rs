//! Size of a cache of keys and values, for every set of kernels.

use super::Dtype;

/// Tokens in a block of the cache.
pub const KV_BLOCK: usize = 16;

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
    /// Storage type: f32 or bf16.
    pub dtype: Dtype,
}

impl KvShape {
    /// Bytes that one block takes over all layers; `None` where that overflows.
    pub fn block_bytes(&self) -> Option<usize> {
        [self.layers, self.kv_heads, self.head_dim, 2 * KV_BLOCK]
            .into_iter()
            .try_fold(self.dtype.size(), usize::checked_mul)
    }
}
