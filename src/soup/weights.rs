//! One safetensors file: mapped and checked when read, whole or absent when written.
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
use rayon::prelude::*;
use safetensors::{SafeTensors, tensor::Metadata};

use super::{
    error::WeightError,
    header::{self, LENGTH_FIELD, TensorSpec},
};
use crate::{
    files::{self, FileError},
    kernels::{
        BlockType, Dtype, HostTensor,
        quantised::{GROUP, QUANT_BLOCK},
    },
};

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

    /// Releases the memory of the file's pages; the system reads them again when they are next used.
    pub fn release(&self) {
        #[cfg(unix)]
        // SAFETY: the map is read-only and backed by a file, so later reads give the same bytes. The
        // call is a hint whose failure changes nothing.
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
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| header::explain(path, &map, &error))?;
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

/// Storage type and shape of a quantised matrix from the shape of its bytes; the error is
/// (expected, got).
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

/// Refuses NaN and infinities in tensors, each with its file and name.
pub fn check_finite(tensors: Vec<(PathBuf, String, &HostTensor)>) -> Result<(), WeightError> {
    tensors.into_par_iter().try_for_each(|(path, tensor, values)| match first_non_finite(values) {
        None => Ok(()),
        Some(position) => Err(WeightError::Tensor {
            path,
            tensor,
            expected: "finite values".to_owned(),
            got: format!("NaN or infinity at element {position}"),
        }),
    })
}

/// Whether two tensors have the same shape and values, whatever their storage types.
pub fn same_values(a: &HostTensor, b: &HostTensor) -> bool {
    a.shape() == b.shape()
        && match a.dtype() == b.dtype() {
            true => a.bytes() == b.bytes(),
            false => a.to_f32() == b.to_f32(),
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
        out.write_all(&header::written(specs)).map_err(FileError::at(path))?;
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
