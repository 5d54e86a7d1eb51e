//! The dense merge against the definition in f64.

use half::{bf16, f16};
use ladle::{
    kernels::{Dtype, HostTensor},
    merge::{Merger, PlanError, SoupPlan, plan::Tensors, slab::SlabPool},
    preference::Coefficients,
    simd::Isa,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::soups::{self, Kind, Owned, OwnedSoup, Wide};

/// Unit roundoff and smallest subnormal of a storage type.
fn precision(dtype: Dtype) -> (f64, f64) {
    match dtype {
        Dtype::F32 => (2f64.powi(-24), 2f64.powi(-149)),
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-24)),
        Dtype::Bf16 => (2f64.powi(-8), 2f64.powi(-133)),
        Dtype::Quantised(_) => unreachable!("nothing is merged into blocks"),
    }
}

/// Half a unit of the storage type plus what f32 sums of `terms` terms may be off.
fn assert_close(name: &str, merged: &HostTensor, reference: &Wide, terms: usize) {
    let (unit, tiny) = precision(merged.dtype());
    for (i, (got, &(want, magnitude))) in merged.to_f32().iter().zip(reference).enumerate() {
        let bound =
            unit * want.abs() * 1.01 + tiny + (terms + 4) as f64 * 2f64.powi(-24) * magnitude;
        let error = (f64::from(*got) - want).abs();
        assert!(error <= bound, "{name}[{i}]: {got}, expected {want} ± {bound:e}, off {error:e}");
    }
}

fn merger(soup: &OwnedSoup, dtype: Option<Dtype>) -> Merger {
    Merger::new(SoupPlan::new(soup, &soup.config).unwrap(), dtype).unwrap()
}

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let kind = prop_oneof![Just(Kind::Adapter), Just(Kind::Saving), Just(Kind::Full)];
    prop::collection::vec(kind, 1..8)
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_tensor_is_the_sum_by_definition_on_every_instruction_set(
        seed in any::<u64>(),
        hidden in 1usize..90,
        ff in 1usize..90,
        vocab in 1usize..90,
        tied in any::<bool>(),
        dtype in dtypes(),
        out in prop::option::of(dtypes()),
        sft in prop::option::of(prop_oneof![Just(Kind::Adapter), Just(Kind::Saving)]),
        kinds in kinds(),
    ) {
        let soup = soups::soup(seed, soups::config(hidden, ff, vocab, tied), dtype, sft, &kinds);
        let rng = &mut ChaCha8Rng::seed_from_u64(seed ^ 1);
        let mut backbones: Vec<f64> = kinds.iter().map(|_| rng.random_range(-3.0..3.0)).collect();
        if rng.random_bool(0.3) {
            backbones[0] = 0.0;
        }
        let c = Coefficients { sft: 1.0 - backbones.iter().sum::<f64>(), backbones };
        let merger = merger(&soup, out);
        let terms = 1 + kinds.len() + 5 * (kinds.len() + 1);
        for (name, _) in soup.config.tensors() {
            let reference = soup.reference(&name, &c.backbones, c.sft);
            let portable = merger.clone().with_isa(Isa::PORTABLE).tensor(&name, &c).unwrap();
            prop_assert_eq!(portable.dtype(), out.unwrap_or(dtype));
            assert_close(&name, &portable, &reference, terms);
            for &isa in Isa::available() {
                let other = merger.clone().with_isa(isa).tensor(&name, &c).unwrap();
                prop_assert_eq!(other.bytes(), portable.bytes(), "{} on {}", &name, isa);
            }
        }
    }
}

/// A tensor of arbitrary bits: NaNs of any payload, infinities, −0, subnormals.
fn any_bits(rng: &mut ChaCha8Rng, like: &HostTensor) -> HostTensor {
    let mut bytes = vec![0u8; like.bytes().len()];
    rng.fill(&mut bytes[..]);
    let len = bytes.len();
    HostTensor::new(std::sync::Arc::new(bytes), 0..len, like.dtype(), like.shape().to_vec())
        .unwrap()
}

fn scramble(rng: &mut ChaCha8Rng, tensors: &mut Tensors) {
    tensors.values_mut().for_each(|tensor| *tensor = any_bits(rng, tensor));
}

#[test]
fn one_hot_coefficients_return_the_bits_of_that_model() {
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut soup =
            soups::soup(1, soups::config(37, 51, 300, false), dtype, None, &[Kind::Full; 3]);
        scramble(rng, &mut soup.base);
        for backbone in &mut soup.backbones {
            let Owned::Full(tensors) = backbone else { unreachable!() };
            scramble(rng, tensors);
        }
        let merger = merger(&soup, None);
        for hot in 0..4 {
            let backbones = (0..3).map(|i| if i == hot { 1.0 } else { 0.0 }).collect();
            let c = Coefficients { backbones, sft: if hot == 3 { 1.0 } else { 0.0 } };
            for (name, _) in soup.config.tensors() {
                let own = match soup.backbones.get(hot) {
                    Some(Owned::Full(tensors)) => &tensors[&name],
                    _ => &soup.base[&name],
                };
                assert_eq!(merger.tensor(&name, &c).unwrap().bytes(), own.bytes(), "{name}");
            }
        }
    }
}

#[test]
fn an_adapter_soup_at_sft_alone_returns_the_bits_of_the_base() {
    let soup = soups::soup(
        9,
        soups::config(40, 24, 64, true),
        Dtype::Bf16,
        None,
        &[Kind::Adapter, Kind::Saving],
    );
    let c = Coefficients { backbones: vec![0.0, 0.0], sft: 1.0 };
    let merger = merger(&soup, None);
    for (name, _) in soup.config.tensors() {
        assert_eq!(merger.tensor(&name, &c).unwrap().bytes(), soup.base[&name].bytes(), "{name}");
    }
}

#[test]
fn a_whole_model_in_a_recycled_slab_is_its_tensors_one_by_one() {
    let kinds = [Kind::Full, Kind::Saving, Kind::Adapter];
    let soup =
        soups::soup(5, soups::config(48, 33, 5000, false), Dtype::Bf16, Some(Kind::Saving), &kinds);
    let merger = merger(&soup, None);
    let pool = SlabPool::new(merger.layout().bytes(), 1);
    for c in [[0.5, -1.5, 2.0], [0.0, 1.0, 0.25]] {
        let c = Coefficients { sft: 1.0 - c.iter().sum::<f64>(), backbones: c.to_vec() };
        let mut slab = pool.take().unwrap();
        assert!(pool.take().is_err(), "the only slab is taken");
        merger.merge(&c, &mut slab, None).unwrap();
        for (tensor, place) in merger.plan().tensors().iter().zip(merger.layout().places()) {
            let alone = merger.tensor(&tensor.name, &c).unwrap();
            let merged = &slab.as_ref()[place.offset..place.offset + place.len];
            assert_eq!(merged, alone.bytes(), "{}", tensor.name);
        }
    }
    assert_eq!((pool.mapped(), pool.free()), (1, 1));
}

#[test]
fn all_adapter_soups_have_no_term_for_the_base() {
    let kinds = [Kind::Adapter; 3];
    let soup =
        soups::soup(2, soups::config(16, 16, 16, true), Dtype::F32, Some(Kind::Adapter), &kinds);
    let plan = SoupPlan::new(&soup, &soup.config).unwrap();
    assert_eq!(plan.terms().len(), 3);
    for tensor in plan.tensors() {
        assert_eq!(tensor.dense.len(), 1);
        assert_eq!(tensor.dense[0].term, None);
    }
}

#[test]
fn tensors_that_a_full_backbone_left_alone_are_one_term() {
    let mut soup =
        soups::soup(2, soups::config(16, 16, 16, true), Dtype::F32, None, &[Kind::Full; 2]);
    let name = "model.embed_tokens.weight";
    let copy = soup.base[name].clone();
    for backbone in &mut soup.backbones {
        let Owned::Full(tensors) = backbone else { unreachable!() };
        tensors.insert(name.into(), soups::stored(&copy.to_f32(), copy.shape(), Dtype::F32));
    }
    let plan = SoupPlan::new(&soup, &soup.config).unwrap();
    let tensor = plan.tensors().iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!((tensor.dense.len(), tensor.dense[0].term), (1, None));
}

#[test]
fn rows_of_coefficients_are_the_values_of_the_terms() {
    let kinds = [Kind::Full, Kind::Adapter];
    let soup = soups::soup(2, soups::config(16, 16, 16, true), Dtype::F32, None, &kinds);
    let plan = SoupPlan::new(&soup, &soup.config).unwrap();
    let a = Coefficients { backbones: vec![2.0, -0.5], sft: -0.5 };
    let b = Coefficients { backbones: vec![0.0, 1.0], sft: 0.0 };
    let rows = soups::row_coefficients(&plan, &[&a, &b]);
    assert_eq!(rows.values.len(), 2 * rows.terms);
    for (row, c) in [a, b].iter().enumerate() {
        for (term, functional) in plan.terms().iter().enumerate() {
            let want = functional[0] * c.backbones[0]
                + functional[1] * c.backbones[1]
                + functional[2] * c.sft;
            assert_eq!(f64::from(rows.values[row * rows.terms + term]), want);
        }
    }
}

#[test]
fn wrong_coefficients_are_refused_with_what_was_given() {
    let soup = soups::soup(2, soups::config(8, 8, 8, true), Dtype::F32, None, &[Kind::Full; 2]);
    let plan = SoupPlan::new(&soup, &soup.config).unwrap();
    let values = |backbones: &[f64], sft| {
        plan.term_values(&Coefficients { backbones: backbones.to_vec(), sft })
    };
    assert_eq!(values(&[1.0], 0.0), Err(PlanError::Length { expected: 2, got: 1 }));
    let error = values(&[0.5, 0.5], f64::INFINITY).unwrap_err();
    assert_eq!(error, PlanError::NotFinite { index: 2, value: f64::INFINITY });
}

#[test]
fn weights_that_are_not_the_model_are_refused_by_name() {
    let make = || soups::soup(2, soups::config(8, 12, 9, true), Dtype::F32, None, &[Kind::Full]);
    let full = |soup: &mut OwnedSoup, edit: &dyn Fn(&mut Tensors)| {
        let Owned::Full(tensors) = &mut soup.backbones[0] else { unreachable!() };
        edit(tensors);
        SoupPlan::new(&*soup, &soup.config).unwrap_err().to_string()
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    let message = full(&mut make(), &|tensors| {
        tensors.remove(name);
    });
    assert_eq!(message, format!("backbone 0: no tensor {name}, expected one of shape [12, 8]"));
    let message = full(&mut make(), &|tensors| {
        tensors.insert(name.into(), soups::stored(&[0.0; 96], &[8, 12], Dtype::F32));
    });
    assert_eq!(message, format!("backbone 0: {name} has shape [8, 12], expected [12, 8]"));
    let message = full(&mut make(), &|tensors| {
        tensors.insert("model.extra".into(), soups::stored(&[0.0], &[1], Dtype::F32));
    });
    assert_eq!(message, "backbone 0: model.extra is no tensor of the model");
}

#[test]
fn halves_round_to_nearest_even_as_the_reference_does() {
    // Sums 1·x + 1·0 that need rounding: every pattern near a tie, and the extremes.
    let mut values = vec![0.0f32, -0.0, f32::MAX, -f32::MAX, 65519.99, 65520.0, 6e-8, 2.9e-8];
    for exponent in [1u32, 60, 102, 103, 112, 113, 127, 141, 142, 143, 200, 254, 255] {
        for mantissa in [
            0u32, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0x17fff,
            0x1_8000, 0x1_8001, 0x7f_efff, 0x7f_f000, 0x7f_ffff,
        ] {
            let bits = exponent << 23 | mantissa;
            values.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
        }
    }
    let name = "model.norm.weight";
    let c = Coefficients { backbones: vec![1.0], sft: 0.5 };
    for dtype in [Dtype::F16, Dtype::Bf16] {
        // What rounds to infinity is refused.
        let finite = |value: &f32| match dtype {
            Dtype::F16 => f16::from_f32(*value).is_finite(),
            _ => bf16::from_f32(*value).is_finite(),
        };
        let values: Vec<f32> = values.iter().copied().filter(finite).collect();
        let shape = [values.len()];
        let config = soups::config(values.len(), 1, 1, true);
        let mut soup = soups::soup(1, config, Dtype::F32, None, &[Kind::Full]);
        soup.base.insert(name.into(), soups::stored(&vec![0.0; values.len()], &shape, Dtype::F32));
        let Owned::Full(tensors) = &mut soup.backbones[0] else { unreachable!() };
        tensors.insert(name.into(), soups::stored(&values, &shape, Dtype::F32));
        for &isa in Isa::available() {
            let merged = merger(&soup, Some(dtype)).with_isa(isa).tensor(name, &c).unwrap();
            for (i, &value) in values.iter().enumerate() {
                let want = match dtype {
                    Dtype::F16 => f16::from_f32(value + 0.0).to_bits(),
                    _ => bf16::from_f32(value + 0.0).to_bits(),
                };
                let got = u16::from_le_bytes([merged.bytes()[2 * i], merged.bytes()[2 * i + 1]]);
                assert_eq!(got, want, "{value:e} as {dtype} on {isa}");
            }
        }
    }
}

/// Sums that round to infinity in the storage type are found whichever lane, tail or path they are in.
#[test]
fn a_sum_beyond_the_storage_type_is_refused_on_every_instruction_set() {
    let soup = |dtype, kinds: &[Kind]| {
        soups::soup(5, soups::config(37, 51, 40, false), dtype, None, kinds)
    };
    for (dtype, largest) in [
        (Dtype::F16, 65_504.0),
        (Dtype::Bf16, f64::from(bf16::MAX.to_f32())),
        (Dtype::F32, f64::from(f32::MAX)),
    ] {
        for kind in [Kind::Full, Kind::Adapter] {
            for at in [0, 36, 37 * 20 + 5, 37 * 51 - 1] {
                let mut soup = soup(dtype, &[kind]);
                let name = "model.layers.0.mlp.up_proj.weight";
                let mut values = soup.base[name].to_f32();
                values[at] = largest as f32;
                let shape = soup.base[name].shape().to_vec();
                let huge = HostTensor::rounded(&values, dtype, shape).unwrap();
                soup.base.insert(name.to_owned(), huge);
                let merger = merger(&soup, None);
                // The base's coefficient is c_sft alone beside a full backbone.
                let c = Coefficients { backbones: vec![-1.5], sft: 2.5 };
                for &isa in Isa::available() {
                    let merged = merger.clone().with_isa(isa).tensor(name, &c);
                    match kind {
                        Kind::Full => {
                            let error = merged.unwrap_err().to_string();
                            let found = format!("{name}: element {at} leaves the range of {dtype}");
                            assert!(error.contains(&found), "{isa}: {error}");
                        }
                        _ => assert!(merged.unwrap().to_f32()[at].is_finite(), "{isa}"),
                    }
                    let near = Coefficients { backbones: vec![0.25], sft: 0.75 };
                    let merged = merger.clone().with_isa(isa).tensor(name, &near).unwrap();
                    assert!(merged.to_f32().iter().all(|value| value.is_finite()), "{isa}");
                }
            }
        }
    }
}
