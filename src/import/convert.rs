//! The weights of an import: from a GGUF file or a checkpoint into what they are to be stored as.

use std::{collections::BTreeMap, fs, path::Path};

use super::{
    error::{ImportError, ImportOptions},
    gguf::{Gguf, TensorSource, tensors::Stored, tokenizer::tokenizer_files},
    hub,
    progress::Progress,
    quantise::Quantise,
};
use crate::{
    files::write_json,
    kernels::{BlockType, Dtype, HostTensor, quantised},
    model::names::is_vocabulary,
    soup::{
        Checkpoint, TensorSpec, WeightError,
        checkpoint::{INDEX, SHARD_BYTES, write_checkpoint},
    },
};

/// What a tensor is stored as: in blocks where that is wanted and it is a matrix of whole blocks
/// and groups of rows, else as `plain`.
fn storage(
    plain: Dtype,
    quantise: Option<Quantise>,
    name: &str,
    shape: &[usize],
    stored: Stored,
) -> Dtype {
    let table = is_vocabulary(name);
    let kind = match (quantise, stored) {
        (None, _) | (Some(Quantise::Keep), Stored::Plain) => return plain,
        (Some(Quantise::Keep), stored) => stored.kept().unwrap_or(BlockType::Q8_0),
        (Some(Quantise::To(_)), _) if table => BlockType::Q8_0,
        (Some(Quantise::To(kind)), _) => kind,
    };
    if kind.bytes(shape).is_some() { Dtype::Quantised(kind) } else { plain }
}

/// Writes the checkpoint of a GGUF file into `out`.
pub(super) fn convert(path: &Path, out: &Path, options: &ImportOptions) -> Result<(), ImportError> {
    let mut gguf = Gguf::open(path)?;
    let torch_dtype = match options.dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 | Dtype::Quantised(_) => "bfloat16",
    };
    write_json(&out.join("config.json"), &gguf.config(torch_dtype)?)?;
    write_json(&out.join("generation_config.json"), &gguf.special_ids()?)?;
    let tokenizer = tokenizer_files(&gguf)?;
    write_json(&out.join("tokenizer.json"), &tokenizer.tokenizer)?;
    write_json(&out.join("tokenizer_config.json"), &tokenizer.config)?;

    let sources: BTreeMap<String, TensorSource> =
        gguf.tensors()?.into_iter().map(|source| (source.name.clone(), source)).collect();
    let spec = |s: &TensorSource| TensorSpec {
        name: s.name.clone(),
        dtype: storage(options.dtype, options.quantise, &s.name, &s.shape, s.stored),
        shape: s.shape.clone(),
    };
    let specs: Vec<TensorSpec> = sources.values().map(spec).collect();
    write(out, &specs, |spec| {
        let source = sources
            .get(&spec.name)
            .ok_or_else(|| refuse(path, spec, "it in the file".to_owned(), "nothing".to_owned()))?;
        match spec.dtype {
            Dtype::Quantised(kind) if source.stored.kept() == Some(kind) => {
                let columns = spec.shape.last().copied().unwrap_or_default();
                let bytes = quantised::arrange(kind, columns, &gguf.blocks(source)?);
                let range = 0..bytes.len();
                let bytes = std::sync::Arc::new(bytes);
                let tensor = HostTensor::new(bytes, range, spec.dtype, spec.shape.clone());
                finite(path, spec, tensor)
            }
            _ => rounded(path, spec, &gguf.values(source)?),
        }
    })
}

/// Copies a checkpoint from a directory, its matrices in blocks.
pub(super) fn requantise(from: &Path, out: &Path, quantise: Quantise) -> Result<(), ImportError> {
    let checkpoint = Checkpoint::open(from)?;
    copy(from, out, |name| !name.ends_with(".safetensors") && name != INDEX)?;
    let specs: Vec<TensorSpec> = checkpoint
        .tensors()
        .iter()
        .map(|(name, tensor)| {
            let stored = Stored::Plain;
            let dtype = storage(tensor.dtype(), Some(quantise), name, tensor.shape(), stored);
            TensorSpec { name: name.clone(), dtype, shape: tensor.shape().to_vec() }
        })
        .collect();
    write(out, &specs, |spec| match checkpoint.get(&spec.name) {
        Some(tensor) if tensor.dtype() == spec.dtype => Ok(tensor),
        Some(tensor) => rounded(&checkpoint.file_of(&spec.name), spec, &tensor.to_f32()),
        None => Err(refuse(from, spec, "it in the checkpoint".to_owned(), "nothing".to_owned())),
    })
}

/// Copies those files of a model that are `wanted`, and nothing else that lies beside them.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), ImportError> {
    for entry in fs::read_dir(from).map_err(ImportError::io(from))? {
        let path = entry.map_err(ImportError::io(from))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_file() && hub::belongs(name) && wanted(name) {
            fs::copy(&path, to.join(name)).map_err(ImportError::io(&path))?;
        }
    }
    Ok(())
}

/// Writes a checkpoint under a progress bar.
fn write(
    out: &Path,
    specs: &[TensorSpec],
    mut tensor: impl FnMut(&TensorSpec) -> Result<HostTensor, ImportError>,
) -> Result<(), ImportError> {
    let total = specs.iter().map(TensorSpec::bytes).fold(0, u64::saturating_add);
    let progress = Progress::start("converting", total);
    let mut done = 0u64;
    write_checkpoint(out, specs, SHARD_BYTES, |spec| {
        let tensor = tensor(spec)?;
        done = done.saturating_add(spec.bytes());
        progress.set(done);
        Ok::<_, ImportError>(tensor)
    })?;
    progress.finish();
    Ok(())
}

/// Values in the storage type of `spec`.
fn rounded(path: &Path, spec: &TensorSpec, values: &[f32]) -> Result<HostTensor, ImportError> {
    if spec.dtype.blocks().is_some()
        && let Some(at) = values.iter().position(|value| !value.is_finite())
    {
        let got = format!("{} at element {at}", values[at]);
        return Err(refuse(path, spec, "finite values".to_owned(), got));
    }
    finite(path, spec, HostTensor::rounded(values, spec.dtype, spec.shape.clone()))
}

/// A tensor that was made, if it could be and, where it is quantised, all its scales are numbers.
fn finite(
    path: &Path,
    spec: &TensorSpec,
    tensor: Result<HostTensor, crate::kernels::host::HostError>,
) -> Result<HostTensor, ImportError> {
    let expected = format!("values of shape {:?}", spec.shape);
    let tensor = tensor.map_err(|e| refuse(path, spec, expected, e.to_string()))?;
    let columns = spec.shape.last().copied().unwrap_or_default();
    match spec.dtype.blocks() {
        Some(kind) if !quantised::are_finite(kind, tensor.bytes(), columns) => {
            let got = "NaN or infinity as a block's scale or minimum".to_owned();
            Err(refuse(path, spec, "numbers in the range of f16".to_owned(), got))
        }
        _ => Ok(tensor),
    }
}

fn refuse(path: &Path, spec: &TensorSpec, expected: String, got: String) -> ImportError {
    let (path, tensor) = (path.to_owned(), spec.name.clone());
    ImportError::Weights(WeightError::Tensor { path, tensor, expected, got })
}
