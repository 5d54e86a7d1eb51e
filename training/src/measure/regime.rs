//! The regime of a soup: whether B⁻¹μ can improve its front, and what to change where it cannot.
//! Pure.

use nalgebra::{DMatrix, DVector};

/// A linear regression of the rewards on λ explains at least this much in the linear regime.
const LINEAR_R2: f64 = 0.96;
/// Past the knee it explains at least this much.
const KNEE_R2: f64 = 0.85;
/// Nats per answer up to which a policy is bound to θ_sft.
const BOUND_KL: f64 = 2.0;
/// A corner overshoots whose KL to θ_sft is this many times that of its backbone.
const OVERSHOOT: f64 = 1.5;

/// Where a preference lies in the simplex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Region {
    /// All weight on one objective.
    Corner,
    /// Some objective has no weight.
    Edge,
    /// Every objective has weight.
    Interior,
}

impl Region {
    /// The region of μ; weights below 1e-9 count as none.
    pub fn of(preference: &[f64]) -> Self {
        match preference.iter().filter(|weight| **weight > 1e-9).count() {
            0 | 1 => Self::Corner,
            weighted if weighted < preference.len() => Self::Edge,
            _ => Self::Interior,
        }
    }
}

/// The figures that decide the regime of one method's sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// R² of the standardised rewards as a linear function of λ; `None` where they do not vary.
    pub r_squared: Option<f64>,
    /// Largest KL to θ_sft of the points inside the simplex, nats per answer.
    pub interior_kl: Option<f64>,
    /// KL to θ_sft of each corner and of the backbone that it leans on, nats per answer.
    pub corners: Vec<Corner>,
    /// Whether a point inside the simplex is better, by its own preference, than the mix of the
    /// corners' rewards in the shares of μ.
    pub beats_chord: bool,
    /// Whether the backbones were trained on mixed rewards, rather than on one each.
    pub bones: bool,
}

/// One corner of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Corner {
    /// Its objective.
    pub objective: String,
    /// KL to θ_sft of its point, nats per answer.
    pub kl: Option<f64>,
    /// KL to θ_sft of its backbone.
    pub backbone_kl: Option<f64>,
    /// Whether θ_sft is at least as good in every reward and better in one.
    pub dominated: bool,
}

/// Conclusions from the sweep, for a user: at least one line.
pub fn verdicts(sweep: &Sweep) -> Vec<String> {
    let mut lines = Vec::new();
    for Corner { objective, kl, backbone_kl, dominated } in &sweep.corners {
        let advice = "clamp λ, lower α or train less";
        if *dominated {
            lines.push(format!("overshoot: θ_sft dominates the corner of {objective}; {advice}"));
        } else if let (Some(kl), Some(own)) = (kl, backbone_kl)
            && *kl > OVERSHOOT * own
        {
            lines.push(format!(
                "overshoot: the corner of {objective} is {kl:.1} nats from θ_sft, its backbone \
                 {own:.1}; {advice}"
            ));
        }
    }
    let Some(r_squared) = sweep.r_squared else {
        lines.push("the rewards do not vary over the sweep".to_owned());
        return lines;
    };
    let kl = match sweep.interior_kl {
        Some(kl) => format!("at most {kl:.1} nats an answer inside"),
        None => "KL is measured at temperature 1 alone".to_owned(),
    };
    let bound = sweep.interior_kl.is_none_or(|kl| kl <= BOUND_KL);
    let pays = match sweep.bones {
        true => "B⁻¹μ pays inside",
        false => "backbones trained on mixed rewards (mixing.beta) may pay inside",
    };
    lines.push(if r_squared >= LINEAR_R2 && bound {
        format!("linear (R² {r_squared:.2}, {kl}): tune α, B⁻¹ changes little")
    } else if (KNEE_R2..LINEAR_R2).contains(&r_squared) && sweep.beats_chord {
        format!("past the knee (R² {r_squared:.2}, {kl}, a point inside beats the chord): {pays}")
    } else if r_squared < KNEE_R2 {
        format!(
            "far from linear (R² {r_squared:.2} below {KNEE_R2}, {kl}): no rule is sure to pay, \
             compare with Rewarded Soup and clamped λ point by point"
        )
    } else {
        format!("no regime of these (R² {r_squared:.2}, {kl}): compare with Rewarded Soup point by point")
    });
    lines
}

/// R² of a linear regression (with a constant) of the rows of `outcomes` on the rows of `inputs`,
/// pooled over their columns: 1 − Σ residuals² / Σ deviations². `None` where nothing varies.
pub fn r_squared(inputs: &[Vec<f64>], outcomes: &[Vec<f64>]) -> Option<f64> {
    let (rows, width) = (inputs.len(), inputs.first()?.len());
    let x = DMatrix::from_fn(rows, width + 1, |i, j| if j == width { 1.0 } else { inputs[i][j] });
    // λ sums to 1, so the constant is one of its combinations: the least-norm solution is taken.
    let factored = x.clone().svd(true, true);
    let (mut unexplained, mut total) = (0.0, 0.0);
    for column in 0..outcomes.first()?.len() {
        let y = DVector::from_iterator(rows, outcomes.iter().map(|row| row[column]));
        let solved = factored.solve(&y, 1e-9).ok()?;
        unexplained += (&y - &x * solved).norm_squared();
        total += y.add_scalar(-y.mean()).norm_squared();
    }
    (total > 1e-24).then(|| 1.0 - unexplained / total)
}

/// Whether some interior point is better by its own preference than the corners mixed by it:
/// Σⱼ μⱼ rⱼ(μ) > Σⱼ μⱼ Σₖ μₖ rⱼ(eₖ).
pub fn beats_chord(preferences: &[Vec<f64>], rewards: &[Vec<f64>]) -> bool {
    let value = |mu: &[f64], r: &[f64]| mu.iter().zip(r).map(|(m, r)| m * r).sum::<f64>();
    let corner = |k: usize| {
        let at = preferences.iter().position(|mu| mu.get(k).is_some_and(|w| *w > 1.0 - 1e-9))?;
        rewards.get(at)
    };
    let corners: Option<Vec<&Vec<f64>>> =
        (0..preferences.first().map_or(0, Vec::len)).map(corner).collect();
    let Some(corners) = corners else { return false };
    preferences.iter().zip(rewards).any(|(mu, r)| {
        let chord: f64 = mu.iter().zip(&corners).map(|(m, corner)| m * value(mu, corner)).sum();
        Region::of(mu) == Region::Interior && value(mu, r) > chord
    })
}
