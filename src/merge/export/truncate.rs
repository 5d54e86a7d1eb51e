//! Low-rank changes of a smaller rank: of each module's ΔW = BA the nearest one of at most r, by its
//! singular values (Eckart and Young). The factors are decomposed, never ΔW itself:
//! B = Q₁R₁, Aᵀ = Q₂R₂, and R₁R₂ᵀ = USVᵀ is as small as the rank of the factors.

use std::collections::BTreeMap;

use nalgebra::DMatrix;
use serde::Serialize;

use crate::{
    kernels::HostTensor,
    merge::{
        MergeError,
        dense::rounded,
        low_rank::{LowRankTerm, stack, total_rank},
    },
    soup::LoraModule,
};

/// What a smaller rank left out: ‖ΔW − ΔWᵣ‖ / ‖ΔW‖ (Frobenius), before the storage type rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Truncation {
    /// The rank r that was asked for.
    pub rank: usize,
    /// The rank without it.
    pub exact_rank: usize,
    /// Of all modules together.
    pub error: f64,
    /// Of the module that loses most.
    pub largest_error: f64,
    /// Its name.
    pub largest_module: String,
}

/// Replaces the terms of each module whose ranks add up to more than `rank` by one term of `rank`, in
/// the terms' storage type.
pub fn truncate(
    modules: &mut BTreeMap<String, Vec<LowRankTerm>>,
    rank: usize,
) -> Result<Truncation, MergeError> {
    let exact_rank = modules.values().map(|terms| total_rank(terms)).max().unwrap_or(0);
    let (mut lost, mut all) = (0.0, 0.0);
    let mut largest = (0.0, String::new());
    for (module, terms) in modules {
        let (term, [lost_here, all_here]) = nearest(module, terms, rank)?;
        let error = if all_here > 0.0 { (lost_here / all_here).sqrt() } else { 0.0 };
        if error > largest.0 {
            largest = (error, module.clone());
        }
        (lost, all) = (lost + lost_here, all + all_here);
        if total_rank(terms) > rank {
            *terms = vec![term];
        }
    }
    let error = if all > 0.0 { (lost / all).sqrt() } else { 0.0 };
    Ok(Truncation { rank, exact_rank, error, largest_error: largest.0, largest_module: largest.1 })
}

/// The nearest product of at most `rank`, and the squared norms of what it leaves out and of all.
fn nearest(
    module: &str,
    terms: &[LowRankTerm],
    rank: usize,
) -> Result<(LowRankTerm, [f64; 2]), MergeError> {
    let refuse = |source| MergeError::Tensor { tensor: module.to_owned(), source };
    let stacked = stack(terms, total_rank(terms)).map_err(refuse)?;
    let down = matrix(&stacked.down).transpose().qr();
    let up = matrix(&stacked.up).qr();
    let svd = (up.r() * down.r().transpose()).svd(true, true);
    let squares: Vec<f64> = svd.singular_values.iter().map(|s| s * s).collect();
    let kept = rank.min(squares.len());
    let norms = [squares[kept..].iter().sum(), squares.iter().sum()];
    let (Some(u), Some(v_t)) = (svd.u, svd.v_t) else {
        unreachable!("both sides were asked for");
    };
    // Each factor gets the root of the singular values: both are of one size.
    let roots = DMatrix::from_diagonal(&svd.singular_values.rows(0, kept).map(f64::sqrt));
    let up = up.q() * u.columns(0, kept) * &roots;
    let down = roots * v_t.rows(0, kept) * down.q().transpose();
    let dtype = terms.first().map_or(stacked.up.dtype(), |term| term.lora.up.dtype());
    let tensor = |matrix: DMatrix<f64>| {
        let values: Vec<f32> = matrix.transpose().iter().map(|value| *value as f32).collect();
        let shape = vec![matrix.nrows(), matrix.ncols()];
        rounded(module, &HostTensor::from_f32(&values, shape).map_err(refuse)?, 1.0, dtype)
    };
    let lora = LoraModule { down: tensor(down)?, up: tensor(up)?, scale: 1.0 };
    Ok((LowRankTerm { lora, term: None }, norms))
}

/// A factor in f64.
fn matrix(tensor: &HostTensor) -> DMatrix<f64> {
    let (rows, columns) = match tensor.shape() {
        [rows, columns] => (*rows, *columns),
        _ => (1, tensor.len()),
    };
    DMatrix::from_row_iterator(rows, columns, tensor.to_f32().into_iter().map(f64::from))
}
