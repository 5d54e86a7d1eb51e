//! How the tensors of a GGUF file are named, stored, ordered and scaled, against a Hugging Face
//! checkpoint.

use super::types::GgmlType;
use crate::kernels::BlockType;

/// Divisors of the rotary frequencies, which in a checkpoint follow from the configuration.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Those of longrope: within the original context, and beyond it.
pub const LONG_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Names outside the layers: in a checkpoint, in a file.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];
/// Modules of a layer: in a checkpoint, in a file.
const INNER: [(&str, &str); 15] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
];
/// Modules of an expert: in a checkpoint (Qwen3-MoE's, Mixtral's), in a file, where those of all
/// experts are one tensor.
const EXPERTS: [(&str, &str, &str); 3] = [
    ("gate_proj", "w1", "ffn_gate_exps"),
    ("up_proj", "w3", "ffn_up_exps"),
    ("down_proj", "w2", "ffn_down_exps"),
];

/// Norms of a layer that has some after its parts: in a checkpoint, in a file.
const NORMS_AFTER: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// One tensor of the checkpoint and how it comes out of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSource {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    pub file_name: String,
    /// Number of the expert and how many there are, where the file's tensor is that of all experts.
    pub expert: Option<(usize, usize)>,
    /// Heads whose rows stand in interleaved order.
    pub interleaved_heads: Option<usize>,
    /// The file has the values with 1 added to them.
    pub one_added: bool,
}

/// Storage type of a tensor in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Numbers.
    Plain,
    /// Blocks whose codes a type that is served holds.
    Blocks(BlockType),
    /// Blocks of another type, which is dequantised.
    Other,
}

impl From<GgmlType> for Stored {
    fn from(kind: GgmlType) -> Self {
        match kind {
            GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => Self::Plain,
            blocks => blocks.kept().map_or(Self::Other, Self::Blocks),
        }
    }
}

/// The file's name of a checkpoint's tensor; a tensor that files have no name for keeps its own.
pub fn file_name(name: &str, norms_after: bool) -> String {
    if let Some((_, outer)) = OUTER.iter().find(|(known, _)| *known == name) {
        return (*outer).to_owned();
    }
    let inner = || {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, kind) = rest.rsplit_once('.')?;
        let norms = NORMS_AFTER.iter().filter(|_| norms_after);
        let (_, part) = norms.chain(&INNER).find(|(known, _)| *known == module)?;
        Some(format!("blk.{layer}.{part}.{kind}"))
    };
    inner().unwrap_or_else(|| name.to_owned())
}

/// The file's name of the tensor that a checkpoint's tensor of an expert is part of, and the number of
/// the expert.
pub fn expert(name: &str) -> Option<(String, usize)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, rest) = rest.split_once(".experts.")?;
    let (number, module) = rest.strip_suffix(".weight")?.split_once('.')?;
    let (.., part) =
        EXPERTS.iter().find(|(qwen, mixtral, _)| [*qwen, *mixtral].contains(&module))?;
    Some((format!("blk.{layer}.{part}.weight"), number.parse().ok()?))
}

/// Rows `2d + j` of a head (pair d side by side) move to `j · half + d` (first halves, then second).
/// `values` are `heads · 2 · half` rows of `width` values, or bytes of blocks.
pub fn split_pairs<T: Copy>(values: &[T], heads: usize, width: usize) -> Vec<T> {
    let half = values.len() / (heads * width * 2).max(1);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact((2 * half * width).max(1)) {
        for j in 0..2 {
            for row in head.chunks_exact(width).skip(j).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
}
