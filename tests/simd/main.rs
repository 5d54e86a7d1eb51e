//! The instruction sets through their public door: the self-check, the choice of a set, and the dot
//! products of bf16 against their exact model and against f64.

mod wrong;

use half::bf16;
use ladle::simd::{
    Ahead, Bf16Dots, Bf16Tiles, Bf16Work, ByteWork, Isa, Lanes, Portable, TILE, TILE_INPUTS,
    TileProduct, TileWork, Vectorised, bf16 as model,
    check::{Bf16Check, ByteCheck, TileCheck, VectorCheck},
};
use proptest::prelude::*;
use wrong::{Fault, Wrong};

/// The operation that the self-check refuses `fault` for.
fn refused(fault: Fault) -> Option<&'static str> {
    let wrong = Wrong(fault);
    let vectors = VectorCheck.run(wrong).compare(&VectorCheck.run(Portable));
    let bytes = ByteCheck.run(wrong).compare(&ByteCheck.run(Portable));
    let pairs = Bf16Check.run(wrong).compare(&Bf16Check.run(Portable));
    let tiles = TileCheck.run(wrong).compare(&TileCheck.run(Portable));
    vectors.and(bytes).and(pairs).and(tiles).err().map(|mismatch| mismatch.operation)
}

#[test]
fn the_self_check_refuses_a_set_that_computes_one_operation_wrong() {
    assert_eq!(refused(Fault::None), None);
    for (fault, operation) in [
        (Fault::FmaWithoutAddend, "products of f32"),
        (Fault::EvenForOdd, "streamed stores of pairs"),
        (Fault::HalvesTruncated, "streamed stores of f16"),
        (Fault::BrainsTruncated, "streamed stores of bf16"),
        (Fault::PairsSwapped, "streamed stores of pairs"),
        (Fault::LaneLeftOut, "products of f32"),
        (Fault::BytesSaturate, "products of bytes"),
        (Fault::UnsignedBytes, "products of bytes"),
        (Fault::UpperBitsUnmasked, "products of bytes"),
        (Fault::EntriesReversed, "products of bytes"),
        (Fault::EvenPairFirst, "dot products of bf16"),
        (Fault::SubnormalsKept, "dot products of bf16"),
        (Fault::ZippedBackwards, "pairs of bf16"),
        (Fault::TilesStartFromZero, "products of tiles of bf16"),
        (Fault::SecondTileLeftOut, "products of tiles of bf16"),
        (Fault::TilesNotTurned, "turned tiles"),
        (Fault::StepsTruncated, "steps rounded to bf16"),
    ] {
        assert_eq!(refused(fault), Some(operation), "{fault:?}");
    }
}

#[test]
fn every_set_that_the_processor_has_passes_the_self_check() {
    let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
    let mut expected = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        let dots = vnni && is_x86_feature_detected!("avx512bf16");
        // What the system says: it lists only what programs may use.
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let tiles = dots && flags.contains(" amx_bf16") && flags.contains(" amx_tile");
        let sets = [
            ("amx-bf16", tiles),
            ("avx512-bf16", dots),
            ("avx512-vnni", vnni),
            ("avx512", avx512),
            ("avx2", avx2),
        ];
        expected.extend(sets.into_iter().filter(|(_, has)| *has).map(|(name, _)| name));
    }
    #[cfg(target_arch = "aarch64")]
    expected.push("neon");
    expected.push("portable");
    assert_eq!(names, expected);
}

#[test]
fn a_set_is_found_by_its_name_and_an_unknown_one_is_refused_with_those_of_the_machine() {
    for &isa in Isa::available() {
        assert_eq!(Isa::named(isa.name()), Ok(isa));
    }
    let error = Isa::named("mmx").unwrap_err().to_string();
    assert!(error.starts_with("LADLE_ISA is \"mmx\", expected a set of this machine: "), "{error}");
    assert!(error.ends_with("portable"), "{error}");
}

#[test]
fn the_program_refuses_a_set_that_the_machine_lacks() {
    let mut ladle = std::process::Command::new(env!("CARGO_BIN_EXE_ladle"));
    let output = ladle.args(["inspect", "nowhere"]).env("LADLE_ISA", "mmx").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("LADLE_ISA is \"mmx\""), "{error}");
    let mut ladle = std::process::Command::new(env!("CARGO_BIN_EXE_ladle"));
    let output = ladle.args(["inspect", "nowhere"]).env("LADLE_ISA", "portable").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!error.contains("LADLE_ISA"), "{error}");
}

/// Sixteen sums of one pair each, on the dot products of a set.
struct Dots<'a>(&'a [f32; 16], &'a [[bf16; 2]; 16], &'a [[bf16; 2]; 16]);

impl Bf16Work for Dots<'_> {
    type Output = [f32; 16];

    #[inline(always)]
    fn run<D: Bf16Dots>(self, d: D) -> [f32; 16] {
        let s = d.vectors();
        let mut out = [0.0; 16];
        for at in (0..16).step_by(D::S::LANES) {
            // SAFETY: LANES divides 16.
            unsafe {
                let [a, b] = [self.1, self.2].map(|pairs| d.pairs(pairs.as_ptr().add(at).cast()));
                let sums = d.dot(s.load(self.0.as_ptr().add(at)), a, b);
                s.store(out.as_mut_ptr().add(at), sums);
            }
        }
        out
    }
}

/// One tile of three rows and five columns over one step, on the tiles of a set.
struct Tile<'a>(&'a [f32], &'a [bf16], &'a [bf16]);

impl TileWork for Tile<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<T: Bf16Tiles>(self, t: T) -> Vec<f32> {
        let mut sums = [0.0; TILE * TILE];
        for (row, start) in self.0.chunks_exact(5).enumerate() {
            sums[row * TILE..][..5].copy_from_slice(start);
        }
        let shaped = t.shaped(3, 5);
        let of = TileProduct {
            left: self.1.as_ptr(),
            left_row: 2 * TILE_INPUTS,
            left_tile: 0,
            right: self.2.as_ptr(),
            right_row: 4 * 5,
            right_tile: 0,
            steps: 1,
            sums: sums.as_mut_ptr(),
            sums_row: 4 * TILE,
            sums_left: 0,
            sums_right: 0,
            fresh: false,
            ahead: Ahead::NONE,
        };
        // SAFETY: three rows, five columns and a tile of sums.
        unsafe { T::multiply::<1, 1>(&shaped, &of) };
        drop(shaped);
        sums.chunks_exact(TILE).take(3).flat_map(|row| &row[..5]).copied().collect()
    }
}

/// Any bits of the upper half of an f32 with an exponent in `exponents`.
fn brain(exponents: std::ops::Range<u32>) -> impl Strategy<Value = bf16> + Clone {
    (any::<u16>(), exponents)
        .prop_map(|(bits, exponent)| bf16::from_bits(bits & 0x807f | (exponent as u16) << 7))
}

fn float(exponents: std::ops::Range<u32>) -> impl Strategy<Value = f32> + Clone {
    (any::<u32>(), exponents)
        .prop_map(|(bits, exponent)| f32::from_bits(bits & 0x807f_ffff | exponent << 23))
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Exponents of the factors and of the sum: usual ones, any at all, results about the least normal,
/// subnormal inputs.
fn exponents() -> impl Strategy<Value = (std::ops::Range<u32>, std::ops::Range<u32>)> {
    prop_oneof![
        Just((120..134, 118..140)),
        Just((0..256, 0..256)),
        Just((50..66, 0..3)),
        Just((60..70, 1..6)),
        Just((0..3, 0..3)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every bit of the instruction, where the machine has it: order of the sums, rounding, and
    /// subnormals taken for 0.
    #[test]
    fn the_instruction_for_dots_of_bf16_gives_the_bits_of_its_model(
        (sums, a, b) in exponents().prop_flat_map(|(factors, sums)| (
            prop::array::uniform16(float(sums)),
            prop::array::uniform16(prop::array::uniform2(brain(factors.clone()))),
            prop::array::uniform16(prop::array::uniform2(brain(factors))),
        )),
    ) {
        for &isa in Isa::available() {
            let got = isa.run_bf16(Dots(&sums, &a, &b));
            for lane in 0..16 {
                let expected = model::dot(sums[lane], a[lane], b[lane]);
                prop_assert!(
                    same(got[lane], expected),
                    "{}: {:e} + {:?} · {:?} is {:e}, expected {:e}",
                    isa, sums[lane], a[lane], b[lane], got[lane], expected,
                );
            }
        }
    }

    /// As above for products of tiles.
    #[test]
    fn the_instruction_for_tiles_of_bf16_gives_the_bits_of_its_model(
        (sums, a, b) in exponents().prop_flat_map(|(factors, sums)| (
            prop::collection::vec(float(sums), 15),
            prop::collection::vec(brain(factors.clone()), 3 * TILE_INPUTS),
            prop::collection::vec(brain(factors), 5 * TILE_INPUTS),
        )),
    ) {
        let mut expected = sums.clone();
        model::tile(&mut expected, &a, &b, 5);
        for &isa in Isa::available() {
            let got = isa.run_tiles(Tile(&sums, &a, &b));
            for (i, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                prop_assert!(same(got, expected), "{isa}: sum {i} is {got:e}, expected {expected:e}");
            }
        }
    }

    /// The models against f64, where two roundings to f32 are the only error.
    #[test]
    fn the_models_round_as_often_as_the_instructions_do(
        sum in float(118..140),
        a in prop::collection::vec(brain(120..134), 24),
        b in prop::collection::vec(brain(120..134), 24),
    ) {
        let exact = |pairs: &[(bf16, bf16)], start: f64| {
            let products = pairs.iter().map(|(a, b)| a.to_f64() * b.to_f64());
            let size = products.clone().map(f64::abs).sum::<f64>() + start.abs();
            (products.sum::<f64>() + start, size * f64::from(f32::EPSILON) / 2.0)
        };
        let pairs: Vec<_> = a.iter().copied().zip(b.iter().copied()).collect();
        let (expected, ulp) = exact(&pairs[..2], f64::from(sum));
        let got = model::dot(sum, [a[0], a[1]], [b[0], b[1]]);
        prop_assert!((f64::from(got) - expected).abs() <= 2.0 * ulp);
        // One row of three pairs times three columns, and the same by the definition.
        let mut c = [sum, -sum, 0.0];
        let before = c;
        model::tile(&mut c, &a[..6], &b[..18], 3);
        for n in 0..3 {
            let column: Vec<_> = (0..6).map(|i| (a[i], b[i / 2 * 6 + 2 * n + i % 2])).collect();
            let (expected, ulp) = exact(&column, f64::from(before[n]));
            prop_assert!((f64::from(c[n]) - expected).abs() <= 8.0 * ulp, "column {n}");
        }
    }
}

#[test]
fn a_dot_of_bf16_adds_the_odd_product_first_and_flushes_what_is_tiny() {
    let one = bf16::ONE;
    let large = bf16::from_f32(16_777_216.0);
    // 2²⁴ + 1 is 2²⁴ in f32: only in one order is the 1 left.
    assert_eq!(model::dot(16_777_216.0, [one, large], [one, bf16::NEG_ONE]), 1.0);
    assert_eq!(model::dot(16_777_216.0, [large, one], [bf16::NEG_ONE, one]), 0.0);
    // Subnormal factors and sums are 0, of their own sign.
    let subnormal = bf16::from_bits(0x0040);
    assert_eq!(model::dot(0.0, [subnormal, one], [large, one]), 1.0);
    assert_eq!(model::dot(-1.0e-39, [one, one], [bf16::ZERO, bf16::NEG_ONE]), -1.0);
    // The least normal less 2⁻¹⁵¹ is halfway to the next number of 24 bits and stays normal; less
    // 1.25 · 2⁻¹⁵¹ is tiny, though f32 rounds that to the least normal too.
    let least = f32::MIN_POSITIVE;
    let [half, less] = [1.0, 1.25].map(|v: f32| bf16::from_f32(-v * 2f32.powi(-76)));
    let factor = bf16::from_f32(2f32.powi(-75));
    assert_eq!(model::dot(least, [factor, bf16::ZERO], [half, one]), least);
    assert_eq!(model::dot(least, [factor, bf16::ZERO], [less, one]), 0.0);
}

#[test]
fn a_tile_of_bf16_sums_even_and_odd_products_apart() {
    let [one, large] = [1.0, 16_777_216.0].map(bf16::from_f32);
    // Two pairs, one column: even products 2²⁴ and −2²⁴, odd ones 1 and 1. Summed in turn, the first
    // 1 would be lost.
    let a = [large, one, large, one];
    let b = [one, one, bf16::NEG_ONE, one];
    let mut c = [10.0];
    model::tile(&mut c, &a, &b, 1);
    assert_eq!(c, [12.0]);
    // Two rows, two columns: c += a · w with w = [[1, 3], [2, 4]] interleaved by rows.
    let brains = |values: &[f32]| values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>();
    let mut c = [1.0, 0.0, 0.0, 1.0];
    model::tile(&mut c, &brains(&[1.0, 1.0, 2.0, -1.0]), &brains(&[1.0, 2.0, 3.0, 4.0]), 2);
    assert_eq!(c, [4.0, 7.0, 0.0, 3.0]);
}
