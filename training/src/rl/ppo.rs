//! PPO's losses on candle tensors, and the controller of the KL coefficient.
//!
//! All tensors of one call have one shape (`[tokens]` when sequences are packed, `[batch, tokens]`
//! when they are padded) and dtype f32. Masked entries change neither a value nor a
//! gradient, whatever they hold.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// Why a loss could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// Two tensors of one loss differ in shape.
    #[error("{name} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: &'static str,
        /// Shape of the mask.
        expected: Vec<usize>,
        /// Its shape.
        got: Vec<usize>,
    },
    /// The mask keeps no token, or the divisor is not a positive number.
    #[error("a loss over {0} tokens")]
    Empty(f64),
    /// The loss is NaN or infinite.
    #[error("the {name} loss is {value}")]
    NotFinite {
        /// Which loss.
        name: &'static str,
        value: f64,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The tokens that a loss is summed over, and the divisor of the sum.
#[derive(Debug, Clone)]
pub struct Tokens {
    keep: Tensor,
    zeros: Tensor,
    divisor: f64,
}

impl Tokens {
    /// Averages over the tokens whose `mask` (any dtype) is not 0.
    pub fn mean(mask: &Tensor) -> Result<Self, LossError> {
        let kept = mask.ne(0f64)?;
        let count = f64::from(kept.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?);
        Self::over(mask, count)
    }

    /// Divides the sum over the kept tokens by `divisor`: the tokens of the whole mini-batch when
    /// its gradient is accumulated over micro-batches, or the number of responses for a loss per
    /// response.
    pub fn over(mask: &Tensor, divisor: f64) -> Result<Self, LossError> {
        if !(divisor.is_finite() && divisor > 0.0) {
            return Err(LossError::Empty(divisor));
        }
        let keep = mask.ne(0f64)?;
        let zeros = Tensor::zeros(mask.shape(), DType::F32, mask.device())?;
        Ok(Self { keep, zeros, divisor })
    }

    fn check(&self, name: &'static str, tensor: &Tensor) -> Result<(), LossError> {
        if tensor.dims() == self.keep.dims() {
            return Ok(());
        }
        let (expected, got) = (self.keep.dims().to_vec(), tensor.dims().to_vec());
        Err(LossError::Shape { name, expected, got })
    }

    /// The tensor with zeros where the mask is off. The selection cuts the gradient there as well,
    /// so that an `inf` in a padded place cannot become `0 · inf`.
    pub(super) fn select(&self, name: &'static str, tensor: &Tensor) -> Result<Tensor, LossError> {
        self.check(name, tensor)?;
        Ok(self.keep.where_cond(tensor, &self.zeros)?)
    }

    /// `Σ x / divisor` of a tensor that [`Self::select`] has cleaned.
    pub(super) fn reduce(&self, tensor: &Tensor) -> Result<Tensor, LossError> {
        Ok((tensor.sum_all()? / self.divisor)?)
    }

    fn scalar(&self, tensor: &Tensor) -> Result<f64, LossError> {
        Ok(f64::from(self.reduce(&tensor.to_dtype(DType::F32)?)?.to_scalar::<f32>()?))
    }
}

/// A scalar to differentiate, with numbers for the log. With [`Tokens::over`] the numbers are this
/// micro-batch's share: the shares add up to the mini-batch's means.
#[derive(Debug)]
pub struct Loss {
    /// Scalar, f32, differentiable.
    pub loss: Tensor,
    pub value: f64,
    /// Share of tokens at which the clipped branch was taken.
    pub clip_fraction: f64,
    /// `½·mean((log π − log π_old)²)`, the second-order estimate of KL(π_old‖π); 0 for a value loss.
    pub approximate_kl: f64,
}

/// `−mean(min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t))`, `ρ_t = exp(log π − log π_old)`.
///
/// `log_probs` carries the gradient; `old` (of the distribution that was sampled from) and
/// `advantages` are constants.
pub fn policy_loss(
    log_probs: &Tensor,
    old: &Tensor,
    advantages: &Tensor,
    tokens: &Tokens,
    clip: f64,
) -> Result<Loss, LossError> {
    let log_ratio = (tokens.select("log_probs", log_probs)?
        - tokens.select("old log_probs", &old.detach())?)?;
    let advantages = tokens.select("advantages", &advantages.detach())?;
    let ratio = log_ratio.exp()?;
    let free = (&ratio * &advantages)?.neg()?;
    let clipped = (ratio.clamp(1.0 - clip, 1.0 + clip)? * &advantages)?.neg()?;
    let clip_fraction = tokens.scalar(&clipped.gt(&free)?)?;
    let approximate_kl = 0.5 * tokens.scalar(&log_ratio.detach().sqr()?)?;
    let loss = tokens.reduce(&free.maximum(&clipped)?)?;
    checked("policy", Loss { loss, value: 0.0, clip_fraction, approximate_kl })
}

/// `½·mean(max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²))`.
///
/// `values` carries the gradient; `old` (at sampling time) and `returns` are constants.
pub fn value_loss(
    values: &Tensor,
    old: &Tensor,
    returns: &Tensor,
    tokens: &Tokens,
    clip: f64,
) -> Result<Loss, LossError> {
    let values = tokens.select("values", values)?;
    let old = tokens.select("old values", &old.detach())?;
    let returns = tokens.select("returns", &returns.detach())?;
    let near = (&old + (&values - &old)?.clamp(-clip, clip)?)?;
    let free = (&values - &returns)?.sqr()?;
    let clipped = (near - &returns)?.sqr()?;
    let clip_fraction = tokens.scalar(&clipped.gt(&free)?)?;
    let loss = (tokens.reduce(&free.maximum(&clipped)?)? * 0.5)?;
    checked("value", Loss { loss, value: 0.0, clip_fraction, approximate_kl: 0.0 })
}

pub(super) fn checked(name: &'static str, mut loss: Loss) -> Result<Loss, LossError> {
    loss.value = f64::from(loss.loss.to_scalar::<f32>()?);
    if loss.value.is_finite() {
        Ok(loss)
    } else {
        Err(LossError::NotFinite { name, value: loss.value })
    }
}

/// The KL coefficient η, held near a target KL per response (Ziegler et al. 2019, §2.2):
/// `η ← η·(1 + clip(kl/target − 1, −0.2, 0.2)·samples/horizon)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlController {
    /// η now.
    pub coefficient: f64,
    /// Target KL per response in nats; `None` keeps η fixed.
    pub target: Option<f64>,
    /// Responses over which a constant error of 100 % would double η.
    pub horizon: f64,
}

impl KlController {
    /// Moves η after a batch of `samples` responses whose mean KL was `kl` nats. A KL that is not
    /// finite changes nothing.
    pub fn update(&mut self, kl: f64, samples: usize) {
        if let (Some(target), true) = (self.target, kl.is_finite()) {
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            self.coefficient *= 1.0 + error * samples as f64 / self.horizon;
        }
    }
}
