//! `config.json` → [`ModelConfig`]: every key that changes the computation is read or refused.

use serde_json::Value;

use super::{
    config::{Experts, ModelConfig, ModelConfigError, Multipliers, SoftCaps},
    families::{MultiplierRule, WindowRule, family},
    keys::{Keys, MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCAB, MAX_WIDTH, error},
    names::ExpertNames,
    rope::{Rotation, local_and_global, longest, rope},
    t5,
};
use crate::kernels::Norm;

const MAX_EXPERTS: usize = 1 << 12;
// Of all layers: each has three tensors.
const MAX_ALL_EXPERTS: usize = 1 << 17;

impl ModelConfig {
    /// Reads and checks a `config.json` as transformers 4 or 5 write it.
    pub fn from_json(json: &Value) -> Result<Self, ModelConfigError> {
        config(json)
    }
}

fn config(json: &Value) -> Result<ModelConfig, ModelConfigError> {
    let keys = Keys { map: json.as_object().ok_or_else(|| error("(root)", "is not an object"))? };
    if keys.get("model_type").is_some_and(|name| name == t5::MODEL_TYPE) {
        return t5::config(&keys);
    }
    let family = family(&keys)?;
    if keys.get("quantization_config").is_some() {
        let reason = "is not null: `ladle import` dequantises GPTQ, AWQ and FP8 checkpoints";
        return Err(error("quantization_config", reason));
    }
    for key in ["num_local_experts", "num_experts"] {
        if keys.get(key).is_some() && family.experts.is_none() {
            return Err(error(key, "this family is served without experts; must be null"));
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
    let rotation =
        Rotation { head_dim, max_positions, theta: family.theta, partial: family.partial_rope };
    let (rope, local_rope) = match family.local_rope {
        Some(local) => local_and_global(&keys, rotation, local).map(|(g, l)| (g, Some(l)))?,
        None => (rope(&keys, rotation)?, None),
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
        max_positions: longest(&keys, rotation)?,
        norm: Norm {
            eps: keys.norm_eps("rms_norm_eps", family.norm_eps)?,
            shift: family.norm_shift,
        },
        activation,
        gated: true,
        rope,
        local_rope,
        windows: windows(&keys, family.window, &rotary)?,
        rotary,
        qkv_bias: family.always_qkv_bias || attention_bias,
        output_bias: attention_bias,
        mlp_bias: family.mlp_bias_key && keys.flag("mlp_bias")?,
        fused: family.fused,
        experts: family.experts.map(|names| experts(&keys, names, layers)).transpose()?,
        norms: family.norms,
        qk_norm: family.qk_norm,
        multipliers: multipliers(&keys, family.multipliers, head_dim, hidden_size)?,
        caps: caps(&keys, family.caps)?,
        tied: match keys.get("tie_word_embeddings") {
            None => family.tied,
            Some(_) => keys.flag("tie_word_embeddings")?,
        },
        eos: keys.ids("eos_token_id", vocab_size)?,
        encoder: None,
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
    let (head_dim, root) = (head_dim as f64, (hidden_size as f64).sqrt() as f32);
    Ok(match rule {
        MultiplierRule::One => Multipliers::ONE,
        MultiplierRule::Keys => Multipliers {
            embedding: factor("embedding_multiplier")? as f32,
            query: (factor("attention_multiplier")? * head_dim.sqrt()) as f32,
            residual: factor("residual_multiplier")? as f32,
            logits: (1.0 / factor("logits_scaling")?) as f32,
        },
        MultiplierRule::Gemma => Multipliers { embedding: root, ..Multipliers::ONE },
        MultiplierRule::Gemma2 => Multipliers {
            embedding: root,
            query: (head_dim / keys.positive("query_pre_attn_scalar", Some(256.0))?).sqrt() as f32,
            ..Multipliers::ONE
        },
    })
}

/// The mixture of experts of a family that has one.
fn experts(
    keys: &Keys<'_>,
    names: ExpertNames,
    layers: usize,
) -> Result<Experts, ModelConfigError> {
    let mixtral = names == ExpertNames::Mixtral;
    // transformers 5 has the first name for both.
    let own = if mixtral { "num_local_experts" } else { "num_experts" };
    let both = ["num_local_experts", own];
    let key = both.into_iter().find(|key| keys.get(key).is_some()).unwrap_or(own);
    let count = keys.size(key, MAX_EXPERTS)?;
    if count * layers > MAX_ALL_EXPERTS {
        let most = MAX_ALL_EXPERTS / layers;
        let reason = format!("is {count}, must be at most {most} in {layers} layers");
        return Err(error(key, reason));
    }
    let default = if mixtral { 2 } else { 8 };
    let active = keys.size_or("num_experts_per_tok", MAX_EXPERTS, Some(default))?;
    if active > count {
        let reason = format!("is {active}, must be at most {key} = {count}");
        return Err(error("num_experts_per_tok", reason));
    }
    if mixtral {
        let width = keys.size("intermediate_size", MAX_WIDTH)?;
        let layers = vec![true; layers];
        return Ok(Experts { count, active, normalised: true, width, names, layers });
    }
    let step = keys.size_or("decoder_sparse_step", MAX_LAYERS, Some(1))?;
    let mut sparse: Vec<bool> = (1..=layers).map(|layer| layer.is_multiple_of(step)).collect();
    if let Some(list) = keys.get("mlp_only_layers") {
        let refuse = || error("mlp_only_layers", format!("is {list}, must be a list of layers"));
        for layer in list.as_array().ok_or_else(refuse)? {
            let layer = layer.as_u64().and_then(|layer| usize::try_from(layer).ok());
            if let Some(sparse) = sparse.get_mut(layer.ok_or_else(refuse)?) {
                *sparse = false;
            }
        }
    }
    let width = keys.size("moe_intermediate_size", MAX_WIDTH)?;
    let normalised = keys.flag("norm_topk_prob")?;
    Ok(Experts { count, active, normalised, width, names, layers: sparse })
}

/// Soft caps of scores and logits, given those of a family that has them.
fn caps(keys: &Keys<'_>, absent: Option<[f32; 2]>) -> Result<SoftCaps, ModelConfigError> {
    let cap = |key: &str, index: usize| match (absent, keys.map.get(key)) {
        (Some(absent), None) => Ok(Some(absent[index])),
        (_, None | Some(Value::Null)) => Ok(None),
        (Some(_), Some(_)) => keys.positive(key, None).map(|cap| Some(cap as f32)),
        (None, Some(_)) => Err(error(key, "this family is served without soft caps; must be null")),
    };
    Ok(SoftCaps {
        scores: cap("attn_logit_softcapping", 0)?,
        logits: cap("final_logit_softcapping", 1)?,
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
        WindowRule::Refused if keys.flag("use_sliding_window")? => {
            Err(error("use_sliding_window", "is true, must be false: this family has no windows"))
        }
        WindowRule::Refused => Ok(vec![None; layers]),
        WindowRule::All { absent } => {
            let window = width(absent)?;
            let types = keys.get("layer_types").and_then(Value::as_array).into_iter().flatten();
            match types.enumerate().find(|(_, name)| *name != "sliding_attention") {
                Some((layer, name)) if window.is_some() => {
                    let reason = format!("is {name}, but sliding_window is of all layers here");
                    Err(error(&format!("layer_types[{layer}]"), reason))
                }
                _ => Ok(vec![window; layers]),
            }
        }
        WindowRule::Late | WindowRule::Unrotated | WindowRule::Pattern { .. } => {
            let pattern = matches!(rule, WindowRule::Pattern { .. });
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
                let every = match rule {
                    WindowRule::Pattern { every, key: None } => every,
                    WindowRule::Pattern { every, key: Some(key) } => {
                        keys.size_or(key, MAX_LAYERS, Some(every))?
                    }
                    _ => layers,
                };
                let slides = |layer: usize| match rule {
                    WindowRule::Unrotated => !rotary[layer],
                    WindowRule::Pattern { .. } => !(layer + 1).is_multiple_of(every),
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
