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

impl EngineStats {
    /// The counts of two engines together; what is no count is `self`'s.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            running: self.running + other.running,
            waiting: self.waiting + other.waiting,
            kv_blocks: self.kv_blocks + other.kv_blocks,
            kv_used: self.kv_used + other.kv_used,
            kv_cached: self.kv_cached + other.kv_cached,
            block_tokens: self.block_tokens,
            finished: self.finished + other.finished,
            failed: self.failed + other.failed,
            cancelled: self.cancelled + other.cancelled,
            preempted: self.preempted + other.preempted,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            queried_tokens: self.queried_tokens + other.queried_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            fused_forwards: self.fused_forwards + other.fused_forwards,
            mixed_forwards: self.mixed_forwards + other.mixed_forwards,
            steps: self.steps + other.steps,
            mean_request_time: self.mean_request_time,
            integrity_failures: self.integrity_failures + other.integrity_failures,
        }
    }

    /// What is left of an engine that has ended: its counters.
    pub fn counters(self) -> Self {
        Self { running: 0, waiting: 0, kv_blocks: 0, kv_used: 0, kv_cached: 0, ..self }
    }
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
