//! ggml's storage types: names, sizes of blocks, and the values that blocks stand for.
//!
//! A block is a run of values of one row with its own scale. Formulas are ggml's: a value is
//! `d · (u − z)` or `d · u − m`, where u is the value's code, d the block's scale, m its minimum and
//! z a constant; IQ4_NL and IQ4_XS have numbers of a codebook for u − z. The types with K, and IQ4_XS,
//! hold superblocks of 256 values, whose blocks of 16 or 32 have codes for d and m that one f16 each
//! scales in turn.

use half::{bf16, f16};

use crate::kernels::{BlockType, quantised::CODEBOOK};

/// Storage type of a tensor in a GGUF file, of those that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// 4-bit codes around 8.
    Q4_0,
    /// 4-bit codes with a minimum.
    Q4_1,
    /// 5-bit codes around 16.
    Q5_0,
    /// 5-bit codes with a minimum.
    Q5_1,
    /// Signed 8-bit codes.
    Q8_0,
    /// Superblocks of 2-bit codes with minima.
    Q2K,
    /// Superblocks of signed 3-bit codes.
    Q3K,
    /// Superblocks of 4-bit codes with minima.
    Q4K,
    /// Superblocks of 5-bit codes with minima.
    Q5K,
    /// Superblocks of signed 6-bit codes.
    Q6K,
    /// 4-bit codes of a codebook.
    Iq4Nl,
    /// Superblocks of 4-bit codes of the same.
    Iq4Xs,
}

/// Values of a superblock.
const SUPER: usize = 256;

/// Id in files, name in ggml, values and bytes of a block.
const READ: [(GgmlType, u32, &str, usize, usize); 15] = [
    (GgmlType::F32, 0, "F32", 1, 4),
    (GgmlType::F16, 1, "F16", 1, 2),
    (GgmlType::Q4_0, 2, "Q4_0", 32, 2 + 16),
    (GgmlType::Q4_1, 3, "Q4_1", 32, 4 + 16),
    (GgmlType::Q5_0, 6, "Q5_0", 32, 2 + 4 + 16),
    (GgmlType::Q5_1, 7, "Q5_1", 32, 4 + 4 + 16),
    (GgmlType::Q8_0, 8, "Q8_0", 32, 2 + 32),
    (GgmlType::Q2K, 10, "Q2_K", SUPER, 16 + 64 + 4),
    (GgmlType::Q3K, 11, "Q3_K", SUPER, 32 + 64 + 12 + 2),
    (GgmlType::Q4K, 12, "Q4_K", SUPER, 4 + 12 + 128),
    (GgmlType::Q5K, 13, "Q5_K", SUPER, 4 + 12 + 32 + 128),
    (GgmlType::Q6K, 14, "Q6_K", SUPER, 128 + 64 + 16 + 2),
    (GgmlType::Iq4Nl, 20, "IQ4_NL", 32, 2 + 16),
    (GgmlType::Iq4Xs, 23, "IQ4_XS", SUPER, 2 + 2 + 4 + 128),
    (GgmlType::Bf16, 30, "BF16", 1, 2),
];

/// Types that ggml has and that are not read.
const OTHERS: [(u32, &str); 24] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl GgmlType {
    /// The type of an id, or the name of one that is not read.
    pub fn of(id: u32) -> Result<Self, String> {
        match READ.iter().find(|(_, known, ..)| *known == id) {
            Some((kind, ..)) => Ok(*kind),
            None => Err(match OTHERS.iter().find(|(known, _)| *known == id) {
                Some((_, name)) => (*name).to_owned(),
                None => format!("type {id}"),
            }),
        }
    }

    /// The names of the types that are read.
    pub fn names() -> String {
        READ.map(|(_, _, name, ..)| name).join(", ")
    }

    pub fn name(self) -> &'static str {
        self.row().2
    }

    pub fn block_values(self) -> usize {
        self.row().3
    }

    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        READ.iter().find(|(kind, ..)| *kind == self).unwrap_or(&READ[0])
    }

    /// Bytes of a tensor whose innermost dimension has `columns` values; `None` where that is not a
    /// number of whole blocks or overflows.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let columns = shape.last()?;
        if !columns.is_multiple_of(self.block_values()) {
            return None;
        }
        let values = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))?;
        (values / self.block_values()).checked_mul(self.block_bytes())
    }

    /// The type of ladle's own blocks that holds its codes: exactly where each block has an f16 scale
    /// already; where superblocks scale the scales, those are multiplied out and rounded to f16 (2⁻¹¹
    /// of them at most). `None` for numbers, and for Q2_K, whose blocks of 16 have minima.
    pub fn kept(self) -> Option<BlockType> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::Q2K => None,
            Self::Q4_0 => Some(BlockType::Q4_0),
            Self::Q4_1 | Self::Q4K => Some(BlockType::Q4_1),
            Self::Q5_0 => Some(BlockType::Q5_0),
            Self::Q5_1 | Self::Q5K => Some(BlockType::Q5_1),
            Self::Q8_0 => Some(BlockType::Q8_0),
            Self::Q3K | Self::Q6K => Some(BlockType::Q6),
            Self::Iq4Nl | Self::Iq4Xs => Some(BlockType::Iq4Nl),
        }
    }

    /// The values of whole blocks.
    pub fn values(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.block_bytes() * self.block_values());
        let plain = bytes.chunks_exact(self.block_bytes());
        match self {
            Self::F32 => {
                let four = plain.filter_map(|value| value.first_chunk());
                out.extend(four.map(|four| f32::from_le_bytes(*four)));
            }
            Self::F16 => out.extend(plain.map(|value| half_at(value, 0))),
            Self::Bf16 => {
                let two = plain.filter_map(|value| value.first_chunk());
                out.extend(two.map(|two| bf16::from_le_bytes(*two).to_f32()));
            }
            _ => self.blocks(bytes, |scale, minimum, numbers| {
                let value = |number: &i8| scale * f32::from(*number);
                match minimum {
                    Some(minimum) => out.extend(numbers.iter().map(|n| value(n) + minimum)),
                    None => out.extend(numbers.iter().map(value)),
                }
            }),
        }
        out
    }

    /// Gives `take` each block in turn: its scale, its minimum if it has one, and the numbers that
    /// the scale multiplies. Nothing for F32, F16 and BF16.
    pub fn blocks(self, bytes: &[u8], mut take: impl FnMut(f32, Option<f32>, &[i8])) {
        for block in bytes.chunks_exact(self.block_bytes()) {
            let d = half_at(block, 0);
            let m = || Some(half_at(block, 2));
            match self {
                Self::F32 | Self::F16 | Self::Bf16 => {}
                Self::Q4_0 => take(d, None, &four_bits(&block[2..], |_, u| u - 8)),
                Self::Q4_1 => take(d, m(), &four_bits(&block[4..], |_, u| u)),
                Self::Q5_0 => {
                    let fifth = &block[2..6];
                    take(d, None, &four_bits(&block[6..], |i, u| (u | bit(fifth, i) << 4) - 16));
                }
                Self::Q5_1 => {
                    let fifth = &block[4..8];
                    take(d, m(), &four_bits(&block[8..], |i, u| u | bit(fifth, i) << 4));
                }
                Self::Q8_0 => {
                    let codes: [i8; 32] = std::array::from_fn(|i| block[2 + i].cast_signed());
                    take(d, None, &codes);
                }
                Self::Iq4Nl => take(d, None, &four_bits(&block[2..], |_, u| number(u))),
                Self::Q2K => q2_k(block, &mut take),
                Self::Q3K => q3_k(block, &mut take),
                Self::Q4K => q4_k(block, &mut take),
                Self::Q5K => q5_k(block, &mut take),
                Self::Q6K => q6_k(block, &mut take),
                Self::Iq4Xs => iq4_xs(block, &mut take),
            }
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Bit `i` of bytes.
fn bit(bytes: &[u8], i: usize) -> i8 {
    (bytes[i / 8] >> (i % 8) & 1).cast_signed()
}

/// The number of the codebook at a place.
fn number(place: i8) -> i8 {
    CODEBOOK[usize::from(place.cast_unsigned() & 15)]
}

/// 16 bytes hold the codes of values i (lower halves) and i + 16 (upper halves); `number` makes a
/// number of a value's place and code.
fn four_bits(codes: &[u8], number: impl Fn(usize, i8) -> i8) -> [i8; 32] {
    std::array::from_fn(|i| number(i, (codes[i % 16] >> (i / 16 * 4) & 15).cast_signed()))
}

/// Layout: for each 16 values a byte of scale and minimum, codes of 2 bits, d, the minima's scale.
fn q2_k(block: &[u8], take: &mut impl FnMut(f32, Option<f32>, &[i8])) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, minimum) = (half_at(block, 80), half_at(block, 82));
    for (run, scale) in scales.iter().enumerate() {
        let numbers = two_bits(codes, run);
        take(d * f32::from(scale & 15), Some(-minimum * f32::from(scale >> 4)), &numbers);
    }
}

/// The 2-bit codes of the 16 values of a run, of 64 bytes: values 32 apart share a byte.
fn two_bits(codes: &[u8], run: usize) -> [i8; 16] {
    let codes = &codes[run / 8 * 32 + run % 2 * 16..][..16];
    std::array::from_fn(|i| (codes[i] >> (run % 8 / 2 * 2) & 3).cast_signed())
}

/// Layout: third bits of the codes (value code − 4), lower two bits, 6-bit scales around 32, d.
fn q3_k(block: &[u8], take: &mut impl FnMut(f32, Option<f32>, &[i8])) {
    let (third, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for run in 0..16 {
        // The lower four bits of the scales lie in bytes 0 to 7, the upper two in bytes 8 to 11.
        let low = packed[run % 8] >> (run / 8 * 4) & 15;
        let high = packed[8 + run % 4] >> (run / 4 * 2) & 3;
        let third = &third[run % 2 * 16..][..16];
        let mut numbers = two_bits(codes, run);
        for (number, third) in numbers.iter_mut().zip(third) {
            *number = (*number | (third >> (run / 2) & 1).cast_signed() << 2) - 4;
        }
        take(d * (f32::from(low | high << 4) - 32.0), None, &numbers);
    }
}

/// The scale and minimum of block `i` of eight of a Q4_K or Q5_K superblock: d, the minima's scale,
/// and 12 bytes of 6-bit codes for both.
fn scale_and_minimum(block: &[u8], i: usize) -> (f32, Option<f32>) {
    let packed = &block[4..16];
    let (scale, minimum) = match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => {
            (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
        }
    };
    (half_at(block, 0) * f32::from(scale), Some(-half_at(block, 2) * f32::from(minimum)))
}

/// Layout: d, the minima's scale, scales and minima, codes of 4 bits; two blocks share 32 bytes.
fn q4_k(block: &[u8], take: &mut impl FnMut(f32, Option<f32>, &[i8])) {
    let codes = &block[16..];
    for i in 0..8 {
        let (scale, minimum) = scale_and_minimum(block, i);
        take(scale, minimum, &shared(codes, i));
    }
}

/// The 4-bit codes of block `i`: two blocks share 32 bytes.
fn shared(codes: &[u8], i: usize) -> [i8; 32] {
    std::array::from_fn(|v| (codes[i / 2 * 32 + v] >> (i % 2 * 4) & 15).cast_signed())
}

/// As [`q4_k`], with the fifth bits before the codes.
fn q5_k(block: &[u8], take: &mut impl FnMut(f32, Option<f32>, &[i8])) {
    let (fifth, codes) = (&block[16..48], &block[48..]);
    for i in 0..8 {
        let (scale, minimum) = scale_and_minimum(block, i);
        let mut numbers = shared(codes, i);
        for (number, fifth) in numbers.iter_mut().zip(fifth) {
            *number |= (fifth >> i & 1).cast_signed() << 4;
        }
        take(scale, minimum, &numbers);
    }
}

/// Layout: lower four bits of the codes, upper two bits, signed scales of 16 values, d.
fn q6_k(block: &[u8], take: &mut impl FnMut(f32, Option<f32>, &[i8])) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (run, scale) in scales.iter().enumerate() {
        // Values 64 apart share a byte of the lower bits, values 32 apart one of the upper.
        let low = &low[run / 8 * 64 + run % 4 * 16..][..16];
        let high = &high[run / 8 * 32 + run % 2 * 16..][..16];
        let numbers: [i8; 16] = std::array::from_fn(|i| {
            let (low, high) = (low[i] >> (run % 8 / 4 * 4) & 15, high[i] >> (run % 8 / 2 * 2) & 3);
            (low | high << 4).cast_signed() - 32
        });
        take(d * f32::from(scale.cast_signed()), None, &numbers);
    }
}

/// Layout: d, upper two bits of 6-bit scales around 32, their lower four bits, eight blocks of 4-bit
/// codes as IQ4_NL's.
fn iq4_xs(block: &[u8], take: &mut impl FnMut(f32, Option<f32>, &[i8])) {
    let (high, low) = (u16::from_le_bytes([block[2], block[3]]), &block[4..8]);
    for (i, codes) in block[8..].chunks_exact(16).enumerate() {
        let low = low[i / 2] >> (i % 2 * 4) & 15;
        let scale = f32::from(u16::from(low) | (high >> (2 * i) & 3) << 4) - 32.0;
        take(half_at(block, 0) * scale, None, &four_bits(codes, |_, u| number(u)));
    }
}
