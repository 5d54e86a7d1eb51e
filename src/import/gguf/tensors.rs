//! How the tensors of a GGUF file are named, stored, ordered and scaled, against a Hugging Face
//! checkpoint.

use half::f16;

use super::types::{GgmlType, scale_and_minimum};
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
const INNER: [(&str, &str); 13] = [
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
    /// Blocks that are served as they are.
    Blocks(BlockType),
    /// Q4_K: superblocks of eight Q4_1 blocks whose scales and minima are 6-bit codes themselves.
    Q4K,
    /// Blocks of another type, which is dequantised.
    Other,
}

impl Stored {
    /// The type that its blocks are kept in, where they can be.
    pub fn kept(self) -> Option<BlockType> {
        match self {
            Self::Blocks(kind) => Some(kind),
            Self::Q4K => Some(BlockType::Q4_1),
            Self::Plain | Self::Other => None,
        }
    }
}

impl From<GgmlType> for Stored {
    fn from(kind: GgmlType) -> Self {
        match kind {
            GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => Self::Plain,
            GgmlType::Q8_0 => Self::Blocks(BlockType::Q8_0),
            GgmlType::Q4_0 => Self::Blocks(BlockType::Q4_0),
            GgmlType::Q4_1 => Self::Blocks(BlockType::Q4_1),
            GgmlType::Q4K => Self::Q4K,
            _ => Self::Other,
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

/// Q4_K's superblocks of 256 values as Q4_1 blocks: the same codes, and each block's scale and
/// minimum multiplied out and rounded to f16 (2⁻¹¹ of them at most).
pub fn q4_k_as_q4_1(superblocks: &[u8]) -> Vec<u8> {
    let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let mut out = Vec::with_capacity(superblocks.len() / 144 * 160);
    // f16 scale of scales, f16 scale of minima, twelve bytes of 6-bit codes, 128 of 4-bit codes.
    for bytes in superblocks.chunks_exact(144) {
        let (scale, minimum, packed, codes) =
            (half(bytes), half(&bytes[2..]), &bytes[4..16], &bytes[16..]);
        for block in 0..8 {
            let (scale_code, minimum_code) = scale_and_minimum(packed, block);
            out.extend(f16::from_f32(scale * f32::from(scale_code)).to_le_bytes());
            out.extend(f16::from_f32(-minimum * f32::from(minimum_code)).to_le_bytes());
            // Two blocks share 32 bytes, half a byte a value; Q4_1 pairs values 16 apart.
            let shift = block % 2 * 4;
            let code = |i: usize| codes[block / 2 * 32 + i] >> shift & 15;
            out.extend((0..16).map(|i| code(i) | code(i + 16) << 4));
        }
    }
    out
}
