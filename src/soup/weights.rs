//! One safetensors file: mapped or copied, and checked, when read; whole or absent when written.
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
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use memmap2::{Mmap, MmapMut};
use rayon::prelude::*;
use safetensors::{SafeTensors, tensor::Metadata};

use super::{
    error::WeightError,
    header::{self, LENGTH_FIELD, TensorSpec},
};
use crate::{
    config::Residence,
    files::{self, FileError, Seen},
    kernels::{BlockType, Dtype, HostTensor, host::Bytes, quantised::GROUP},
    memory,
};

/// Bytes that one thread reads at a time when a file is copied.
const CHUNK: usize = 16 << 20;

/// An open safetensors file.
#[derive(Clone)]
pub struct WeightFile {
    /// Where it was opened.
    pub path: PathBuf,
    /// What it was then.
    pub seen: Seen,
    bytes: Bytes,
    header: usize,
}

impl WeightFile {
    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// The length field and the header: names, shapes, dtypes and offsets of all tensors.
    pub fn header(&self) -> &[u8] {
        &self.bytes()[..self.header]
    }

    /// Maps and checks `path`, as [`Self::open_as`] does.
    pub fn open(path: &Path) -> Result<(Self, Vec<(String, HostTensor)>), WeightError> {
        Self::open_as(path, Residence::Mapped)
    }

    /// Maps or copies `path` and checks it; returns the file and its tensors in the order of their
    /// bytes. The views stay valid while any of them lives.
    ///
    /// A mapped file must not be changed in place meanwhile: reading what was cut off ends the
    /// process (SIGBUS). Everything here replaces files by renaming, which keeps old maps intact.
    pub fn open_as(
        path: &Path,
        residence: Residence,
    ) -> Result<(Self, Vec<(String, HostTensor)>), WeightError> {
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
        let seen = Seen::new(path, &meta);
        let bytes: Bytes = match residence {
            Residence::Mapped => {
                // SAFETY: the map is read-only; see above for changes made to the file by others.
                let map = unsafe { Mmap::map(&file) };
                Arc::new(map.map_err(WeightError::io(path))?)
            }
            Residence::Copied => held(&file, &seen).map_err(WeightError::io(path))?,
        };
        let whole = (*bytes).as_ref();
        let (header, metadata) = SafeTensors::read_metadata(whole)
            .map_err(|error| header::explain(path, whole, &error))?;
        let header = header + LENGTH_FIELD as usize;
        let file = Self { path: path.to_owned(), seen, bytes, header };
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
            let tensor = HostTensor::new(self.bytes.clone(), range, dtype, shape)
                .map_err(|error| refuse(&name, "bytes inside the file", error.to_string()))?;
            tensors.push((name, tensor));
        }
        Ok(tensors)
    }
}

/// The content of a file in memory.
struct InMemory {
    memory: MmapMut,
    /// Bytes before it, so that the data after its header begins with a line of the cache: rows of whole
    /// lines do not lie across them then, which products read faster.
    lead: usize,
}

impl AsRef<[u8]> for InMemory {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.lead..]
    }
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// The copies in memory, each as its file was seen.
static HELD: Mutex<Vec<(Seen, Weak<InMemory>)>> = Mutex::new(Vec::new());

/// The content of `file` as it was `seen`: the copy that is in memory, where there is one, else a new
/// one. Generations of a soup share what they have in common.
fn held(file: &File, seen: &Seen) -> io::Result<Arc<InMemory>> {
    let list = || HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let held = list().iter().find(|(of, _)| of == seen).and_then(|(_, bytes)| bytes.upgrade());
    if let Some(bytes) = held {
        return Ok(bytes);
    }
    let bytes = Arc::new(copied(file, seen)?);
    let mut list = list();
    list.retain(|(_, bytes)| bytes.strong_count() > 0);
    list.push((seen.clone(), Arc::downgrade(&bytes)));
    Ok(bytes)
}

/// The content of `file`, which must be the one that was `seen` to the end.
fn copied(file: &File, seen: &Seen) -> io::Result<InMemory> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let changed = || io::Error::other("changed while it was read");
    let read = |to: &mut [u8], at: u64| {
        file.read_exact_at(to, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(),
            _ => error,
        })
    };
    let mut field = [0; LENGTH_FIELD as usize];
    read(&mut field, 0)?;
    let header = (u64::from_le_bytes(field) % LINE as u64 + LENGTH_FIELD) as usize;
    let lead = header.next_multiple_of(LINE) - header;
    let mut memory = memory::huge(lead + length)?;
    let chunks = memory[lead..].par_chunks_mut(CHUNK).enumerate();
    chunks.try_for_each(|(index, chunk)| read(chunk, (index * CHUNK) as u64))?;
    match Seen::new(&seen.path, &file.metadata()?) == *seen {
        true => Ok(InMemory { memory, lead }),
        false => Err(changed()),
    }
}

/// Storage type and shape of a quantised matrix from the shape of its bytes; the error is
/// (expected, got).
fn quantised(kind: &str, bytes: &[usize]) -> Result<(Dtype, Vec<usize>), (String, String)> {
    let Some(kind) = BlockType::named(kind) else {
        let known = BlockType::names();
        return Err((format!("a block type of {known} in __metadata__"), format!("{kind:?}")));
    };
    match bytes {
        &[rows, row] if rows.is_multiple_of(GROUP) && row.is_multiple_of(kind.block_bytes()) => {
            Ok((Dtype::Quantised(kind), vec![rows, row / kind.block_bytes() * kind.values()]))
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
