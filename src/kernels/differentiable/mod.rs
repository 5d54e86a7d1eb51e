//! Differentiable kernels: the decoder on candle tensors through which gradients flow, on any
//! device. On the CPU the trainer has faster ones of its own, which are tested against these.
//!
//! candle's own fused operations (`softmax_last_dim`, `rms_norm`, `rope`, `sdpa`, quantised
//! products) cut the graph without a word, and its matmul computes a gradient for frozen weights
//! too. So everything here is composed of candle operations that have a backward ([`composed`]),
//! but for the product with a frozen weight ([`frozen`]). A weight that is tracked (a `Var` or
//! computed from one) gets a gradient, a frozen one costs none.
//!
//! A batch is packed: the rows of all sequences one after another, each segment attending causally
//! to itself. Nothing is cached ([`Kernels::Cache`] is `()`): a segment starts at position 0 of its
//! sequence, or, with `cached` tokens, it continues the last segment that does, whose rows are its
//! context too ([`tree`]). So the responses to one prompt share the prompt's rows, and their
//! gradients meet there.

mod composed;
mod frozen;
pub mod tree;

use candle_core::{D, DType, Device, Tensor};

use super::{
    AttentionShape, Batch, ColumnScale, Dtype, HostTensor, KernelError, Kernels, Result, Rope,
    RowCoefficients,
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

fn expect(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(KernelError::Shape { op, what, expected, got }) }
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
        Ok(match (tensor.dtype(), tensor.as_f32()) {
            (Dtype::F32, Some(values)) => Tensor::from_slice(values, shape, &self.device)?,
            _ => Tensor::from_vec(tensor.to_f32(), shape, &self.device)?,
        })
    }

    fn embed(&self, table: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(tokens, &self.device)?;
        Ok(table.index_select(&ids, 0)?)
    }

    fn linear(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let (_, width) = dims("linear", x)?;
        let (_, inner) = dims("linear", w)?;
        expect("linear", "input width", inner, width)?;
        if w.track_op() {
            return Ok(x.matmul(&w.t()?)?);
        }
        frozen::linear(x, w)
    }

    fn linear_add(&self, y: Tensor, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        Ok((y + self.linear(x, w)?)?)
    }

    fn bias_add(&self, y: Tensor, bias: &Tensor) -> Result<Tensor> {
        Ok(y.broadcast_add(bias)?)
    }

    fn broadcast(&self, w: &Tensor, rows: usize) -> Result<Tensor> {
        Ok(w.broadcast_left(rows)?)
    }

    fn scale_rows(&self, x: Tensor, scale: &[f32]) -> Result<Tensor> {
        let (rows, _) = dims("scale_rows", &x)?;
        expect("scale_rows", "scales", rows, scale.len())?;
        let scale = Tensor::from_slice(scale, (rows, 1), &self.device)?;
        Ok(x.broadcast_mul(&scale)?)
    }

    fn scale_columns(
        &self,
        x: Tensor,
        scales: &[ColumnScale],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Tensor> {
        let (rows, width) = dims("scale_columns", &x)?;
        if let Some(scale) = scales.iter().find(|scale| scale.columns.end > width) {
            let got = scale.columns.end;
            return Err(KernelError::Shape {
                op: "scale_columns",
                what: "end of a column range",
                expected: width,
                got,
            });
        }
        if let [ColumnScale { columns, term: None, factor }] = scales
            && *columns == (0..width)
        {
            return Ok(x.affine(f64::from(*factor), 0.0)?);
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
        Ok(x.broadcast_mul(&Tensor::from_vec(factors, (height, width), &self.device)?)?)
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
        let (_, width) = dims("rms_norm", x)?;
        let group = gain.elem_count();
        expect("rms_norm", "width modulo the gain's", 0, width.checked_rem(group).unwrap_or(1))?;
        composed::rms_norm(x, gain, group, eps)
    }

    fn rms_norm_rows(&self, x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
        let (rows, width) = dims("rms_norm_rows", x)?;
        let (gains, group) = dims("rms_norm_rows", gain)?;
        expect("rms_norm_rows", "gain rows", rows, gains)?;
        expect(
            "rms_norm_rows",
            "width modulo the gain's",
            0,
            width.checked_rem(group).unwrap_or(1),
        )?;
        composed::rms_norm(x, &gain.unsqueeze(1)?, group, eps)
    }

    fn rope(&self, x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
        let (rows, width) = dims("rope", &x)?;
        expect("rope", "positions", rows, positions.len())?;
        let half = rope.inv_freq.len();
        expect("rope", "width modulo the head's", 0, width.checked_rem(2 * half).unwrap_or(1))?;
        composed::rope(&x, positions, rope)
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
            expect("attention", what, rows, got)?;
            expect("attention", what, heads * shape.head_dim, width)?;
        }
        expect("attention", "heads modulo key/value heads", 0, shape.heads % shape.kv_heads)?;
        let trees = tree::trees(batch)?;
        composed::attention(&q, &k, &v, shape, &trees)
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        Ok((gate.silu()? * up)?)
    }

    fn select_rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let (height, _) = dims("select_rows", x)?;
        if rows.len() == height && rows.iter().enumerate().all(|(index, &row)| index == row) {
            return Ok(x.clone());
        }
        let ids = rows.iter().map(|&row| row as u32).collect::<Vec<_>>();
        Ok(x.index_select(&Tensor::new(ids, &self.device)?, 0)?)
    }
}
