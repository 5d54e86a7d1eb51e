//! From a preference vector μ to merging coefficients: μ → λ = B⁻¹μ → c (ALGORITHMS §1).
//!
//! Pure f64 arithmetic; no tensors, no I/O.

pub mod key;
pub mod mixing;
pub mod simplex;
pub mod solve;

pub use key::ModelKey;
pub use mixing::{MixingError, MixingMatrix};
pub use simplex::{Preference, PreferenceError};
pub use solve::{Alpha, AlphaError, Coefficients, Solution};
