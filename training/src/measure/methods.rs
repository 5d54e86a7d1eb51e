//! The methods that an evaluation compares: which soup, which mapping of μ to a model.

use ladle::{
    engine::Combine,
    preference::{
        Alpha, Coefficients, LambdaRule, MixingMatrix, Preference, PreferenceError,
        mixing::MAX_REALISED_CONDITION,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    config::Mapping,
    ric::goals::{Range, words},
};

/// How a method answers a preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// λ = B⁻¹μ with the B that was asked for.
    Bone,
    /// λ = B⁻¹μ with the B that training arrived at.
    Realised,
    /// λ = μ on bone backbones.
    Aba,
    /// B⁻¹μ projected on the simplex.
    Clamped,
    /// λ = μ on backbones of one reward each.
    Rewarded,
    /// MOD: logits of the backbones, weighed by B⁻¹μ.
    Mod,
    /// Backbones of their own: a policy trained on the rewards in the shares of the preference.
    Oracle,
    /// One policy for all preferences: fixed or balanced weights of the rewards (DRBO, GDPO).
    Policy,
    /// RiC: one policy that its prompts tell the rewards that the preference is mapped to.
    Ric,
}

impl Kind {
    /// All methods, in the order of a report.
    pub const ALL: [Self; 9] = [
        Self::Bone,
        Self::Realised,
        Self::Aba,
        Self::Clamped,
        Self::Rewarded,
        Self::Mod,
        Self::Oracle,
        Self::Policy,
        Self::Ric,
    ];

    /// Whether a grid of α is searched for the method: where several backbones are merged.
    pub fn extrapolates(self) -> bool {
        !matches!(self, Self::Mod | Self::Oracle | Self::Policy | Self::Ric)
    }

    /// The runs that serve it.
    pub fn needs(self) -> &'static str {
        match self {
            Self::Bone | Self::Clamped | Self::Aba => "a run whose B is not the identity",
            Self::Realised => "a run whose soup holds a realised B, other than the identity",
            Self::Rewarded => "a run with mixing.identity",
            Self::Mod => "a run of several backbones",
            Self::Oracle => "a run whose backbones had fixed weights of the rewards",
            Self::Policy => "a run with mixing.weights",
            Self::Ric => "a run with mixing.context",
        }
    }

    /// Description for readers of a report.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Bone => "λ = B⁻¹μ with the B that was asked for",
            Self::Realised => "λ = B⁻¹μ with the B that training arrived at",
            Self::Aba => "bone backbones with λ = μ",
            Self::Clamped => "B⁻¹μ projected on the simplex",
            Self::Rewarded => "λ = μ with backbones of one reward each",
            Self::Mod => "logits of the backbones, weighed by B⁻¹μ",
            Self::Oracle => "a policy trained for that preference",
            Self::Policy => "one policy for all preferences",
            Self::Ric => "one policy that prompts tell the rewards wanted",
        }
    }
}

/// The model that a preference asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// c over the backbones and θ_sft; for logits, that of θ_sft alone.
    pub coefficients: Coefficients,
    /// Whether weights or logits are combined.
    pub combine: Combine,
    /// Words behind each prompt, of a policy that is told the rewards wanted.
    pub told: Option<String>,
}

impl Model {
    /// θ_sft of a soup with `backbones` backbones.
    pub fn sft(backbones: usize) -> Self {
        let coefficients = Coefficients { backbones: vec![0.0; backbones], sft: 1.0 };
        Self { coefficients, combine: Combine::Weights, told: None }
    }

    /// Backbone `index` of `backbones`.
    pub fn backbone(index: usize, backbones: usize) -> Self {
        let one = |i| if i == index { 1.0 } else { 0.0 };
        let coefficients = Coefficients { backbones: (0..backbones).map(one).collect(), sft: 0.0 };
        Self { coefficients, combine: Combine::Weights, told: None }
    }
}

/// One way to answer a preference.
#[derive(Debug, Clone)]
pub struct Method {
    /// Its name in the report, with α where that is not 0.
    pub name: String,
    pub kind: Kind,
    /// Index of the run that it serves.
    pub run: usize,
    /// Extrapolation.
    pub alpha: f64,
    matrix: MixingMatrix,
    rule: LambdaRule,
    told: Option<Told>,
}

/// How a preference becomes the rewards that prompts ask for (RiC).
#[derive(Debug, Clone)]
pub struct Told {
    pub mapping: Mapping,
    pub range: Range,
}

impl Method {
    /// λ and the model of a preference.
    pub fn solve(&self, preference: &[f64]) -> Result<(Vec<f64>, Model), PreferenceError> {
        if self.kind == Kind::Policy {
            return Ok((vec![1.0], Model::backbone(0, 1)));
        }
        if let Some(Told { mapping, range }) = &self.told {
            let told = Some(words(&range.wanted(*mapping, preference)));
            return Ok((vec![1.0], Model { told, ..Model::backbone(0, 1) }));
        }
        let preference = Preference::new(preference, self.matrix.len())?;
        let alpha = Alpha::Scalar(self.alpha);
        let solution = self.matrix.solve_by(self.rule, &preference, &alpha);
        let model = match self.kind {
            Kind::Mod => Model {
                combine: Combine::Logits(solution.coefficients.backbones.clone()),
                ..Model::sft(self.matrix.len())
            },
            _ => {
                Model { coefficients: solution.coefficients, combine: Combine::Weights, told: None }
            }
        };
        Ok((solution.lambda, model))
    }

    /// The same method with an extrapolation.
    pub fn extrapolated(&self, alpha: f64) -> Self {
        let name =
            if alpha == 0.0 { self.name.clone() } else { format!("{}, α = {alpha}", self.name) };
        Self { name, alpha, ..self.clone() }
    }
}

/// A method that is not evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    pub method: String,
    pub reason: String,
}

/// The parts of a run that decide its methods.
pub struct Trained<'a> {
    /// Index of the run.
    pub run: usize,
    /// Tells methods of one name apart: empty for the subject.
    pub label: &'a str,
    /// B; `None` of a single policy.
    pub nominal: Option<&'a MixingMatrix>,
    /// Whether B is the identity: one reward a backbone.
    pub identity: bool,
    /// Rows of the B that training arrived at.
    pub realised: Option<&'a [Vec<f64>]>,
    /// Name of a single policy: how its rewards were balanced, or what else trained it.
    pub policy: String,
    /// What maps preferences to rewards wanted, of a policy that is told them.
    pub told: Option<&'a Told>,
}

impl Trained<'_> {
    /// The methods of `kinds` that the run serves, at α = 0, and those that it cannot serve.
    pub fn methods(&self, kinds: &[Kind], taken: &[Method]) -> (Vec<Method>, Vec<LeftOut>) {
        let (mut methods, mut left_out) = (Vec::new(), Vec::new());
        let Some(nominal) = self.nominal else {
            let kind = if self.told.is_some() { Kind::Ric } else { Kind::Policy };
            methods.extend(kinds.contains(&kind).then(|| self.policy(kind, taken)));
            return (methods, left_out);
        };
        let n = nominal.len();
        for &kind in kinds {
            let name = match (kind, self.identity) {
                (Kind::Bone, false) => "bone soup (nominal)",
                (Kind::Realised, false) => "bone soup (realised)",
                (Kind::Clamped, false) => "bone soup (clamped)",
                (Kind::Aba, false) => "aba",
                (Kind::Rewarded, true) => "rewarded soup",
                (Kind::Mod, true) => "mod",
                (Kind::Mod, false) => "mod on bone backbones",
                _ => continue,
            };
            let name = self.named(name, taken.iter().chain(&methods));
            let matrix = match kind {
                Kind::Aba => MixingMatrix::identity(n),
                Kind::Realised => {
                    let Some(rows) = self.realised else { continue };
                    let usable = MixingMatrix::from_rows(rows).map_err(|e| e.to_string());
                    match usable.and_then(well_conditioned) {
                        Ok(matrix) => matrix,
                        Err(reason) => {
                            left_out.push(LeftOut { method: name, reason });
                            continue;
                        }
                    }
                }
                _ => nominal.clone(),
            };
            let rule = if kind == Kind::Clamped { LambdaRule::Clamp } else { LambdaRule::Exact };
            methods.push(Method {
                name,
                kind,
                run: self.run,
                alpha: 0.0,
                matrix,
                rule,
                told: None,
            });
        }
        (methods, left_out)
    }
}

impl Trained<'_> {
    /// The method of a single policy.
    fn policy(&self, kind: Kind, taken: &[Method]) -> Method {
        let name = match kind {
            Kind::Ric => "ric",
            _ => &self.policy,
        };
        let name = self.named(name, taken.iter());
        let (matrix, rule) = (MixingMatrix::identity(1), LambdaRule::Exact);
        Method { name, kind, run: self.run, alpha: 0.0, matrix, rule, told: self.told.cloned() }
    }

    /// A name that no other method has.
    fn named<'m>(&self, name: &str, mut taken: impl Iterator<Item = &'m Method>) -> String {
        match taken.any(|method| method.name == name) {
            true => format!("{name} of {}", self.label),
            false => name.to_owned(),
        }
    }
}

/// Refuses an ill-conditioned realised B, whose λ would lie far outside the hull of the trained
/// backbones.
fn well_conditioned(matrix: MixingMatrix) -> Result<MixingMatrix, String> {
    let condition = matrix.condition();
    if condition <= MAX_REALISED_CONDITION {
        return Ok(matrix);
    }
    Err(format!(
        "the realised B has condition number {condition:.1}, expected at most {MAX_REALISED_CONDITION}"
    ))
}
