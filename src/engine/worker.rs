//! The engine's thread: it alone owns the soup, its key/value memory and every request's state.
//!
//! One turn of the loop: receive messages, remove requests that were abandoned or are late, plan a
//! step, make it (see [`super::step`]), sleep when there is nothing to do.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, mpsc},
    time::{Duration, Instant},
};

use super::{
    answer::Answer,
    backend::Backend,
    batch::Encoded,
    client::Client,
    events::EventSender,
    handle::{EngineState, Message, SharedState, Submission},
    models::{Lanes, Models, Readiness, Wanted},
    places::Place,
    pooling::Pool,
    request::{CacheOutcome, Combine, EngineError, Event, GenerateRequest, Mode, TokenLogprob},
    scheduler::{NewSequence, Scheduler, SeqId},
    stats::{EngineStats, Observer},
};
use crate::{
    grammar::{Guide, Wake},
    preference::{Coefficients, ModelKey},
    rng,
    sampling::{History, SamplingParams},
    tokenizer::Tokenizer,
    turns::Turns,
};

/// How often a waiting engine looks for deadlines that passed; clients that left and merges that
/// ended also wake it.
const POLL: Duration = Duration::from_millis(10);

/// An accepted request.
pub(super) struct Live {
    pub events: EventSender,
    pub lanes: Lanes,
    /// Weights of the lanes' logits; empty for a single lane.
    pub mix: Vec<f32>,
    pub sampling: SamplingParams,
    pub seed: u64,
    pub history: History,
    /// Its embedding, where that alone is wanted.
    pub pool: Option<Pool>,
    /// Its way through the grammar of the request.
    pub guide: Option<Guide>,
    /// Logits of the next token, which waits for its mask.
    pub parked: Option<Vec<f32>>,
    pub answer: Answer,
    pub prompt_tokens: usize,
    /// What of it is encoded.
    pub encoded: Encoded,
    pub max_tokens: usize,
    pub deadline: Option<Instant>,
    /// Alternatives per prompt token, until the prompt's log-probabilities were delivered.
    pub prompt_logprobs: Option<usize>,
    pub prompt_report: Vec<TokenLogprob>,
    pub arrived: Instant,
    pub waiting: Option<Place>,
    /// When it was first kept waiting only by its merge.
    pub merge_since: Option<Instant>,
    pub cache: Option<CacheOutcome>,
    pub queue: Duration,
    pub merge: Duration,
    pub cached_tokens: usize,
    pub first_token: Option<Duration>,
}

impl Live {
    /// Forgets what the next computation of its rows gives once more.
    pub(super) fn will_be_computed_again(&mut self) {
        self.prompt_report.clear();
        self.parked = None;
        if let Some(pool) = &mut self.pool {
            pool.clear();
        }
    }

    /// Whether the result of every row of the prompt is wanted, not only that of the last one.
    pub(super) fn needs_prompt(&self) -> bool {
        self.prompt_logprobs.is_some() || self.pool.as_ref().is_some_and(Pool::needs_all)
    }
}

/// Everything that the thread owns, dropped in this order: merged models before the cache that they
/// came from, the shared state last.
pub(super) struct Worker<B: Backend> {
    pub models: Models<B>,
    pub backend: B,
    pub tokenizer: Tokenizer,
    pub eos: Arc<[u32]>,
    pub scheduler: Scheduler,
    pub live: HashMap<SeqId, Live>,
    pub observer: Option<Arc<dyn Observer>>,
    pub share_prefixes: bool,
    /// Where the model encodes prompts first: the token that every answer begins after.
    pub start: Option<u32>,
    pub stats: EngineStats,
    pub started: Instant,
    /// Wakes the thread.
    pub wake: Wake,
    /// Those of the device.
    pub turns: Arc<Turns>,
    was_busy: bool,
    pub shared: Arc<SharedState>,
}

/// Marks the engine as stopped when its thread ends, by a panic too.
struct Stopped(Arc<SharedState>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.state.send_replace(EngineState::Stopped);
    }
}

impl<B: Backend> Worker<B> {
    /// A worker with nothing to do and without an observer.
    pub(super) fn new(
        backend: B,
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        models: Models<B>,
        shared: Arc<SharedState>,
    ) -> Self {
        let stats = EngineStats {
            kv_blocks: scheduler.pool().len(),
            block_tokens: scheduler.pool().block_tokens(),
            ..EngineStats::default()
        };
        let mut worker = Self {
            backend,
            eos: tokenizer.eos().into(),
            tokenizer,
            scheduler,
            models,
            live: HashMap::new(),
            shared,
            observer: None,
            share_prefixes: false,
            start: None,
            stats,
            started: Instant::now(),
            wake: Arc::new(|| ()),
            turns: Arc::default(),
            was_busy: false,
        };
        worker.publish();
        worker
    }

    /// The thread's whole life.
    pub(super) fn run(&mut self, inbox: &mpsc::Receiver<Message>) {
        let _stopped = Stopped(self.shared.clone());
        while self.turn(inbox) {}
        let rest: Vec<SeqId> = self.live.keys().copied().collect();
        rest.into_iter().for_each(|id| self.fail(id, EngineError::Stopped));
        self.publish();
        // From here on nothing is accepted; requests that came in before fail.
        self.shared.state.send_replace(EngineState::Stopped);
        while let Ok(message) = inbox.try_recv() {
            let Message::Submit(submissions) = message else { continue };
            for submission in submissions {
                submission.events.send(Event::Failed(EngineError::Stopped));
            }
        }
    }

    /// One turn of the loop; false when the engine is to end.
    fn turn(&mut self, inbox: &mpsc::Receiver<Message>) -> bool {
        self.shared.turn(Some(Instant::now()));
        loop {
            match inbox.try_recv() {
                Ok(message) => {
                    if !self.receive(message) {
                        return false;
                    }
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) if self.live.is_empty() => return false,
                Err(mpsc::TryRecvError::Disconnected) => break,
            }
        }
        self.let_go();
        let resumed = self.resume();
        let worked = self.step();
        if worked || resumed {
            self.was_busy = true;
            return true;
        }
        if self.live.is_empty() {
            self.idle();
            if *self.shared.state.borrow() == EngineState::Draining {
                return false;
            }
        }
        let message = if self.live.is_empty() {
            self.shared.turn(None);
            inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(POLL)
        };
        match message {
            Ok(message) => self.receive(message),
            Err(mpsc::RecvTimeoutError::Timeout) => true,
            Err(mpsc::RecvTimeoutError::Disconnected) => !self.live.is_empty(),
        }
    }

    fn receive(&mut self, message: Message) -> bool {
        match message {
            Message::Submit(submissions) => {
                for submission in submissions {
                    self.accept(submission);
                }
            }
            Message::Wake => {}
            Message::Abort => return false,
        }
        true
    }

    /// Takes a request in.
    fn accept(&mut self, submission: Submission) {
        let Submission { request, events, arrived, place } = submission;
        let mix = lane_weights(&request.combine);
        let wanted = Wanted {
            keys: model_keys(&request),
            from: request.active_from.unwrap_or(0),
            repeatable: request.is_repeatable(),
            owner: self.owner(&request),
        };
        let lanes = self.models.enter(&self.backend, wanted);
        let mut chains = self.models.chains(&lanes);
        let GenerateRequest { prompt, sampling, max_tokens, .. } = request;
        // What is encoded is no part of the text that the answer continues.
        let (prompt_tokens, mut encoded, mut tokens) = (prompt.len(), Encoded::default(), prompt);
        let mut before = tokens.clone();
        if let Some(start) = self.start {
            chains.iter_mut().for_each(|chain| *chain = chain.after_encoded(&tokens));
            let pool = self.scheduler.pool();
            let blocks = pool.blocks_for(prompt_tokens);
            let positions = blocks * pool.block_tokens();
            encoded = Encoded { tokens: prompt_tokens, positions, blocks };
            tokens.resize(positions, start);
            tokens.push(start);
            before = vec![start];
        }
        let eos = (!request.ignore_eos).then(|| self.eos.clone());
        let live = Live {
            events,
            mix,
            seed: sampling.seed.unwrap_or_else(rng::fresh_seed),
            history: if sampling.has_penalties() {
                History::new(&before)
            } else {
                History::default()
            },
            pool: request.embed.map(Pool::new),
            guide: request.grammar.map(|grammar| grammar.start(self.wake.clone())),
            parked: None,
            answer: Answer::new(&self.tokenizer, &before, request.stop, eos, max_tokens),
            sampling,
            prompt_tokens,
            encoded,
            max_tokens,
            deadline: request.deadline,
            prompt_logprobs: request.prompt_logprobs,
            prompt_report: Vec::new(),
            arrived,
            waiting: Some(place),
            merge_since: None,
            cache: None,
            queue: Duration::ZERO,
            merge: Duration::ZERO,
            cached_tokens: 0,
            first_token: None,
            lanes,
        };
        let id = self.scheduler.enqueue(NewSequence {
            tokens,
            encoded: encoded.positions,
            chains,
            priority: request.priority,
            arrived: arrived.saturating_duration_since(self.started),
            prompt_logits: live.needs_prompt(),
            client: request.client,
        });
        self.live.insert(id, live);
    }

    /// Whose prefixes a request may find: its key's alone, unless prefixes are shared, and those of its
    /// salt alone.
    fn owner(&self, request: &GenerateRequest) -> Option<Arc<str>> {
        let key = match &request.client {
            Client::Key(name) if !self.share_prefixes => Some(name),
            _ => None,
        };
        match &request.cache_salt {
            None => key.cloned(),
            // In quotes, which names of keys do not have: no other owner is written so.
            Some(salt) => Some(format!("{key:?} {salt:?}").into()),
        }
    }

    /// Removes requests whose client left or does not read, or whose deadline passed.
    fn let_go(&mut self) {
        let now = Instant::now();
        let left = self.live.iter().filter(|(_, live)| live.events.has_left());
        for id in left.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.stats.cancelled += 1;
            self.remove(id);
        }
        let late = self.live.iter().filter(|(_, live)| live.deadline.is_some_and(|at| at <= now));
        let late = late.map(|(&id, live)| (id, live.answer.generated(), live.max_tokens));
        for (id, generated, max_tokens) in late.collect::<Vec<_>>() {
            self.fail(id, EngineError::Deadline { generated, max_tokens });
        }
        let slow = self.live.iter().filter_map(|(&id, live)| Some((id, live.events.overrun()?)));
        for (id, unread) in slow.collect::<Vec<_>>() {
            self.fail(id, EngineError::Unread { unread });
        }
    }

    /// Plans and makes a step; false if there was nothing to do.
    fn step(&mut self) -> bool {
        if self.live.is_empty() {
            return false;
        }
        let Self { scheduler, models, backend, live, started, .. } = self;
        let mut failed = Vec::new();
        let cost = models.cost.clone();
        let mut running = scheduler.running().iter().filter_map(|id| live.get(id));
        let mixed = running.any(|live| models.mode_of_all(&live.lanes) == Mode::Mixed);
        let mode = if mixed { Mode::Mixed } else { Mode::Fused };
        let mut building = models.building(backend);
        let plan = scheduler.plan(
            started.elapsed(),
            |decoding, prompts| cost.rows_beside(mode, decoding, prompts),
            |id| {
                let Some(request) = live.get_mut(&id) else { return false };
                match models.ready(backend, &request.lanes, &mut building) {
                    Readiness::Ready => {
                        request.cache.get_or_insert(CacheOutcome::Hit);
                        if let Some(since) = request.merge_since.take() {
                            request.merge += since.elapsed();
                        }
                        true
                    }
                    Readiness::NotYet => {
                        request.cache.get_or_insert(CacheOutcome::Miss);
                        request.merge_since.get_or_insert_with(Instant::now);
                        false
                    }
                    Readiness::Failed(reason) => {
                        failed.push((id, reason));
                        false
                    }
                }
            },
        );
        for (id, reason) in failed {
            self.fail(id, reason);
        }
        for id in &plan.preempted {
            self.stats.preempted += 1;
            if let Some(live) = self.live.get_mut(id) {
                live.will_be_computed_again();
            }
        }
        let worked = !plan.items.is_empty();
        if worked {
            let turns = self.turns.clone();
            let _turn = turns.step();
            self.make(&plan);
            turns.note_waiting(self.models.waiting());
        }
        let Self { scheduler, models, live, .. } = self;
        let running = scheduler.running().iter().filter_map(|id| live.get(id));
        models.release_unused(running.map(|live| &live.lanes));
        self.publish();
        worked
    }

    /// Ends a request that cannot be completed.
    pub(super) fn fail(&mut self, id: SeqId, error: EngineError) {
        if let Some(live) = self.remove(id) {
            self.stats.failed += 1;
            live.events.send(Event::Failed(error));
        }
    }

    /// Removes a request with all that it holds.
    pub(super) fn remove(&mut self, id: SeqId) -> Option<Live> {
        self.scheduler.finish(id);
        let live = self.live.remove(&id)?;
        self.models.leave(&live.lanes);
        Some(live)
    }

    /// On becoming idle: checks that nothing is left behind.
    fn idle(&mut self) {
        if !std::mem::take(&mut self.was_busy) {
            return;
        }
        let books = self.scheduler.check().map_err(|error| error.to_string());
        let left = self.models.len();
        let nothing_left = if left == 0 { Ok(()) } else { Err(format!("{left} models in use")) };
        if let Err(reason) = books.and(nothing_left) {
            self.stats.integrity_failures += 1;
            tracing::error!(reason, "the engine is idle but something is still held");
        }
        self.publish();
    }

    fn publish(&mut self) {
        let pool = self.scheduler.pool();
        self.stats.running = self.scheduler.running().len();
        self.stats.kv_used = pool.len() - pool.available();
        self.stats.kv_cached = pool.idle();
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.clone_from(&self.stats);
    }
}

/// The model of each lane: the request's own, or every backbone's where logits are combined.
fn model_keys(request: &GenerateRequest) -> Vec<ModelKey> {
    let one_hot = |lane| {
        let backbones = request.coefficients.backbones.iter().enumerate();
        let backbones = backbones.map(|(i, _)| if i == lane { 1.0 } else { 0.0 }).collect();
        ModelKey::of(&Coefficients { backbones, sft: 0.0 })
    };
    match &request.combine {
        Combine::Weights => vec![ModelKey::of(&request.coefficients)],
        Combine::Logits(weights) => (0..weights.len()).map(one_hot).collect(),
    }
}

/// Weights of the lanes' logits; none for a single lane.
fn lane_weights(combine: &Combine) -> Vec<f32> {
    match combine {
        Combine::Weights => Vec::new(),
        Combine::Logits(weights) => weights.iter().map(|&weight| weight as f32).collect(),
    }
}
