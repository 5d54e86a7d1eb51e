//! A fitted reward model on disk: the unchanged network, the head, the tokenizer, and a configuration
//! that names the labels.

use std::{collections::HashMap, fs, path::Path};

use candle_core::Tensor;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};

use crate::{
    checkpoint::{CheckpointError, write_atomically},
    rewards::{head::HeadKind, layers::model_type},
};

/// Prefix of an architecture's tensors in a checkpoint with a head, and the beginning of the name of
/// transformers' class.
fn names(model_type: &str) -> (&'static str, &'static str) {
    match model_type {
        "distilbert" => ("distilbert.", "DistilBert"),
        "roberta" => ("roberta.", "Roberta"),
        "xlm-roberta" => ("roberta.", "XLMRoberta"),
        "deberta-v2" => ("deberta.", "DebertaV2"),
        "gpt2" => ("transformer.", "GPT2"),
        "llama" => ("model.", "Llama"),
        "mistral" => ("model.", "Mistral"),
        "qwen2" => ("model.", "Qwen2"),
        "qwen3" => ("model.", "Qwen3"),
        _ => ("bert.", "Bert"),
    }
}

/// Files of a tokenizer, copied where they are.
const TOKENIZER: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "sentence_bert_config.json",
];

/// The file whose tensors [`write`] copies.
const WEIGHTS: &str = "model.safetensors";

/// Checks before fitting that [`write`] will find the network of `model`.
pub(super) fn check(model: &Path) -> Result<(), CheckpointError> {
    let path = model.join(WEIGHTS);
    if path.is_file() {
        return Ok(());
    }
    let reason = "no such file; a head is taught on a checkpoint in one file, not a sharded one";
    Err(CheckpointError::Format { path, reason: reason.into() })
}

/// Writes the network of the checkpoint `model`, whose configuration is `config`, with `head` as the
/// checkpoint `out`; the weights last.
pub(super) fn write(
    config: &Value,
    kind: HeadKind,
    labels: &[&str],
    head: Vec<(String, Tensor)>,
    model: &Path,
    out: &Path,
) -> Result<(), CheckpointError> {
    let read = |name: &str| {
        let path = model.join(name);
        fs::read(&path).map_err(CheckpointError::io(path))
    };
    let path = out.join(WEIGHTS);
    let format = |reason: String| CheckpointError::Format { path: path.clone(), reason };
    let (prefix, class) = names(model_type(config));
    let stored = read(WEIGHTS)?;
    let stored = SafeTensors::deserialize(&stored).map_err(|e| format(e.to_string()))?;
    let mut head_bytes = Vec::with_capacity(head.len());
    for (name, tensor) in head {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        head_bytes.push((name, tensor.dims().to_vec(), bytes));
    }
    let views = network(&stored, prefix).into_iter().map(Ok);
    let head = head_bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        view.map(|view| (name.clone(), view))
    });
    let all: Result<Vec<(String, TensorView<'_>)>, safetensors::SafeTensorError> =
        views.chain(head).collect();
    // Written by transformers and required by its older versions.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = all.and_then(|all| safetensors::serialize(all, Some(metadata)));
    let bytes = bytes.map_err(|e| format(e.to_string()))?;

    let mut config = config.clone();
    config["architectures"] = json!([format!("{class}{}", kind.class())]);
    let numbered = || labels.iter().zip(0..);
    let names: Map<String, Value> =
        numbered().map(|(label, at): (_, u32)| (at.to_string(), json!(label))).collect();
    let places: Map<String, Value> =
        numbered().map(|(label, at): (_, u32)| ((*label).to_owned(), json!(at))).collect();
    config["id2label"] = Value::Object(names);
    config["label2id"] = Value::Object(places);
    // f32, so that transformers does not round the head to the network's storage type.
    if let Some(config) = config.as_object_mut() {
        config.remove("torch_dtype");
    }
    config["dtype"] = json!("float32");
    write_atomically(&out.join("config.json"), format!("{config:#}\n").as_bytes())?;
    for name in TOKENIZER.into_iter().filter(|name| model.join(name).is_file()) {
        write_atomically(&out.join(name), &read(name)?)?;
    }
    write_atomically(&path, &bytes)
}

/// The network's tensors under its prefix, as stored; heads, poolers and integers (position ids of
/// old checkpoints) are left out.
fn network<'a>(stored: &SafeTensors<'a>, prefix: &str) -> Vec<(String, TensorView<'a>)> {
    let prefixed = stored.names().iter().any(|name| name.starts_with(prefix));
    let pooler = format!("{prefix}pooler.");
    let kept = stored.tensors().into_iter().filter_map(|(name, view)| {
        let name = match (prefixed, name.starts_with(prefix)) {
            (true, true) => name,
            (true, false) => return None,
            (false, _) => format!("{prefix}{name}"),
        };
        let float = matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16);
        (float && !name.starts_with(&pooler)).then_some((name, view))
    });
    kept.collect()
}
