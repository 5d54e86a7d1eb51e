//! The product with a frozen weight, with a gradient for the input only.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor,
    backend::BackendStorage, bail,
};

/// `x Wᵀ` for a frozen `W` `[out, in]`. candle's own matmul would compute and keep `∂W` as well,
/// which takes more memory than the rest of a LoRA step.
struct FrozenLinear {
    weight: Tensor,
}

impl FrozenLinear {
    fn forward<S: BackendStorage>(
        &self,
        x: &S,
        layout: &Layout,
        weight: &S,
        weight_layout: &Layout,
    ) -> Result<(S, Shape)> {
        let (rows, inner) = layout.shape().dims2()?;
        let outer = weight_layout.dims()[1];
        let y = x.matmul(weight, (1, rows, outer, inner), layout, weight_layout)?;
        Ok((y, (rows, outer).into()))
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let weight = self.weight.t()?;
        let (storage, weight_layout) = weight.storage_and_layout();
        match &*storage {
            Storage::Cpu(weight) => self.forward(x, layout, weight, weight_layout),
            _ => {
                bail!("frozen-linear: the weight is on {:?}, the input on the CPU", weight.device())
            }
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let weight = self.weight.t()?;
        let (storage, weight_layout) = weight.storage_and_layout();
        match &*storage {
            Storage::Cuda(weight) => self.forward(x, layout, weight, weight_layout),
            _ => bail!("frozen-linear: the weight is on {:?}, the input on a GPU", weight.device()),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.matmul(&self.weight)?))
    }
}

/// `x Wᵀ` with a gradient for `x` only.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(FrozenLinear { weight: weight.contiguous()? })
}
