//! The portable set with one operation made wrong, for the self-check to refuse.

use half::{bf16, f16};
use ladle::simd::{
    Bf16Dots, Bf16Tiles, ByteTile, Bytes, Lanes, Portable, Simd, TILE_INPUTS, TileProduct,
    bf16 as model,
};

/// The portable set with one operation made wrong.
#[derive(Clone, Copy)]
pub struct Wrong(pub Fault);

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    None,
    FmaWithoutAddend,
    EvenForOdd,
    HalvesTruncated,
    BrainsTruncated,
    PairsSwapped,
    LaneLeftOut,
    BytesSaturate,
    UnsignedBytes,
    UpperBitsUnmasked,
    EntriesReversed,
    EvenPairFirst,
    SubnormalsKept,
    ZippedBackwards,
    TilesStartFromZero,
    SecondTileLeftOut,
    TilesNotTurned,
    StepsTruncated,
}

const LANES: usize = Portable::LANES;
type V = [f32; LANES];

impl Wrong {
    fn is(self, fault: Fault) -> bool {
        self.0 == fault
    }
}

// SAFETY of every block: the portable set's contract, passed on.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Wrong {
    const LANES: usize = LANES;
    type V = V;

    fn splat(self, value: f32) -> V {
        Portable.splat(value)
    }
    fn add(self, a: V, b: V) -> V {
        Portable.add(a, b)
    }
    fn mul(self, a: V, b: V) -> V {
        Portable.mul(a, b)
    }
    unsafe fn load(self, p: *const f32) -> V {
        unsafe { Portable.load(p) }
    }
    unsafe fn load_f16(self, p: *const f16) -> V {
        unsafe { Portable.load_f16(p) }
    }
    unsafe fn load_bf16(self, p: *const bf16) -> V {
        unsafe { Portable.load_bf16(p) }
    }
    unsafe fn store(self, p: *mut f32, v: V) {
        unsafe { Portable.store(p, v) }
    }
    unsafe fn stream(self, p: *mut f32, v: V) {
        unsafe { Portable.stream(p, v) }
    }
    unsafe fn store_f16<const STREAM: bool>(self, p: *mut f16, mut v: V) {
        if self.is(Fault::HalvesTruncated) {
            v = v.map(|v| f32::from_bits(v.to_bits() & !0x1fff));
        }
        unsafe { Portable.store_f16::<STREAM>(p, v) }
    }
    unsafe fn store_bf16<const STREAM: bool>(self, p: *mut bf16, mut v: V) {
        if self.is(Fault::BrainsTruncated) {
            v = v.map(|v| f32::from_bits(v.to_bits() & !0xffff));
        }
        unsafe { Portable.store_bf16::<STREAM>(p, v) }
    }
    unsafe fn load_bf16_even(self, p: *const bf16) -> V {
        unsafe { Portable.load_bf16_even(p) }
    }
    unsafe fn load_bf16_odd(self, p: *const bf16) -> V {
        let even = self.is(Fault::EvenForOdd);
        unsafe { if even { Portable.load_bf16_even(p) } else { Portable.load_bf16_odd(p) } }
    }
    unsafe fn store_bf16_even_odd<const STREAM: bool>(self, p: *mut bf16, mut v: [V; 2]) {
        if self.is(Fault::PairsSwapped) {
            v.swap(0, 1);
        }
        unsafe { Portable.store_bf16_even_odd::<STREAM>(p, v) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Wrong {
    const ROWS: usize = 2;
    type Sixteen = <Portable as Simd>::Sixteen;

    fn sixteen(self) -> Self::Sixteen {
        Portable.sixteen()
    }
    fn fma(self, a: V, b: V, c: V) -> V {
        if self.is(Fault::FmaWithoutAddend) { Portable.mul(a, b) } else { Portable.fma(a, b, c) }
    }
    unsafe fn load_even_odd(self, p: *const f32) -> [V; 2] {
        unsafe { Portable.load_even_odd(p) }
    }
    unsafe fn add_sums(self, mut v: [V; 4], p: *mut f32) {
        if self.is(Fault::LaneLeftOut) {
            v[2][LANES - 1] = 0.0;
        }
        unsafe { Portable.add_sums(v, p) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Bytes for Wrong {
    type S = Self;
    type I = [i32; LANES];
    type C = [u32; LANES];
    const ROWS: usize = 2;

    fn vectors(self) -> Self {
        self
    }
    fn sums(self, value: i32) -> Self::I {
        Portable.sums(value)
    }
    fn widen(self, sums: Self::I) -> V {
        Portable.widen(sums)
    }
    fn low(self, codes: Self::C) -> Self::C {
        Portable.low(codes)
    }
    fn high(self, codes: Self::C) -> Self::C {
        Portable.high(codes)
    }
    fn over(self, codes: Self::C, upper: Self::C, left: u32, mask: u8) -> Self::C {
        let mask = if self.is(Fault::UpperBitsUnmasked) { 0xff } else { mask };
        Portable.over(codes, upper, left, mask)
    }
    fn look_up(self, places: Self::C, table: &[u8; 16]) -> Self::C {
        let mut table = *table;
        if self.is(Fault::EntriesReversed) {
            table.reverse();
        }
        Portable.look_up(places, &table)
    }
    fn dot(self, sums: Self::I, codes: Self::C, x: i32) -> Self::I {
        let product = |code: u8, x: u8| {
            let x = if self.is(Fault::UnsignedBytes) { i32::from(x) } else { i32::from(x as i8) };
            i32::from(code) * x
        };
        let pair = |sum: i32| {
            // What `pmaddubsw` does to the sum of two products.
            if self.is(Fault::BytesSaturate) { sum.clamp(-32768, 32767) } else { sum }
        };
        let x = x.to_le_bytes();
        std::array::from_fn(|lane| {
            let c = codes[lane].to_le_bytes();
            let [first, second] =
                [0, 2].map(|i| pair(product(c[i], x[i]) + product(c[i + 1], x[i + 1])));
            sums[lane] + first + second
        })
    }
    unsafe fn codes(self, p: *const u8) -> Self::C {
        unsafe { Portable.codes(p) }
    }
    unsafe fn tile<T: ByteTile>(self, rows: usize, tile: &T) -> T::Output {
        unsafe {
            match rows {
                1 => tile.run::<Self, 1, 2>(self),
                _ => tile.run::<Self, 2, 2>(self),
            }
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Bf16Dots for Wrong {
    type S = Self;
    type P = [[bf16; 2]; LANES];

    fn vectors(self) -> Self {
        self
    }
    fn splat_pair(self, pair: [bf16; 2]) -> Self::P {
        Portable.splat_pair(pair)
    }
    fn dot(self, sums: V, a: Self::P, b: Self::P) -> V {
        std::array::from_fn(|lane| {
            let (sum, [a, b]) = (sums[lane], [a[lane], b[lane]]);
            match self.0 {
                Fault::EvenPairFirst => model::dot(sum, [a[1], a[0]], [b[1], b[0]]),
                Fault::SubnormalsKept => {
                    let odd = a[1].to_f32().mul_add(b[1].to_f32(), sum);
                    a[0].to_f32().mul_add(b[0].to_f32(), odd)
                }
                _ => model::dot(sum, a, b),
            }
        })
    }
    unsafe fn pairs(self, p: *const bf16) -> Self::P {
        unsafe { Portable.pairs(p) }
    }
    unsafe fn store_pairs(self, p: *mut bf16, v: Self::P) {
        unsafe { Portable.store_pairs(p, v) }
    }
    unsafe fn zip(self, first: *const bf16, second: *const bf16) -> Self::P {
        let swapped = self.is(Fault::ZippedBackwards);
        let (first, second) = if swapped { (second, first) } else { (first, second) };
        unsafe { Portable.zip(first, second) }
    }
}

impl Bf16Tiles for Wrong {
    type D = Self;
    type Shaped = (Self, [usize; 2]);

    fn dots(self) -> Self {
        self
    }
    fn shaped(self, rows: usize, columns: usize) -> Self::Shaped {
        (self, Portable.shaped(rows, columns))
    }
    unsafe fn round(self, x: *const f32, to: *mut bf16) {
        let cut = if self.is(Fault::StepsTruncated) { 0xffff } else { 0 };
        // SAFETY: the caller's.
        let x: [f32; TILE_INPUTS] =
            std::array::from_fn(|i| f32::from_bits(unsafe { *x.add(i) }.to_bits() & !cut));
        // SAFETY: the caller's.
        unsafe { Portable.round(x.as_ptr(), to) }
    }
    unsafe fn multiply<const M: usize, const N: usize>(
        (wrong, shaped): &Self::Shaped,
        of: &TileProduct,
    ) {
        let second = !wrong.is(Fault::SecondTileLeftOut);
        let of = TileProduct {
            fresh: of.fresh || wrong.is(Fault::TilesStartFromZero),
            right_tile: if second { of.right_tile } else { 0 },
            ..*of
        };
        // SAFETY: the caller's.
        unsafe { Portable::multiply::<M, N>(shaped, &of) }
    }
    unsafe fn transpose(
        self,
        shape: [usize; 2],
        (from, ld_from): (*const f32, usize),
        to: (*mut f32, usize),
        onto: bool,
    ) {
        // SAFETY: the caller's.
        unsafe {
            Portable.transpose(shape, (from, ld_from), to, onto);
            if self.is(Fault::TilesNotTurned) {
                *to.0 = *from.add(1);
            }
        }
    }
}
