//! The measured front of a soup (`front.json`) as a function of the preference.

use serde::Deserialize;
use serde_json::Value;

use super::{
    solve::{Alpha, LambdaRule, Solution},
    surrogate::{Predicted, Surrogate},
};

/// A surrogate for each α at which the soup was measured, under its own rule for λ.
#[derive(Debug, Clone)]
pub struct Front {
    rule: LambdaRule,
    sweeps: Vec<(f64, Surrogate)>,
}

/// What of `front.json` is read here.
#[derive(Deserialize)]
struct File {
    objectives: Vec<Objective>,
    methods: Vec<Method>,
}

#[derive(Deserialize)]
struct Objective {
    name: String,
}

#[derive(Deserialize)]
struct Method {
    method: String,
    kind: Option<String>,
    #[serde(default)]
    alpha: f64,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    #[serde(default)]
    preference: Vec<f64>,
    mean: Vec<f64>,
}

impl Method {
    /// Whether it answers preferences as the server does under `rule`.
    fn serves(&self, rule: LambdaRule) -> bool {
        match (&self.kind, rule) {
            (Some(kind), LambdaRule::Exact) => kind == "bone",
            (Some(kind), LambdaRule::Clamp) => kind == "clamped",
            // The first layout of the file names methods only.
            (None, LambdaRule::Exact) => self.method == "bone soup (nominal)",
            (None, LambdaRule::Clamp) => false,
        }
    }
}

impl Front {
    /// Reads the front of a soup with these objectives whose default rule for λ is `rule`; says why it
    /// predicts nothing.
    pub fn read(front: &Value, objectives: &[String], rule: LambdaRule) -> Result<Self, String> {
        let file = File::deserialize(front).map_err(|error| error.to_string())?;
        if !file.objectives.iter().map(|one| &one.name).eq(objectives) {
            return Err("it was measured for other objectives".to_owned());
        }
        let mut sweeps: Vec<(f64, Surrogate)> = Vec::new();
        for Method { alpha, points, .. } in file.methods.iter().filter(|one| one.serves(rule)) {
            if sweeps.iter().any(|(known, _)| known == alpha) {
                continue;
            }
            let whole = |values: &[f64]| values.len() == objectives.len();
            if !points.iter().all(|point| whole(&point.preference) && whole(&point.mean)) {
                return Err("a point of it has another number of objectives".to_owned());
            }
            let preferences: Vec<&[f64]> = points.iter().map(|p| &p.preference[..]).collect();
            let means: Vec<&[f64]> = points.iter().map(|p| &p.mean[..]).collect();
            sweeps.push((*alpha, Surrogate::fit(&preferences, &means)?));
        }
        match sweeps.is_empty() {
            true => Err("it has no sweep of the soup as it is served".to_owned()),
            false => Ok(Self { rule, sweeps }),
        }
    }

    /// The surrogate of a rule and an α, where that was measured.
    pub(super) fn surrogate(&self, rule: LambdaRule, alpha: &Alpha) -> Option<&Surrogate> {
        let Alpha::Scalar(alpha) = alpha else { return None };
        let of = self.sweeps.iter().find(|(measured, _)| (measured - alpha).abs() < 1e-9)?;
        (rule == self.rule).then_some(&of.1)
    }

    /// What a solution's rewards are expected to be, one per objective; `None` at an α, or under a rule
    /// for λ, that was not measured.
    pub fn predict(&self, solution: &Solution) -> Option<Vec<Predicted>> {
        let surrogate = self.surrogate(solution.rule, &solution.alpha)?;
        Some(surrogate.predict(solution.preference.weights()))
    }

    /// The rule and the values of α that were measured, for error messages.
    pub(super) fn measured(&self) -> String {
        let alphas: Vec<String> = self.sweeps.iter().map(|(alpha, _)| alpha.to_string()).collect();
        let rule = if self.rule.is_exact() { "exact" } else { "clamp" };
        format!("lambda {rule:?} and alpha {}", alphas.join(" or "))
    }
}
