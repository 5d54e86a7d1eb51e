//! Products of activations with groups of weights, one launch a group.

use std::sync::Arc;

use super::{
    CudaKernels, code,
    device::{Device, Shape, count, launch},
    int,
    memory::{Recycled, bytes_of},
    tensor::{Tensor, Weight},
};
use crate::kernels::{
    ColumnScale, Dtype, KernelError, Product, Result, RowCoefficients, ScaledProduct,
    check::{fits, matrix},
};

/// Products of a launch; as in products.cu.
const MOST: usize = 8;
/// Rows from which on tiles of many rows are faster: below, the weights' bytes are what counts.
const MANY_ROWS: usize = 256;
/// Rows of a low-rank step from which on it is cheaper to scale first.
const SCALE_FIRST: usize = 64;

/// `Product` of products.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Item {
    x: u64,
    w: u64,
    onto: u64,
    y: u64,
    factor: u64,
    term: u64,
    inputs: i32,
    outputs: i32,
    first: i32,
    padding: i32,
}

/// `Products` of products.cu.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Group {
    items: [Item; MOST],
    c: u64,
    count: i32,
    rows: i32,
    terms: i32,
    padding: i32,
}

/// Per-column scales on the device.
pub(super) struct Columns<D: Device> {
    pub factor: Arc<Recycled<D>>,
    pub term: Arc<Recycled<D>>,
    pub values: Option<Arc<Recycled<D>>>,
    pub terms: usize,
}

impl<D: Device> Columns<D> {
    /// Address of the coefficients; 0 where no column has any.
    pub fn values_address(&self) -> u64 {
        self.values.as_ref().map_or(0, |values| values.address())
    }
}

/// A product with its shapes checked and its output at hand.
struct Job<'a, D: Device> {
    item: Item,
    weight: &'a Weight,
    out: Tensor<D>,
    /// What the launch reads beside weights; kept until it is queued.
    reads: Vec<Arc<Recycled<D>>>,
}

impl<D: Device> CudaKernels<D> {
    /// The only one of `results`.
    pub(super) fn dense_products(
        &self,
        products: Vec<Product<'_, Self>>,
    ) -> Result<Vec<Tensor<D>>> {
        let mut rounded: Vec<(u64, Dtype, Arc<Recycled<D>>)> = Vec::new();
        let mut jobs = Vec::with_capacity(products.len());
        for Product { x, weight, onto } in products {
            let mut job = self.job(x, weight, onto)?;
            job.item.x = x.address();
            job.reads.push(x.data.clone());
            if weight.dtype() != Dtype::F32 {
                let known = rounded
                    .iter()
                    .find(|(of, dtype, _)| *of == x.address() && *dtype == weight.dtype());
                let small = match known {
                    Some((.., small)) => small.clone(),
                    None => self.small(x, weight.dtype())?,
                };
                job.item.x = small.address();
                rounded.push((x.address(), weight.dtype(), small.clone()));
                job.reads.push(small);
            }
            jobs.push(job);
        }
        self.run(jobs, None)
    }

    pub(super) fn low_rank_products(
        &self,
        products: Vec<ScaledProduct<'_, Self>>,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Vec<Tensor<D>>> {
        if products.iter().any(|product| product.x.rows > SCALE_FIRST) {
            return ScaledProduct::one_by_one(self, products, coefficients);
        }
        let mut jobs = Vec::with_capacity(products.len());
        let mut values = None;
        for ScaledProduct { x, scales, weight, onto } in products {
            let mut job = self.job(&x, weight, Some(onto))?;
            let columns = self.columns("scaled_products", &x, scales, coefficients)?;
            job.item.x = x.address();
            job.item.factor = columns.factor.address();
            job.item.term = columns.term.address();
            values = values.or(columns.values);
            job.reads.extend([x.data, columns.factor, columns.term]);
            jobs.push(job);
        }
        let terms = coefficients.map_or(0, |c| c.terms);
        self.run(jobs, Some((values, terms)))
    }

    /// The tables of a [`crate::kernels::Kernels::scale_columns`], checked.
    pub(super) fn columns(
        &self,
        op: &'static str,
        x: &Tensor<D>,
        scales: &[ColumnScale],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Columns<D>> {
        let terms = coefficients.map_or(0, |c| c.terms);
        let (mut factors, mut of_column) = (vec![1.0f32; x.width], vec![-1i32; x.width]);
        for ColumnScale { columns, term, factor } in scales {
            if columns.start > columns.end || columns.end > x.width {
                let (what, got) = ("end of a column range (at most)", columns.end);
                return Err(KernelError::Shape { op, what, expected: x.width, got });
            }
            factors[columns.clone()].fill(*factor);
            if let Some(term) = *term {
                if term >= terms {
                    let what = "number of coefficients per row (at least)";
                    return Err(KernelError::Shape { op, what, expected: term + 1, got: terms });
                }
                of_column[columns.clone()].fill(int(term));
            }
        }
        let values = match coefficients {
            None => None,
            Some(c) => {
                fits(op, "number of coefficients", x.rows * terms, c.values.len())?;
                Some(self.memory.constant(bytes_of(&c.values))?)
            }
        };
        Ok(Columns {
            factor: self.memory.constant(bytes_of(&factors))?,
            term: self.memory.constant(bytes_of(&of_column))?,
            values,
            terms,
        })
    }

    fn job<'a>(
        &self,
        x: &Tensor<D>,
        weight: &'a Weight,
        onto: Option<Tensor<D>>,
    ) -> Result<Job<'a, D>> {
        let (outputs, inputs) = matrix("linear", weight.shape())?;
        fits("linear", "width of the input", inputs, x.width)?;
        let mut item = Item {
            w: weight.address(),
            inputs: int(inputs),
            outputs: int(outputs),
            ..Item::default()
        };
        let mut reads = Vec::new();
        let out = match onto {
            None => Tensor::new(&self.memory, x.rows, outputs)?,
            Some(mut y) => {
                fits("linear", "width of the output", outputs, y.width)?;
                fits("linear", "rows of the output", x.rows, y.rows)?;
                if Arc::get_mut(&mut y.data).is_none() {
                    reads.push(y.data.clone());
                }
                (item.onto, _) = self.writable(&mut y)?;
                y
            }
        };
        item.y = out.address();
        Ok(Job { item, weight, out, reads })
    }

    /// `x` rounded to `dtype`.
    fn small(&self, x: &Tensor<D>, dtype: Dtype) -> Result<Arc<Recycled<D>>> {
        if let (Some(small), true) = (&x.small, self.small == Some(dtype)) {
            return Ok(small.clone());
        }
        let n = x.len();
        let small = Arc::new(self.memory.take(x.rows * x.width * dtype.size())?);
        // SAFETY: both hold n values.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "narrow_to",
                super::flat(n),
                small.address(),
                code(dtype),
                x.address(),
                n,
            )?;
        }
        Ok(small)
    }

    /// Runs the jobs in groups of one weight type and number of rows; results in order.
    /// `scaled`: the per-row coefficients and their number, for the low-rank step.
    fn run(
        &self,
        jobs: Vec<Job<'_, D>>,
        scaled: Option<(Option<Arc<Recycled<D>>>, usize)>,
    ) -> Result<Vec<Tensor<D>>> {
        let alike = |a: &Job<'_, D>, b: &Job<'_, D>| {
            a.weight.dtype() == b.weight.dtype() && a.out.rows == b.out.rows
        };
        for group in jobs.chunk_by(alike).flat_map(|group| group.chunks(MOST)) {
            let (rows, dtype) = (group[0].out.rows, group[0].weight.dtype());
            if rows == 0 {
                continue;
            }
            let whole = group.iter().all(|job| job.item.inputs % 8 == 0);
            let plan = Plan::of(dtype, rows, whole, scaled.is_some());
            let mut arguments =
                Group { rows: int(rows), count: int(group.len()), ..Group::default() };
            if let Some((values, terms)) = &scaled {
                arguments.c = values.as_ref().map_or(0, |values| values.address());
                arguments.terms = int(*terms);
            }
            let mut blocks = 0;
            for (item, job) in arguments.items.iter_mut().zip(group) {
                *item = Item { first: int(blocks), ..job.item };
                blocks += (job.item.outputs as usize).div_ceil(plan.outputs);
            }
            let grid = [count(rows.div_ceil(plan.rows)), count(blocks), 1];
            let shape = Shape { grid, block: 256, shared: 0 };
            // SAFETY: items were made of tensors whose shapes fit; the grid covers every output.
            unsafe { launch!(self.device, &self.stream, plan.kernel, shape, arguments)? };
        }
        Ok(jobs.into_iter().map(|job| job.out).collect())
    }
}

/// Which kernel, and the tile of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    kernel: &'static str,
    rows: usize,
    outputs: usize,
}

impl Plan {
    /// `whole`: all input widths are multiples of 8.
    fn of(dtype: Dtype, rows: usize, whole: bool, scaled: bool) -> Self {
        let few = |names: [&'static str; 3]| {
            let (tiles, kernel) = match rows {
                0..=8 => (1, names[0]),
                9..=32 => (4, names[1]),
                _ => (8, names[2]),
            };
            Self { kernel, rows: 8 * tiles, outputs: 16 }
        };
        let many = |kernel| Self { kernel, rows: 128, outputs: 128 };
        let is_many = rows > MANY_ROWS && whole && !scaled;
        match (dtype, scaled) {
            (Dtype::F32, false) => Self { kernel: "products_f32", rows: 8, outputs: 16 },
            (Dtype::F32, true) => Self { kernel: "scaled_f32", rows: 8, outputs: 16 },
            (Dtype::Bf16, _) if is_many => many("many_rows_bf16"),
            (Dtype::F16, _) if is_many => many("many_rows_f16"),
            (Dtype::Bf16, false) => few(["products_bf16_1", "products_bf16_4", "products_bf16_8"]),
            (Dtype::F16, false) => few(["products_f16_1", "products_f16_4", "products_f16_8"]),
            (Dtype::Bf16, true) => few(["scaled_bf16_1", "scaled_bf16_4", "scaled_bf16_8"]),
            (Dtype::F16, true) => few(["scaled_f16_1", "scaled_f16_4", "scaled_f16_8"]),
            (Dtype::Quantised(_), _) => unreachable!("refused by `weight` and `new`"),
        }
    }
}
