//! ladle: test-time model merging inference server.
//!
//! A *soup* is one base model plus n backbones, each tuned on its own mix of rewards. A request's
//! preference vector μ becomes merging coefficients λ = B⁻¹μ, and the merged (optionally
//! extrapolated) weights answer.
//!
//! The modules stand on floors, each using only those below it; `docs/architecture.md` has the table
//! and both flows.

#[cfg(not(unix))]
compile_error!("ladle runs on Unix: it maps files, links them and names processes as Unix does");

pub mod chat;
pub mod config;
pub mod engine;
pub mod files;
pub mod http;
pub mod import;
pub mod kernels;
pub mod math;
pub mod merge;
pub mod model;
pub mod preference;
pub mod rng;
pub mod sampling;
pub mod soup;
pub mod telemetry;
pub mod tokenizer;
