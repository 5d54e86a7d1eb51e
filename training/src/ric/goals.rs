//! Rewards that a prompt asks for, and the filter of responses (RiC: Yang et al. 2024).

use serde::{Deserialize, Serialize};

use crate::config::Mapping;

/// The lowest and the highest standardised reward of the rows of the offline stage, one an
/// objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Range {
    pub low: Vec<f64>,
    pub high: Vec<f64>,
}

impl Range {
    /// That of `rewards[row][objective]`, at least one row.
    pub fn of(rewards: &[Vec<f64>]) -> Self {
        let extreme = |pick: fn(f64, f64) -> f64| {
            let each = rewards.iter().cloned();
            each.reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| pick(a, b)).collect())
        };
        Self {
            low: extreme(f64::min).unwrap_or_default(),
            high: extreme(f64::max).unwrap_or_default(),
        }
    }

    /// The reward at a share of the way from lowest to highest, to one decimal.
    fn at(&self, shares: &[f64]) -> Vec<f64> {
        let ends = self.low.iter().zip(&self.high);
        shares
            .iter()
            .zip(ends)
            .map(|(share, (low, high))| round(share * (high - low) + low))
            .collect()
    }

    /// The rewards that a preference asks for.
    pub fn wanted(&self, mapping: Mapping, preference: &[f64]) -> Vec<f64> {
        let n = preference.len() as f64;
        let norm = preference.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
        let largest = preference.iter().copied().fold(0.0, f64::max);
        let first = preference.iter().position(|weight| *weight == largest);
        let share = |(index, weight): (usize, &f64)| match mapping {
            Mapping::L2 => weight / norm,
            Mapping::Linear => *weight,
            Mapping::Linf if Some(index) == first => 1.0,
            Mapping::Linf => (n * weight).min(1.0),
        };
        let shares: Vec<f64> = preference.iter().enumerate().map(share).collect();
        self.at(&shares)
    }

    /// A point near the front, from one uniform number an objective: the smallest of them says how
    /// much of its reward is wanted, of all others the highest is.
    pub fn near_front(&self, uniforms: &[f64]) -> Vec<f64> {
        let smallest = uniforms.iter().copied().fold(f64::INFINITY, f64::min);
        let first = uniforms.iter().position(|uniform| *uniform == smallest);
        let share = |(index, uniform): (usize, &f64)| match Some(index) == first {
            true => *uniform,
            false => 1.0,
        };
        let shares: Vec<f64> = uniforms.iter().enumerate().map(share).collect();
        self.at(&shares)
    }
}

/// To one decimal, as prompts have rewards; never −0.
fn round(reward: f64) -> f64 {
    (reward * 10.0).round_ties_even() / 10.0 + 0.0
}

/// The words that stand behind a prompt and tell or ask for rewards.
pub fn words(rewards: &[f64]) -> String {
    let each = rewards.iter().zip(1..);
    let each = each.map(|(reward, index)| format!("<rm{index}_score> {:.1}", round(*reward)));
    each.collect::<Vec<_>>().join(" ")
}

/// Multi-objective rejection sampling: which of `rewards[row][objective]` have some reward that is
/// at least the quantile `q` of its objective.
pub fn accepted(rewards: &[Vec<f64>], q: f64) -> Vec<bool> {
    let objectives = rewards.first().map_or(0, Vec::len);
    let series = |j: usize| rewards.iter().map(|row| row[j]).collect::<Vec<f64>>();
    let thresholds: Vec<f64> = (0..objectives).map(|j| quantile(series(j), q)).collect();
    let passes = |row: &Vec<f64>| row.iter().zip(&thresholds).any(|(r, threshold)| r >= threshold);
    rewards.iter().map(passes).collect()
}

/// The quantile of at least one value, linear between neighbours.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = q * (values.len() - 1) as f64;
    let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
    below + (above - below) * place.fract()
}
