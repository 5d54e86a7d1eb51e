//! The arithmetic of products with frozen weights.

use std::collections::BTreeMap;

use ladle::{
    kernels::{Dtype, HostTensor, Result, cpu::CpuKernels},
    simd::Isa,
};
use serde::{Deserialize, Serialize};

/// What products with frozen weights are computed in, of rollouts, reference and updates alike. Adapters,
/// sums, attention, losses and the optimiser are in f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Weights are rounded to bf16, and where the processor multiplies in bf16 so are their inputs and
    /// the gradients that go back through them: mixed precision. Needs as much memory again for the
    /// weights as f32 does, since the backward reads them transposed.
    Bf16,
}

impl Precision {
    /// Whether it is left out of a configuration.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The storage type of frozen weights that a supervised adapter has changed.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// The frozen weights as products read them: [`Self::Bf16`] rounds every matrix.
    pub fn frozen(
        self,
        weights: BTreeMap<String, HostTensor>,
    ) -> Result<BTreeMap<String, HostTensor>> {
        let rounded = |(name, tensor): (String, HostTensor)| {
            let exact = self == Self::F32 || tensor.dtype() == Dtype::Bf16;
            if exact || tensor.shape().len() != 2 {
                return Ok((name, tensor));
            }
            let shape = tensor.shape().to_vec();
            Ok((name, HostTensor::rounded(&tensor.to_f32(), Dtype::Bf16, shape)?))
        };
        weights.into_iter().map(rounded).collect()
    }

    /// Kernels on as many threads as rayon and candle use: RAYON_NUM_THREADS bounds all of them.
    pub fn kernels(self) -> CpuKernels {
        let threads = rayon::current_num_threads();
        match self {
            Self::F32 => CpuKernels::new(threads),
            Self::Bf16 => CpuKernels::with_isa(threads, Isa::chosen()),
        }
    }
}
