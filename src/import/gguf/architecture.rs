//! The architectures whose GGUF files are read, and the keys of their settings.

use super::header::Meta;

/// An architecture.
#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    pub name: &'static str,
    /// Hugging Face's `model_type`.
    pub model_type: &'static str,
    /// transformers' class.
    pub class: &'static str,
    /// llama.cpp stores the rotary pairs of q and k side by side (elsewhere: first halves of a
    /// head, then second halves).
    pub interleaved: bool,
    /// Norms have names of their own after attention and feed-forward layer.
    pub norms_after: bool,
    /// Gains of norms are stored with the 1 that the model adds.
    pub one_added: bool,
    /// Settings that other architectures have at a value that changes nothing.
    pub own: &'static [&'static str],
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    interleaved: true,
    norms_after: false,
    one_added: false,
    own: &["expert_count"],
};

const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    interleaved: false,
    own: &[],
    ..LLAMA
};

const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_type: "gemma",
    class: "GemmaForCausalLM",
    one_added: true,
    ..QWEN2
};

/// All of them.
pub const ARCHITECTURES: [Architecture; 11] = [
    LLAMA,
    QWEN2,
    Architecture { name: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", ..QWEN2 },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        own: &["expert_count", "expert_feed_forward_length"],
        ..QWEN2
    },
    Architecture {
        name: "smollm3",
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        own: &[],
        ..LLAMA
    },
    Architecture {
        name: "granite",
        model_type: "granite",
        class: "GraniteForCausalLM",
        own: &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
        ..LLAMA
    },
    Architecture {
        name: "olmo2",
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        norms_after: true,
        ..QWEN2
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        own: &["rope.scaling.attn_factor"],
        ..QWEN2
    },
    GEMMA,
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        norms_after: true,
        own: &["attn_logit_softcapping", "final_logit_softcapping"],
        ..GEMMA
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        norms_after: true,
        ..GEMMA
    },
];

impl Architecture {
    /// The architecture of a name; what is supported, where it is none of them.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        if let Some(known) = ARCHITECTURES.iter().find(|known| known.name == name) {
            return Ok(known);
        }
        let all = ARCHITECTURES.each_ref().map(|known| known.name).join(", ");
        let nearest = ARCHITECTURES.iter().map(|known| known.name).max_by_key(|known| {
            known.chars().zip(name.chars()).take_while(|(a, b)| a == b).count()
        });
        Err(match nearest.filter(|nearest| nearest.get(..2) == name.get(..2)) {
            Some(nearest) => format!("{all}; the nearest is {nearest}"),
            None => all,
        })
    }

    /// The metadata key of one of its settings.
    pub fn key(&self, setting: &str) -> String {
        format!("{}.{setting}", self.name)
    }
}

/// Settings that are read, and from `tensor_data_layout` on those that change nothing in these
/// architectures, be it because they belong to experts or to a scaling that are refused.
const READ: [&str; 28] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "tensor_data_layout",
    "expert_used_count",
    "pooling_type",
    "attention.layer_norm_epsilon",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Settings that other models of these architectures' family have, with the values at which they
/// change nothing; a boolean counts as 0 or 1.
const NEUTRAL: [(&str, &[f64]); 18] = [
    ("expert_count", &[0.0]),
    ("expert_shared_count", &[0.0]),
    ("leading_dense_block_count", &[0.0]),
    ("nextn_predict_layers", &[0.0]),
    ("use_parallel_residual", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("attention.causal", &[1.0]),
    ("attention.scale", &[0.0]),
    ("attention.output_scale", &[0.0, 1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.temperature_length", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("rope.scaling.attn_factor", &[1.0]),
];

/// Granite's constant factors: their names in a file and in a configuration.
pub const GRANITE: [(&str, &str); 4] = [
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
];

/// Checks that a setting is read or changes nothing; else says what would be supported.
pub fn check(architecture: &Architecture, setting: &str, value: &Meta) -> Result<(), String> {
    // Without it llama.cpp leaves Granite's queries and keys as they are.
    if architecture.name == "granite"
        && setting == "rope.scaling.finetuned"
        && *value == Meta::Bool(false)
    {
        return Err("true".to_owned());
    }
    if READ.contains(&setting) || architecture.own.contains(&setting) {
        return Ok(());
    }
    let neutral = NEUTRAL.iter().find(|(known, _)| *known == setting);
    let number = match value {
        Meta::Unsigned(number) => Some(*number as f64),
        Meta::Signed(number) => Some(*number as f64),
        Meta::F32(number) => Some(f64::from(*number)),
        Meta::F64(number) => Some(*number),
        Meta::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Meta::String(_) | Meta::Bytes | Meta::Array(_) => None,
    };
    match (neutral, number) {
        (Some((_, values)), Some(number)) if values.contains(&number) => Ok(()),
        (Some((_, values)), _) => {
            Err(values.iter().map(f64::to_string).collect::<Vec<_>>().join(" or "))
        }
        (None, _) => Err("only settings that are known".to_owned()),
    }
}
