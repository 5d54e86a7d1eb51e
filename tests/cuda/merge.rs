//! Merges on the device against the definition in f64 and the CPU's bits.

use std::sync::Arc;

use ladle::{
    kernels::{
        Dtype, HostTensor,
        cuda::{CudaKernels, Device},
    },
    merge::{
        Cache, Fetch, Lease, MergeError, Merger, SoupPlan,
        device::{DeviceBuilder, DeviceModel, Resident, Sources, largest_staging},
    },
    preference::{Coefficients, ModelKey},
    soup::LoraModule,
};

use crate::{
    emulator::Emulator,
    soups::{self, Kind, Owned, OwnedSoup},
};

fn cache(
    device: &Arc<Emulator>,
    soup: &OwnedSoup,
    sources: impl Fn(&SoupPlan) -> Sources,
    models: usize,
) -> (Cache<DeviceBuilder<Emulator>>, usize) {
    let plan = SoupPlan::new(soup, &soup.config).unwrap();
    let bytes = Merger::new(plan.clone(), None).unwrap().layout().bytes();
    let kernels = CudaKernels::new(device.clone(), Dtype::Bf16).unwrap();
    let sources = sources(&plan);
    let resident = Resident::default();
    let builder =
        DeviceBuilder::new(&kernels, &resident, plan, soup.config.clone(), sources).unwrap();
    (Cache::new(builder, models * bytes, |_| {}).unwrap(), bytes)
}

fn merged(
    cache: &Cache<DeviceBuilder<Emulator>>,
    c: &Coefficients,
) -> Result<Lease<DeviceModel>, Arc<MergeError>> {
    match cache.get(&ModelKey::of(c)) {
        Fetch::Ready(lease) => Ok(lease),
        Fetch::Building(ticket) => ticket.wait(),
        Fetch::NoRoom => panic!("no room"),
    }
}

fn take(cache: &Cache<DeviceBuilder<Emulator>>, c: &Coefficients) -> Lease<DeviceModel> {
    merged(cache, c).unwrap()
}

fn streamed(plan: &SoupPlan) -> Sources {
    Sources::Streamed { staging: largest_staging(plan) }
}

fn bytes(device: &Emulator, model: &DeviceModel, name: &str) -> Vec<u8> {
    let weight = model.tensor(name).unwrap();
    let mut bytes = vec![0; weight.elements() * weight.dtype().size()];
    // SAFETY: the weight is that long.
    unsafe { device.download(&(), weight.address(), &mut bytes).unwrap() };
    bytes
}

fn coefficients(n: usize) -> Vec<Coefficients> {
    let with = |f: &dyn Fn(usize) -> f64| {
        let backbones: Vec<f64> = (0..n).map(f).collect();
        Coefficients { sft: 1.0 - backbones.iter().sum::<f64>(), backbones }
    };
    vec![
        with(&|i| [1.7, -0.9, 0.2, 0.4, -0.3, 0.1, 0.05, 0.3][i]),
        with(&|i| if i == 0 { 1.0 } else { 0.0 }),
        with(&|_| 0.0),
    ]
}

#[test]
fn sums_of_checkpoints_are_the_cpus_bits_resident_and_streamed() {
    for (n, dtype) in [(1, Dtype::F32), (3, Dtype::Bf16), (4, Dtype::F16), (8, Dtype::Bf16)] {
        let kinds = vec![Kind::Full; n];
        let soup = soups::soup(n as u64, soups::config(41, 150, 130, n == 3), dtype, None, &kinds);
        let plan = SoupPlan::new(&soup, &soup.config).unwrap();
        let merger = Merger::new(plan, None).unwrap();
        let everywhere: [&dyn Fn(&SoupPlan) -> Sources; 2] = [&|_| Sources::Resident, &streamed];
        for sources in everywhere {
            let device = Emulator::new(1 << 28, n == 3);
            let (cache, _) = cache(&device, &soup, sources, 2);
            for c in coefficients(n) {
                let model = take(&cache, &c);
                let c = ModelKey::of(&c).coefficients();
                for (name, _) in soup.config.tensors() {
                    let expected = merger.tensor(&name, &c).unwrap();
                    let got = bytes(&device, &model, &name);
                    assert!(got == expected.bytes(), "{name} {dtype} n = {n}");
                }
            }
        }
    }
}

#[test]
fn merges_with_adapters_are_the_sum_by_definition() {
    for (seed, dtype, unit) in
        [(1u64, Dtype::F32, 0.0), (2, Dtype::Bf16, 2f64.powi(-8)), (3, Dtype::F16, 2f64.powi(-11))]
    {
        let kinds = [Kind::Adapter, Kind::Saving, Kind::Full, Kind::Adapter];
        let kinds = &kinds[..if seed == 1 { 4 } else { 2 }];
        let config = soups::config(70, 131, 90, false);
        let soup = soups::soup(seed, config, dtype, Some(Kind::Adapter), kinds);
        let device = Emulator::new(1 << 28, seed == 2);
        let (cache, _) = cache(&device, &soup, |_| Sources::Resident, 1);
        for c in coefficients(kinds.len()) {
            let model = take(&cache, &c);
            let c = ModelKey::of(&c).coefficients();
            for (name, shape) in soup.config.tensors() {
                let bytes = bytes(&device, &model, &name);
                let len = bytes.len();
                let got = HostTensor::new(Arc::new(bytes), 0..len, dtype, shape).unwrap().to_f32();
                let reference = soup.reference(&name, &c.backbones, c.sft);
                for (got, (want, magnitude)) in got.iter().zip(reference) {
                    // Rounding to the storage type, and what the split products leave out.
                    let bound = unit * want.abs() + 1e-6 + magnitude * 2f64.powi(-15);
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= bound, "{name} {dtype}: {got} for {want}, off {error:e}");
                }
            }
        }
    }
}

#[test]
fn a_merge_that_meets_no_memory_takes_that_of_models_nobody_holds() {
    let config = soups::config(40, 60, 100, true);
    let soup = soups::soup(5, config, Dtype::Bf16, None, &[Kind::Full, Kind::Full]);
    let all = coefficients(2);
    // How much the sources and one model take.
    let probe = Emulator::new(1 << 28, false);
    let (one, model) = cache(&probe, &soup, |_| Sources::Resident, 1);
    drop(take(&one, &all[0]));
    let device = Emulator::new(probe.used() + model / 2, false);
    // A budget that promises more than there is.
    let (cache, _) = cache(&device, &soup, |_| Sources::Resident, 3);
    drop(take(&cache, &all[0]));
    let second = take(&cache, &all[1]);
    assert_eq!(cache.stats().evictions, 1);
    let Fetch::Building(ticket) = cache.get(&ModelKey::of(&all[2])) else { panic!("not built") };
    let refused = ticket.wait().unwrap_err();
    assert!(refused.is_out_of_memory(), "{refused}");
    assert_eq!(cache.stats().failures, 1);
    drop((second, ticket));
    take(&cache, &all[2]);
}

/// Soups of which one weight of this tensor leaves the storage type's range at `FAR`, and none does
/// at `NEAR`: in vectors, in tails, in a product of adapters, and in several places at once.
fn soups_beyond_their_range() -> Vec<OwnedSoup> {
    let mut all = Vec::new();
    let largest = [(Dtype::F16, 65_504.0), (Dtype::Bf16, 3.38e38), (Dtype::F32, f32::MAX)];
    for (dtype, largest) in largest {
        let soup = |kind| soups::soup(5, soups::config(37, 51, 40, false), dtype, None, &[kind]);
        for places in [vec![0], vec![37 * 20 + 5, 36], vec![37 * 51 - 1], vec![3, 4, 5, 999]] {
            let mut soup = soup(Kind::Full);
            for name in [BEYOND, "model.layers.1.mlp.up_proj.weight"] {
                let mut values = soup.base[name].to_f32();
                places.iter().for_each(|&at| values[at] = largest);
                let shape = soup.base[name].shape().to_vec();
                soup.base.insert(name.into(), soups::stored(&values, &shape, dtype));
            }
            all.push(soup);
        }
        let mut soup = soup(Kind::Adapter);
        let Owned::Adapter(change) = &mut soup.backbones[0] else { unreachable!() };
        let module = BEYOND.strip_suffix(".weight").unwrap();
        let width = soup.base[BEYOND].shape()[1];
        // Row 30 of B times column 17 of A, beside values that stay small.
        let down: Vec<f32> = (0..width).map(|i| if i == 17 { 200.0 } else { 0.01 }).collect();
        let up: Vec<f32> = (0..51).map(|i| if i == 30 { 400.0 } else { 0.01 }).collect();
        let factors = LoraModule {
            down: soups::stored(&down, &[1, width], dtype),
            up: soups::stored(&up, &[51, 1], dtype),
            scale: f64::from(largest) / 160_000.0,
        };
        change.modules.insert(module.into(), factors);
        all.push(soup);
    }
    all
}

const BEYOND: &str = "model.layers.0.mlp.up_proj.weight";
/// Coefficients of the backbone.
const FAR: f64 = -2.5;
const NEAR: f64 = 0.5;

#[test]
fn a_model_beyond_the_range_of_its_storage_type_is_refused_as_on_the_cpu() {
    let at = |c: f64| Coefficients { backbones: vec![c], sft: 1.0 - c };
    for (n, soup) in soups_beyond_their_range().iter().enumerate() {
        let plan = SoupPlan::new(soup, &soup.config).unwrap();
        let merger = Merger::new(plan.clone(), None).unwrap();
        let in_order = plan.tensors().iter().map(|tensor| merger.tensor(&tensor.name, &at(FAR)));
        let expected = in_order.filter_map(Result::err).next().unwrap().to_string();
        assert!(expected.contains(BEYOND) && expected.contains("--dtype"), "{expected}");
        let everywhere: [&dyn Fn(&SoupPlan) -> Sources; 2] = [&|_| Sources::Resident, &streamed];
        for sources in everywhere {
            // Room for one model: the memory of the refused one serves the next.
            let (cache, _) = cache(&Emulator::new(1 << 28, n % 2 == 1), soup, sources, 1);
            for _ in 0..2 {
                let error = merged(&cache, &at(FAR)).err().unwrap();
                assert!(matches!(*error, MergeError::Range { .. }));
                assert_eq!(error.to_string(), expected);
                drop(take(&cache, &at(NEAR)));
            }
        }
    }
}
