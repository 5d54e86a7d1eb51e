//! Whole soups through the engine on the device, against the CPU backend.

#[path = "../support/answers.rs"]
#[allow(dead_code)] // its other users need more of it
mod answers;

use std::sync::Arc;

use answers::{Answer, collect, settled};
use ladle::{
    engine::{
        CpuBackend, CpuOptions, CudaBackend, CudaOptions, EngineConfig, EngineError, EngineHandle,
        GenerateRequest, MergeMode, StepLimits, backend::Backend, start,
    },
    kernels::{Batch, Dtype, Segment, cuda::Device},
    merge::{Fetch, SoupPlan, device::Sources},
    preference::{Alpha, Coefficients, ModelKey, Preference},
    sampling::SamplingParams,
    soup::Soup,
    tokenizer::Tokenizer,
};

use crate::{
    emulator::Emulator,
    fixtures::{SOUPS, open},
    soups::{self, Kind, Owned},
};

fn config(merge_mode: MergeMode) -> EngineConfig {
    let limits = StepLimits {
        step_tokens: 64,
        prefill_chunk: 16,
        lanes: 8,
        ..EngineConfig::default().limits
    };
    EngineConfig { limits, merge_mode, ..EngineConfig::default() }
}

pub fn options(merge_mode: MergeMode) -> CudaOptions {
    CudaOptions {
        kv_bytes: Some(4 << 20),
        merged_bytes: Some(8 << 20),
        merge_mode,
        step_rows: 64,
        ..CudaOptions::default()
    }
}

fn on_device(soup: &Soup, options: &CudaOptions, limit: usize) -> CudaBackend<Emulator> {
    CudaBackend::open(soup, Emulator::new(limit, false), options).unwrap()
}

pub fn serve<B: Backend>(soup: &Soup, backend: B, mode: MergeMode) -> EngineHandle {
    start(backend, Tokenizer::from_dir(&soup.base_dir).unwrap(), config(mode)).unwrap()
}

/// The `n`-th of many distinct models, some of them extrapolated.
fn nth(soup: &Soup, n: usize) -> Coefficients {
    let weights: Vec<f64> =
        (0..soup.mixing.len()).map(|i| 1.0 + ((n + 1) * (i + 3) * 7 % 11) as f64).collect();
    let preference = Preference::new(&weights, soup.mixing.len()).unwrap();
    soup.mixing.solve(&preference, &Alpha::Scalar((n % 3) as f64 * 0.25)).coefficients
}

fn request(soup: &Soup, n: usize) -> GenerateRequest {
    let prompt: Vec<u32> =
        (0..5 + n * 7 % 30).map(|i| 20 + ((n * 37 + i * 11) % 400) as u32).collect();
    let request = GenerateRequest::new(prompt, nth(soup, n), 4);
    // Any position does for the comparison with the CPU.
    let from = n * 5 % request.prompt.len();
    GenerateRequest {
        sampling: SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() },
        ignore_eos: true,
        active_from: soup.active_from.is_answer().then_some(from),
        ..request
    }
}

pub fn answers(soup: &Soup, engine: &EngineHandle) -> Vec<Answer> {
    let all: Vec<_> = (0..4).map(|n| engine.submit(request(soup, n)).unwrap()).collect();
    let all = all.into_iter().map(collect).collect();
    settled(engine);
    all
}

pub fn assert_same(what: &str, got: &[Answer], expected: &[Answer]) {
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.ids(), expected.ids(), "{what}");
        for (a, b) in got.tokens.iter().zip(&expected.tokens) {
            let (a, b) = (a.logprob.unwrap(), b.logprob.unwrap());
            assert!((a - b).abs() < 1e-4, "{what}: log-probability {a} vs {b}");
        }
    }
}

#[test]
fn every_soup_answers_as_on_the_cpu_fused_mixed_and_streamed() {
    for name in SOUPS.into_iter().chain(["soup-tiny-answer"]) {
        let soup = open(name);
        let cpu = CpuOptions { threads: Some(2), merged_bytes: 8 << 20, ..CpuOptions::default() };
        let cpu = CpuBackend::open(&soup, &cpu).unwrap();
        let expected = answers(&soup, &serve(&soup, cpu, MergeMode::Mixed));
        for mode in [MergeMode::Auto, MergeMode::Fused, MergeMode::Mixed] {
            let backend = on_device(&soup, &options(mode), 1 << 28);
            assert_eq!(backend.placement().sources, Sources::Resident);
            let engine = serve(&soup, backend, mode);
            assert_same(&format!("{name} {mode:?}"), &answers(&soup, &engine), &expected);
            let stats = engine.stats();
            match mode {
                MergeMode::Fused => assert_eq!(stats.mixed_forwards, 0),
                MergeMode::Mixed => assert_eq!(stats.fused_forwards, 0),
                MergeMode::Auto => {}
            }
        }
        if soup.active_from.is_answer() {
            // The smallest device holds one merged model, and fused answers need θ_sft beside it.
            continue;
        }
        // Room for merged models but not for the sources beside them.
        let small = CudaOptions { merged_bytes: None, ..options(MergeMode::Fused) };
        let device = |bytes: usize| Emulator::new(bytes + (1 << 20), false);
        let Some(backend) = smallest(&soup, &small, device) else { continue };
        let engine = serve(&soup, backend, MergeMode::Fused);
        assert_same(&format!("{name} streamed"), &answers(&soup, &engine), &expected);
    }
}

/// The soup on the smallest device, in steps of 64 KiB, that holds it; none where even that keeps
/// the sources.
pub fn smallest<D: Device>(
    soup: &Soup,
    options: &CudaOptions,
    device: impl Fn(usize) -> Arc<D>,
) -> Option<CudaBackend<D>> {
    let budgets = (1..1024).map(|n| n << 16);
    let mut backends = budgets.filter_map(|bytes| {
        let options = CudaOptions { device_bytes: Some(bytes), ..options.clone() };
        CudaBackend::open(soup, device(bytes), &options).ok()
    });
    let smallest = backends.next().unwrap();
    matches!(smallest.placement().sources, Sources::Streamed { .. }).then_some(smallest)
}

fn batch(tokens: usize) -> Batch {
    Batch {
        tokens: (0..tokens as u32).collect(),
        positions: (0..tokens as u32).collect(),
        segments: vec![Segment { rows: 0..tokens, cached: 0, blocks: (0..9).collect() }],
        outputs: (0..tokens).collect(),
        ..Batch::default()
    }
}

#[test]
fn a_pass_that_meets_no_memory_gives_up_idle_models_and_then_refuses() {
    let soup = open("soup-tiny-full");
    let options = options(MergeMode::Fused);
    let device = Emulator::new(1 << 28, false);
    let mut backend = CudaBackend::open(&soup, device.clone(), &options).unwrap();
    let lease = |backend: &mut CudaBackend<Emulator>, n| {
        let key = ModelKey::of(&nth(&soup, n));
        loop {
            match backend.fetch(&key) {
                Fetch::Ready(lease) => return lease,
                _ => std::thread::yield_now(),
            }
        }
    };
    let held = lease(&mut backend, 0);
    let expected = backend.forward(Some(&held), &batch(3)).unwrap();
    let idle = lease(&mut backend, 1);
    drop(idle);
    let before = device.used();
    // A long pass, with hardly any room left beside what is allocated.
    device.limit_to(before + 1024);
    backend.forward(Some(&held), &batch(140)).unwrap();
    assert!(!backend.cached(&ModelKey::of(&nth(&soup, 1))), "the idle model was kept");
    device.limit_to(0);
    let refused = backend.forward(Some(&held), &batch(144)).err();
    // Everything it needs may be recycled; what cannot be must be refused as such.
    assert!(refused.is_none_or(|error| error.is_out_of_memory()));
    device.limit_to(1 << 28);
    assert_eq!(backend.forward(Some(&held), &batch(3)).unwrap(), expected);
}

#[test]
fn a_request_that_meets_no_memory_is_told_so_and_the_next_is_served() {
    let soup = open("soup-tiny-full");
    let options = options(MergeMode::Fused);
    let device = Emulator::new(1 << 28, false);
    let backend = CudaBackend::open(&soup, device.clone(), &options).unwrap();
    device.limit_to(device.used());
    let engine = serve(&soup, backend, MergeMode::Fused);
    let refused = collect(engine.submit(request(&soup, 0)).unwrap());
    assert!(matches!(refused.failed, Some(EngineError::Memory(_))), "{:?}", refused.failed);
    device.limit_to(1 << 28);
    let served = collect(engine.submit(request(&soup, 0)).unwrap());
    assert_eq!(served.ids().len(), 4);
    settled(&engine);
}

#[test]
fn a_model_beyond_the_range_of_its_storage_type_is_the_error_of_its_requests_and_names_the_tensor()
{
    let config = soups::config(40, 24, 90, true);
    let mut soup = soups::soup(4, config.clone(), Dtype::F16, None, &[Kind::Full]);
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut values = soup.base[name].to_f32();
    values[7] = 40_000.0;
    let shape = soup.base[name].shape().to_vec();
    soup.base.insert(name.into(), soups::stored(&values, &shape, Dtype::F16));
    let plan = SoupPlan::new(&soup, &config).unwrap();
    let options = options(MergeMode::Fused);
    let device = Emulator::new(1 << 28, false);
    let digest = "digest".to_owned();
    let mut backend = CudaBackend::with_plan(plan, config, digest, device, &options).unwrap();
    let mut redeemed = |backbone: f64| {
        let c = Coefficients { backbones: vec![backbone], sft: 1.0 - backbone };
        let Fetch::Building(ticket) = backend.fetch(&ModelKey::of(&c)) else { panic!("not built") };
        loop {
            match backend.redeem(&ticket) {
                Some(outcome) => return outcome.map(|_| ()),
                None => std::thread::yield_now(),
            }
        }
    };
    let Err(EngineError::NotFinite(reason)) = redeemed(-1.0) else { panic!("served infinities") };
    let found = format!("{name}: element 7 leaves the range of f16");
    assert!(reason.contains(&found) && reason.contains("--dtype"), "{reason}");
    assert_eq!(redeemed(0.5), Ok(()));
}

/// Factors of a wider type were rounded to f16 without a look at what became of them.
#[test]
fn a_factor_beyond_the_range_of_the_products_is_refused_and_names_the_tensor() {
    let config = soups::config(40, 24, 90, true);
    for side in 0..2 {
        let mut soup = soups::soup(4, config.clone(), Dtype::F16, None, &[Kind::Adapter]);
        let Owned::Adapter(adapter) = &mut soup.backbones[0] else { panic!("no adapter") };
        let (module, lora) = adapter.modules.iter_mut().nth(2).unwrap();
        let tensor = format!("{module}.weight");
        let factor = if side == 0 { &mut lora.down } else { &mut lora.up };
        let mut values = factor.to_f32();
        let (at, shape) = (values.len() - 1, factor.shape().to_vec());
        values[at] = -70_000.0;
        *factor = soups::stored(&values, &shape, Dtype::F32);
        let open = |mode| {
            let plan = SoupPlan::new(&soup, &config).unwrap();
            let device = Emulator::new(1 << 28, false);
            let (config, digest) = (config.clone(), "digest".to_owned());
            let opened = CudaBackend::with_plan(plan, config, digest, device, &options(mode));
            opened.err().map(|error| error.to_string())
        };
        for mode in [MergeMode::Mixed, MergeMode::Auto] {
            let error = open(mode).expect("a refusal");
            let found = format!("factors of {tensor} hold -70000, which leaves the range of f16");
            assert!(error.contains(&found) && error.contains("--merge-mode fused"), "{error}");
        }
        assert_eq!(open(MergeMode::Fused), None);
    }
}
