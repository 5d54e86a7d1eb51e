//! The header of a safetensors file: written for new files, and examined where the `safetensors`
//! crate refuses one.

use std::path::Path;

use safetensors::{SafeTensorError, tensor::TensorInfo};
use serde_json::{Map, Value, json};

use super::error::WeightError;
use crate::kernels::{Dtype, HostTensor};

/// Bytes of the length field before the header.
pub(super) const LENGTH_FIELD: u64 = 8;

/// Name, storage type and shape of a tensor that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Hugging Face name.
    pub name: String,
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

/// Length field and header, padded with spaces so that the data starts on a cache line.
pub(super) fn written(specs: &[TensorSpec]) -> Vec<u8> {
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
                ("U8", json!([rows, kind.row_bytes(columns)]))
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

/// The error for a file that the crate refused, with tensor, expected and got: the crate's own
/// errors name none of them.
pub(super) fn explain(path: &Path, bytes: &[u8], error: &SafeTensorError) -> WeightError {
    let unknown = || WeightError::Header { path: path.to_owned(), reason: error.to_string() };
    let length = |what, expected| WeightError::Length {
        path: path.to_owned(),
        what,
        expected,
        got: bytes.len() as u64,
    };
    let Some((field, rest)) = bytes.split_first_chunk() else { return unknown() };
    let header = u64::from_le_bytes(*field);
    let end = header.saturating_add(LENGTH_FIELD);
    let header = usize::try_from(header).ok();
    let Some(text) = header.and_then(|header| rest.get(..header)) else {
        return length("the header", end);
    };
    let Some(mut tensors) = entries(text) else { return unknown() };
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut at = 0;
    for (tensor, TensorInfo { dtype, shape, data_offsets: (start, stop) }) in tensors {
        let refuse =
            |expected, got| WeightError::Tensor { path: path.to_owned(), tensor, expected, got };
        if start != at || stop < start {
            let expected = format!("bytes from {at} on (tensors neither overlap nor leave gaps)");
            return refuse(expected, format!("data_offsets [{start}, {stop}]"));
        }
        let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        let needed = bits.map(|bits| bits / 8);
        if needed != Some(stop - start) {
            let needed = needed.map_or("more than 2^61".to_owned(), |bytes| bytes.to_string());
            return refuse(
                format!("{needed} bytes for dtype {dtype} and shape {shape:?}"),
                format!("{} bytes in data_offsets [{start}, {stop}]", stop - start),
            );
        }
        at = stop;
    }
    match end.checked_add(at as u64) {
        Some(expected) if expected != bytes.len() as u64 => {
            length("the header with its tensors", expected)
        }
        _ => unknown(),
    }
}

/// The tensors of a header; `None` if the text or an entry does not parse.
fn entries(text: &[u8]) -> Option<Vec<(String, TensorInfo)>> {
    let document: Map<String, Value> = serde_json::from_slice(text).ok()?;
    let tensors = document.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors.map(|(name, entry)| Some((name, serde_json::from_value(entry).ok()?))).collect()
}
