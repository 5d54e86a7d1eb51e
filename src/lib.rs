//! ladle: test-time model merging inference server.
//!
//! A *soup* is one base model plus n backbones, each tuned on its own mix of rewards. A request's
//! preference vector μ becomes merging coefficients λ = B⁻¹μ, and the merged (optionally
//! extrapolated) weights answer.
//!
//! The modules are floors; each uses only those below it, and modules on one floor do not use each
//! other:
//!
//! | floor | modules |
//! |---|---|
//! | 6 | `main` (binary) |
//! | 5 | [`http`] |
//! | 4 | [`engine`] |
//! | 3 | [`merge`] |
//! | 2 | [`model`], [`soup`], [`chat`] |
//! | 1 | [`kernels`], [`preference`], [`sampling`], [`tokenizer`], [`rng`], [`config`], [`telemetry`] |
//! | 0 | [`math`] |

pub mod chat;
pub mod config;
pub mod engine;
pub mod http;
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
