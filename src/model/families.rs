//! The model families, as data: what tells one from another.

use serde_json::Value;

use super::{
    config::{ModelConfigError, Norms, QkNorm},
    keys::{Keys, error},
    names::ExpertNames,
    t5,
};
use crate::kernels::Activation;

/// Differences between the families.
#[derive(Clone, Copy)]
pub(super) struct Family {
    pub model_type: &'static str,
    /// Biases on q, k, v without a key that says so.
    pub always_qkv_bias: bool,
    /// `attention_bias` is read, for q, k, v and o.
    pub attention_bias_key: bool,
    /// `mlp_bias` is read.
    pub mlp_bias_key: bool,
    /// As many heads of keys and values as of queries where `num_key_value_heads` is absent.
    pub kv_heads_default: bool,
    pub norms: Norms,
    pub qk_norm: QkNorm,
    /// What is added to the stored gains of norms.
    pub norm_shift: f32,
    /// The key of the feed-forward layer's function, and its names there; the function.
    pub activation: (&'static str, &'static [&'static str], Activation),
    /// How `sliding_window` becomes a window per layer.
    pub window: WindowRule,
    /// Some layers do not rotate: `no_rope_layers`, `no_rope_layer_interval`.
    pub unrotated: bool,
    /// Layers with a window have rotary constants of their own: the key of their base in transformers
    /// 4, and the base where it is absent.
    pub local_rope: Option<(&'static str, f64)>,
    /// `partial_rotary_factor` and longrope are read.
    pub partial_rope: bool,
    /// q, k and v in one tensor, gate and up in another.
    pub fused: bool,
    /// A mixture of experts, and how it is called.
    pub experts: Option<ExpertNames>,
    /// Soft caps of scores and logits where their keys are absent; `None`: there are none.
    pub caps: Option<[f32; 2]>,
    pub multipliers: MultiplierRule,
    /// `head_dim` when the key is absent; `None` is hidden_size / num_attention_heads.
    pub head_dim: Option<usize>,
    /// `rms_norm_eps` when the key is absent.
    pub norm_eps: f64,
    /// `rope_theta` when the key is absent.
    pub theta: f64,
    /// `tie_word_embeddings` when the key is absent.
    pub tied: bool,
}

#[derive(Clone, Copy)]
pub(super) enum WindowRule {
    /// No window.
    Never,
    /// All layers, when the key is a number; transformers' default where it is absent.
    All { absent: Option<usize> },
    /// No window; `use_sliding_window` is refused.
    Refused,
    /// Only with `use_sliding_window`: the layers of `layer_types`, else those from
    /// `max_window_layers` on.
    Late,
    /// Only with `use_sliding_window`: the layers of `layer_types`, else those without rotation.
    Unrotated,
    /// The layers of `layer_types`, else all but each `every`-th, or each `key`-th.
    Pattern { every: usize, key: Option<&'static str> },
}

#[derive(Clone, Copy)]
pub(super) enum MultiplierRule {
    /// None.
    One,
    /// Granite's keys.
    Keys,
    /// Embeddings by √hidden_size.
    Gemma,
    /// The same, and scores by 1/√query_pre_attn_scalar.
    Gemma2,
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
    local_rope: None,
    partial_rope: false,
    fused: false,
    experts: None,
    caps: None,
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
    window: WindowRule::All { absent: Some(4096) },
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

const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    window: WindowRule::Refused,
    experts: Some(ExpertNames::Mlp),
    head_dim: None,
    ..QWEN3
};

const MIXTRAL: Family = Family {
    model_type: "mixtral",
    window: WindowRule::All { absent: None },
    experts: Some(ExpertNames::Mixtral),
    norm_eps: 1e-5,
    theta: 1_000_000.0,
    ..MISTRAL
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

const OLMO3: Family = Family {
    model_type: "olmo3",
    window: WindowRule::Pattern { every: 4, key: None },
    local_rope: Some(("rope_theta", 500_000.0)),
    theta: 500_000.0,
    ..OLMO2
};

const GRANITE: Family =
    Family { model_type: "granite", multipliers: MultiplierRule::Keys, ..LLAMA };

const PHI3: Family = Family {
    model_type: "phi3",
    attention_bias_key: false,
    mlp_bias_key: false,
    window: WindowRule::All { absent: None },
    partial_rope: true,
    fused: true,
    norm_eps: 1e-5,
    ..LLAMA
};

const GEMMA: Family = Family {
    model_type: "gemma",
    mlp_bias_key: false,
    kv_heads_default: false,
    norm_shift: 1.0,
    // The releases call the tanh form "gelu".
    activation: ("hidden_act", &["gelu_pytorch_tanh", "gelu"], Activation::Gelu),
    multipliers: MultiplierRule::Gemma,
    head_dim: Some(256),
    tied: true,
    ..LLAMA
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    norms: Norms::Around,
    activation: ("hidden_activation", &["gelu_pytorch_tanh"], Activation::Gelu),
    window: WindowRule::Pattern { every: 2, key: None },
    caps: Some([50.0, 30.0]),
    multipliers: MultiplierRule::Gemma2,
    ..GEMMA
};

const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    qk_norm: QkNorm::Heads,
    window: WindowRule::Pattern { every: 6, key: Some("sliding_window_pattern") },
    local_rope: Some(("rope_local_base_freq", 10_000.0)),
    caps: None,
    theta: 1_000_000.0,
    ..GEMMA2
};

const FAMILIES: [Family; 14] = [
    LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, SMOLLM3, OLMO2, OLMO3, GRANITE, PHI3, GEMMA,
    GEMMA2, GEMMA3,
];

/// Families that are not served, the nearest one that is, and what it lacks for them.
const UNSERVED: [(&str, &Family, &str); 6] = [
    ("gemma3", &GEMMA3, "images"),
    ("phi", &LLAMA, "layer norms with biases, parallel layers, heads rotated in part"),
    ("olmo", &LLAMA, "layer norms without gain"),
    ("granitemoe", &GRANITE, "experts"),
    ("qwen2_moe", &QWEN3_MOE, "an expert that all tokens take"),
    ("gpt2", &LLAMA, "learned positions, layer norms with biases, GELU"),
];

/// The family that `model_type` names.
pub(super) fn family(keys: &Keys<'_>) -> Result<&'static Family, ModelConfigError> {
    let known = FAMILIES.map(|family| family.model_type).join(", ");
    let known = format!("{known}, {}", t5::MODEL_TYPE);
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
