//! Vectors as arrays that the compiler vectorises with what the target has, and the conversions and
//! the exponential in plain code.

use half::{bf16, f16};

use super::vector::{Lanes, Simd, Twice};

/// The set that every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portable;

const WIDE: usize = 8;

/// `f` of each lane.
#[inline(always)]
pub(super) fn each<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; WIDE] {
    let mut out = [T::default(); WIDE];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = f(lane);
    }
    out
}

// SAFETY of every block in the two implementations: the caller proves the pointers.

#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Portable {
    const LANES: usize = WIDE;
    type V = [f32; WIDE];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; WIDE]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        unsafe { p.cast::<Self::V>().read() }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Self::V {
        let v = unsafe { p.cast::<[u16; WIDE]>().read() };
        each(|i| widen_f16(v[i]))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V {
        let v = unsafe { p.cast::<[u16; WIDE]>().read() };
        each(|i| widen_bf16(v[i]))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        unsafe { p.cast::<Self::V>().write(v) }
    }
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::V) {
        unsafe { self.store(p, v) }
    }
    #[inline(always)]
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16, v: Self::V) {
        unsafe { p.cast::<[u16; WIDE]>().write(each(|i| narrow_f16(v[i]))) }
    }
    #[inline(always)]
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16, v: Self::V) {
        unsafe { p.cast::<[u16; WIDE]>().write(each(|i| narrow_bf16(v[i]))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_even(self, p: *const bf16) -> Self::V {
        let v = unsafe { p.cast::<[u16; 2 * WIDE]>().read() };
        each(|i| widen_bf16(v[2 * i]))
    }
    #[inline(always)]
    unsafe fn load_bf16_odd(self, p: *const bf16) -> Self::V {
        let v = unsafe { p.cast::<[u16; 2 * WIDE]>().read() };
        each(|i| widen_bf16(v[2 * i + 1]))
    }
    #[inline(always)]
    unsafe fn store_bf16_even_odd<const STREAM: bool>(self, p: *mut bf16, v: [Self::V; 2]) {
        let narrow = std::array::from_fn(|i| narrow_bf16(v[i % 2][i / 2]));
        unsafe { p.cast::<[u16; 2 * WIDE]>().write(narrow) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Portable {
    const ROWS: usize = 2;
    const INTRINSICS: bool = false;
    type Sixteen = Twice<Self>;

    #[inline(always)]
    fn sixteen(self) -> Twice<Self> {
        Twice(self)
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Two roundings: f32::mul_add is a library call where there is no such instruction.
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn load_even_odd(self, p: *const f32) -> [Self::V; 2] {
        unsafe { [0, 1].map(|odd| std::array::from_fn(|i| *p.add(2 * i + odd))) }
    }
    #[inline(always)]
    unsafe fn add_sums(self, v: [Self::V; 4], p: *mut f32) {
        for (i, v) in v.iter().enumerate() {
            let mut half = [0.0; 4];
            for (lane, half) in half.iter_mut().enumerate() {
                *half = v[lane] + v[lane + 4];
            }
            unsafe { *p.add(i) += (half[0] + half[2]) + (half[1] + half[3]) };
        }
    }
}

#[inline(always)]
pub(super) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Round to nearest, ties to even: half of the last kept place is added, less one when that place
/// is even. A NaN is only made quiet, since the addition could carry it into infinity.
#[inline(always)]
pub(super) fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // An arithmetic shift: compilers know how to pack its result without SSE4.
    ((if value.is_nan() { bits | 0x0040_0000 } else { rounded }) as i32 >> 16) as u16
}

/// A product with 2¹¹² moves the exponent from bias 15 to 127, of subnormals too. Masks made by
/// shifts instead of branches, so that compilers vectorise it for any target.
#[inline(always)]
pub(super) fn widen_f16(bits: u16) -> f32 {
    const INFINITY: i32 = 0x7c00 << 13;
    let word = i32::from(bits as i16) << 13;
    let magnitude = word & 0x0fff_e000;
    let finite = f32::from_bits(magnitude as u32) * f32::from_bits((127 + 112) << 23);
    let special = ((INFINITY - 1 - magnitude) >> 31) & 0x7f80_0000;
    let quiet = ((INFINITY - magnitude) >> 31) & 0x0040_0000;
    f32::from_bits(finite.to_bits() | (special | quiet | (word & i32::MIN)) as u32)
}

/// Round to nearest, ties to even. Below 2⁻¹⁴ the place of rounding is fixed at 2⁻²⁴, which is
/// where the addition of ½ puts it.
#[inline(always)]
pub(super) fn narrow_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal =
        magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let infinite = if magnitude >= 143 << 23 { 0x7c00 } else { finite };
    let nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
    let value = if magnitude > 0x7f80_0000 { nan } else { infinite };
    (value | ((bits >> 16) & 0x8000)) as u16
}

/// eˣ to 2 units in the last place, 0 below −87.3 (where f32 leaves its normal range), e⁸⁸ above 88.
/// NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.3;
    const HIGH: f32 = 88.0;
    // 1.5 · 2²³: adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough that its products with small integers are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < LOW { LOW } else { x };
    let clamped = if clamped > HIGH { HIGH } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = (p * r * r + r) + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < LOW { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in 0..2_000_000 {
            let x = -87.2 + step as f32 * (175.0 / 2_000_000.0);
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
    }

    #[test]
    fn exp_has_the_values_that_a_softmax_relies_on() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }
}
