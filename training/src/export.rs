//! What a run leaves for others: PEFT adapters, and the soup made of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Tensor};
use ladle::soup::{
    self, OpenOptions,
    init::Recipe,
    manifest::{self, BaseEntry, Manifest, Mixing},
};
use serde_json::json;

use crate::{
    checkpoint::{CheckpointError, serialize, write_atomically},
    config::Config,
    error::RunError,
    rl::lora::Policy,
};

/// Writes the policy's adapter as PEFT does, its factors in bf16: `adapter_model.safetensors` last,
/// so that a directory with that file is a whole adapter.
pub fn write_adapter(policy: &Policy, directory: &Path, base: &str) -> Result<(), RunError> {
    let config = policy.config();
    let settings = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.targets,
        "bias": "none",
        "use_rslora": false,
        "use_dora": false,
        "fan_in_fan_out": false,
        "modules_to_save": null,
        "inference_mode": true,
    });
    write_atomically(&directory.join("adapter_config.json"), format!("{settings:#}\n").as_bytes())?;
    let tensors = policy
        .variables()
        .into_iter()
        .map(|(name, var)| Ok((name, var.as_tensor().detach().to_dtype(DType::BF16)?)));
    let tensors = tensors.collect::<candle_core::Result<Vec<(String, Tensor)>>>()?;
    let path = directory.join(WEIGHTS);
    let bytes = serialize(&tensors, None)
        .map_err(|reason| CheckpointError::Format { path: path.clone(), reason })?;
    Ok(write_atomically(&path, &bytes)?)
}

/// The file whose presence says that an adapter is whole.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Makes the soup directory `target` of trained adapters. An older one is replaced.
pub fn write_soup(
    config: &Config,
    base: BaseEntry,
    base_dir: &Path,
    adapters: &Path,
    realised: Vec<Vec<f64>>,
    mixing: Vec<Vec<f64>>,
    target: &Path,
) -> Result<(), RunError> {
    let names = config.objectives.iter().map(|objective| objective.name.clone());
    let recipe = Recipe {
        name: config.name.clone(),
        base,
        sft: config.sft.is_some().then(|| adapters.join("sft")),
        objectives: names.clone().collect(),
        backbones: names
            .map(|name| (name.clone(), adapters.join(&name)))
            .collect::<Vec<(String, PathBuf)>>(),
        mixing: Mixing { matrix: Some(mixing), realised: Some(realised), ..Mixing::default() },
    };
    let options = OpenOptions { base: Some(base_dir.to_owned()), verify_digests: false };
    if target.exists() {
        // The manifest first: a soup without one is made anew.
        let _ = fs::remove_file(target.join(manifest::FILE));
        fs::remove_dir_all(target).map_err(CheckpointError::io(target))?;
    }
    let mut manifest: Manifest = soup::init::init(target, &recipe, &options)?;
    for (entry, objective) in manifest.objectives.iter_mut().zip(&config.objectives) {
        entry.description.clone_from(&objective.description);
    }
    let path = target.join(manifest::FILE);
    let text = manifest.to_toml().map_err(|error| CheckpointError::Format {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    Ok(write_atomically(&path, text.as_bytes())?)
}
