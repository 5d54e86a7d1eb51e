//! λ = B⁻¹μ and the extrapolated coefficients c over (θ₁..θₙ, θ_sft).

use serde::{Deserialize, Serialize};

use super::{mixing::MixingMatrix, simplex::Preference, surrogate::Predicted};

/// Extrapolation away from θ_sft (Bone Soups eq. 9, `docs/algorithms.md` §1.3): one α ≥ 0, or one per
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

/// How λ follows from B⁻¹μ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LambdaRule {
    /// λ = B⁻¹μ (Bone Soup); may be negative or above 1.
    #[default]
    Exact,
    /// The point of the simplex nearest to B⁻¹μ: never outside the hull of what was trained.
    Clamp,
}

impl LambdaRule {
    /// Whether λ is B⁻¹μ itself.
    pub fn is_exact(&self) -> bool {
        *self == Self::Exact
    }
}

impl std::str::FromStr for LambdaRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "exact" => Ok(Self::Exact),
            "clamp" => Ok(Self::Clamp),
            _ => Err(RULES.to_owned()),
        }
    }
}

/// The names of the rules, for error messages.
pub(super) const RULES: &str = "\"exact\" (λ = B⁻¹μ) or \"clamp\" (its projection on the simplex)";

/// The solution of a preference.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// μ, normalised.
    pub preference: Preference,
    /// The extrapolation that was applied.
    pub alpha: Alpha,
    /// How λ follows from B⁻¹μ.
    pub rule: LambdaRule,
    /// λ; sums to 1.
    pub lambda: Vec<f64>,
    /// c.
    pub coefficients: Coefficients,
    /// What its rewards are expected to be, one per objective, where that was asked, or why it is not
    /// known.
    pub predicted: Option<Result<Vec<Predicted>, String>>,
}

impl MixingMatrix {
    /// Solves μ for λ = B⁻¹μ and c: c = Σⱼ μⱼ kⱼ B⁻¹eⱼ and c_sft = Σⱼ μⱼ(1−kⱼ) with kⱼ = 1+αⱼ.
    ///
    /// `preference` and a per-objective `alpha` must have one entry per objective of this matrix.
    pub fn solve(&self, preference: &Preference, alpha: &Alpha) -> Solution {
        self.solve_by(LambdaRule::Exact, preference, alpha)
    }

    /// As [`Self::solve`], with the given rule for λ. With s = Σⱼ μⱼkⱼ and ν = (μ∘k)/s, the rule takes
    /// the place of B⁻¹ in c = s·B⁻¹ν; for a scalar α, c = (1+α)·λ.
    pub fn solve_by(&self, rule: LambdaRule, preference: &Preference, alpha: &Alpha) -> Solution {
        let mu = preference.weights();
        let scaled: Vec<f64> =
            mu.iter().enumerate().map(|(j, weight)| weight * (1.0 + alpha.of(j))).collect();
        let extrapolated: f64 = mu.iter().enumerate().map(|(j, weight)| weight * alpha.of(j)).sum();
        let (lambda, backbones) = match rule {
            LambdaRule::Exact => (self.inverse_times(mu), self.inverse_times(&scaled)),
            LambdaRule::Clamp => {
                let sum = 1.0 + extrapolated;
                let clamped = |v: &[f64]| nearest_on_simplex(&self.inverse_times(v));
                // At s = 0 all weight is on θ_sft.
                let share = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                let shares: Vec<f64> = scaled.iter().map(|k| k * share).collect();
                (clamped(mu), clamped(&shares).into_iter().map(|c| sum * c).collect())
            }
        };
        Solution {
            preference: preference.clone(),
            alpha: alpha.clone(),
            rule,
            lambda,
            coefficients: Coefficients { backbones, sft: 0.0 - extrapolated },
            predicted: None,
        }
    }
}

/// The Euclidean projection of v on the simplex {x ≥ 0, Σx = 1}: max(v − θ, 0) with the θ that makes
/// the sum 1 (Duchi et al. 2008, *Efficient Projections onto the ℓ₁-Ball*, figure 1).
pub fn nearest_on_simplex(v: &[f64]) -> Vec<f64> {
    let mut sorted = v.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut threshold) = (0.0, 0.0);
    for (index, value) in sorted.iter().enumerate() {
        sum += value;
        let candidate = (sum - 1.0) / (index + 1) as f64;
        if value - candidate <= 0.0 {
            break;
        }
        threshold = candidate;
    }
    v.iter().map(|x| (x - threshold).max(0.0)).collect()
}
