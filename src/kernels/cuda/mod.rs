//! Kernels on a GPU: weights as stored (bf16, f16, f32), f32 activations and sums, products of
//! 16-bit weights on tensor cores with their input rounded to the weights' type.
//!
//! The kernels are the `.cu` files beside this one, compiled at run time; nothing of CUDA is needed
//! to build. Everything is written over [`device::Device`]: [`Gpu`] computes on a GPU, and
//! the tests run the same kernels and launches on a host emulation.

mod attention;
pub mod device;
pub mod driver;
pub mod image;
mod library;
pub mod memory;
mod products;
mod source;
mod tensor;

use std::{ops::Range, sync::Arc};

pub use device::{Device, DeviceError, Shape, Urgency};
pub use driver::Gpu;
pub use library::LIBRARY_PATH;
pub use source::{KERNELS, SOURCE};
pub use tensor::{KvCache, Tensor, Weight};

use self::{
    device::{count, launch},
    memory::{Memory, bytes_of, bytes_of_mut},
};
use super::{
    Activation, AttentionShape, Batch, ColumnScale, Dtype, HostTensor, KernelError, Kernels, Norm,
    Product, Result, Rope, RowCoefficients, ScaledProduct,
    check::{self, fits, matrix},
};

/// Kernels of one stream of a device.
pub struct CudaKernels<D: Device> {
    device: Arc<D>,
    stream: Arc<D::Stream>,
    memory: Memory<D>,
    /// What products read: the type of 16-bit weights.
    small: Option<Dtype>,
}

impl<D: Device> CudaKernels<D> {
    /// Kernels for a model whose weights are of `dtype`.
    pub fn new(device: Arc<D>, dtype: Dtype) -> Result<Self> {
        plain("kernels", dtype)?;
        let stream = Arc::new(device.stream(Urgency::Decode)?);
        let memory = Memory::new(device.clone(), stream.clone());
        let small = (dtype != Dtype::F32).then_some(dtype);
        Ok(Self { device, stream, memory, small })
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Activation memory.
    pub fn memory(&self) -> &Memory<D> {
        &self.memory
    }

    /// Waits until all work is done.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.device.synchronize(&self.stream)?)
    }

    /// A tensor with the given values, `[rows, values.len() / rows]`.
    pub fn tensor(&self, rows: usize, values: &[f32]) -> Result<Tensor<D>> {
        let width = values.len().checked_div(rows).unwrap_or(0);
        fits("tensor", "number of values", rows * width, values.len())?;
        let tensor = Tensor::new(&self.memory, rows, width)?;
        // SAFETY: the tensor holds that many values.
        unsafe { self.device.upload(&self.stream, tensor.address(), bytes_of(values))? };
        Ok(tensor)
    }

    /// All values of a tensor, after the work so far.
    pub fn values(&self, tensor: &Tensor<D>) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; tensor.rows * tensor.width];
        let bytes = bytes_of_mut(&mut values);
        // SAFETY: the tensor holds that many values.
        unsafe { self.device.download(&self.stream, tensor.address(), bytes)? };
        Ok(values)
    }

    /// Device code of [`Self::small`].
    fn small_code(&self) -> i32 {
        self.small.map_or(0, code)
    }

    /// A tensor to write into, with a rounded copy where products of this model want one.
    fn for_products(&self, rows: usize, width: usize) -> Result<Tensor<D>> {
        let mut out = Tensor::new(&self.memory, rows, width)?;
        if self.small.is_some() {
            out.small = Some(Arc::new(self.memory.take(rows * width * 2)?));
        }
        Ok(out)
    }

    /// Where the result of changing `x` goes: `x`'s own memory when nobody else refers to it.
    fn writable(&self, x: &mut Tensor<D>) -> Result<(u64, u64)> {
        let from = x.address();
        x.small = None;
        if Arc::get_mut(&mut x.data).is_none() {
            *x = Tensor::new(&self.memory, x.rows, x.width)?;
        }
        Ok((from, x.address()))
    }
}

/// Number of a dtype in the kernels, which have none for quantised weights.
pub(crate) fn code(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
        Dtype::Quantised(_) => unreachable!("refused by `weight` and `new`"),
    }
}

/// Refuses quantised weights.
fn plain(op: &'static str, dtype: Dtype) -> Result<()> {
    match dtype.blocks() {
        None => Ok(()),
        Some(_) => Err(KernelError::Dtype { op, dtype: dtype.to_string() }),
    }
}

/// Threads for a row of `width` values.
fn row_threads(width: usize) -> u32 {
    (count(width).div_ceil(32) * 32).clamp(32, 256)
}

/// Blocks of 256 threads for `n` values, each thread a few.
fn flat(n: u64) -> Shape {
    Shape::of(n.div_ceil(1024).clamp(1, 1 << 16) as usize, 256)
}

fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

impl<D: Device> Kernels for CudaKernels<D> {
    type Tensor = Tensor<D>;
    type Weight = Weight;
    type Cache = KvCache<D>;

    fn weight(&self, tensor: &HostTensor) -> Result<Weight> {
        plain("weight", tensor.dtype())?;
        let buffer = self.device.allocate(tensor.bytes().len().max(16))?;
        let address = self.device.address(&buffer);
        // SAFETY: the buffer is new and as long as the tensor.
        unsafe { self.device.upload(&self.stream, address, tensor.bytes())? };
        Ok(Weight::new(address, tensor.dtype(), tensor.shape().to_vec(), Arc::new(Kept(buffer))))
    }

    fn embed(&self, table: &Weight, tokens: &[u32]) -> Result<Tensor<D>> {
        let (vocab, width) = matrix("embed", table.shape())?;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            let (what, got) = ("token id (at most)", token as usize);
            return Err(KernelError::Shape { op: "embed", what, expected: vocab - 1, got });
        }
        let out = Tensor::new(&self.memory, tokens.len(), width)?;
        let ids = self.memory.constant(bytes_of(tokens))?;
        let shape = Shape::of(tokens.len(), row_threads(width));
        // SAFETY: a block a token; ids were checked against the table.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "embed",
                shape,
                out.address(),
                table.address(),
                code(table.dtype()),
                ids.address(),
                int(width),
            )?;
        }
        Ok(out)
    }

    fn products(&self, products: Vec<Product<'_, Self>>) -> Result<Vec<Tensor<D>>> {
        self.dense_products(products)
    }

    fn scaled_products(
        &self,
        products: Vec<ScaledProduct<'_, Self>>,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Vec<Tensor<D>>> {
        self.low_rank_products(products, coefficients)
    }

    fn bias_add(&self, mut y: Tensor<D>, bias: &Weight) -> Result<Tensor<D>> {
        fits("bias_add", "length of the bias", y.width, bias.elements())?;
        let (from, to) = self.writable(&mut y)?;
        let shape = Shape::of(y.rows, row_threads(y.width));
        // SAFETY: a block a row of the width that both have.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "bias_add",
                shape,
                to,
                from,
                bias.address(),
                code(bias.dtype()),
                int(y.width),
            )?;
        }
        Ok(y)
    }

    fn broadcast(&self, w: &Weight, rows: usize) -> Result<Tensor<D>> {
        let out = Tensor::new(&self.memory, rows, w.elements())?;
        let shape = Shape::of(rows, row_threads(out.width));
        // SAFETY: a block a row as wide as the weight is long.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "broadcast",
                shape,
                out.address(),
                w.address(),
                code(w.dtype()),
                int(out.width),
            )?;
        }
        Ok(out)
    }

    fn scale_rows(&self, x: Tensor<D>, scale: &[f32]) -> Result<Tensor<D>> {
        fits("scale_rows", "number of scales", x.rows, scale.len())?;
        let out = self.for_products(x.rows, x.width)?;
        let scale = self.memory.constant(bytes_of(scale))?;
        let shape = Shape::of(x.rows, row_threads(x.width));
        // SAFETY: a block a row, and a scale for each.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "scale_rows",
                shape,
                out.address(),
                x.address(),
                scale.address(),
                1i32,
                int(x.width),
                out.small_address(),
                self.small_code(),
            )?;
        }
        Ok(out)
    }

    fn scale_columns(
        &self,
        mut x: Tensor<D>,
        scales: &[ColumnScale],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Tensor<D>> {
        let columns = self.columns("scale_columns", &x, scales, coefficients)?;
        let (from, to) = self.writable(&mut x)?;
        let shape = Shape::of(x.rows, row_threads(x.width));
        // SAFETY: a block a row; the tables have an entry per column, terms were checked.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "scale_columns",
                shape,
                to,
                from,
                columns.factor.address(),
                columns.term.address(),
                columns.values_address(),
                int(columns.terms),
                int(x.width),
            )?;
        }
        Ok(x)
    }

    fn add(&self, mut a: Tensor<D>, b: &Tensor<D>) -> Result<Tensor<D>> {
        fits("add", "width of the right side", a.width, b.width)?;
        fits("add", "rows of the right side", a.rows, b.rows)?;
        let (from, to) = self.writable(&mut a)?;
        let n = a.len();
        // SAFETY: all three have n values.
        unsafe { launch!(self.device, &self.stream, "add", flat(n), to, from, b.address(), n)? };
        Ok(a)
    }

    fn rms_norm(&self, x: &Tensor<D>, gain: &Weight, norm: Norm) -> Result<Tensor<D>> {
        let group = gain.elements();
        self.norm(x, (gain.address(), code(gain.dtype()), 0), group, norm)
    }

    fn rms_norm_rows(&self, x: &Tensor<D>, gain: &Tensor<D>, norm: Norm) -> Result<Tensor<D>> {
        fits("rms_norm", "rows of the gain", x.rows, gain.rows)?;
        self.norm(x, (gain.address(), code(Dtype::F32), int(gain.width)), gain.width, norm)
    }

    fn rope(&self, mut x: Tensor<D>, positions: &[u32], rope: &Rope) -> Result<Tensor<D>> {
        check::rope(x.rows, x.width, positions, rope)?;
        let half = rope.inv_freq.len();
        let positions = self.memory.constant(bytes_of(positions))?;
        let inv_freq = self.memory.constant(bytes_of(&rope.inv_freq))?;
        let (from, to) = self.writable(&mut x)?;
        let shape = Shape::of(x.rows, row_threads(half));
        // SAFETY: a block a row of whole heads, and a position for each.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "rope",
                shape,
                to,
                from,
                positions.address(),
                inv_freq.address(),
                rope.scale,
                int(half),
                int(x.width / rope.head_dim),
                int(rope.head_dim),
            )?;
        }
        Ok(x)
    }

    fn attention(
        &self,
        q: Tensor<D>,
        k: Tensor<D>,
        v: Tensor<D>,
        layer: usize,
        shape: AttentionShape,
        batch: &Batch,
        cache: &mut KvCache<D>,
    ) -> Result<Tensor<D>> {
        let sizes = [&q, &k, &v].map(|t| (t.rows, t.width));
        check::attention(sizes, layer, shape, batch, cache.shape)?;
        self.attend(&q, &k, &v, layer, shape, batch, cache)
    }

    fn gated(&self, activation: Activation, gate: Tensor<D>, up: &Tensor<D>) -> Result<Tensor<D>> {
        fits("gated", "width of up", gate.width, up.width)?;
        fits("gated", "rows of up", gate.rows, up.rows)?;
        let (a, b) = activation.polynomial();
        let out = self.for_products(gate.rows, gate.width)?;
        let n = gate.len();
        // SAFETY: all have n values.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "gated",
                flat(n),
                out.address(),
                gate.address(),
                up.address(),
                a,
                b,
                n,
                out.small_address(),
                self.small_code(),
            )?;
        }
        Ok(out)
    }

    fn select_rows(&self, x: &Tensor<D>, rows: &[usize]) -> Result<Tensor<D>> {
        let mut indices = Vec::with_capacity(rows.len());
        for &row in rows {
            let index = u32::try_from(row).ok().filter(|_| row < x.rows);
            let (op, what) = ("select_rows", "row (below)");
            let bad = KernelError::Shape { op, what, expected: x.rows, got: row };
            indices.push(index.ok_or(bad)?);
        }
        let out = Tensor::new(&self.memory, rows.len(), x.width)?;
        if rows.is_empty() {
            return Ok(out);
        }
        let indices = self.memory.constant(bytes_of(&indices))?;
        let shape = Shape::of(rows.len(), row_threads(x.width));
        // SAFETY: a block an index, each checked against x.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "select_rows",
                shape,
                out.address(),
                x.address(),
                indices.address(),
                int(x.width),
            )?;
        }
        Ok(out)
    }

    fn select_columns(&self, x: &Tensor<D>, columns: Range<usize>) -> Result<Tensor<D>> {
        check::columns("select_columns", x.width, &columns)?;
        let out = Tensor::new(&self.memory, x.rows, columns.len())?;
        let shape = Shape::of(x.rows, row_threads(out.width));
        // SAFETY: a block a row; the columns were checked against x.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "select_columns",
                shape,
                out.address(),
                x.address(),
                int(columns.start),
                int(columns.len()),
                int(x.width),
            )?;
        }
        Ok(out)
    }

    fn add_to_rows(&self, mut x: Tensor<D>, rows: &[usize], y: &Tensor<D>) -> Result<Tensor<D>> {
        let places = check::added_rows((x.rows, x.width), rows, (y.rows, y.width))?;
        let places: Vec<i32> = places.into_iter().map(|place| place.map_or(-1, int)).collect();
        let places = self.memory.constant(bytes_of(&places))?;
        let (from, to) = self.writable(&mut x)?;
        let shape = Shape::of(x.rows, row_threads(x.width));
        // SAFETY: a block a row, with its place among the rows of y or none.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "add_to_rows",
                shape,
                to,
                from,
                y.address(),
                places.address(),
                int(x.width),
            )?;
        }
        Ok(x)
    }

    fn to_host(&self, x: &Tensor<D>) -> Result<Vec<f32>> {
        self.values(x)
    }

    fn soft_cap(&self, mut x: Tensor<D>, cap: f32) -> Result<Tensor<D>> {
        let (from, to) = self.writable(&mut x)?;
        let n = x.len();
        // SAFETY: both have n values.
        unsafe { launch!(self.device, &self.stream, "soft_cap", flat(n), to, from, cap, n)? };
        Ok(x)
    }
}

impl<D: Device> CudaKernels<D> {
    /// `gain`: address, dtype and distance between the gains of rows.
    fn norm(
        &self,
        x: &Tensor<D>,
        gain: (u64, i32, i32),
        group: usize,
        norm: Norm,
    ) -> Result<Tensor<D>> {
        let group = group.max(1);
        fits("rms_norm", "rest of the width over the gain's length", 0, x.width % group)?;
        let out = self.for_products(x.rows, x.width)?;
        let per_row = x.width / group;
        if x.rows == 0 {
            return Ok(out);
        }
        let shape = Shape::of(x.rows * per_row, row_threads(group.div_ceil(4)));
        // SAFETY: a block a group; gains are as long as a group.
        unsafe {
            launch!(
                self.device,
                &self.stream,
                "rms_norm",
                shape,
                out.address(),
                x.address(),
                gain.0,
                gain.1,
                gain.2,
                int(group),
                int(per_row),
                norm.eps,
                norm.shift,
                out.small_address(),
                self.small_code(),
            )?;
        }
        Ok(out)
    }
}

/// Keeps a buffer behind `dyn Any`.
pub(crate) struct Kept<B>(#[allow(dead_code)] pub B);
