//! Counts of the engine, as plain values that telemetry and tests read.

use std::time::Duration;

use super::request::Mode;

/// Counters (since start) and gauges (now).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EngineStats {
    /// Requests in the batch.
    pub running: usize,
    /// Requests accepted and not yet in the batch.
    pub waiting: usize,
    /// Key/value blocks that exist.
    pub kv_blocks: usize,
    /// Of those, held by requests.
    pub kv_used: usize,
    /// Key/value blocks without holders, kept for reuse.
    pub kv_cached: usize,
    /// Tokens per block.
    pub block_tokens: usize,
    /// Requests completed.
    pub finished: u64,
    /// Requests failed.
    pub failed: u64,
    /// Requests whose client left.
    pub cancelled: u64,
    /// Times a running request gave its KV blocks up and was computed again later.
    pub preempted: u64,
    /// Prompt tokens computed (without those from the prefix cache; recomputation counts).
    pub prompt_tokens: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub queried_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    pub generated_tokens: u64,
    /// Forward passes with merged weights.
    pub fused_forwards: u64,
    /// Forward passes with per-row coefficients.
    pub mixed_forwards: u64,
    pub steps: u64,
    /// Moving average of the time from submission to completion.
    pub mean_request_time: Duration,
    /// Failures of the integrity check, which runs whenever the engine becomes idle.
    pub integrity_failures: u64,
}

/// One step, for an [`Observer`].
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    pub elapsed: Duration,
    /// Forward passes: mode, rows, distinct coefficients, measured time, predicted time.
    pub forwards: Vec<ForwardReport>,
    /// Distinct coefficients in the step.
    pub distinct: usize,
    /// Token rows in the step.
    pub rows: usize,
}

/// One forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ForwardReport {
    /// With merged weights or per-row coefficients.
    pub mode: Mode,
    /// Token rows.
    pub rows: usize,
    /// Distinct coefficients.
    pub distinct: usize,
    /// Measured.
    pub elapsed: Duration,
    /// Predicted by the cost model.
    pub predicted: Duration,
}

/// Called on the engine's thread after every step; must return quickly.
pub trait Observer: Send + Sync {
    /// A step was made.
    fn step(&self, report: &StepReport, stats: &EngineStats);
}
