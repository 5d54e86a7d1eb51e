//! Quantised matrices: blocks of 32 values of a row with one scale, as ggml defines them, and the
//! order in which they are stored.
//!
//! A value is `d · (u − z)`, or `d · u + m`: a code u, the block's scale d, and a fixed zero z
//! or the block's own minimum m; d and m are f16.
//!
//! | type | code | zero or minimum | bytes a block | bits a value |
//! |---|---|---|---|---|
//! | `q8_0` | 8 bits | z = 128 | 34 | 8.5 |
//! | `q4_0` | 4 bits | z = 8 | 18 | 4.5 |
//! | `q4_1` | 4 bits | m | 20 | 5 |
//!
//! Products take sixteen outputs at a time, so `[rows, columns]` is stored in groups of sixteen
//! rows, each `[scales | minima | codes]`: scales (and minima) `[blocks][16]`, codes
//! `[blocks][runs][16][4]`, a run being four bytes of ggml's block (for 4 bits, byte i holds the
//! codes of values i and i + 16). Q8_0's codes are 128 above ggml's signed ones. Nothing is padded
//! and nothing lost: the bytes are ggml's in another order.

use half::f16;

/// Values of a block.
pub const QUANT_BLOCK: usize = 32;
/// Rows of a group.
pub const GROUP: usize = 16;

/// Type of the blocks of a quantised matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// Signed 8-bit codes and a scale.
    Q8_0,
    /// 4-bit codes around 8 and a scale.
    Q4_0,
    /// 4-bit codes, a scale and a minimum.
    Q4_1,
}

impl BlockType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Q8_0, Self::Q4_0, Self::Q4_1];

    /// Its name, as GGUF tools write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
        }
    }

    /// The type of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Bytes of the codes of a block.
    pub const fn code_bytes(self) -> usize {
        if self.is_four_bit() { QUANT_BLOCK / 2 } else { QUANT_BLOCK }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.head_bytes() + self.code_bytes()
    }

    /// Bytes before the codes in ggml's order.
    const fn head_bytes(self) -> usize {
        if self.has_minima() { 4 } else { 2 }
    }

    /// Whether codes have 4 bits.
    pub const fn is_four_bit(self) -> bool {
        !matches!(self, Self::Q8_0)
    }

    /// Whether blocks have a minimum of their own.
    pub const fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1)
    }

    /// z: the code that stands for 0; 0 where blocks have minima.
    pub const fn zero(self) -> i32 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q4_1 => 0,
        }
    }

    /// Bytes of a matrix of that shape; `None` if it is not a matrix of whole blocks and groups, or
    /// the number overflows.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let &[rows, columns] = shape else { return None };
        let whole = rows.is_multiple_of(GROUP) && columns.is_multiple_of(QUANT_BLOCK);
        whole.then(|| rows.checked_mul(columns / QUANT_BLOCK)?.checked_mul(self.block_bytes()))?
    }

    /// Group `index` of a matrix with that many columns.
    pub fn group(self, bytes: &[u8], columns: usize, index: usize) -> Group<'_> {
        let halves = columns / QUANT_BLOCK * GROUP * 2;
        let len = columns / QUANT_BLOCK * GROUP * self.block_bytes();
        let group = &bytes[index * len..(index + 1) * len];
        let (scales, rest) = group.split_at(halves);
        let (minima, codes) = rest.split_at(if self.has_minima() { halves } else { 0 });
        Group { scales, minima, codes }
    }
}

/// Sixteen rows of a quantised matrix: see the module.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    /// f16, `[blocks][16]`.
    pub scales: &'a [u8],
    /// f16, `[blocks][16]`; empty where the type has none.
    pub minima: &'a [u8],
    /// `[blocks][runs][16][4]`.
    pub codes: &'a [u8],
}

/// The f16 at `index`.
fn half(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Blocks of `values` in ggml's order, by ggml's reference formulas (`quantize_row_*_ref`): the
/// scale is rounded to f16 after the codes are made with it. `values` are whole blocks.
pub fn quantise(kind: BlockType, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() / QUANT_BLOCK * kind.block_bytes());
    for block in values.chunks_exact(QUANT_BLOCK) {
        // The first of the values farthest from 0.
        let farthest = |most: f32, v: f32| if v.abs() > most.abs() { v } else { most };
        let most = block.iter().copied().reduce(farthest).unwrap_or(0.0);
        let low = block.iter().copied().fold(f32::INFINITY, f32::min);
        let high = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = match kind {
            BlockType::Q8_0 => most.abs() / 127.0,
            BlockType::Q4_0 => most / -8.0,
            BlockType::Q4_1 => (high - low) / 15.0,
        };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let code = |v: f32| match kind {
            BlockType::Q8_0 => (v * inverse).round() as i8 as u8,
            BlockType::Q4_0 => ((v * inverse + 8.5) as u8).min(15),
            BlockType::Q4_1 => (((v - low) * inverse + 0.5) as u8).min(15),
        };
        out.extend(f16::from_f32(scale).to_le_bytes());
        if kind.has_minima() {
            out.extend(f16::from_f32(low).to_le_bytes());
        }
        if kind.is_four_bit() {
            let (first, second) = block.split_at(QUANT_BLOCK / 2);
            out.extend(first.iter().zip(second).map(|(&a, &b)| code(a) | code(b) << 4));
        } else {
            out.extend(block.iter().map(|&v| code(v)));
        }
    }
    out
}

/// Reorders blocks from ggml's order (row after row) to the order of this module. `blocks` are
/// whole groups of rows of `columns` values.
pub fn arrange(kind: BlockType, columns: usize, blocks: &[u8]) -> Vec<u8> {
    let (size, per_row) = (kind.block_bytes(), columns / QUANT_BLOCK);
    let mut out = Vec::with_capacity(blocks.len());
    for group in blocks.chunks_exact((GROUP * per_row * size).max(1)) {
        let field = |row: usize, block: usize, at: usize, len: usize| {
            let start = (row * per_row + block) * size + at;
            &group[start..start + len]
        };
        for at in (0..kind.head_bytes()).step_by(2) {
            for block in 0..per_row {
                (0..GROUP).for_each(|row| out.extend_from_slice(field(row, block, at, 2)));
            }
        }
        let flip = if kind == BlockType::Q8_0 { 0x80 } else { 0 };
        for block in 0..per_row {
            for run in 0..kind.code_bytes() / 4 {
                for row in 0..GROUP {
                    let codes = field(row, block, kind.head_bytes() + 4 * run, 4);
                    out.extend(codes.iter().map(|code| code ^ flip));
                }
            }
        }
    }
    out
}

/// The values of a row of a matrix stored as [`arrange`] orders it, to f32 as ggml does it;
/// `out` has the row's length.
pub fn row(kind: BlockType, bytes: &[u8], row: usize, out: &mut [f32]) {
    let Group { scales, minima, codes } = kind.group(bytes, out.len(), row / GROUP);
    let (lane, zero) = (row % GROUP, kind.zero());
    for (block, out) in out.chunks_exact_mut(QUANT_BLOCK).enumerate() {
        let at = block * GROUP + lane;
        let scale = half(scales, at);
        let minimum = if kind.has_minima() { half(minima, at) } else { 0.0 };
        let value = |code: u8| {
            let code = (i32::from(code) - zero) as f32;
            if kind.has_minima() { scale * code + minimum } else { scale * code }
        };
        let runs = codes[block * GROUP * kind.code_bytes()..].chunks_exact(4 * GROUP);
        for (run, codes) in runs.take(kind.code_bytes() / 4).enumerate() {
            for (i, &code) in codes[4 * lane..4 * lane + 4].iter().enumerate() {
                if kind.is_four_bit() {
                    out[4 * run + i] = value(code & 15);
                    out[QUANT_BLOCK / 2 + 4 * run + i] = value(code >> 4);
                } else {
                    out[4 * run + i] = value(code);
                }
            }
        }
    }
}

/// Whether every scale and minimum of a stored matrix is a finite number.
pub fn are_finite(kind: BlockType, bytes: &[u8], columns: usize) -> bool {
    let len = columns / QUANT_BLOCK * GROUP * kind.block_bytes();
    let groups = bytes.len() / len.max(1);
    (0..groups).all(|index| {
        let Group { scales, minima, .. } = kind.group(bytes, columns, index);
        let mut halves = scales.chunks_exact(2).chain(minima.chunks_exact(2));
        halves.all(|half| f16::from_le_bytes([half[0], half[1]]).is_finite())
    })
}
