//! `config.json` → [`ModelConfig`]: every key that changes the computation is read or refused.

use serde_json::Value;

use super::{
    config::{ModelConfig, ModelConfigError},
    keys::{Keys, error},
    rope::rope,
};

/// Differences between the families.
struct Family {
    model_type: &'static str,
    /// Biases on q, k, v without a key that says so.
    always_qkv_bias: bool,
    /// `attention_bias` is read, for q, k, v and o.
    attention_bias_key: bool,
    /// `mlp_bias` is read.
    mlp_bias_key: bool,
    /// Norms on the heads of q and k.
    qk_norm: bool,
    /// How `sliding_window` becomes a window per layer.
    window: WindowRule,
    /// `head_dim` when the key is absent; `None` is hidden_size / num_attention_heads.
    head_dim: Option<usize>,
}

#[derive(Clone, Copy)]
enum WindowRule {
    /// No window.
    Never,
    /// All layers, when the key is a number; transformers' default where it is absent.
    All { absent: usize },
    /// Only with `use_sliding_window`: the layers of `layer_types`, else those from
    /// `max_window_layers` on.
    Chosen,
}

const FAMILIES: [Family; 4] = [
    Family {
        model_type: "llama",
        always_qkv_bias: false,
        attention_bias_key: true,
        mlp_bias_key: true,
        qk_norm: false,
        window: WindowRule::Never,
        head_dim: None,
    },
    Family {
        model_type: "mistral",
        always_qkv_bias: false,
        attention_bias_key: false,
        mlp_bias_key: false,
        qk_norm: false,
        window: WindowRule::All { absent: 4096 },
        head_dim: None,
    },
    Family {
        model_type: "qwen2",
        always_qkv_bias: true,
        attention_bias_key: false,
        mlp_bias_key: false,
        qk_norm: false,
        window: WindowRule::Chosen,
        head_dim: None,
    },
    Family {
        model_type: "qwen3",
        always_qkv_bias: false,
        attention_bias_key: true,
        mlp_bias_key: false,
        qk_norm: true,
        window: WindowRule::Chosen,
        head_dim: Some(128),
    },
];

// Above any model of the family; products of a few such numbers do not overflow.
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 26;

impl ModelConfig {
    /// Reads and checks a `config.json` as transformers 4 or 5 write it.
    pub fn from_json(json: &Value) -> Result<Self, ModelConfigError> {
        config(json)
    }
}

fn config(json: &Value) -> Result<ModelConfig, ModelConfigError> {
    let keys = Keys { map: json.as_object().ok_or_else(|| error("(root)", "is not an object"))? };
    let family = family(&keys)?;
    for key in ["quantization_config", "num_local_experts", "num_experts"] {
        if keys.get(key).is_some() {
            return Err(error(key, "quantised and mixture-of-experts checkpoints are not served"));
        }
    }
    if keys.get("is_causal").is_some_and(|causal| *causal != true) {
        return Err(error("is_causal", "is not true, but attention to later tokens is not served"));
    }
    match keys.get("hidden_act") {
        None => {}
        // Two names of one function.
        Some(value) if value == "silu" || value == "swish" => {}
        Some(value) => return Err(error("hidden_act", format!("is {value}, must be \"silu\""))),
    }

    let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
    let layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
    let heads = keys.size("num_attention_heads", MAX_HEADS)?;
    // transformers' default where the key is absent is a constant in the other families.
    let default = (family.model_type == "llama" || keys.map.contains_key("num_key_value_heads"))
        .then_some(heads);
    let kv_heads = keys.size_or("num_key_value_heads", MAX_HEADS, default)?;
    if heads % kv_heads != 0 {
        let reason = format!("is {kv_heads}, must divide num_attention_heads = {heads}");
        return Err(error("num_key_value_heads", reason));
    }
    let derived = (hidden_size % heads == 0).then_some(hidden_size / heads);
    let head_dim = keys.size_or("head_dim", MAX_HEAD_DIM, family.head_dim.or(derived))?;
    if head_dim % 2 != 0 {
        let reason = format!("is {head_dim}, must be even: rotary pairs halve it");
        return Err(error("head_dim", reason));
    }
    let max_positions = keys.size("max_position_embeddings", MAX_POSITIONS)?;
    let attention_bias = family.attention_bias_key && keys.flag("attention_bias")?;
    let vocab_size = keys.size("vocab_size", MAX_VOCAB)?;

    Ok(ModelConfig {
        model_type: family.model_type.to_owned(),
        vocab_size,
        hidden_size,
        intermediate_size: keys.size("intermediate_size", MAX_WIDTH)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        max_positions,
        norm_eps: keys.norm_eps()?,
        rope: rope(&keys, head_dim, max_positions)?,
        windows: windows(&keys, family.window, layers)?,
        qkv_bias: family.always_qkv_bias || attention_bias,
        output_bias: attention_bias,
        mlp_bias: family.mlp_bias_key && keys.flag("mlp_bias")?,
        qk_norm: family.qk_norm,
        tied: keys.flag("tie_word_embeddings")?,
        eos: eos(&keys, vocab_size)?,
    })
}

fn family(keys: &Keys<'_>) -> Result<&'static Family, ModelConfigError> {
    let known = FAMILIES.map(|family| family.model_type).join(", ");
    let name = keys.get("model_type").and_then(Value::as_str).ok_or_else(|| {
        error("model_type", format!("is missing or not a string, must be one of {known}"))
    })?;
    FAMILIES.iter().find(|family| family.model_type == name).ok_or_else(|| {
        error("model_type", format!("is {name:?}, which is not served; must be one of {known}"))
    })
}

fn windows(
    keys: &Keys<'_>,
    rule: WindowRule,
    layers: usize,
) -> Result<Vec<Option<usize>>, ModelConfigError> {
    let width = |absent| match keys.map.get("sliding_window") {
        None => Ok(absent),
        Some(Value::Null) => Ok(None),
        Some(_) => keys.size("sliding_window", MAX_POSITIONS).map(Some),
    };
    match rule {
        WindowRule::Never => Ok(vec![None; layers]),
        WindowRule::All { absent } => {
            let window = width(Some(absent))?;
            let types = keys.get("layer_types").and_then(Value::as_array).into_iter().flatten();
            match types.enumerate().find(|(_, name)| *name != "sliding_attention") {
                Some((layer, name)) if window.is_some() => {
                    let reason = format!("is {name}, but sliding_window is of all layers here");
                    Err(error(&format!("layer_types[{layer}]"), reason))
                }
                _ => Ok(vec![window; layers]),
            }
        }
        WindowRule::Chosen => {
            if !keys.flag("use_sliding_window")? {
                return Ok(vec![None; layers]);
            }
            let window = width(Some(4096))?;
            let Some(types) = keys.get("layer_types") else {
                let first = keys.count_or("max_window_layers", MAX_LAYERS, Some(28))?;
                return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
            };
            let types =
                types.as_array().filter(|types| types.len() == layers).ok_or_else(|| {
                    let reason = format!("must be a list of num_hidden_layers = {layers} names");
                    error("layer_types", reason)
                })?;
            let one = |(layer, name): (usize, &Value)| match name.as_str() {
                Some("sliding_attention") => Ok(window),
                Some("full_attention") => Ok(None),
                _ => Err(error(
                    &format!("layer_types[{layer}]"),
                    format!("is {name}, must be \"sliding_attention\" or \"full_attention\""),
                )),
            };
            types.iter().enumerate().map(one).collect()
        }
    }
}

fn eos(keys: &Keys<'_>, vocab_size: usize) -> Result<Vec<u32>, ModelConfigError> {
    let key = "eos_token_id";
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .filter(|&id| (id as usize) < vocab_size)
            .ok_or_else(|| {
                let reason = format!("{value} is not a token id below vocab_size = {vocab_size}");
                error(key, reason)
            })
    };
    match keys.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}
