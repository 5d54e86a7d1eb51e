//! Why a soup cannot be served.

use super::{budget::NoRoom, placement::NoFit, start::StartError};
use crate::{
    kernels::{Dtype, KV_BLOCK, KernelError, cuda::DeviceError, host::shown},
    merge::MergeError,
};

/// Why a soup cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The weights do not make a model, or its decoders cannot be set up.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Key/value memory cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The GPU refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The GPU's memory does not hold the soup.
    #[error(transparent)]
    NoFit(#[from] NoFit),
    /// The memory that the process may have does not hold the soup.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A quantised base on a GPU.
    #[error(
        "{tensor} of the base is {dtype}: quantised weights are served on the CPU (--device cpu); a \
         GPU needs the base in bf16, f16 or f32"
    )]
    QuantisedOnGpu {
        /// A quantised tensor.
        tensor: String,
        dtype: Dtype,
    },
    /// An encoder–decoder model on a GPU.
    #[error(
        "{0}: the kernels of a GPU lack attention without a causal mask and biases by distance; \
         encoder–decoder models are served on the CPU (--device cpu)"
    )]
    EncoderOnGpu(String),
    /// The key/value budget holds no block.
    #[error(
        "the key/value budget is {budget} bytes, expected at least {block} bytes (one block of \
         {KV_BLOCK} tokens)",
        block = shown(*block)
    )]
    KvBudget {
        /// The budget in bytes.
        budget: usize,
        /// One block in bytes; `None` where that overflows.
        block: Option<usize>,
    },
    /// The engine does not start.
    #[error(transparent)]
    Start(#[from] StartError),
}
