//! What can be wrong with an engine as a whole.

use std::{fmt, time::Duration};

/// What is wrong with an engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ailment {
    /// Its thread has ended.
    Stopped,
    /// Its thread has been at one turn of its loop for so long.
    Stuck(Duration),
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => write!(f, "the engine has stopped"),
            Self::Stuck(time) => {
                write!(f, "the engine has been at one step for {:.0} s", time.as_secs_f64())
            }
        }
    }
}
