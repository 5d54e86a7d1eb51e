//! A PEFT LoRA adapter, as PEFT and TRL write it.

mod experts;
mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    checkpoint::Checkpoint,
    error::WeightError,
    peft::LoraConfig,
    weights::{WeightFile, same_values},
};
use crate::{
    config::Residence,
    kernels::HostTensor,
    model::{
        config::ModelConfig,
        names::{HEAD, is_embedding, is_table, module_of},
    },
};
use experts::{Part, Stacked, is_stacked, parameter_of};
pub use names::PREFIX;
use names::{Entry, entry};

/// The settings.
pub const CONFIG: &str = "adapter_config.json";
/// The factors.
pub const WEIGHTS: &str = "adapter_model.safetensors";

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
    pub fn rank(&self) -> usize {
        self.down.shape().first().copied().unwrap_or(0)
    }

    /// Shape of ΔW, `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        let dim = |tensor: &HostTensor, axis| tensor.shape().get(axis).copied().unwrap_or(0);
        (dim(&self.up, 0), dim(&self.down, 1))
    }
}

/// Whether an adapter keeps embedding and head tied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// The base is untied.
    Apart,
    /// Tied, as in the base.
    Kept,
    /// Tied in the base, untied by the adapter.
    Parted,
}

/// An adapter: low-rank changes by module path, and tensors stored whole.
pub struct Adapter {
    dir: PathBuf,
    /// Low-rank changes by module path such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraModule>,
    /// Changes of whole layers of experts, until [`Self::fit`] makes modules of them.
    stacked: BTreeMap<String, Stacked>,
    /// Tensors stored whole by their full name in the base: they replace the base's.
    pub saved: BTreeMap<String, HostTensor>,
    /// Those of them that `modules_to_save` names: PEFT keeps them apart from the base's.
    copies: BTreeSet<String>,
    tie: Tie,
    config: LoraConfig,
    document: Value,
    file: WeightFile,
}

impl Adapter {
    /// Opens `dir` and checks the adapter alone; [`Adapter::fit`] checks it against a base. Its
    /// weights are copied: they are few.
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
        let (file, tensors) = WeightFile::open_as(&path, Residence::Copied)?;
        let mut factors: BTreeMap<String, [Option<HostTensor>; 2]> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        let mut copies = BTreeSet::new();
        for (key, tensor) in tensors {
            let refuse = |expected: &str, got: String| WeightError::Tensor {
                path: path.clone(),
                tensor: key.clone(),
                expected: expected.to_owned(),
                got,
            };
            if tensor.dtype().blocks().is_some() {
                return Err(refuse("dtype F32, F16 or BF16", tensor.dtype().to_string()));
            }
            let that_name = || "that name".to_owned();
            let entry = entry(&key).map_err(|expected| refuse(expected, that_name()))?;
            let taken = match entry {
                Entry::Down(module) => {
                    factors.entry(module.to_owned()).or_default()[0].replace(tensor).is_some()
                }
                Entry::Up(module) => {
                    factors.entry(module.to_owned()).or_default()[1].replace(tensor).is_some()
                }
                Entry::Copy { tensor: name } => {
                    if !config.saves(module_of(&name)) {
                        return Err(refuse("a module of modules_to_save", that_name()));
                    }
                    copies.insert(name.clone());
                    saved.insert(name, tensor).is_some()
                }
                Entry::Over { tensor: name, wrapped } => {
                    let module = module_of(&name);
                    // PEFT ignores a tensor that no module of the wrapped model has.
                    if wrapped != config.targets(module) {
                        let expected = match wrapped {
                            true => "a module of target_modules",
                            false => {
                                "it as ….base_layer.…, because target_modules names its module"
                            }
                        };
                        return Err(refuse(expected, that_name()));
                    }
                    if !wrapped && config.saves(module) {
                        copies.insert(name.clone());
                    }
                    saved.insert(name, tensor).is_some()
                }
                Entry::ValueHead => {
                    tracing::warn!(
                        path = %path.display(), tensor = key,
                        "left out: a value head is no part of the language model"
                    );
                    false
                }
                Entry::Unused => false,
            };
            if taken {
                return Err(refuse("each tensor once", "it under two names".to_owned()));
            }
        }
        let (mut modules, mut stacked) = (BTreeMap::new(), BTreeMap::new());
        for (module, pair) in factors {
            let (down, up) = both(&path, &module, pair)?;
            if is_stacked(&module) {
                stacked.insert(module, Stacked { down, up });
                continue;
            }
            let weight = format!("{module}.weight");
            let by = if config.targets_parameter(&weight) { &weight } else { &module };
            let lora = pair_up(&path, &module, (down, up), config.rank_and_scale(by))?;
            modules.insert(module, lora);
        }
        let (dir, tie) = (dir.to_owned(), Tie::Apart);
        Ok(Self { dir, modules, stacked, saved, copies, tie, config, document, file })
    }

    /// The directory that it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `adapter_config.json` as parsed.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The tokens from whose last occurrence in a prompt the adapter is active (aLoRA).
    pub fn invocation(&self) -> Option<&[u32]> {
        self.config.invocation.as_deref()
    }

    pub fn file(&self) -> &WeightFile {
        &self.file
    }

    /// Checks the adapter against the model that it was trained on, the base (of `config`) with the
    /// supervised adapter `sft`: exactly the targeted modules are present and all shapes fit. What
    /// `saved` holds afterwards replaces the base's tensors.
    pub fn fit(
        mut self,
        base: &Checkpoint,
        sft: Option<&Adapter>,
        config: &ModelConfig,
    ) -> Result<Self, WeightError> {
        self.settle_experts(config)?;
        let tied = config.tied && !sft.is_some_and(Adapter::unties);
        let shapes: BTreeMap<String, Vec<usize>> = config.untied().tensors().into_iter().collect();
        for (module, lora) in &self.modules {
            let name = format!("{module}.weight");
            let key = format!("{PREFIX}{module}.lora_A.weight");
            let (out, width) = match shapes.get(&name).map(Vec::as_slice) {
                Some(&[out, width]) => (out, width),
                Some(shape) => {
                    let expected = format!("a linear layer, {name} being [out, in]");
                    return Err(self.refuse(&key, expected, &format!("{shape:?}")));
                }
                None => {
                    let expected = format!("a module of the base ({name})");
                    return Err(self.refuse(&key, expected, "no such"));
                }
            };
            if lora.down.shape().get(1) != Some(&width) {
                let expected = format!("[r, {width}] to fit {name} [{out}, {width}]");
                return Err(self.refuse(&key, expected, &format!("{:?}", lora.down.shape())));
            }
            if lora.up.shape().first() != Some(&out) {
                let key = format!("{PREFIX}{module}.lora_B.weight");
                let expected = format!("[{out}, r] to fit {name} [{out}, {width}]");
                return Err(self.refuse(&key, expected, &format!("{:?}", lora.up.shape())));
            }
            if !self.targets(&name, config) {
                let expected = "none, because target_modules does not name its module".to_owned();
                return Err(self.refuse(&key, expected, "a left-over tensor"));
            }
        }
        for (name, shape) in &shapes {
            let module = module_of(name);
            let linear = shape.len() == 2 && !is_table(name);
            let targeted = linear && self.targets(name, config);
            if targeted && !self.modules.contains_key(module) {
                let key = format!("{PREFIX}{module}.lora_A.weight");
                let by = match self.config.targets(module) {
                    true => "target_modules",
                    false => "target_parameters",
                };
                let expected = format!("it, because {by} names its module");
                return Err(self.refuse(&key, expected, "no such tensor"));
            }
            let follows_the_embedding = name == HEAD && tied && self.config.ties_weights;
            if self.config.saves(module) && !self.saved.contains_key(name) && !follows_the_embedding
            {
                let key = format!("{PREFIX}{name}");
                let expected = "it, because modules_to_save names its module".to_owned();
                return Err(self.refuse(&key, expected, "no such tensor"));
            }
        }
        for (name, tensor) in &self.saved {
            let (key, got) = (format!("{PREFIX}{name}"), format!("{:?}", tensor.shape()));
            match shapes.get(name) {
                Some(shape) if shape == tensor.shape() => {}
                Some(shape) => {
                    return Err(self.refuse(&key, format!("{shape:?}, the base's shape"), &got));
                }
                None => return Err(self.refuse(&key, "a tensor of the base".into(), "no such")),
            }
        }
        if tied {
            let shared = sft.and_then(|sft| sft.saved.get(config.embedding()).cloned());
            self.settle_head(config.embedding(), shared.or_else(|| base.embedding()))?;
        }
        // A copy of the base's tensor, in any storage type, shares the base's memory.
        for (name, tensor) in &mut self.saved {
            let own = base.get(name).or_else(|| base.embedding().filter(|_| name == HEAD));
            if let Some(own) = own.filter(|own| same_values(own, tensor)) {
                *tensor = own;
            }
        }
        self.check_invocation(base, config.vocab_size)?;
        Ok(self)
    }

    /// Whether the weight `name` of a linear layer of the base is adapted: by its module, by its own
    /// name, or as a part of its layer's experts.
    fn targets(&self, name: &str, config: &ModelConfig) -> bool {
        let module = module_of(name);
        let Some(experts) = &config.experts else {
            return self.config.targets(module) || self.config.targets_parameter(name);
        };
        let current = experts.names.current(name);
        self.config.targets(module)
            || self.config.targets_parameter(&current)
            || parameter_of(&current).is_some_and(|name| self.config.targets_parameter(&name))
    }

    /// Makes modules of the changes of whole layers of experts, and gives the others the names that
    /// they have in a checkpoint.
    fn settle_experts(&mut self, config: &ModelConfig) -> Result<(), WeightError> {
        for (module, stacked) in std::mem::take(&mut self.stacked) {
            let shapes = format!("{:?} and {:?}", stacked.down.shape(), stacked.up.shape());
            let key = format!("{PREFIX}{module}.lora_A.weight");
            let refused = |expected| self.refuse(&key, expected, &shapes);
            let (name, parts) = stacked.split(&module, (config, &self.config)).map_err(refused)?;
            if !self.config.targets_parameter(&name) {
                let expected = format!("none, because target_parameters does not name {name}");
                return Err(self.refuse(&key, expected, "a left-over tensor"));
            }
            if parts.iter().any(|part| self.modules.contains_key(&part.path)) {
                let expected = format!("each parameter once, and {name} is changed already");
                return Err(self.refuse(&key, expected, &shapes));
            }
            let parts = parts.into_iter();
            self.modules.extend(
                parts.map(|Part { path, down, up, scale }| (path, LoraModule { down, up, scale })),
            );
        }
        if let Some(experts) = &config.experts {
            let modules = std::mem::take(&mut self.modules).into_iter();
            self.modules =
                modules.map(|(path, lora)| (experts.names.stored(&path), lora)).collect();
        }
        Ok(())
    }

    /// Refuses invocation tokens that are not the model's, and those of an adapter that changes the
    /// base in more than low-rank terms: PEFT loads such tensors for every token.
    fn check_invocation(&self, base: &Checkpoint, vocabulary: usize) -> Result<(), WeightError> {
        let Some(tokens) = self.invocation() else { return Ok(()) };
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(WeightError::Json {
                path: self.dir.join(CONFIG),
                key: "alora_invocation_tokens".to_owned(),
                expected: format!("token ids below {vocabulary}"),
                got: id.to_string(),
            });
        }
        let whole = self.saved.iter().find(|(name, tensor)| {
            let own = base.get(name).or_else(|| base.embedding().filter(|_| *name == HEAD));
            !own.is_some_and(|own| same_values(&own, tensor))
        });
        let Some((name, _)) = whole else { return Ok(()) };
        let expected = "none beside alora_invocation_tokens, because PEFT loads it for every token";
        Err(self.refuse(&format!("{PREFIX}{name}"), expected.to_owned(), "a tensor stored whole"))
    }

    /// Decides whether embedding and head of a tied base stay tied under this adapter. PEFT keeps
    /// one tensor for both until a copy by `modules_to_save` or a low-rank change unties them; a
    /// tensor loaded over either of them is loaded over both.
    fn settle_head(&mut self, table: &str, shared: Option<HostTensor>) -> Result<(), WeightError> {
        let [embedding, head] = [table, HEAD].map(|name| {
            let copied = self.copies.contains(name) && !self.config.ties_weights;
            self.saved.remove(name).map(|tensor| (tensor, copied))
        });
        if let (Some((embedding, false)), Some((head, false))) = (&embedding, &head)
            && !same_values(embedding, head)
        {
            let expected = format!("the values of {}, to which the base ties it", module_of(table));
            return Err(self.refuse(&format!("{PREFIX}{HEAD}"), expected, "others"));
        }
        // The tensor of both where neither has a copy.
        let over = [&embedding, &head].into_iter().flatten().find(|(_, copied)| !copied);
        let over = over.map(|(tensor, _)| tensor.clone());
        let of = |saved: Option<(HostTensor, bool)>| match saved {
            Some((copy, true)) => Some(copy),
            _ => over.clone(),
        };
        let (embedding, head) = (of(embedding), of(head));
        let values = |tensor: &Option<HostTensor>| tensor.clone().or_else(|| shared.clone());
        let parted = match (values(&embedding), values(&head)) {
            (Some(embedding), Some(head)) => !same_values(&embedding, &head),
            _ => false,
        };
        let parted = parted || self.modules.contains_key(module_of(HEAD));
        self.tie = if parted { Tie::Parted } else { Tie::Kept };
        self.saved.extend(embedding.map(|tensor| (table.to_owned(), tensor)));
        self.saved.extend(head.filter(|_| parted).map(|tensor| (HEAD.to_owned(), tensor)));
        Ok(())
    }

    /// Whether embedding and head differ under this adapter, over a base that ties them.
    pub fn unties(&self) -> bool {
        self.tie == Tie::Parted
    }

    /// Makes the adapter one of an untied model: its change of the embedding is also one of the head.
    pub(super) fn untie(&mut self) {
        if self.tie == Tie::Kept
            && let Some((_, embedding)) = self.saved.iter().find(|(name, _)| is_embedding(name))
        {
            let embedding = embedding.clone();
            self.saved.insert(HEAD.to_owned(), embedding);
        }
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

/// The two factors of a module.
fn both(
    path: &Path,
    module: &str,
    [down, up]: [Option<HostTensor>; 2],
) -> Result<(HostTensor, HostTensor), WeightError> {
    let missing = |side| {
        let expected = "it beside its other factor".to_owned();
        misfit(path, module, side, expected, "no such tensor".to_owned())
    };
    Ok((down.ok_or_else(|| missing("A"))?, up.ok_or_else(|| missing("B"))?))
}

/// The two factors of a module, checked against the rank that the settings give it.
fn pair_up(
    path: &Path,
    module: &str,
    (down, up): (HostTensor, HostTensor),
    (rank, scale): (usize, f64),
) -> Result<LoraModule, WeightError> {
    if down.shape().len() != 2 || down.shape().first() != Some(&rank) {
        let expected = format!("[{rank}, in], rank {rank} being the settings'");
        return Err(misfit(path, module, "A", expected, format!("{:?}", down.shape())));
    }
    if up.shape().len() != 2 || up.shape().get(1) != Some(&rank) {
        let expected = format!("[out, {rank}], rank {rank} being the settings'");
        return Err(misfit(path, module, "B", expected, format!("{:?}", up.shape())));
    }
    Ok(LoraModule { down, up, scale })
}

/// The refusal of a factor.
fn misfit(path: &Path, module: &str, side: &str, expected: String, got: String) -> WeightError {
    let tensor = format!("{PREFIX}{module}.lora_{side}.weight");
    WeightError::Tensor { path: path.to_owned(), tensor, expected, got }
}
