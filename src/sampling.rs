//! From logits to a token.
//!
//! The order is Hugging Face's: biases, penalties, the mask of a grammar, temperature, top-k, top-p,
//! min-p, draw. All steps are deterministic; the caller brings the random number (see
//! `rng::uniform`). No step sorts the vocabulary: selections are partial.

use std::collections::HashMap;

use crate::simd::exp;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divisor of the logits, ≥ 0; 0 is greedy.
    pub temperature: f32,
    /// Only the k most likely tokens may be drawn; `None` is all.
    pub top_k: Option<usize>,
    /// Only the smallest set of most likely tokens whose probability reaches this may be drawn;
    /// in (0, 1], 1 is all.
    pub top_p: f32,
    /// Only tokens at least this times as likely as the most likely one may be drawn; in [0, 1],
    /// 0 is all.
    pub min_p: f32,
    /// Logits of tokens seen in prompt or answer are divided (if > 0) or multiplied (if < 0) by
    /// this; > 0, 1 is off (Keskar et al. 2019, as in Hugging Face).
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the answer (OpenAI); 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in the answer (OpenAI); 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens before the penalties (OpenAI's `logit_bias`).
    pub bias: Vec<(u32, f32)>,
    /// Seed of the request's draws; `None` takes a fresh one.
    pub seed: Option<u64>,
    /// Report the log-probability of the chosen token and of this many most likely ones, under the
    /// model's own distribution (before penalties and temperature).
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    /// Plain sampling from the model's distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            bias: Vec::new(),
            seed: None,
            logprobs: None,
        }
    }
}

/// A sampling parameter out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {got}, expected {expected}")]
pub struct ParamError {
    /// The parameter.
    pub name: &'static str,
    /// Its range.
    pub expected: &'static str,
    /// The value given.
    pub got: f64,
}

impl SamplingParams {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether equal logits give equal tokens every time: nothing is drawn, or from a given seed.
    pub fn is_repeatable(&self) -> bool {
        let draws = self.temperature > 0.0
            && self.top_k != Some(1)
            // Smaller than any share of a token: the most likely one is all that is left.
            && self.top_p > f32::MIN_POSITIVE;
        self.seed.is_some() || !draws
    }

    /// Whether any penalty is on, so that a [`History`] is needed.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// Checks every range; NaN is in none.
    pub fn check(&self) -> Result<(), ParamError> {
        let check = |name, value: f32, expected, ok: bool| {
            if ok { Ok(()) } else { Err(ParamError { name, expected, got: f64::from(value) }) }
        };
        let Self { temperature: t, top_p, min_p, repetition_penalty: r, .. } = *self;
        let (frequency, presence) = (self.frequency_penalty, self.presence_penalty);
        check("temperature", t, "a finite number ≥ 0", t >= 0.0 && t.is_finite())?;
        check("top_k", 0.0, "at least 1", self.top_k != Some(0))?;
        check("top_p", top_p, "a number in (0, 1]", top_p > 0.0 && top_p <= 1.0)?;
        check("min_p", min_p, "a number in [0, 1]", (0.0..=1.0).contains(&min_p))?;
        check("repetition_penalty", r, "a finite number > 0", r > 0.0 && r.is_finite())?;
        check("frequency_penalty", frequency, "a finite number", frequency.is_finite())?;
        check("presence_penalty", presence, "a finite number", presence.is_finite())?;
        let odd = self.bias.iter().find(|(_, bias)| !bias.is_finite());
        check("bias", odd.map_or(0.0, |(_, bias)| *bias), "finite numbers", odd.is_none())
    }
}

/// Which tokens a sequence has seen, for the penalties.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Token → occurrences in the answer; a token of the prompt alone stands at 0.
    answered: HashMap<u32, u32>,
}

impl History {
    /// The history of a sequence that starts with `prompt`.
    pub fn new(prompt: &[u32]) -> Self {
        Self { answered: prompt.iter().map(|&id| (id, 0)).collect() }
    }

    /// Counts a token of the answer.
    pub fn push(&mut self, id: u32) {
        *self.answered.entry(id).or_default() += 1;
    }

    fn penalise(&self, logits: &mut [f32], params: &SamplingParams) {
        for (&id, &count) in &self.answered {
            let Some(x) = logits.get_mut(id as usize) else { continue };
            let r = params.repetition_penalty;
            *x = if *x > 0.0 { *x / r } else { *x * r };
            if count > 0 {
                *x -= params.frequency_penalty * count as f32 + params.presence_penalty;
            }
        }
    }
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability (natural), when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens and their log-probabilities, most likely first, when asked for.
    pub top: Vec<(u32, f32)>,
}

/// Logits that do not make a distribution.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A logit is NaN or +∞.
    #[error("the logit of token {id} is {value}")]
    NotFinite {
        /// First such token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// Every logit is −∞, or there are none.
    #[error("none of the {vocabulary} tokens has a probability")]
    Empty {
        /// Number of logits.
        vocabulary: usize,
    },
}

/// Chooses the next token of the whole vocabulary. `logits` (one row, `[vocabulary]`) are scratch
/// afterwards; `uniform` is a random number in [0, 1); `history` matters only when a penalty is on.
pub fn sample(
    logits: &mut [f32],
    history: &History,
    params: &SamplingParams,
    uniform: f64,
) -> Result<Sampled, SampleError> {
    sample_among(None, logits, history, params, uniform)
}

/// [`sample`] among the tokens of a mask: bit `id % 32` of word `id / 32`; an id beyond it is not in
/// it. Log-probabilities are those of the whole vocabulary.
pub fn sample_among(
    mask: Option<&[u32]>,
    logits: &mut [f32],
    history: &History,
    params: &SamplingParams,
    uniform: f64,
) -> Result<Sampled, SampleError> {
    let mut max = maximum(logits)?;
    let report = params.logprobs.map(|n| (logits.to_vec(), n));
    for &(id, bias) in &params.bias {
        logits.get_mut(id as usize).into_iter().for_each(|x| *x += bias);
    }
    if params.has_penalties() {
        history.penalise(logits, params);
    }
    mask.into_iter().for_each(|mask| restrict(logits, mask));
    if mask.is_some() || params.has_penalties() || !params.bias.is_empty() {
        max = maximum(logits)?;
    }
    let id = match params.temperature {
        0.0 => first_of(logits, max),
        _ => draw(logits, max, params, uniform),
    };
    let (logprob, top) = match report {
        None => (None, Vec::new()),
        Some((raw, n)) => {
            let (logprob, top) = logprobs(&raw, id, n)?;
            (Some(logprob), top)
        }
    };
    Ok(Sampled { id, logprob, top })
}

/// Takes the probability of every token that is not in the mask.
fn restrict(logits: &mut [f32], mask: &[u32]) {
    let words = mask.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        for (bit, x) in logits.iter_mut().enumerate() {
            *x = if word >> bit & 1 == 1 { *x } else { f32::NEG_INFINITY };
        }
    }
}

/// Log-probability of `id` and the `n` most likely tokens with theirs, most likely first.
/// An `id` outside the vocabulary has −∞.
pub fn logprobs(logits: &[f32], id: u32, n: usize) -> Result<(f32, Vec<(u32, f32)>), SampleError> {
    let max = maximum(logits)?;
    let log_sum = f64::from(max) + weight_sum(logits, max, 1.0).ln();
    let normal = |x: f32| (f64::from(x) - log_sum) as f32;
    let own = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let top = most_likely(logits, n).into_iter().map(|(id, x)| (id, normal(x))).collect();
    Ok((normal(own), top))
}

crate::vectorised! {
    /// The largest value that is no NaN, and whether there is a NaN. In lanes, as a chain of comparisons
    /// would be slow.
    fn extremes<'a>(values: &'a [f32]) -> (f32, bool) {
        const LANES: usize = 64;
        let (mut most, mut nan) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
        let mut take = |chunk: &[f32]| {
            for ((most, nan), &x) in most.iter_mut().zip(&mut nan).zip(chunk) {
                *most = if x > *most { x } else { *most };
                *nan |= u32::from(x.is_nan());
            }
        };
        let mut chunks = values.chunks_exact(LANES);
        (&mut chunks).for_each(&mut take);
        take(chunks.remainder());
        (most.into_iter().fold(f32::NEG_INFINITY, f32::max), nan.into_iter().any(|nan| nan != 0))
    }
}

/// The largest logit, or why there is none.
fn maximum(logits: &[f32]) -> Result<f32, SampleError> {
    let (max, nan) = extremes(logits);
    if max == f32::INFINITY || nan {
        let broken = |x: &f32| x.is_nan() || *x == f32::INFINITY;
        let id = logits.iter().position(broken).unwrap_or_default();
        return Err(SampleError::NotFinite { id, value: logits[id] });
    }
    if max == f32::NEG_INFINITY {
        return Err(SampleError::Empty { vocabulary: logits.len() });
    }
    Ok(max)
}

crate::vectorised! {
    /// The lowest id whose logit is `value`.
    fn first_of<'a>(logits: &'a [f32], value: f32) -> u32 {
        const CHUNK: usize = 256;
        let has = |chunk: &[f32]| chunk.iter().fold(false, |found, &x| found | (x == value));
        let chunk = logits.chunks(CHUNK).position(has).unwrap_or_default();
        let rest = logits.iter().skip(chunk * CHUNK);
        (chunk * CHUNK + rest.into_iter().position(|&x| x == value).unwrap_or_default()) as u32
    }
}

fn draw(logits: &mut [f32], max: f32, params: &SamplingParams, uniform: f64) -> u32 {
    let inverse = 1.0 / params.temperature.max(f32::MIN_POSITIVE);
    let top_k = params.top_k.filter(|&k| k < logits.len());
    let candidates = match (top_k, params.top_p < 1.0) {
        (None, false) => return draw_all(logits, max, inverse, params.min_p, uniform),
        (Some(k), _) => weights(most_likely(logits, k), max, inverse),
        (None, true) => {
            let mass = weight_sum(logits, max, inverse) * f64::from(params.top_p);
            nucleus(logits, max, inverse, mass)
        }
    };
    let total: f64 = candidates.iter().map(|&(_, w)| f64::from(w)).sum();
    // Under top-k the nucleus is taken of what top-k left; without it, `nucleus` has cut already
    // and the mass to reach is that of the whole vocabulary.
    let mass = if top_k.is_some() { total * f64::from(params.top_p) } else { f64::INFINITY };
    let (mut kept, mut reached) = (0, 0.0);
    for &(_, w) in &candidates {
        // The first has weight 1, so at least one is kept.
        if kept > 0 && (reached >= mass || w < params.min_p || w == 0.0) {
            break;
        }
        reached += f64::from(w);
        kept += 1;
    }
    let mut rest = uniform * reached;
    let chosen = candidates[..kept].iter().find(|&&(_, w)| {
        rest -= f64::from(w);
        rest < 0.0
    });
    chosen.unwrap_or(&candidates[kept - 1]).0
}

/// Tokens whose weights [`draw_all`] sums up before it looks for the drawn one.
const DRAW_BLOCK: usize = 256;

crate::vectorised! {
    /// Turns logits into weights exp((x − max) · inverse), 0 for those below `min_p`; the sums of the
    /// blocks of [`DRAW_BLOCK`].
    fn soften<'a>(logits: &'a mut [f32], max: f32, inverse: f32, min_p: f32) -> Vec<f64> {
        let mut sums = Vec::with_capacity(logits.len().div_ceil(DRAW_BLOCK));
        for block in logits.chunks_mut(DRAW_BLOCK) {
            for x in block.iter_mut() {
                let w = exp((*x - max) * inverse);
                *x = if w < min_p { 0.0 } else { w };
            }
            let mut lanes = [0f64; 16];
            for chunk in block.chunks(16) {
                for (lane, &w) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(w);
                }
            }
            sums.push(lanes.iter().sum());
        }
        sums
    }
}

/// Draws from the whole vocabulary (or what `min_p` leaves of it) in the order of ids.
fn draw_all(logits: &mut [f32], max: f32, inverse: f32, min_p: f32, uniform: f64) -> u32 {
    let sums = soften(logits, max, inverse, min_p);
    let mut rest = uniform * sums.iter().sum::<f64>();
    let mut last = 0;
    for (index, (block, sum)) in logits.chunks(DRAW_BLOCK).zip(&sums).enumerate() {
        if rest >= *sum {
            rest -= sum;
            continue;
        }
        for (offset, &w) in block.iter().enumerate() {
            rest -= f64::from(w);
            if w > 0.0 {
                last = index * DRAW_BLOCK + offset;
            }
            if rest < 0.0 {
                return last as u32;
            }
        }
    }
    // Rounding let the sum of the parts fall short of the whole: the last with a weight is it.
    logits.iter().rposition(|&w| w > 0.0).unwrap_or(last) as u32
}

crate::vectorised! {
    /// Σ exp((x − max) · inverse).
    fn weight_sum<'a>(logits: &'a [f32], max: f32, inverse: f32) -> f64 {
        let block = |block: &[f32]| -> f64 {
            let mut lanes = [0f32; 16];
            let mut chunks = block.chunks_exact(16);
            for chunk in &mut chunks {
                for (lane, &x) in lanes.iter_mut().zip(chunk) {
                    *lane += exp((x - max) * inverse);
                }
            }
            let tail: f32 = chunks.remainder().iter().map(|&x| exp((x - max) * inverse)).sum();
            lanes.iter().map(|&v| f64::from(v)).sum::<f64>() + f64::from(tail)
        };
        logits.chunks(1024).map(block).sum()
    }
}

/// The most likely tokens that together reach `mass`, with their weights, most likely first.
fn nucleus(logits: &[f32], max: f32, inverse: f32, mass: f64) -> Vec<(u32, f32)> {
    let mut size = 64;
    loop {
        let mut candidates = weights(most_likely(logits, size), max, inverse);
        let mut reached = 0.0;
        let enough = candidates.iter().position(|&(_, w)| {
            reached += f64::from(w);
            reached >= mass
        });
        if enough.is_some() || size >= logits.len() {
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
            return candidates;
        }
        size = size.saturating_mul(8);
    }
}

fn weights(mut candidates: Vec<(u32, f32)>, max: f32, inverse: f32) -> Vec<(u32, f32)> {
    candidates.iter_mut().for_each(|(_, x)| *x = exp((*x - max) * inverse));
    candidates
}

/// The `n` largest logits above −∞ with their ids, largest first, of equals the lowest id first;
/// O(vocabulary) for n far below it.
fn most_likely(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let n = n.min(logits.len());
    if n == 0 {
        return Vec::new();
    }
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(2 * n);
    let mut floor = f32::NEG_INFINITY;
    for (id, &x) in logits.iter().enumerate() {
        // An equal of the floor has a higher id than the n that are kept, so it is out.
        if x > floor {
            best.push((id as u32, x));
            if best.len() == 2 * n {
                best.select_nth_unstable_by(n - 1, order);
                best.truncate(n);
                floor = best[n - 1].1;
            }
        }
    }
    best.sort_unstable_by(order);
    best.truncate(n);
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_selection_agrees_with_sorting() {
        // Many ties, so that their order is tested too.
        let logits: Vec<f32> = (0..997u32).map(|i| (i * 7919 % 83) as f32 - 40.0).collect();
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for n in [1, 2, 3, 50, 400, 996, 997, 5000] {
            assert_eq!(most_likely(&logits, n), sorted[..n.min(997)], "n = {n}");
        }
    }
}
