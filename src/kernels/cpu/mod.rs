//! CPU kernels for serving: weights as stored (f32, f16, bf16, quantised), f32 activations and
//! sums. Products with quantised weights round their inputs to bytes; products with bf16 weights
//! round theirs to bf16 where the instruction set multiplies in pairs of bf16.
//!
//! A row's result never depends on the other rows of its batch: each output element is summed in an
//! order that only the weight's shape fixes, so batched and lone rows agree bit for bit.

mod attention;
mod bf16;
mod elementwise;
mod gemm;
mod grid;
mod kv;
mod low_rank;
mod pair_tile;
mod pairs;
mod pool;
mod quantised;
mod shared;
mod tensor;
mod tile;
mod tiles;

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

pub use kv::KvPool;
pub use low_rank::panels;
pub use tensor::Tensor;

use self::{
    pool::Pool,
    tensor::{Recycler, Rows},
};
use super::{
    Activation, AttentionShape, Batch, ColumnScale, Dtype, HostTensor, KernelError, Kernels,
    KvDtype, Norm, Product, RelativeBias, Result, Rope, RowCoefficients, ScaledProduct, Segment,
    Sight,
    check::{self, fits, groups, matrix},
};
use crate::simd::Isa;

/// Kernels on the CPU: one team of threads, one set of recycled buffers.
pub struct CpuKernels {
    isa: Isa,
    pool: Pool,
    buffers: Arc<Recycler>,
    /// cos and sin `[rows, 2, pairs]` of the positions last rotated: the layers of a forward
    /// ask for the same ones.
    angles: Mutex<Angles>,
}

#[derive(Default)]
struct Angles {
    positions: Vec<u32>,
    rope: Option<Rope>,
    cos_sin: Vec<f32>,
}

impl CpuKernels {
    /// Kernels that use `threads` threads, the caller's included (at least 1), and take activations
    /// as they are: products with bf16 weights are in f32.
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::chosen().without_bf16())
    }

    /// Kernels that use a chosen instruction set. One that multiplies in dot products of bf16 rounds
    /// the inputs of products with bf16 weights.
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        Self { isa, pool: Pool::new(threads), buffers: Arc::default(), angles: Mutex::default() }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads at work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// A tensor with the given values, `[rows, values.len() / rows]`.
    pub fn tensor(&self, rows: usize, values: &[f32]) -> Result<Tensor> {
        let width = values.len().checked_div(rows).unwrap_or(0);
        fits("tensor", "number of values", rows * width, values.len())?;
        let mut tensor = self.buffers.stale(rows, width);
        tensor.data_mut().copy_from_slice(values);
        Ok(tensor)
    }
}

impl CpuKernels {
    /// A `[width]` weight as f32, `[1, width]`.
    fn vector(&self, w: &HostTensor) -> Tensor {
        let mut vector = self.buffers.stale(1, w.len());
        elementwise::widen(w, 0, vector.data_mut());
        vector
    }

    /// Where a product goes: its shapes are checked.
    fn output(&self, x: &Tensor, w: &HostTensor, onto: Option<Tensor>) -> Result<Tensor> {
        let (outputs, inputs) = matrix("linear", w.shape())?;
        fits("linear", "width of the input", inputs, x.width())?;
        let fresh = onto.is_none();
        let mut y = onto.unwrap_or_else(|| self.buffers.stale(x.rows(), outputs));
        fits("linear", "width of the output", outputs, y.width())?;
        fits("linear", "rows of the output", x.rows(), y.rows())?;
        if fresh && inputs == 0 {
            y.data_mut().fill(0.0);
        }
        Ok(y)
    }

    /// `y ← x Wᵀ`, or `y ← y + x Wᵀ` where it is to `keep`: `x` `[rows, in]`, `w` `[out, in]`, `y`
    /// `[rows, out]`, row-major.
    pub fn linear(&self, x: &[f32], w: &HostTensor, y: &mut [f32], keep: bool) -> Result<()> {
        let (outputs, width) = matrix("linear", w.shape())?;
        let rows = x.len().checked_div(width).unwrap_or(0);
        fits("linear", "values of the input", rows * width, x.len())?;
        fits("linear", "values of the output", rows * outputs, y.len())?;
        let x = Rows { data: x, rows, width };
        self.multiply(&mut [gemm::LinearJob { x, w, y, outputs, fresh: !keep }]);
        Ok(())
    }

    /// Does independent products in one parallel region.
    fn multiply(&self, jobs: &mut [gemm::LinearJob<'_>]) {
        let quantised =
            quantised::QuantisedProducts::new(self.isa, &self.pool, &self.buffers, jobs);
        let narrow = bf16::NarrowProducts::new(self.isa, &self.pool, &self.buffers, jobs);
        let plain = gemm::DenseProducts::new(self.isa, &self.pool, &self.buffers, jobs);
        self.pool.run(quantised.tasks + narrow.tasks + plain.tasks, |task| {
            let Some(task) = task.checked_sub(quantised.tasks) else { return quantised.run(task) };
            let Some(task) = task.checked_sub(narrow.tasks) else { return narrow.run(task) };
            plain.run(task)
        });
    }
}

impl Default for CpuKernels {
    /// As many threads as [`default_threads`] says.
    fn default() -> Self {
        Self::new(default_threads())
    }
}

/// One thread per core that this process may use.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Kernels for CpuKernels {
    type Tensor = Tensor;
    type Weight = HostTensor;
    type Cache = KvPool;

    fn weight(&self, tensor: &HostTensor) -> Result<HostTensor> {
        Ok(tensor.clone())
    }

    fn embed(&self, table: &HostTensor, tokens: &[u32]) -> Result<Tensor> {
        let (vocab, width) = matrix("embed", table.shape())?;
        let mut out = self.buffers.stale(tokens.len(), width);
        for (row, &token) in out.data_mut().chunks_exact_mut(width.max(1)).zip(tokens) {
            let token = token as usize;
            if token >= vocab {
                let what = "token id (at most)";
                return Err(KernelError::Shape {
                    op: "embed",
                    what,
                    expected: vocab - 1,
                    got: token,
                });
            }
            elementwise::widen(table, token * width, row);
        }
        Ok(out)
    }

    fn products(&self, products: Vec<Product<'_, Self>>) -> Result<Vec<Tensor>> {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::with_capacity(products.len()));
        for Product { x, weight, onto } in products {
            inputs.push((Rows::from(x), weight, onto.is_none()));
            outputs.push(self.output(x, weight, onto)?);
        }
        let jobs = inputs.into_iter().zip(&mut outputs).map(|((x, w, fresh), y)| {
            let outputs = y.width();
            gemm::LinearJob { x, w, y: y.data_mut(), outputs, fresh }
        });
        self.multiply(&mut jobs.collect::<Vec<_>>());
        Ok(outputs)
    }

    fn scaled_products(
        &self,
        products: Vec<ScaledProduct<'_, Self>>,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Vec<Tensor>> {
        let op = "scaled_products";
        let mut jobs = Vec::with_capacity(products.len());
        for ScaledProduct { x, scales, weight: b, onto: y } in products {
            let &[panels, ranks, width] = b.shape() else {
                let (what, got) = ("rank of the B factors, in panels", b.shape().len());
                return Err(KernelError::Shape { op, what, expected: 3, got });
            };
            fits(op, "width of the input", ranks, x.width())?;
            fits(op, "outputs of a panel", low_rank::PANEL, width)?;
            fits(op, "number of panels", y.width().div_ceil(width), panels)?;
            fits(op, "rows of the output", x.rows(), y.rows())?;
            let x = self.scale_columns(x, scales, coefficients)?;
            jobs.push(low_rank::LowRankJob { x, b, y });
        }
        low_rank::multiply(self.isa, &self.pool, &self.buffers, &mut jobs);
        Ok(jobs.into_iter().map(|job| job.y).collect())
    }

    fn bias_add(&self, mut y: Tensor, bias: &HostTensor) -> Result<Tensor> {
        fits("bias_add", "length of the bias", y.width(), bias.len())?;
        let bias = self.vector(bias);
        for row in y.data_mut().chunks_exact_mut(bias.width().max(1)) {
            row.iter_mut().zip(bias.data()).for_each(|(y, b)| *y += b);
        }
        Ok(y)
    }

    fn broadcast(&self, w: &HostTensor, rows: usize) -> Result<Tensor> {
        let mut out = self.buffers.stale(rows, w.len());
        for row in out.data_mut().chunks_exact_mut(w.len().max(1)) {
            elementwise::widen(w, 0, row);
        }
        Ok(out)
    }

    fn scale_rows(&self, mut x: Tensor, scale: &[f32]) -> Result<Tensor> {
        fits("scale_rows", "number of scales", x.rows(), scale.len())?;
        let all = (0..x.width(), scale.to_vec());
        elementwise::by_rows(self.isa, &self.pool, &mut x, &elementwise::ScaleColumns(vec![all]));
        Ok(x)
    }

    fn scale_columns(
        &self,
        mut x: Tensor,
        scales: &[ColumnScale],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Tensor> {
        let op = "scale_columns";
        let (rows, width) = (x.rows(), x.width());
        let mut parts = Vec::with_capacity(scales.len());
        for ColumnScale { columns, term, factor } in scales {
            check::columns(op, width, columns)?;
            let mut scale = match term {
                None => vec![1.0; rows],
                Some(term) => coefficient_column(op, coefficients, *term, rows)?,
            };
            scale.iter_mut().for_each(|scale| *scale *= factor);
            parts.push((columns.clone(), scale));
        }
        elementwise::by_rows(self.isa, &self.pool, &mut x, &elementwise::ScaleColumns(parts));
        Ok(x)
    }

    fn add(&self, mut a: Tensor, b: &Tensor) -> Result<Tensor> {
        fits("add", "width of the right side", a.width(), b.width())?;
        fits("add", "rows of the right side", a.rows(), b.rows())?;
        elementwise::by_rows(self.isa, &self.pool, &mut a, &elementwise::Add(b));
        Ok(a)
    }

    fn rms_norm(&self, x: &Tensor, gain: &HostTensor, norm: Norm) -> Result<Tensor> {
        groups("rms_norm", x.width(), gain.len())?;
        let gain = &self.vector(gain);
        let mut out = x.stale_like();
        let work = elementwise::RmsNorm { x, gain, per_row: false, norm };
        elementwise::by_rows(self.isa, &self.pool, &mut out, &work);
        Ok(out)
    }

    fn rms_norm_rows(&self, x: &Tensor, gain: &Tensor, norm: Norm) -> Result<Tensor> {
        groups("rms_norm", x.width(), gain.width())?;
        fits("rms_norm", "rows of the gain", x.rows(), gain.rows())?;
        let mut out = x.stale_like();
        let work = elementwise::RmsNorm { x, gain, per_row: true, norm };
        elementwise::by_rows(self.isa, &self.pool, &mut out, &work);
        Ok(out)
    }

    fn rope(&self, mut x: Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
        check::rope(x.rows(), x.width(), positions, rope)?;
        let mut angles = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        angles.update(positions, rope);
        let (angles, half) = (&angles.cos_sin, rope.inv_freq.len());
        let (width, head_dim) = (x.width(), rope.head_dim);
        let work = elementwise::Rotate { angles, half, width, head_dim };
        elementwise::by_rows(self.isa, &self.pool, &mut x, &work);
        Ok(x)
    }

    fn attention(
        &self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: usize,
        shape: AttentionShape,
        batch: &Batch,
        cache: &mut KvPool,
    ) -> Result<Tensor> {
        let sizes = [&q, &k, &v].map(|t| (t.rows(), t.width()));
        check::attention(sizes, layer, shape, batch, cache.shape())?;
        self.store(&k, &v, layer, &batch.segments, cache)?;
        self.attend(&q, layer, shape, &batch.segments, Sight::Causal, None, cache)
    }

    fn store(
        &self,
        k: &Tensor,
        v: &Tensor,
        layer: usize,
        segments: &[Segment],
        cache: &mut KvPool,
    ) -> Result<()> {
        let sizes = [k, v].map(|t| (t.rows(), t.width()));
        check::stored(sizes, layer, segments, cache.shape())?;
        match cache.shape().dtype {
            KvDtype::Plain(Dtype::Bf16) => {
                cache.layer::<half::bf16>(layer).store(self.isa, &self.pool, [k, v], segments);
            }
            KvDtype::Plain(_) => {
                cache.layer::<f32>(layer).store(self.isa, &self.pool, [k, v], segments);
            }
            KvDtype::Int8 => {
                cache.layer::<i8>(layer).store(self.isa, &self.pool, [k, v], segments);
            }
        }
        Ok(())
    }

    fn attend(
        &self,
        q: &Tensor,
        layer: usize,
        shape: AttentionShape,
        segments: &[Segment],
        sight: Sight,
        bias: Option<RelativeBias<'_, Tensor>>,
        cache: &mut KvPool,
    ) -> Result<Tensor> {
        check::attended((q.rows(), q.width()), layer, shape, (segments, sight), cache.shape())?;
        if let Some(RelativeBias { table, buckets }) = &bias {
            check::biases(q.rows(), shape.heads, (table.rows(), table.width()), buckets)?;
        }
        let rows = attention::Rows { q, shape, segments, sight, bias };
        let mut out = q.stale_like();
        match cache.shape().dtype {
            KvDtype::Plain(Dtype::Bf16) => {
                let layer = cache.layer::<half::bf16>(layer);
                attention::attend(self.isa, &self.pool, &rows, &layer, &mut out);
            }
            KvDtype::Plain(_) => {
                let layer = cache.layer::<f32>(layer);
                attention::attend(self.isa, &self.pool, &rows, &layer, &mut out);
            }
            KvDtype::Int8 => {
                let layer = cache.layer::<i8>(layer);
                attention::attend(self.isa, &self.pool, &rows, &layer, &mut out);
            }
        }
        Ok(out)
    }

    fn relu(&self, mut x: Tensor) -> Result<Tensor> {
        x.data_mut().iter_mut().for_each(|x| *x = x.max(0.0));
        Ok(x)
    }

    fn gated(&self, activation: Activation, mut gate: Tensor, up: &Tensor) -> Result<Tensor> {
        fits("gated", "width of up", gate.width(), up.width())?;
        fits("gated", "rows of up", gate.rows(), up.rows())?;
        let work = elementwise::Gated(activation, up);
        elementwise::by_rows(self.isa, &self.pool, &mut gate, &work);
        Ok(gate)
    }

    fn select_rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let mut out = self.buffers.stale(rows.len(), x.width());
        for (out, &row) in out.data_mut().chunks_exact_mut(x.width().max(1)).zip(rows) {
            out.copy_from_slice(x.row(row).ok_or(KernelError::Shape {
                op: "select_rows",
                what: "row (below)",
                expected: x.rows(),
                got: row,
            })?);
        }
        Ok(out)
    }

    fn select_columns(&self, x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
        check::columns("select_columns", x.width(), &columns)?;
        let mut out = self.buffers.stale(x.rows(), columns.len());
        let work = elementwise::SelectColumns(x, columns);
        elementwise::by_rows(self.isa, &self.pool, &mut out, &work);
        Ok(out)
    }

    fn add_to_rows(&self, mut x: Tensor, rows: &[usize], y: &Tensor) -> Result<Tensor> {
        check::added_rows((x.rows(), x.width()), rows, (y.rows(), y.width()))?;
        let width = x.width();
        let data = x.data_mut();
        for (&row, y) in rows.iter().zip(y.data().chunks_exact(width.max(1))) {
            let x = &mut data[row * width..(row + 1) * width];
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
        Ok(x)
    }

    fn to_host(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data().to_vec())
    }

    fn soft_cap(&self, mut x: Tensor, cap: f32) -> Result<Tensor> {
        elementwise::by_rows(self.isa, &self.pool, &mut x, &elementwise::SoftCap(cap));
        Ok(x)
    }
}

impl Angles {
    fn update(&mut self, positions: &[u32], rope: &Rope) {
        if self.positions == positions && self.rope.as_ref() == Some(rope) {
            return;
        }
        self.cos_sin.clear();
        for &position in positions {
            let angle = |frequency: &f32| position as f32 * frequency;
            self.cos_sin.extend(rope.inv_freq.iter().map(|f| angle(f).cos() * rope.scale));
            self.cos_sin.extend(rope.inv_freq.iter().map(|f| angle(f).sin() * rope.scale));
        }
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.rope = Some(rope.clone());
    }
}

/// The coefficients of `term`, one per row.
fn coefficient_column(
    op: &'static str,
    coefficients: Option<&RowCoefficients>,
    term: usize,
    rows: usize,
) -> Result<Vec<f32>> {
    let terms = coefficients.map_or(0, |c| c.terms);
    let Some(coefficients) = coefficients.filter(|_| term < terms) else {
        let what = "number of coefficients per row (at least)";
        return Err(KernelError::Shape { op, what, expected: term + 1, got: terms });
    };
    fits(op, "number of coefficients", rows * terms, coefficients.values.len())?;
    Ok(coefficients.column(term))
}
