//! A preference told by what it should reach: bounds on rewards, and the one to maximise.

use serde_json::Value;

use super::{
    form::FormError,
    front::{Front, Slice},
    menu::Menu,
    simplex::Preference,
    solve::{Alpha, LambdaRule},
};

/// Points of the lattice that a search begins with, at most.
const LATTICE: usize = 20_000;
/// Points of a lattice around the best, at most.
const WINDOW: usize = 250;
/// Width of the first window; along a bound the best may be far from the best of the lattice.
const FIRST_WINDOW: f64 = 0.2;
/// Each window beside the one before.
const SHRINK: f64 = 0.6;
/// Width of the last window.
const FINEST: f64 = 1e-5;

/// Bounds on mean rewards, in their own units, and the reward to maximise within them.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    bounds: Vec<Bound>,
    maximise: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Bound {
    objective: usize,
    end: End,
    value: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Min,
    Max,
}

impl Bound {
    /// How far rewards are from keeping it.
    fn missed_by(&self, rewards: &[f64]) -> f64 {
        let reward = rewards[self.objective];
        match self.end {
            End::Min => self.value - reward,
            End::Max => reward - self.value,
        }
        .max(0.0)
    }

    fn field(&self, menu: &Menu) -> String {
        let end = if self.end == End::Min { "min" } else { "max" };
        format!("target.{}.{end}", menu.objectives[self.objective])
    }
}

impl Goal {
    /// Reads `target`, an object of `{"min", "max"}` by objective, and `maximise`, the name of one.
    pub fn from_json(
        menu: &Menu,
        target: Option<Value>,
        maximise: Option<Value>,
    ) -> Result<Self, FormError> {
        let known = || menu.objectives.join(", ");
        let place = |name: &str| menu.objectives.iter().position(|objective| objective == name);
        let by_objective = match target.unwrap_or_else(|| Value::Object(Default::default())) {
            Value::Object(map) => map,
            other => {
                let expected = "bounds by objective, such as {\"brief\": {\"min\": 0.6}}";
                return Err(FormError::value("target", other, expected));
            }
        };
        let mut bounds = Vec::new();
        for (name, ends) in by_objective {
            let Some(objective) = place(&name) else {
                return Err(FormError::Objective {
                    field: "target".to_owned(),
                    name,
                    known: known(),
                });
            };
            let Value::Object(ends) = ends else {
                let expected = "an object with min, max or both";
                return Err(FormError::value(format!("target.{name}"), ends, expected));
            };
            for (end, value) in ends {
                let field = format!("target.{name}.{end}");
                let end = match end.as_str() {
                    "min" => End::Min,
                    "max" => End::Max,
                    _ => return Err(FormError::value(field, value, "min or max")),
                };
                let number = value.as_f64();
                let value = number.ok_or_else(|| FormError::value(field, value, "a number"))?;
                bounds.push(Bound { objective, end, value });
            }
        }
        let expected = format!("the objective to maximise within the target: {}", known());
        let maximise = maximise.unwrap_or(Value::Null);
        let found = maximise.as_str().and_then(place);
        let maximise = found.ok_or_else(|| FormError::value("maximise", &maximise, expected))?;
        Ok(Self { bounds, maximise })
    }

    /// The preference whose predicted rewards keep the bounds and maximise the goal's reward; what cannot
    /// be reached is said with what can.
    pub fn solve(
        &self,
        menu: &Menu,
        front: &Front,
        rule: LambdaRule,
        alpha: &Alpha,
    ) -> Result<Preference, FormError> {
        let unmeasured =
            |expected| FormError::value("target", "under another lambda or alpha", expected);
        let slice = front.slice(rule, alpha).map_err(unmeasured)?;
        let n = menu.objectives.len();
        let missed = |rewards: &[f64]| self.bounds.iter().map(|b| b.missed_by(rewards)).sum();
        let mu = search(n, |mu| {
            let rewards = slice.values(mu);
            (missed(&rewards), rewards[self.maximise])
        });
        let rewards = slice.values(&mu);
        if missed(&rewards) > 1e-6 {
            return Err(self.unreachable(menu, &slice, &rewards));
        }
        Preference::new(&mu, n).map_err(|error| FormError::value("target", error, "a preference"))
    }

    /// Names the bound that no preference keeps, or else what comes nearest to all of them.
    fn unreachable(&self, menu: &Menu, slice: &Slice<'_>, nearest: &[f64]) -> FormError {
        let n = menu.objectives.len();
        for bound in &self.bounds {
            let mu = search(n, |mu| (bound.missed_by(&slice.values(mu)), 0.0));
            let rewards = slice.values(&mu);
            if bound.missed_by(&rewards) > 1e-6 {
                let reached = rewards[bound.objective];
                let word = if bound.end == End::Min { "most" } else { "least" };
                let expected =
                    format!("at {word} {reached:.3}, which the soup's front is predicted to reach");
                return FormError::value(bound.field(menu), bound.value, expected);
            }
        }
        let each = menu.objectives.iter().zip(nearest).map(|(o, r)| format!("{o} {r:.3}"));
        let nearest: Vec<String> = each.collect();
        let expected =
            format!("bounds that one preference keeps; nearest are {}", nearest.join(", "));
        FormError::value("target", "out of reach", expected)
    }
}

/// A point of the simplex with the least first and then the largest second value: the best of a lattice,
/// then of ever smaller ones around the best so far.
fn search(n: usize, value: impl Fn(&[f64]) -> (f64, f64)) -> Vec<f64> {
    let better = |a: (f64, f64), b: (f64, f64)| a.0 < b.0 - 1e-12 || a.0 <= b.0 && a.1 > b.1;
    let mut best = vec![1.0 / n as f64; n];
    let mut found = value(&best);
    let mut try_point = |mu: Vec<f64>, best: &mut Vec<f64>| {
        let here = value(&mu);
        if better(here, found) {
            (*best, found) = (mu, here);
        }
    };
    lattice(n, steps(n, LATTICE), &mut |point| try_point(point.to_vec(), &mut best));
    let (steps, mut width) = (steps(n, WINDOW), FIRST_WINDOW);
    while width > FINEST {
        let centre = best.clone();
        lattice(n, steps, &mut |point| {
            for width in [width, -width] {
                let moved = centre.iter().zip(point).map(|(c, p)| c + width * (p - 1.0 / n as f64));
                let mu: Vec<f64> = moved.map(|weight| weight.max(0.0)).collect();
                let sum: f64 = mu.iter().sum();
                try_point(mu.into_iter().map(|weight| weight / sum).collect(), &mut best);
            }
        });
        width *= SHRINK;
    }
    best
}

/// The most steps whose lattice C(steps + n − 1, n − 1) holds at most so many points; at most 200.
fn steps(n: usize, most: usize) -> usize {
    let points = |steps: usize| {
        (1..n).fold(1.0, |product, i| product * (steps + i) as f64 / i as f64) as usize
    };
    (1..=200).take_while(|steps| points(*steps) <= most).last().unwrap_or(1)
}

/// Visits every point of the simplex whose weights are multiples of 1/`steps`.
fn lattice(n: usize, steps: usize, visit: &mut impl FnMut(&[f64])) {
    fn fill(
        point: &mut Vec<f64>,
        n: usize,
        left: usize,
        steps: usize,
        visit: &mut impl FnMut(&[f64]),
    ) {
        let rest = point.len() + 1 == n;
        for units in (if rest { left } else { 0 })..=left {
            point.push(units as f64 / steps as f64);
            match rest {
                true => visit(point),
                false => fill(point, n, left - units, steps, visit),
            }
            point.pop();
        }
    }
    fill(&mut Vec::with_capacity(n), n, steps, steps, visit);
}
