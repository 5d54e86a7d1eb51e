//! Per-token rewards, generalised advantage estimation and whitening.
//!
//! Functions take one response at a time, without padding; inputs and outputs are f32, sums f64.
//! Token t of a response is the t-th *sampled* token; `log_probs[t]`, `values[t]` and `rewards[t]`
//! belong to the state before that token was chosen.

use serde::{Deserialize, Serialize};

/// Errors in the series of one response.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum AdvantageError {
    /// Two per-token series of one response differ in length.
    #[error("{name} has {got} tokens, expected {expected}")]
    Length {
        /// The series.
        name: &'static str,
        /// Tokens of the response.
        expected: usize,
        /// Tokens in the series.
        got: usize,
    },
    /// A score was placed on a token that the response does not have.
    #[error("a score was placed on token {token} of a response of {tokens} tokens")]
    Token {
        /// Index asked for.
        token: usize,
        /// Tokens of the response.
        tokens: usize,
    },
    /// A number that is not finite.
    #[error("{name}[{index}] is {value}")]
    NotFinite {
        /// The series.
        name: &'static str,
        /// Index in the series.
        index: usize,
        /// The number.
        value: f64,
    },
}

/// A score on a token: that of the whole response on its last token, that of a span on the span's
/// last token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    /// Index of the response token.
    pub token: usize,
    /// Reward (already standardised and weighted).
    pub score: f64,
}

/// The response token that gets the score of a span ending at byte `end`: the first whose text reaches
/// that byte, else the last. `ends[t]` is where token t ends in the decoded response, not falling (a token
/// inside a character ends where the one before it does). `None` for a response without tokens.
pub fn token_at(ends: &[usize], end: usize) -> Option<usize> {
    let reached = ends.partition_point(|&token_end| token_end < end);
    Some(reached.min(ends.len().checked_sub(1)?))
}

/// Per-token estimate of KL(π‖π_ref), log-ratio ("k1"): `log π − log π_ref`. Unbiased; the sum over
/// a response estimates the KL of the sequence.
pub fn log_ratio(log_probs: &[f32], reference: &[f32]) -> Result<Vec<f32>, AdvantageError> {
    same_length("reference log-probabilities", log_probs.len(), reference.len())?;
    Ok(log_probs.iter().zip(reference).map(|(p, r)| p - r).collect())
}

/// Rewards of the tokens of one response: `r_t = −η·kl_t + Σ scores on t`.
///
/// `kl` has one entry a token ([`log_ratio`]), `coefficient` is η. An empty response has no
/// token, so any score is an error.
pub fn token_rewards(
    kl: &[f32],
    coefficient: f64,
    scores: &[TokenScore],
) -> Result<Vec<f32>, AdvantageError> {
    finite("kl", kl)?;
    let mut rewards: Vec<f64> = kl.iter().map(|&kl| -coefficient * f64::from(kl)).collect();
    for (index, &TokenScore { token, score }) in scores.iter().enumerate() {
        if !score.is_finite() {
            return Err(AdvantageError::NotFinite { name: "score", index, value: score });
        }
        let tokens = rewards.len();
        *rewards.get_mut(token).ok_or(AdvantageError::Token { token, tokens })? += score;
    }
    Ok(rewards.into_iter().map(|r| r as f32).collect())
}

/// Advantages and returns of one response.
#[derive(Debug, Clone, PartialEq)]
pub struct Gae {
    /// `A_t = Σ_l (γλ)^l δ_{t+l}`, `δ_t = r_t + γ V_{t+1} − V_t`.
    pub advantages: Vec<f32>,
    /// `A_t + V_t`, the target of the value head.
    pub returns: Vec<f32>,
}

/// Generalised advantage estimation over one finished response; the value after the last token
/// is 0: an episode ends with its response, whether or not it was cut off.
pub fn gae(
    rewards: &[f32],
    values: &[f32],
    gamma: f64,
    lambda: f64,
) -> Result<Gae, AdvantageError> {
    same_length("values", rewards.len(), values.len())?;
    finite("rewards", rewards)?;
    finite("values", values)?;
    let mut advantages = vec![0f32; rewards.len()];
    let mut returns = vec![0f32; rewards.len()];
    let (mut next_value, mut tail) = (0f64, 0f64);
    let steps = rewards.iter().zip(values).zip(advantages.iter_mut().zip(&mut returns)).rev();
    for ((&reward, &value), (advantage, target)) in steps {
        let value = f64::from(value);
        let delta = f64::from(reward) + gamma * next_value - value;
        tail = delta + gamma * lambda * tail;
        next_value = value;
        *advantage = tail as f32;
        *target = (tail + value) as f32;
    }
    Ok(Gae { advantages, returns })
}

/// Rewards to go: `G_t = Σ_{l ≥ 0} γ^l r_{t+l}`.
pub fn rewards_to_go(rewards: &[f32], gamma: f64) -> Vec<f32> {
    let mut tail = 0f64;
    let mut sums: Vec<f32> = rewards
        .iter()
        .rev()
        .map(|&r| {
            tail = f64::from(r) + gamma * tail;
            tail as f32
        })
        .collect();
    sums.reverse();
    sums
}

/// Shifts and scales all tokens of a batch to mean 0 and variance 1:
/// `(x − mean) / √(var + 1e-8)` with the unbiased variance (as TRL does).
///
/// One inner slice per response, without padding. A batch of fewer than two tokens has
/// no variance and is only centred.
pub fn whiten(batch: &mut [Vec<f32>]) {
    let count = batch.iter().map(Vec::len).sum::<usize>();
    if count == 0 {
        return;
    }
    let each = || batch.iter().flatten().map(|&x| f64::from(x));
    let mean = each().sum::<f64>() / count as f64;
    let squares = each().map(|x| (x - mean).powi(2)).sum::<f64>();
    let scale = if count > 1 { (squares / (count - 1) as f64 + 1e-8).sqrt().recip() } else { 1.0 };
    for x in batch.iter_mut().flatten() {
        *x = ((f64::from(*x) - mean) * scale) as f32;
    }
}

fn same_length(name: &'static str, expected: usize, got: usize) -> Result<(), AdvantageError> {
    if expected == got { Ok(()) } else { Err(AdvantageError::Length { name, expected, got }) }
}

fn finite(name: &'static str, series: &[f32]) -> Result<(), AdvantageError> {
    match series.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => Err(AdvantageError::NotFinite {
            name,
            index,
            value: series.get(index).copied().map_or(f64::NAN, f64::from),
        }),
    }
}
