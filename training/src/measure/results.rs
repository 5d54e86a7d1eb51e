//! `front.json`: what a sweep over preferences measured, for one or several methods.

use super::front::{
    FrontError, controllability, hypervolume, inner_product, non_dominated, reference_point,
    spacing, sparsity,
};
use serde::{Deserialize, Serialize};

/// Version of the file's layout.
pub const FORMAT: u32 = 1;

/// An objective as it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Name, as in the soup.
    pub name: String,
    /// What 1 of its reward is.
    pub unit: String,
}

/// One preference of the sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// μ, normalised, in the order of the objectives.
    pub preference: Vec<f64>,
    /// Mean reward of every objective over prompts and seeds.
    pub mean: Vec<f64>,
    /// Standard deviation of the seeds' means; of the prompts' rewards when there is one seed.
    pub spread: Vec<f64>,
}

/// Metrics of one method's front; definitions in [`super::front`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// From the file's reference point.
    pub hypervolume: f64,
    /// Mean Σ μᵢrᵢ over the grid.
    pub inner_product: f64,
    /// Share of ordered pairs.
    pub controllability: f64,
    /// Number of non-dominated points.
    pub front_length: usize,
    /// Mean squared step, in the order of the grid.
    pub sparsity: f64,
    /// Standard deviation of nearest-neighbour distances.
    pub spacing: f64,
}

/// One method's sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodFront {
    /// E.g. `bone soup (nominal)`, `rewarded soup`.
    pub method: String,
    /// One a preference, in the order of the grid.
    pub points: Vec<Point>,
    /// Metrics of the points.
    pub metrics: Metrics,
}

/// A measured front. All methods share grid, prompts, seeds and decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontFile {
    /// [`FORMAT`].
    pub format: u32,
    /// The objectives, in the order of every vector here.
    pub objectives: Vec<Objective>,
    /// Where hypervolumes are measured from.
    pub reference_point: Vec<f64>,
    /// Test prompts of each point.
    pub prompts: usize,
    /// Seeds that the means are over.
    pub seeds: Vec<u64>,
    /// The methods compared, the subject first.
    pub methods: Vec<MethodFront>,
}

impl FrontFile {
    /// Measures `methods` (name and points) from one reference point: the given one, or the
    /// component-wise minimum over all of them less a tenth of the range.
    pub fn measure(
        objectives: Vec<Objective>,
        methods: Vec<(String, Vec<Point>)>,
        reference: Option<Vec<f64>>,
        prompts: usize,
        seeds: Vec<u64>,
    ) -> Result<Self, FrontError> {
        let all = methods.iter().flat_map(|(_, points)| points).map(|p| p.mean.clone());
        let all: Vec<Vec<f64>> = all.collect();
        let reference_point = match reference {
            Some(reference) => reference,
            None => reference_point(&all)?,
        };
        let measured = methods.into_iter().map(|(method, points)| {
            let metrics = measure(&points, &reference_point)?;
            Ok(MethodFront { method, points, metrics })
        });
        let methods = measured.collect::<Result<_, FrontError>>()?;
        Ok(Self { format: FORMAT, objectives, reference_point, prompts, seeds, methods })
    }
}

impl std::fmt::Display for FrontFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let titles = ["hypervolume", "inner", "control", "length", "sparsity", "spacing"];
        writeln!(f, "{:<24}{}", "method", titles.map(|title| format!("{title:>13}")).concat())?;
        for MethodFront { method, metrics: m, .. } in &self.methods {
            writeln!(
                f,
                "{method:<24}{:>13.6}{:>13.6}{:>13.4}{:>13}{:>13.6}{:>13.6}",
                m.hypervolume,
                m.inner_product,
                m.controllability,
                m.front_length,
                m.sparsity,
                m.spacing
            )?;
        }
        Ok(())
    }
}

fn measure(points: &[Point], reference: &[f64]) -> Result<Metrics, FrontError> {
    let preferences: Vec<Vec<f64>> = points.iter().map(|p| p.preference.clone()).collect();
    let solutions: Vec<Vec<f64>> = points.iter().map(|p| p.mean.clone()).collect();
    Ok(Metrics {
        hypervolume: hypervolume(&solutions, reference)?,
        inner_product: inner_product(&preferences, &solutions)?,
        controllability: controllability(&preferences, &solutions)?,
        front_length: non_dominated(&solutions)?.len(),
        sparsity: sparsity(&solutions)?,
        spacing: spacing(&solutions)?,
    })
}
