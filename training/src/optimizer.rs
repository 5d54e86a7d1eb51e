//! AdamW with f32 moments, gradient accumulation and clipping by the global norm.
//!
//! candle's AdamW keeps its moments private, so a run could not be resumed with it.

use candle_core::{Tensor, Var, backprop::GradStore};
use serde::{Deserialize, Serialize};

/// Settings of AdamW, with PyTorch's defaults except for the decay (0: LoRA as PEFT's examples
/// train it).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of all gradients together (0.5: Bone Soups Table 8).
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 0.5 }
    }
}

/// Named variables with their moments and the gradients accumulated so far.
pub struct AdamW {
    config: AdamWConfig,
    variables: Vec<(String, Var)>,
    moments: Vec<[Tensor; 2]>,
    gradients: Vec<Option<Tensor>>,
    steps: u64,
}

impl AdamW {
    /// An optimiser at step 0.
    pub fn new(variables: Vec<(String, Var)>, config: AdamWConfig) -> candle_core::Result<Self> {
        let zeros = |(_, var): &(String, Var)| Ok([var.zeros_like()?, var.zeros_like()?]);
        let moments = variables.iter().map(zeros).collect::<candle_core::Result<_>>()?;
        let gradients = vec![None; variables.len()];
        Ok(Self { config, variables, moments, gradients, steps: 0 })
    }

    /// Adds the gradients of one micro-batch.
    pub fn accumulate(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        for ((_, var), sum) in self.variables.iter().zip(&mut self.gradients) {
            let Some(grad) = grads.get(var) else { continue };
            *sum = Some(match sum.take() {
                None => grad.clone(),
                Some(sum) => (sum + grad)?,
            });
        }
        Ok(())
    }

    /// One update with the accumulated gradients, clipped; returns their norm before clipping.
    pub fn step(&mut self, learning_rate: f64) -> candle_core::Result<f64> {
        let AdamWConfig { beta1, beta2, epsilon, weight_decay, max_grad_norm } = self.config;
        let mut squares = 0.0;
        for grad in self.gradients.iter().flatten() {
            squares += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norm = squares.sqrt();
        let clip = if norm > max_grad_norm { max_grad_norm / (norm + 1e-6) } else { 1.0 };
        self.steps += 1;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (bias1, bias2) = (1.0 - beta1.powi(exponent), 1.0 - beta2.powi(exponent));
        let state = self.variables.iter().zip(&mut self.moments).zip(&mut self.gradients);
        for (((_, var), [first, second]), grad) in state {
            let Some(grad) = grad.take() else { continue };
            let grad = (grad * clip)?;
            *first = (first.affine(beta1, 0.0)? + grad.affine(1.0 - beta1, 0.0)?)?;
            *second = (second.affine(beta2, 0.0)? + grad.sqr()?.affine(1.0 - beta2, 0.0)?)?;
            let root = ((&*second / bias2)?.sqrt()? + epsilon)?;
            let update = (&*first / root)?.affine(learning_rate / bias1, 0.0)?;
            let kept = var.as_tensor().detach().affine(1.0 - learning_rate * weight_decay, 0.0)?;
            var.set(&(kept - update)?)?;
        }
        Ok(norm)
    }

    /// Drops the accumulated gradients.
    pub fn discard(&mut self) {
        self.gradients.fill(None);
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Every tensor of the state: the variables under their names, the moments under `name.m` and
    /// `name.v`.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let state = self.variables.iter().zip(&self.moments);
        let named = state.flat_map(|((name, var), [first, second])| {
            [
                (name.clone(), var.as_tensor().detach()),
                (format!("{name}.m"), first.clone()),
                (format!("{name}.v"), second.clone()),
            ]
        });
        named.collect()
    }

    /// Restores the state of [`Self::tensors`] at `steps` updates.
    pub fn restore(
        &mut self,
        mut take: impl FnMut(&str, &[usize]) -> candle_core::Result<Tensor>,
        steps: u64,
    ) -> candle_core::Result<()> {
        for ((name, var), [first, second]) in self.variables.iter().zip(&mut self.moments) {
            var.set(&take(name, var.dims())?)?;
            *first = take(&format!("{name}.m"), var.dims())?;
            *second = take(&format!("{name}.v"), var.dims())?;
        }
        self.steps = steps;
        Ok(())
    }
}

/// Linear decay to 0 at `total` after a linear warm-up: the rate of update `step`, from 0.
pub fn learning_rate(peak: f64, step: u64, warmup: u64, total: u64) -> f64 {
    let (step, warmup, total) = (step as f64, warmup as f64, total as f64);
    let up = if step < warmup { (step + 1.0) / warmup } else { 1.0 };
    let down = ((total - step) / (total - warmup).max(1.0)).clamp(0.0, 1.0);
    peak * up.min(down)
}
