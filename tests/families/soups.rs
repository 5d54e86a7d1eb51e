//! Soups of two backbones on a tiny model, written as PEFT and transformers write theirs, and engines
//! on them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use ladle::{
    engine::{
        Combine, CpuBackend, CpuOptions, EngineConfig, EngineHandle, GenerateRequest, MergeMode,
        StepLimits, start,
    },
    import::Store,
    kernels::{Dtype, HostTensor},
    preference::Coefficients,
    sampling::SamplingParams,
    soup::{
        Activation, Checkpoint, OpenOptions, Soup, TensorSpec, WeightError,
        checkpoint::{SHARD_BYTES, write_checkpoint},
        init::Recipe,
        manifest::{BaseEntry, Mixing},
    },
    tokenizer::Tokenizer,
};
use serde_json::json;

use crate::{
    answers::{Answer, collect},
    common::copy_tree,
};

/// What the backbones of a soup are.
#[derive(Clone, Copy, PartialEq)]
pub enum Backbones {
    Adapters,
    Full,
}

/// Values around 0, of about `size`.
pub fn noise(count: usize, size: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            size * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        })
        .collect()
}

/// Writes the weights of a checkpoint.
pub fn write(dir: &Path, tensors: &[(String, HostTensor)]) {
    let specs: Vec<_> = tensors.iter().map(|(name, t)| TensorSpec::of(name, t)).collect();
    write_checkpoint(dir, &specs, SHARD_BYTES, |spec| {
        let (_, tensor) = tensors.iter().find(|(name, _)| *name == spec.name).unwrap();
        Ok::<_, WeightError>(tensor.clone())
    })
    .unwrap();
}

/// An adapter of rank 2 on every linear layer inside the layers.
fn write_adapter(dir: &Path, base: &Checkpoint, seed: u64) {
    fs::create_dir_all(dir).unwrap();
    let (mut tensors, mut targets) = (Vec::new(), BTreeSet::new());
    for (index, (name, tensor)) in base.tensors().iter().enumerate() {
        let parts = [".block_sparse_moe.", "_proj.weight", "Attention.", ".DenseReluDense."];
        let linear = parts.iter().any(|part| name.contains(part)) && !name.contains("bias");
        let Some(module) = name.strip_suffix(".weight").filter(|_| linear) else { continue };
        let (rows, columns) = (tensor.shape()[0], tensor.shape()[1]);
        for (factor, shape) in [("A", vec![2, columns]), ("B", vec![rows, 2])] {
            let values = noise(2 * shape.iter().max().unwrap(), 0.15, seed + 2 * index as u64);
            let name = format!("base_model.model.{module}.lora_{factor}.weight");
            tensors.push((name, HostTensor::from_f32(&values, shape).unwrap()));
        }
        targets.insert(module.rsplit('.').next().unwrap());
    }
    write(dir, &tensors);
    fs::rename(dir.join("model.safetensors"), dir.join("adapter_model.safetensors")).unwrap();
    let t5 = base.config()["model_type"] == "t5";
    let config = json!({
        "peft_type": "LORA", "task_type": if t5 { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" }, "r": 2, "lora_alpha": 4, "bias": "none",
        "target_modules": targets, "base_model_name_or_path": "base",
    });
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
}

/// A checkpoint whose values are the base's times something near 1.
fn write_full(dir: &Path, from: &Path, base: &Checkpoint, seed: u64) {
    copy_tree(from, dir);
    let tensors = base.tensors().iter().enumerate().map(|(index, (name, tensor))| {
        let noise = noise(tensor.len(), 0.2, seed + index as u64);
        let values: Vec<_> =
            tensor.to_f32().iter().zip(noise).map(|(v, noise)| v * (1.0 + noise)).collect();
        (name.clone(), HostTensor::from_f32(&values, tensor.shape().to_vec()).unwrap())
    });
    write(dir, &tensors.collect::<Vec<_>>());
}

/// A soup on the model in `base`, made in `dir` as `ladle init` makes one.
pub fn soup(
    base: &Path,
    dir: &Path,
    backbones: Backbones,
    activation: Activation,
) -> Result<Soup, String> {
    let checkpoint = Checkpoint::open(base).map_err(|error| error.to_string())?;
    let written = ["left", "right"].into_iter().zip([1000, 2000]).map(|(name, seed)| {
        let at = dir.join(name);
        match backbones {
            Backbones::Adapters => write_adapter(&at, &checkpoint, seed),
            Backbones::Full => write_full(&at, base, &checkpoint, seed),
        }
        (name.to_owned(), at)
    });
    let recipe = Recipe {
        name: "grid".to_owned(),
        base: BaseEntry { path: Some(base.to_owned()), ..BaseEntry::default() },
        sft: None,
        objectives: Vec::new(),
        backbones: written.collect(),
        mixing: Mixing { beta: Some(0.7), ..Mixing::default() },
        activation,
    };
    let store = Store { models_dir: dir.to_owned(), offline: true };
    let soup = dir.join("soup");
    store.init(&soup, &recipe).map_err(|error| error.to_string())?;
    Soup::open(&soup, &OpenOptions::default()).map_err(|error| error.to_string())
}

/// A copy of a model with all values in f32.
pub fn widened(from: &Path, to: PathBuf) -> PathBuf {
    copy_tree(from, &to);
    let checkpoint = Checkpoint::open(from).unwrap();
    let tensors = checkpoint.tensors().iter().map(|(name, tensor)| {
        let wide = HostTensor::from_f32(&tensor.to_f32(), tensor.shape().to_vec()).unwrap();
        (name.clone(), wide)
    });
    write(&to, &tensors.collect::<Vec<_>>());
    to
}

pub fn engine(soup: &Soup, merge_mode: MergeMode) -> Result<EngineHandle, String> {
    let options = CpuOptions {
        threads: Some(2),
        kv_bytes: 4 << 20,
        kv_dtype: Some(Dtype::F32.into()),
        merged_bytes: 16 << 20,
        merge_mode,
        ..CpuOptions::default()
    };
    let limits =
        StepLimits { step_tokens: 512, prefill_chunk: 5, ..EngineConfig::default().limits };
    let config = EngineConfig { limits, merge_mode, ..EngineConfig::default() };
    let tokenizer = Tokenizer::from_dir(&soup.base_dir).map_err(|error| error.to_string())?;
    let backend = CpuBackend::open(soup, &options).map_err(|error| error.to_string())?;
    start(backend, tokenizer, config).map_err(|error| error.to_string())
}

/// A request of greedy tokens with their log-probabilities.
pub fn request(prompt: &[u32], c: &Coefficients, tokens: usize) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() },
        ignore_eos: true,
        ..GenerateRequest::new(prompt.to_vec(), c.clone(), tokens)
    }
}

/// The same of logits combined by these weights.
pub fn combined(request: GenerateRequest, weights: &[f64]) -> GenerateRequest {
    GenerateRequest { combine: Combine::Logits(weights.to_vec()), ..request }
}

/// The answers to requests that run in one batch.
pub fn ask(engine: &EngineHandle, requests: Vec<GenerateRequest>) -> Result<Vec<Answer>, String> {
    let running: Vec<_> = requests.into_iter().map(|request| engine.submit(request)).collect();
    let running = running.into_iter().collect::<Result<Vec<_>, _>>();
    Ok(running.map_err(|error| error.to_string())?.into_iter().map(collect).collect())
}
