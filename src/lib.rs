//! ladle: test-time model merging inference server.
//!
//! A *soup* is one base model plus n backbones, each tuned on its own mix of rewards. A request's
//! preference vector μ becomes merging coefficients λ = B⁻¹μ, and the merged (optionally
//! extrapolated) weights answer.
//!
//! Solving needs no model:
//!
//! ```
//! use ladle::preference::{Alpha, MixingMatrix, Preference};
//!
//! // Three backbones, each trained with 0.7 of its weight on its own objective.
//! let mixing = MixingMatrix::circulant(3, 0.7)?;
//! let preference = Preference::new(&[0.2, 0.3, 0.5], 3)?;
//! let solution = mixing.solve(&preference, &Alpha::default());
//! assert!((solution.lambda[2] - 7.0 / 11.0).abs() < 1e-12);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Merging writes a checkpoint that transformers loads:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//!
//! use ladle::{import::{Store, default_models_dir}, merge::export::export_model};
//! use ladle::{preference::Form, soup::OpenOptions};
//!
//! let models_dir = default_models_dir().ok_or("set LADLE_HOME or HOME")?;
//! let store = Store { models_dir, offline: true };
//! let options = OpenOptions { verify_digests: true, ..OpenOptions::default() };
//! let soup = store.open(Path::new("backbones"), options)?;
//! let menu = soup.manifest.menu()?;
//! let form = Form::from_text("preference", "faithful=0.3,brief=0.7")?;
//! let preference = menu.preference("preference", form)?;
//! let solution = soup.mixing.solve_by(menu.default_rule, &preference, &menu.default_alpha);
//! export_model(&soup, &solution.coefficients, None, Path::new("merged"))?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` has both as programs, and one that serves a soup inside its own process. The modules
//! stand on floors, each using only those below it; `docs/architecture.md` has the table and both
//! flows, `docs/algorithms.md` the equations.

#[cfg(not(unix))]
compile_error!("ladle runs on Unix: it maps files, links them and names processes as Unix does");

pub mod chat;
pub mod config;
pub mod engine;
pub mod files;
pub mod grammar;
pub mod http;
pub mod import;
pub mod kernels;
pub mod memory;
pub mod merge;
pub mod model;
pub mod preference;
pub mod rng;
pub mod sampling;
pub mod simd;
pub mod soup;
pub mod telemetry;
pub mod tokenizer;
pub mod turns;
