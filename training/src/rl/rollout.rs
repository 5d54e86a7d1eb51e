//! Rollouts: responses sampled from the current policy by the kernels that serve.
//!
//! The policy is the base with its adapters as low-rank terms, nothing merged. Sequences join and
//! leave the batch at any step; a row's result does not depend on its neighbours and every
//! sequence draws from its own stream, so a rollout depends only on weights, prompt, seed and
//! stream. Responses to one prompt share its cache blocks. An encoder–decoder model encodes a prompt
//! once for all responses to it that run at a time.

use std::{collections::BTreeMap, rc::Rc};

use ladle::{
    kernels::{
        Batch, Dtype, HostTensor, KV_BLOCK, KernelError, KvShape, Segment,
        cpu::{CpuKernels, KvPool, panels},
        host::HostError,
    },
    merge::low_rank::{LowRankTerm, stack, total_rank},
    model::{
        config::ModelConfig,
        decoder::Decoder,
        linear::{Dense, LowRank, Parameter},
    },
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::packing::{coefficients, segment};
use crate::weights::Lora;

/// Why sampling stopped.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The checkpoint lacks a tensor of its configuration.
    #[error("the base model has no tensor {0}")]
    Missing(String),
    /// A prompt that has no tokens, or that leaves no room for a response.
    #[error("prompt {index} has {got} tokens, expected 1 to {expected}")]
    Prompt {
        /// Its place in the request.
        index: usize,
        /// Most tokens that fit.
        expected: usize,
        /// Its tokens.
        got: usize,
    },
    /// The model's logits are NaN or infinite: the run has diverged.
    #[error("the logits after {tokens} response tokens of prompt {index} are not finite")]
    NotFinite {
        /// Which prompt.
        index: usize,
        /// Response tokens so far.
        tokens: usize,
    },
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Factors that do not fit each other.
    #[error(transparent)]
    Host(#[from] HostError),
}

type Result<T> = std::result::Result<T, RolloutError>;

/// One response to be sampled.
#[derive(Debug, Clone)]
pub struct Request {
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// First row that the policy's adapters act on, where they are active on the answer only.
    pub active_from: Option<usize>,
    /// Take the most likely token instead of a drawn one.
    pub greedy: bool,
    /// Number of the random stream; equal streams draw equal numbers.
    pub stream: u64,
}

impl Request {
    /// A response to be drawn from random stream number `stream`.
    pub fn drawn(prompt: &[u32], stream: u64) -> Self {
        Self { prompt: prompt.to_vec(), active_from: None, greedy: false, stream }
    }
}

/// A sampled response.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rollout {
    /// Tokens, end of sequence included.
    pub tokens: Vec<u32>,
    /// `log π(token)` in nats under the distribution that was sampled from (of a greedy token: under
    /// the same temperature).
    pub log_probs: Vec<f32>,
    /// The final hidden state that each token was sampled from, `[tokens, hidden]`, if asked for.
    pub hidden: Vec<f32>,
    /// Whether it ended by itself.
    pub finished: bool,
}

/// How to sample.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Logits are divided by it.
    pub temperature: f64,
    /// Longest response in tokens.
    pub max_new_tokens: usize,
    /// Tokens that end a response.
    pub end: Vec<u32>,
    /// Seed of all streams.
    pub seed: u64,
    /// Keep the hidden states (for a value head).
    pub keep_hidden: bool,
}

/// An adapter with its term among the coefficients of a row; without one it acts on every row.
pub type Adapted<'a> = (&'a Lora, Option<usize>);

/// A decoder over host tensors: the base, and per module the sum of the given adapters.
pub fn decoder(
    model: &ModelConfig,
    weights: &BTreeMap<String, HostTensor>,
    adapters: &[Adapted<'_>],
) -> Result<Decoder<HostTensor>> {
    Decoder::load(model.clone(), |name| {
        let weight = weights.get(name).cloned();
        let weight = weight.ok_or_else(|| RolloutError::Missing(name.to_owned()))?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let term = |&(adapter, term): &Adapted<'_>| {
            Some(LowRankTerm { lora: adapter.get(module)?.clone(), term })
        };
        let terms: Vec<_> = adapters.iter().filter_map(term).collect();
        let low_rank = if terms.is_empty() {
            None
        } else {
            let LowRank { down, up, scales } = stack(&terms, total_rank(&terms))?;
            Some(LowRank { down, up: panels(&up)?, scales })
        };
        Ok(Parameter { first: Dense { weight, term: None }, rest: Vec::new(), low_rank })
    })
}

/// Kernels and cache for rollouts of one model.
pub struct Sampler {
    kernels: CpuKernels,
    cache: KvPool,
    /// The token that answers of an encoder–decoder model begin after.
    start: Option<u32>,
    /// Sequences at once.
    slots: usize,
    /// Blocks that one sequence may take.
    per_sequence: usize,
    free: Vec<u32>,
    prompt_rows: usize,
}

/// Prompt rows that join one step; more rows do not raise the throughput.
const PREFILL_ROWS: usize = 512;

/// A sequence being sampled.
struct Active {
    index: usize,
    /// Blocks that its prompt fills, shared with other responses to it.
    prompt: Rc<Vec<u32>>,
    /// Its own blocks.
    blocks: Vec<u32>,
    /// Tokens in the cache; of an encoder–decoder model, of the answer.
    cached: usize,
    /// Whether its prompt is still to be encoded.
    encodes: bool,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Room for `slots` sequences (at least 1) of `max_tokens` tokens (prompt and response) at once.
    pub fn new(
        model: &ModelConfig,
        kernels: CpuKernels,
        slots: usize,
        max_tokens: usize,
    ) -> Result<Self> {
        let start = model.encoder.map(|encoder| encoder.start);
        // Prompts that are encoded have whole blocks, and so have the answers.
        let per_sequence = max_tokens.div_ceil(KV_BLOCK) + usize::from(start.is_some());
        let slots = slots.max(1);
        let blocks = per_sequence * slots;
        let cache = KvPool::new(KvShape {
            layers: model.layers,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            blocks,
            dtype: Dtype::F32.into(),
        })?;
        let free = (0..blocks as u32).rev().collect();
        Ok(Self { kernels, cache, start, slots, per_sequence, free, prompt_rows: 0 })
    }

    /// Tokens of the longest prompt that leaves room for `new` tokens.
    fn longest(&self, new: usize) -> usize {
        match self.start {
            None => (self.per_sequence * KV_BLOCK + 1).saturating_sub(new),
            Some(_) => self.per_sequence.saturating_sub(new.div_ceil(KV_BLOCK)) * KV_BLOCK,
        }
    }

    /// Rows of prompts computed so far.
    pub fn prompt_rows(&self) -> usize {
        self.prompt_rows
    }

    /// Samples every request; results are in their order.
    pub fn sample(
        &mut self,
        decoder: &Decoder<HostTensor>,
        requests: &[Request],
        sampling: &Sampling,
    ) -> Result<Vec<Rollout>> {
        let longest = self.longest(sampling.max_new_tokens);
        let fits = |request: &Request| (1..=longest).contains(&request.prompt.len());
        if let Some(index) = requests.iter().position(|request| !fits(request)) {
            let got = requests.get(index).map_or(0, |request| request.prompt.len());
            return Err(RolloutError::Prompt { index, expected: longest, got });
        }
        let mut rollouts = vec![Rollout::default(); requests.len()];
        // Long prompts first: the batch stays full until the end.
        let mut waiting: Vec<usize> = (0..requests.len()).collect();
        waiting.sort_by_key(|&index| requests[index].prompt.len());
        let mut active: Vec<Active> = Vec::new();
        while !(active.is_empty() && waiting.is_empty()) {
            let mut joining = 0;
            while joining < PREFILL_ROWS && active.len() < self.slots {
                let Some(index) = waiting.pop() else { break };
                let Request { prompt, stream, .. } = &requests[index];
                let same = |other: &&Active| requests[other.index].prompt == *prompt;
                let found = active.iter().find(same).map(|other| other.prompt.clone());
                let (encodes, shared) = match self.start {
                    None => (false, (prompt.len() - 1) / KV_BLOCK),
                    Some(_) => (found.is_none(), prompt.len().div_ceil(KV_BLOCK)),
                };
                // Rows of the prompt that another response computes are in the cache by the end of this step.
                let known = if found.is_some() { prompt.len().min(shared * KV_BLOCK) } else { 0 };
                let filled = found.unwrap_or_else(|| Rc::new(self.take(shared)));
                let blocks = self.take(self.per_sequence - shared);
                let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
                rng.set_stream(*stream);
                joining += prompt.len() - known;
                self.prompt_rows += prompt.len() - known;
                let cached = if self.start.is_some() { 0 } else { known };
                active.push(Active { index, prompt: filled, blocks, cached, encodes, rng });
            }
            let batch = step(&active, requests, &rollouts, self.start);
            let hidden = decoder.outputs(&self.kernels, &batch, &mut self.cache)?;
            let logits = decoder.logits(&self.kernels, &hidden, active.len(), None)?;
            for (row, sequence) in active.iter_mut().enumerate() {
                let request = &requests[sequence.index];
                let rollout = &mut rollouts[sequence.index];
                let given = self.start.map_or(request.prompt.len(), |_| 1);
                sequence.cached = given + rollout.tokens.len();
                sequence.encodes = false;
                let uniform =
                    if request.greedy { None } else { Some(sequence.rng.random::<f64>()) };
                let logits = logits.row(row).unwrap_or_default();
                let drawn =
                    draw(logits, sampling.temperature, uniform).ok_or(RolloutError::NotFinite {
                        index: sequence.index,
                        tokens: rollout.tokens.len(),
                    })?;
                rollout.tokens.push(drawn.0);
                rollout.log_probs.push(drawn.1);
                if sampling.keep_hidden {
                    rollout.hidden.extend(hidden.row(row).unwrap_or_default());
                }
                rollout.finished = sampling.end.contains(&drawn.0);
            }
            let free = &mut self.free;
            active.retain_mut(|sequence| {
                let rollout = &rollouts[sequence.index];
                let goes_on = !rollout.finished && rollout.tokens.len() < sampling.max_new_tokens;
                if !goes_on {
                    free.append(&mut sequence.blocks);
                    // The last response to a prompt frees the prompt's blocks.
                    if let Some(prompt) = Rc::get_mut(&mut sequence.prompt) {
                        free.append(prompt);
                    }
                }
                goes_on
            });
        }
        Ok(rollouts)
    }

    /// Free blocks; there are enough for the longest sequence in every slot.
    fn take(&mut self, blocks: usize) -> Vec<u32> {
        self.free.split_off(self.free.len() - blocks)
    }
}

/// The rows of one step: the newest token of every running sequence, the whole prompt of a new one; of
/// an encoder–decoder model the `start` of a new one, and its prompt beside the batch.
fn step(
    sequences: &[Active],
    requests: &[Request],
    rollouts: &[Rollout],
    start: Option<u32>,
) -> Batch {
    let (mut batch, mut prompts) = (Batch::default(), Batch::default());
    let begin = start.as_ref().map(std::slice::from_ref);
    let mut active = Vec::new();
    for sequence in sequences {
        let (request, rollout) = (&requests[sequence.index], &rollouts[sequence.index]);
        let given = begin.unwrap_or(&request.prompt);
        let all = given.iter().chain(&rollout.tokens).copied().skip(sequence.cached);
        let (prompt, own) = (sequence.prompt.to_vec(), &sequence.blocks);
        let blocks = if start.is_some() { own.clone() } else { [&prompt[..], own].concat() };
        let rows = segment(&mut batch, sequence.cached, all, blocks);
        batch.outputs.push(rows.end - 1);
        active.resize(rows.end, request.active_from);
        if sequence.encodes {
            segment(&mut prompts, 0, request.prompt.iter().copied(), prompt.clone());
        }
        if start.is_some() {
            let cached = request.prompt.len();
            batch.encoded.push(Segment { rows, cached, blocks: prompt });
        }
    }
    batch.prompts = (!prompts.tokens.is_empty()).then(|| Box::new(prompts));
    batch.coefficients = coefficients(&batch.positions, &active);
    batch
}

/// The largest logit, and the sum of the exponentials of `(logit − max)/T` with f64 partial sums.
fn normaliser(logits: &[f32], scale: f32) -> Option<(f32, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let part = |part: &[f32]| part.iter().map(|l| ((l - max) * scale).exp()).sum::<f32>();
    let sum: f64 = logits.chunks(256).map(|chunk| f64::from(part(chunk))).sum();
    (max.is_finite() && sum.is_finite()).then_some((max, sum))
}

/// The token at `uniform` ∈ [0, 1) of the distribution's cumulative sum (`None`: the most likely
/// one, the lowest id of equals) and its log-probability; `None` where the logits are not finite.
fn draw(logits: &[f32], temperature: f64, uniform: Option<f64>) -> Option<(u32, f32)> {
    let scale = 1.0 / temperature as f32;
    let (max, sum) = normaliser(logits, scale)?;
    let token = match uniform {
        None => logits.iter().position(|&l| l == max)?,
        Some(uniform) => {
            let mut left = uniform * sum;
            let crossed = logits.iter().position(|l| {
                left -= f64::from(((l - max) * scale).exp());
                left < 0.0
            });
            // Rounding can leave a remainder after the last token; it counts as the most likely one.
            crossed.or_else(|| logits.iter().position(|&l| l == max))?
        }
    };
    let log_prob = f64::from((logits[token] - max) * scale) - sum.ln();
    Some((token as u32, log_prob as f32))
}
