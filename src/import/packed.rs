//! Checkpoints whose linear weights are packed: GPTQ and AWQ (4-bit codes in words), and FP8 in blocks.
//! They are dequantised at import, by the formulas of [`values`].

mod values;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{
    Dtype as Stored, SafeTensors,
    tensor::{Metadata, TensorView},
};
use serde_json::Value;

use super::error::ImportError;
use crate::{
    files::read_json,
    kernels::Dtype,
    model::config::ModelConfig,
    soup::{
        TensorSpec, WeightError,
        checkpoint::{INDEX, SINGLE},
    },
};
use values::{Codes, awq, fp8, gptq, plain};

/// The key of a configuration that says how its weights are packed.
const KEY: &str = "quantization_config";

/// How the linear weights of a checkpoint are packed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scheme {
    /// Codes of so many bits along the inputs; zero points are stored less one in the first format.
    Gptq { bits: u32, less_one: bool },
    /// 4-bit codes along the outputs, in AutoAWQ's order.
    Awq,
    /// e4m3 with a scale for each block `[rows, columns]`.
    Fp8 { block: [usize; 2] },
}

/// A packed checkpoint.
pub struct Packed {
    path: PathBuf,
    /// `config.json` without the packing.
    config: Value,
    scheme: Scheme,
    files: Vec<Shard>,
    /// The file that holds each tensor.
    tensors: BTreeMap<String, usize>,
}

/// One of its files.
struct Shard {
    map: Mmap,
    /// Where the tensors begin.
    start: usize,
    header: Metadata,
}

/// `config.json` as it is once the weights are dequantised; `None` where they are not packed.
pub fn unpacked(config: &Value, path: &Path) -> Result<Option<Value>, ImportError> {
    if config.get(KEY).is_none_or(Value::is_null) {
        return Ok(None);
    }
    scheme(config, path)?;
    let mut config = config.clone();
    if let Some(keys) = config.as_object_mut() {
        keys.remove(KEY);
    }
    Ok(Some(config))
}

fn scheme(config: &Value, path: &Path) -> Result<Scheme, ImportError> {
    let settings = &config[KEY];
    let refuse = |key: &str, expected: &str| {
        ImportError::Weights(WeightError::Json {
            path: path.to_owned(),
            key: format!("{KEY}.{key}"),
            expected: expected.to_owned(),
            got: settings[key].to_string(),
        })
    };
    let bits = settings["bits"].as_u64().or(settings["w_bit"].as_u64());
    match settings["quant_method"].as_str() {
        Some("gptq") => {
            let bits = bits.filter(|bits| [4, 8].contains(bits));
            let format = settings["checkpoint_format"].as_str().unwrap_or("gptq");
            if !["gptq", "gptq_v2"].contains(&format) {
                return Err(refuse("checkpoint_format", "gptq or gptq_v2"));
            }
            let bits = bits.ok_or_else(|| refuse("bits", "4 or 8"))? as u32;
            Ok(Scheme::Gptq { bits, less_one: format == "gptq" })
        }
        Some("awq") => {
            let version = settings["version"].as_str().unwrap_or("gemm").to_lowercase();
            if version != "gemm" {
                return Err(refuse("version", "gemm"));
            }
            bits.filter(|bits| *bits == 4).ok_or_else(|| refuse("bits", "4"))?;
            Ok(Scheme::Awq)
        }
        Some("fp8") => {
            let block = settings["weight_block_size"].as_array().map(Vec::as_slice);
            let size = |value: &Value| value.as_u64().and_then(|size| usize::try_from(size).ok());
            match block.unwrap_or_default().iter().map(size).collect::<Option<Vec<_>>>().as_deref()
            {
                Some(&[rows, columns]) if rows > 0 && columns > 0 => {
                    Ok(Scheme::Fp8 { block: [rows, columns] })
                }
                _ => Err(refuse("weight_block_size", "two numbers above 0")),
            }
        }
        _ => Err(refuse("quant_method", "gptq, awq or fp8")),
    }
}

impl Packed {
    /// Opens the checkpoint in `dir`; `None` where it is not packed.
    pub fn open(dir: &Path) -> Result<Option<Self>, ImportError> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Ok(None);
        }
        let config: Value = read_json(&path)?;
        let Some(unpacked) = unpacked(&config, &path)? else { return Ok(None) };
        let scheme = scheme(&config, &path)?;
        let names = match dir.join(SINGLE).is_file() {
            true => vec![SINGLE.to_owned()],
            false => {
                let index: Value = read_json(&dir.join(INDEX))?;
                let map = index["weight_map"].as_object().into_iter().flatten();
                let mut names: Vec<String> =
                    map.filter_map(|(_, shard)| shard.as_str().map(str::to_owned)).collect();
                names.sort();
                names.dedup();
                names
            }
        };
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for name in names {
            let path = dir.join(name);
            let file = File::open(&path).map_err(ImportError::io(&path))?;
            // SAFETY: the map is read-only; the model's files are not changed while it is imported.
            let map = unsafe { Mmap::map(&file) }.map_err(ImportError::io(&path))?;
            let (length, header) = SafeTensors::read_metadata(&map).map_err(|error| {
                let reason = error.to_string();
                ImportError::Weights(WeightError::Header { path, reason })
            })?;
            tensors.extend(header.offset_keys().into_iter().map(|name| (name, files.len())));
            files.push(Shard { map, start: length + 8, header });
        }
        Ok(Some(Self { path: dir.to_owned(), config: unpacked, scheme, files, tensors }))
    }

    /// `config.json` as it is once the weights are dequantised.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tensors of the model, each in the storage type that `dtype` gives it.
    pub fn specs(
        &self,
        dtype: impl Fn(&str, &[usize]) -> Dtype,
    ) -> Result<Vec<TensorSpec>, ImportError> {
        let model = ModelConfig::from_json(&self.config).map_err(|error| {
            ImportError::Weights(WeightError::Config { dir: self.path.clone(), error })
        })?;
        let known: BTreeMap<String, Vec<usize>> = model.tensors().into_iter().collect();
        let mut specs = Vec::new();
        for name in self.tensors.keys() {
            let (module, kind) = name.rsplit_once('.').unwrap_or((name, ""));
            let name = match (self.scheme, kind) {
                (Scheme::Gptq { .. } | Scheme::Awq, "qweight") => format!("{module}.weight"),
                (Scheme::Gptq { .. } | Scheme::Awq, "qzeros" | "scales" | "g_idx") => continue,
                (Scheme::Fp8 { .. }, "weight_scale_inv") => continue,
                // Packers give every layer a bias, of zeros where it has none.
                (_, "bias") if !known.contains_key(name) && self.is_zero(name)? => continue,
                _ => name.clone(),
            };
            let shape = self.shape(&name)?;
            specs.push(TensorSpec { dtype: dtype(&name, &shape), name, shape });
        }
        Ok(specs)
    }

    /// The values of a tensor of [`Self::specs`], row-major.
    pub fn values(&self, spec: &TensorSpec) -> Result<Vec<f32>, ImportError> {
        let module = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
        let part = |kind: &str| self.get(&format!("{module}.{kind}"));
        let refuse = |reason| self.refuse(&spec.name, "a packed weight", reason);
        match self.scheme {
            Scheme::Gptq { .. } | Scheme::Awq if self.is_packed(module) => {
                let (weight, zeros) = (part("qweight")?, part("qzeros")?);
                let scales = part("scales")?;
                let scales = (plain(&scales).map_err(refuse)?, scales.shape().to_vec());
                let codes = Codes { weight: &weight, zeros: &zeros, scales, shape: &spec.shape };
                match self.scheme {
                    Scheme::Gptq { bits, less_one } => {
                        let groups = part("g_idx").ok();
                        gptq(&codes, groups.as_ref(), bits, less_one).map_err(refuse)
                    }
                    _ => awq(&codes).map_err(refuse),
                }
            }
            Scheme::Fp8 { block } if self.get(&spec.name)?.dtype() == Stored::F8_E4M3 => {
                let scales = part("weight_scale_inv")?;
                fp8(&self.get(&spec.name)?, &scales, block).map_err(refuse)
            }
            _ => plain(&self.get(&spec.name)?).map_err(refuse),
        }
    }

    fn is_packed(&self, module: &str) -> bool {
        self.tensors.contains_key(&format!("{module}.qweight"))
    }

    fn is_zero(&self, name: &str) -> Result<bool, ImportError> {
        Ok(self.get(name)?.data().iter().all(|&byte| byte == 0))
    }

    /// Shape of a tensor of the model.
    fn shape(&self, name: &str) -> Result<Vec<usize>, ImportError> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if !self.is_packed(module) {
            return Ok(self.get(name)?.shape().to_vec());
        }
        let weight = self.get(&format!("{module}.qweight"))?;
        let &[rows, columns] = weight.shape() else {
            return Err(self.refuse(name, "packed codes as a matrix", "another rank".to_owned()));
        };
        let (inputs, outputs) = match self.scheme {
            Scheme::Gptq { bits, .. } => (rows.saturating_mul(32 / bits as usize), columns),
            _ => (rows, columns.saturating_mul(8)),
        };
        Ok(vec![outputs, inputs])
    }

    fn get(&self, name: &str) -> Result<TensorView<'_>, ImportError> {
        let view = || {
            let shard = self.files.get(*self.tensors.get(name)?)?;
            let info = shard.header.info(name)?;
            let (first, last) = info.data_offsets;
            let data = shard.map.get(shard.start + first..shard.start + last)?;
            TensorView::new(info.dtype, info.shape.clone(), data).ok()
        };
        view().ok_or_else(|| {
            self.refuse(name, "it beside the packed weight", "no such tensor".to_owned())
        })
    }

    fn refuse(&self, tensor: &str, expected: &str, got: String) -> ImportError {
        ImportError::Weights(WeightError::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            expected: expected.to_owned(),
            got,
        })
    }
}
