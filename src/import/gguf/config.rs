//! The `config.json` of a GGUF file's model.

use serde_json::{Value, json};

use super::{
    architecture::{Architecture, GRANITE, check},
    error::GgufError,
    metadata::{Metadata, shortest},
};
use crate::model::config::ModelConfig;

/// Rotary base where the metadata names none.
const FREQ_BASE: f32 = 10_000.0;

/// Settings of the configuration that follow from the tensors.
#[derive(Debug)]
pub struct Found {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The file has no separate output head.
    pub tied: bool,
    /// There are biases on q, k and v.
    pub qkv_bias: bool,
    /// There is a bias on the attention output.
    pub output_bias: bool,
    /// There are biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// Divisors of the rotary frequencies (`rope_freqs.weight`).
    pub rope_factors: Option<Vec<f32>>,
    /// Those of longrope: within the original context, and beyond it.
    pub long_factors: Option<[Vec<f32>; 2]>,
}

/// The configuration that metadata and tensors stand for; `dtype` is the storage type that will be
/// written.
pub fn config(
    metadata: &Metadata,
    architecture: &Architecture,
    found: &Found,
    dtype: &str,
) -> Result<Value, GgufError> {
    check_settings(metadata, architecture)?;
    let key = |name: &str| architecture.key(name);
    let required = |name: &str| {
        let number = metadata.per_layer(&key(name))?;
        number.ok_or_else(|| metadata.missing(&key(name), "a whole number"))
    };
    let hidden = required("embedding_length")?;
    let heads = required("attention.head_count")?;
    let kv_heads = metadata.per_layer(&key("attention.head_count_kv"))?.unwrap_or(heads);
    let derived = || hidden.checked_div(heads).unwrap_or(0);
    let head_dim = metadata.number(&key("attention.key_length"))?.unwrap_or_else(derived);
    let phi = architecture.name == "phi3";
    for name in ["attention.value_length", "rope.dimension_count"] {
        if phi && name == "rope.dimension_count" {
            continue;
        }
        if let Some(width) = metadata.number(&key(name))?
            && width != head_dim
        {
            return Err(metadata.unsupported(&key(name), width, &head_dim.to_string()));
        }
    }
    let context = required("context_length")?;
    let theta = metadata.float(&key("rope.freq_base"))?.unwrap_or(FREQ_BASE);
    let eps = key("attention.layer_norm_rms_epsilon");
    let eps = metadata.float(&eps)?.ok_or_else(|| metadata.missing(&eps, "an f32"))?;
    let mut config = json!({
        "architectures": [architecture.class],
        "model_type": architecture.model_type,
        "vocab_size": found.vocab_size,
        "hidden_size": hidden,
        "intermediate_size": required("feed_forward_length")?,
        "num_hidden_layers": required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": shortest(eps),
        "rope_theta": shortest(theta),
        "rope_scaling": null,
        "tie_word_embeddings": found.tied,
        "torch_dtype": dtype,
    });
    // A window that no sequence reaches is none.
    let window = metadata.number(&key("attention.sliding_window"))?;
    let given = window;
    let window = window.filter(|window| (1..context).contains(window));
    match (architecture.name, window) {
        ("gemma", None) => config["hidden_act"] = json!("gelu_pytorch_tanh"),
        ("phi3", _) => {
            config["sliding_window"] = json!(given.filter(|&given| given > 0));
            let rotated = metadata.number(&key("rope.dimension_count"))?.unwrap_or(head_dim);
            config["partial_rotary_factor"] = json!(rotated as f64 / head_dim as f64);
            if found.long_factors.is_some() {
                let original = key("rope.scaling.original_context_length");
                let original = metadata
                    .number(&original)?
                    .ok_or_else(|| metadata.missing(&original, "a whole number"))?;
                config["original_max_position_embeddings"] = json!(original);
            }
        }
        ("gemma2" | "gemma3", _) => {
            // As in llama.cpp: the 27B alone scales scores by the width of its residual stream.
            let (layers, scalar) = (required("block_count")?, hidden.checked_div(heads));
            let largest = if architecture.name == "gemma2" { 46 } else { 62 };
            config["query_pre_attn_scalar"] =
                json!(scalar.filter(|_| layers == largest).unwrap_or(head_dim));
            config["sliding_window"] = json!(given.filter(|&given| given > 0));
            for key in ["hidden_act", "hidden_activation"] {
                config[key] = json!("gelu_pytorch_tanh");
            }
            if architecture.name == "gemma2" {
                soft_caps(metadata, architecture, &mut config)?;
            } else {
                let local = metadata.float(&key("rope.freq_base_swa"))?.unwrap_or(FREQ_BASE);
                config["rope_local_base_freq"] = json!(shortest(local));
                if metadata.get(&key("rope.freq_base")).is_none() {
                    config["rope_theta"] = json!(1e6);
                }
            }
        }
        ("llama", window) => {
            if found.qkv_bias != found.output_bias {
                let got = if found.qkv_bias { "q, k, v only" } else { "output only" };
                return Err(metadata.unsupported("attention bias on", got, "all or none"));
            }
            config["attention_bias"] = json!(found.qkv_bias);
            config["mlp_bias"] = json!(found.mlp_bias);
            if let Some(window) = window {
                config["architectures"] = json!(["MistralForCausalLM"]);
                config["model_type"] = json!("mistral");
                config["sliding_window"] = json!(window);
            }
        }
        (_, Some(window)) => {
            return Err(metadata.unsupported(&key("attention.sliding_window"), window, "none"));
        }
        ("qwen3" | "qwen3moe" | "olmo2", None) => config["attention_bias"] = json!(found.qkv_bias),
        ("smollm3" | "granite", None) => {
            config["attention_bias"] = json!(found.qkv_bias);
            config["mlp_bias"] = json!(found.mlp_bias);
            if architecture.name == "granite" {
                granite(metadata, architecture, head_dim, &mut config)?;
            } else {
                // llama.cpp knows no other interval.
                config["no_rope_layer_interval"] = json!(4);
            }
        }
        _ => {}
    }
    experts(metadata, architecture, &mut config)?;
    config["rope_scaling"] = rope_scaling(metadata, architecture, found, &config)?;
    Ok(config)
}

/// The settings of a mixture of experts in every layer: a llama with experts is a Mixtral. As in
/// llama.cpp, the weights of the experts that a token takes sum to 1.
fn experts(
    metadata: &Metadata,
    architecture: &Architecture,
    config: &mut Value,
) -> Result<(), GgufError> {
    let required = |name: &str| {
        let number = metadata.number(&architecture.key(name))?;
        number.ok_or_else(|| metadata.missing(&architecture.key(name), "a whole number"))
    };
    let count = metadata.number(&architecture.key("expert_count"))?.unwrap_or(0);
    match architecture.name {
        "llama" if count > 0 => {
            config["architectures"] = json!(["MixtralForCausalLM"]);
            config["model_type"] = json!("mixtral");
            config["num_local_experts"] = json!(count);
        }
        "qwen3moe" => {
            config["num_experts"] = json!(required("expert_count")?);
            config["moe_intermediate_size"] = json!(required("expert_feed_forward_length")?);
            config["norm_topk_prob"] = json!(true);
        }
        _ => return Ok(()),
    }
    config["num_experts_per_tok"] = json!(required("expert_used_count")?);
    Ok(())
}

/// Gemma 2's soft caps, as llama.cpp reads them: its own where the file names none, none for 0.
fn soft_caps(
    metadata: &Metadata,
    architecture: &Architecture,
    config: &mut Value,
) -> Result<(), GgufError> {
    for (name, default) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        let cap = metadata.float(&architecture.key(name))?.unwrap_or(default);
        config[name] = if cap == 0.0 { Value::Null } else { shortest(cap) };
    }
    Ok(())
}

/// Granite's constant factors, as llama.cpp reads them: one that is absent or 0 changes nothing.
fn granite(
    metadata: &Metadata,
    architecture: &Architecture,
    head_dim: u64,
    config: &mut Value,
) -> Result<(), GgufError> {
    for (setting, name) in GRANITE {
        let factor = metadata.float(&architecture.key(setting))?.filter(|factor| *factor != 0.0);
        config[name] = match factor {
            Some(factor) => shortest(factor),
            None if name == "attention_multiplier" => json!((head_dim as f64).sqrt().recip()),
            None => json!(1.0),
        };
    }
    Ok(())
}

/// Refuses settings that may change what the model computes and are not known.
fn check_settings(metadata: &Metadata, architecture: &Architecture) -> Result<(), GgufError> {
    // ggml's own number for the layout of its blocks, since the format is GGUF.
    let layout = metadata.number("general.quantization_version")?;
    if let Some(layout) = layout.filter(|layout| *layout != 2) {
        return Err(metadata.unsupported("general.quantization_version", layout, "2"));
    }
    let prefix = architecture.key("");
    for (key, value) in metadata.iter() {
        let Some(setting) = key.strip_prefix(&prefix) else { continue };
        check(architecture, setting, value)
            .map_err(|known| metadata.unsupported(key, value, &known))?;
    }
    Ok(())
}

/// `rope_scaling` of the configuration.
fn rope_scaling(
    metadata: &Metadata,
    architecture: &Architecture,
    found: &Found,
    config: &Value,
) -> Result<Value, GgufError> {
    let key = |name: &str| architecture.key(name);
    let kind = metadata.text(&key("rope.scaling.type"))?;
    // llama.cpp reads a factor without a type as linear, and the factor's old name where the new one
    // is absent; 0 and 1 scale nothing.
    let factor = match metadata.float(&key("rope.scaling.factor"))? {
        Some(factor) => Some(factor),
        None => metadata.float(&key("rope.scale_linear"))?,
    };
    let factor = factor.filter(|factor| ![0.0, 1.0].contains(factor));
    if let Some([short, long]) = &found.long_factors {
        if let Some(other) = kind.filter(|kind| *kind != "longrope") {
            return Err(metadata.unsupported(&key("rope.scaling.type"), other, "longrope"));
        }
        if let Some(factor) = factor {
            return Err(metadata.unsupported(&key("rope.scaling.factor"), factor, "none"));
        }
        let factors = |factors: &[f32]| factors.iter().map(|f| shortest(*f)).collect::<Vec<_>>();
        let grown = metadata.float(&key("rope.scaling.attn_factor"))?.map(shortest);
        return Ok(json!({
            "rope_type": "longrope",
            "short_factor": factors(short),
            "long_factor": factors(long),
            "attention_factor": grown,
        }));
    }
    let linear = match (kind, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => Value::Null,
        (None | Some("linear"), Some(factor)) if factor > 0.0 => {
            json!({"rope_type": "linear", "factor": shortest(factor)})
        }
        (None | Some("linear"), Some(factor)) => {
            let expected = "a number above 0";
            return Err(metadata.mistyped(
                &key("rope.scaling.factor"),
                expected,
                factor.to_string(),
            ));
        }
        (Some(other), _) => {
            return Err(metadata.unsupported(&key("rope.scaling.type"), other, "none, linear"));
        }
    };
    match &found.rope_factors {
        None => Ok(linear),
        Some(factors) if linear.is_null() => llama3(metadata, factors, config),
        Some(_) => Err(metadata.unsupported(
            &key("rope.scaling.type"),
            "linear beside rope_freqs.weight",
            "one of the two",
        )),
    }
}

/// Llama 3's scaling is not in the metadata: the file carries the factors that follow from it, so
/// the published settings are tried and must give these factors.
fn llama3(metadata: &Metadata, factors: &[f32], config: &Value) -> Result<Value, GgufError> {
    let factor = factors.iter().copied().fold(1.0f32, f32::max).round();
    let scaling = json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    });
    let frequencies = |scaling: &Value| {
        let mut config = config.clone();
        config["rope_scaling"] = scaling.clone();
        let read = ModelConfig::from_json(&config);
        read.map(|config| config.rope.inv_freq)
            .map_err(|error| GgufError::Config { path: metadata.path().to_owned(), error })
    };
    let (plain, scaled) = (frequencies(&Value::Null)?, frequencies(&scaling)?);
    let expected = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
    let close = |(got, expected): (&f32, f32)| (got - expected).abs() < 1e-4 * expected;
    if factors.len() == plain.len() && factors.iter().zip(expected).all(close) {
        return Ok(scaling);
    }
    let got = format!("{} factors up to {factor}", factors.len());
    Err(metadata.unsupported("rope_freqs.weight", got, "those of Llama 3.1 to 3.3"))
}
