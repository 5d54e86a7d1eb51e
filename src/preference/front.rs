//! The measured front of a soup (`front.json`) as a function of the preference.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    menu::Menu,
    mixing::MixingMatrix,
    simplex::Preference,
    solve::{Alpha, LambdaRule, Solution},
    surrogate::{Predicted, Surrogate},
};

/// A surrogate for each α at which the soup was measured, under its own rule for λ.
#[derive(Debug, Clone)]
pub struct Front {
    rule: LambdaRule,
    /// By α, ascending.
    sweeps: Vec<(f64, Surrogate)>,
    /// Name of the sweep at α = 0, where there is one.
    method: Option<String>,
}

/// What of `front.json` is read here.
#[derive(Deserialize)]
struct File {
    objectives: Vec<Objective>,
    methods: Vec<Method>,
    /// Digests of the weight files that were measured.
    #[serde(default)]
    sha256: Map<String, Value>,
}

#[derive(Deserialize)]
struct Objective {
    name: String,
}

#[derive(Deserialize)]
struct Method {
    method: String,
    kind: Option<String>,
    /// Index of the run that it serves: those after the first are of other soups.
    #[serde(default)]
    run: usize,
    #[serde(default)]
    alpha: f64,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    #[serde(default)]
    preference: Vec<f64>,
    lambda: Option<Vec<f64>>,
    mean: Vec<f64>,
}

/// Kinds of methods that merge weights.
const MERGED: [&str; 5] = ["bone", "realised", "clamped", "aba", "rewarded"];

impl Method {
    /// Whether it answered its preferences as the soup does under `rule`: by merged weights, with the
    /// same λ.
    fn serves(&self, mixing: &MixingMatrix, rule: LambdaRule) -> bool {
        let merges = self.kind.as_ref().is_some_and(|kind| MERGED.contains(&kind.as_str()));
        let same = |point: &Point| {
            let preference = Preference::new(&point.preference, mixing.len()).ok()?;
            let own = mixing.solve_by(rule, &preference, &Alpha::default()).lambda;
            let measured = point.lambda.as_ref().filter(|lambda| lambda.len() == own.len())?;
            Some(own.iter().zip(measured).all(|(a, b)| (a - b).abs() < 1e-6))
        };
        merges && self.run == 0 && self.points.iter().all(|point| same(point).unwrap_or(false))
    }
}

/// Two measured sweeps and where an α lies between them: 0 at the first, 1 at the second.
pub(super) struct Slice<'a>(&'a Surrogate, &'a Surrogate, f64);

impl Slice<'_> {
    /// Expected rewards of μ, linear in α between the sweeps.
    pub fn values(&self, mu: &[f64]) -> Vec<f64> {
        let Self(below, above, share) = self;
        let pairs = below.values(mu).into_iter().zip(above.values(mu));
        pairs.map(|(a, b)| a + share * (b - a)).collect()
    }

    /// The values with their errors. Between two sweeps the error grows by the most that a quadratic
    /// in α, monotone from one sweep to the other, is away from the line: w(1 − w)·|difference|.
    pub fn predict(&self, mu: &[f64]) -> Vec<Predicted> {
        let Self(below, above, share) = self;
        let pairs = below.predict(mu).into_iter().zip(above.predict(mu));
        pairs
            .map(|(a, b)| {
                let between = |a: f64, b: f64| a + share * (b - a);
                let bent = share * (1.0 - share) * (b.value - a.value).abs();
                Predicted {
                    value: between(a.value, b.value),
                    low: between(a.low, b.low) - bent,
                    high: between(a.high, b.high) + bent,
                }
            })
            .collect()
    }
}

impl Front {
    /// Reads the front of a soup with this menu and matrix; says why it predicts nothing. That its
    /// weights are the soup's is checked where the soup is opened.
    pub fn read(front: Option<&Value>, menu: &Menu, mixing: &MixingMatrix) -> Result<Self, String> {
        let read = front.ok_or("there is none".to_owned());
        let read = read.and_then(|front| Self::parse(front, menu, mixing));
        read.map_err(|reason| format!("the soup's front predicts nothing: {reason}"))
    }

    fn parse(front: &Value, menu: &Menu, mixing: &MixingMatrix) -> Result<Self, String> {
        let file = File::deserialize(front).map_err(|error| error.to_string())?;
        let (objectives, rule) = (&menu.objectives, menu.default_rule);
        if !file.objectives.iter().map(|one| &one.name).eq(objectives) {
            return Err("it was measured for other objectives".to_owned());
        }
        if file.sha256.is_empty() {
            let reason = "it does not say which weights it was measured on (sha256); \
                          `train-backbones evaluate` measures it anew";
            return Err(reason.to_owned());
        }
        let whole = |values: &[f64]| values.len() == objectives.len();
        let complete = |point: &Point| whole(&point.preference) && whole(&point.mean);
        if !file.methods.iter().flat_map(|method| &method.points).all(complete) {
            return Err("a point of it has another number of objectives".to_owned());
        }
        let mut sweeps: Vec<(f64, Surrogate)> = Vec::new();
        let served = || file.methods.iter().filter(|method| method.serves(mixing, rule));
        for Method { alpha, points, .. } in served() {
            if sweeps.iter().any(|(known, _)| known == alpha) {
                continue;
            }
            let preferences: Vec<&[f64]> = points.iter().map(|p| &p.preference[..]).collect();
            let means: Vec<&[f64]> = points.iter().map(|p| &p.mean[..]).collect();
            sweeps.push((*alpha, Surrogate::fit(&preferences, &means)?));
        }
        sweeps.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        match sweeps.is_empty() {
            true => Err("it has no sweep of the soup as it is served".to_owned()),
            false => {
                let plain = served().find(|method| method.alpha == 0.0);
                Ok(Self { rule, sweeps, method: plain.map(|method| method.method.clone()) })
            }
        }
    }

    /// Name of the method in the file that is the soup as it is served at α = 0, where that was
    /// measured.
    pub fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    /// What is expected under a rule at an α: of the sweep there, or between its neighbours; says what
    /// was measured where it is neither.
    pub(super) fn slice(&self, rule: LambdaRule, alpha: &Alpha) -> Result<Slice<'_>, String> {
        let at = match alpha {
            Alpha::Scalar(alpha) if rule == self.rule => *alpha,
            _ => return Err(self.measured()),
        };
        let above = self.sweeps.iter().position(|(measured, _)| *measured > at - 1e-9);
        let above = above.ok_or_else(|| self.measured())?;
        let (high, last) = &self.sweeps[above];
        if (high - at).abs() < 1e-9 {
            return Ok(Slice(last, last, 0.0));
        }
        let below = above.checked_sub(1).ok_or_else(|| self.measured())?;
        let (low, first) = &self.sweeps[below];
        Ok(Slice(first, last, (at - low) / (high - low)))
    }

    /// What a solution's rewards are expected to be, one per objective; says at which α, and under which
    /// rule for λ, it could say so.
    pub fn predict(&self, solution: &Solution) -> Result<Vec<Predicted>, String> {
        let slice = self.slice(solution.rule, &solution.alpha);
        let slice = slice.map_err(|measured| format!("expected {measured}"))?;
        Ok(slice.predict(solution.preference.weights()))
    }

    /// The rule and the values of α that were measured.
    fn measured(&self) -> String {
        let rule = if self.rule.is_exact() { "exact" } else { "clamp" };
        let alphas = match self.sweeps.as_slice() {
            [(first, _), .., (last, _)] => format!("one alpha of {first} to {last}"),
            sweeps => sweeps.iter().map(|(alpha, _)| format!("alpha {alpha}")).collect(),
        };
        format!("lambda {rule:?} and {alphas}, where the soup's front was measured")
    }
}
