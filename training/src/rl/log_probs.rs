//! Log-probabilities of given tokens under the output head, without a tensor `[rows, vocab]`.
//!
//! A log-probability depends on its own row of the hidden states only, and the head is frozen. So
//! the gradient of each is known as soon as its softmax is: `∂ log p(y)/∂h = (W_y − Σ_v p_v W_v)/T`,
//! one row of `[rows, hidden]` that is kept for the backward. On the CPU the vocabulary is
//! processed in blocks with a running maximum (Milakov & Gimelshein 2018); both products use a block
//! of logits while it is in the cache.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor,
    backend::{BackendDevice, BackendStorage},
    bail,
};
use ladle::{simd::exp, vectorised};
use rayon::prelude::*;

use super::head::{BLOCK, Head};
use crate::tape::{Narrow, dot, max, read, sum, tanh};

/// Rows whose logits exist at one time elsewhere.
const CHUNK: usize = 128;

/// Log-probabilities of one token per row.
#[derive(Debug)]
pub struct LogProbs {
    /// `log p(target)` in nats, `[rows]`; gradients flow to the hidden states.
    pub values: Tensor,
    /// Entropy of each row's distribution, in nats (no gradient).
    pub entropy: Vec<f32>,
}

/// Log-probabilities of `targets` (one per row of `hidden` `[rows, hidden]`) under the logits
/// `z = hidden headᵀ / temperature`, `head` `[vocab, hidden]` frozen, or `cap · tanh(z / cap)`; in f32, or
/// with the head of `narrow` (on the CPU). The gradient is computed only where `hidden` is tracked.
pub fn log_probs(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    (temperature, cap): (f64, Option<f64>),
    narrow: Option<&Narrow>,
) -> Result<LogProbs> {
    let (rows, width) = hidden.dims2()?;
    let (vocabulary, inner) = head.dims2()?;
    if targets.len() != rows || inner != width {
        bail!(
            "log_probs: {} targets and a head of width {inner} for {rows} × {width}",
            targets.len()
        );
    }
    if let Some(token) = targets.iter().find(|&&token| token as usize >= vocabulary) {
        bail!("log_probs: token {token} is not in the vocabulary of {vocabulary}");
    }
    let gradient = hidden.track_op();
    let fixed = hidden.detach().contiguous()?;
    let Softmax { values, entropy, jacobian } =
        if fixed.device().is_cpu() && fixed.dtype() == DType::F32 {
            let scale = (1.0 / temperature as f32, cap.map(|cap| cap as f32));
            read(&fixed, |hidden| {
                read(head, |weights| {
                    let head = Head { weights, width, narrow };
                    blocked(hidden, &head, targets, scale, gradient)
                })
            })???
        } else {
            chunked(&fixed, head, targets, (1.0 / temperature, cap), gradient)?
        };
    let values = if gradient {
        let jacobian = Tensor::from_vec(jacobian, (rows, width), hidden.device())?;
        hidden.apply_op1(Known { values, jacobian })?
    } else {
        Tensor::from_vec(values, rows, hidden.device())?
    };
    Ok(LogProbs { values, entropy })
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

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.values.clone()), self.values.len().into()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let values = CpuStorage::F32(self.values.clone());
        Ok((x.device().storage_from_cpu_storage(&values)?, self.values.len().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.jacobian.broadcast_mul(&grad.unsqueeze(1)?)?))
    }
}

struct Softmax {
    values: Vec<f32>,
    entropy: Vec<f32>,
    /// `[rows, hidden]`, empty if no gradient is wanted.
    jacobian: Vec<f32>,
}

/// The softmax of one row over the entries seen so far: with m the largest logit and d = logit − m,
/// Σ eᵈ and Σ d eᵈ.
#[derive(Clone, Copy)]
struct RowSoftmax {
    largest: f32,
    sum: f64,
    weighted: f64,
    /// The target's logit.
    chosen: f32,
    /// The slope of the cap there.
    slope: f32,
    /// Factor of the earlier sums after a new maximum.
    rescale: f32,
}

impl RowSoftmax {
    /// Adds a block of logits, which are replaced by their exponentials.
    fn take(&mut self, logits: &mut [f32]) {
        let before = self.largest;
        self.largest = greatest(logits).max(before);
        self.rescale = exp(before - self.largest);
        if self.sum > 0.0 {
            let moved = f64::from(before) - f64::from(self.largest);
            self.weighted = f64::from(self.rescale) * (self.weighted + self.sum * moved);
            self.sum *= f64::from(self.rescale);
        }
        // Short partial sums keep the f32 error of a 50 k vocabulary below 1e-6.
        for part in logits.chunks_mut(256) {
            let [sum, weighted] = exponentials(part, self.largest);
            self.sum += f64::from(sum);
            self.weighted += f64::from(weighted);
        }
    }
}

vectorised! {
    fn greatest<'a>(xs: &'a [f32]) -> f32 {
        max(xs)
    }
}

vectorised! {
    /// x ← e^(x − largest), for at most 256; their sum, and that of (x − largest) e^(x − largest).
    fn exponentials<'a>(xs: &'a mut [f32], largest: f32) -> [f32; 2] {
        let mut shifted = [0f32; 256];
        let shifted = &mut shifted[..xs.len()];
        for (x, shifted) in xs.iter_mut().zip(&mut *shifted) {
            *shifted = *x - largest;
            *x = exp(*shifted);
        }
        [sum(xs), dot(xs, shifted)]
    }
}

vectorised! {
    /// x ← cap · tanh(x / cap); the slopes 1 − tanh² of that.
    fn soft_cap<'a>(xs: &'a mut [f32], slopes: &'a mut [f32], cap: f32) {
        for (x, slope) in xs.iter_mut().zip(slopes) {
            let tanh = tanh(*x / cap);
            *x = cap * tanh;
            *slope = 1.0 - tanh * tanh;
        }
    }
}

/// The CPU path: all rows at once over blocks of the vocabulary.
fn blocked(
    hidden: &[f32],
    head: &Head<'_>,
    targets: &[u32],
    (scale, cap): (f32, Option<f32>),
    gradient: bool,
) -> Result<Softmax> {
    let (rows, width, vocabulary) = (targets.len(), head.width, head.vocabulary());
    let first = RowSoftmax {
        largest: f32::NEG_INFINITY,
        sum: 0.0,
        weighted: 0.0,
        chosen: 0.0,
        slope: 1.0,
        rescale: 0.0,
    };
    let mut state = vec![first; rows];
    let mut logits = vec![0f32; rows * BLOCK.min(vocabulary)];
    let mut slopes = vec![0f32; if cap.is_some() { logits.len() } else { 0 }];
    let mut mean = vec![0f32; if gradient { rows * width } else { 0 }];
    for start in (0..vocabulary).step_by(BLOCK) {
        let len = head.len(start);
        let logits = &mut logits[..rows * len];
        head.logits(start, hidden, scale, logits)?;
        if let Some(cap) = cap {
            let each = logits.par_chunks_mut(len).zip(slopes.par_chunks_mut(len));
            each.for_each(|(logits, slopes)| soft_cap(logits, slopes, cap));
        }
        let each = state.par_iter_mut().zip(targets).enumerate().zip(logits.par_chunks_mut(len));
        each.for_each(|((index, (row, &target)), logits)| {
            if let Some(at) = (target as usize).checked_sub(start).filter(|at| *at < len) {
                row.chosen = logits[at];
                row.slope = slopes.get(index * len + at).copied().unwrap_or(1.0);
            }
            row.take(logits);
        });
        if gradient {
            let each = logits.par_chunks_mut(len).zip(slopes.par_chunks(len));
            each.for_each(|(logits, slopes)| {
                logits.iter_mut().zip(slopes).for_each(|(x, slope)| *x *= slope);
            });
            let moved = state.par_iter().zip(mean.par_chunks_mut(width));
            moved.filter(|(row, _)| row.rescale < 1.0).for_each(|(row, mean)| {
                mean.iter_mut().for_each(|x| *x *= row.rescale);
            });
            head.add_mean(start, logits, &mut mean)?;
        }
    }
    mean.par_chunks_mut(width).zip(&state).zip(targets).for_each(|((mean, row), &target)| {
        let inverse = (1.0 / row.sum) as f32;
        for (x, w) in mean.iter_mut().zip(head.row(target as usize)) {
            *x = (row.slope * w - *x * inverse) * scale;
        }
    });
    let value =
        |row: &RowSoftmax| (f64::from(row.chosen) - f64::from(row.largest) - row.sum.ln()) as f32;
    let entropy = |row: &RowSoftmax| (row.sum.ln() - row.weighted / row.sum) as f32;
    Ok(Softmax {
        values: state.iter().map(value).collect(),
        entropy: state.iter().map(entropy).collect(),
        jacobian: mean,
    })
}

/// The path of any device: chunks of rows over the whole vocabulary.
fn chunked(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    (scale, cap): (f64, Option<f64>),
    gradient: bool,
) -> Result<Softmax> {
    let mut all = Softmax { values: Vec::new(), entropy: Vec::new(), jacobian: Vec::new() };
    for (chunk, targets) in targets.chunks(CHUNK).enumerate() {
        let rows = hidden.narrow(0, chunk * CHUNK, targets.len())?.contiguous()?;
        let logits = rows.matmul(&head.t()?)?.affine(scale, 0.0)?;
        let tanh = cap.map(|cap| logits.affine(1.0 / cap, 0.0)?.tanh()).transpose()?;
        let logits = match (cap, &tanh) {
            (Some(cap), Some(tanh)) => tanh.affine(cap, 0.0)?,
            _ => logits,
        };
        let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let exponentials = logits.exp()?;
        let sum = exponentials.sum_keepdim(D::Minus1)?;
        let log_sum = sum.log()?;
        let probabilities = exponentials.broadcast_div(&sum)?;
        let targets = Tensor::new(targets, head.device())?;
        let chosen = logits.gather(&targets.unsqueeze(1)?, 1)?;
        let weighted = (&probabilities * &logits)?.sum_keepdim(D::Minus1)?;
        all.values.extend((chosen - &log_sum)?.flatten_all()?.to_vec1::<f32>()?);
        all.entropy.extend((log_sum - weighted)?.flatten_all()?.to_vec1::<f32>()?);
        if gradient {
            let chosen = head.index_select(&targets, 0)?;
            let (chosen, probabilities) = match &tanh {
                None => (chosen, probabilities),
                Some(tanh) => {
                    let slopes = tanh.sqr()?.affine(-1.0, 1.0)?;
                    let slope = slopes.gather(&targets.unsqueeze(1)?, 1)?;
                    (chosen.broadcast_mul(&slope)?, (probabilities * slopes)?)
                }
            };
            let gradient = ((chosen - probabilities.matmul(head)?)? * scale)?;
            all.jacobian.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
        }
    }
    Ok(all)
}
