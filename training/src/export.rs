//! Products of a run: PEFT adapters, and the soup made of them.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Tensor};
use ladle::{
    files::{sha256, write_json},
    import::check_soup,
    soup::{
        self, Adapter, Checkpoint, OpenOptions, Soup,
        bones::{self, Bone, Engine, Kl, Rewarded, Scale},
        init::Recipe,
        manifest::{self, BaseEntry, Mixing, Objective},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    aim::Column,
    checkpoint::{CheckpointError, read_toml, serialize, write_atomically, write_toml},
    config::{Config, MixingConfig, ObjectiveConfig, POLICY},
    error::RunError,
    layout::{Layout, Places, WEIGHTS},
    ric::goals::Range,
    rl::{
        balance::{Standardiser, Strategy},
        policy::Policy,
    },
    setup::Base,
};

/// Writes the policy's adapter as PEFT does, its factors in bf16: `adapter_model.safetensors` last,
/// so that a directory with that file is a whole adapter.
pub fn write_adapter(policy: &Policy, directory: &Path, base: &str) -> Result<(), RunError> {
    write_adapter_after(policy, directory, base, |_| Ok(()))
}

/// As [`write_adapter`], after `before` was given the digest of the weights that are about to be there.
fn write_adapter_after(
    policy: &Policy,
    directory: &Path,
    base: &str,
    before: impl FnOnce(String) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let config = policy.config();
    let encodes = policy.model().encoder.is_some();
    let settings = json!({
        "peft_type": "LORA",
        "task_type": if encodes { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.targets(policy.model()),
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
    before(sha256(&bytes))?;
    Ok(write_atomically(&path, &bytes)?)
}

/// A trained backbone, or a policy alone.
pub struct Trained<'a> {
    pub name: &'a str,
    pub policy: &'a Policy,
    /// Step-weighted mean of the reward weights: its column of the realised B.
    pub realised: Vec<f64>,
    pub steps: u64,
    pub kl: Kl,
    /// Its column of B; none of a policy alone.
    pub column: Option<Column<'a>>,
    pub standardiser: &'a Standardiser,
}

/// Writes a trained backbone: the weights of its rewards, what it says of itself, then its adapter.
pub fn write_backbone(
    trained: &Trained<'_>,
    config: &Config,
    base: &Base,
    (layout, sft): (&Layout, &Layout),
) -> Result<(), RunError> {
    let realised = Realised { realised: trained.realised.clone() };
    write_toml(&layout.realised(trained.name), &realised)?;
    let directory = layout.adapter(trained.name);
    let bone = |digest: String| {
        let Some(column) = &trained.column else { return Ok(()) };
        let mut bone = bone(trained, column, config, base, sft)?;
        bone.weights = [(WEIGHTS.to_owned(), digest)].into();
        Ok(write_json(&directory.join(bones::FILE), &bone).map_err(CheckpointError::from)?)
    };
    write_adapter_after(trained.policy, &directory, &config.base, bone)
}

/// What a backbone says of itself, but for the digest of its weights.
fn bone(
    trained: &Trained<'_>,
    column: &Column<'_>,
    config: &Config,
    base: &Base,
    sft: &Layout,
) -> Result<Bone, RunError> {
    let sft = sft.adapter("sft");
    let adapter = config.sft.is_some().then(|| Adapter::open(&sft)).transpose()?;
    let checkpoint = Checkpoint::open(&base.dir)?;
    let rewarded = |o: &ObjectiveConfig| Rewarded {
        name: o.name.clone(),
        description: o.description.clone(),
        reward: table(&o.reward),
    };
    let moved = config.balance.strategy != Strategy::Average;
    let Standardiser { mean, std } = trained.standardiser.clone();
    Ok(Bone {
        format: bones::FORMAT,
        backbone: trained.name.to_owned(),
        objective: config.objectives[column.own].name.clone(),
        objectives: config.objectives.iter().map(rewarded).collect(),
        column: column.mixing.column(column.own),
        realised: moved.then(|| trained.realised.clone()),
        standardiser: Scale { mean, std },
        balance: table(&config.balance),
        seed: config.seed,
        shared_a: config.lora.shared(),
        steps: trained.steps,
        kl: trained.kl,
        activation: config.lora.activation,
        base: bones::Base {
            name: config.base.clone(),
            sha256: bones::digests(&base.dir, checkpoint.files().iter()),
        },
        sft: adapter.map(|adapter| bones::digests(&sft, [adapter.file()].into_iter())),
        weights: bones::Digests::new(),
        engine: Engine {
            name: "train-backbones".to_owned(),
            versions: [("train-backbones".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
        },
    })
}

/// Settings as JSON.
fn table(settings: &impl Serialize) -> BTreeMap<String, Value> {
    let value = serde_json::to_value(settings).unwrap_or_default();
    value.as_object().cloned().unwrap_or_default().into_iter().collect()
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
    let objectives = match &config.mixing {
        MixingConfig::Weights(weights) => {
            let named = config.objectives.iter().zip(weights);
            let named = named.map(|(objective, weight)| format!("{} {weight}", objective.name));
            let named = named.collect::<Vec<_>>().join(", ");
            let how = config.one_policy();
            let description = format!("One policy for all preferences ({how}: {named}).");
            vec![Objective { description, ..Objective::named(POLICY) }]
        }
        MixingConfig::Context(_) => {
            let Range { low, high } = read_toml(&layout.range(POLICY))?;
            let named = config.objectives.iter().zip(low.iter().zip(&high)).zip(1..);
            let named = named.map(|((objective, (low, high)), index)| {
                format!("<rm{index}_score> {} from {low:.1} to {high:.1}", objective.name)
            });
            let named = named.collect::<Vec<_>>().join(", ");
            let description = format!(
                "One policy that its prompts tell the rewards wanted, in σ (RiC: {named})."
            );
            vec![Objective { description, ..Objective::named(POLICY) }]
        }
        _ => {
            let entry = |o: &ObjectiveConfig| Objective {
                description: o.description.clone(),
                ..Objective::named(&o.name)
            };
            config.objectives.iter().map(entry).collect()
        }
    };
    let recipe = Recipe {
        name: config.name.clone(),
        base,
        sft: config.sft.is_some().then(|| layout.adapter("sft")),
        objectives,
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
    soup::init::init(&target, &recipe, &options, check)?;
    Ok(())
}
