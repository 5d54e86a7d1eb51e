//! Model configuration: what a Hugging Face `config.json` says, checked, with the variants of the
//! Llama family, and T5, as data.

use super::names::{
    EMBEDDING, ExpertNames, HEAD, Module, NORM, Stack, T5_BIASES, T5_EMBEDDING, T5_NORMS,
    T5_TARGETS, TARGETS, last_of,
};
use crate::kernels::{Activation, AttentionShape, Norm, Rope};

/// A checked model configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` of the checkpoint, such as llama.
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
    /// Longest sequence that the model supports, in tokens.
    pub max_positions: usize,
    /// Constants of the norms.
    pub norm: Norm,
    /// Function of the feed-forward layer.
    pub activation: Activation,
    /// Whether the feed-forward layer has a gate: activation(gate) ⊙ up. Without one it is max(up, 0).
    pub gated: bool,
    /// Rotary constants, scaling applied.
    pub rope: Rope,
    /// Those of layers with a window, where they have their own (Gemma 3).
    pub local_rope: Option<Rope>,
    /// Whether queries and keys are rotated, per layer.
    pub rotary: Vec<bool>,
    /// Sliding window in tokens, per layer.
    pub windows: Vec<Option<usize>>,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub output_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// q, k and v are the rows of one tensor, gate and up of another (Phi-3).
    pub fused: bool,
    /// Where the norms of a layer stand.
    pub norms: Norms,
    /// RMS norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Constant factors (Granite).
    pub multipliers: Multipliers,
    /// Mixture of experts in the place of feed-forward layers.
    pub experts: Option<Experts>,
    /// Soft caps (Gemma 2).
    pub caps: SoftCaps,
    /// The output head is the embedding table.
    pub tied: bool,
    /// End-of-sequence ids named by the configuration.
    pub eos: Vec<u32>,
    /// The encoder whose output the decoder attends to (T5).
    pub encoder: Option<EncoderConfig>,
}

/// What an encoder–decoder model has beside its decoder. Widths, heads and norms are the decoder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderConfig {
    /// Layers of the encoder.
    pub layers: usize,
    /// Buckets of distances, each with a bias for each head, in the encoder and in the decoder.
    pub buckets: usize,
    /// Distances from here on share a bucket.
    pub max_distance: usize,
    /// The token that every answer begins after.
    pub start: u32,
}

/// Where the two norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Of the inputs of attention and feed-forward layer (Llama).
    Before,
    /// Of their outputs, before these are added to the residual stream (OLMo 2).
    After,
    /// Of both (Gemma 3).
    Around,
}

/// RMS norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// One gain for each head (Qwen3).
    Heads,
    /// Over all heads together (OLMo 2).
    Whole,
}

/// A mixture of experts. Norms of outputs are not known beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token takes.
    pub active: usize,
    /// The weights of these are normalised to sum 1.
    pub normalised: bool,
    /// Width of an expert.
    pub width: usize,
    /// What their tensors are called.
    pub names: ExpertNames,
    /// The layers that have them.
    pub layers: Vec<bool>,
}

/// Soft caps: a value x becomes cap · tanh(x / cap).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SoftCaps {
    /// Of attention's scores.
    pub scores: Option<f32>,
    /// Of the logits.
    pub logits: Option<f32>,
}

/// Constant factors of a forward pass; 1 changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multipliers {
    /// Of the embeddings.
    pub embedding: f32,
    /// Of the queries, beside attention's 1/√head_dim.
    pub query: f32,
    /// Of the outputs of attention and feed-forward layer.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
}

impl Norms {
    /// The norms before and after attention, before and after the feed-forward layer.
    pub fn modules(self) -> [Option<Module>; 4] {
        match self {
            Self::Before => [Some(Module::InputNorm), None, Some(Module::PostNorm), None],
            Self::Around => [
                Some(Module::InputNorm),
                Some(Module::PostNorm),
                Some(Module::PreMlpNorm),
                Some(Module::PostMlpNorm),
            ],
            Self::After => [None, Some(Module::PostNorm), None, Some(Module::PostMlpNorm)],
        }
    }
}

impl Multipliers {
    /// None of them.
    pub const ONE: Self = Self { embedding: 1.0, query: 1.0, residual: 1.0, logits: 1.0 };
}

/// A configuration that is not supported, with the key that decides it.
#[derive(Debug, thiserror::Error)]
#[error("config.json: {key}: {reason}")]
pub struct ModelConfigError {
    pub key: String,
    /// Value and what is supported.
    pub reason: String,
}

impl ModelConfig {
    /// Attention shape of a layer; layers past the last have no window.
    pub fn attention(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window: self.windows.get(layer).copied().flatten(),
            cap: self.caps.scores,
        }
    }

    /// Rotary constants of a layer.
    pub fn rope_of(&self, layer: usize) -> &Rope {
        let local = self.local_rope.as_ref().filter(|_| self.attention(layer).window.is_some());
        local.unwrap_or(&self.rope)
    }

    /// The first setting that makes two models compute different results from equal tensors: its key
    /// and the two values. Context length and end-of-sequence ids do not count.
    pub fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        macro_rules! compare {
            ($($key:literal: $field:ident),* $(,)?) => {$(
                if self.$field != other.$field {
                    let show = |config: &Self| format!("{:?}", config.$field);
                    return Some(($key, show(self), show(other)));
                }
            )*};
        }
        compare! {
            "model_type": model_type,
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "attention_bias": qkv_bias,
            "attention_bias": output_bias,
            "mlp_bias": mlp_bias,
            "no_rope_layers": rotary,
            "embedding_multiplier, attention_multiplier, residual_multiplier or logits_scaling":
                multipliers,
            "num_experts, num_experts_per_tok, norm_topk_prob, mlp_only_layers or decoder_sparse_step":
                experts,
            "attn_logit_softcapping or final_logit_softcapping": caps,
            "tie_word_embeddings": tied,
            "feed_forward_proj": gated,
            "feed_forward_proj": activation,
            "num_layers, relative_attention_num_buckets, relative_attention_max_distance or \
             decoder_start_token_id": encoder,
        }
        if self.norm != other.norm {
            let show = |config: &Self| format!("{:?}", config.norm.eps);
            return Some(("rms_norm_eps", show(self), show(other)));
        }
        if self.windows != other.windows {
            let window = |window: &Option<usize>| window.map_or("none".into(), |w| w.to_string());
            let show = |config: &Self| config.windows.iter().map(window).collect::<Vec<_>>();
            let [mut own, mut others] = [show(self), show(other)];
            own.dedup();
            others.dedup();
            return Some(("sliding_window", own.join(", "), others.join(", ")));
        }
        if self.rope != other.rope || self.local_rope != other.local_rope {
            let show = |config: &Self| {
                let lowest = config.rope.inv_freq.last().copied().unwrap_or_default();
                format!("rotary frequencies from 1 to {lowest:e}")
            };
            return Some(("rope_theta, rope_scaling or rope_parameters", show(self), show(other)));
        }
        None
    }

    /// The mixture of a layer; none where it has a feed-forward layer.
    pub fn experts(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer) == Some(&true))
    }

    /// The same model with an output head of its own.
    pub fn untied(&self) -> Self {
        Self { tied: false, ..self.clone() }
    }

    /// The layers of the decoder, as their tensors are named.
    pub fn stack(&self) -> Stack {
        match self.encoder {
            None => Stack::Decoder,
            Some(_) => Stack::T5Decoder { gated: self.gated },
        }
    }

    /// Name of the embedding table.
    pub fn embedding(&self) -> &'static str {
        if self.encoder.is_some() { T5_EMBEDDING } else { EMBEDDING }
    }

    /// Name of the output head: its own, or the embedding's where they are tied.
    pub fn head(&self) -> &'static str {
        if self.tied { self.embedding() } else { HEAD }
    }

    /// Last names of the linear layers of this model, by which adapters name their targets.
    pub fn targets(&self) -> Vec<&'static str> {
        let known: &[_] = if self.encoder.is_some() { &T5_TARGETS } else { &TARGETS };
        let tensors = self.tensors();
        let has = |target: &&str| tensors.iter().any(|(name, _)| last_of(name) == *target);
        known.iter().copied().filter(has).collect()
    }

    /// Name of the decoder's last norm.
    pub fn last_norm(&self) -> &'static str {
        let [_, decoder] = T5_NORMS;
        if self.encoder.is_some() { decoder } else { NORM }
    }

    /// Every tensor a checkpoint of this configuration holds: Hugging Face name and shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let h = self.hidden_size;
        let mut out = vec![(self.embedding().to_owned(), vec![self.vocab_size, h])];
        if let Some(encoder) = &self.encoder {
            let stack = Stack::T5Encoder { gated: self.gated };
            (0..encoder.layers).for_each(|layer| self.layer_tensors(stack, layer, &mut out));
            out.extend(T5_BIASES.map(|name| (name.to_owned(), vec![encoder.buckets, self.heads])));
            out.push((T5_NORMS[0].to_owned(), vec![h]));
        }
        (0..self.layers).for_each(|layer| self.layer_tensors(self.stack(), layer, &mut out));
        out.push((self.last_norm().to_owned(), vec![h]));
        if !self.tied {
            out.push((HEAD.to_owned(), vec![self.vocab_size, h]));
        }
        out
    }

    fn layer_tensors(&self, stack: Stack, layer: usize, out: &mut Vec<(String, Vec<usize>)>) {
        let (h, hd) = (self.hidden_size, self.head_dim);
        let (q, kv, ff) = (self.heads * hd, self.kv_heads * hd, self.intermediate_size);
        let crosses = matches!(stack, Stack::T5Decoder { .. });
        let cross_norm = crosses.then_some(Module::CrossNorm);
        for norm in self.norms.modules().into_iter().flatten().chain(cross_norm) {
            out.push((stack.weight(norm, layer), vec![h]));
        }
        let experts = self.experts(layer);
        let (apart, dense) = (!self.fused, experts.is_none());
        for (module, rows, cols, bias, present) in [
            (Module::Q, q, h, self.qkv_bias, apart),
            (Module::K, kv, h, self.qkv_bias, apart),
            (Module::V, kv, h, self.qkv_bias, apart),
            (Module::Qkv, q + 2 * kv, h, self.qkv_bias, self.fused),
            (Module::O, h, q, self.output_bias, true),
            (Module::CrossQ, q, h, false, crosses),
            (Module::CrossK, kv, h, false, crosses),
            (Module::CrossV, kv, h, false, crosses),
            (Module::CrossO, h, q, false, crosses),
            (Module::Gate, ff, h, self.mlp_bias, self.gated && apart && dense),
            (Module::Up, ff, h, self.mlp_bias, apart && dense),
            (Module::GateUp, 2 * ff, h, self.mlp_bias, self.fused && dense),
            (Module::Down, h, ff, self.mlp_bias, dense),
        ] {
            if !present {
                continue;
            }
            out.push((stack.weight(module, layer), vec![rows, cols]));
            if bias {
                out.push((stack.bias(module, layer), vec![rows]));
            }
        }
        if let Some(Experts { count, width, names, .. }) = experts {
            out.push((format!("{}.weight", names.router(layer)), vec![*count, h]));
            for expert in 0..*count {
                for (module, shape) in [
                    (Module::Gate, [*width, h]),
                    (Module::Up, [*width, h]),
                    (Module::Down, [h, *width]),
                ] {
                    let path = names.path(layer, expert, module);
                    out.push((format!("{path}.weight"), shape.to_vec()));
                }
            }
        }
        let widths = match self.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some([hd, hd]),
            QkNorm::Whole => Some([q, kv]),
        };
        for (norm, width) in
            [Module::QNorm, Module::KNorm].into_iter().zip(widths.into_iter().flatten())
        {
            out.push((stack.weight(norm, layer), vec![width]));
        }
    }
}
