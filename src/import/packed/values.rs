//! What packed weights stand for.
//!
//! With the code q, the zero point z and the scale s of a weight's group: w = s (q − z). FP8: w = s · x,
//! x of four exponent and three mantissa bits, s that of its block.

use half::{bf16, f16};
use safetensors::{Dtype as Stored, tensor::TensorView};

/// The parts of a weight `[outputs, inputs]` in groups of inputs.
pub struct Codes<'a> {
    /// Packed codes, i32.
    pub weight: &'a TensorView<'a>,
    /// Packed zero points, i32, a row for each group.
    pub zeros: &'a TensorView<'a>,
    /// Scales `[groups, outputs]`, with their shape.
    pub scales: (Vec<f32>, Vec<usize>),
    /// Shape of the weight.
    pub shape: &'a [usize],
}

impl Codes<'_> {
    /// Words of codes and zero points, outputs, inputs and groups; the words of a row of zero points
    /// hold `packed` codes each.
    fn parts(&self, packed: usize) -> Result<(Vec<u32>, Vec<u32>, [usize; 3]), String> {
        let (&[outputs, inputs], &[groups, columns]) = (self.shape, self.scales.1.as_slice())
        else {
            return Err("a weight or scales of another rank than 2".to_owned());
        };
        let zeros = self.zeros.shape();
        let whole = outputs.is_multiple_of(packed) && zeros == [groups, outputs / packed];
        if columns != outputs || groups == 0 || inputs == 0 || !whole {
            let scales = &self.scales.1;
            return Err(format!(
                "scales {scales:?} and zero points {zeros:?} beside {:?}",
                self.shape
            ));
        }
        Ok((words(self.weight)?, words(self.zeros)?, [outputs, inputs, groups]))
    }
}

/// GPTQ: the codes of consecutive inputs share a word, those of consecutive outputs one of the zero
/// points; `groups` gives each input's group, else they are consecutive.
pub fn gptq(
    codes: &Codes<'_>,
    groups: Option<&TensorView<'_>>,
    bits: u32,
    less_one: bool,
) -> Result<Vec<f32>, String> {
    let packed = (32 / bits) as usize;
    let (weight, zeros, [outputs, inputs, count]) = codes.parts(packed)?;
    let group: Vec<usize> = match groups {
        Some(groups) => words(groups)?.into_iter().map(|group| group as usize).collect(),
        None if inputs.is_multiple_of(count) => (0..inputs).map(|i| i / (inputs / count)).collect(),
        None => return Err(format!("{count} groups of {inputs} inputs")),
    };
    if group.len() != inputs || group.iter().any(|&group| group >= count) {
        return Err(format!("g_idx that is not a group below {count} for each of {inputs} inputs"));
    }
    let code = |word: u32, at: usize| word >> (at as u32 * bits) & ((1 << bits) - 1);
    let mut out = vec![0.0; outputs * inputs];
    for (input, group) in group.into_iter().enumerate() {
        for output in 0..outputs {
            let q = code(weight[input / packed * outputs + output], input % packed);
            let row = &zeros[group * (outputs / packed)..];
            let z = code(row[output / packed], output % packed) + u32::from(less_one);
            let scale = codes.scales.0[group * outputs + output];
            out[output * inputs + input] = scale * (q as f32 - z as f32);
        }
    }
    Ok(out)
}

/// AWQ: the codes of eight outputs share a word, in the order 0, 2, 4, 6, 1, 3, 5, 7.
pub fn awq(codes: &Codes<'_>) -> Result<Vec<f32>, String> {
    let (weight, zeros, [outputs, inputs, count]) = codes.parts(8)?;
    if !inputs.is_multiple_of(count) {
        return Err(format!("{count} groups of {inputs} inputs"));
    }
    let code = |row: &[u32], output: usize| {
        let place = [0, 4, 1, 5, 2, 6, 3, 7][output % 8];
        row[output / 8] >> (4 * place) & 15
    };
    let words = outputs / 8;
    let mut out = vec![0.0; outputs * inputs];
    for input in 0..inputs {
        let group = input / (inputs / count);
        for output in 0..outputs {
            let q = code(&weight[input * words..], output);
            let z = code(&zeros[group * words..], output);
            let scale = codes.scales.0[group * outputs + output];
            out[output * inputs + input] = scale * (q as f32 - z as f32);
        }
    }
    Ok(out)
}

/// FP8 in blocks `[rows, columns]`; the last of a row or column may be smaller.
pub fn fp8(
    weight: &TensorView<'_>,
    scales: &TensorView<'_>,
    [rows, columns]: [usize; 2],
) -> Result<Vec<f32>, String> {
    let &[outputs, inputs] = weight.shape() else {
        return Err("a weight of another rank than 2".to_owned());
    };
    let across = inputs.div_ceil(columns);
    if scales.shape() != [outputs.div_ceil(rows), across] {
        let (got, shape) = (scales.shape(), weight.shape());
        return Err(format!("scales {got:?} for blocks [{rows}, {columns}] of {shape:?}"));
    }
    let scales = plain(scales)?;
    let bytes = weight.data().iter().enumerate();
    let value = |(at, &byte): (usize, &u8)| {
        e4m3(byte) * scales[at / inputs / rows * across + at % inputs / columns]
    };
    Ok(bytes.map(value).collect())
}

/// One sign bit, four of exponent (bias 7), three of mantissa; no infinities, one NaN.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7) / 8.0);
    let magnitude = match exponent {
        _ if byte & 0x7f == 0x7f => f32::NAN,
        0 => mantissa * 2f32.powi(-6),
        _ => (1.0 + mantissa) * 2f32.powi(i32::from(exponent) - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Floats as f32.
pub fn plain(tensor: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let bytes = tensor.data();
    let pair = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    Ok(match tensor.dtype() {
        Stored::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Stored::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(pair(b)).to_f32()).collect(),
        Stored::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_bits(pair(b)).to_f32()).collect(),
        other => return Err(format!("values of dtype {other}, not F32, F16 or BF16")),
    })
}

fn words(tensor: &TensorView<'_>) -> Result<Vec<u32>, String> {
    if tensor.dtype() != Stored::I32 {
        return Err(format!("codes of dtype {}, not I32", tensor.dtype()));
    }
    let words = tensor.data().chunks_exact(4);
    Ok(words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
