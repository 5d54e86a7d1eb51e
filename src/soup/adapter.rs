//! A PEFT LoRA adapter, as PEFT and TRL write it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    checkpoint::Checkpoint,
    peft::LoraConfig,
    weights::{WeightError, WeightFile},
};
use crate::{
    kernels::HostTensor,
    model::names::{EMBEDDING, HEAD, module_of},
};

/// The settings.
pub const CONFIG: &str = "adapter_config.json";
/// The factors.
pub const WEIGHTS: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const CONVERT: &str = "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load(\
     'adapter_model.bin', weights_only=True), 'adapter_model.safetensors')\"";

/// The low-rank change of one linear layer: ΔW = `scale` · `up` · `down`.
#[derive(Debug, Clone)]
pub struct LoraModule {
    /// A, `[r, in]`.
    pub down: HostTensor,
    /// B, `[out, r]`.
    pub up: HostTensor,
    /// s: alpha / r, for rsLoRA alpha / √r.
    pub scale: f64,
}

impl LoraModule {
    /// Its rank r.
    pub fn rank(&self) -> usize {
        self.down.shape().first().copied().unwrap_or(0)
    }

    /// Shape of ΔW, `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        let dim = |tensor: &HostTensor, axis| tensor.shape().get(axis).copied().unwrap_or(0);
        (dim(&self.up, 0), dim(&self.down, 1))
    }
}

/// An adapter: low-rank changes by module path, and tensors stored whole.
pub struct Adapter {
    dir: PathBuf,
    /// Low-rank changes by module path such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraModule>,
    /// Tensors of `modules_to_save` by their full name in the base: they replace the base's.
    pub saved: BTreeMap<String, HostTensor>,
    config: LoraConfig,
    document: Value,
    file: WeightFile,
}

impl Adapter {
    /// Opens `dir` and checks the adapter for itself; [`Adapter::check`] holds it against a base.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        let path = dir.join(WEIGHTS);
        if !path.is_file() {
            let pickle = dir.join("adapter_model.bin");
            return Err(if pickle.exists() {
                WeightError::Pickle { path: pickle, hint: CONVERT }
            } else {
                WeightError::NoWeights { dir: dir.to_owned(), expected: WEIGHTS }
            });
        }
        let (config, document) = LoraConfig::open(&dir.join(CONFIG))?;
        let (file, tensors) = WeightFile::open(&path)?;
        let mut factors: BTreeMap<String, [Option<HostTensor>; 2]> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        for (key, tensor) in tensors {
            if tensor.dtype().blocks().is_some() {
                let expected = "dtype F32, F16 or BF16".to_owned();
                let got = tensor.dtype().to_string();
                return Err(WeightError::Tensor { path, tensor: key, expected, got });
            }
            let refuse = |expected: &str| WeightError::Tensor {
                path: path.clone(),
                tensor: key.clone(),
                expected: expected.to_owned(),
                got: "that name".to_owned(),
            };
            let name = key
                .strip_prefix(PREFIX)
                .ok_or_else(|| refuse("a name that starts with base_model.model."))?;
            if let Some(module) = name.strip_suffix(".lora_A.weight") {
                factors.entry(module.to_owned()).or_default()[0] = Some(tensor);
            } else if let Some(module) = name.strip_suffix(".lora_B.weight") {
                factors.entry(module.to_owned()).or_default()[1] = Some(tensor);
            } else if name.contains("lora_embedding_") {
                return Err(refuse("no low-rank change of an embedding (use modules_to_save)"));
            } else if let Some((module, _)) = name.rsplit_once('.')
                && config.saves(module)
            {
                saved.insert(name.to_owned(), tensor);
            } else {
                return Err(refuse("….lora_A.weight, ….lora_B.weight or one of modules_to_save"));
            }
        }
        let mut modules = BTreeMap::new();
        for (module, pair) in factors {
            let lora = pair_up(&path, &module, pair, config.rank_and_scale(&module))?;
            modules.insert(module, lora);
        }
        Ok(Self { dir: dir.to_owned(), modules, saved, config, document, file })
    }

    /// Where it was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `adapter_config.json` as it stands.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The weight file.
    pub fn file(&self) -> &WeightFile {
        &self.file
    }

    /// Holds the adapter against its base: every module that the settings target is there and no
    /// other, all shapes fit, and nothing would untie tied embeddings.
    pub fn check(&self, base: &Checkpoint) -> Result<(), WeightError> {
        for (module, lora) in &self.modules {
            let name = format!("{module}.weight");
            let key = format!("{PREFIX}{module}.lora_A.weight");
            let Some(weight) = base.get(&name) else {
                return Err(self.refuse(&key, format!("a module of the base ({name})"), "no such"));
            };
            let &[out, width] = weight.shape() else {
                let expected = format!("a linear layer, {name} being [out, in]");
                return Err(self.refuse(&key, expected, &format!("{:?}", weight.shape())));
            };
            if lora.down.shape().get(1) != Some(&width) {
                let expected = format!("[r, {width}] to fit {name} {:?}", weight.shape());
                return Err(self.refuse(&key, expected, &format!("{:?}", lora.down.shape())));
            }
            if lora.up.shape().first() != Some(&out) {
                let key = format!("{PREFIX}{module}.lora_B.weight");
                let expected = format!("[{out}, r] to fit {name} {:?}", weight.shape());
                return Err(self.refuse(&key, expected, &format!("{:?}", lora.up.shape())));
            }
            if !self.config.targets(module) {
                let expected = "a module that target_modules names".to_owned();
                return Err(self.refuse(&key, expected, "a left-over tensor"));
            }
        }
        for (name, weight) in base.tensors() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            if weight.shape().len() == 2
                && self.config.targets(module)
                && !self.modules.contains_key(module)
            {
                let key = format!("{PREFIX}{module}.lora_A.weight");
                let expected = "it, because target_modules names its module".to_owned();
                return Err(self.refuse(&key, expected, "no such tensor"));
            }
        }
        self.check_saved(base)
    }

    fn check_saved(&self, base: &Checkpoint) -> Result<(), WeightError> {
        for (name, tensor) in &self.saved {
            let key = format!("{PREFIX}{name}");
            let shape = format!("{:?}", tensor.shape());
            match base.get(name) {
                Some(weight) if weight.shape() == tensor.shape() => {}
                Some(weight) => {
                    let expected = format!("{:?}, the base's shape", weight.shape());
                    return Err(self.refuse(&key, expected, &shape));
                }
                None if name == HEAD && base.get(EMBEDDING).is_some() => {
                    let expected = "no lm_head of its own: the base's is tied to embed_tokens";
                    return Err(self.refuse(&key, expected.to_owned(), &shape));
                }
                None => {
                    let expected = "a tensor of the base".to_owned();
                    return Err(self.refuse(&key, expected, "no such tensor there"));
                }
            }
        }
        for name in base.tensors().keys() {
            if self.config.saves(module_of(name)) && !self.saved.contains_key(name) {
                let expected = "it, because modules_to_save names its module".to_owned();
                let key = format!("{PREFIX}{name}");
                return Err(self.refuse(&key, expected, "no such tensor"));
            }
        }
        // PEFT copies a saved module: a tied head would keep the base's embedding.
        let tied = base.get(HEAD).is_none();
        if tied && self.saved.contains_key(EMBEDDING) && !self.config.ties_weights {
            let expected = "embed_tokens saved with ensure_weight_tying, because the base's head \
                            is tied to it";
            let key = format!("{PREFIX}{EMBEDDING}");
            return Err(self.refuse(&key, expected.to_owned(), "it saved alone"));
        }
        Ok(())
    }

    /// All tensors with their names in the file.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &HostTensor)> {
        let factors = self.modules.iter().flat_map(|(module, lora)| {
            [("lora_A", &lora.down), ("lora_B", &lora.up)]
                .map(|(side, tensor)| (format!("{PREFIX}{module}.{side}.weight"), tensor))
        });
        factors.chain(self.saved.iter().map(|(name, t)| (format!("{PREFIX}{name}"), t)))
    }

    fn refuse(&self, tensor: &str, expected: String, got: &str) -> WeightError {
        WeightError::Tensor {
            path: self.file.path.clone(),
            tensor: tensor.to_owned(),
            expected,
            got: got.to_owned(),
        }
    }
}

/// The two factors of a module, checked against the rank that the settings give it.
fn pair_up(
    path: &Path,
    module: &str,
    pair: [Option<HostTensor>; 2],
    (rank, scale): (usize, f64),
) -> Result<LoraModule, WeightError> {
    let refuse = |side: &str, expected: String, got: String| WeightError::Tensor {
        path: path.to_owned(),
        tensor: format!("{PREFIX}{module}.lora_{side}.weight"),
        expected,
        got,
    };
    let missing = |side| refuse(side, "it beside its other factor".into(), "no such tensor".into());
    let [down, up] = pair;
    let (down, up) = (down.ok_or_else(|| missing("A"))?, up.ok_or_else(|| missing("B"))?);
    if down.shape().len() != 2 || down.shape().first() != Some(&rank) {
        let expected = format!("[{rank}, in], rank {rank} being the settings'");
        return Err(refuse("A", expected, format!("{:?}", down.shape())));
    }
    if up.shape().len() != 2 || up.shape().get(1) != Some(&rank) {
        let expected = format!("[out, {rank}], rank {rank} being the settings'");
        return Err(refuse("B", expected, format!("{:?}", up.shape())));
    }
    Ok(LoraModule { down, up, scale })
}
