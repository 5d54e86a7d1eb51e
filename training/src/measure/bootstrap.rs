//! Intervals of paired differences by the bootstrap, over training seeds and prompts. Pure.

use rand::Rng;

use crate::draw::{self, Purpose};

/// Resamples of an interval.
pub const RESAMPLES: usize = 10_000;

/// A mean with the bounds of its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// Mean of all differences.
    pub mean: f64,
    /// 2.5th percentile of the resampled means.
    pub low: f64,
    /// 97.5th percentile.
    pub high: f64,
}

/// The interval of the mean of `differences[seed][prompt]` (equally many prompts in every seed):
/// seeds and prompts are resampled with replacement, independently of each other, because all seeds
/// answer the same prompts. `None` without differences.
pub fn crossed(differences: &[Vec<f64>], resamples: usize, seed: u64) -> Option<Interval> {
    let (seeds, prompts) = (differences.len(), differences.first()?.len());
    if prompts == 0 || differences.iter().any(|row| row.len() != prompts) {
        return None;
    }
    let mut rng = draw::generator(seed, Purpose::Bootstrap, 0);
    let mut draws =
        |count: usize| (0..count).map(|_| rng.random_range(0..count)).collect::<Vec<_>>();
    let means = (0..resamples).map(|_| {
        let (rows, columns) = (draws(seeds), draws(prompts));
        resampled(differences, &rows, &columns)
    });
    let mut means: Vec<f64> = means.collect();
    means.sort_by(f64::total_cmp);
    let all: Vec<usize> = (0..prompts).collect();
    let mean = resampled(differences, &(0..seeds).collect::<Vec<_>>(), &all);
    Some(Interval { mean, low: percentile(&means, 0.025)?, high: percentile(&means, 0.975)? })
}

/// The mean over the given rows and columns, repetitions counted.
pub fn resampled(values: &[Vec<f64>], rows: &[usize], columns: &[usize]) -> f64 {
    let each = rows.iter().flat_map(|&r| columns.iter().map(move |&c| values[r][c]));
    each.sum::<f64>() / (rows.len() * columns.len()) as f64
}

/// The value at share `q` of sorted numbers, linear between neighbours (numpy's default).
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let at = q * (sorted.len().checked_sub(1)?) as f64;
    let (below, above) = (*sorted.get(at.floor() as usize)?, *sorted.get(at.ceil() as usize)?);
    Some(below + (above - below) * at.fract())
}
