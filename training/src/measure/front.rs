//! Metrics of a front (all objectives are maximised): hypervolume, non-dominated set, inner
//! product, controllability, sparsity, spacing. Pure; a solution is a slice of n rewards.

use std::cmp::Ordering;

/// Why a front cannot be measured.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum FrontError {
    /// Points of different dimension.
    #[error("point {index} of {name} has {got} objectives, expected {expected}")]
    Dimension {
        /// Name of the set of points.
        name: &'static str,
        index: usize,
        expected: usize,
        /// Number of its objectives.
        got: usize,
    },
    /// A coordinate that is not finite.
    #[error("point {index} of {name} holds {value}")]
    NotFinite {
        /// Name of the set of points.
        name: &'static str,
        index: usize,
        value: f64,
    },
    /// A set of points is empty.
    #[error("there are no {name}")]
    Empty {
        /// Name of the set of points.
        name: &'static str,
    },
    /// Preferences and solutions differ in number.
    #[error("{preferences} preferences for {solutions} solutions")]
    Count {
        /// Number of preferences.
        preferences: usize,
        /// Number of solutions.
        solutions: usize,
    },
}

/// Checks that points are finite and of one dimension; returns the dimension.
fn check(name: &'static str, points: &[Vec<f64>]) -> Result<usize, FrontError> {
    let expected = points.first().map_or(0, Vec::len);
    if expected == 0 {
        return Err(FrontError::Empty { name });
    }
    for (index, point) in points.iter().enumerate() {
        if point.len() != expected {
            let got = point.len();
            return Err(FrontError::Dimension { name, index, expected, got });
        }
        if let Some(&value) = point.iter().find(|v| !v.is_finite()) {
            return Err(FrontError::NotFinite { name, index, value });
        }
    }
    Ok(expected)
}

/// Whether `a` is at least as good as `b` everywhere and better somewhere.
pub fn dominates(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(a, b)| a >= b) && a.iter().zip(b).any(|(a, b)| a > b)
}

/// Indices of the points that no other point dominates, in order. Of equal points all count.
pub fn non_dominated(points: &[Vec<f64>]) -> Result<Vec<usize>, FrontError> {
    check("points", points)?;
    let free = |(_, p): &(usize, &Vec<f64>)| !points.iter().any(|q| dominates(q, p));
    Ok(points.iter().enumerate().filter(free).map(|(i, _)| i).collect())
}

/// Volume of the space that some point dominates and that dominates `reference`: exact, any n.
/// n = 2 by sorting, n = 3 by slabs of 2-D staircases, n ≥ 4 by the WFG recursion.
pub fn hypervolume(points: &[Vec<f64>], reference: &[f64]) -> Result<f64, FrontError> {
    let n = check("points", points)?;
    let name = "the reference point";
    let got = check(name, &[reference.to_vec()])?;
    if got != n {
        return Err(FrontError::Dimension { name, index: 0, expected: n, got });
    }
    let gains = points.iter().map(|p| p.iter().zip(reference).map(|(p, r)| p - r).collect());
    let inside = gains.filter(|g: &Vec<f64>| g.iter().all(|g| *g > 0.0)).collect();
    Ok(volume(front_of(inside), n))
}

/// Hypervolume over the origin of points with n positive coordinates.
fn volume(mut points: Vec<Vec<f64>>, n: usize) -> f64 {
    let last = |p: &Vec<f64>| p.last().copied().unwrap_or(0.0);
    let first = |p: &Vec<f64>| p.first().copied().unwrap_or(0.0);
    match n {
        1 => points.iter().map(last).fold(0.0, f64::max),
        2 => {
            // From the best first coordinate down, each point adds the strip above those before.
            points.sort_by(|a, b| first(b).total_cmp(&first(a)));
            let mut height = 0.0;
            points.iter().fold(0.0, |area, p| {
                let strip = first(p) * (last(p) - height).max(0.0);
                height = last(p).max(height);
                area + strip
            })
        }
        3 => {
            // Slabs between neighbouring third coordinates; the points that reach a slab's top
            // fill it.
            points.sort_by(|a, b| last(b).total_cmp(&last(a)));
            let bottoms = points.iter().skip(1).map(last).chain([0.0]);
            let slabs = points.iter().map(last).zip(bottoms).enumerate();
            slabs
                .filter(|(_, (top, bottom))| top > bottom)
                .map(|(i, (top, bottom))| {
                    let filling = points.iter().take(i + 1);
                    let flat = filling.map(|p| p.iter().take(2).copied().collect()).collect();
                    (top - bottom) * volume(flat, 2)
                })
                .sum()
        }
        _ => {
            // Each point adds its box less the part of it that the points after it cover.
            points.sort_by(|a, b| last(b).total_cmp(&last(a)));
            let mut total = 0.0;
            let mut rest = points.as_slice();
            while let Some((point, after)) = rest.split_first() {
                let clip = |q: &Vec<f64>| q.iter().zip(point).map(|(q, p)| q.min(*p)).collect();
                let covered = volume(front_of(after.iter().map(clip).collect()), n);
                total += point.iter().product::<f64>() - covered;
                rest = after;
            }
            total
        }
    }
}

/// The distinct non-dominated points.
fn front_of(points: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut front: Vec<Vec<f64>> = Vec::new();
    for point in points {
        if front.iter().any(|q| *q == point || dominates(q, &point)) {
            continue;
        }
        front.retain(|q| !dominates(&point, q));
        front.push(point);
    }
    front
}

/// Mean over the grid of Σ μᵢ rᵢ.
pub fn inner_product(preferences: &[Vec<f64>], solutions: &[Vec<f64>]) -> Result<f64, FrontError> {
    paired(preferences, solutions)?;
    let each = preferences.iter().zip(solutions);
    let sum: f64 = each.map(|(mu, r)| mu.iter().zip(r).map(|(m, r)| m * r).sum::<f64>()).sum();
    Ok(sum / solutions.len() as f64)
}

/// Bone Soups eq. 10 (`docs/algorithms.md` §7.4): the share of ordered pairs of preferences for which
/// every reward moves the way its weight does, `sign(μ_a − μ_b) = sign(r_a − r_b)` in each
/// dimension, sign(0) = 0. 1 for a single point.
///
/// Differences of preferences below 1e-9 count as 0: a grid of tenths is not exact in binary.
pub fn controllability(
    preferences: &[Vec<f64>],
    solutions: &[Vec<f64>],
) -> Result<f64, FrontError> {
    paired(preferences, solutions)?;
    let sign = |d: f64, zero: f64| if d.abs() <= zero { 0.0 } else { d.signum() };
    let (mut agreeing, mut pairs) = (0usize, 0usize);
    let all = || preferences.iter().zip(solutions).enumerate();
    for (i, (mu_a, r_a)) in all() {
        for (j, (mu_b, r_b)) in all() {
            if i != j {
                let mut dimensions = mu_a.iter().zip(mu_b).zip(r_a.iter().zip(r_b));
                let agree = dimensions
                    .all(|((ma, mb), (ra, rb))| sign(ma - mb, 1e-9) == sign(ra - rb, 0.0));
                agreeing += usize::from(agree);
                pairs += 1;
            }
        }
    }
    Ok(if pairs == 0 { 1.0 } else { agreeing as f64 / pairs as f64 })
}

/// The largest [`controllability`] that a grid allows: the share of its ordered pairs that differ in
/// every weight. Two preferences that share a weight can only agree in an exact tie of that reward.
pub fn controllability_ceiling(preferences: &[Vec<f64>]) -> f64 {
    let differ = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() > 1e-9);
    let count = preferences.len();
    let all = preferences.iter().flat_map(|a| preferences.iter().map(move |b| (a, b)));
    let differing = all.filter(|(a, b)| differ(a, b)).count();
    if count < 2 { 1.0 } else { differing as f64 / (count * (count - 1)) as f64 }
}

/// An order of preferences in which neighbours stand beside each other: by the first weight, falling,
/// within equal ones by the next, every second group the other way round. On a full grid of two or
/// three objectives each step moves the least weight that it can.
pub fn path(preferences: &[Vec<f64>]) -> Vec<usize> {
    fn walk(preferences: &[Vec<f64>], mut indices: Vec<usize>, at: usize) -> Vec<usize> {
        let weight = |index: usize| preferences[index].get(at).copied();
        if indices.len() < 2 || weight(indices[0]).is_none() {
            return indices;
        }
        indices.sort_by(|&a, &b| weight(b).partial_cmp(&weight(a)).unwrap_or(Ordering::Equal));
        let equal = |a: &usize, b: &usize| match (weight(*a), weight(*b)) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-9,
            _ => false,
        };
        let groups = indices.chunk_by(equal).enumerate();
        let each = groups.flat_map(|(number, group)| {
            let mut group = walk(preferences, group.to_vec(), at + 1);
            if number % 2 == 1 {
                group.reverse();
            }
            group
        });
        each.collect()
    }
    walk(preferences, (0..preferences.len()).collect(), 0)
}

/// Bone Soups eq. 13 (`docs/algorithms.md` §7.5): mean squared distance between consecutive solutions,
/// in the order given. 0 for fewer than two.
pub fn sparsity(solutions: &[Vec<f64>]) -> Result<f64, FrontError> {
    check("solutions", solutions)?;
    let steps = solutions.iter().zip(solutions.iter().skip(1));
    let sum: f64 =
        steps.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>()).sum();
    Ok(sum / (solutions.len() - 1).max(1) as f64)
}

/// Sparsity without an order of μ: the squared gaps between neighbours in each objective's own
/// sorted order, added over the objectives, averaged over N − 1 (Xu et al. 2020). Equal to
/// [`sparsity`] for a front of two objectives that is sorted along it.
pub fn sorted_sparsity(solutions: &[Vec<f64>]) -> Result<f64, FrontError> {
    let n = check("solutions", solutions)?;
    let gaps = |j: usize| {
        let mut values: Vec<f64> = solutions.iter().filter_map(|p| p.get(j).copied()).collect();
        values.sort_by(f64::total_cmp);
        values.iter().zip(values.iter().skip(1)).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
    };
    Ok((0..n).map(gaps).sum::<f64>() / (solutions.len() - 1).max(1) as f64)
}

/// Bone Soups eq. 14 (`docs/algorithms.md` §7.6): standard deviation (over N) of each solution's L1
/// distance to its nearest neighbour. 0 for fewer than two.
pub fn spacing(solutions: &[Vec<f64>]) -> Result<f64, FrontError> {
    check("solutions", solutions)?;
    if solutions.len() < 2 {
        return Ok(0.0);
    }
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>();
    let nearest: Vec<f64> = solutions
        .iter()
        .enumerate()
        .map(|(i, a)| {
            let others = solutions.iter().enumerate().filter(|(j, _)| *j != i);
            others.map(|(_, b)| distance(a, b)).fold(f64::INFINITY, f64::min)
        })
        .collect();
    let count = nearest.len() as f64;
    let mean = nearest.iter().sum::<f64>() / count;
    Ok((nearest.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / count).sqrt())
}

fn paired(preferences: &[Vec<f64>], solutions: &[Vec<f64>]) -> Result<(), FrontError> {
    let expected = check("solutions", solutions)?;
    let got = check("preferences", preferences)?;
    if preferences.len() != solutions.len() {
        let (preferences, solutions) = (preferences.len(), solutions.len());
        return Err(FrontError::Count { preferences, solutions });
    }
    if got != expected {
        return Err(FrontError::Dimension { name: "preferences", index: 0, expected, got });
    }
    Ok(())
}

/// The preferences of a sweep: all vectors of n multiples of `1/steps` that add up to 1, the first
/// weight falling slowest (n = 2, steps = 10: 11 points from (1, 0) to (0, 1); n = 3: 66).
pub fn grid(n: usize, steps: usize) -> Vec<Vec<f64>> {
    fn compositions(n: usize, left: usize) -> Vec<Vec<usize>> {
        match n {
            0 => Vec::new(),
            1 => vec![vec![left]],
            _ => (0..=left)
                .rev()
                .flat_map(|k| {
                    compositions(n - 1, left - k).into_iter().map(move |mut tail| {
                        tail.insert(0, k);
                        tail
                    })
                })
                .collect(),
        }
    }
    let scaled = |point: Vec<usize>| point.iter().map(|k| *k as f64 / steps as f64).collect();
    if steps == 0 { Vec::new() } else { compositions(n, steps).into_iter().map(scaled).collect() }
}
