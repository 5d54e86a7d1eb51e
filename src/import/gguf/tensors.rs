//! How the tensors of a GGUF file are named, stored, ordered and scaled, against a Hugging Face
//! checkpoint.

use candle_core::quantized::GgmlDType;
use half::f16;

use crate::{
    kernels::BlockType,
    model::names::{EMBEDDING, HEAD, Module, NORM},
};

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

impl From<GgmlDType> for Stored {
    fn from(dtype: GgmlDType) -> Self {
        match dtype {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => Self::Plain,
            GgmlDType::Q8_0 => Self::Blocks(BlockType::Q8_0),
            GgmlDType::Q4_0 => Self::Blocks(BlockType::Q4_0),
            GgmlDType::Q4_1 => Self::Blocks(BlockType::Q4_1),
            GgmlDType::Q4K => Self::Q4K,
            _ => Self::Other,
        }
    }
}

/// The checkpoint's name of a tensor, and the part of the layer that it belongs to.
pub fn checkpoint_name(gguf_name: &str) -> Option<(String, &str)> {
    match gguf_name {
        "token_embd.weight" => return Some((EMBEDDING.to_owned(), "")),
        "output_norm.weight" => return Some((NORM.to_owned(), "")),
        "output.weight" => return Some((HEAD.to_owned(), "")),
        _ => {}
    }
    let (layer, rest) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    let module = match part {
        "attn_norm" => Module::InputNorm,
        "ffn_norm" => Module::PostNorm,
        "attn_q" => Module::Q,
        "attn_k" => Module::K,
        "attn_v" => Module::V,
        "attn_output" => Module::O,
        "attn_q_norm" => Module::QNorm,
        "attn_k_norm" => Module::KNorm,
        "ffn_gate" => Module::Gate,
        "ffn_up" => Module::Up,
        "ffn_down" => Module::Down,
        _ => return None,
    };
    match kind {
        "weight" => Some((module.weight(layer), part)),
        "bias" => Some((module.bias(layer), part)),
        _ => None,
    }
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
            let (scale_code, minimum_code) = match block {
                0..4 => (packed[block] & 63, packed[block + 4] & 63),
                _ => (
                    packed[block + 4] & 15 | packed[block - 4] >> 6 << 4,
                    packed[block + 4] >> 4 | packed[block] >> 6 << 4,
                ),
            };
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

/// Llama 3's divisors of the rotary frequencies θ^(−2d/D), for d in 0..D/2: none for wavelengths
/// below 8192/4, `factor` above 8192, and between them the blend that is linear in 1/wavelength.
pub fn llama3_factors(theta: f64, head_dim: usize, factor: f64) -> Vec<f64> {
    let (original, low, high) = (8192.0, 1.0, 4.0);
    (0..head_dim / 2)
        .map(|d| {
            let wavelength =
                2.0 * std::f64::consts::PI * theta.powf(2.0 * d as f64 / head_dim as f64);
            let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        })
        .collect()
}
