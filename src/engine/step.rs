//! One step of the engine: forward passes, sampling ([`super::draw`]), delivery.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use super::{
    answer::End,
    backend::Backend,
    batch::{Forward, LaneRows, layout},
    models::StepModel,
    request::{EngineError, Event, FinishReason, Finished, Mode, Started, Timings, Token, Usage},
    scheduler::{SeqId, StepPlan},
    stats::{ForwardReport, StepReport},
    worker::{Live, Worker},
};
use crate::{preference::ModelKey, sampling::Sampled, telemetry::panic_text};

/// The distinct models of a step, per mode.
#[derive(Default)]
struct StepModels {
    list: Vec<StepModel>,
    /// Positions in the list.
    index: HashMap<(ModelKey, Mode), usize>,
}

impl StepModels {
    fn add(&mut self, key: &ModelKey, mode: Mode, rows: usize, free: usize) {
        let Self { list, index } = self;
        let slot = *index.entry((key.clone(), mode)).or_insert_with(|| {
            list.push(StepModel { key: key.clone(), mode, rows: 0, free: 0 });
            list.len() - 1
        });
        list[slot].rows += rows;
        list[slot].free += free;
    }

    /// Distinct coefficients, over both modes.
    fn distinct(&self) -> usize {
        self.list.iter().map(|model| &model.key).collect::<HashSet<_>>().len()
    }
}

/// Rows of one lane of a request that one model computes.
struct Part<'a> {
    id: SeqId,
    live: &'a Live,
    lane: usize,
    /// Positions in the sequence.
    rows: Range<usize>,
    key: &'a ModelKey,
    mode: Mode,
    /// Whether that may be another one.
    free: bool,
}

impl<B: Backend> Worker<B> {
    /// Makes a planned step.
    pub(super) fn make(&mut self, plan: &StepPlan) {
        let begin = Instant::now();
        self.decide(plan);
        self.announce(plan);
        let parts = self.parts(plan);
        let models = self.step_models(&parts);
        let forwards = self.layout(&parts, &models);
        self.models.promote(&mut self.backend, &models.list, self.started.elapsed());

        let mut results = Vec::with_capacity(forwards.len());
        let mut reports = Vec::with_capacity(forwards.len());
        let mut broken: HashMap<SeqId, EngineError> = HashMap::new();
        for forward in forwards {
            let key = forward.merged.map(|index| &models.list[index].key);
            match self.compute(&forward, key) {
                Ok((logits, report)) => {
                    reports.push(report);
                    results.push((forward, logits));
                }
                Err(Failure { error, panicked }) => {
                    let sequences = forward.sequences.len();
                    tracing::error!(%error, sequences, "a forward pass failed");
                    broken.extend(forward.sequences.iter().map(|&id| (id, error.clone())));
                    if panicked {
                        // The panic may have left the key/value memory in any state, so the rest
                        // of the step is dropped, too.
                        broken.into_iter().for_each(|(id, error)| self.fail(id, error));
                        self.recover();
                        return;
                    }
                }
            }
        }
        for (id, error) in broken {
            self.fail(id, error);
        }
        for item in &plan.items {
            let prompt = self.live.get(&item.id).map_or(0, |live| live.prompt_tokens);
            let before = item.range.start.min(prompt);
            self.stats.prompt_tokens += (item.range.end.min(prompt) - before) as u64;
            self.scheduler.computed(item);
        }
        for (id, state) in self.embeddings(&results) {
            self.deliver_embedding(id, state);
        }
        for (id, sampled) in self.sample(&mut results) {
            self.deliver(id, sampled);
        }
        self.report(begin, models.distinct(), reports);
    }

    /// Chooses the modes of the rows that are free.
    fn decide(&mut self, plan: &StepPlan) {
        let (mut free, mut mixed) = (BTreeMap::<ModelKey, usize>::new(), 0);
        for part in self.parts(plan) {
            match (part.free, part.mode) {
                (true, _) => *free.entry(part.key.clone()).or_default() += part.rows.len(),
                (false, Mode::Mixed) => mixed += part.rows.len(),
                (false, Mode::Fused) => {}
            }
        }
        self.models.decide(&mut self.backend, &free, mixed);
    }

    /// The rows of a step, a part for each lane and model.
    fn parts<'a>(&'a self, plan: &'a StepPlan) -> Vec<Part<'a>> {
        let mut parts = Vec::with_capacity(plan.items.len());
        for item in &plan.items {
            let Some(live) = self.live.get(&item.id) else { continue };
            for (lane, key) in live.lanes.keys.iter().enumerate() {
                let start = item.range.start.max(self.scheduler.own_from(item.id, lane));
                let rows = start.min(item.range.end)..item.range.end;
                parts.extend(self.models.parts(&live.lanes, key, rows).map(
                    |(rows, key, mode, free)| Part {
                        id: item.id,
                        live,
                        lane,
                        rows,
                        key,
                        mode,
                        free,
                    },
                ));
            }
        }
        parts
    }

    /// The models of a step, each with the rows that it executes in each mode. The order is that of
    /// the fused passes: θ_sft comes first, as the others attend to the rows that it computes.
    fn step_models(&self, parts: &[Part<'_>]) -> StepModels {
        let mut models = StepModels::default();
        let (prompts, own): (Vec<_>, Vec<_>) =
            parts.iter().partition(|part| self.models.computes_prompts(part.key, part.mode));
        for part in prompts.into_iter().chain(own) {
            let rows = part.rows.len();
            models.add(part.key, part.mode, rows, if part.free { rows } else { 0 });
        }
        models
    }

    /// Sends `Started` to the requests that join for the first time.
    fn announce(&mut self, plan: &StepPlan) {
        for &(id, cached) in &plan.admitted {
            let Some(live) = self.live.get_mut(&id) else { continue };
            if live.waiting.take().is_none() {
                continue; // Admitted before, then preempted.
            }
            let mode = self.models.mode_of_all(&live.lanes);
            let waited = live.arrived.elapsed();
            live.merge = live.merge.min(waited);
            live.queue = waited - live.merge;
            live.cached_tokens = cached.min(live.prompt_tokens);
            self.stats.cached_tokens += live.cached_tokens as u64;
            if !live.needs_prompt() {
                self.stats.queried_tokens += live.prompt_tokens as u64;
            }
            live.events.send(Event::Started(Started {
                mode,
                cache: live.cache.filter(|_| mode == Mode::Fused),
                queue: live.queue,
                merge: live.merge,
                cached_tokens: live.cached_tokens,
            }));
        }
    }

    fn layout(&self, parts: &[Part<'_>], models: &StepModels) -> Vec<Forward> {
        let rows = parts.iter().map(|part| {
            let Part { id, live, lane, ref rows, key, mode, .. } = *part;
            let tokens = self.scheduler.tokens(id);
            let wanted = |&row: &usize| {
                let next = rows.start + row + 1;
                next == tokens.len() || live.needs_prompt() && next < live.prompt_tokens
            };
            LaneRows {
                id,
                lane,
                model: models.index[&(key.clone(), mode)],
                start: rows.start,
                tokens: &tokens[rows.clone()],
                blocks: self.scheduler.blocks(id, lane),
                encoded: live.encoded,
                outputs: (0..rows.len()).filter(wanted).collect(),
            }
        });
        let executed = |model: &StepModel| (model.mode, self.models.terms(&model.key));
        let models = models.list.iter().map(executed).collect::<Vec<_>>();
        layout(&rows.collect::<Vec<_>>(), &models)
    }

    /// Makes one forward pass, with the merged weights of `key` or with per-row coefficients.
    fn compute(
        &mut self,
        forward: &Forward,
        key: Option<&ModelKey>,
    ) -> Result<(B::Logits, ForwardReport), Failure> {
        let error = |error, panicked| Failure { error: EngineError::Forward(error), panicked };
        let lease = match key {
            None => None,
            Some(key) => match self.models.lease(key) {
                Some(lease) => Some(lease),
                None => return Err(error("merged weights are not leased".to_owned(), false)),
            },
        };
        let prompts = forward.batch.prompts.as_ref().map_or(0, |prompts| prompts.tokens.len());
        let rows = forward.batch.tokens.len() + prompts;
        let mode = if key.is_some() { Mode::Fused } else { Mode::Mixed };
        let predicted = Duration::try_from_secs_f64(self.models.cost.pass(mode, rows));
        let begin = Instant::now();
        let backend = &mut self.backend;
        let result = catch_unwind(AssertUnwindSafe(|| backend.forward(lease, &forward.batch)));
        let elapsed = begin.elapsed();
        match result {
            Err(panic) => Err(error(panic_message(&*panic), true)),
            Ok(Err(refused)) if refused.is_out_of_memory() => {
                Err(Failure { error: EngineError::Memory(refused.to_string()), panicked: false })
            }
            Ok(Err(refused)) => Err(error(refused.to_string(), false)),
            Ok(Ok(logits)) => {
                self.models.cost.observe_pass(mode, rows, elapsed);
                match mode {
                    Mode::Fused => self.stats.fused_forwards += 1,
                    Mode::Mixed => self.stats.mixed_forwards += 1,
                }
                let predicted = predicted.unwrap_or_default();
                let distinct = forward.distinct;
                Ok((logits, ForwardReport { mode, rows, distinct, elapsed, predicted }))
            }
        }
    }

    /// After a panic: key/value memory starts anew, and what still runs is computed again.
    fn recover(&mut self) {
        self.stats.preempted += self.scheduler.running().len() as u64;
        self.scheduler.forget();
        self.live.values_mut().for_each(Live::will_be_computed_again);
        let Self { backend, .. } = self;
        let reset = catch_unwind(AssertUnwindSafe(|| backend.reset()));
        let reason = match reset {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_message(&*panic),
        };
        tracing::error!(reason, "the key/value memory cannot be set up again");
        for id in self.live.keys().copied().collect::<Vec<_>>() {
            self.fail(id, EngineError::Forward(reason.clone()));
        }
    }

    /// Takes in the result of a request's logits.
    pub(super) fn deliver(&mut self, id: SeqId, sampled: Result<Sampled, EngineError>) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let sampled = match sampled {
            Ok(sampled) => sampled,
            Err(error) => return self.fail(id, error),
        };
        if live.prompt_logprobs.take().is_some() {
            let report = std::mem::take(&mut live.prompt_report);
            live.events.send(Event::Prompt(report));
        }
        self.stats.generated_tokens += 1;
        let Sampled { id: token, logprob, top } = sampled;
        live.first_token.get_or_insert_with(|| live.arrived.elapsed());
        if live.sampling.has_penalties() {
            live.history.push(token);
        }
        let (text, end) = live.answer.accept(token);
        // If the client has left, `let_go` removes it before the next step.
        live.events.send(Event::Token(Token { id: token, text, logprob, top }));
        let Some(end) = end else {
            if let Some(guide) = &mut live.guide {
                guide.accept(token);
            }
            return self.scheduler.push(id, token);
        };
        self.complete(id, end);
    }

    /// Takes in the embedding of a prompt, of which nothing else is wanted.
    fn deliver_embedding(&mut self, id: SeqId, state: Result<Vec<f32>, EngineError>) {
        let state = match state {
            Ok(state) => state,
            Err(error) => return self.fail(id, error),
        };
        if let Some(live) = self.live.get(&id) {
            // Sending fails if the client left.
            live.events.send(Event::Embedding(state));
        }
        self.complete(id, End { reason: FinishReason::Stop, stop: None });
    }

    /// Ends a request whose answer is complete.
    fn complete(&mut self, id: SeqId, end: End) {
        let Some(live) = self.remove(id) else { return };
        let total = live.arrived.elapsed();
        self.stats.finished += 1;
        let mean = &mut self.stats.mean_request_time;
        *mean = if mean.is_zero() { total } else { (*mean * 9 + total) / 10 };
        live.events.send(Event::Finished(Finished {
            reason: end.reason,
            stop: end.stop,
            usage: Usage {
                prompt_tokens: live.prompt_tokens,
                cached_tokens: live.cached_tokens,
                completion_tokens: live.answer.generated(),
            },
            timings: Timings {
                queue: live.queue,
                merge: live.merge,
                first_token: live.first_token.unwrap_or(total),
                total,
            },
        }));
    }

    fn report(&mut self, begin: Instant, distinct: usize, forwards: Vec<ForwardReport>) {
        self.stats.steps += 1;
        let passes = forwards.iter().map(|f| (f.mode, f.rows, f.elapsed, f.predicted));
        let passes = passes.collect::<Vec<_>>();
        tracing::trace!(elapsed = ?begin.elapsed(), ?passes, "step");
        if let Some(observer) = &self.observer {
            let rows = forwards.iter().map(|forward| forward.rows).sum();
            let report = StepReport { elapsed: begin.elapsed(), forwards, distinct, rows };
            observer.step(&report, &self.stats);
        }
    }
}

/// Why a forward pass failed.
struct Failure {
    error: EngineError,
    panicked: bool,
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    format!("internal error: {}", panic_text(panic))
}
