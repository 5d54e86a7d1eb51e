//! `front.json`: what a sweep over preferences measured, for one or several methods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    bootstrap::Interval,
    front::{
        FrontError, controllability, dominates, hypervolume, inner_product, non_dominated, path,
        spacing, sparsity,
    },
    methods::{Kind, LeftOut},
    points::{Point, mean},
    regime::{Region, r_squared},
};

/// Version of the file's layout.
pub const FORMAT: u32 = 2;

/// Reference point of hypervolumes, in every objective: σ from θ_sft's sampled mean.
pub const REFERENCE: f64 = -0.5;

/// An objective with the scale of its reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Name, as in the soup.
    pub name: String,
    /// Unit of its reward.
    pub unit: String,
    /// Mean reward of θ_sft's sampled training responses: 0 σ.
    pub mean: f64,
    /// Their standard deviation: 1 σ.
    pub std: f64,
}

/// Metrics of one method's front, of rewards in σ; definitions in [`super::front`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// From [`REFERENCE`] in every objective.
    pub hypervolume: f64,
    /// Mean Σ μᵢzᵢ over the grid: the testing reward.
    pub inner_product: f64,
    /// Share of ordered pairs.
    pub controllability: f64,
    /// Number of non-dominated points.
    pub front_length: usize,
    /// Mean squared step along a path of neighbours in μ.
    pub sparsity: f64,
    /// Standard deviation of nearest-neighbour distances.
    pub spacing: f64,
}

/// Mean testing reward by region of the simplex, in σ; `None` where the grid has no point in it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Regions {
    /// All weight on one objective.
    pub corners: Option<f64>,
    /// Some objective without weight.
    pub edges: Option<f64>,
    /// Every objective with weight.
    pub interior: Option<f64>,
}

/// Difference of the testing reward to the baseline's, in σ, paired by prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// Name of the baseline.
    pub over: String,
    /// Over the whole grid.
    pub all: Interval,
    /// Inside the simplex.
    pub interior: Interval,
}

/// One method's sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodFront {
    /// E.g. `bone soup (nominal)`, `rewarded soup, α = 0.25`.
    pub method: String,
    /// `None` for θ_sft.
    pub kind: Option<Kind>,
    /// Index of the run that it serves; 0 is the subject.
    #[serde(default)]
    pub run: usize,
    /// Extrapolation.
    pub alpha: f64,
    /// One per preference, in the order of the grid.
    pub points: Vec<Point>,
    /// Metrics of the points, in σ.
    pub metrics: Metrics,
    /// Testing reward Σ μᵢrᵢ in the rewards' own units.
    pub raw_inner_product: f64,
    /// Testing reward by region.
    pub regions: Regions,
    /// R² of the rewards as a linear function of λ.
    pub r_squared: Option<f64>,
    /// Gain over the baseline, where one is compared.
    pub gain: Option<Gain>,
    /// Mean gap Σ μᵢ(oracle − method) over the oracles that are not backbones of the method itself.
    pub oracle_gap: Option<f64>,
    /// Conclusions from the sweep, for a user.
    pub verdicts: Vec<String>,
}

/// A policy trained for one preference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Oracle {
    /// Run and backbone.
    pub name: String,
    /// Its figures, at the preference that it was trained for.
    pub point: Point,
    /// Σ μᵢ(oracle − method) of each method at that preference.
    pub gaps: Vec<(String, f64)>,
}

/// The choice of α for one method, on validation prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selected {
    pub method: String,
    /// Candidate values.
    pub alphas: Vec<f64>,
    /// Mean testing reward of each on validation prompts, in σ.
    pub scores: Vec<f64>,
    /// The chosen value.
    pub best: f64,
}

/// A measured front. All methods share grid, prompts, seeds and decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontFile {
    /// [`FORMAT`].
    pub format: u32,
    /// SHA-256 of the subject's weight files, by backbone (or `sft`) and file name.
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
    /// The objectives, in the order of every vector here.
    pub objectives: Vec<Objective>,
    /// Reference point of hypervolumes, in the rewards' own units.
    pub reference_point: Vec<f64>,
    /// The largest controllability that the grid allows.
    pub controllability_ceiling: f64,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Test prompts of each point.
    pub prompts: usize,
    /// Seeds that the means are over.
    pub seeds: Vec<u64>,
    /// The methods compared: θ_sft first.
    pub methods: Vec<MethodFront>,
    /// Policies trained for single preferences.
    pub oracles: Vec<Oracle>,
    /// The choices of α.
    pub selected: Vec<Selected>,
    /// Methods that could not be evaluated.
    pub left_out: Vec<LeftOut>,
}

impl FrontFile {
    /// Reference point of hypervolumes, in the rewards' own units.
    pub fn reference(objectives: &[Objective]) -> Vec<f64> {
        objectives.iter().map(|o| o.mean + REFERENCE * o.std).collect()
    }
}

impl MethodFront {
    /// Measures a sweep; points that `sft` dominates are marked.
    pub fn measure(
        method: String,
        (kind, alpha): (Option<Kind>, f64),
        mut points: Vec<Point>,
        sft: Option<&Point>,
    ) -> Result<Self, FrontError> {
        for point in &mut points {
            point.dominated = sft.is_some_and(|sft| dominates(&sft.mean, &point.mean));
        }
        let preferences: Vec<Vec<f64>> = points.iter().map(|p| p.preference.clone()).collect();
        let rewards: Vec<Vec<f64>> = points.iter().map(|p| p.standardised.clone()).collect();
        let raw: Vec<Vec<f64>> = points.iter().map(|p| p.mean.clone()).collect();
        let along: Vec<Vec<f64>> =
            path(&preferences).into_iter().map(|index| rewards[index].clone()).collect();
        let dimensions = preferences.first().map_or(0, Vec::len);
        let metrics = Metrics {
            hypervolume: hypervolume(&rewards, &vec![REFERENCE; dimensions])?,
            inner_product: inner_product(&preferences, &rewards)?,
            controllability: controllability(&preferences, &rewards)?,
            front_length: non_dominated(&rewards)?.len(),
            sparsity: sparsity(&along)?,
            spacing: spacing(&rewards)?,
        };
        let of = |region: Region| {
            let inside = points.iter().filter(|p| Region::of(&p.preference) == region);
            let values: Vec<f64> = inside.map(Point::value).collect();
            (!values.is_empty()).then(|| mean(&values))
        };
        let lambdas: Option<Vec<Vec<f64>>> = points.iter().map(|p| p.lambda.clone()).collect();
        Ok(Self {
            raw_inner_product: inner_product(&preferences, &raw)?,
            regions: Regions {
                corners: of(Region::Corner),
                edges: of(Region::Edge),
                interior: of(Region::Interior),
            },
            r_squared: lambdas.and_then(|lambdas| r_squared(&lambdas, &rewards)),
            method,
            kind,
            run: 0,
            alpha,
            points,
            metrics,
            gain: None,
            oracle_gap: None,
            verdicts: Vec::new(),
        })
    }

    /// Largest KL to θ_sft of a point, nats per answer.
    pub fn most_kl(&self) -> Option<f64> {
        self.points.iter().filter_map(|point| point.kl).reduce(f64::max)
    }

    /// Points that θ_sft dominates.
    pub fn dominated(&self) -> usize {
        self.points.iter().filter(|point| point.dominated).count()
    }
}

impl FrontFile {
    /// Gains, gaps, choices and verdicts, one line each.
    pub fn comparison(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for method in &self.methods {
            if let Some(Gain { over, all, interior }) = &method.gain {
                let shown =
                    |i: &Interval| format!("{:+.3} σ ({:+.3} to {:+.3})", i.mean, i.low, i.high);
                let (all, interior) = (shown(all), shown(interior));
                lines.push(format!("{} − {over}: {all}; inside {interior}", method.method));
            }
            if let Some(gap) = method.oracle_gap {
                lines.push(format!("{}: {gap:.3} σ below the oracles", method.method));
            }
        }
        let chosen = |Selected { method, best, .. }: &Selected| {
            format!("{method}: α = {best} is the best on validation prompts")
        };
        for Oracle { name, point, gaps } in &self.oracles {
            let each = |values: &[f64]| {
                let values: Vec<String> = values.iter().map(|x| format!("{x:.3}")).collect();
                values.join(", ")
            };
            let gaps: Vec<String> = gaps.iter().map(|(m, gap)| format!("{m} {gap:+.3}")).collect();
            lines.push(format!(
                "oracle {name} at μ = ({}): {:.3} σ, raw ({}); gaps to it: {}",
                each(&point.preference),
                point.value(),
                each(&point.mean),
                gaps.join(", ")
            ));
        }
        lines.extend(self.selected.iter().map(chosen));
        let left_out =
            |LeftOut { method, reason }: &LeftOut| format!("{method} is left out: {reason}");
        lines.extend(self.left_out.iter().map(left_out));
        for method in &self.methods {
            lines.extend(method.verdicts.iter().map(|v| format!("{}: {v}", method.method)));
        }
        lines
    }
}

impl std::fmt::Display for FrontFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let titles = [
            "testing",
            "raw",
            "corners",
            "edges",
            "interior",
            "hypervol.",
            "control/max",
            "front",
            "KL max",
            "R²",
            "dominated",
        ];
        let reference = &self.reference_point;
        writeln!(f, "rewards in σ; hypervolume from {REFERENCE} σ, raw {reference:.4?}")?;
        writeln!(f, "{:<34}{}", "method", titles.map(|title| format!("{title:>12}")).concat())?;
        let shown = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
        for method in &self.methods {
            let (m, regions) = (&method.metrics, &method.regions);
            let cells = [
                format!("{:.3}", m.inner_product),
                format!("{:.3}", method.raw_inner_product),
                shown(regions.corners),
                shown(regions.edges),
                shown(regions.interior),
                format!("{:.3}", m.hypervolume),
                format!("{:.2}/{:.2}", m.controllability, self.controllability_ceiling),
                format!("{}/{}", m.front_length, method.points.len()),
                shown(method.most_kl()),
                shown(method.r_squared),
                method.dominated().to_string(),
            ];
            let cells = cells.map(|cell| format!("{cell:>12}")).concat();
            writeln!(f, "{:<34}{cells}", method.method)?;
        }
        self.comparison().iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
