//! Products of a run: PEFT adapters, and the soup made of them.

use std::{fs, path::Path};

use candle_core::{DType, Tensor};
use ladle::{
    import::check_soup,
    soup::{
        self, OpenOptions, Soup,
        init::Recipe,
        manifest::{self, BaseEntry, Manifest, Mixing},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    checkpoint::{CheckpointError, read_toml, serialize, write_atomically, write_toml},
    config::{Config, MixingConfig},
    error::RunError,
    layout::{Layout, Places, WEIGHTS},
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

/// Writes a trained backbone: the weights of its rewards, then its adapter.
pub fn write_backbone(
    policy: &Policy,
    realised: &[f64],
    name: &str,
    layout: &Layout,
    base: &str,
) -> Result<(), RunError> {
    let realised = Realised { realised: realised.to_vec() };
    write_toml(&layout.realised(name), &realised)?;
    write_adapter(policy, &layout.adapter(name), base)
}

/// The step-weighted mean of a finished backbone's reward weights, one per objective of `config`.
pub fn realised(config: &Config, layout: &Layout, name: &str) -> Result<Vec<f64>, CheckpointError> {
    let path = layout.realised(name);
    let read: Realised = read_toml(&path)?;
    let (got, expected) = (read.realised.len(), config.objectives.len());
    if got != expected {
        let reason = format!("{got} realised weights, expected {expected}, one per objective");
        return Err(CheckpointError::Format { path, reason });
    }
    Ok(read.realised)
}

#[derive(Serialize, Deserialize)]
struct Realised {
    realised: Vec<f64>,
}

/// Makes the soup of a run's finished adapters, which must be one that can be served. An older one
/// is replaced.
pub fn write_soup(
    config: &Config,
    places: &Places,
    mixing: Mixing,
    layout: &Layout,
) -> Result<(), RunError> {
    let names = config.policies().into_iter().map(str::to_owned);
    let base = match fs::canonicalize(&config.base) {
        Ok(path) => BaseEntry { path: Some(path), ..BaseEntry::default() },
        Err(_) => BaseEntry { id: Some(config.base.clone()), ..BaseEntry::default() },
    };
    let recipe = Recipe {
        name: config.name.clone(),
        base,
        sft: config.sft.is_some().then(|| layout.adapter("sft")),
        objectives: names.clone().collect(),
        backbones: names.map(|name| (name.clone(), layout.adapter(&name))).collect(),
        mixing,
        activation: config.lora.activation,
    };
    let options = OpenOptions { base: Some(places.base.clone()), ..OpenOptions::default() };
    let target = layout.soup();
    if target.exists() {
        // The manifest first: a directory without one counts as no soup and is written anew.
        let _ = fs::remove_file(target.join(manifest::FILE));
        fs::remove_dir_all(&target).map_err(CheckpointError::io(&target))?;
    }
    let check = |soup: &Soup| Ok::<_, RunError>(check_soup(soup)?);
    let mut manifest: Manifest = soup::init::init(&target, &recipe, &options, check)?;
    match &config.mixing {
        MixingConfig::Weights(weights) => {
            let named = config.objectives.iter().zip(weights);
            let named = named.map(|(objective, weight)| format!("{} {weight}", objective.name));
            let named = named.collect::<Vec<_>>().join(", ");
            let strategy = config.balance.strategy;
            let description = format!("One policy for all preferences ({strategy}: {named}).");
            manifest.objectives.iter_mut().for_each(|o| o.description.clone_from(&description));
        }
        _ => {
            for (entry, objective) in manifest.objectives.iter_mut().zip(&config.objectives) {
                entry.description.clone_from(&objective.description);
            }
        }
    }
    let path = target.join(manifest::FILE);
    let text = manifest.to_toml().map_err(|error| CheckpointError::Format {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    Ok(write_atomically(&path, text.as_bytes())?)
}
