//! Which candidate β or α is the best, from what each reached on validation prompts.

use super::front::{FrontError, hypervolume, reference_point};

/// What one candidate reached on the validation prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The candidate's β or α.
    pub value: f64,
    /// Mean rewards, one row a preference of the grid.
    pub solutions: Vec<Vec<f64>>,
}

/// The candidates compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Place of the best in the list.
    pub best: usize,
    /// Score of each, in order.
    pub scores: Vec<f64>,
    /// Reference point of the hypervolumes; empty when rewards were compared.
    pub reference: Vec<f64>,
}

/// β: the candidate of the largest hypervolume, all measured from one reference point (the
/// component-wise minimum over them less a tenth of the range). The first wins a tie.
pub fn by_hypervolume(candidates: &[Candidate]) -> Result<Selection, FrontError> {
    let all: Vec<Vec<f64>> = candidates.iter().flat_map(|c| c.solutions.clone()).collect();
    let reference = reference_point(&all)?;
    let scores = candidates.iter().map(|c| hypervolume(&c.solutions, &reference));
    let scores = scores.collect::<Result<Vec<_>, _>>()?;
    Ok(Selection { best: first_best(&scores), scores, reference })
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
    Ok(Selection { best: first_best(&scores), scores, reference: Vec::new() })
}

fn first_best(scores: &[f64]) -> usize {
    let better = |best: (usize, f64), (i, &score): (usize, &f64)| {
        if score > best.1 { (i, score) } else { best }
    };
    scores.iter().enumerate().fold((0, f64::NEG_INFINITY), better).0
}
