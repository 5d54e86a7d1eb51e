//! Weights that stay in device memory, each uploaded once however many refer to it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::kernels::{
    HostTensor, Kernels, Result,
    cuda::{CudaKernels, Device, Weight},
};

/// Uploads by the place of the host's bytes, which live as long as the soup's plan.
#[derive(Default)]
pub struct Resident {
    weights: Mutex<HashMap<(usize, usize), Weight>>,
}

impl Resident {
    /// The device's copy of a tensor.
    pub fn weight<D: Device>(
        &self,
        kernels: &CudaKernels<D>,
        tensor: &HostTensor,
    ) -> Result<Weight> {
        let place = (tensor.bytes().as_ptr().addr(), tensor.bytes().len());
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = weights.get(&place) {
            return Ok(known.clone());
        }
        let weight = kernels.weight(tensor)?;
        weights.insert(place, weight.clone());
        Ok(weight)
    }
}
