//! What the policies of a run are trained for: the columns of B, or one set of weights.

use ladle::preference::{MixingMatrix, mixing::condition_number};

use crate::{
    config::{Config, ConfigError, MixingConfig},
    error::RunError,
};

/// What the policies of a run are trained for.
pub enum Aim {
    /// Backbones of a soup, one per column of B.
    Backbones(MixingMatrix),
    /// One policy, with these pre-set weights W of the rewards.
    Policy(Vec<f64>),
    /// One policy that its prompts tell how much of each reward is wanted.
    Told,
}

/// A column of B: a backbone's.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    /// B.
    pub mixing: &'a MixingMatrix,
    /// Index of the column, and of the objective whose weight stays the largest in it.
    pub own: usize,
}

impl Column<'_> {
    /// κ(B) with this column as it was realised.
    pub fn condition(&self, realised: &[f64]) -> f64 {
        let mut rows = self.mixing.rows();
        for (row, weight) in rows.iter_mut().zip(realised) {
            row[self.own] = *weight;
        }
        condition_number(&rows)
    }
}

impl Aim {
    /// Reads the aim from a configuration; B must have a row and a column per objective.
    pub fn of(config: &Config) -> Result<Self, RunError> {
        let n = config.objectives.len();
        let mixing = match &config.mixing {
            MixingConfig::Beta(beta) => MixingMatrix::circulant(n, *beta)?,
            MixingConfig::Matrix(rows) => MixingMatrix::from_rows(rows)?,
            MixingConfig::Identity(_) => MixingMatrix::identity(n),
            MixingConfig::Weights(weights) => return Ok(Self::Policy(weights.clone())),
            MixingConfig::Context(_) => return Ok(Self::Told),
        };
        if mixing.len() != n {
            return Err(ConfigError::Value {
                key: "mixing.matrix".into(),
                got: format!("{0} × {0}", mixing.len()),
                expected: "one row and column per objective",
            }
            .into());
        }
        Ok(Self::Backbones(mixing))
    }

    /// B; `None` of a single policy.
    pub fn matrix(&self) -> Option<&MixingMatrix> {
        match self {
            Self::Backbones(mixing) => Some(mixing),
            Self::Policy(_) | Self::Told => None,
        }
    }

    /// The column of policy `index`; `None` of a single policy.
    pub fn column(&self, index: usize) -> Option<Column<'_>> {
        self.matrix().map(|mixing| Column { mixing, own: index })
    }

    /// Pre-set weights W of policy `index`: n·wᵢ for column i of B (`docs/algorithms.md` §6.3).
    /// `None` of a policy that is told what is wanted.
    pub fn weights(&self, index: usize) -> Option<Vec<f64>> {
        match self {
            Self::Backbones(mixing) => {
                let n = mixing.len() as f64;
                Some(mixing.column(index).into_iter().map(|w| n * w).collect())
            }
            Self::Policy(weights) => Some(weights.clone()),
            Self::Told => None,
        }
    }

    /// The preference that policy `index` is trained for: W/ΣW.
    pub fn preference(&self, index: usize) -> Option<Vec<f64>> {
        let weights = self.weights(index)?;
        let sum: f64 = weights.iter().sum();
        Some(weights.into_iter().map(|w| w / sum).collect())
    }
}
