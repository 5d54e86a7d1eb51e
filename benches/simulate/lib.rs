//! Serving simulated on machines that are described by figures: ladle's own scheduler, cost model
//! and choice of modes against one adapter per request and one mix per batch. docs/scale.md says
//! what is assumed; `main.rs` runs the scenarios of `config.toml`.

mod cache;
pub mod load;
pub mod machine;
pub mod policy;
pub mod run;
