//! A Hugging Face checkpoint: `config.json` and safetensors, in one file or sharded.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    error::WeightError,
    header::TensorSpec,
    weights::{WeightFile, check_finite, same_values, write_safetensors},
};
use crate::{
    config::Residence,
    files::{FileError, read_json, write_json},
    kernels::HostTensor,
    model::{
        config::ModelConfig,
        names::{HEAD, T5_COPIES, is_embedding, is_unread, is_value_head},
    },
};

/// Weights in one file.
pub const SINGLE: &str = "model.safetensors";
/// Which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// Files beside the weights that make a checkpoint usable, where it has them.
pub const COMPANIONS: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];
/// Largest shard written, in bytes (what transformers writes).
pub const SHARD_BYTES: u64 = 5_000_000_000;

const EXPECTED: &str = "model.safetensors or model.safetensors.index.json";
const CONVERT: &str = "python -c \"from transformers import AutoModelForCausalLM as M; \
                       M.from_pretrained('IN').save_pretrained('OUT')\"";

/// A checkpoint whose tensors are views of its files' bytes, under their Hugging Face names.
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, HostTensor>,
}

impl Checkpoint {
    /// Maps the weights of `dir`, as [`Self::open_as`] does.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        Self::open_as(dir, Residence::Mapped)
    }

    /// Opens `dir`: reads `config.json`, maps or copies every weight file and checks every header.
    pub fn open_as(dir: &Path, residence: Residence) -> Result<Self, WeightError> {
        let single_file = dir.join(SINGLE).is_file();
        let (files, tensors) =
            if single_file { single(dir, residence)? } else { sharded(dir, residence)? };
        let config = read_json(&dir.join("config.json"))?;
        let mut checkpoint = Self { dir: dir.to_owned(), config, files, tensors };
        checkpoint.leave_out_strangers();
        Ok(checkpoint)
    }

    /// Drops tensors that are not part of the language model: those that no model of its kind reads,
    /// and a trainer's value head.
    fn leave_out_strangers(&mut self) {
        let (heads, rest): (BTreeMap<_, _>, _) = std::mem::take(&mut self.tensors)
            .into_iter()
            .partition(|(name, _)| is_value_head(name));
        self.tensors = rest;
        self.tensors.retain(|name, _| !is_unread(name));
        if !heads.is_empty() {
            let tensors: Vec<String> = heads.into_keys().collect();
            tracing::warn!(
                path = %self.dir.display(), ?tensors,
                "left out: a value head is no part of the language model"
            );
        }
    }

    /// The model that `config.json` describes; an error if it is not supported.
    pub fn model(&self) -> Result<ModelConfig, WeightError> {
        ModelConfig::from_json(&self.config)
            .map_err(|error| WeightError::Config { dir: self.dir.clone(), error })
    }

    /// Checks the tensors against [`Self::model`], and returns that: all of them in their shapes, no
    /// others. A stored head beside tied embeddings must repeat them, as must T5's further names of its
    /// embeddings, and is dropped.
    pub fn check(&mut self) -> Result<ModelConfig, WeightError> {
        let config = self.model()?;
        let copies = [HEAD].into_iter().filter(|_| config.tied);
        for copy in copies.chain(T5_COPIES.into_iter().filter(|_| config.encoder.is_some())) {
            if let Some(tensor) = self.tensors.remove(copy)
                && !self.embedding().is_some_and(|embedding| same_values(&embedding, &tensor))
            {
                let expected = format!("the values of {}, which it repeats", config.embedding());
                let because =
                    if copy == HEAD { ", because tie_word_embeddings is true" } else { "" };
                return Err(self.refuse(copy, &(expected + because), "others"));
            }
        }
        self.check_start(&config)?;
        let shapes: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        for (name, shape) in &shapes {
            let got = match self.tensors.get(name) {
                Some(tensor) if tensor.shape() == shape => continue,
                Some(tensor) => format!("{:?}", tensor.shape()),
                None => "no such tensor".to_owned(),
            };
            return Err(self.refuse(name, &format!("shape {shape:?} by config.json"), &got));
        }
        match self.tensors.keys().find(|name| !shapes.contains_key(*name)) {
            Some(name) => {
                Err(self.refuse(name, "no such tensor by config.json", "a left-over one"))
            }
            None => Ok(config),
        }
    }

    /// Refuses a `generation_config.json` by which answers begin after another token than by
    /// `config.json`: transformers would take that one.
    fn check_start(&self, config: &ModelConfig) -> Result<(), WeightError> {
        let path = self.dir.join("generation_config.json");
        let Some(start) = config.encoder.map(|encoder| encoder.start) else { return Ok(()) };
        if !path.is_file() {
            return Ok(());
        }
        let key = "decoder_start_token_id";
        let document: Value = read_json(&path)?;
        match document.get(key) {
            Some(other) if !other.is_null() && *other != start => Err(WeightError::Json {
                path,
                key: key.to_owned(),
                expected: format!("{start}, as in config.json"),
                got: other.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses NaN and infinities. Reads every weight.
    pub fn verify_finite(&self) -> Result<(), WeightError> {
        let tensors = self.tensors.iter();
        check_finite(
            tensors.map(|(name, tensor)| (self.file_of(name), name.clone(), tensor)).collect(),
        )
    }

    /// Makes the head of a tied model a tensor of its own, with the embedding's memory.
    pub(super) fn untie(&mut self) {
        if let Some(embedding) = self.embedding() {
            self.tensors.entry(HEAD.to_owned()).or_insert(embedding);
        }
    }

    fn refuse(&self, tensor: &str, expected: &str, got: &str) -> WeightError {
        WeightError::Tensor {
            path: self.file_of(tensor),
            tensor: tensor.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }

    /// The directory that it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json` as parsed.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The weight files, in the order of their names.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// A tensor by its Hugging Face name.
    pub fn get(&self, name: &str) -> Option<HostTensor> {
        self.tensors.get(name).cloned()
    }

    /// The embedding table.
    pub fn embedding(&self) -> Option<HostTensor> {
        self.tensors.iter().find(|(name, _)| is_embedding(name)).map(|(_, table)| table.clone())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, HostTensor> {
        &self.tensors
    }

    /// The file that holds `tensor`, for messages; the directory where none does.
    pub fn file_of(&self, tensor: &str) -> PathBuf {
        let index = || {
            let index: Value = read_json(&self.dir.join(INDEX)).ok()?;
            Some(self.dir.join(index["weight_map"][tensor].as_str()?))
        };
        match self.files.as_slice() {
            [only] => only.path.clone(),
            _ => index().unwrap_or_else(|| self.dir.clone()),
        }
    }
}

type Opened = (Vec<WeightFile>, BTreeMap<String, HostTensor>);

fn single(dir: &Path, residence: Residence) -> Result<Opened, WeightError> {
    let (file, tensors) = WeightFile::open_as(&dir.join(SINGLE), residence)?;
    Ok((vec![file], tensors.into_iter().collect()))
}

fn sharded(dir: &Path, residence: Residence) -> Result<Opened, WeightError> {
    let path = dir.join(INDEX);
    if !path.is_file() {
        let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"];
        return Err(match pickles.map(|name| dir.join(name)).into_iter().find(|p| p.exists()) {
            Some(path) => WeightError::Pickle { path, hint: CONVERT },
            None => WeightError::NoWeights { dir: dir.to_owned(), expected: EXPECTED },
        });
    }
    let refuse = |key: &str, expected: &str, got: String| WeightError::Json {
        path: path.clone(),
        key: key.to_owned(),
        expected: expected.to_owned(),
        got,
    };
    let index: Value = read_json(&path)?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(refuse("weight_map", "an object tensor → file", "none".to_owned()));
    };
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        let name = shard.as_str().unwrap_or_default();
        let mut components = Path::new(name).components();
        let plain =
            matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !plain {
            let expected = "a file name inside the checkpoint's directory";
            return Err(refuse(&format!("weight_map.{tensor}"), expected, shard.to_string()));
        }
        if !name.ends_with(".safetensors") {
            return Err(WeightError::Pickle { path: dir.join(name), hint: CONVERT });
        }
        shards.insert(name);
    }
    let mut files = Vec::new();
    let mut tensors = BTreeMap::new();
    for shard in shards {
        let shard_path = dir.join(shard);
        if !shard_path.is_file() {
            return Err(refuse("weight_map", "files that exist", format!("{shard} (absent)")));
        }
        let (file, held) = WeightFile::open_as(&shard_path, residence)?;
        for (tensor, view) in held {
            let at = map.get(&tensor).and_then(Value::as_str);
            if at != Some(shard) {
                return Err(WeightError::Tensor {
                    path: shard_path,
                    tensor,
                    expected: match at {
                        Some(other) => format!("it only in {other}, as the index says"),
                        None => "it to be listed in the index, or absent".to_owned(),
                    },
                    got: format!("it in {shard}"),
                });
            }
            tensors.insert(tensor, view);
        }
        files.push(file);
    }
    match map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
        Some((tensor, shard)) => {
            let got = format!("{shard}, which does not hold it");
            Err(refuse(&format!("weight_map.{tensor}"), "the shard that holds it", got))
        }
        None => Ok((files, tensors)),
    }
}

/// Writes tensors as `model.safetensors` into `dir`, or as shards of at most `shard_bytes` with
/// their index. `tensor` is asked for one tensor at a time, in an order of its own. For a directory
/// that is whole or absent, write into a [`crate::files::Staging`].
pub fn write_checkpoint<E: From<WeightError> + From<FileError>>(
    dir: &Path,
    specs: &[TensorSpec],
    shard_bytes: u64,
    mut tensor: impl FnMut(&TensorSpec) -> Result<HostTensor, E>,
) -> Result<(), E> {
    let shards = shards(specs, shard_bytes);
    let [single] = shards.as_slice() else {
        let total: u64 = specs.iter().map(TensorSpec::bytes).sum();
        let count = shards.len();
        let mut map = serde_json::Map::new();
        for (i, shard) in shards.iter().enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            write_safetensors(&dir.join(&file), shard, &mut tensor)?;
            map.extend(shard.iter().map(|spec| (spec.name.clone(), json!(file))));
        }
        map.sort_keys();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        return Ok(write_json(&dir.join(INDEX), &index)?);
    };
    write_safetensors(&dir.join(SINGLE), single, tensor)
}

/// Splits tensors into consecutive runs of at most `shard_bytes` each (a tensor larger than that
/// is a shard of its own). Quantised tensors first, whose groups are whole cache lines as a rule, then
/// wide elements, so that every tensor is aligned to its element.
fn shards(specs: &[TensorSpec], shard_bytes: u64) -> Vec<Vec<TensorSpec>> {
    let mut shards: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let mut filled = 0u64;
    for spec in specs {
        filled = filled.saturating_add(spec.bytes());
        match shards.last_mut() {
            Some(shard) if shard.is_empty() || filled <= shard_bytes => shard.push(spec.clone()),
            _ => {
                filled = spec.bytes();
                shards.push(vec![spec.clone()]);
            }
        }
    }
    for shard in &mut shards {
        shard.sort_by_key(|spec| {
            std::cmp::Reverse((spec.dtype.blocks().is_some(), spec.dtype.size()))
        });
    }
    shards
}
