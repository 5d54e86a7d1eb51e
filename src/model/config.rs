//! Model configuration: what a Hugging Face `config.json` says, checked, with the variants of the
//! Llama family as data.

use serde_json::Value;

use crate::kernels::{AttentionShape, Rope};

/// A checked model configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` of the checkpoint: llama, mistral, qwen2 or qwen3.
    pub model_type: String,
    /// Vocabulary rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// ε of the norms.
    pub norm_eps: f32,
    /// Rotary constants, scaling applied.
    pub rope: Rope,
    /// Sliding window in tokens, per layer.
    pub windows: Vec<Option<usize>>,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub output_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// RMS norms on each head of q and k (Qwen3).
    pub qk_norm: bool,
    /// The output head is the embedding table.
    pub tied: bool,
    /// End-of-sequence ids named by the configuration.
    pub eos: Vec<u32>,
}

/// A configuration that cannot be served, with the key that says so.
#[derive(Debug, thiserror::Error)]
#[error("config.json: {key}: {reason}")]
pub struct ConfigError {
    /// The key.
    pub key: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl ModelConfig {
    /// Reads and checks a `config.json` as transformers 4 or 5 write it.
    pub fn from_json(json: &Value) -> Result<Self, ConfigError> {
        super::read::config(json)
    }

    /// Attention shape of a layer; layers past the last have no window.
    pub fn attention(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window: self.windows.get(layer).copied().flatten(),
        }
    }

    /// Every tensor a checkpoint of this configuration holds: Hugging Face name and shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, hd) = (self.hidden_size, self.head_dim);
        let (q, kv, ff) = (self.heads * hd, self.kv_heads * hd, self.intermediate_size);
        let mut out = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, h])];
        for layer in 0..self.layers {
            let mut push = |name: &str, shape: &[usize]| {
                out.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            push("input_layernorm.weight", &[h]);
            push("post_attention_layernorm.weight", &[h]);
            for (name, rows, cols, bias) in [
                ("self_attn.q_proj", q, h, self.qkv_bias),
                ("self_attn.k_proj", kv, h, self.qkv_bias),
                ("self_attn.v_proj", kv, h, self.qkv_bias),
                ("self_attn.o_proj", h, q, self.output_bias),
                ("mlp.gate_proj", ff, h, self.mlp_bias),
                ("mlp.up_proj", ff, h, self.mlp_bias),
                ("mlp.down_proj", h, ff, self.mlp_bias),
            ] {
                push(&format!("{name}.weight"), &[rows, cols]);
                if bias {
                    push(&format!("{name}.bias"), &[rows]);
                }
            }
            if self.qk_norm {
                push("self_attn.q_norm.weight", &[hd]);
                push("self_attn.k_norm.weight", &[hd]);
            }
        }
        out.push(("model.norm.weight".to_owned(), vec![h]));
        if !self.tied {
            out.push(("lm_head.weight".to_owned(), vec![self.vocab_size, h]));
        }
        out
    }
}
