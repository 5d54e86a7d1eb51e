//! `config.json` → [`ModelConfig`]: every key that changes the computation is read or refused.

use serde_json::Value;

use super::{
    config::{ModelConfig, ModelConfigError, Multipliers, Norms, QkNorm},
    keys::{Keys, error},
    rope::{local_and_global, rope},
};
use crate::kernels::{Activation, Norm};

/// Differences between the families.
#[derive(Clone, Copy)]
struct Family {
    model_type: &'static str,
    /// Biases on q, k, v without a key that says so.
    always_qkv_bias: bool,
    /// `attention_bias` is read, for q, k, v and o.
    attention_bias_key: bool,
    /// `mlp_bias` is read.
    mlp_bias_key: bool,
    /// As many heads of keys and values as of queries where `num_key_value_heads` is absent.
    kv_heads_default: bool,
    norms: Norms,
    qk_norm: QkNorm,
    /// What is added to the stored gains of norms.
    norm_shift: f32,
    /// The key of the feed-forward layer's function, and its names there; the function.
    activation: (&'static str, &'static [&'static str], Activation),
    /// How `sliding_window` becomes a window per layer.
    window: WindowRule,
    /// Some layers do not rotate: `no_rope_layers`, `no_rope_layer_interval`.
    unrotated: bool,
    /// Layers with a window have rotary constants of their own.
    local_rope: bool,
    multipliers: MultiplierRule,
    /// `head_dim` when the key is absent; `None` is hidden_size / num_attention_heads.
    head_dim: Option<usize>,
    /// `rms_norm_eps` when the key is absent.
    norm_eps: f64,
    /// `rope_theta` when the key is absent.
    theta: f64,
    /// `tie_word_embeddings` when the key is absent.
    tied: bool,
}

#[derive(Clone, Copy)]
enum WindowRule {
    /// No window.
    Never,
    /// All layers, when the key is a number; transformers' default where it is absent.
    All { absent: usize },
    /// Only with `use_sliding_window`: the layers of `layer_types`, else those from
    /// `max_window_layers` on.
    Late,
    /// Only with `use_sliding_window`: the layers of `layer_types`, else those without rotation.
    Unrotated,
    /// The layers of `layer_types`, else all but each `sliding_window_pattern`-th.
    Pattern,
}

#[derive(Clone, Copy)]
enum MultiplierRule {
    /// None.
    One,
    /// Granite's keys.
    Keys,
    /// Embeddings by √hidden_size, scores by 1/√query_pre_attn_scalar.
    Gemma,
}

const LLAMA: Family = Family {
    model_type: "llama",
    always_qkv_bias: false,
    attention_bias_key: true,
    mlp_bias_key: true,
    kv_heads_default: true,
    norms: Norms::Before,
    qk_norm: QkNorm::None,
    norm_shift: 0.0,
    // Two names of one function.
    activation: ("hidden_act", &["silu", "swish"], Activation::Silu),
    window: WindowRule::Never,
    unrotated: false,
    local_rope: false,
    multipliers: MultiplierRule::One,
    head_dim: None,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: false,
};

const MISTRAL: Family = Family {
    model_type: "mistral",
    attention_bias_key: false,
    mlp_bias_key: false,
    kv_heads_default: false,
    window: WindowRule::All { absent: 4096 },
    ..LLAMA
};

const QWEN2: Family =
    Family { model_type: "qwen2", always_qkv_bias: true, window: WindowRule::Late, ..MISTRAL };

const QWEN3: Family = Family {
    model_type: "qwen3",
    always_qkv_bias: false,
    attention_bias_key: true,
    qk_norm: QkNorm::Heads,
    head_dim: Some(128),
    ..QWEN2
};

const SMOLLM3: Family = Family {
    model_type: "smollm3",
    kv_heads_default: false,
    window: WindowRule::Unrotated,
    unrotated: true,
    theta: 2_000_000.0,
    tied: true,
    ..LLAMA
};

const OLMO2: Family = Family {
    model_type: "olmo2",
    mlp_bias_key: false,
    norms: Norms::After,
    qk_norm: QkNorm::Whole,
    norm_eps: 1e-5,
    ..LLAMA
};

const GRANITE: Family =
    Family { model_type: "granite", multipliers: MultiplierRule::Keys, ..LLAMA };

const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    mlp_bias_key: false,
    kv_heads_default: false,
    norms: Norms::Around,
    qk_norm: QkNorm::Heads,
    norm_shift: 1.0,
    activation: ("hidden_activation", &["gelu_pytorch_tanh"], Activation::Gelu),
    window: WindowRule::Pattern,
    local_rope: true,
    multipliers: MultiplierRule::Gemma,
    head_dim: Some(256),
    theta: 1_000_000.0,
    tied: true,
    ..LLAMA
};

const FAMILIES: [Family; 8] = [LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, OLMO2, GRANITE, GEMMA3];

/// Families that are not served, the nearest one that is, and what it lacks for them.
const UNSERVED: [(&str, &Family, &str); 13] = [
    ("gemma", &GEMMA3, "a layer without norms of queries, keys and outputs"),
    ("gemma2", &GEMMA3, "soft caps of scores and logits"),
    ("gemma3", &GEMMA3, "images"),
    ("phi", &LLAMA, "layer norms with biases, parallel layers, heads rotated in part"),
    (
        "phi3",
        &MISTRAL,
        "q, k, v in one tensor, gate and up in one, heads rotated in part, longrope",
    ),
    ("olmo", &LLAMA, "layer norms without gain"),
    ("olmo3", &OLMO2, "windows and rotary scaling that differ by layer"),
    ("granitemoe", &GRANITE, "experts"),
    ("mixtral", &MISTRAL, "experts"),
    ("qwen2_moe", &QWEN2, "experts"),
    ("qwen3_moe", &QWEN3, "experts"),
    ("gpt2", &LLAMA, "learned positions, layer norms with biases, GELU"),
    ("t5", &LLAMA, "an encoder, cross-attention, relative positions"),
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
    let (key, names, activation) = family.activation;
    if let Some(value) = keys.get(key)
        && !names.iter().any(|name| value == name)
    {
        return Err(error(key, format!("is {value}, must be {:?}", names[0])));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if keys.get(key).is_some() {
            return Err(error(key, "soft caps are not served; must be null"));
        }
    }
    if keys.flag("use_bidirectional_attention")? {
        return Err(error("use_bidirectional_attention", "is true, must be false"));
    }

    let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
    let layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
    let heads = keys.size("num_attention_heads", MAX_HEADS)?;
    // transformers' default where the key is absent is a constant in the other families.
    let default =
        (family.kv_heads_default || keys.map.contains_key("num_key_value_heads")).then_some(heads);
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
    let (rope, local_rope) = if family.local_rope {
        let [global, local] = local_and_global(&keys, head_dim, max_positions, family.theta)?;
        (global, Some(local))
    } else {
        (rope(&keys, head_dim, max_positions, family.theta)?, None)
    };
    let rotary = if family.unrotated { rotary(&keys, layers)? } else { vec![true; layers] };

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
        norm: Norm { eps: keys.norm_eps(family.norm_eps)?, shift: family.norm_shift },
        activation,
        rope,
        local_rope,
        windows: windows(&keys, family.window, &rotary)?,
        rotary,
        qkv_bias: family.always_qkv_bias || attention_bias,
        output_bias: attention_bias,
        mlp_bias: family.mlp_bias_key && keys.flag("mlp_bias")?,
        norms: family.norms,
        qk_norm: family.qk_norm,
        multipliers: multipliers(&keys, family.multipliers, head_dim, hidden_size)?,
        tied: match keys.get("tie_word_embeddings") {
            None => family.tied,
            Some(_) => keys.flag("tie_word_embeddings")?,
        },
        eos: eos(&keys, vocab_size)?,
    })
}

fn family(keys: &Keys<'_>) -> Result<&'static Family, ModelConfigError> {
    let known = FAMILIES.map(|family| family.model_type).join(", ");
    let name = keys.get("model_type").and_then(Value::as_str).ok_or_else(|| {
        error("model_type", format!("is missing or not a string, must be one of {known}"))
    })?;
    FAMILIES.iter().find(|family| family.model_type == name).ok_or_else(|| {
        let lacks = match UNSERVED.iter().find(|(unserved, ..)| *unserved == name) {
            Some((_, nearest, lacks)) => {
                format!(": the nearest served is {}, which lacks {lacks}", nearest.model_type)
            }
            None => String::new(),
        };
        let reason = format!("is {name:?}, which is not served{lacks}; must be one of {known}");
        error("model_type", reason)
    })
}

/// Which layers rotate: `no_rope_layers` (1 where they do), else all but each
/// `no_rope_layer_interval`-th.
fn rotary(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, ModelConfigError> {
    let key = "no_rope_layers";
    let Some(list) = keys.get(key) else {
        let interval = keys.size_or("no_rope_layer_interval", MAX_LAYERS, Some(4))?;
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let list = list.as_array().filter(|list| list.len() == layers).ok_or_else(|| {
        error(key, format!("must be a list of num_hidden_layers = {layers} numbers, 0 or 1"))
    })?;
    let one = |(layer, value): (usize, &Value)| match value.as_u64() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(error(&format!("{key}[{layer}]"), format!("is {value}, must be 0 or 1"))),
    };
    list.iter().enumerate().map(one).collect()
}

/// The constant factors of a model. What a family has in the place of attention's 1/√head_dim becomes
/// a factor of the queries.
fn multipliers(
    keys: &Keys<'_>,
    rule: MultiplierRule,
    head_dim: usize,
    hidden_size: usize,
) -> Result<Multipliers, ModelConfigError> {
    let factor = |key| keys.positive(key, Some(1.0));
    let head_dim = head_dim as f64;
    Ok(match rule {
        MultiplierRule::One => Multipliers::ONE,
        MultiplierRule::Keys => Multipliers {
            embedding: factor("embedding_multiplier")? as f32,
            query: (factor("attention_multiplier")? * head_dim.sqrt()) as f32,
            residual: factor("residual_multiplier")? as f32,
            logits: (1.0 / factor("logits_scaling")?) as f32,
        },
        MultiplierRule::Gemma => Multipliers {
            embedding: (hidden_size as f64).sqrt() as f32,
            query: (head_dim / keys.positive("query_pre_attn_scalar", Some(256.0))?).sqrt() as f32,
            ..Multipliers::ONE
        },
    })
}

fn windows(
    keys: &Keys<'_>,
    rule: WindowRule,
    rotary: &[bool],
) -> Result<Vec<Option<usize>>, ModelConfigError> {
    let layers = rotary.len();
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
        WindowRule::Late | WindowRule::Unrotated | WindowRule::Pattern => {
            let pattern = matches!(rule, WindowRule::Pattern);
            if !pattern && !keys.flag("use_sliding_window")? {
                return Ok(vec![None; layers]);
            }
            let absent = !matches!(rule, WindowRule::Unrotated);
            let window = width(absent.then_some(4096))?;
            if pattern && window.is_none() {
                return Err(error("sliding_window", "is null, must be a number of tokens"));
            }
            let Some(types) = keys.get("layer_types") else {
                let first = keys.count_or("max_window_layers", MAX_LAYERS, Some(28))?;
                let every = keys.size_or("sliding_window_pattern", MAX_LAYERS, Some(6))?;
                let slides = |layer: usize| match rule {
                    WindowRule::Unrotated => !rotary[layer],
                    WindowRule::Pattern => !(layer + 1).is_multiple_of(every),
                    _ => layer >= first,
                };
                return Ok((0..layers).map(|layer| window.filter(|_| slides(layer))).collect());
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
