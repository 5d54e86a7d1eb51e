//! Frozen weights in bf16, multiplied by the kernels that serve.

use std::{collections::HashMap, fmt};

use candle_core::{Tensor, TensorId};
use ladle::kernels::{Dtype, HostTensor, Result, cpu::CpuKernels};
use rayon::prelude::*;

use super::{
    product::{View, parallel_product},
    read::read,
};
use crate::autograd::refused;

/// A matrix and its transpose: what a forward and a backward multiply with.
pub(crate) struct Sides {
    /// `[out, in]`.
    pub forward: HostTensor,
    /// `[in, out]`.
    pub backward: HostTensor,
}

impl Sides {
    /// `w` `[out, in]`, row-major, each value rounded to the nearest.
    fn of(w: &[f32], [outer, inner]: [usize; 2]) -> Result<Self> {
        let mut transposed = vec![0f32; w.len()];
        transposed.par_chunks_mut(outer).enumerate().for_each(|(column, out)| {
            let column = w[column..].iter().step_by(inner);
            out.iter_mut().zip(column).for_each(|(out, w)| *out = *w);
        });
        Ok(Self {
            forward: HostTensor::rounded(w, Dtype::Bf16, vec![outer, inner])?,
            backward: HostTensor::rounded(&transposed, Dtype::Bf16, vec![inner, outer])?,
        })
    }
}

/// The frozen matrices of a network.
pub struct Narrow {
    kernels: CpuKernels,
    matrices: HashMap<TensorId, Sides>,
    /// Some rows after others of the output head.
    head: Vec<Sides>,
}

impl Narrow {
    /// The matrices among `weights`, f32 on the CPU; of `head` `[vocabulary, hidden]` as many rows at a
    /// time as `block` says.
    pub fn new<'a>(
        kernels: CpuKernels,
        weights: impl IntoIterator<Item = &'a Tensor>,
        head: &Tensor,
        block: usize,
    ) -> Result<Self> {
        let mut matrices = HashMap::new();
        for w in weights.into_iter().filter(|w| w.rank() == 2 && w.id() != head.id()) {
            let shape = w.dims2().map_err(refused)?.into();
            matrices.insert(w.id(), read(w, |w| Sides::of(w, shape)).map_err(refused)??);
        }
        let (_, width) = head.dims2().map_err(refused)?;
        let rows = |w: &[f32]| Sides::of(w, [w.len() / width, width]);
        let blocks = |w: &[f32]| w.chunks(block * width).map(rows).collect::<Result<_>>();
        let head = read(head, blocks).map_err(refused)??;
        Ok(Self { kernels, matrices, head })
    }

    /// The sides of a frozen matrix that layers multiply with.
    fn get(&self, w: &Tensor) -> Option<&Sides> {
        self.matrices.get(&w.id())
    }

    /// The sides of the head's rows, block after block.
    pub(crate) fn head(&self) -> &[Sides] {
        &self.head
    }

    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ` where it is to `keep`.
    pub(crate) fn product(
        &self,
        x: &[f32],
        w: &HostTensor,
        y: &mut [f32],
        keep: bool,
    ) -> Result<()> {
        self.kernels.linear(x, w, y, keep)
    }
}

/// Which way a product goes through a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `y = x Wᵀ`.
    Forward,
    /// `∂x = ∂y W`.
    Back,
}

/// `to (+)= from Wᵀ`, or `to (+)= from W` on the way back, `w` `[out, in]`; in bf16 where `narrow` has
/// it.
pub(super) fn multiply(
    narrow: Option<&Narrow>,
    w: &Tensor,
    way: Way,
    from: &[f32],
    (to, keep): (&mut [f32], bool),
) -> Result<()> {
    if let Some((narrow, sides)) = narrow.and_then(|narrow| Some((narrow, narrow.get(w)?))) {
        let w = if way == Way::Back { &sides.backward } else { &sides.forward };
        return narrow.product(from, w, to, keep);
    }
    let shape = w.dims2().map_err(refused)?;
    read(w, |w| {
        let w = View::new(w, shape.0, shape.1);
        let w = if way == Way::Back { w } else { w.t() };
        let rows = from.len() / w.rows.max(1);
        let (from, to) = (View::new(from, rows, w.rows), View::new(to, rows, w.columns));
        parallel_product(to, keep, from, w, 1.0);
    })
    .map_err(refused)
}

impl fmt::Debug for Narrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Narrow({} matrices, {})", self.matrices.len(), self.kernels.isa())
    }
}
