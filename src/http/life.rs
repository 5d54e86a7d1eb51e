//! The watch over a running engine.

use std::time::Duration;

use super::app::{App, Served};
use crate::engine::Ailment;

/// Interval at which it is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Completes when the engine of `served` has ended, or is stuck where `stuck` counts. The log tells
/// once that it is stuck, and once that it has moved on.
pub async fn failure(app: &App, served: &Served, stuck: bool) -> Ailment {
    let mut told = false;
    loop {
        let ailment = served.engine.ailment(app.step_timeout);
        match ailment {
            Some(Ailment::Stopped) => return Ailment::Stopped,
            Some(ailment) if stuck => return ailment,
            Some(ailment) if !told => tracing::error!("{ailment}: not ready"),
            None if told => tracing::warn!("the engine has moved on: ready again"),
            _ => {}
        }
        told = ailment.is_some();
        tokio::select! {
            () = served.engine.stopped() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
