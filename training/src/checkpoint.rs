//! Checkpoints of a run: one safetensors file with all tensors and, in its header, the rest of the
//! state as TOML (whose floats read back bit for bit). A file on disk is whole or absent.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use ladle::files::{self, FileError};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// An I/O error, such as a full disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not a checkpoint of this program.
    #[error("{path}: {reason}")]
    Format { path: PathBuf, reason: String },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl CheckpointError {
    /// Adds the path to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let at = FileError::at(path);
        move |error| Self::File(at(error))
    }
}

type Result<T> = std::result::Result<T, CheckpointError>;

/// Writes `bytes` to `path`, whole or not at all ([`files::write`]).
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(files::write(path, bytes)?)
}

/// Writes a value as TOML, whole or not at all.
pub fn write_toml(path: &Path, value: &impl Serialize) -> Result<()> {
    write_atomically(path, to_toml(path, value)?.as_bytes())
}

/// A value as TOML; `path` is named in the error.
pub fn to_toml(path: &Path, value: &impl Serialize) -> Result<String> {
    toml::to_string(value).map_err(|error| CheckpointError::Format {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Reads a value that [`write_toml`] wrote.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(CheckpointError::io(path))?;
    toml::from_str(&text).map_err(|error| CheckpointError::Format {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// The tensors as a safetensors file in memory, in the order given; f32 or bf16.
pub fn serialize(
    tensors: &[(String, Tensor)],
    metadata: Option<HashMap<String, String>>,
) -> std::result::Result<Vec<u8>, String> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let flat = tensor.flatten_all().map_err(|error| format!("{name}: {error}"))?;
        let (dtype, bytes) = match tensor.dtype() {
            DType::BF16 => {
                let values = flat.to_vec1::<half::bf16>().map_err(|error| error.to_string())?;
                (Dtype::BF16, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
            }
            DType::F32 => {
                let values = flat.to_vec1::<f32>().map_err(|error| error.to_string())?;
                (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            other => return Err(format!("{name}: no storage for {other:?}")),
        };
        data.push((name.clone(), dtype, tensor.dims().to_vec(), bytes));
    }
    let views = data.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes);
        view.map(|view| (name.as_str(), view)).map_err(|error| format!("{name}: {error}"))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>()?;
    safetensors::serialize(views, metadata).map_err(|error| error.to_string())
}

/// Saves tensors and state as one file.
pub fn save<S: Serialize>(path: &Path, tensors: &[(String, Tensor)], state: &S) -> Result<()> {
    let format = |reason| CheckpointError::Format { path: path.to_owned(), reason };
    let state = toml::to_string(state).map_err(|error| format(error.to_string()))?;
    let metadata = HashMap::from([("state".to_owned(), state)]);
    write_atomically(path, &serialize(tensors, Some(metadata)).map_err(format)?)
}

/// Tensors (f32, on `device`) and state of a saved file.
pub fn load<S: DeserializeOwned>(
    path: &Path,
    device: &Device,
) -> Result<(BTreeMap<String, Tensor>, S)> {
    let format = |reason: String| CheckpointError::Format { path: path.to_owned(), reason };
    let bytes = fs::read(path).map_err(CheckpointError::io(path))?;
    let broken = |error: safetensors::SafeTensorError| format(error.to_string());
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let state = header.metadata().as_ref().and_then(|metadata| metadata.get("state"));
    let state = state.ok_or_else(|| format("no training state in the header".to_owned()))?;
    let state = toml::from_str(state).map_err(|error| format(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes).map_err(broken)?.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(format(format!("{name}: dtype {:?}, expected F32", view.dtype())));
        }
        let tensor = Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), device)?;
        tensors.insert(name, tensor);
    }
    Ok((tensors, state))
}

/// Takes a tensor of the expected shape out of the result of [`load`].
pub fn take(
    tensors: &mut BTreeMap<String, Tensor>,
    name: &str,
    shape: &[usize],
) -> candle_core::Result<Tensor> {
    let tensor = tensors.remove(name);
    let tensor = tensor.ok_or_else(|| candle_core::Error::Msg(format!("no tensor {name}")))?;
    if tensor.dims() != shape {
        let got = tensor.dims();
        candle_core::bail!("{name} has shape {got:?}, expected {shape:?}");
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct State {
        step: u64,
        means: Vec<f64>,
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nested").join("state.safetensors");
        let odd = [f32::MIN_POSITIVE / 4.0, -0.0, 1.0 + f32::EPSILON];
        let tensor = Tensor::new(&odd, &Device::Cpu).unwrap();
        let state = State { step: 7, means: vec![0.1 + 0.2, 1e-308, f64::MAX, -1.0 / 3.0] };
        save(&path, &[("a".to_owned(), tensor)], &state).unwrap();
        let (tensors, read): (_, State) = load(&path, &Device::Cpu).unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&tensors["a"].to_vec1::<f32>().unwrap()), bits(&odd));
        assert_eq!(read, state);
    }

    #[test]
    fn a_cut_file_is_refused_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.safetensors");
        let tensor = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        save(&path, &[("a".to_owned(), tensor)], &State { step: 1, means: vec![] }).unwrap();
        let whole = fs::read(&path).unwrap();
        for len in [0, 4, 20, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            let error = load::<State>(&path, &Device::Cpu).unwrap_err().to_string();
            assert!(error.contains("state.safetensors"), "{error}");
        }
    }
}
