//! A parameter of the decoder: merged (one matrix), or a per-row mixture of the terms of a soup.
//! With coefficients `c(t)` of row t, a linear layer is
//! `y_t = Σᵢ cᵢ(t) Wᵢ x_t + Σⱼ cⱼ(t) sⱼ Bⱼ Aⱼ x_t` (`docs/algorithms.md` §2.2), and no weight is
//! materialised.

use crate::kernels::{
    ColumnScale, KernelError, Kernels, Norm, Product, Result, RowCoefficients, ScaledProduct,
};

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
    /// B factors `[out, Σ rank]` as [`Kernels::scaled_products`] takes them.
    pub up: W,
    /// Columns of each term, with LoRA's scale.
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

    /// The full-rank terms that a product is made of: all but those whose coefficient is 0 in every
    /// row. Adding their zeros would change no value.
    fn acting(&self, coefficients: Option<&RowCoefficients>) -> Vec<&Dense<W>> {
        let all = || std::iter::once(&self.first).chain(&self.rest);
        let acting: Vec<_> = all().filter(|dense| acts(coefficients, dense.term)).collect();
        if acting.is_empty() { all().collect() } else { acting }
    }

    /// The low-rank terms, unless the coefficients of all of them are 0 in every row.
    fn acting_low_rank(&self, coefficients: Option<&RowCoefficients>) -> Option<&LowRank<W>> {
        let any = |low_rank: &&LowRank<W>| {
            low_rank.scales.iter().any(|scale| acts(coefficients, scale.term))
        };
        self.low_rank.as_ref().filter(any)
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
            match dense.term {
                None => Ok(y),
                Some(term) => k.scale_rows(y, &column(coefficients, term)?),
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
        let layer = Affine { weight: self, bias: None, onto: None };
        let [y] = linears(k, x, [layer], 0, coefficients)?;
        Ok(y)
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

    /// All values of this parameter: one row for all rows where their values are the same, else one
    /// for each → `[1 or rows, values]`.
    pub fn table<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        rows: usize,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        let rows = if self.is_single() { 1 } else { rows };
        self.mix(k, coefficients, |w| k.broadcast(w, rows))
    }

    /// Root-mean-square norm of `x` with this parameter as gain.
    pub fn rms_norm<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: &K::Tensor,
        rows: usize,
        norm: Norm,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        if self.is_single() {
            return k.rms_norm(x, &self.first.weight, norm);
        }
        let gain = self.mix(k, coefficients, |w| k.broadcast(w, rows))?;
        k.rms_norm_rows(x, &gain, norm)
    }
}

/// Application of a linear layer: `onto + x Wᵀ + bias`.
pub struct Affine<'a, K: Kernels> {
    /// Weight `[out, in]`.
    pub weight: &'a Parameter<K::Weight>,
    /// Bias `[out]`.
    pub bias: Option<&'a Parameter<K::Weight>>,
    /// Summand `[rows, out]`.
    pub onto: Option<K::Tensor>,
}

/// A linear layer with its optional bias.
#[derive(Debug, Clone)]
pub struct Linear<W> {
    /// Weight `[out, in]`.
    pub weight: Parameter<W>,
    /// Bias `[out]`.
    pub bias: Option<Parameter<W>>,
}

impl<W> Linear<W> {
    /// This layer, its output added onto `onto` if that is given.
    pub fn onto<'a, K: Kernels<Weight = W>>(&'a self, onto: Option<K::Tensor>) -> Affine<'a, K> {
        Affine { weight: &self.weight, bias: self.bias.as_ref(), onto }
    }
}

/// `N` linear layers of one input.
#[derive(Debug, Clone)]
pub enum Inputs<W, const N: usize> {
    /// Each with its own tensor.
    Apart([Linear<W>; N]),
    /// The rows of one tensor, so many each.
    Fused(Linear<W>, [usize; N]),
}

impl<W, const N: usize> Inputs<W, N> {
    /// The layers' outputs for `x` of `rows` rows.
    pub fn of<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: &K::Tensor,
        (rows, c): (usize, Option<&RowCoefficients>),
    ) -> Result<[K::Tensor; N]> {
        let (linear, widths) = match self {
            Self::Apart(layers) => {
                return linears(k, x, layers.each_ref().map(|layer| layer.onto(None)), rows, c);
            }
            Self::Fused(linear, widths) => (linear, widths),
        };
        let [all] = linears(k, x, [linear.onto(None)], rows, c)?;
        let (mut parts, mut first) = (Vec::with_capacity(N), 0);
        for width in widths {
            parts.push(k.select_columns(&all, first..first + width)?);
            first += width;
        }
        let (op, what) = ("select_columns", "number of results");
        parts.try_into().map_err(|parts: Vec<_>| {
            let got = parts.len();
            KernelError::Shape { op, what, expected: N, got }
        })
    }
}

/// Several layers of one input `x` `[rows, in]`. Their products run in rounds that the kernels may
/// do side by side: the i-th dense terms of all layers (with the low-rank down projections in the
/// first round), then the up projections. Rows are scaled before a product, so that layers share
/// the scaled input.
pub fn linears<K: Kernels, const N: usize>(
    k: &K,
    x: &K::Tensor,
    layers: [Affine<'_, K>; N],
    rows: usize,
    coefficients: Option<&RowCoefficients>,
) -> Result<[K::Tensor; N]> {
    let weights = layers.each_ref().map(|layer| layer.weight);
    let biases = layers.each_ref().map(|layer| layer.bias);
    let mut sums = layers.map(|layer| layer.onto);
    let dense = weights.map(|parameter| parameter.acting(coefficients));
    let low_rank = weights.map(|parameter| parameter.acting_low_rank(coefficients));
    let mut downs = Vec::new();
    let mut scaled: Vec<(usize, K::Tensor)> = Vec::new();
    let rounds = dense.iter().map(Vec::len).max().unwrap_or(0);
    for round in 0..rounds {
        for term in dense.iter().filter_map(|terms| terms.get(round)?.term) {
            if !scaled.iter().any(|(known, _)| *known == term) {
                let x = k.scale_rows(x.clone(), &column(coefficients, term)?)?;
                scaled.push((term, x));
            }
        }
        let mut products = Vec::with_capacity(2 * N);
        for (terms, sum) in dense.iter().zip(&mut sums) {
            if let Some(Dense { weight, term }) = terms.get(round) {
                let known = scaled.iter().find(|(known, _)| Some(*known) == *term);
                let x = known.map_or(x, |(_, x)| x);
                products.push(Product { x, weight, onto: sum.take() });
            }
        }
        if round == 0 {
            let low_rank = low_rank.iter().flatten();
            products.extend(low_rank.map(|l| Product { x, weight: &l.down, onto: None }));
        }
        let mut results = k.products(products)?.into_iter();
        for (terms, sum) in dense.iter().zip(&mut sums) {
            if terms.get(round).is_some() {
                *sum = results.next();
            }
        }
        downs.extend(results);
    }
    if !downs.is_empty() {
        let mut downs = downs.into_iter();
        let mut products = Vec::with_capacity(N);
        for (low_rank, sum) in low_rank.iter().zip(&mut sums) {
            let Some(LowRank { up: weight, scales, .. }) = low_rank else { continue };
            let (Some(x), Some(onto)) = (downs.next(), sum.take()) else { continue };
            products.push(ScaledProduct { x, scales, weight, onto });
        }
        let mut results = k.scaled_products(products, coefficients)?.into_iter();
        for (low_rank, sum) in low_rank.iter().zip(&mut sums) {
            if low_rank.is_some() {
                *sum = results.next();
            }
        }
    }
    let mut out = Vec::with_capacity(N);
    for (sum, bias) in sums.into_iter().flatten().zip(biases) {
        out.push(match bias {
            None => sum,
            Some(bias) => bias.bias_add(k, sum, rows, coefficients)?,
        });
    }
    let got = out.len();
    let what = "number of results";
    out.try_into().map_err(|_| KernelError::Shape { op: "products", what, expected: N, got })
}

/// Whether a term has a coefficient other than 0 in some row. One that the rows do not have is left
/// for [`column`] to refuse.
fn acts(coefficients: Option<&RowCoefficients>, term: Option<usize>) -> bool {
    match (coefficients, term) {
        (Some(c), Some(term)) if term < c.terms => {
            c.values.iter().skip(term).step_by(c.terms).any(|&value| value != 0.0)
        }
        _ => true,
    }
}

/// The coefficient of `term` in every row.
fn column(coefficients: Option<&RowCoefficients>, term: usize) -> Result<Vec<f32>> {
    match coefficients {
        Some(c) if term < c.terms => Ok(c.column(term)),
        _ => Err(KernelError::Shape {
            op: "mixed parameter",
            what: "number of coefficients per row (at least)",
            expected: term + 1,
            got: coefficients.map_or(0, |c| c.terms),
        }),
    }
}
