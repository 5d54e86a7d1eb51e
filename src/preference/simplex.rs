//! Preference vectors: points of the simplex Δₙ.

/// How much each objective matters to a request: finite, ≥ 0, summing to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference(Vec<f64>);

/// Why numbers are not a preference.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PreferenceError {
    /// The vector has another length than there are objectives.
    #[error("preference has {got} weights, expected {expected} (one per objective)")]
    Length {
        /// Number of objectives.
        expected: usize,
        /// Number of weights given.
        got: usize,
    },
    /// A weight is NaN, infinite or negative.
    #[error("preference weight {index} is {value}, expected a finite number ≥ 0")]
    Weight {
        /// Position of the weight, from 0.
        index: usize,
        /// The weight.
        value: f64,
    },
    /// Nothing is preferred.
    #[error("preference weights are all zero, expected at least one above 0")]
    Zero,
}

impl Preference {
    /// Checks `weights` (one per objective) and normalises them to sum 1.
    pub fn new(weights: &[f64], objectives: usize) -> Result<Self, PreferenceError> {
        if weights.len() != objectives {
            return Err(PreferenceError::Length { expected: objectives, got: weights.len() });
        }
        if let Some((index, &value)) =
            weights.iter().enumerate().find(|(_, w)| !w.is_finite() || **w < 0.0)
        {
            return Err(PreferenceError::Weight { index, value });
        }
        // Dividing by the largest first keeps the sum finite whatever the scale.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        if largest == 0.0 {
            return Err(PreferenceError::Zero);
        }
        let scaled = weights.iter().map(|w| w / largest);
        let sum: f64 = scaled.clone().sum();
        Ok(Self(scaled.map(|w| w / sum).collect()))
    }

    /// The same weight on each of `objectives` (at least one).
    pub fn uniform(objectives: usize) -> Self {
        Self(vec![1.0 / objectives as f64; objectives])
    }

    /// The normalised weights μ, in the order of the objectives.
    pub fn weights(&self) -> &[f64] {
        &self.0
    }
}
