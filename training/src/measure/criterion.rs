//! The choice of the best β or α, from the rewards of each candidate on validation prompts.

use super::{
    front::{FrontError, hypervolume},
    results::REFERENCE,
};

/// Rewards of one candidate on the validation prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The candidate's β or α.
    pub value: f64,
    /// Mean rewards, one row per preference of the grid.
    pub solutions: Vec<Vec<f64>>,
}

/// The candidates compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Index of the best candidate.
    pub best: usize,
    /// Score of each candidate, in order.
    pub scores: Vec<f64>,
}

/// β: the candidate of the largest hypervolume, of rewards in σ, measured from [`REFERENCE`] in every
/// objective. The first wins a tie.
pub fn by_hypervolume(candidates: &[Candidate]) -> Result<Selection, FrontError> {
    let solution = candidates.first().and_then(|candidate| candidate.solutions.first());
    let dimensions = solution.ok_or(FrontError::Empty { name: "points" })?.len();
    let reference = vec![REFERENCE; dimensions];
    let scores = candidates.iter().map(|c| hypervolume(&c.solutions, &reference));
    let scores = scores.collect::<Result<Vec<_>, _>>()?;
    Ok(Selection { best: first_best(&scores), scores })
}

/// α: the candidate of the best mean testing reward Σ μᵢ rᵢ over its grid (`preferences`, one row a
/// solution). The first wins a tie, so α = 0, listed first, is left only for a gain.
pub fn by_testing_reward(
    candidates: &[Candidate],
    preferences: &[Vec<f64>],
) -> Result<Selection, FrontError> {
    if candidates.is_empty() {
        return Err(FrontError::Empty { name: "candidates" });
    }
    let scores = candidates.iter().map(|c| super::front::inner_product(preferences, &c.solutions));
    let scores = scores.collect::<Result<Vec<_>, _>>()?;
    Ok(Selection { best: first_best(&scores), scores })
}

/// The value of the candidate whose solution at the corner of `objective` has the largest reward of
/// that objective; the first wins a tie.
pub fn best_at_corner(
    candidates: &[Candidate],
    preferences: &[Vec<f64>],
    objective: usize,
) -> Result<f64, FrontError> {
    let corner = |mu: &Vec<f64>| mu.get(objective).is_some_and(|weight| *weight > 1.0 - 1e-9);
    let at = preferences.iter().position(corner);
    let at = at.ok_or(FrontError::Empty { name: "corners" })?;
    let scores: Vec<f64> = candidates.iter().map(|c| c.solutions[at][objective]).collect();
    let best = candidates.get(first_best(&scores));
    best.map(|candidate| candidate.value).ok_or(FrontError::Empty { name: "candidates" })
}

fn first_best(scores: &[f64]) -> usize {
    let better = |best: (usize, f64), (i, &score): (usize, &f64)| {
        if score > best.1 { (i, score) } else { best }
    };
    scores.iter().enumerate().fold((0, f64::NEG_INFINITY), better).0
}
