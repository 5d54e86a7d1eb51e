//! `ladle merge`: the model of one c, written out for others to load.
//!
//! [`export_model`] writes a Hugging Face checkpoint. [`export_adapter`] writes one PEFT adapter for
//! a soup of adapters: ΔW = Σ cᵢsᵢBᵢAᵢ is one product of stacked factors, A stacked along its rows
//! and B along its columns, each A carrying its cᵢsᵢ (sign included), so that scale 1 is exact.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use super::{
    MergeError,
    dense::Merger,
    low_rank::{LowRankTerm, total_rank},
    plan::{PlanError, SoupPlan},
};
use crate::{
    files::{FileError, Staging, write_json},
    kernels::{Dtype, HostTensor},
    model::{
        config::{ConfigError, ModelConfig},
        names::{EMBEDDING, HEAD, module_of},
    },
    preference::Coefficients,
    soup::{
        Soup, TensorSpec, WeightError, adapter,
        checkpoint::{COMPANIONS, SHARD_BYTES, write_checkpoint},
        weights::write_safetensors,
    },
};

/// Why a merged model was not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The base's configuration is not one that can be merged.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The merge failed.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The soup's weights do not add up to a model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Weights could not be written.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// Full backbones cannot be told as a low-rank change.
    #[error(
        "backbone {backbone} is a full checkpoint, expected adapters only: a soup with full \
         checkpoints merges to a whole model (leave out --adapter)"
    )]
    NotLowRank {
        /// Name of the backbone.
        backbone: String,
    },
}

/// Writes the merged model of `c` as a Hugging Face checkpoint that is whole or absent: weights in
/// the base's storage types (or all in `dtype`), tokenizer and configuration of the base.
pub fn export_model(
    soup: &Soup,
    c: &Coefficients,
    dtype: Option<Dtype>,
    out: &Path,
) -> Result<(), ExportError> {
    let merger = Merger::new(plan(soup)?, dtype)?;
    let staging = Staging::new(out)?;
    for name in COMPANIONS {
        let from = soup.base_dir.join(name);
        if from.is_file() {
            fs::copy(&from, staging.path().join(name)).map_err(FileError::at(from))?;
        }
    }
    let specs: Vec<_> = merger
        .plan()
        .tensors()
        .iter()
        .map(|tensor| TensorSpec {
            name: tensor.name.clone(),
            dtype: dtype.unwrap_or(tensor.dtype),
            shape: tensor.shape().to_vec(),
        })
        .collect();
    write_checkpoint(staging.path(), &specs, SHARD_BYTES, |spec| {
        merger.tensor(&spec.name, c).map_err(ExportError::from)
    })?;
    if let Some(dtype) = dtype {
        set_dtype(&staging.path().join("config.json"), soup.base.config(), dtype)?;
    }
    Ok(staging.commit()?)
}

/// Writes θ̂ − base of `c` as one PEFT adapter in f32 that is whole or absent. Every module gets the
/// same rank, zeros filling up, because not every loader reads rank patterns. Tensors that an
/// adapter of the soup stores whole are merged and stored whole (`modules_to_save`).
pub fn export_adapter(soup: &Soup, c: &Coefficients, out: &Path) -> Result<(), ExportError> {
    let full = soup.manifest.backbones.iter().find(|b| b.kind == crate::soup::BackboneKind::Full);
    if let Some(backbone) = full {
        return Err(ExportError::NotLowRank { backbone: backbone.name.clone() });
    }
    let plan = plan(soup)?;
    let values = plan.term_values(c)?;
    let module = |tensor: &str| module_of(tensor).to_owned();
    let saved: BTreeSet<String> =
        soup.adapters().flat_map(|adapter| adapter.saved.keys()).map(|name| module(name)).collect();
    // Only tensors that are stored whole are merged.
    let merger = match saved.is_empty() {
        true => None,
        false => Some(Merger::new(plan.clone(), Some(Dtype::F32))?),
    };
    let low_rank = |tensor: &&super::plan::TensorPlan| {
        !tensor.low_rank.is_empty() && !saved.contains(&module(&tensor.name))
    };
    let adapted: Vec<_> = plan.tensors().iter().filter(low_rank).collect();
    let ranks = adapted.iter().map(|tensor| total_rank(&tensor.low_rank));
    let total: usize = ranks.max().unwrap_or(0).max(1);

    let mut specs = Vec::new();
    for tensor in &adapted {
        let &[rows, width] = tensor.shape() else { continue };
        let path = module(&tensor.name);
        for (side, shape) in [("lora_A", [total, width]), ("lora_B", [rows, total])] {
            let name = format!("base_model.model.{path}.{side}.weight");
            specs.push(TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() });
        }
    }
    for tensor in plan.tensors().iter().filter(|tensor| saved.contains(&module(&tensor.name))) {
        let name = format!("base_model.model.{}", tensor.name);
        specs.push(TensorSpec { name, dtype: Dtype::F32, shape: tensor.shape().to_vec() });
    }

    let staging = Staging::new(out)?;
    write_safetensors(&staging.path().join(adapter::WEIGHTS), &specs, |spec| {
        let name = spec.name.trim_start_matches("base_model.model.");
        let factor = |suffix: &str| {
            let path = name.strip_suffix(suffix)?;
            adapted.iter().find(|tensor| tensor.name.strip_suffix(".weight") == Some(path))
        };
        let stacked = if let Some(tensor) = factor(".lora_A.weight") {
            stack_down(&tensor.low_rank, &values, &spec.shape)
        } else if let Some(tensor) = factor(".lora_B.weight") {
            stack_up(&tensor.low_rank, &spec.shape)
        } else {
            let missing = || MergeError::Missing { tensor: name.to_owned() };
            return Ok(merger.as_ref().ok_or_else(missing)?.tensor(name, c)?);
        };
        HostTensor::from_f32(&stacked, spec.shape.clone()).map_err(|source| {
            ExportError::Merge(MergeError::Tensor { tensor: spec.name.clone(), source })
        })
    })?;
    let modules = adapted.iter().map(|tensor| module(&tensor.name)).collect();
    let config = adapter_config(soup, total, modules, saved);
    write_json(&staging.path().join(adapter::CONFIG), &config)?;
    Ok(staging.commit()?)
}

fn plan(soup: &Soup) -> Result<SoupPlan, ExportError> {
    Ok(SoupPlan::new(soup, &ModelConfig::from_json(soup.base.config())?)?)
}

/// A factors times cᵢsᵢ, below each other: `[Σ rank, in]`, zeros below.
fn stack_down(terms: &[LowRankTerm], values: &[f32], shape: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(shape.iter().product());
    for term in terms {
        let c = term.term.and_then(|index| values.get(index)).map_or(1.0, |&c| f64::from(c));
        let factor = c * term.lora.scale;
        out.extend(term.lora.down.to_f32().into_iter().map(|a| (f64::from(a) * factor) as f32));
    }
    out.resize(shape.iter().product(), 0.0);
    out
}

/// B factors beside each other: `[out, Σ rank]`, zeros to the right.
fn stack_up(terms: &[LowRankTerm], shape: &[usize]) -> Vec<f32> {
    let total = shape.last().copied().unwrap_or(1).max(1);
    let mut out = vec![0.0; shape.iter().product()];
    let mut column = 0;
    for term in terms {
        let rank = term.rank();
        if rank == 0 {
            continue;
        }
        for (row, values) in out.chunks_mut(total).zip(term.lora.up.to_f32().chunks(rank)) {
            row[column..column + rank].copy_from_slice(values);
        }
        column += rank;
    }
    out
}

fn adapter_config(
    soup: &Soup,
    rank: usize,
    modules: BTreeSet<String>,
    saved: BTreeSet<String>,
) -> Value {
    let ties = saved.contains(module_of(EMBEDDING)) && soup.base.get(HEAD).is_none();
    let base = &soup.manifest.base;
    let name = match (&base.id, &base.path, &base.gguf) {
        (Some(id), _, _) => id.clone(),
        _ => soup.base_dir.display().to_string(),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": base.revision,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": false,
        "use_dora": false,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "target_modules": short_names(soup, modules),
        "modules_to_save": (!saved.is_empty()).then_some(saved),
        "ensure_weight_tying": ties,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}

/// Module paths as their last names (`q_proj`) wherever that names no module beyond them.
fn short_names(soup: &Soup, modules: BTreeSet<String>) -> BTreeSet<String> {
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let all = || soup.base.names().filter_map(|name| name.strip_suffix(".weight"));
    let shared = |module: &String| {
        let name = last(module);
        all().filter(|other| last(other) == name).all(|other| modules.contains(other))
    };
    modules
        .iter()
        .map(|module| if shared(module) { last(module) } else { module.clone() })
        .collect()
}

/// Rewrites the storage type that the configuration names.
fn set_dtype(path: &Path, config: &Value, dtype: Dtype) -> Result<(), FileError> {
    let mut config = config.clone();
    let name = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 | Dtype::Quantised(_) => "bfloat16",
    };
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = json!(name);
        }
    }
    write_json(path, &config)
}
