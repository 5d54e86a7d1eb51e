//! The weights of an import: from a GGUF file or a checkpoint into what they are to be stored as.

use std::{collections::BTreeMap, fs, path::Path};

use super::{
    error::{ImportError, ImportOptions},
    gguf::{Gguf, GgufError, Stored, TensorSource},
    hub,
    packed::Packed,
    progress::Progress,
    quantise::Quantise,
};
use crate::{
    files::{self, write_json},
    kernels::{BlockType, Dtype, HostTensor, quantised},
    model::{
        config::ModelConfig,
        names::{T5_BIASES, is_router, is_vocabulary},
    },
    soup::{
        Checkpoint, TensorSpec, WeightError,
        checkpoint::{INDEX, SHARD_BYTES, write_checkpoint},
        weights::first_non_finite,
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
        // Biases by distance are values, not weights of products.
        _ if T5_BIASES.contains(&name) => return plain,
        (None, _) | (Some(Quantise::Keep), Stored::Plain) => return plain,
        // Its scores choose among experts: small errors would change the choice.
        _ if is_router(name) => return plain,
        (Some(Quantise::Keep), Stored::Blocks(kind)) => kind,
        (Some(Quantise::Keep), Stored::Other) => BlockType::Q8_0,
        (Some(Quantise::To(_)), _) if table => BlockType::Q8_0,
        (Some(Quantise::To(kind)), _) => kind,
    };
    if kind.bytes(shape).is_some() { Dtype::Quantised(kind) } else { plain }
}

/// Writes the checkpoint of a GGUF file into `out`.
pub(super) fn convert(path: &Path, out: &Path, options: &ImportOptions) -> Result<(), ImportError> {
    let gguf = Gguf::open(path)?;
    let tokenizer = gguf.tokenizer()?;
    let mut config = gguf.config(torch_dtype(options.dtype))?;
    for (key, id) in &tokenizer.special_ids {
        config[key] = id.clone();
    }
    let checked = ModelConfig::from_json(&config)
        .map_err(|error| GgufError::Config { path: path.to_owned(), error })?;
    let mut sources = BTreeMap::new();
    for source in gguf.sources(&checked)? {
        sources.insert(source.name.clone(), (gguf.stored(&source)?, source));
    }
    write_json(&out.join("config.json"), &config)?;
    write_json(&out.join("generation_config.json"), &tokenizer.special_ids)?;
    write_json(&out.join("tokenizer.json"), &tokenizer.tokenizer)?;
    write_json(&out.join("tokenizer_config.json"), &tokenizer.config)?;

    let spec = |(stored, source): &(Stored, TensorSource)| TensorSpec {
        name: source.name.clone(),
        dtype: storage(options.dtype, options.quantise, &source.name, &source.shape, *stored),
        shape: source.shape.clone(),
    };
    let specs: Vec<TensorSpec> = sources.values().map(spec).collect();
    write(out, &specs, |spec| {
        let (stored, source) = sources
            .get(&spec.name)
            .ok_or_else(|| refuse(path, spec, "it in the file".to_owned(), "nothing".to_owned()))?;
        match spec.dtype {
            Dtype::Quantised(kind) if *stored == Stored::Blocks(kind) => {
                let columns = spec.shape.last().copied().unwrap_or_default();
                let bytes = gguf.blocks(source, kind)?.arranged(columns);
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

/// Writes a packed checkpoint's model into `out`, dequantised.
pub(super) fn unpack(
    packed: &Packed,
    from: &Path,
    out: &Path,
    options: &ImportOptions,
) -> Result<(), ImportError> {
    let weights = |name: &str| name.ends_with(".safetensors") || name == INDEX;
    copy(from, out, |name| !weights(name) && name != "config.json")?;
    let mut config = packed.config().clone();
    if let Some(keys) = config.as_object_mut() {
        keys.remove("dtype");
        keys.insert("torch_dtype".to_owned(), torch_dtype(options.dtype).into());
    }
    write_json(&out.join("config.json"), &config)?;
    let specs = packed.specs(|name, shape| {
        storage(options.dtype, options.quantise, name, shape, Stored::Plain)
    })?;
    write(out, &specs, |spec| rounded(from, spec, &packed.values(spec)?))
}

/// transformers' name of a storage type.
fn torch_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 | Dtype::Quantised(_) => "bfloat16",
    }
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
        if path.is_file() && hub::is_kept(name) && wanted(name) {
            files::copy(&path, &to.join(name))?;
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

/// Values in the storage type of `spec`, all of them numbers before and after rounding.
fn rounded(path: &Path, spec: &TensorSpec, values: &[f32]) -> Result<HostTensor, ImportError> {
    let first = values.iter().position(|value| !value.is_finite());
    if let Some((at, value)) = first.and_then(|at| Some((at, values.get(at)?))) {
        let got = format!("{value} at element {at}");
        return Err(refuse(path, spec, "finite values".to_owned(), got));
    }
    let tensor = HostTensor::rounded(values, spec.dtype, spec.shape.clone());
    let tensor = finite(path, spec, tensor)?;
    let lost = first_non_finite(&tensor);
    if let Some((at, value)) = lost.and_then(|at| Some((at, values.get(at)?))) {
        let (expected, got) = (format!("values in the range of {}", spec.dtype), value);
        return Err(refuse(
            path,
            spec,
            expected,
            format!("{got} at element {at} (try --dtype bf16)"),
        ));
    }
    Ok(tensor)
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
