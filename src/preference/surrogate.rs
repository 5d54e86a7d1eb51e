//! A quadratic surrogate of measured rewards over the simplex of preferences
//! (`docs/algorithms.md` §1.5).

use nalgebra::{DMatrix, DVector};
use serde::Serialize;

/// What a reward is expected to be: the surrogate's value, and twice its error to either side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Predicted {
    /// In the reward's own unit, a mean over prompts.
    pub value: f64,
    /// value − 2·error.
    pub low: f64,
    /// value + 2·error.
    pub high: f64,
}

/// q(μ) = Σ bᵢμᵢ + Σ_{i<k} bᵢₖμᵢμₖ for each reward, by least squares.
#[derive(Debug, Clone)]
pub struct Surrogate {
    /// One row per reward.
    coefficients: Vec<Vec<f64>>,
    /// Root mean square of the errors at points that were left out of the fit, by reward.
    errors: Vec<f64>,
}

impl Surrogate {
    /// Fits the mean `rewards` of each of `preferences` (weights that sum to 1); all rows have one entry
    /// per objective. Says why it cannot.
    pub fn fit(preferences: &[&[f64]], rewards: &[&[f64]]) -> Result<Self, String> {
        let rows: Vec<Vec<f64>> = preferences.iter().map(|mu| terms(mu)).collect();
        let width = rows.first().map_or(0, Vec::len);
        if rows.len() <= width {
            return Err(format!("it has {} points, expected more than {width}", rows.len()));
        }
        let qr = DMatrix::from_fn(rows.len(), width, |i, j| rows[i][j]).qr();
        let (q, r) = (qr.q(), qr.r());
        let largest = r.diagonal().amax();
        if r.diagonal().iter().any(|value| value.abs() <= 1e-9 * largest) {
            return Err("its preferences do not determine a quadratic".to_owned());
        }
        let (mut coefficients, mut errors) = (Vec::new(), Vec::new());
        for reward in 0..rewards[0].len() {
            let values = DVector::from_fn(rows.len(), |i, _| rewards[i][reward]);
            let projected = q.transpose() * &values;
            let residuals = &values - &q * &projected;
            // What is left at a point when the fit is made without it.
            let left_out = residuals.iter().zip(q.row_iter()).map(|(residual, row)| {
                let leverage = row.norm_squared().min(1.0 - 1e-6);
                residual / (1.0 - leverage)
            });
            errors.push((left_out.map(|e| e * e).sum::<f64>() / rows.len() as f64).sqrt());
            let solved = r.solve_upper_triangular(&projected);
            let solved = solved.ok_or("its preferences do not determine a quadratic")?;
            coefficients.push(solved.iter().copied().collect());
        }
        Ok(Self { coefficients, errors })
    }

    /// q(μ) by reward.
    pub fn values(&self, mu: &[f64]) -> Vec<f64> {
        let terms = terms(mu);
        let of = |row: &Vec<f64>| row.iter().zip(&terms).map(|(b, x)| b * x).sum();
        self.coefficients.iter().map(of).collect()
    }

    /// The values with their errors.
    pub fn predict(&self, mu: &[f64]) -> Vec<Predicted> {
        let each = self.values(mu).into_iter().zip(&self.errors);
        each.map(|(value, error)| Predicted {
            value,
            low: value - 2.0 * error,
            high: value + 2.0 * error,
        })
        .collect()
    }
}

/// μᵢ, then μᵢμₖ for i < k: on the simplex they span every quadratic.
fn terms(mu: &[f64]) -> Vec<f64> {
    let products = mu.iter().enumerate().flat_map(|(i, a)| mu[i + 1..].iter().map(move |b| a * b));
    mu.iter().copied().chain(products).collect()
}
