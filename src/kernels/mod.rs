//! The kernel seam: everything a forward pass asks of a device, and nothing more.
//!
//! [`Kernels`] has one implementation per way of computing: [`cpu`] and [`cuda`] serve; the trainer
//! adds two that compute gradients. The decoder is written once over this trait.
//!
//! Shapes: activations are row-major `[rows, width]`, one row per token of a ragged batch; linear
//! weights are `[out, in]` as Hugging Face stores them; gains and biases are `[width]`.

pub mod check;
pub mod cpu;
pub mod cuda;
pub mod host;
pub mod kv;
pub mod quantised;

use std::ops::Range;

pub use host::{Bytes, Dtype, HostTensor, Stored};
pub use kv::{KV_BLOCK, KvDtype, KvShape};
pub use quantised::BlockType;

/// Why a kernel refused or failed, with the operands.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Two operands do not fit each other.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// The operand or dimension.
        what: &'static str,
        /// The size that would have fitted.
        expected: usize,
        /// The size that was given.
        got: usize,
    },
    /// The kernels do not support this storage type.
    #[error("{op}: no kernel for dtype {dtype}")]
    Dtype {
        /// The operation that refused.
        op: &'static str,
        /// The storage type given.
        dtype: String,
    },
    /// The kernels do not compute this at all.
    #[error("{op}: these kernels do not compute it")]
    Unsupported {
        /// The operation asked for.
        op: &'static str,
    },
    /// Memory for a cache could not be reserved.
    #[error("{op}: cannot reserve {bytes} bytes: {source}", bytes = host::shown(*bytes))]
    Memory {
        /// What asked for it.
        op: &'static str,
        /// Bytes; `None` where the number overflows.
        bytes: Option<usize>,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Bytes are not a valid tensor.
    #[error(transparent)]
    Host(#[from] host::HostError),
    /// The GPU refused.
    #[error(transparent)]
    Device(#[from] cuda::DeviceError),
    /// A library that a set of kernels is built on refused.
    #[error(transparent)]
    Library(Box<dyn std::error::Error + Send + Sync>),
}

impl KernelError {
    /// Whether the device was out of memory: a retry may succeed after something is freed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Device(cuda::DeviceError::OutOfMemory { .. }))
    }
}

/// Result of a kernel.
pub type Result<T> = std::result::Result<T, KernelError>;

/// A contiguous run of rows that belong to one sequence, and where its keys and values live.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Rows of the batch, in position order without gaps.
    pub rows: Range<usize>,
    /// Tokens of this sequence already in the cache; row `rows.start` has this position.
    pub cached: usize,
    /// Cache blocks of the sequence, in order; must hold `cached + rows.len()` tokens.
    pub blocks: Vec<u32>,
}

/// One ragged batch: token rows of any number of sequences, prefill and decode mixed.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row within its sequence, from 0.
    pub positions: Vec<u32>,
    /// Sequences, covering all rows in order.
    pub segments: Vec<Segment>,
    /// Rows whose final hidden state (and logits) are wanted, ascending.
    pub outputs: Vec<usize>,
    /// Per-row term coefficients of the mixed mode; `None` when every weight is already merged.
    pub coefficients: Option<RowCoefficients>,
    /// Prompts that an encoder–decoder model encodes before these rows: each segment is one whole
    /// prompt, without outputs.
    pub prompts: Option<Box<Batch>>,
    /// The encoded prompt of each of `segments`: the same rows, and the prompt's tokens and blocks as
    /// `cached` and `blocks`. Empty where the model has no encoder.
    pub encoded: Vec<Segment>,
}

/// Per-row coefficients of a mixed forward: `[rows, terms]`, row-major, f32
/// (`docs/algorithms.md` §2.2).
#[derive(Debug, Clone)]
pub struct RowCoefficients {
    /// Number of terms per row.
    pub terms: usize,
    /// `rows × terms` values.
    pub values: Vec<f32>,
}

impl RowCoefficients {
    /// Coefficient of `term` for every row.
    pub fn column(&self, term: usize) -> Vec<f32> {
        self.values.iter().skip(term).step_by(self.terms).copied().collect()
    }

    /// The coefficients of the given rows, in order.
    pub fn select(&self, rows: &[usize]) -> Self {
        let values = rows
            .iter()
            .flat_map(|&row| &self.values[row * self.terms..(row + 1) * self.terms])
            .copied()
            .collect();
        Self { terms: self.terms, values }
    }
}

/// A scale per row and column range: `x[t, columns] *= coefficients[t, term] · factor`.
#[derive(Debug, Clone)]
pub struct ColumnScale {
    /// Columns of the activation.
    pub columns: Range<usize>,
    /// Term whose per-row coefficient applies; `None` is 1.
    pub term: Option<usize>,
    /// Constant factor (LoRA's alpha / r).
    pub factor: f32,
}

/// Shape of one attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Sliding window in tokens: row at position p sees positions > p − window.
    pub window: Option<usize>,
    /// Soft cap: a score s becomes cap · tanh(s / cap).
    pub cap: Option<f32>,
}

/// Which stored tokens of its segment a row of [`Kernels::attend`] sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Those up to itself, within the window of the shape.
    Causal,
    /// Those of all rows of the segment, and all before them.
    Segment,
    /// Those before the segment's rows, which are not stored themselves.
    Cached,
}

/// What is added to scores by the distance between a row and the token that it sees (T5).
pub struct RelativeBias<'a, T> {
    /// `[rows, buckets · heads]`, or `[1, buckets · heads]` for all rows: the bias of a bucket and head.
    pub table: &'a T,
    /// The bucket of each distance, position of the token less that of the row, from −reach to reach;
    /// greater distances have the bucket of the nearer end.
    pub buckets: &'a [u16],
}

/// One product of [`Kernels::products`]: `onto + x Wᵀ`, or `x Wᵀ` alone.
pub struct Product<'a, K: Kernels + ?Sized> {
    /// Input `[rows, in]`.
    pub x: &'a K::Tensor,
    /// Weight `[out, in]`.
    pub weight: &'a K::Weight,
    /// Summand `[rows, out]`.
    pub onto: Option<K::Tensor>,
}

/// One product of [`Kernels::scaled_products`]: `onto + (x ⊙ scales) Bᵀ`.
pub struct ScaledProduct<'a, K: Kernels + ?Sized> {
    /// Input `[rows, in]`.
    pub x: K::Tensor,
    /// Scales of the input's columns, as in [`Kernels::scale_columns`].
    pub scales: &'a [ColumnScale],
    /// B factors: `[out, Σ rank]`, on the CPU in [`cpu::panels`].
    pub weight: &'a K::Weight,
    /// Summand `[rows, out]`.
    pub onto: K::Tensor,
}

impl<'a, K: Kernels + ?Sized> ScaledProduct<'a, K> {
    /// The scales, then the products.
    pub fn one_by_one(
        k: &K,
        products: Vec<Self>,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Vec<K::Tensor>> {
        let mut scaled = Vec::with_capacity(products.len());
        let mut ontos = Vec::with_capacity(products.len());
        for Self { x, scales, weight, onto } in products {
            scaled.push((k.scale_columns(x, scales, coefficients)?, weight));
            ontos.push(Some(onto));
        }
        let products = scaled.iter().zip(ontos);
        k.products(
            products.map(|((x, weight), onto)| Product { x, weight: *weight, onto }).collect(),
        )
    }
}

/// What a forward pass needs of a device.
pub trait Kernels {
    /// Activations `[rows, width]`.
    type Tensor: Clone;
    /// One parameter on the device.
    type Weight: Clone;
    /// Keys and values of all sequences and layers.
    type Cache;

    /// Makes a host tensor a weight of this device; on the CPU a reference to the same bytes.
    fn weight(&self, tensor: &HostTensor) -> Result<Self::Weight>;
    /// Rows of `table` `[vocab, width]` picked by `tokens` → `[tokens, width]`.
    fn embed(&self, table: &Self::Weight, tokens: &[u32]) -> Result<Self::Tensor>;
    /// Independent products `x Wᵀ`, `[rows, in] × [out, in]` → `[rows, out]`, each added to its
    /// summand if it has one; results in order. A device may run them side by side.
    fn products(&self, products: Vec<Product<'_, Self>>) -> Result<Vec<Self::Tensor>>;
    /// The second half of low-rank layers: products of inputs whose columns are scaled per row.
    fn scaled_products(
        &self,
        products: Vec<ScaledProduct<'_, Self>>,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Vec<Self::Tensor>> {
        ScaledProduct::one_by_one(self, products, coefficients)
    }
    /// `y + bias`, `bias` `[width]` added to every row.
    fn bias_add(&self, y: Self::Tensor, bias: &Self::Weight) -> Result<Self::Tensor>;
    /// A `[width]` weight repeated over `rows` → `[rows, width]` (mixed-mode gains and biases).
    fn broadcast(&self, w: &Self::Weight, rows: usize) -> Result<Self::Tensor>;
    /// `x[t, :] · scale[t]`.
    fn scale_rows(&self, x: Self::Tensor, scale: &[f32]) -> Result<Self::Tensor>;
    /// Scales column ranges per row; columns that no range covers stay as they are.
    fn scale_columns(
        &self,
        x: Self::Tensor,
        scales: &[ColumnScale],
        coefficients: Option<&RowCoefficients>,
    ) -> Result<Self::Tensor>;
    /// `a + b`, same shape.
    fn add(&self, a: Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;
    /// Root-mean-square norm over each consecutive group of `gain.len()` columns, times
    /// `norm.shift + gain` (one group is a whole row for layer norms, a head for Qwen3's q/k norms).
    fn rms_norm(&self, x: &Self::Tensor, gain: &Self::Weight, norm: Norm) -> Result<Self::Tensor>;
    /// The same with a gain per row: `gain` is `[rows, group]`.
    fn rms_norm_rows(
        &self,
        x: &Self::Tensor,
        gain: &Self::Tensor,
        norm: Norm,
    ) -> Result<Self::Tensor>;
    /// Rotates the first `2 · inv_freq.len()` values of each head of `x` `[rows, heads · head_dim]`
    /// (half-split form) by
    /// `angle[t, j] = positions[t] · inv_freq[j]`, cos and sin times `scale`.
    fn rope(&self, x: Self::Tensor, positions: &[u32], rope: &Rope) -> Result<Self::Tensor>;
    /// Causal grouped-query attention: stores `k`, `v` of the batch's rows in the cache, then
    /// attends each row to its own sequence. Softmax scale is 1/√head_dim. → `[rows, heads · head_dim]`.
    #[allow(clippy::too_many_arguments)] // q, k, v and their context: a struct would only rename them
    fn attention(
        &self,
        q: Self::Tensor,
        k: Self::Tensor,
        v: Self::Tensor,
        layer: usize,
        shape: AttentionShape,
        batch: &Batch,
        cache: &mut Self::Cache,
    ) -> Result<Self::Tensor>;
    /// Stores keys and values `[rows, kv_heads · head_dim]` of the segments' rows in a layer of the
    /// cache.
    fn store(
        &self,
        _k: &Self::Tensor,
        _v: &Self::Tensor,
        _layer: usize,
        _segments: &[Segment],
        _cache: &mut Self::Cache,
    ) -> Result<()> {
        Err(KernelError::Unsupported { op: "store" })
    }
    /// Attention of `q` to keys and values that are in the cache, by segments, as
    /// [`Self::attention`] does: softmax(q kᵀ / √head_dim + bias) v → `[rows, heads · head_dim]`.
    #[allow(clippy::too_many_arguments)] // as `attention`
    fn attend(
        &self,
        _q: &Self::Tensor,
        _layer: usize,
        _shape: AttentionShape,
        _segments: &[Segment],
        _sight: Sight,
        _bias: Option<RelativeBias<'_, Self::Tensor>>,
        _cache: &mut Self::Cache,
    ) -> Result<Self::Tensor> {
        Err(KernelError::Unsupported { op: "attend" })
    }
    /// max(x, 0).
    fn relu(&self, _x: Self::Tensor) -> Result<Self::Tensor> {
        Err(KernelError::Unsupported { op: "relu" })
    }
    /// `activation(gate) ⊙ up`.
    fn gated(
        &self,
        activation: Activation,
        gate: Self::Tensor,
        up: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// The given rows, in order.
    fn select_rows(&self, x: &Self::Tensor, rows: &[usize]) -> Result<Self::Tensor>;
    /// The given columns of every row, `[rows, columns.len()]`.
    fn select_columns(&self, x: &Self::Tensor, columns: Range<usize>) -> Result<Self::Tensor>;
    /// `x` with `y` `[rows.len(), width]` added to the given rows, each of which is named once.
    fn add_to_rows(
        &self,
        x: Self::Tensor,
        rows: &[usize],
        y: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// The values, row-major, on the host; no gradient flows through them.
    fn to_host(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
    /// `cap · tanh(x / cap)`, for a cap above 0.
    fn soft_cap(&self, x: Self::Tensor, cap: f32) -> Result<Self::Tensor>;
}

/// Constants of a root-mean-square norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// ε: the norm divides by √(mean(x²) + ε).
    pub eps: f32,
    /// What is added to the stored gain (1 in Gemma, else 0).
    pub shift: f32,
}

/// The function of a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · σ(x).
    Silu,
    /// x · σ(2u), u = √(2/π)(x + 0.044715 x³): the tanh form of GELU.
    Gelu,
}

impl Activation {
    /// Factors (a, b) of the polynomial in x · σ(x (a + b x²)).
    pub const fn polynomial(self) -> (f32, f32) {
        const GELU: f32 = 1.595_769; // 2 √(2/π)
        match self {
            Self::Silu => (1.0, 0.0),
            Self::Gelu => (GELU, GELU * 0.044_715),
        }
    }
}

/// Rotary embedding constants of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Width of a head.
    pub head_dim: usize,
    /// Inverse frequencies, one for each rotated pair, rope scaling already applied. Values of a head
    /// from `2 · inv_freq.len()` on stay as they are.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (1 except for YaRN-like scalings).
    pub scale: f32,
}
