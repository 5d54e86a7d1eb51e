//! From a preference as written to merging coefficients: form → μ → λ = B⁻¹μ → c.
//!
//! [`form`] reads what was written, [`menu`] looks its names up in what the soup offers, [`simplex`]
//! normalises μ, [`mixing`] checks B and [`solve`] gives λ and c. [`front`] predicts the rewards of a
//! solution from what was measured, and [`goal`] finds the μ that reaches some. Pure f64 arithmetic; no
//! tensors, no I/O.

pub mod form;
pub mod front;
pub mod goal;
pub mod key;
pub mod menu;
pub mod mixing;
pub mod simplex;
pub mod solve;
pub mod surrogate;

pub use form::{AlphaForm, Form, FormError};
pub use front::Front;
pub use goal::Goal;
pub use key::ModelKey;
pub use menu::{Menu, Solved};
pub use mixing::{MixingError, MixingMatrix};
pub use simplex::{Preference, PreferenceError};
pub use solve::{Alpha, AlphaError, Coefficients, LambdaRule, Solution};
pub use surrogate::Predicted;
