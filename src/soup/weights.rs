//! One safetensors file: mapped and checked on the way in, whole or absent on the way out.
//!
//! The header comes from whoever made the file. The `safetensors` crate validates it (offsets
//! contiguous, sizes equal to shape × dtype, file length covered) with checked arithmetic; this
//! module turns each refusal into an error that names file, tensor, expected and got.
//!
//! A quantised matrix `[rows, columns]` is a tensor of bytes `[rows, bytes of a row]` whose block
//! type stands under its name in the file's `__metadata__`; the bytes are ordered as
//! [`crate::kernels::quantised`] says.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;
use safetensors::{SafeTensors, tensor::Metadata};
use serde_json::{Map, Value, json};

use crate::{
    files::{self, FileError},
    kernels::{
        BlockType, Dtype, HostTensor,
        quantised::{GROUP, QUANT_BLOCK},
    },
    model::config::ConfigError,
};

/// Bytes of the length field before the header.
const LENGTH_FIELD: u64 = 8;

/// Why weights on disk were refused, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// No weights where some are expected.
    #[error("{dir}: found no weights, expected {expected}", dir = dir.display())]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// The file names that would have done.
        expected: &'static str,
    },
    /// The weights are pickled.
    #[error(
        "{path}: weights are read only from safetensors, because a pickle runs code when it is \
         opened; convert it where you trust it: {hint}", path = path.display()
    )]
    Pickle {
        /// The pickle.
        path: PathBuf,
        /// Command that converts it.
        hint: &'static str,
    },
    /// The file is shorter or longer than its header says.
    #[error("{path}: {what} needs {expected} bytes, the file has {got}", path = path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: &'static str,
        /// Bytes that the file should have.
        expected: u64,
        /// Bytes that it has.
        got: u64,
    },
    /// The header is not a safetensors header.
    #[error("{path}: invalid safetensors header: {reason}", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One tensor's entry or bytes are wrong.
    #[error("{path}: tensor {tensor}: expected {expected}, got {got}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What would have been right.
        expected: String,
        /// What the file says.
        got: String,
    },
    /// The model's configuration is not one that is served.
    #[error("{dir}/{error}", dir = dir.display())]
    Config {
        /// The checkpoint.
        dir: PathBuf,
        /// Key and reason.
        error: ConfigError,
    },
    /// A configuration or index is not what it should be.
    #[error("{path}: {key}: expected {expected}, got {got}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Key, or "document".
        key: String,
        /// What would have been right.
        expected: String,
        /// What the file says.
        got: String,
    },
}

impl WeightError {
    /// Wraps an I/O error with the path it belongs to.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let at = FileError::at(path);
        move |error| Self::File(at(error))
    }
}

/// A mapped safetensors file.
#[derive(Clone)]
pub struct WeightFile {
    /// Where it was opened.
    pub path: PathBuf,
    map: Arc<Mmap>,
    header: usize,
}

impl WeightFile {
    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The length field and the header: names, shapes, dtypes and offsets of all tensors.
    pub fn header(&self) -> &[u8] {
        &self.bytes()[..self.header]
    }

    /// Gives the memory that the file's pages hold back to the system, which reads them from the file
    /// again when they are next looked at.
    pub fn release(&self) {
        #[cfg(unix)]
        // SAFETY: the map is of a file and read-only, so what is read afterwards is the same. It is
        // only a hint, so it does no harm if the system does not take it.
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    /// Maps and checks `path`; returns the file and its tensors in the order of their bytes.
    ///
    /// The views stay valid while any of them lives. The file must not be changed in place
    /// meanwhile: everything here replaces files by renaming, which keeps old maps intact.
    pub fn open(path: &Path) -> Result<(Self, Vec<(String, HostTensor)>), WeightError> {
        let file = File::open(path).map_err(WeightError::io(path))?;
        let meta = file.metadata().map_err(WeightError::io(path))?;
        let length = |what, expected, got| WeightError::Length {
            path: path.to_owned(),
            what,
            expected,
            got,
        };
        if !meta.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(WeightError::io(path)(error));
        }
        if meta.len() < LENGTH_FIELD {
            return Err(length("a safetensors length field", LENGTH_FIELD, meta.len()));
        }
        // SAFETY: the map is read-only; see above for changes made to the file by others.
        let map = unsafe { Mmap::map(&file) }.map_err(WeightError::io(path))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| explain(path, &map, &error))?;
        let header = header + LENGTH_FIELD as usize;
        let file = Self { path: path.to_owned(), map: Arc::new(map), header };
        let tensors = file.tensors(&metadata)?;
        Ok((file, tensors))
    }

    fn tensors(&self, metadata: &Metadata) -> Result<Vec<(String, HostTensor)>, WeightError> {
        let refuse = |tensor: &str, expected: &str, got: String| WeightError::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            expected: expected.to_owned(),
            got,
        };
        let mut tensors = Vec::new();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            let kind = metadata.metadata().as_ref().and_then(|notes| notes.get(&name));
            let (dtype, shape) = match (info.dtype, kind) {
                (safetensors::Dtype::F32, _) => (Dtype::F32, info.shape.clone()),
                (safetensors::Dtype::F16, _) => (Dtype::F16, info.shape.clone()),
                (safetensors::Dtype::BF16, _) => (Dtype::Bf16, info.shape.clone()),
                (safetensors::Dtype::U8, Some(kind)) => quantised(kind, &info.shape)
                    .map_err(|(expected, got)| refuse(&name, &expected, got))?,
                (other, _) => {
                    let expected =
                        "dtype F32, F16 or BF16, or U8 with a block type in __metadata__";
                    return Err(refuse(&name, expected, other.to_string()));
                }
            };
            let (start, end) = info.data_offsets;
            let range = self.header + start..self.header + end;
            let tensor = HostTensor::new(self.map.clone(), range, dtype, shape)
                .map_err(|error| refuse(&name, "bytes inside the file", error.to_string()))?;
            tensors.push((name, tensor));
        }
        Ok(tensors)
    }
}

/// Storage type and shape of a matrix of bytes; or what was expected of it, and what it is.
fn quantised(kind: &str, bytes: &[usize]) -> Result<(Dtype, Vec<usize>), (String, String)> {
    let Some(kind) = BlockType::named(kind) else {
        let known = BlockType::ALL.map(BlockType::name).join(", ");
        return Err((format!("a block type of {known} in __metadata__"), format!("{kind:?}")));
    };
    match bytes {
        &[rows, row] if rows.is_multiple_of(GROUP) && row.is_multiple_of(kind.block_bytes()) => {
            Ok((Dtype::Quantised(kind), vec![rows, row / kind.block_bytes() * QUANT_BLOCK]))
        }
        other => {
            let (name, size) = (kind.name(), kind.block_bytes());
            let expected = format!(
                "U8 [rows, bytes], a multiple of {GROUP} rows of whole {name} blocks of {size} bytes"
            );
            Err((expected, format!("{other:?}")))
        }
    }
}

/// Says in operands what the crate's validation says in words. Runs only on files already refused.
fn explain(path: &Path, bytes: &[u8], error: &safetensors::SafeTensorError) -> WeightError {
    let header_error = || WeightError::Header { path: path.to_owned(), reason: error.to_string() };
    let total = bytes.len() as u64;
    let Some((field, rest)) = bytes.split_first_chunk::<8>() else { return header_error() };
    let header = u64::from_le_bytes(*field);
    let end = header.saturating_add(LENGTH_FIELD);
    if end > total {
        let path = path.to_owned();
        return WeightError::Length { path, what: "the header", expected: end, got: total };
    }
    let json = usize::try_from(header).ok().and_then(|header| rest.get(..header));
    let Some(Ok(Value::Object(entries))) = json.map(serde_json::from_slice) else {
        return header_error();
    };
    let mut entries: Vec<_> = entries
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .filter_map(|(name, entry)| Some((name, entry, offsets(entry)?)))
        .collect();
    entries.sort_by_key(|(_, _, range)| *range);
    let refuse = |tensor: &str, expected: String, got: String| WeightError::Tensor {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        expected,
        got,
    };
    let mut at = 0u64;
    for (name, entry, (start, stop)) in entries {
        if start != at || stop < start {
            return refuse(
                name,
                format!("bytes from {at} on (tensors neither overlap nor leave gaps)"),
                format!("data_offsets [{start}, {stop}]"),
            );
        }
        if let Some(needed) = size(entry)
            && needed != Some(stop - start)
        {
            let shape = &entry["shape"];
            let needed = needed.map_or("more than 2^64".to_owned(), |n| n.to_string());
            return refuse(
                name,
                format!("{needed} bytes for dtype {} and shape {shape}", entry["dtype"]),
                format!("{} bytes in data_offsets [{start}, {stop}]", stop - start),
            );
        }
        at = stop;
    }
    match end.checked_add(at) {
        Some(expected) if expected != total => WeightError::Length {
            path: path.to_owned(),
            what: "the header with its tensors",
            expected,
            got: total,
        },
        _ => header_error(),
    }
}

fn offsets(entry: &Value) -> Option<(u64, u64)> {
    let pair = entry.get("data_offsets")?;
    Some((pair.get(0)?.as_u64()?, pair.get(1)?.as_u64()?))
}

/// Bytes that an entry's shape and dtype need: `None` where either cannot be read, `Some(None)`
/// where the product overflows.
fn size(entry: &Value) -> Option<Option<u64>> {
    let width: u64 = match entry.get("dtype")?.as_str()? {
        "F32" => 4,
        "F16" | "BF16" => 2,
        "U8" => 1,
        _ => return None,
    };
    let shape: Option<Vec<u64>> =
        entry.get("shape")?.as_array()?.iter().map(Value::as_u64).collect();
    Some(shape?.into_iter().try_fold(width, u64::checked_mul))
}

/// Position of the first NaN or infinity.
pub fn first_non_finite(tensor: &HostTensor) -> Option<usize> {
    if let Some(values) = tensor.as_f32() {
        return values.iter().position(|value| !value.is_finite());
    }
    if let Some(values) = tensor.as_bf16() {
        return values.iter().position(|value| !value.is_finite());
    }
    tensor.as_f16()?.iter().position(|value| !value.is_finite())
}

/// Whether two tensors have the same shape and values, in whatever storage types.
pub fn same_values(a: &HostTensor, b: &HostTensor) -> bool {
    a.shape() == b.shape()
        && match a.dtype() == b.dtype() {
            true => a.bytes() == b.bytes(),
            false => a.to_f32() == b.to_f32(),
        }
}

/// Name, storage type and shape of a tensor that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Hugging Face name.
    pub name: String,
    /// Storage type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The spec that `tensor` under `name` has.
    pub fn of(name: impl Into<String>, tensor: &HostTensor) -> Self {
        Self { name: name.into(), dtype: tensor.dtype(), shape: tensor.shape().to_vec() }
    }

    /// Size in bytes; saturates, because a size that large is refused by every disk.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(&self.shape).map_or(u64::MAX, |bytes| bytes as u64)
    }
}

/// Writes one safetensors file, fsynced, with its tensors in the order of `specs`; `tensor` is
/// asked for one tensor at a time, so that memory holds one. The file appears under `path` only
/// once it is whole.
pub fn write_safetensors<E: From<WeightError> + From<FileError>>(
    path: &Path,
    specs: &[TensorSpec],
    mut tensor: impl FnMut(&TensorSpec) -> Result<HostTensor, E>,
) -> Result<(), E> {
    files::write_with(path, |out| {
        out.write_all(&header(specs)).map_err(FileError::at(path))?;
        for spec in specs {
            let tensor = tensor(spec)?;
            let got = TensorSpec::of(&spec.name, &tensor);
            if got != *spec {
                return Err(E::from(WeightError::Tensor {
                    path: path.to_owned(),
                    tensor: spec.name.clone(),
                    expected: format!("{} {:?}", spec.dtype, spec.shape),
                    got: format!("{} {:?}", got.dtype, got.shape),
                }));
            }
            out.write_all(tensor.bytes()).map_err(FileError::at(path))?;
        }
        Ok(())
    })
}

/// Length field and header, padded with spaces so that the data starts on a cache line.
fn header(specs: &[TensorSpec]) -> Vec<u8> {
    let mut notes = Map::from_iter([("format".to_owned(), json!("pt"))]);
    for spec in specs {
        if let Some(kind) = spec.dtype.blocks() {
            notes.insert(spec.name.clone(), json!(kind.name()));
        }
    }
    let mut entries = Map::from_iter([("__metadata__".to_owned(), Value::Object(notes))]);
    let mut at = 0u64;
    for spec in specs {
        let (dtype, shape) = match (spec.dtype, spec.shape.as_slice()) {
            (Dtype::F32, shape) => ("F32", json!(shape)),
            (Dtype::F16, shape) => ("F16", json!(shape)),
            (Dtype::Bf16, shape) => ("BF16", json!(shape)),
            (Dtype::Quantised(kind), &[rows, columns]) => {
                ("U8", json!([rows, columns / QUANT_BLOCK * kind.block_bytes()]))
            }
            (Dtype::Quantised(_), shape) => ("U8", json!(shape)),
        };
        let end = at.saturating_add(spec.bytes());
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
        entries.insert(spec.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    let field = LENGTH_FIELD as usize;
    text.resize((text.len() + field).next_multiple_of(64) - field, b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    out
}
