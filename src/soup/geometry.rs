//! Geometry of a soup in the space of weights: distances and angles between its backbones, which
//! show whether negative λ can cancel and how far the corners are from θ_sft.
//!
//! With Δᵢ = θᵢ − θ_sft and the Gram matrix Gᵢⱼ = ⟨Δᵢ, Δⱼ⟩, the model of coefficients λ is √(λᵀGλ) away
//! from θ_sft. For low-rank changes ⟨s B A, s′ B′ A′⟩ = s s′ Σ (B′ᵀB) ∘ (A A′ᵀ)ᵀ, so no full matrix
//! is formed.

use std::collections::{BTreeMap, BTreeSet};

use nalgebra::DMatrix;
use rayon::prelude::*;
use serde::Serialize;

use super::{
    adapter::{Adapter, LoraModule},
    open::{Backbone, Soup},
};
use crate::{
    kernels::HostTensor,
    preference::{Alpha, Preference},
};

/// Distances and angles between the backbones of a soup.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Geometry {
    /// ‖θ_sft − base‖; none without a supervised adapter.
    pub sft: Option<f64>,
    /// ‖Δᵢ‖.
    pub norms: Vec<f64>,
    /// Cosines of Δᵢ and Δⱼ, by rows.
    pub cosines: Vec<Vec<f64>>,
    /// Share of the row space of Aᵢ that lies in that of Aⱼ, mean over the modules that both adapt
    /// (1: the same space), by rows; none where a backbone is a full checkpoint.
    pub overlaps: Option<Vec<Vec<f64>>>,
    /// Expected overlap of random A's: mean of r/d.
    pub chance: Option<f64>,
    /// ‖θ(B⁻¹eᵢ) − θ_sft‖ / ‖Δᵢ‖: distance of the corner of objective i, in units of its backbone's.
    pub amplification: Vec<f64>,
}

/// A change of one tensor.
enum Change<'a> {
    LowRank(&'a LoraModule),
    Dense(Vec<f32>),
}

impl Geometry {
    /// The geometry of an opened soup.
    pub fn of(soup: &Soup) -> Self {
        let n = soup.backbones.len();
        let adapters = soup.backbones.iter().map(|backbone| match backbone {
            Backbone::Adapter(adapter) => Some(adapter),
            Backbone::Full(_) => None,
        });
        let adapters: Option<Vec<&Adapter>> = adapters.collect();
        let names: Vec<&String> = soup.base.tensors().keys().collect();
        let gram = names
            .par_iter()
            .map(|name| {
                let changes: Vec<Option<Change<'_>>> =
                    soup.backbones.iter().map(|backbone| change(soup, backbone, name)).collect();
                DMatrix::from_fn(n, n, |i, j| match (&changes[i], &changes[j]) {
                    (Some(a), Some(b)) if i <= j => inner(a, b),
                    _ => 0.0,
                })
            })
            .reduce(|| DMatrix::zeros(n, n), |a, b| a + b);
        let gram = DMatrix::from_fn(n, n, |i, j| gram[(i.min(j), i.max(j))]);
        let norms: Vec<f64> = (0..n).map(|i| gram[(i, i)].sqrt()).collect();
        let cosine = |i: usize, j: usize| gram[(i, j)] / (norms[i] * norms[j]);
        let amplification = (0..n).map(|i| {
            let corner: Vec<f64> = (0..n).map(|j| f64::from(u8::from(i == j))).collect();
            let Ok(corner) = Preference::new(&corner, n) else { return f64::NAN };
            let lambda = soup.mixing.solve(&corner, &Alpha::default()).lambda;
            let lambda = nalgebra::DVector::from_vec(lambda);
            (lambda.transpose() * &gram * &lambda)[0].sqrt() / norms[i]
        });
        let (overlaps, chance) = match adapters.map(|adapters| overlaps(&adapters)) {
            Some((overlaps, chance)) => (Some(overlaps), Some(chance)),
            None => (None, None),
        };
        Self {
            sft: soup.sft.as_ref().map(norm),
            amplification: amplification.collect(),
            cosines: (0..n).map(|i| (0..n).map(|j| cosine(i, j)).collect()).collect(),
            norms,
            overlaps,
            chance,
        }
    }
}

/// The change of a backbone to a tensor of θ_sft; `None` where there is none.
fn change<'a>(soup: &'a Soup, backbone: &'a Backbone, name: &str) -> Option<Change<'a>> {
    let (replaced, low_rank) = match backbone {
        Backbone::Full(checkpoint) => (checkpoint.get(name), None),
        Backbone::Adapter(adapter) => (
            adapter.saved.get(name).cloned(),
            name.strip_suffix(".weight").and_then(|m| adapter.modules.get(m)),
        ),
    };
    let Some(replaced) = replaced else { return low_rank.map(Change::LowRank) };
    let mut delta = replaced.to_f32();
    let start = start(soup, name)?;
    delta.iter_mut().zip(&start).for_each(|(x, start)| *x -= start);
    Some(Change::Dense(delta))
}

/// A tensor of θ_sft.
fn start(soup: &Soup, name: &str) -> Option<Vec<f32>> {
    let mut values = soup.base.get(name)?.to_f32();
    let Some(sft) = &soup.sft else { return Some(values) };
    if let Some(saved) = sft.saved.get(name) {
        values = saved.to_f32();
    }
    if let Some(module) = name.strip_suffix(".weight").and_then(|m| sft.modules.get(m)) {
        let product = matrix(&module.up) * matrix(&module.down) * module.scale;
        let rows = product.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<f64>>());
        values.iter_mut().zip(rows).for_each(|(x, delta)| *x += delta as f32);
    }
    Some(values)
}

/// A tensor of two dimensions in f64.
fn matrix(tensor: &HostTensor) -> DMatrix<f64> {
    let shape = tensor.shape();
    let (rows, columns) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
    DMatrix::from_row_iterator(rows, columns, tensor.to_f32().into_iter().map(f64::from))
}

/// The Frobenius inner product of two changes of one tensor.
fn inner(a: &Change<'_>, b: &Change<'_>) -> f64 {
    match (a, b) {
        (Change::LowRank(a), Change::LowRank(b)) => {
            let ups = matrix(&b.up).transpose() * matrix(&a.up);
            let downs = matrix(&a.down) * matrix(&b.down).transpose();
            a.scale * b.scale * ups.component_mul(&downs.transpose()).sum()
        }
        (Change::Dense(a), Change::Dense(b)) => {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        }
        (Change::LowRank(low), Change::Dense(dense))
        | (Change::Dense(dense), Change::LowRank(low)) => {
            let (up, down) = (matrix(&low.up), matrix(&low.down));
            let dense = dense.iter().map(|x| f64::from(*x));
            let dense = DMatrix::from_row_iterator(up.nrows(), down.ncols(), dense);
            low.scale * (up.transpose() * dense).component_mul(&down).sum()
        }
    }
}

fn norm(adapter: &Adapter) -> f64 {
    let modules = adapter.modules.values().map(|module| {
        let change = Change::LowRank(module);
        inner(&change, &change)
    });
    modules.sum::<f64>().sqrt()
}

/// Overlaps of the row spaces of the A's, and that of random ones.
fn overlaps(adapters: &[&Adapter]) -> (Vec<Vec<f64>>, f64) {
    let spaces: Vec<BTreeMap<&String, DMatrix<f64>>> = adapters
        .iter()
        .map(|adapter| {
            let space = |(name, module): (_, &LoraModule)| {
                (name, matrix(&module.down).transpose().qr().q())
            };
            adapter.modules.iter().collect::<Vec<_>>().into_par_iter().map(space).collect()
        })
        .collect();
    let mut chances = Vec::new();
    let overlap = |i: usize, j: usize, chances: &mut Vec<f64>| {
        let own: BTreeSet<&&String> = spaces[i].keys().collect();
        let common = spaces[j].iter().filter(|(name, _)| own.contains(name));
        let each = common.map(|(name, other)| {
            let space = &spaces[i][name];
            let ranks = (space.ncols(), other.ncols());
            chances.push(ranks.0.max(ranks.1) as f64 / space.nrows() as f64);
            (space.transpose() * other).norm_squared() / ranks.0.min(ranks.1) as f64
        });
        mean(each.collect())
    };
    let n = adapters.len();
    let rows = (0..n).map(|i| (0..n).map(|j| overlap(i, j, &mut chances)).collect()).collect();
    (rows, mean(chances))
}

/// Mean; 0 of an empty list.
fn mean(values: Vec<f64>) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl std::fmt::Display for Geometry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let row = |values: &[f64], digits: usize| {
            let values: Vec<String> = values.iter().map(|x| format!("{x:.digits$}")).collect();
            values.join("  ")
        };
        // The pairs of different backbones.
        let pairs = |rows: &[Vec<f64>]| -> Vec<f64> {
            let above = rows.iter().enumerate().flat_map(|(i, row)| row.iter().skip(i + 1));
            above.copied().collect()
        };
        let sft = self.sft.map_or(String::new(), |sft| format!("   (sft adapter {sft:.2})"));
        writeln!(f, "distances  of the backbones from θ_sft: {}{sft}", row(&self.norms, 2))?;
        writeln!(f, "cosines    of their deltas, by pairs: {}", row(&pairs(&self.cosines), 4))?;
        if let (Some(overlaps), Some(chance)) = (&self.overlaps, self.chance) {
            let overlaps = pairs(overlaps);
            let alike = overlaps.iter().all(|overlap| *overlap < 2.0 * chance);
            let note = if alike && !overlaps.is_empty() {
                ": the backbones share no subspace, so negative λ cannot cancel"
            } else {
                ""
            };
            let shown = row(&overlaps, 3);
            writeln!(f, "overlaps   of the row spaces of A: {shown} (chance {chance:.3}){note}")?;
        }
        let farthest = row(&self.amplification, 2);
        writeln!(f, "corners    farther from θ_sft than their backbones, times: {farthest}")
    }
}
