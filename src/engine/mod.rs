//! Continuous batching of requests that each want their own model.
//!
//! A request's life:
//! 1. [`EngineHandle::submit`] checks it against [`Bounds`] and takes a place in the queue.
//! 2. [`models`] settles whether it runs fused or mixed, or leaves that to what each step costs.
//! 3. The worker thread gives it to the [`scheduler`], which admits it when the step's token
//!    budget, the lanes and the key/value blocks allow; the [`blocks`] of its prefix that were
//!    computed before *under the same coefficients in the same mode* are shared.
//! 4. Each step the scheduler plans rows (prefill chunks beside decode) and [`batch`] lays out the
//!    forward passes.
//! 5. The [`backend`] computes logits; `draw` chooses tokens by [`crate::sampling`], among those
//!    that the request's grammar allows.
//! 6. [`answer`] turns tokens into text, watches for stop strings and sends [`Event`]s.
//! 7. Finished, failed, expired or abandoned: blocks, lease and place return within the step.

mod ailment;
pub mod answer;
pub mod backend;
pub mod batch;
pub mod blocks;
pub mod budget;
mod client;
pub mod cost;
pub mod cpu;
pub mod cuda;
mod draw;
mod error;
mod events;
mod footprint;
pub mod handle;
pub mod loaded;
mod merged;
pub mod models;
mod open;
pub mod placement;
mod places;
mod pooling;
pub mod request;
pub mod scheduler;
mod start;
pub mod stats;
mod step;
mod worker;

pub use crate::config::MergeMode;
pub use ailment::Ailment;
pub use client::Client;
pub use cpu::{CpuBackend, CpuOptions};
pub use cuda::{CudaBackend, CudaOptions};
pub use error::OpenError;
pub use handle::{Bounds, EngineHandle, EngineState, EngineWatch, Generation};
pub use merged::OnCacheEvent;
pub use open::{Shared, budgets, open};
pub use places::{Full, Place, Places};
pub use pooling::Pooling;
pub use request::{
    CacheOutcome, Combine, EngineError, Event, FinishReason, Finished, GenerateRequest, Mode,
    Started, SubmitError, Timings, Token, TokenLogprob, Usage,
};
pub use scheduler::StepLimits;
pub use start::{EngineConfig, Pin, StartError, start};
pub use stats::{EngineStats, ForwardReport, Observer, StepReport};
