//! MAUVE (Pillutla et al. 2021): how near a set of texts is to another, from a feature vector of each.
//! Both sets are quantised together by k-means; the area under the divergence frontier of the two
//! histograms is the score. It compares sets: no single answer has one.

use nalgebra::{DMatrix, DVector};
use rand::Rng;
use serde::Serialize;

use crate::draw::{self, Purpose};

/// Mixtures of the two histograms that the frontier is measured at.
const MIXTURES: usize = 25;
/// The constant c of the paper.
const SCALE: f64 = 5.0;
/// Share of the variance that the principal components kept explain.
const EXPLAINED: f64 = 0.9;
/// Iterations of one start of k-means at most.
const ITERATIONS: usize = 500;

/// Quantisation.
#[derive(Debug, Clone, clap::Args)]
pub struct Quantisation {
    /// Clusters; left out, a tenth of the smaller set
    #[arg(long)]
    pub buckets: Option<usize>,
    /// Starts of k-means, of which the best counts
    #[arg(long, default_value_t = 5)]
    pub starts: u64,
    /// Seed of the starts
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Scores of two sets of features.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mauve {
    /// 0 to 1; higher is nearer.
    pub mauve: f64,
    /// The same of histograms with Krichevsky–Trofimov smoothing.
    pub mauve_star: f64,
    /// 0 to 1; lower is nearer.
    pub frontier_integral: f64,
    /// Clusters.
    pub buckets: usize,
    /// Shares of the first set and of the second in each cluster.
    pub histograms: [Vec<f64>; 2],
}

/// Compares two sets of features of one width.
pub fn mauve(p: &[Vec<f64>], q: &[Vec<f64>], how: &Quantisation) -> Result<Mauve, String> {
    let smaller = p.len().min(q.len());
    let buckets =
        how.buckets.unwrap_or((smaller as f64 / 10.0).round_ties_even().max(2.0) as usize);
    let expected = format!("expected 1 to {}, the number of texts", p.len() + q.len());
    if !(1..=p.len() + q.len()).contains(&buckets) || how.starts == 0 {
        return Err(format!("--buckets is {buckets} and --starts {}, {expected}", how.starts));
    }
    let width = p.first().map_or(0, Vec::len);
    if smaller == 0 || p.iter().chain(q).any(|row| row.len() != width) {
        return Err("expected features of one width of both sets".to_owned());
    }
    if p.iter().chain(q).flatten().any(|value| !value.is_finite()) {
        return Err("a feature is not finite".to_owned());
    }
    let points = principal(p.iter().chain(q));
    let labels = clusters(&points, buckets, how);
    let (of_p, of_q) = labels.split_at(p.len());
    let counts = [of_p, of_q].map(|labels| {
        let mut counts = vec![0.0; buckets];
        labels.iter().for_each(|label| counts[*label] += 1.0);
        counts
    });
    let shares = |added: f64| {
        counts.each_ref().map(|counts| {
            let sum: f64 = counts.iter().map(|count| count + added).sum();
            counts.iter().map(|count| (count + added) / sum).collect::<Vec<f64>>()
        })
    };
    let (histograms, smoothed) = (shares(0.0), shares(0.5));
    let [p, q] = &histograms;
    Ok(Mauve {
        mauve: area(&frontier(p, q)),
        mauve_star: area(&frontier(&smoothed[0], &smoothed[1])),
        frontier_integral: frontier_integral(p, q),
        buckets,
        histograms,
    })
}

/// The divergence frontier of two histograms: exp(−c·KL) of q and of p to their mixtures, with both
/// extremes.
pub fn frontier(p: &[f64], q: &[f64]) -> Vec<[f64; 2]> {
    let (least, steps) = (1e-6, (MIXTURES - 1) as f64);
    let mixture = |index: usize| {
        let w = least + (1.0 - 2.0 * least) * index as f64 / steps;
        let r: Vec<f64> = p.iter().zip(q).map(|(p, q)| w * p + (1.0 - w) * q).collect();
        [q, p].map(|of| (-SCALE * divergence(of, &r)).exp())
    };
    let mut points = vec![[1.0, 0.0]];
    points.extend((0..MIXTURES).map(mixture));
    points.push([0.0, 1.0]);
    points
}

/// KL(p ‖ q), infinite where q lacks what p has.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let each = p.iter().zip(q).filter(|(p, _)| **p > 0.0);
    each.map(|(p, q)| if *q > 0.0 { p * (p / q).ln() } else { f64::INFINITY }).sum()
}

/// Mean of the areas below a curve, seen from both axes, by trapezoids.
pub fn area(points: &[[f64; 2]]) -> f64 {
    let along = |x: usize| {
        let mut points = points.to_vec();
        // The frontier falls: of points at one place the higher comes first.
        let falling =
            |a: &[f64; 2], b: &[f64; 2]| a[x].total_cmp(&b[x]).then(b[1 - x].total_cmp(&a[1 - x]));
        points.sort_by(falling);
        let strips = points.windows(2).map(|w| (w[1][x] - w[0][x]) * (w[1][1 - x] + w[0][1 - x]));
        strips.sum::<f64>() / 2.0
    };
    (along(0) + along(1)) / 2.0
}

/// The frontier's integral in closed form (Liu et al. 2021).
pub fn frontier_integral(p: &[f64], q: &[f64]) -> f64 {
    let cell = |(p, q): (&f64, &f64)| match (*p, *q) {
        (0.0, q) => q / 4.0,
        (p, 0.0) => p / 4.0,
        (p, q) if (p - q).abs() <= 1e-8 => 0.0,
        (p, q) => (p + q) / 4.0 - p * q * (p / q).ln() / (p - q) / 2.0,
    };
    2.0 * p.iter().zip(q).map(cell).sum::<f64>()
}

/// Rows of length 1 on the first principal components that explain [`EXPLAINED`] of the variance.
fn principal<'a>(rows: impl Iterator<Item = &'a Vec<f64>>) -> Vec<Vec<f64>> {
    let unit = |row: &Vec<f64>| {
        let row = DVector::from_column_slice(row);
        let norm = row.norm();
        if norm > 0.0 { (row / norm).transpose() } else { row.transpose() }
    };
    let rows: Vec<_> = rows.map(unit).collect();
    let mut rows = DMatrix::from_rows(&rows);
    let mean = rows.row_mean();
    rows.row_iter_mut().for_each(|mut row| row -= &mean);
    let eigen = rows.tr_mul(&rows).symmetric_eigen();
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let total: f64 = eigen.eigenvalues.iter().map(|value| value.max(0.0)).sum();
    let mut explained = 0.0;
    let mut kept = Vec::new();
    for index in order {
        // The last one may be beyond what rounding lets the sum reach.
        if explained >= EXPLAINED * total {
            break;
        }
        explained += eigen.eigenvalues[index].max(0.0);
        kept.push(eigen.eigenvectors.column(index));
    }
    if kept.is_empty() {
        return vec![Vec::new(); rows.nrows()];
    }
    let projected = rows * DMatrix::from_columns(&kept);
    projected.row_iter().map(|row| row.iter().copied().collect()).collect()
}

/// The cluster of each point, of the start with the smallest squared distances.
fn clusters(points: &[Vec<f64>], count: usize, how: &Quantisation) -> Vec<usize> {
    let starts = (0..how.starts).map(|start| {
        let mut rng = draw::generator(how.seed, Purpose::Clusters, start);
        k_means(points, count, &mut rng)
    });
    let best = starts.min_by(|a, b| a.1.total_cmp(&b.1));
    best.map_or_else(Vec::new, |(labels, _)| labels)
}

/// k-means from centres drawn by their squared distances (k-means++); labels and squared distances.
fn k_means(points: &[Vec<f64>], count: usize, rng: &mut impl Rng) -> (Vec<usize>, f64) {
    let mut centres = vec![points[rng.random_range(0..points.len())].clone()];
    while centres.len() < count {
        let weights: Vec<f64> = points.iter().map(|point| nearest(point, &centres).1).collect();
        let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // All points are centres: further ones stay empty.
        let Some(chosen) = chosen else { break };
        centres.push(points[chosen].clone());
    }
    let mut found: Vec<(usize, f64)> = Vec::new();
    for _ in 0..ITERATIONS {
        let now: Vec<(usize, f64)> = points.iter().map(|point| nearest(point, &centres)).collect();
        let settled = now.iter().map(|(label, _)| label).eq(found.iter().map(|(label, _)| label));
        found = now;
        if settled {
            break;
        }
        for (label, centre) in centres.iter_mut().enumerate() {
            let own = points.iter().zip(&found).filter(|(_, (found, _))| *found == label);
            let own: Vec<&Vec<f64>> = own.map(|(point, _)| point).collect();
            if !own.is_empty() {
                let mean =
                    |at: usize| own.iter().map(|point| point[at]).sum::<f64>() / own.len() as f64;
                *centre = (0..centre.len()).map(mean).collect();
            }
        }
    }
    let distances = found.iter().map(|(_, distance)| distance).sum();
    (found.into_iter().map(|(label, _)| label).collect(), distances)
}

/// The nearest centre and its squared distance.
fn nearest(point: &[f64], centres: &[Vec<f64>]) -> (usize, f64) {
    let distance =
        |centre: &Vec<f64>| point.iter().zip(centre).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let each = centres.iter().map(distance).enumerate();
    each.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}
