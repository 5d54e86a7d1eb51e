//! What the training steps of one backbone have counted: the state of the balance, on disk before any
//! answer that rests on it.
//!
//! A step is open from its first request on and ends when a later one begins. Its weights follow from
//! the steps before it, so every request of a step is weighed alike, whenever it comes and however
//! often. A step may come in parts, such as one from each process; a part that comes again replaces
//! what it counted before.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ladle::files::{self, FileError};
use serde::{Deserialize, Serialize};

use crate::{
    draw::{self, Purpose},
    rl::balance::{Balance, BalanceError, Standardiser},
};

/// Parts of one step at most.
pub const MAX_PARTS: usize = 4096;

/// Raw rewards of one part of a step, summed by objective over the rows that it judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Digest of its rows.
    pub sha256: String,
    pub sums: Vec<f64>,
    pub counts: Vec<u64>,
}

impl Part {
    /// Sums the rewards `[reward][row]`.
    pub fn new(sha256: String, rewards: &[Vec<Option<f64>>]) -> Self {
        let sums = rewards.iter().map(|of| of.iter().flatten().sum()).collect();
        let counts = rewards.iter().map(|of| of.iter().flatten().count() as u64).collect();
        Self { sha256, sums, counts }
    }
}

/// A step that has begun and not ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    step: u64,
    parts: BTreeMap<String, Part>,
}

/// The state on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    backbone: String,
    /// Digest of the settings that the state follows from.
    settings: String,
    balance: Balance,
    open: Option<Open>,
}

/// How a part was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// For the first time.
    New,
    /// Before, with the same rows.
    Again,
    /// Before, with other rows, which no longer count.
    Replaced,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(
        "step is {got}, expected {last}, the last one, or a later one: an earlier step has ended"
    )]
    Past { got: u64, last: u64 },
    #[error(
        "part is {part:?}, expected one of the {MAX_PARTS} of step {step}, which are all there may be"
    )]
    Parts { step: u64, part: String },
    /// The state on disk is of something else.
    #[error("{path}: {what} is {got:?}, expected {expected:?}; name another --state")]
    Other { path: PathBuf, what: &'static str, got: String, expected: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Balance(#[from] BalanceError),
}

/// The state of one backbone's balance, in memory and on disk.
pub struct Ledger {
    path: Option<PathBuf>,
    /// Seed of the objectives that are drawn.
    seed: u64,
    standardiser: Standardiser,
    state: State,
}

impl Ledger {
    /// Begins with `balance`, or goes on from what `path` holds, which must be of the same backbone and
    /// settings.
    pub fn open(
        path: Option<PathBuf>,
        (backbone, settings): (String, String),
        balance: Balance,
        (standardiser, seed): (Standardiser, u64),
    ) -> Result<Self, LedgerError> {
        let fresh = State { backbone, settings, balance, open: None };
        let state = match path.as_deref().filter(|path| path.exists()) {
            None => fresh,
            Some(path) => {
                let found: State = files::read_json(path)?;
                for (what, got, expected) in [
                    ("backbone", &found.backbone, &fresh.backbone),
                    ("digest of the settings", &found.settings, &fresh.settings),
                ] {
                    if got != expected {
                        let (path, got, expected) = (path.into(), got.clone(), expected.clone());
                        return Err(LedgerError::Other { path, what, got, expected });
                    }
                }
                found
            }
        };
        let ledger = Self { path, seed, standardiser, state };
        // A place that cannot be written to is an error now.
        ledger.path.as_deref().map_or(Ok(()), |path| write(path, &ledger.state))?;
        Ok(ledger)
    }

    /// The balance, with the weights in force.
    pub fn balance(&self) -> &Balance {
        &self.state.balance
    }

    /// The open step.
    pub fn step(&self) -> Option<u64> {
        self.state.open.as_ref().map(|open| open.step)
    }

    /// The balance as it is once the open step has ended.
    pub fn closed(&self) -> Result<Balance, BalanceError> {
        let mut balance = self.state.balance.clone();
        if let Some(open) = &self.state.open {
            self.end(&mut balance, open)?;
        }
        Ok(balance)
    }

    /// Counts a part of a step. Nothing has changed when this fails.
    pub fn count(&mut self, step: u64, name: &str, part: Part) -> Result<Counted, LedgerError> {
        let last = self.step();
        if let Some(last) = last.filter(|last| step < *last) {
            return Err(LedgerError::Past { got: step, last });
        }
        let mut next = self.state.clone();
        if last != Some(step) {
            next.balance = self.closed()?;
            next.open = None;
        }
        let open = next.open.get_or_insert(Open { step, parts: BTreeMap::new() });
        let counted = match open.parts.get(name) {
            Some(before) if *before == part => return Ok(Counted::Again),
            Some(_) => Counted::Replaced,
            None if open.parts.len() == MAX_PARTS => {
                return Err(LedgerError::Parts { step, part: name.to_owned() });
            }
            None => Counted::New,
        };
        open.parts.insert(name.to_owned(), part);
        if let Some(path) = &self.path {
            write(path, &next)?;
        }
        self.state = next;
        Ok(counted)
    }

    /// Ends a step: the mean reward of its rows goes into the balance.
    fn end(&self, balance: &mut Balance, open: &Open) -> Result<(), BalanceError> {
        let mean = |objective: usize| {
            let parts = || open.parts.values();
            let count: u64 = parts().map(|part| part.counts[objective]).sum();
            (count > 0)
                .then(|| parts().map(|part| part.sums[objective]).sum::<f64>() / count as f64)
        };
        let raw: Vec<_> = (0..balance.weights().len()).map(mean).collect();
        let uniform = draw::uniform(self.seed, Purpose::Objective, balance.step());
        let drawn = balance.draw(uniform);
        balance.advance(drawn, &self.standardiser.apply_present(&raw)?)?;
        Ok(())
    }
}

fn write(path: &Path, state: &State) -> Result<(), FileError> {
    files::write_json(path, state)
}
