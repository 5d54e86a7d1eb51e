//! Log-probabilities of given tokens under the output head, without ever holding `[rows, vocab]`.
//!
//! A log-probability depends on its own row of the hidden states only, and the head is frozen. So
//! the gradient of each is known when its chunk of logits is: `∂ log p(y)/∂h = (W_y − Σ_v p_v W_v)/T`,
//! one row of `[rows, hidden]` that is kept for the backward while the logits are dropped.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, D, Layout, Shape, Tensor,
    backend::{BackendDevice, BackendStorage},
};
use rayon::prelude::*;

use super::{Differentiable, Result, dims, expect, fused};
use crate::math::exp;

/// Rows whose logits exist at one time.
const CHUNK: usize = 128;

/// Log-probabilities of one token per row.
#[derive(Debug)]
pub struct LogProbs {
    /// `log p(target)` in nats, `[rows]`; gradients flow to the hidden states.
    pub values: Tensor,
    /// Entropy of each row's distribution, in nats (no gradient).
    pub entropy: Vec<f32>,
}

/// Values whose gradient with respect to the input is already known, row by row.
struct Known {
    values: Vec<f32>,
    /// `[rows, hidden]`.
    jacobian: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "log-probs"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.values.clone()), self.values.len().into()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let values = CpuStorage::F32(self.values.clone());
        Ok((x.device().storage_from_cpu_storage(&values)?, self.values.len().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.jacobian.broadcast_mul(&grad.unsqueeze(1)?)?))
    }
}

impl Differentiable {
    /// Log-probabilities of `targets` (one per row of `hidden` `[rows, hidden]`) under the logits
    /// `hidden headᵀ / temperature`, `head` `[vocab, hidden]` frozen. The gradient is made only
    /// where `hidden` is tracked.
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        targets: &[u32],
        temperature: f64,
    ) -> Result<LogProbs> {
        let (rows, _) = dims("log_probs", hidden)?;
        let (vocabulary, _) = dims("log_probs", head)?;
        expect("log_probs", "targets", rows, targets.len())?;
        if let Some(&token) = targets.iter().find(|&&token| token as usize >= vocabulary) {
            expect("log_probs", "vocabulary", token as usize + 1, vocabulary)?;
        }
        let fixed = hidden.detach();
        let (mut values, mut entropy) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let mut jacobian = Vec::new();
        for start in (0..rows).step_by(CHUNK) {
            let len = CHUNK.min(rows - start);
            let targets = &targets[start..start + len];
            let logits = fixed.narrow(0, start, len)?.contiguous()?.matmul(&head.t()?)?;
            let chunk = if fused::suits(&logits) {
                fused_softmax(&logits, targets, 1.0 / temperature as f32)?
            } else {
                composed_softmax(&logits, targets, 1.0 / temperature)?
            };
            values.extend(chunk.values);
            entropy.extend(chunk.entropy);
            if hidden.track_op() {
                let chosen = head.index_select(&Tensor::new(targets, head.device())?, 0)?;
                let mean = chunk.probabilities.matmul(head)?;
                jacobian.push(((chosen - mean)? * (1.0 / temperature))?);
            }
        }
        let values = if jacobian.is_empty() {
            Tensor::from_vec(values, rows, hidden.device())?
        } else {
            hidden.apply_op1(Known { values, jacobian: Tensor::cat(&jacobian, 0)? })?
        };
        Ok(LogProbs { values, entropy })
    }
}

struct Softmax {
    values: Vec<f32>,
    entropy: Vec<f32>,
    /// `[rows, vocab]`.
    probabilities: Tensor,
}

fn fused_softmax(logits: &Tensor, targets: &[u32], scale: f32) -> Result<Softmax> {
    let (_, vocabulary) = logits.dims2()?;
    let mut logits_and_probabilities = fused::read(logits, <[f32]>::to_vec)?;
    let rows = logits_and_probabilities.par_chunks_mut(vocabulary).zip(targets);
    let (values, entropy) = rows
        .map(|(row, &target)| {
            let max = fused::max(row);
            let chosen = (row[target as usize] - max) * scale;
            let (mut sum, mut weighted) = (0f64, 0f64);
            // Short partial sums keep the f32 error of a 50 k vocabulary below 1e-6.
            let mut shifted = [0f32; 256];
            for part in row.chunks_mut(256) {
                let shifted = &mut shifted[..part.len()];
                for (x, shifted) in part.iter_mut().zip(&mut *shifted) {
                    *shifted = (*x - max) * scale;
                    *x = exp(*shifted);
                }
                sum += f64::from(fused::sum(part));
                weighted += f64::from(fused::dot(part, shifted));
            }
            let inverse = (1.0 / sum) as f32;
            row.iter_mut().for_each(|x| *x *= inverse);
            let log_sum = sum.ln();
            ((f64::from(chosen) - log_sum) as f32, (log_sum - weighted / sum) as f32)
        })
        .unzip();
    let probabilities =
        Tensor::from_vec(logits_and_probabilities, logits.shape(), logits.device())?;
    Ok(Softmax { values, entropy, probabilities })
}

fn composed_softmax(logits: &Tensor, targets: &[u32], scale: f64) -> Result<Softmax> {
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.affine(scale, 0.0)?;
    let exponentials = logits.exp()?;
    let sum = exponentials.sum_keepdim(D::Minus1)?;
    let log_sum = sum.log()?;
    let probabilities = exponentials.broadcast_div(&sum)?;
    let chosen = logits.gather(&Tensor::new(targets, logits.device())?.unsqueeze(1)?, 1)?;
    let weighted = (&probabilities * &logits)?.sum_keepdim(D::Minus1)?;
    Ok(Softmax {
        values: (chosen - &log_sum)?.flatten_all()?.to_vec1()?,
        entropy: (log_sum - weighted)?.flatten_all()?.to_vec1()?,
        probabilities,
    })
}
