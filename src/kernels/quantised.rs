//! Quantised matrices: blocks of values of a row with one scale, and the order in which they are
//! stored.
//!
//! A value is `d · (u − z)`, or `d · u + m`: a code u, the block's scale d, and a fixed zero z
//! or the block's own minimum m; d and m are f16. All but `q6` are ggml's blocks.
//!
//! | type | values | code | zero or minimum | bytes a block | bits a value |
//! |---|---|---|---|---|---|
//! | `q8_0` | 32 | 8 bits | z = 128 | 34 | 8.5 |
//! | `q4_0` | 32 | 4 bits | z = 8 | 18 | 4.5 |
//! | `q4_1` | 32 | 4 bits | m | 20 | 5 |
//! | `q5_0` | 32 | 5 bits | z = 16 | 22 | 5.5 |
//! | `q5_1` | 32 | 5 bits | m | 24 | 6 |
//! | `q6` | 16 | 6 bits | z = 32 | 14 | 7 |
//! | `iq4_nl` | 32 | 4 bits: a place in [`CODEBOOK`], whose number replaces u − z | – | 18 | 4.5 |
//!
//! Products take sixteen outputs at a time, so `[rows, columns]` is stored in groups of sixteen
//! rows, each `[scales | minima | upper bits | codes]`: scales (and minima) `[blocks][16]`; codes
//! `[blocks][runs][16][4]`, where byte i of a block is the code of value i for 8 bits, else the
//! lower four bits of the codes of value i and, above them, of the one half a block later. Bits
//! above the fourth are `[blocks][16]` words of 32 bits: those of value v, b of them, from bit
//! `8 (v mod 4) + b ⌊v/4⌋` on. Nothing is padded.

use half::f16;

/// Rows of a group.
pub const GROUP: usize = 16;
/// The numbers of `iq4_nl`'s codes (ggml's `kvalues_iq4nl`).
pub const CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Type of the blocks of a quantised matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// Signed 8-bit codes and a scale.
    Q8_0,
    /// 4-bit codes around 8 and a scale.
    Q4_0,
    /// 4-bit codes, a scale and a minimum.
    Q4_1,
    /// 5-bit codes around 16 and a scale.
    Q5_0,
    /// 5-bit codes, a scale and a minimum.
    Q5_1,
    /// 6-bit codes around 32 and a scale, sixteen values.
    Q6,
    /// 4-bit places in [`CODEBOOK`] and a scale.
    Iq4Nl,
}

impl BlockType {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 7] =
        [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q6, Self::Iq4Nl];

    /// Its name, as GGUF tools write it where they have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q6 => "q6",
            Self::Iq4Nl => "iq4_nl",
        }
    }

    /// The type of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// All names, for messages.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Values of a block.
    pub const fn values(self) -> usize {
        if matches!(self, Self::Q6) { 16 } else { 32 }
    }

    /// Bits of a code.
    const fn code_bits(self) -> usize {
        match self {
            Self::Q8_0 => 8,
            Self::Q4_0 | Self::Q4_1 | Self::Iq4Nl => 4,
            Self::Q5_0 | Self::Q5_1 => 5,
            Self::Q6 => 6,
        }
    }

    /// Whether two codes share a byte, apart from their upper bits.
    pub const fn is_in_halves(self) -> bool {
        self.code_bits() < 8
    }

    /// Bits of a code that are stored apart from the lower four.
    pub const fn upper_bits(self) -> usize {
        if self.is_in_halves() { self.code_bits() - 4 } else { 0 }
    }

    /// Bytes of the codes of a block without their upper bits.
    pub const fn code_bytes(self) -> usize {
        if self.is_in_halves() { self.values() / 2 } else { self.values() }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        let halves = if self.has_minima() { 2 } else { 1 };
        2 * halves + self.values() * self.upper_bits() / 8 + self.code_bytes()
    }

    /// Whether blocks have a minimum of their own.
    pub const fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1)
    }

    /// Whether codes are places in [`CODEBOOK`].
    pub const fn has_codebook(self) -> bool {
        matches!(self, Self::Iq4Nl)
    }

    /// z: the code that stands for 0; 0 where blocks have minima; what makes the numbers of a
    /// codebook unsigned bytes.
    pub const fn zero(self) -> i32 {
        match self {
            Self::Q8_0 | Self::Iq4Nl => 128,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6 => 32,
            Self::Q4_1 | Self::Q5_1 => 0,
        }
    }

    /// Bytes of that many columns of a row.
    pub const fn row_bytes(self, columns: usize) -> usize {
        columns / self.values() * self.block_bytes()
    }

    /// Bytes of a matrix of that shape; `None` if it is not a matrix of whole blocks and groups, or
    /// the number overflows.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let &[rows, columns] = shape else { return None };
        let whole = rows.is_multiple_of(GROUP) && columns.is_multiple_of(self.values());
        whole.then(|| rows.checked_mul(columns / self.values())?.checked_mul(self.block_bytes()))?
    }

    /// Group `index` of a matrix with that many columns.
    pub fn group(self, bytes: &[u8], columns: usize, index: usize) -> Group<'_> {
        let (blocks, len) = (columns / self.values() * GROUP, self.row_bytes(columns) * GROUP);
        let group = &bytes[index * len..(index + 1) * len];
        let (scales, rest) = group.split_at(2 * blocks);
        let (minima, rest) = rest.split_at(if self.has_minima() { 2 * blocks } else { 0 });
        let (upper, codes) = rest.split_at(blocks * self.values() * self.upper_bits() / 8);
        Group { scales, minima, upper, codes }
    }

    /// What the scale is multiplied by, of a code.
    fn number(self, code: u8) -> i32 {
        match self.has_codebook() {
            true => i32::from(CODEBOOK[usize::from(code & 15)]),
            false => i32::from(code) - self.zero(),
        }
    }
}

/// Sixteen rows of a quantised matrix: see the module.
#[derive(Clone, Copy)]
pub struct Group<'a> {
    /// f16, `[blocks][16]`.
    pub scales: &'a [u8],
    /// f16, `[blocks][16]`; empty where the type has none.
    pub minima: &'a [u8],
    /// Words of 32 bits, `[blocks][16]`; empty where codes have no more than four bits, or eight.
    pub upper: &'a [u8],
    /// `[blocks][runs][16][4]`.
    pub codes: &'a [u8],
}

/// The f16 at `index`.
fn half(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Blocks of a matrix, row after row, each code a byte.
pub struct Blocks {
    kind: BlockType,
    scales: Vec<f16>,
    minima: Vec<f16>,
    codes: Vec<u8>,
}

impl Blocks {
    /// No blocks yet.
    pub fn new(kind: BlockType) -> Self {
        Self { kind, scales: Vec::new(), minima: Vec::new(), codes: Vec::new() }
    }

    /// Adds the block of the values `scale · numbers + minimum`, scale and minimum rounded to f16.
    /// The numbers are those that codes of the type stand for.
    pub fn push(&mut self, scale: f32, minimum: f32, numbers: &[i8]) {
        self.scales.push(f16::from_f32(scale));
        self.minima.push(f16::from_f32(minimum));
        let kind = self.kind;
        self.codes.extend(numbers.iter().map(|number| match kind.has_codebook() {
            true => CODEBOOK.partition_point(|entry| entry < number) as u8,
            false => (i32::from(*number) + kind.zero()) as u8,
        }));
    }

    /// Blocks of `values`, which are whole blocks, by ggml's reference formulas
    /// (`quantize_row_*_ref`): the scale is rounded to f16 after the codes are made with it. ggml
    /// has no `q6`, and searches for `iq4_nl`'s scales: here these two take the value farthest
    /// from 0 to the lowest code, as Q4_0 does, and each value to the nearest.
    pub fn quantise(kind: BlockType, values: &[f32]) -> Self {
        let mut blocks = Self::new(kind);
        for block in values.chunks_exact(kind.values()) {
            // The first of the values farthest from 0.
            let farthest = |most: f32, v: f32| if v.abs() > most.abs() { v } else { most };
            let most = block.iter().copied().reduce(farthest).unwrap_or(0.0);
            let low = block.iter().copied().fold(f32::INFINITY, f32::min);
            let high = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let top = (1 << kind.code_bits()) - 1;
            let scale = match kind {
                BlockType::Q8_0 => most.abs() / 127.0,
                BlockType::Iq4Nl => most / -127.0,
                _ if kind.has_minima() => (high - low) / top as f32,
                _ => most / -(kind.zero() as f32),
            };
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let number = |&v: &f32| match kind {
                BlockType::Q8_0 => (v * inverse).round() as i8,
                BlockType::Iq4Nl => nearest(v * inverse),
                _ if kind.has_minima() => ((v - low) * inverse + 0.5).min(top as f32) as i8,
                _ => {
                    let zero = kind.zero();
                    (((v * inverse + (zero as f32 + 0.5)) as i32).clamp(0, top) - zero) as i8
                }
            };
            let numbers: Vec<i8> = block.iter().map(number).collect();
            blocks.push(scale, if kind.has_minima() { low } else { 0.0 }, &numbers);
        }
        blocks
    }

    /// The bytes of a matrix of that many columns in the order of this module. The blocks are whole
    /// groups of rows.
    pub fn arranged(&self, columns: usize) -> Vec<u8> {
        let kind = self.kind;
        let (values, per_row) = (kind.values(), columns / kind.values());
        let codes = |at: usize| &self.codes[at * values..(at + 1) * values];
        let mut out = Vec::with_capacity(self.scales.len() * kind.block_bytes());
        for group in 0..self.scales.len() / (GROUP * per_row).max(1) {
            // Where the blocks of sixteen rows at the same columns are.
            let rows = |block| (0..GROUP).map(move |row| (group * GROUP + row) * per_row + block);
            let all = || (0..per_row).flat_map(rows);
            out.extend(all().flat_map(|at| self.scales[at].to_le_bytes()));
            if kind.has_minima() {
                out.extend(all().flat_map(|at| self.minima[at].to_le_bytes()));
            }
            if kind.upper_bits() > 0 {
                out.extend(all().flat_map(|at| upper(kind, codes(at)).to_le_bytes()));
            }
            for block in 0..per_row {
                for run in (0..kind.code_bytes()).step_by(4) {
                    for codes in rows(block).map(codes) {
                        out.extend((run..run + 4).map(|i| match kind.is_in_halves() {
                            true => codes[i] & 15 | codes[i + values / 2] << 4,
                            false => codes[i],
                        }));
                    }
                }
            }
        }
        out
    }
}

/// The number of [`CODEBOOK`] nearest to `v`.
fn nearest(v: f32) -> i8 {
    let far = |number: &i8| (f32::from(*number) - v).abs();
    CODEBOOK.into_iter().min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(0)
}

/// The word of the upper bits of a block's codes.
fn upper(kind: BlockType, codes: &[u8]) -> u32 {
    codes
        .iter()
        .enumerate()
        .fold(0, |word, (v, code)| word | u32::from(code >> 4) << place(kind, v))
}

/// The first bit of value `v` in a word of upper bits.
fn place(kind: BlockType, v: usize) -> usize {
    8 * (v % 4) + kind.upper_bits() * (v / 4)
}

/// The values of a row of a stored matrix, to f32 as ggml does it; `out` has the row's length.
pub fn row(kind: BlockType, bytes: &[u8], row: usize, out: &mut [f32]) {
    let group = kind.group(bytes, out.len(), row / GROUP);
    let (lane, runs) = (row % GROUP, kind.code_bytes() / 4);
    for (block, out) in out.chunks_exact_mut(kind.values()).enumerate() {
        let at = block * GROUP + lane;
        let scale = half(group.scales, at);
        let minimum = kind.has_minima().then(|| half(group.minima, at));
        let bits = kind.upper_bits();
        let upper = match group.upper.get(4 * at..4 * at + 4) {
            Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        };
        for (v, out) in out.iter_mut().enumerate() {
            let i = v % kind.code_bytes();
            let byte = group.codes[((block * runs + i / 4) * GROUP + lane) * 4 + i % 4];
            let code = match kind.is_in_halves() {
                true => {
                    let upper = upper >> place(kind, v) & ((1 << bits) - 1);
                    byte >> (if v == i { 0 } else { 4 }) & 15 | (upper as u8) << 4
                }
                false => byte,
            };
            let value = scale * kind.number(code) as f32;
            *out = minimum.map_or(value, |minimum| value + minimum);
        }
    }
}

/// Whether every scale and minimum of a stored matrix is a finite number.
pub fn are_finite(kind: BlockType, bytes: &[u8], columns: usize) -> bool {
    let groups = bytes.len() / (kind.row_bytes(columns) * GROUP).max(1);
    (0..groups).all(|index| {
        let Group { scales, minima, .. } = kind.group(bytes, columns, index);
        let mut halves = scales.chunks_exact(2).chain(minima.chunks_exact(2));
        halves.all(|half| f16::from_le_bytes([half[0], half[1]]).is_finite())
    })
}
