//! A parameter as the decoder uses it: merged (one matrix), or a per-row mixture of the terms of a
//! soup. With coefficients `c(t)` of row t, a linear layer is
//! `y_t = Σᵢ cᵢ(t) Wᵢ x_t + Σⱼ cⱼ(t) sⱼ Bⱼ Aⱼ x_t` (ALGORITHMS §1): no weight is materialised.

use crate::kernels::{ColumnScale, Kernels, Result, RowCoefficients};

/// One full-rank term of a parameter.
#[derive(Debug, Clone)]
pub struct Dense<W> {
    /// The matrix, vector or table.
    pub weight: W,
    /// Term whose per-row coefficient multiplies it; `None` is 1.
    pub term: Option<usize>,
}

/// All low-rank terms of a linear layer, stacked along the rank.
#[derive(Debug, Clone)]
pub struct LowRank<W> {
    /// A factors, `[Σ rank, in]`.
    pub down: W,
    /// B factors, `[out, Σ rank]`.
    pub up: W,
    /// Which ranks belong to which term, with LoRA's scale.
    pub scales: Vec<ColumnScale>,
}

/// A parameter: full-rank terms (at least one) and optional low-rank terms.
#[derive(Debug, Clone)]
pub struct Parameter<W> {
    /// The first full-rank term.
    pub first: Dense<W>,
    /// Further full-rank terms.
    pub rest: Vec<Dense<W>>,
    /// Low-rank terms; only linear layers have them.
    pub low_rank: Option<LowRank<W>>,
}

impl<W> Parameter<W> {
    /// A merged parameter: one matrix, coefficient 1.
    pub fn merged(weight: W) -> Self {
        Self { first: Dense { weight, term: None }, rest: Vec::new(), low_rank: None }
    }

    fn is_single(&self) -> bool {
        self.rest.is_empty() && self.first.term.is_none()
    }

    /// Σ over the dense terms of `coefficient(t) · f(weight)`, `[rows, width]`.
    fn mix<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        coefficients: Option<&RowCoefficients>,
        f: impl Fn(&W) -> Result<K::Tensor>,
    ) -> Result<K::Tensor> {
        let scaled = |dense: &Dense<W>| {
            let y = f(&dense.weight)?;
            match (dense.term, coefficients) {
                (Some(term), Some(c)) => k.scale_rows(y, &c.column(term)),
                _ => Ok(y),
            }
        };
        self.rest.iter().try_fold(scaled(&self.first)?, |sum, dense| k.add(sum, &scaled(dense)?))
    }

    /// The layer's output for `x` `[rows, in]` → `[rows, out]`.
    pub fn linear<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: &K::Tensor,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        let y = self.mix(k, coefficients, |w| k.linear(x, w))?;
        match &self.low_rank {
            None => Ok(y),
            Some(LowRank { down, up, scales }) => {
                let h = k.scale_columns(k.linear(x, down)?, scales, coefficients)?;
                k.linear_add(y, &h, up)
            }
        }
    }

    /// Embedding rows of `tokens` → `[rows, width]`.
    pub fn embed<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        tokens: &[u32],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        self.mix(k, coefficients, |table| k.embed(table, tokens))
    }

    /// `x + bias`.
    pub fn bias_add<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: K::Tensor,
        rows: usize,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        if self.is_single() {
            return k.bias_add(x, &self.first.weight);
        }
        k.add(x, &self.mix(k, coefficients, |w| k.broadcast(w, rows))?)
    }

    /// Root-mean-square norm of `x` with this parameter as gain.
    pub fn rms_norm<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: &K::Tensor,
        rows: usize,
        eps: f32,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        if self.is_single() {
            return k.rms_norm(x, &self.first.weight, eps);
        }
        let gain = self.mix(k, coefficients, |w| k.broadcast(w, rows))?;
        k.rms_norm_rows(x, &gain, eps)
    }
}
