//! From the logits of a step to tokens.
//!
//! A request that is held to a grammar draws from its mask, which another thread computes while the
//! forward pass runs. A mask that is late keeps nobody else waiting: the logits are parked, and the
//! token is drawn when the mask is there.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rayon::prelude::*;

use super::{
    backend::Backend,
    batch::{Forward, Output},
    request::{EngineError, TokenLogprob},
    scheduler::SeqId,
    worker::{Live, Worker},
};
use crate::{
    rng,
    sampling::{self, Sampled},
};

/// Least requests to sample for which more than one thread pays.
const PARALLEL_ROWS: usize = 4;
/// How long the tokens of a step wait for masks, all together: less than a pass takes.
const MASK_WAIT: Duration = Duration::from_millis(1);

/// A token of a request, or why there is none.
type Drawn = Result<Sampled, EngineError>;

/// The logits of one request in a step, ready to be sampled from.
struct RequestLogits<'a> {
    id: SeqId,
    live: &'a mut Live,
    /// Prompt and answer so far.
    tokens: &'a [u32],
    rows: Vec<(Output, &'a mut [f32])>,
    /// When to stop waiting for a mask.
    until: Instant,
}

impl<B: Backend> Worker<B> {
    /// The embeddings of the requests that want one and whose last row was computed.
    pub(super) fn embeddings(
        &mut self,
        results: &[(Forward, B::Logits)],
    ) -> Vec<(SeqId, Result<Vec<f32>, EngineError>)> {
        let Self { backend, live, scheduler, .. } = self;
        if !live.values().any(|live| live.pool.is_some()) {
            return Vec::new();
        }
        let mut rows: HashMap<SeqId, Vec<(Output, Option<&[f32]>)>> = HashMap::new();
        for (forward, logits) in results {
            let hidden = backend.hidden(logits);
            for (index, output) in forward.outputs.iter().enumerate() {
                let state = hidden.map(|hidden| {
                    let size = hidden.len() / forward.outputs.len();
                    &hidden[index * size..(index + 1) * size]
                });
                rows.entry(output.id).or_default().push((*output, state));
            }
        }
        let embedding = |(id, mut rows): (SeqId, Vec<(Output, Option<&[f32]>)>)| {
            let pool = live.get_mut(&id)?.pool.as_mut()?;
            rows.sort_by_key(|(output, _)| output.position);
            for (_, state) in &rows {
                let Some(state) = state else {
                    let reason = "embeddings are computed on the CPU only";
                    return Some((id, Err(EngineError::Unsupported(reason))));
                };
                pool.push(state);
            }
            let complete = rows.last()?.0.position + 1 == scheduler.tokens(id).len();
            complete.then(|| (id, Ok(pool.mean())))
        };
        rows.into_iter().filter_map(embedding).collect()
    }

    /// Chooses the next token of every request whose last row was computed and whose mask is there.
    pub(super) fn sample(&mut self, results: &mut [(Forward, B::Logits)]) -> Vec<(SeqId, Drawn)> {
        let Self { backend, live, scheduler, .. } = self;
        let vocabulary = self.shared.bounds.vocabulary;
        let until = Instant::now() + MASK_WAIT;
        let mut rows: HashMap<SeqId, Vec<(Output, &mut [f32])>> = HashMap::new();
        for (forward, logits) in results {
            let values = backend.values(logits).chunks_exact_mut(vocabulary);
            for (output, row) in forward.outputs.iter().zip(values) {
                rows.entry(output.id).or_default().push((*output, row));
            }
        }
        let mut requests: Vec<RequestLogits<'_>> = live
            .iter_mut()
            .filter_map(|(&id, live)| {
                let (tokens, rows) = (scheduler.tokens(id), rows.remove(&id)?);
                Some(RequestLogits { id, live, tokens, rows, until })
            })
            .collect();
        let run = |request: &mut RequestLogits<'_>| Some((request.id, request.run()?));
        if requests.len() < PARALLEL_ROWS {
            requests.iter_mut().filter_map(run).collect()
        } else {
            requests.par_iter_mut().filter_map(run).collect()
        }
    }

    /// Draws the tokens whose masks came after the step; false if there were none.
    pub(super) fn resume(&mut self) -> bool {
        let now = Instant::now();
        let drawn: Vec<(SeqId, Drawn)> = self
            .live
            .iter_mut()
            .filter_map(|(&id, live)| {
                let ready = live.guide.as_mut().is_some_and(|guide| guide.is_ready());
                let mut logits = live.parked.take_if(|_| ready)?;
                Some((id, live.draw(&mut logits, now)?))
            })
            .collect();
        let resumed = !drawn.is_empty();
        drawn.into_iter().for_each(|(id, sampled)| self.deliver(id, sampled));
        resumed
    }
}

impl RequestLogits<'_> {
    /// Takes in the rows in their order; the token of the last one.
    fn run(&mut self) -> Option<Drawn> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_by_key(|(output, _)| (output.position, output.lane));
        let mut drawn = None;
        let lanes = self.live.lanes.keys.len();
        for row in rows.chunk_by_mut(|(a, _), (b, _)| a.position == b.position) {
            if row.len() != lanes {
                continue; // A lane's pass failed, and so has the request.
            }
            drawn = self.row(row);
            if matches!(drawn, Some(Err(_))) {
                break;
            }
        }
        drawn
    }

    /// Takes in the logits of one position, one row per lane: samples at the last position, adds a
    /// line to the report on the prompt at an earlier one.
    fn row(&mut self, lanes: &mut [(Output, &mut [f32])]) -> Option<Drawn> {
        let position = lanes.first()?.0.position;
        let logits = combine(lanes, &self.live.mix)?;
        if position + 1 == self.tokens.len() {
            return self.live.draw(logits, self.until);
        }
        let id = self.tokens[position + 1];
        match sampling::logprobs(logits, id, self.live.prompt_logprobs?) {
            Err(error) => Some(Err(EngineError::NotFinite(error.to_string()))),
            Ok((logprob, top)) => {
                self.live.prompt_report.push(TokenLogprob { id, logprob, top });
                None
            }
        }
    }
}

impl Live {
    /// Draws the next token, or parks its logits where its mask is not there by `until`.
    fn draw(&mut self, logits: &mut [f32], until: Instant) -> Option<Drawn> {
        let Self { sampling: params, history, answer, seed, guide, parked, .. } = self;
        let mask = match guide {
            None => None,
            Some(guide) => match guide.mask(until) {
                Some(Ok(mask)) => Some(mask.bits()),
                Some(Err(error)) => return Some(Err(EngineError::Grammar(error.to_string()))),
                None => {
                    *parked = Some(logits.to_vec());
                    return None;
                }
            },
        };
        let uniform = rng::uniform(*seed, answer.generated() as u64);
        let drawn = sampling::sample_among(mask, logits, history, params, uniform);
        Some(drawn.map_err(|error| EngineError::NotFinite(error.to_string())))
    }
}

/// Σ weightᵢ · logitsᵢ in the first lane's row; a single lane as it is.
fn combine<'a>(lanes: &'a mut [(Output, &mut [f32])], mix: &[f32]) -> Option<&'a mut [f32]> {
    let ((_, first), rest) = lanes.split_first_mut()?;
    if let Some((weight, weights)) = mix.split_first() {
        first.iter_mut().for_each(|x| *x *= weight);
        for ((_, row), weight) in rest.iter().zip(weights) {
            first.iter_mut().zip(row.iter()).for_each(|(x, y)| *x += weight * y);
        }
    }
    Some(first)
}
