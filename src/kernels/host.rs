//! Tensors in host memory: cheap read-only views of a memory map or of a merged slab.

use std::{fmt, ops::Range, sync::Arc};

use super::quantised::{self, BlockType, Blocks};
use crate::simd::Element;

/// Storage type of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of codes with scales; matrices only.
    Quantised(BlockType),
}

impl Dtype {
    /// Bytes of one element; for quantised types, of a block's scale. Tensors are aligned to it.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 | Self::Quantised(_) => 2,
        }
    }

    /// Bytes of a tensor of that shape; `None` if the number overflows, or if the type is quantised
    /// and the shape is not a matrix of whole groups ([`quantised`]).
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        match self {
            Self::Quantised(kind) => kind.bytes(shape),
            plain => shape.iter().try_fold(plain.size(), |product, &dim| product.checked_mul(dim)),
        }
    }

    /// The type of its blocks, where it is quantised.
    pub const fn blocks(self) -> Option<BlockType> {
        match self {
            Self::Quantised(kind) => Some(kind),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Quantised(kind) => kind.name(),
        })
    }
}

/// Bytes that outlive every view of them: a memory map, a vector, a slab on lease.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Why a view of bytes is not a tensor.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HostError {
    /// The byte range does not hold `shape` elements of `dtype`.
    #[error(
        "a {dtype} tensor of shape {shape:?} needs {expected} bytes, got {got}",
        expected = shown(*expected)
    )]
    Length {
        /// Storage type.
        dtype: Dtype,
        /// Shape.
        shape: Vec<usize>,
        /// Bytes that the shape needs; `None` where that overflows or blocks do not fit.
        expected: Option<usize>,
        /// Bytes in the range.
        got: usize,
    },
    /// The range leaves the buffer.
    #[error("bytes {start}..{end} lie outside a buffer of {len} bytes")]
    Range {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Buffer length.
        len: usize,
    },
}

/// A number of bytes as messages show it, before the word "bytes".
pub(crate) fn shown(bytes: Option<usize>) -> String {
    bytes.map_or_else(|| "more than usize::MAX".to_owned(), |bytes| bytes.to_string())
}

/// A read-only tensor in host memory, row-major and aligned to its element.
#[derive(Clone)]
pub struct HostTensor {
    bytes: Bytes,
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl HostTensor {
    /// A view of `range` of `bytes`. Bytes that are not aligned to the element (a safetensors
    /// header of odd length) are copied once.
    pub fn new(
        bytes: Bytes,
        range: Range<usize>,
        dtype: Dtype,
        shape: Vec<usize>,
    ) -> Result<Self, HostError> {
        let len = (*bytes).as_ref().len();
        if range.start > range.end || range.end > len {
            return Err(HostError::Range { start: range.start, end: range.end, len });
        }
        let expected = dtype.bytes(&shape);
        if expected != Some(range.len()) {
            return Err(HostError::Length { dtype, shape, expected, got: range.len() });
        }
        let slice = &(*bytes).as_ref()[range.clone()];
        if slice.as_ptr().align_offset(dtype.size()) != 0 {
            return Ok(Self::copied(slice, dtype, shape));
        }
        Ok(Self { bytes, range, dtype, shape })
    }

    /// An f32 tensor that owns its values; `values.len()` must be the product of `shape`.
    pub fn from_f32(values: &[f32], shape: Vec<usize>) -> Result<Self, HostError> {
        let expected = shape.iter().try_fold(4usize, |product, &dim| product.checked_mul(dim));
        if expected != Some(values.len() * 4) {
            let got = values.len() * 4;
            return Err(HostError::Length { dtype: Dtype::F32, shape, expected, got });
        }
        // SAFETY: any f32 is four readable bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len() * 4) };
        Ok(Self::copied(bytes, Dtype::F32, shape))
    }

    /// A tensor of `dtype` that owns its values, each rounded to the nearest; blocks are made by
    /// [`Blocks::quantise`]. `values.len()` must be the product of `shape`.
    pub fn rounded(values: &[f32], dtype: Dtype, shape: Vec<usize>) -> Result<Self, HostError> {
        let bytes: Vec<u8> = match (dtype, shape.as_slice()) {
            (Dtype::F32, _) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            (Dtype::F16, _) => {
                values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
            }
            (Dtype::Bf16, _) => {
                values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
            }
            (Dtype::Quantised(kind), &[_, columns]) => {
                Blocks::quantise(kind, values).arranged(columns)
            }
            (Dtype::Quantised(_), _) => Vec::new(),
        };
        let expected = dtype.bytes(&shape);
        if expected != Some(bytes.len()) {
            return Err(HostError::Length { dtype, shape, expected, got: bytes.len() });
        }
        Ok(Self::copied(&bytes, dtype, shape))
    }

    /// A copy whose rows begin with lines of the cache where their length allows.
    fn copied(bytes: &[u8], dtype: Dtype, shape: Vec<usize>) -> Self {
        #[repr(align(64))]
        struct Line([u8; 64]);
        struct Lines(Vec<Line>, usize);
        impl AsRef<[u8]> for Lines {
            fn as_ref(&self) -> &[u8] {
                // SAFETY: self.1 ≤ 64 · self.0.len(), and a line has no padding.
                unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.1) }
            }
        }
        let mut lines: Vec<Line> = Vec::with_capacity(bytes.len().div_ceil(64));
        lines.extend(bytes.chunks(64).map(|bytes| {
            let mut line = Line([0; 64]);
            line.0[..bytes.len()].copy_from_slice(bytes);
            line
        }));
        Self { bytes: Arc::new(Lines(lines, bytes.len())), range: 0..bytes.len(), dtype, shape }
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Shape, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The raw bytes, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }

    /// The elements, when they are of type `E`.
    pub fn as_slice<E: Stored>(&self) -> Option<&[E]> {
        (self.dtype == E::DTYPE).then(|| self.elements())
    }

    /// The elements, when they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.as_slice()
    }

    /// The elements, when they are f16.
    pub fn as_f16(&self) -> Option<&[half::f16]> {
        self.as_slice()
    }

    /// The elements, when they are bf16.
    pub fn as_bf16(&self) -> Option<&[half::bf16]> {
        self.as_slice()
    }

    /// All elements widened to f32 (exact, but for blocks with minima, which are rounded as ggml does).
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.elements::<f32>().to_vec(),
            Dtype::F16 => self.elements::<half::f16>().iter().map(|v| v.to_f32()).collect(),
            Dtype::Bf16 => self.elements::<half::bf16>().iter().map(|v| v.to_f32()).collect(),
            Dtype::Quantised(kind) => {
                let mut values = vec![0.0; self.len()];
                let rows = values.chunks_exact_mut(self.shape[1].max(1)).enumerate();
                rows.for_each(|(row, out)| quantised::row(kind, self.bytes(), row, out));
                values
            }
        }
    }

    fn elements<T: Stored>(&self) -> &[T] {
        debug_assert_eq!(size_of::<T>(), self.dtype.size());
        let bytes = self.bytes();
        // SAFETY: construction checked length and alignment; every bit pattern is an element.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.len()) }
    }
}

/// An [`Element`] type and its [`Dtype`].
pub trait Stored: Element {
    /// The storage type as a value.
    const DTYPE: Dtype;
}

impl Stored for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Stored for half::f16 {
    const DTYPE: Dtype = Dtype::F16;
}
impl Stored for half::bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostTensor({} {:?})", self.dtype, self.shape)
    }
}
