//! Names of the tensors of an `adapter_model.safetensors`, resolved as PEFT's loader resolves them.

use crate::model::names::{is_unread, is_value_head};

/// Prefix of module paths in PEFT's files.
pub const PREFIX: &str = "base_model.model.";

/// Role of a tensor of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<'a> {
    /// LoRA's A of a module.
    Down(&'a str),
    /// LoRA's B of a module.
    Up(&'a str),
    /// A tensor of the base under its own name or under that of the layer that LoRA wraps: loaded
    /// over the base's.
    Over {
        /// Its name in the base.
        tensor: String,
        /// Whether the name says that LoRA wraps its module.
        wrapped: bool,
    },
    /// A copy by the name of `modules_to_save`.
    Copy {
        /// Its name in the base.
        tensor: String,
    },
    /// The value head of a trainer, which is not part of the language model.
    ValueHead,
    /// Frozen originals and buffers, which PEFT's forward does not read.
    Unused,
}

/// Reads a name; the error says what was expected.
pub fn entry(key: &str) -> Result<Entry<'_>, &'static str> {
    if is_value_head(key) {
        return Ok(Entry::ValueHead);
    }
    let name = key.strip_prefix(PREFIX).ok_or("a name that starts with base_model.model.")?;
    if is_value_head(name) {
        return Ok(Entry::ValueHead);
    }
    if is_unread(name) || name.contains(".original_module.") {
        return Ok(Entry::Unused);
    }
    if name.contains("lora_embedding_") {
        return Err("no low-rank change of an embedding (use modules_to_save)");
    }
    if name.contains("trainable_tokens_") {
        return Err("no trained rows of an embedding (use modules_to_save)");
    }
    // A state dict that was not saved through `save_pretrained` keeps the adapter's name.
    for suffix in [".weight", ".default.weight"] {
        let Some(path) = name.strip_suffix(suffix) else { continue };
        if let Some(module) = path.strip_suffix(".lora_A") {
            return Ok(Entry::Down(module));
        }
        if let Some(module) = path.strip_suffix(".lora_B") {
            return Ok(Entry::Up(module));
        }
    }
    if name.contains(".lora_") {
        return Err("….lora_A.weight or ….lora_B.weight");
    }
    let (path, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    if kind != "weight" && kind != "bias" {
        return Err("….lora_A.weight, ….lora_B.weight, or a weight or bias of the base");
    }
    if let Some(module) = path.strip_suffix(".base_layer") {
        return Ok(Entry::Over { tensor: format!("{module}.{kind}"), wrapped: true });
    }
    match path.split_once(".modules_to_save.default") {
        Some((module, inner)) => Ok(Entry::Copy { tensor: format!("{module}{inner}.{kind}") }),
        None => Ok(Entry::Over { tensor: name.to_owned(), wrapped: false }),
    }
}
