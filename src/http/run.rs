//! Runs a checked request: submits its choices, merges their events into one sequence and sums up
//! what all answers report. Dropping a [`Run`] cancels everything that it started.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    StreamExt,
    stream::{BoxStream, SelectAll},
};
use serde::Serialize;

use super::{
    app::App,
    charge::Charge,
    error::ApiError,
    request::Checked,
    served::Served,
    spans,
    trace::{Phases, Trace},
};
use crate::{
    engine::{
        CacheOutcome, EngineError, Event, FinishReason, Finished, Mode, SubmitError, Token,
        TokenLogprob, Usage,
    },
    preference::Solved,
};

/// Times of an answer, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct TimingsMs {
    pub queue_ms: f64,
    pub merge_ms: f64,
    /// From submission to the first token.
    pub first_token_ms: f64,
    /// From submission to the end.
    pub total_ms: f64,
}

/// Which soup answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SoupId {
    pub name: String,
    pub digest: String,
}

/// Facts about the model that every answer reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Echo {
    #[serde(flatten)]
    pub solved: Solved,
    /// `fused` or `mixed`; `null` before the first step.
    pub mode: Option<Mode>,
    /// Whether fused weights were there, in fused mode; of several choices, a miss if one missed.
    pub cache: Option<CacheOutcome>,
    /// Times; absent until the answer is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<TimingsMs>,
    pub soup: SoupId,
}

/// The choices of one request while they run.
pub struct Run {
    app: Arc<App>,
    events: SelectAll<BoxStream<'static, (usize, Event)>>,
    /// Events up to the first token, not yet delivered.
    begun: VecDeque<(usize, Event)>,
    choices: Vec<Progress>,
    n: usize,
    prompt_only: bool,
    submitted: Instant,
    seconds: f64,
    /// The solution of all choices, or in a comparison of each one.
    solved: Vec<Solved>,
    soup: SoupId,
    charge: Option<Charge>,
    trace: Trace,
}

struct Progress {
    mode: Option<Mode>,
    cache: Option<CacheOutcome>,
    /// Tokens of the prompt, of those found in the prefix cache, and of the answer so far.
    usage: Usage,
    last_token: Option<Instant>,
    finished: Option<Finished>,
    phases: Phases,
}

impl Run {
    /// Submits all choices and waits for the first token of any of them, so that what fails before
    /// has its own status and a stream begins with its first token.
    pub async fn start(app: Arc<App>, checked: Checked) -> Result<Self, ApiError> {
        let served = checked.served.clone();
        let charge = Charge::of(&app, &checked)?;
        let menu = &served.menu;
        for solution in &checked.solutions {
            app.telemetry.preference(&menu.objectives, solution.preference.weights());
        }
        let solved = checked.solutions.iter().map(|solution| Solved::new(menu, solution));
        let solved = solved.collect();
        let soup = SoupId { name: served.name.clone(), digest: served.digest.clone() };
        let (trace, several) = (checked.trace.clone(), checked.requests.len() > 1);
        spans::asked(&trace, &checked, &served);
        let submitted = Instant::now();
        let choices = checked.requests.iter().enumerate().map(|(index, request)| Progress {
            mode: None,
            cache: None,
            usage: Usage { prompt_tokens: request.prompt.len(), ..Usage::default() },
            last_token: None,
            finished: None,
            phases: Phases::new(trace.clone(), several.then_some(index), "queue", submitted),
        });
        let choices = choices.collect();
        let generations = served
            .engine
            .submit_all(checked.requests)
            .map_err(|error| refused(&app, &served, error))?;
        let events = generations
            .into_iter()
            .enumerate()
            .map(|(index, generation)| generation.map(move |event| (index, event)).boxed());
        let mut run = Self {
            events: futures::stream::select_all(events),
            begun: VecDeque::new(),
            choices,
            n: checked.n,
            prompt_only: checked.prompt_only,
            submitted,
            seconds: checked.timeout.as_secs_f64(),
            solved,
            soup,
            charge,
            trace,
            app,
        };
        let mut begun = VecDeque::new();
        while let Some(event) = run.next().await.transpose()? {
            let first = matches!(event, (_, Event::Token(_) | Event::Finished(_)));
            begun.push_back(event);
            if first {
                break;
            }
        }
        run.begun = begun;
        Ok(run)
    }

    /// The next event of any choice; `None` when all are complete.
    pub async fn next(&mut self) -> Option<Result<(usize, Event), ApiError>> {
        if let Some(event) = self.begun.pop_front() {
            return Some(Ok(event));
        }
        let Some((index, event)) = self.events.next().await else {
            return if self.is_complete() { None } else { Some(Err(self.app.stopped())) };
        };
        match self.observe(index, &event) {
            Ok(()) => Some(Ok((index, event))),
            Err(error) => Some(Err(error)),
        }
    }

    fn observe(&mut self, index: usize, event: &Event) -> Result<(), ApiError> {
        let Some(choice) = self.choices.get_mut(index) else { return Ok(()) };
        let telemetry = &self.app.telemetry;
        match event {
            Event::Started(started) => {
                telemetry.queue.record(started.queue.as_secs_f64());
                choice.mode = Some(started.mode);
                choice.cache = started.cache;
                choice.usage.cached_tokens = started.cached_tokens;
                let merge = self.submitted + started.queue;
                if started.merge > Duration::ZERO {
                    choice.phases.begin("merge", merge);
                }
                choice.phases.begin("prefill", merge + started.merge);
            }
            Event::Prompt(_) | Event::Embedding(_) => {}
            Event::Token(_) => {
                let now = Instant::now();
                choice.usage.completion_tokens += 1;
                match choice.last_token.replace(now) {
                    None => {
                        telemetry.first_token.record((now - self.submitted).as_secs_f64());
                        choice.phases.begin("decode", now);
                    }
                    Some(last) => telemetry.inter_token.record((now - last).as_secs_f64()),
                }
            }
            Event::Finished(finished) => {
                match finished.reason {
                    FinishReason::Stop => telemetry.stopped.increment(1),
                    FinishReason::Length => telemetry.cut.increment(1),
                }
                let Usage { prompt_tokens, completion_tokens, .. } = finished.usage;
                telemetry.request_prompt.record(prompt_tokens as f64);
                telemetry.request_generation.record(completion_tokens as f64);
                choice.phases.end(Instant::now());
                choice.usage = finished.usage;
                choice.finished = Some(finished.clone());
            }
            Event::Failed(error) => return Err(failed(&self.app, error, self.seconds)),
        }
        Ok(())
    }

    /// Whether the choices are of several preferences, one each.
    pub fn compares(&self) -> bool {
        self.solved.len() > 1
    }

    /// What is known of the model so far (in a comparison, of the first one), with timings once all
    /// choices are complete.
    pub fn echo(&self) -> Echo {
        self.echo_over(0, &self.choices)
    }

    /// What is known of the model of one choice.
    pub fn echo_of(&self, index: usize) -> Echo {
        let choice = self.choices.get(index).map_or(&[][..], std::slice::from_ref);
        self.echo_over(if self.compares() { index } else { 0 }, choice)
    }

    fn echo_over(&self, solved: usize, choices: &[Progress]) -> Echo {
        let finished: Option<Vec<&Finished>> =
            choices.iter().map(|choice| choice.finished.as_ref()).collect();
        let timings = finished.filter(|finished| !finished.is_empty()).map(|finished| {
            let of = |time: fn(&Finished) -> Duration| {
                finished.iter().map(move |f| time(f).as_secs_f64() * 1e3)
            };
            TimingsMs {
                queue_ms: of(|f| f.timings.queue).fold(0.0, f64::max),
                merge_ms: of(|f| f.timings.merge).fold(0.0, f64::max),
                first_token_ms: of(|f| f.timings.first_token).fold(f64::INFINITY, f64::min),
                total_ms: of(|f| f.timings.total).fold(0.0, f64::max),
            }
        });
        Echo {
            solved: self.solved[solved].clone(),
            mode: choices.iter().find_map(|choice| choice.mode),
            cache: choices.iter().fold(None, |cache, choice| worse(cache, choice.cache)),
            timings,
            soup: self.soup.clone(),
        }
    }

    /// Tokens of one choice so far.
    pub fn usage_of(&self, index: usize) -> Usage {
        self.choices.get(index).map(|choice| choice.usage).unwrap_or_default()
    }

    /// Tokens of all choices so far; a prompt counts once however many choices it has.
    pub fn usage(&self) -> Usage {
        let sum = |sum: Usage, (index, choice): (usize, &Progress)| {
            let first = index % self.n == 0;
            let of_prompt = |tokens| if first { tokens } else { 0 };
            let completion = if self.prompt_only { 0 } else { choice.usage.completion_tokens };
            Usage {
                prompt_tokens: sum.prompt_tokens + of_prompt(choice.usage.prompt_tokens),
                cached_tokens: sum.cached_tokens + of_prompt(choice.usage.cached_tokens),
                completion_tokens: sum.completion_tokens + completion,
            }
        };
        self.choices.iter().enumerate().fold(Usage::default(), sum)
    }

    /// Whether all choices are complete.
    pub fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished.is_some())
    }

    /// An empty choice for each of those that run.
    pub fn blank(&self) -> Vec<Choice> {
        vec![Choice::default(); self.choices.len()]
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let used = self.usage();
        if let Some(charge) = &mut self.charge {
            charge.used(used);
        }
        let finished = self.choices.iter().filter_map(|choice| choice.finished.as_ref());
        let reasons = finished.map(|finished| finished.reason.as_str().to_owned()).collect();
        spans::answered(&self.trace, used, reasons);
        if let Some(mode) = self.choices.iter().find_map(|choice| choice.mode) {
            self.trace.set("ladle.mode", mode.as_str());
        }
    }
}

/// A miss, if one of the two is.
fn worse(a: Option<CacheOutcome>, b: Option<CacheOutcome>) -> Option<CacheOutcome> {
    match (a, b) {
        (Some(CacheOutcome::Miss), _) | (_, Some(CacheOutcome::Miss)) => Some(CacheOutcome::Miss),
        (a, b) => a.or(b),
    }
}

fn refused(app: &App, served: &Served, error: SubmitError) -> ApiError {
    match error {
        SubmitError::QueueFull { .. } | SubmitError::ShareFull { .. } => ApiError::Overloaded {
            message: error.to_string(),
            retry_after: served.engine.retry_after().as_secs(),
        },
        SubmitError::Draining | SubmitError::Stopped => app.stopped(),
        SubmitError::Invalid { field, reason } => {
            ApiError::Value { param: field.into(), message: format!("{field} {reason}") }
        }
    }
}

/// `Retry-After`, seconds, of a request for which there was no device memory.
const MEMORY_RETRY: u64 = 1;

fn failed(app: &App, error: &EngineError, seconds: f64) -> ApiError {
    match error {
        EngineError::Deadline { .. } => ApiError::Deadline { seconds },
        EngineError::Stopped => app.stopped(),
        EngineError::Memory(_) => {
            ApiError::Overloaded { message: error.to_string(), retry_after: MEMORY_RETRY }
        }
        EngineError::Unread { .. } => ApiError::Unread,
        // The same coefficients would fail again: nothing for a client to retry.
        EngineError::NotFinite(_) => {
            ApiError::Value { param: "preference".into(), message: error.to_string() }
        }
        EngineError::Unsupported(reason) => {
            ApiError::Unsupported { param: "model".into(), reason: (*reason).to_owned() }
        }
        EngineError::Grammar(_) => {
            ApiError::Value { param: "response_format".into(), message: error.to_string() }
        }
        EngineError::Merge(_) | EngineError::Forward(_) => ApiError::Internal(error.to_string()),
    }
}

/// One complete choice.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    pub text: String,
    pub tokens: Vec<Token>,
    /// The prompt's tokens with theirs, when asked for.
    pub prompt: Vec<TokenLogprob>,
    pub reason: Option<FinishReason>,
    /// The stop string that was met.
    pub stop: Option<String>,
    /// The final hidden state of the prompt, where that alone is wanted.
    pub embedding: Vec<f32>,
}

impl Choice {
    /// Takes in an event of this choice.
    pub fn push(&mut self, event: Event, keep_tokens: bool) {
        match event {
            Event::Token(token) => {
                self.text.push_str(&token.text);
                if keep_tokens {
                    self.tokens.push(token);
                }
            }
            Event::Prompt(prompt) => self.prompt = prompt,
            Event::Embedding(state) => self.embedding = state,
            Event::Finished(finished) => {
                (self.reason, self.stop) = (Some(finished.reason), finished.stop);
            }
            Event::Started(_) | Event::Failed(_) => {}
        }
    }

    /// `stop` or `length`.
    pub fn reason(&self) -> Option<&'static str> {
        self.reason.map(FinishReason::as_str)
    }
}

/// Runs a request to its end.
pub async fn collect(run: &mut Run) -> Result<Vec<Choice>, ApiError> {
    let mut choices = run.blank();
    while let Some(event) = run.next().await {
        let (index, event) = event?;
        if let Some(choice) = choices.get_mut(index) {
            choice.push(event, true);
        }
    }
    Ok(choices)
}
