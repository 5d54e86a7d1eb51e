//! What the engine reports, as metrics.

use crate::{
    engine::{EngineStats, Mode, Observer, StepReport},
    merge::CacheEvent,
    telemetry::Telemetry,
};

impl Observer for Telemetry {
    fn step(&self, report: &StepReport, _: &EngineStats) {
        self.step_rows.record(report.rows as f64);
        self.step_preferences.record(report.distinct as f64);
        for forward in &report.forwards {
            match forward.mode {
                Mode::Fused => self.steps_fused.increment(1),
                Mode::Mixed => self.steps_mixed.increment(1),
            }
        }
    }
}

/// Counts what happens in the cache of merged models.
pub fn cache_event(telemetry: &Telemetry, event: CacheEvent) {
    match event {
        CacheEvent::Hit => telemetry.merge_hits.increment(1),
        CacheEvent::Miss => telemetry.merge_misses.increment(1),
        CacheEvent::Evicted { bytes } => {
            telemetry.merge_evictions.increment(1);
            telemetry.merge_models.decrement(1.0);
            telemetry.merge_bytes.decrement(bytes as f64);
        }
        CacheEvent::Built { elapsed, bytes } => {
            telemetry.merge.record(elapsed.as_secs_f64());
            telemetry.merge_models.increment(1.0);
            telemetry.merge_bytes.increment(bytes as f64);
        }
        // Those that joined a build, found no room or failed ask again and are counted then.
        CacheEvent::Joined | CacheEvent::NoRoom | CacheEvent::Failed | CacheEvent::Abandoned => {}
    }
}

/// Takes over the engine's gauges and totals as of its last step.
pub fn engine_stats(telemetry: &Telemetry, stats: &EngineStats) {
    telemetry.running.set(stats.running as f64);
    telemetry.waiting.set(stats.waiting as f64);
    telemetry.kv_usage.set(stats.kv_used as f64 / stats.kv_blocks.max(1) as f64);
    telemetry.kv_blocks.set(stats.kv_blocks as f64);
    telemetry.kv_cached.set(stats.kv_cached as f64);
    telemetry.kv_block_tokens.set(stats.block_tokens as f64);
    telemetry.failed.absolute(stats.failed);
    telemetry.cancelled.absolute(stats.cancelled);
    telemetry.preemptions.absolute(stats.preempted);
    telemetry.prefix_queries.absolute(stats.queried_tokens);
    telemetry.prefix_hits.absolute(stats.cached_tokens);
    telemetry.prompt_tokens.absolute(stats.prompt_tokens);
    telemetry.generated_tokens.absolute(stats.generated_tokens);
}
