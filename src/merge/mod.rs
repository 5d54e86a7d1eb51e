//! From coefficients to weights.
//!
//! ```text
//! soup ─ plan ─┬─ dense ─ slab ─ fused ─ cache   the merged model of one c, shared by its requests
//!              └─ mixed                          one decoder for every c, coefficients per row
//! ```
//!
//! [`plan`] lists the terms of each tensor and their coefficients as functions of c. [`dense`]
//! computes the sums in one pass, into the recycled memory of [`slab`]; [`fused`] does it
//! for a whole model and [`cache`] keeps the results within a budget. [`mixed`] merges nothing: it
//! gives the decoder all the terms. [`export`] writes the merged model out for others. [`device`]
//! does on a GPU what [`dense`] and [`fused`] do on the CPU.

pub mod cache;
pub mod dense;
pub mod device;
pub mod export;
pub mod fused;
pub mod low_rank;
pub mod mixed;
pub mod plan;
pub mod slab;
mod sum;

pub use cache::{Build, Cache, CacheEvent, CacheStats, Fetch, Lease, Ticket};
pub use dense::Merger;
pub use fused::{FusedBuilder, FusedCache, FusedModel, FusedOptions, MergedModel};
pub use mixed::{mixed_decoder, mixed_decoder_of};
pub use plan::{PlanError, SoupPlan};
pub use slab::SlabError;

/// Why a merged model was not built.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The coefficients are not the soup's.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No memory for the merged weights.
    #[error(transparent)]
    Slab(#[from] SlabError),
    /// The GPU refused.
    #[error(transparent)]
    Device(#[from] crate::kernels::cuda::DeviceError),
    /// Weights could not be brought to the GPU.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::KernelError),
    /// Extrapolation, or weights of a wider type, carry a value past the largest of the storage type.
    #[error(
        "merged tensor {tensor}: element {at} leaves the range of {dtype}: choose a wider storage \
         type with --dtype (bf16 or f32), or coefficients nearer to the backbones"
    )]
    Range {
        tensor: String,
        dtype: crate::kernels::Dtype,
        /// Index of the first such element.
        at: usize,
    },
    /// A low-rank factor has a value past the largest of the type that a device multiplies in.
    #[error(
        "the low-rank factors of {tensor} hold {value}, which leaves the range of {dtype}, the type \
         that a GPU multiplies this soup in: expected values within ±65504, a base in bf16 or f32, \
         --merge-mode fused or --device cpu"
    )]
    FactorRange {
        /// The tensor that the factors change.
        tensor: String,
        value: f32,
        dtype: crate::kernels::Dtype,
    },
    /// A merged tensor is not what its layout says.
    #[error("merged tensor {tensor}: {source}")]
    Tensor { tensor: String, source: crate::kernels::host::HostError },
    /// The model asks for a tensor that was not merged.
    #[error("the merged model has no tensor {tensor}")]
    Missing { tensor: String },
    /// Quantised weights cannot be merged.
    #[error(
        "{tensor} of the base is {dtype}: quantised weights are not merged; serve this soup with \
         --merge-mode mixed (or auto), or on the base in bf16, f16 or f32"
    )]
    Quantised {
        /// A quantised tensor.
        tensor: String,
        dtype: crate::kernels::Dtype,
    },
    /// The budget does not hold a single model.
    #[error(
        "the budget for merged weights is {budget} bytes, expected at least {model} (one merged model)"
    )]
    Budget {
        /// The budget in bytes.
        budget: usize,
        /// One merged model in bytes.
        model: usize,
    },
    /// The threads of the merge could not be started.
    #[error("merge threads: {0}")]
    Threads(String),
    /// The build panicked; the panic was reported where it happened.
    #[error("merging panicked: {0}")]
    Panicked(String),
    /// The cache was closed before the build began.
    #[error("the cache of merged models was closed")]
    Closed,
}

impl MergeError {
    /// [`Self::Quantised`] where the plan has quantised weights.
    pub fn refuse_quantised(plan: &SoupPlan) -> Result<(), Self> {
        match plan.quantised() {
            None => Ok(()),
            Some((tensor, dtype)) => Err(Self::Quantised { tensor: tensor.to_owned(), dtype }),
        }
    }

    /// Whether the device is out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        use crate::kernels::cuda::DeviceError;
        match self {
            Self::Device(DeviceError::OutOfMemory { .. }) => true,
            Self::Kernel(error) => error.is_out_of_memory(),
            _ => false,
        }
    }
}
