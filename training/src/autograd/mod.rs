//! Differentiable kernels: the decoder on candle tensors with autograd, on any device. The trainer's
//! own kernels for the CPU ([`crate::tape`]) are faster and tested against these.
//!
//! candle's own fused operations (`softmax_last_dim`, `rms_norm`, `rope`, `sdpa`, quantised
//! products) cut the graph silently, and its matmul computes a gradient for frozen weights too.
//! Everything here is therefore composed of candle operations that have a backward (`composed`),
//! except for the product with a frozen weight (`frozen`). A tracked weight (a `Var` or computed
//! from one) gets a gradient; a frozen one costs none.
//!
//! A batch is packed: the rows of all sequences one after another, each segment attending causally
//! to itself. Nothing is cached ([`Kernels::Cache`] is `()`): a segment starts at position 0 of its
//! sequence, or, with `cached` tokens, it continues the last segment that does, whose rows are its
//! context too ([`tree`]). Responses to one prompt share the prompt's rows, where their gradients
//! add up. Stored rows are refused here; [`crate::tape`] has them.

mod composed;
mod frozen;
pub mod tree;

pub(crate) use composed::angles;

use std::ops::Range;

use candle_core::{Device, Tensor};

use ladle::kernels::{
    Activation, AttentionShape, Batch, ColumnScale, Dtype, HostTensor, KernelError, Kernels, Norm,
    Product, Result, Rope, RowCoefficients,
    check::{self, fits, groups},
};

/// Kernels over f32 candle tensors with autograd.
#[derive(Debug, Clone)]
pub struct Differentiable {
    device: Device,
}

impl Differentiable {
    /// Kernels on `device`.
    pub fn new(device: Device) -> Self {
        Self { device }
    }

    /// The device that the tensors live on.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// An error of candle as a kernel error.
pub(crate) fn refused(error: candle_core::Error) -> KernelError {
    KernelError::Library(Box::new(error))
}

/// `x Wᵀ`.
fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (_, width) = dims("linear", x)?;
    let (_, inner) = dims("linear", w)?;
    fits("linear", "input width", inner, width)?;
    let y = if w.track_op() { w.t().and_then(|w| x.matmul(&w)) } else { frozen::linear(x, w) };
    y.map_err(refused)
}

/// Factors of the columns of `rows` rows: `[height, width]`, of height 1 where no scale has a
/// coefficient per row.
pub(crate) fn column_factors(
    scales: &[ColumnScale],
    coefficients: Option<&RowCoefficients>,
    rows: usize,
    width: usize,
) -> Result<(usize, Vec<f32>)> {
    if let Some(scale) = scales.iter().find(|scale| scale.columns.end > width) {
        fits("scale_columns", "end of a column range", width, scale.columns.end)?;
    }
    let per_row = coefficients.filter(|_| scales.iter().any(|scale| scale.term.is_some()));
    let height = per_row.map_or(1, |_| rows);
    let mut factors = vec![1f32; height * width];
    for ColumnScale { columns, term, factor } in scales {
        for row in 0..height {
            let coefficient = match (term, per_row) {
                (Some(term), Some(c)) => c.values[row * c.terms + term],
                _ => 1.0,
            };
            for value in &mut factors[row * width..][columns.clone()] {
                *value *= factor * coefficient;
            }
        }
    }
    Ok((height, factors))
}

/// Rows and columns of an activation.
fn dims(op: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    x.dims2().map_err(|_| KernelError::Shape { op, what: "rank", expected: 2, got: x.rank() })
}

impl Kernels for Differentiable {
    type Tensor = Tensor;
    type Weight = Tensor;
    type Cache = ();

    fn weight(&self, tensor: &HostTensor) -> Result<Tensor> {
        let shape = tensor.shape();
        let weight = match (tensor.dtype(), tensor.as_f32()) {
            (Dtype::F32, Some(values)) => Tensor::from_slice(values, shape, &self.device),
            _ => Tensor::from_vec(tensor.to_f32(), shape, &self.device),
        };
        weight.map_err(refused)
    }

    fn embed(&self, table: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(tokens, &self.device).map_err(refused)?;
        table.index_select(&ids, 0).map_err(refused)
    }

    fn products(&self, products: Vec<Product<'_, Self>>) -> Result<Vec<Tensor>> {
        let one = |Product { x, weight, onto }: Product<'_, Self>| {
            let y = linear(x, weight)?;
            match onto {
                None => Ok(y),
                Some(onto) => (onto + y).map_err(refused),
            }
        };
        products.into_iter().map(one).collect()
    }

    fn bias_add(&self, y: Tensor, bias: &Tensor) -> Result<Tensor> {
        y.broadcast_add(bias).map_err(refused)
    }

    fn broadcast(&self, w: &Tensor, rows: usize) -> Result<Tensor> {
        w.broadcast_left(rows).map_err(refused)
    }

    fn scale_rows(&self, x: Tensor, scale: &[f32]) -> Result<Tensor> {
        let (rows, _) = dims("scale_rows", &x)?;
        fits("scale_rows", "scales", rows, scale.len())?;
        let scale = Tensor::from_slice(scale, (rows, 1), &self.device).map_err(refused)?;
        x.broadcast_mul(&scale).map_err(refused)
    }

    fn scale_columns(
        &self,
        x: Tensor,
        scales: &[ColumnScale],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Tensor> {
        let (rows, width) = dims("scale_columns", &x)?;
        if let [ColumnScale { columns, term: None, factor }] = scales
            && *columns == (0..width)
        {
            return x.affine(f64::from(*factor), 0.0).map_err(refused);
        }
        let (height, factors) = column_factors(scales, coefficients, rows, width)?;
        let factors = Tensor::from_vec(factors, (height, width), &self.device).map_err(refused)?;
        x.broadcast_mul(&factors).map_err(refused)
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        (a + b).map_err(refused)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, norm: Norm) -> Result<Tensor> {
        let (_, width) = dims("rms_norm", x)?;
        let group = gain.elem_count();
        groups("rms_norm", width, group)?;
        composed::rms_norm(x, gain, group, norm).map_err(refused)
    }

    fn rms_norm_rows(&self, x: &Tensor, gain: &Tensor, norm: Norm) -> Result<Tensor> {
        let (rows, width) = dims("rms_norm_rows", x)?;
        let (gains, group) = dims("rms_norm_rows", gain)?;
        fits("rms_norm_rows", "gain rows", rows, gains)?;
        groups("rms_norm_rows", width, group)?;
        let gain = gain.unsqueeze(1).map_err(refused)?;
        composed::rms_norm(x, &gain, group, norm).map_err(refused)
    }

    fn rope(&self, x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
        let (rows, width) = dims("rope", &x)?;
        check::rope(rows, width, positions, rope)?;
        composed::rope(&x, positions, rope).map_err(refused)
    }

    fn attention(
        &self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        _layer: usize,
        shape: AttentionShape,
        batch: &Batch,
        (): &mut (),
    ) -> Result<Tensor> {
        let rows = batch.tokens.len();
        for (what, x, heads) in [
            ("queries", &q, shape.heads),
            ("keys", &k, shape.kv_heads),
            ("values", &v, shape.kv_heads),
        ] {
            let (got, width) = dims("attention", x)?;
            fits("attention", what, rows, got)?;
            fits("attention", what, heads * shape.head_dim, width)?;
        }
        groups("attention", shape.heads, shape.kv_heads)?;
        let trees = tree::trees(batch)?;
        for tree in &trees {
            fits("attention", "stored rows", 0, tree.before)?;
        }
        composed::attention(&q, &k, &v, shape, &trees).map_err(refused)
    }

    fn gated(&self, activation: Activation, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        let gate = match activation {
            Activation::Silu => gate.silu(),
            Activation::Gelu => gate.gelu(),
        };
        gate.and_then(|gate| gate * up).map_err(refused)
    }

    fn select_rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let (height, _) = dims("select_rows", x)?;
        if rows.len() == height && rows.iter().enumerate().all(|(index, &row)| index == row) {
            return Ok(x.clone());
        }
        let ids = rows.iter().map(|&row| row as u32).collect::<Vec<_>>();
        let ids = Tensor::new(ids, &self.device).map_err(refused)?;
        x.index_select(&ids, 0).map_err(refused)
    }

    fn select_columns(&self, x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
        let (_, width) = dims("select_columns", x)?;
        check::columns("select_columns", width, &columns)?;
        let part = x.narrow(1, columns.start, columns.len());
        part.and_then(|part| part.contiguous()).map_err(refused)
    }

    fn add_to_rows(&self, x: Tensor, rows: &[usize], y: &Tensor) -> Result<Tensor> {
        check::added_rows(dims("add_to_rows", &x)?, rows, dims("add_to_rows", y)?)?;
        let ids = rows.iter().map(|&row| row as u32).collect::<Vec<_>>();
        let ids = Tensor::new(ids, &self.device).map_err(refused)?;
        x.index_add(&ids, y, 0).map_err(refused)
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        x.flatten_all().and_then(|x| x.to_vec1()).map_err(refused)
    }

    fn soft_cap(&self, x: Tensor, cap: f32) -> Result<Tensor> {
        composed::soft_cap(&x, cap).map_err(refused)
    }
}
