//! The reward-mixing matrix B: which mix of rewards each backbone was trained on.

use nalgebra::{DMatrix, DVector};

/// Largest condition number (2-norm) at which λ = B⁻¹μ is still trusted.
pub const MAX_CONDITION: f64 = 1e4;

/// Largest condition number at which a *realised* matrix may map μ to λ: training moves its columns
/// towards each other, and λ then leaves the hull of what was trained.
pub const MAX_REALISED_CONDITION: f64 = 20.0;

/// How far a column's sum may be from 1.
const SUM_TOLERANCE: f64 = 1e-6;

/// A checked reward-mixing matrix: *column* i is the reward weight vector of backbone i.
///
/// Columns lie on the simplex, column i has its single largest entry at row i, and the condition
/// number is at most [`MAX_CONDITION`].
#[derive(Debug, Clone, PartialEq)]
pub struct MixingMatrix {
    matrix: DMatrix<f64>,
    condition: f64,
}

/// The rule of B that a matrix breaks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MixingError {
    /// Rule "square": as many rows as columns, at least one.
    #[error(
        "mixing matrix: row {row} has {got} entries, expected {expected} (B is square, at least 1 × 1)"
    )]
    Square {
        /// The row, from 0.
        row: usize,
        /// Rows of the matrix.
        expected: usize,
        /// Entries of that row.
        got: usize,
    },
    /// Rule "non-negative": every entry is finite and ≥ 0.
    #[error("mixing matrix: entry ({row}, {column}) is {value}, expected a finite number ≥ 0")]
    Entry {
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// The entry.
        value: f64,
    },
    /// Rule "columns sum to 1".
    #[error(
        "mixing matrix: column {column} sums to {sum}, expected 1 (columns are the backbones' reward weights)"
    )]
    ColumnSum {
        /// Column, from 0.
        column: usize,
        /// Its sum.
        sum: f64,
    },
    /// Rule "dominance": column i's single largest entry is at row i.
    #[error(
        "mixing matrix: column {column} is not dominated by row {column}: entry {own} there, {other} at row {row}"
    )]
    Dominance {
        /// Column, from 0.
        column: usize,
        /// Diagonal entry.
        own: f64,
        /// Row of an entry as large or larger.
        row: usize,
        /// That entry.
        other: f64,
    },
    /// Rule "well conditioned": B is invertible and its condition number is bounded.
    #[error("mixing matrix: condition number {condition:.3e}, expected at most {MAX_CONDITION:e}")]
    Condition {
        /// 2-norm condition number; infinite for a singular matrix.
        condition: f64,
    },
    /// β of a circulant matrix is outside (1/n, 1).
    #[error("beta is {beta}, expected a number in ({}, 1) for {objectives} objectives", 1.0 / *objectives as f64)]
    Beta {
        /// The value given.
        beta: f64,
        /// Number of objectives n.
        objectives: usize,
    },
}

impl MixingMatrix {
    /// Checks a matrix given by its rows.
    pub fn from_rows(rows: &[Vec<f64>]) -> Result<Self, MixingError> {
        let n = rows.len();
        if n == 0 {
            return Err(MixingError::Square { row: 0, expected: 1, got: 0 });
        }
        for (row, entries) in rows.iter().enumerate() {
            if entries.len() != n {
                return Err(MixingError::Square { row, expected: n, got: entries.len() });
            }
            for (column, &value) in entries.iter().enumerate() {
                if !value.is_finite() || value < 0.0 {
                    return Err(MixingError::Entry { row, column, value });
                }
            }
        }
        let matrix = DMatrix::from_fn(n, n, |row, column| rows[row][column]);
        for (column, entries) in matrix.column_iter().enumerate() {
            let sum = entries.sum();
            if (sum - 1.0).abs() > SUM_TOLERANCE {
                return Err(MixingError::ColumnSum { column, sum });
            }
            let own = entries[column];
            if let Some((row, &other)) =
                entries.iter().enumerate().find(|&(row, &entry)| row != column && entry >= own)
            {
                return Err(MixingError::Dominance { column, own, row, other });
            }
        }
        let condition = condition_of(&matrix);
        if condition.is_nan() || condition > MAX_CONDITION {
            return Err(MixingError::Condition { condition });
        }
        Ok(Self { matrix, condition })
    }

    /// The symmetric circulant matrix of Bone Soups eq. 8 (`docs/algorithms.md` §1.1): β on
    /// the diagonal, (1−β)/(n−1) elsewhere, β ∈ (1/n, 1).
    pub fn circulant(objectives: usize, beta: f64) -> Result<Self, MixingError> {
        let n = objectives;
        if n < 2 || !(beta > 1.0 / n as f64 && beta < 1.0) {
            return Err(MixingError::Beta { beta, objectives });
        }
        let off = (1.0 - beta) / (n - 1) as f64;
        let rows: Vec<Vec<f64>> =
            (0..n).map(|i| (0..n).map(|j| if i == j { beta } else { off }).collect()).collect();
        Self::from_rows(&rows)
    }

    /// Rewarded Soup: B = I, so λ = μ.
    pub fn identity(objectives: usize) -> Self {
        Self { matrix: DMatrix::identity(objectives, objectives), condition: 1.0 }
    }

    /// Number of objectives, and of backbones.
    pub fn len(&self) -> usize {
        self.matrix.nrows()
    }

    /// Always false: a checked matrix has at least one objective.
    pub fn is_empty(&self) -> bool {
        self.matrix.is_empty()
    }

    /// 2-norm condition number.
    pub fn condition(&self) -> f64 {
        self.condition
    }

    /// Rows of B.
    pub fn rows(&self) -> Vec<Vec<f64>> {
        self.matrix.row_iter().map(|row| row.iter().copied().collect()).collect()
    }

    /// Column i: the reward weights of backbone i.
    pub fn column(&self, i: usize) -> Vec<f64> {
        self.matrix.column(i).iter().copied().collect()
    }

    /// B⁻¹v by LU with partial pivoting; `v` has one entry per objective.
    pub(super) fn inverse_times(&self, v: &[f64]) -> Vec<f64> {
        let mut x = DVector::from_column_slice(v);
        // The condition number was checked, so no pivot is zero.
        let solved = self.matrix.clone().lu().solve_mut(&mut x);
        debug_assert!(solved, "a checked matrix is invertible");
        x.iter().copied().collect()
    }
}

/// The 2-norm condition number of a square matrix given by its rows: infinite for a singular one, NaN
/// for one that is empty, ragged or not finite.
pub fn condition_number(rows: &[Vec<f64>]) -> f64 {
    let n = rows.len();
    if n == 0 || rows.iter().any(|row| row.len() != n || row.iter().any(|x| !x.is_finite())) {
        return f64::NAN;
    }
    condition_of(&DMatrix::from_fn(n, n, |row, column| rows[row][column]))
}

fn condition_of(matrix: &DMatrix<f64>) -> f64 {
    let singular = matrix.singular_values();
    singular.max() / singular.min()
}
