//! ReMax: REINFORCE whose baseline is the reward of the greedy response to the same prompt.

use super::{
    advantage::{AdvantageError, TokenScore, rewards_to_go, token_rewards},
    ppo::{Loss, LossError, Tokens, checked},
};
use candle_core::Tensor;

/// Weights of the tokens of one sampled response:
/// `A_t = (R(sample) − R(greedy)) − η·Σ_{l ≥ t} kl_l`, with γ = 1.
///
/// `kl` is per token against the reference policy; both rewards are those of whole responses.
/// The greedy baseline depends on the prompt alone, so it leaves the gradient unbiased.
pub fn remax_advantages(
    sampled: f64,
    greedy: f64,
    kl: &[f32],
    coefficient: f64,
) -> Result<Vec<f32>, AdvantageError> {
    let Some(last) = kl.len().checked_sub(1) else { return Ok(Vec::new()) };
    let score = TokenScore { token: last, score: sampled - greedy };
    Ok(rewards_to_go(&token_rewards(kl, coefficient, &[score])?, 1.0))
}

/// `−Σ A_t log π_t / divisor`: per response with `Tokens::over(mask, responses)`, which is the
/// gradient of the expected reward, or per token with `Tokens::mean(mask)`.
///
/// `log_probs` carries the gradient, `advantages` are constants; same shape, f32.
pub fn remax_loss(
    log_probs: &Tensor,
    advantages: &Tensor,
    tokens: &Tokens,
) -> Result<Loss, LossError> {
    let log_probs = tokens.select("log_probs", log_probs)?;
    let advantages = tokens.select("advantages", &advantages.detach())?;
    let loss = tokens.reduce(&(log_probs * advantages)?)?.neg()?;
    checked("ReMax", Loss { loss, value: 0.0, clip_fraction: 0.0, approximate_kl: 0.0 })
}
