//! Bounds of one rendering: a template that exceeds one is stopped, and the conversation is
//! refused.

use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::{Error, ErrorKind, State, value::Object};

/// Instructions that one rendering may use: thousands of messages through any published template.
pub const MAX_INSTRUCTIONS: u64 = 10_000_000;
/// Bytes that the operations of one rendering may read and write: about a second's work.
const MAX_WORK: usize = 1 << 30;
/// Longest rendering in bytes beyond what the messages themselves hold.
const MAX_OVERHEAD: usize = 16 << 20;
/// Operations on fewer bytes count as their instruction alone.
const FREE: usize = 64;
/// The variable that holds the budget. No template can name it.
pub const VARIABLE: &str = " budget";

/// The budget of one rendering, and what is used of it.
#[derive(Debug)]
pub struct Budget {
    work: AtomicUsize,
    written: AtomicUsize,
    /// Longest output in bytes.
    limit: usize,
}

impl Object for Budget {}

impl Budget {
    /// The budget for a conversation of `said` bytes.
    pub fn new(said: usize) -> Self {
        let limit = MAX_OVERHEAD.saturating_add(said.saturating_mul(4));
        Self { work: AtomicUsize::new(0), written: AtomicUsize::new(0), limit }
    }
}

/// Source of the error about an exceeded bound.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Exceeded(pub String);

/// Charges an operation that reads or writes `bytes`.
pub fn work(state: &State, bytes: usize) -> Result<(), Error> {
    if bytes < FREE {
        return Ok(());
    }
    spend(state, bytes, |budget| (&budget.work, MAX_WORK, "bytes of work"))
}

/// Charges `bytes` of output.
pub fn output(state: &State, bytes: usize) -> Result<(), Error> {
    spend(state, bytes, |budget| (&budget.written, budget.limit, "bytes"))
}

fn spend(
    state: &State,
    bytes: usize,
    account: impl Fn(&Budget) -> (&AtomicUsize, usize, &'static str),
) -> Result<(), Error> {
    let Some(budget) = state.lookup(VARIABLE) else { return Ok(()) };
    let Some(budget) = budget.downcast_object_ref::<Budget>() else { return Ok(()) };
    let (spent, limit, unit) = account(budget);
    if spent.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= limit {
        return Ok(());
    }
    let exceeded = Exceeded(format!("{limit} {unit}"));
    Err(Error::new(ErrorKind::InvalidOperation, "too much").with_source(exceeded))
}
