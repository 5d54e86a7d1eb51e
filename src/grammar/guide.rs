//! A sequence on its way through a grammar.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Instant,
};

use llguidance::{Matcher, toktrie::SimpleVob};
use rayon::ThreadPool;

/// The tokens that may come next.
#[derive(Debug, Clone)]
pub struct Mask(Arc<SimpleVob>);

impl Mask {
    /// A bit per token: bit `id % 32` of word `id / 32`. Ids beyond it may not come.
    pub fn bits(&self) -> &[u32] {
        self.0.as_slice()
    }
}

/// Called when a mask is there.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Why a sequence cannot go on in its grammar.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct GuideError(String);

/// A compiled grammar; clones share it.
#[derive(Clone)]
pub struct Grammar(Arc<Inner>);

struct Inner {
    /// At the beginning of an answer.
    matcher: Mutex<Matcher>,
    first: Mask,
    masks: Arc<ThreadPool>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    /// The grammar of a matcher that has taken nothing; its masks are computed on `masks`.
    pub(super) fn new(mut matcher: Matcher, masks: Arc<ThreadPool>) -> Result<Self, String> {
        let first = matcher.compute_mask_or_eos().map_err(|error| match error.to_string() {
            // llguidance's name for it.
            text if text.starts_with("NoExtensionBias") => {
                "no text of finite length satisfies it".to_owned()
            }
            text => text,
        })?;
        let (matcher, first) = (Mutex::new(matcher), Mask(Arc::new(first)));
        Ok(Self(Arc::new(Inner { matcher, first, masks })))
    }

    /// A sequence at the beginning of an answer; `wake` is called whenever a mask is there.
    pub fn start(&self, wake: Wake) -> Guide {
        Guide { state: State::Fresh(self.clone()), masks: self.0.masks.clone(), wake }
    }
}

/// A sequence on its way through a grammar.
pub struct Guide {
    state: State,
    masks: Arc<ThreadPool>,
    wake: Wake,
}

enum State {
    Fresh(Grammar),
    Working(mpsc::Receiver<Outcome>),
    Ready(Box<Matcher>, Mask),
    Failed(GuideError),
}

type Outcome = Result<(Box<Matcher>, Mask), GuideError>;

impl Guide {
    /// The mask of the next token; `None`: it is not there by `until`.
    pub fn mask(&mut self, until: Instant) -> Option<Result<&Mask, GuideError>> {
        self.wait(until);
        match &self.state {
            State::Fresh(grammar) => Some(Ok(&grammar.0.first)),
            State::Ready(_, mask) => Some(Ok(mask)),
            State::Failed(error) => Some(Err(error.clone())),
            State::Working(_) => None,
        }
    }

    /// Whether [`Self::mask`] would not wait.
    pub fn is_ready(&mut self) -> bool {
        self.wait(Instant::now());
        !matches!(self.state, State::Working(_))
    }

    fn wait(&mut self, until: Instant) {
        let State::Working(outcome) = &self.state else { return };
        let left = until.saturating_duration_since(Instant::now());
        let outcome = match outcome.recv_timeout(left) {
            Ok(outcome) => outcome,
            Err(mpsc::RecvTimeoutError::Timeout) => return,
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(GuideError("it failed".to_owned())),
        };
        self.state = match outcome {
            Ok((matcher, mask)) => State::Ready(matcher, mask),
            Err(error) => State::Failed(error),
        };
    }

    /// Takes a token of the current mask and has the next mask computed; returns at once.
    pub fn accept(&mut self, token: u32) {
        let (tell, told) = mpsc::sync_channel(1);
        let state = std::mem::replace(&mut self.state, State::Working(told));
        let wake = self.wake.clone();
        self.masks.spawn(move || {
            // After a panic nothing is told.
            if let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| advance(state, token))) {
                // The sequence may have ended meanwhile.
                let _ = tell.send(outcome);
            }
            drop(tell);
            wake();
        });
    }
}

/// The mask after `token`.
fn advance(state: State, token: u32) -> Outcome {
    let mut matcher = match state {
        // A copy of its own: what a lexer learns counts against the limits of its sequence alone.
        State::Fresh(grammar) => {
            let matcher = grammar.0.matcher.lock().unwrap_or_else(PoisonError::into_inner);
            Box::new(matcher.deep_clone())
        }
        State::Ready(matcher, _) => matcher,
        State::Failed(error) => return Err(error),
        State::Working(_) => return Err(GuideError("a token came before its mask".to_owned())),
    };
    let error = |error: anyhow::Error| {
        let text = error.to_string();
        GuideError(text.split("\n<").next().unwrap_or_default().to_owned())
    };
    matcher.consume_token(token).map_err(error)?;
    let mask = matcher.compute_mask_or_eos().map_err(error)?;
    Ok((matcher, Mask(Arc::new(mask))))
}
