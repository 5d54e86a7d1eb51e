//! The handle of an engine: bounded, asynchronous, cheap to clone. One thread owns the model and its
//! state and receives messages.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    ailment::Ailment,
    client::Client,
    events::{self, EventReceiver, EventSender},
    places::{Full, Place, Places},
    request::{Combine, Event, GenerateRequest, SubmitError},
    stats::EngineStats,
};
use crate::preference::ModelKey;

const ONE_SECOND: Duration = Duration::from_secs(1);

/// Limits of every request, known once the model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Backbones of the soup: length of `coefficients.backbones`.
    pub backbones: usize,
    /// Whether the backbones are active on the answer only.
    pub answer_only: bool,
    /// Longest prompt + answer, in tokens: the model's context or the configured limit.
    pub context: usize,
    /// Where prompts are encoded first, in one step: the most tokens of that.
    pub encoded: Option<usize>,
    /// Key/value blocks; one request alone never needs more.
    pub kv_blocks: usize,
    /// Tokens per block.
    pub block_tokens: usize,
    /// Most rows that one request may have in a step (backbones decoded side by side).
    pub lanes: usize,
}

impl Bounds {
    /// Checks a request against them.
    pub fn check(&self, request: &GenerateRequest) -> Result<(), SubmitError> {
        let invalid = |field, reason| Err(SubmitError::Invalid { field, reason });
        let prompt = request.prompt.len();
        if prompt == 0 {
            return invalid("prompt", "has no tokens, expected at least 1".to_owned());
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= self.vocabulary) {
            let limit = self.vocabulary;
            return invalid("prompt", format!("token {id} is outside the vocabulary of {limit}"));
        }
        if request.max_tokens == 0 {
            return invalid("max_tokens", "is 0, expected at least 1".to_owned());
        }
        let Some(total) = prompt.checked_add(request.max_tokens).filter(|&t| t <= self.context)
        else {
            let reason = format!(
                "{prompt} prompt tokens + max_tokens {} exceed the context of {} tokens",
                request.max_tokens, self.context
            );
            return invalid(if prompt >= self.context { "prompt" } else { "max_tokens" }, reason);
        };
        let c = &request.coefficients;
        if c.backbones.len() != self.backbones {
            let (got, expected) = (c.backbones.len(), self.backbones);
            return invalid("coefficients", format!("{got} backbones, expected {expected}"));
        }
        let most = ModelKey::MOST;
        if let Some(value) =
            c.backbones.iter().chain([&c.sft]).find(|v| !v.is_finite() || v.abs() > most)
        {
            return invalid("coefficients", format!("{value}, expected numbers within ±{most}"));
        }
        match (self.answer_only, request.active_from) {
            (false, None) => {}
            (true, Some(from)) if from < prompt => {}
            (true, from) => {
                let got = from.map_or("nothing".to_owned(), |from| from.to_string());
                let reason = format!(
                    "{got}, expected a position below {prompt}, the length of the prompt: the \
                     backbones of this soup are active on the answer only"
                );
                return invalid("active_from", reason);
            }
            (false, Some(from)) => {
                let reason = format!(
                    "{from}, expected nothing: the backbones of this soup are active on every token"
                );
                return invalid("active_from", reason);
            }
        }
        let lanes = match &request.combine {
            Combine::Weights => 1,
            Combine::Logits(w) if w.len() != self.backbones || !w.iter().all(|v| v.is_finite()) => {
                let expected = self.backbones;
                return invalid("combine", format!("{w:?}, expected {expected} finite weights"));
            }
            Combine::Logits(weights) => weights.len(),
        };
        if lanes > self.lanes {
            return invalid("combine", format!("{lanes} lanes, expected at most {}", self.lanes));
        }
        // What is encoded has whole blocks, to which the answer adds its own.
        let whole = prompt.next_multiple_of(self.block_tokens);
        let stored = if self.encoded.is_some() { whole + request.max_tokens } else { total };
        if let Some(most) = self.encoded {
            if whole.checked_mul(lanes).is_none_or(|tokens| tokens > most) {
                let reason = format!(
                    "{prompt} tokens, expected at most {}: the model encodes a prompt in one step, \
                     which max_step_tokens = {most} bounds{}",
                    most / lanes / self.block_tokens * self.block_tokens,
                    if lanes > 1 { ", once for each lane" } else { "" },
                );
                return invalid("prompt", reason);
            }
            let wants = [
                ("prompt_logprobs", request.prompt_logprobs.is_some()),
                ("embed", request.embed.is_some()),
            ];
            if let Some((field, _)) = wants.into_iter().find(|(_, wanted)| *wanted) {
                let reason = "is given, expected nothing: the model encodes a prompt and does not \
                              continue it";
                return invalid(field, reason.to_owned());
            }
        }
        let blocks = stored.div_ceil(self.block_tokens).checked_mul(lanes);
        if blocks.is_none_or(|blocks| blocks > self.kv_blocks) {
            let most = (self.kv_blocks / lanes).saturating_mul(self.block_tokens);
            let reason = format!(
                "{prompt} prompt tokens + max_tokens {} exceed the key/value memory of {most} \
                 tokens",
                request.max_tokens
            );
            return invalid("max_tokens", reason);
        }
        if request.stop.iter().any(String::is_empty) {
            return invalid("stop", "an empty string, expected at least one character".to_owned());
        }
        let draws = request.grammar.is_some() || request.prompt_logprobs.is_some() || lanes > 1;
        if request.embed.is_some() && draws {
            let reason = "is given, expected nothing beside a grammar, log-probabilities or lanes";
            return invalid("embed", reason.to_owned());
        }
        if request.grammar.is_some() && request.ignore_eos {
            let reason = "is true, expected false beside a grammar, whose end ends the answer";
            return invalid("ignore_eos", reason.to_owned());
        }
        match request.sampling.check() {
            Ok(()) => Ok(()),
            Err(error) => {
                invalid(error.name, format!("is {}, expected {}", error.got, error.expected))
            }
        }
    }
}

/// Whether the engine takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// It takes requests.
    Running,
    /// It finishes accepted requests and takes no new ones.
    Draining,
    /// Its thread has ended.
    Stopped,
}

/// Messages to the worker thread.
pub(super) enum Message {
    /// Requests that belong together, in order.
    Submit(Vec<Submission>),
    /// A client left, a merge ended, or draining began.
    Wake,
    /// Fail everything and end.
    Abort,
}

/// A request that was accepted.
pub(super) struct Submission {
    pub request: GenerateRequest,
    pub events: EventSender,
    pub arrived: Instant,
    /// Its place in the queue, until it first runs or ends.
    pub place: Place,
}

/// State shared by handle and worker.
pub(super) struct SharedState {
    pub bounds: Bounds,
    pub waiting: Arc<Places>,
    pub stats: Mutex<EngineStats>,
    pub state: watch::Sender<EngineState>,
    /// When the worker began the turn that it is at; `None`: it waits for messages.
    turn: Mutex<Option<Instant>>,
}

impl SharedState {
    pub(super) fn new(bounds: Bounds, max_waiting: usize) -> Self {
        Self {
            bounds,
            waiting: Arc::new(Places::new(max_waiting)),
            stats: Mutex::default(),
            state: watch::Sender::new(EngineState::Running),
            turn: Mutex::default(),
        }
    }

    fn stats(&self) -> EngineStats {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stats.waiting = self.waiting.taken();
        stats
    }

    /// The worker begins a turn, or none until there is a message.
    pub(super) fn turn(&self, begun: Option<Instant>) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = begun;
    }
}

/// The engine as the rest of the program sees it.
#[derive(Clone)]
pub struct EngineHandle {
    messages: Arc<mpsc::Sender<Message>>,
    shared: Arc<SharedState>,
}

impl EngineHandle {
    pub(super) fn new(messages: Arc<mpsc::Sender<Message>>, shared: Arc<SharedState>) -> Self {
        Self { messages, shared }
    }

    /// Limits of a request.
    pub fn bounds(&self) -> &Bounds {
        &self.shared.bounds
    }

    /// Accepts a request, or says why not; never waits. Dropping the answer cancels the request
    /// within one step.
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, SubmitError> {
        self.submit_all(vec![request])?.pop().ok_or(SubmitError::Stopped)
    }

    /// Accepts requests of one client that belong together, all or none. Answers in the order of the
    /// requests.
    pub fn submit_all(
        &self,
        requests: Vec<GenerateRequest>,
    ) -> Result<Vec<Generation>, SubmitError> {
        match self.state() {
            EngineState::Running => {}
            EngineState::Draining => return Err(SubmitError::Draining),
            EngineState::Stopped => return Err(SubmitError::Stopped),
        }
        for request in &requests {
            self.shared.bounds.check(request)?;
        }
        let waiting = &self.shared.waiting;
        let client = requests.first().map_or(Client::Local, |request| request.client.clone());
        let places = waiting.take(&client, requests.len(), None).map_err(|full| match full {
            Full::All { taken } => SubmitError::QueueFull { waiting: taken, limit: waiting.most() },
            Full::Client { taken, most } => SubmitError::ShareFull { waiting: taken, limit: most },
            // None was given.
            Full::Own { most } => SubmitError::ShareFull { waiting: most, limit: most },
        })?;
        let mut generations = Vec::with_capacity(requests.len());
        let submission = |(request, place): (GenerateRequest, _)| {
            let (sender, events) = events::channel(request.max_unread);
            generations.push(Generation { events, messages: self.messages.clone() });
            Submission { request, events: sender, arrived: Instant::now(), place }
        };
        let submissions = requests.into_iter().zip(places).map(submission).collect();
        self.messages.send(Message::Submit(submissions)).map_err(|_| SubmitError::Stopped)?;
        Ok(generations)
    }

    /// A look at the engine that does not keep it.
    pub fn watch(&self) -> EngineWatch {
        EngineWatch { messages: Arc::downgrade(&self.messages), shared: self.shared.clone() }
    }

    /// Whether requests are taken.
    pub fn state(&self) -> EngineState {
        *self.shared.state.borrow()
    }

    /// What is wrong with the engine, whose steps take at most `longest`.
    pub fn ailment(&self, longest: Duration) -> Option<Ailment> {
        if self.state() == EngineState::Stopped {
            return Some(Ailment::Stopped);
        }
        let begun = *self.shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let time = begun?.elapsed();
        (time > longest).then_some(Ailment::Stuck(time))
    }

    /// Takes no more requests; those accepted are completed. See [`Self::stopped`].
    pub fn drain(&self) {
        self.shared.state.send_if_modified(|state| {
            let running = *state == EngineState::Running;
            if running {
                *state = EngineState::Draining;
            }
            running
        });
        // Sending fails only if the worker has ended.
        let _ = self.messages.send(Message::Wake);
    }

    /// Fails what has not been completed and ends the engine's thread.
    pub fn abort(&self) {
        self.drain();
        let _ = self.messages.send(Message::Abort);
    }

    /// Waits until the engine's thread has ended (after [`Self::drain`] or [`Self::abort`]).
    pub async fn stopped(&self) {
        // The sender lives in `shared`, so waiting cannot fail while `self` does.
        let _ = self.shared.state.subscribe().wait_for(|s| *s == EngineState::Stopped).await;
    }

    /// Counters and gauges as of the last step.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    /// `Retry-After` for a full queue: the time in which those who wait now will have begun, as many
    /// at a time as run now; between one second and a minute.
    pub fn retry_after(&self) -> Duration {
        let EngineStats { waiting, running, mean_request_time, .. } = self.stats();
        let rounds = waiting.div_ceil(running.max(1)).clamp(1, 60);
        mean_request_time.saturating_mul(rounds as u32).clamp(ONE_SECOND, 60 * ONE_SECOND)
    }
}

/// A look at an engine, which ends with its last handle and its last request all the same.
pub struct EngineWatch {
    messages: Weak<mpsc::Sender<Message>>,
    shared: Arc<SharedState>,
}

impl EngineWatch {
    /// Counters and gauges as of the last step.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    /// Whether the engine has ended and its memory is given back: the worker's hold on the shared
    /// state is what it drops last.
    pub fn is_gone(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }

    /// Fails what has not been completed and ends the engine's thread.
    pub fn abort(&self) {
        if let Some(messages) = self.messages.upgrade() {
            EngineHandle::new(messages, self.shared.clone()).abort();
        }
    }
}

/// The events of one request; a [`futures::Stream`] of them. Dropping it cancels the request.
pub struct Generation {
    events: EventReceiver,
    messages: Arc<mpsc::Sender<Message>>,
}

impl Generation {
    /// The next event; `None` after `Finished` or `Failed`.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.next().await
    }

    /// The next event, blocking the thread: not inside an asynchronous task.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_next()
    }
}

impl futures::Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_next(context)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // Closed before the wake-up, so that the worker finds it closed.
        self.events.close();
        let _ = self.messages.send(Message::Wake);
    }
}
