//! ggml's storage types: names, sizes of blocks, and the values that blocks stand for.
//!
//! A block is a run of values of one row with its own scale. Formulas are ggml's: a value is
//! `d · (u − z)` or `d · u − m`, where u is the value's code, d the block's scale, m its minimum and
//! z a constant. The types with K hold superblocks of 256 values, whose blocks of 16 or 32 have codes
//! for d and m that two f16 scale in turn.

use half::{bf16, f16};

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
}

/// Values of a superblock.
const SUPER: usize = 256;

/// Id in files, name in ggml, values and bytes of a block.
const READ: [(GgmlType, u32, &str, usize, usize); 13] = [
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
    (GgmlType::Bf16, 30, "BF16", 1, 2),
];

/// Types that ggml has and that are not read.
const OTHERS: [(u32, &str); 26] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
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

    /// The values of whole blocks.
    pub fn values(self, bytes: &[u8]) -> Vec<f32> {
        let mut out = Vec::with_capacity(bytes.len() / self.block_bytes() * self.block_values());
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::F32 => out.extend(block.first_chunk().map(|b| f32::from_le_bytes(*b))),
                Self::F16 => out.push(half_at(block, 0)),
                Self::Bf16 => {
                    out.extend(block.first_chunk().map(|b| bf16::from_le_bytes(*b).to_f32()))
                }
                Self::Q4_0 => q4(&block[2..], &mut out, |u| half_at(block, 0) * (u - 8.0)),
                Self::Q4_1 => {
                    q4(&block[4..], &mut out, |u| half_at(block, 0) * u + half_at(block, 2))
                }
                Self::Q5_0 => q5(&block[2..], &mut out, |u| half_at(block, 0) * (u - 16.0)),
                Self::Q5_1 => {
                    q5(&block[4..], &mut out, |u| half_at(block, 0) * u + half_at(block, 2))
                }
                Self::Q8_0 => {
                    let d = half_at(block, 0);
                    out.extend(block[2..].iter().map(|&u| d * f32::from(u.cast_signed())));
                }
                Self::Q2K => q2_k(block, &mut out),
                Self::Q3K => q3_k(block, &mut out),
                Self::Q4K => q4_k(block, &mut out),
                Self::Q5K => q5_k(block, &mut out),
                Self::Q6K => q6_k(block, &mut out),
            }
        }
        out
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 16 bytes hold the codes of values i (lower halves) and i + 16 (upper halves).
fn q4(codes: &[u8], out: &mut Vec<f32>, value: impl Fn(f32) -> f32) {
    out.extend(codes.iter().map(|code| value(f32::from(code & 15))));
    out.extend(codes.iter().map(|code| value(f32::from(code >> 4))));
}

/// As [`q4`], after 32 bits that hold the fifth bits.
fn q5(bytes: &[u8], out: &mut Vec<f32>, value: impl Fn(f32) -> f32) {
    let (fifth, codes) = bytes.split_at(4);
    let fifth = |i: usize| fifth[i / 8] >> (i % 8) & 1;
    let value = |i: usize, code: u8| value(f32::from(code | fifth(i) << 4));
    out.extend(codes.iter().enumerate().map(|(i, code)| value(i, code & 15)));
    out.extend(codes.iter().enumerate().map(|(i, code)| value(i + 16, code >> 4)));
}

/// Layout: for each 16 values a byte of scale and minimum, codes of 2 bits, d, the minima's scale.
fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, minimum) = (half_at(block, 80), half_at(block, 82));
    for (run, scale) in scales.iter().enumerate() {
        let (d, m) = (d * f32::from(scale & 15), minimum * f32::from(scale >> 4));
        let code = |code: &u8| f32::from(code >> (run % 8 / 2 * 2) & 3);
        out.extend(two_bits(codes, run).iter().map(|c| d * code(c) - m));
    }
}

/// The bytes of 64 that hold 2-bit codes of the 16 values of a run: values 32 apart share a byte.
fn two_bits(codes: &[u8], run: usize) -> &[u8] {
    &codes[run / 8 * 32 + run % 2 * 16..][..16]
}

/// Layout: third bits of the codes (value code − 4), lower two bits, 6-bit scales around 32, d.
fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (third, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for run in 0..16 {
        // The lower four bits of the scales lie in bytes 0 to 7, the upper two in bytes 8 to 11.
        let low = packed[run % 8] >> (run / 8 * 4) & 15;
        let high = packed[8 + run % 4] >> (run / 4 * 2) & 3;
        let d = d * (f32::from(low | high << 4) - 32.0);
        let third = &third[run % 2 * 16..][..16];
        out.extend(two_bits(codes, run).iter().zip(third).map(|(code, third)| {
            let (code, third) = (code >> (run % 8 / 2 * 2) & 3, third >> (run / 2) & 1);
            d * (f32::from(code | third << 2) - 4.0)
        }));
    }
}

/// The 6-bit scale and minimum of block `i` of eight, of the 12 bytes that hold them.
pub fn scale_and_minimum(packed: &[u8], i: usize) -> (u8, u8) {
    match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => {
            (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
        }
    }
}

/// Layout: d, the minima's scale, scales and minima, codes of 4 bits; two blocks share 32 bytes.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (packed, codes) = (&block[4..16], &block[16..]);
    for i in 0..8 {
        let (scale, m) = scale_and_minimum(packed, i);
        let (d, m) = (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(m));
        let codes = &codes[i / 2 * 32..][..32];
        out.extend(codes.iter().map(|code| d * f32::from(code >> (i % 2 * 4) & 15) - m));
    }
}

/// As [`q4_k`], with the fifth bits before the codes.
fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    let (packed, fifth, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for i in 0..8 {
        let (scale, m) = scale_and_minimum(packed, i);
        let (d, m) = (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(m));
        let codes = &codes[i / 2 * 32..][..32];
        out.extend(codes.iter().zip(fifth).map(|(code, fifth)| {
            let code = code >> (i % 2 * 4) & 15 | (fifth >> i & 1) << 4;
            d * f32::from(code) - m
        }));
    }
}

/// Layout: lower four bits of the codes, upper two bits, signed scales of 16 values, d.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (run, scale) in scales.iter().enumerate() {
        let d = d * f32::from(scale.cast_signed());
        // Values 64 apart share a byte of the lower bits, values 32 apart one of the upper.
        let low = &low[run / 8 * 64 + run % 4 * 16..][..16];
        let high = &high[run / 8 * 32 + run % 2 * 16..][..16];
        out.extend(low.iter().zip(high).map(|(low, high)| {
            let (low, high) = (low >> (run % 8 / 4 * 4) & 15, high >> (run % 8 / 2 * 2) & 3);
            d * (f32::from(low | high << 4) - 32.0)
        }));
    }
}
