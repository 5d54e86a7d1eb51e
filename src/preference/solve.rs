//! λ = B⁻¹μ and the extrapolated coefficients c over (θ₁..θₙ, θ_sft).

use super::{mixing::MixingMatrix, simplex::Preference};

/// Extrapolation away from θ_sft ([BS] eq. 9, `docs/algorithms.md` §1.3): one α ≥ 0, or one per
/// objective.
#[derive(Debug, Clone, PartialEq)]
pub enum Alpha {
    /// θ̂ = (1+α)·Σλᵢθᵢ − α·θ_sft.
    Scalar(f64),
    /// Objective j is scaled by kⱼ = 1+αⱼ before the solve.
    PerObjective(Vec<f64>),
}

/// Why numbers are not an extrapolation.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AlphaError {
    /// The vector has another length than there are objectives.
    #[error("alpha has {got} values, expected 1 or {expected} (one per objective)")]
    Length {
        /// Number of objectives.
        expected: usize,
        /// Number of values given.
        got: usize,
    },
    /// A value is outside the bounds of the soup.
    #[error("alpha is {value}, expected a number in [{min}, {max}]")]
    Bounds {
        /// The value.
        value: f64,
        /// Smallest allowed.
        min: f64,
        /// Largest allowed.
        max: f64,
    },
}

impl Default for Alpha {
    /// No extrapolation.
    fn default() -> Self {
        Self::Scalar(0.0)
    }
}

impl Alpha {
    /// Checks the length against `objectives` and every value against `[min, max]`.
    pub fn check(&self, objectives: usize, min: f64, max: f64) -> Result<(), AlphaError> {
        let values = match self {
            Self::Scalar(value) => std::slice::from_ref(value),
            Self::PerObjective(values) if values.len() == objectives => values,
            Self::PerObjective(values) => {
                return Err(AlphaError::Length { expected: objectives, got: values.len() });
            }
        };
        match values.iter().find(|value| !(min..=max).contains(*value)) {
            Some(&value) => Err(AlphaError::Bounds { value, min, max }),
            None => Ok(()),
        }
    }

    fn of(&self, objective: usize) -> f64 {
        match self {
            Self::Scalar(alpha) => *alpha,
            Self::PerObjective(alphas) => alphas[objective],
        }
    }
}

/// Final coefficients c over (θ₁..θₙ, θ_sft); they sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Coefficients {
    /// cᵢ of backbone i.
    pub backbones: Vec<f64>,
    /// c of θ_sft.
    pub sft: f64,
}

/// What a preference was solved to.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// μ, normalised.
    pub preference: Preference,
    /// The extrapolation that was applied.
    pub alpha: Alpha,
    /// λ = B⁻¹μ; sums to 1, may be negative or above 1.
    pub lambda: Vec<f64>,
    /// c.
    pub coefficients: Coefficients,
}

impl MixingMatrix {
    /// Solves μ for λ and c: c = Σⱼ μⱼ kⱼ B⁻¹eⱼ and c_sft = Σⱼ μⱼ(1−kⱼ) with kⱼ = 1+αⱼ.
    ///
    /// `preference` and a per-objective `alpha` must have one entry per objective of this matrix.
    pub fn solve(&self, preference: &Preference, alpha: &Alpha) -> Solution {
        let mu = preference.weights();
        let scaled: Vec<f64> =
            mu.iter().enumerate().map(|(j, weight)| weight * (1.0 + alpha.of(j))).collect();
        let extrapolated: f64 = mu.iter().enumerate().map(|(j, weight)| weight * alpha.of(j)).sum();
        Solution {
            preference: preference.clone(),
            alpha: alpha.clone(),
            lambda: self.inverse_times(mu),
            coefficients: Coefficients {
                backbones: self.inverse_times(&scaled),
                sft: 0.0 - extrapolated,
            },
        }
    }
}
