//! A request that can be repeated (temperature 0, or a seed) gets the same answer to the bit: alone,
//! beside strangers, after whatever ran before, after a restart, however its prompt is cut, on each
//! kernel set of the machine.

#[path = "support/answers.rs"]
#[allow(dead_code)] // its other users need more of it
mod answers;
#[path = "common/soup.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use answers::{Answer, collect, run, settled};
use common::{copy_tree, fixture, options};
use ladle::{
    config::MergeMode,
    engine::{
        Combine, CpuBackend, CpuOptions, EngineConfig, EngineHandle, GenerateRequest, Generation,
        Mode, Pin, StepLimits, start,
    },
    files::file_sha256,
    kernels::{BlockType, Dtype, HostTensor, KvShape},
    model::config::ModelConfig,
    preference::{Alpha, Coefficients, Preference},
    sampling::SamplingParams,
    simd::Isa,
    soup::{
        Checkpoint, OpenOptions, Soup, TensorSpec, WeightError,
        checkpoint::{SHARD_BYTES, write_checkpoint},
    },
    tokenizer::Tokenizer,
};
use tempfile::TempDir;

/// All that a client can see of an answer, log-probabilities as bits.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: Mode,
    text: String,
    tokens: Vec<(u32, Option<u32>)>,
    top: Vec<(u32, u32)>,
}

fn seen(answer: &Answer) -> Seen {
    assert_eq!(answer.failed, None);
    let prompt = answer.prompt.iter().map(|t| (t.id, Some(t.logprob.to_bits())));
    let tokens = answer.tokens.iter().map(|t| (t.id, t.logprob.map(f32::to_bits)));
    let top = answer.prompt.iter().flat_map(|t| &t.top);
    let top = top.chain(answer.tokens.iter().flat_map(|t| &t.top));
    Seen {
        mode: answer.started.unwrap().mode,
        text: answer.text(),
        tokens: prompt.chain(tokens).collect(),
        top: top.map(|&(id, value)| (id, value.to_bits())).collect(),
    }
}

fn nth(soup: &Soup, n: usize) -> Coefficients {
    let weights: Vec<f64> =
        (0..soup.mixing.len()).map(|i| 1.0 + ((n + 1) * (i + 3) * 7 % 11) as f64).collect();
    let preference = Preference::new(&weights, soup.mixing.len()).unwrap();
    soup.mixing.solve(&preference, &Alpha::Scalar((n % 3) as f64 * 0.25)).coefficients
}

fn prompt(n: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| 20 + ((n * 37 + i * 11) % 400) as u32).collect()
}

/// A request to one of many models; where they are active on the answer only, late in the prompt.
fn of(soup: &Soup, prompt: Vec<u32>, model: usize, max_tokens: usize) -> GenerateRequest {
    let from = soup.active_from.is_answer().then_some(prompt.len() * 3 / 4);
    GenerateRequest {
        active_from: from,
        ..GenerateRequest::new(prompt, nth(soup, model), max_tokens)
    }
}

/// Requests that can be repeated, of every kind.
fn repeatable(soup: &Soup) -> Vec<GenerateRequest> {
    let sampled =
        |seed| SamplingParams { seed: Some(seed), logprobs: Some(3), ..SamplingParams::default() };
    let request = |n: usize, sampling: SamplingParams| GenerateRequest {
        sampling,
        ignore_eos: true,
        ..of(soup, prompt(n, 9 + 17 * n % 60), n % 3, 24)
    };
    let greedy = SamplingParams { logprobs: Some(3), ..SamplingParams::greedy() };
    let weights = vec![1.0 / soup.mixing.len() as f64; soup.mixing.len()];
    vec![
        request(0, greedy.clone()),
        request(1, greedy.clone()),
        request(2, sampled(5)),
        request(0, SamplingParams { top_p: 0.9, temperature: 1.3, ..sampled(6) }),
        request(1, SamplingParams { repetition_penalty: 1.2, top_k: Some(40), ..sampled(7) }),
        request(4, SamplingParams { min_p: 0.02, frequency_penalty: 0.5, ..sampled(8) }),
        GenerateRequest { prompt_logprobs: Some(2), ..request(3, greedy.clone()) },
        GenerateRequest { combine: Combine::Logits(weights), ..request(5, greedy) },
    ]
}

/// Requests that nobody can repeat, of the same models and prompts and of others.
fn stranger(soup: &Soup, n: usize) -> GenerateRequest {
    let (model, start) =
        if n.is_multiple_of(2) { (n / 2 % 3, n / 2 % 6) } else { (3 + n % 7, 6 + n) };
    let length = if n.is_multiple_of(2) { 9 + 17 * start % 60 } else { 5 + n * 13 % 70 };
    GenerateRequest { ignore_eos: true, ..of(soup, prompt(start, length), model, 20 + n * 7 % 40) }
}

/// How an engine is set up; what an answer must not depend on is varied, too.
#[derive(Clone)]
struct Setup {
    isa: Isa,
    mode: MergeMode,
    pinned: Vec<Pin>,
    threads: usize,
    limits: StepLimits,
    kv_bytes: usize,
    merged_bytes: usize,
}

impl Setup {
    /// Everything computed in one go, with room for all.
    fn roomy(isa: Isa, mode: MergeMode, pinned: Vec<Pin>) -> Self {
        let limits = StepLimits {
            step_tokens: 256,
            prefill_chunk: 128,
            lanes: 32,
            ..EngineConfig::default().limits
        };
        Self { isa, mode, pinned, threads: 2, limits, kv_bytes: 8 << 20, merged_bytes: 16 << 20 }
    }

    /// Short chunks, and so little memory that requests are computed again and models evicted.
    fn tight(&self, soup: &Soup) -> Self {
        let limits = StepLimits { step_tokens: 64, prefill_chunk: 16, ..self.limits };
        let model: usize = soup.base.tensors().values().map(|t| t.bytes().len() + 64).sum();
        // Fused engines keep θ_sft for the prompts of answer-only soups.
        let prompts = usize::from(soup.active_from.is_answer());
        let free = if self.mode == MergeMode::Fused { 3 + prompts } else { 2 };
        let merged_bytes = model * (self.pinned.len() + free);
        let config = ModelConfig::from_json(soup.base.config()).unwrap();
        let narrow = soup.base.tensors().values().any(|t| t.dtype() != Dtype::F32);
        let kv = KvShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            blocks: 0,
            dtype: if narrow { Dtype::Bf16 } else { Dtype::F32 }.into(),
        };
        let kv_bytes = 20 * kv.block_bytes().unwrap();
        Self { threads: 1, limits, kv_bytes, merged_bytes, ..self.clone() }
    }

    fn start(&self, soup: &Soup) -> EngineHandle {
        let options = CpuOptions {
            isa: Some(self.isa),
            threads: Some(self.threads),
            kv_bytes: self.kv_bytes,
            merged_bytes: self.merged_bytes,
            merge_mode: self.mode,
            ..CpuOptions::default()
        };
        let config = EngineConfig {
            limits: self.limits,
            merge_mode: self.mode,
            pinned: self.pinned.clone(),
            ..EngineConfig::default()
        };
        let tokenizer = Tokenizer::from_dir(&soup.base_dir).unwrap();
        start(CpuBackend::open(soup, &options).unwrap(), tokenizer, config).unwrap()
    }
}

/// What happened while requests were repeated: without it a test would show nothing.
#[derive(Default)]
struct Happened {
    preempted: u64,
    fused: u64,
    mixed: u64,
    reused: u64,
}

/// Repeats all requests alone, beside sixteen strangers, after them, and on engines that are set up
/// anew; `rounds` times in company.
fn repeat(what: &str, soup: &Soup, setup: &Setup, rounds: usize) -> (Vec<Seen>, Happened) {
    let requests = repeatable(soup);
    let alone: Vec<Seen> =
        requests.iter().map(|request| seen(&run(&setup.start(soup), request.clone()))).collect();

    let mut happened = Happened::default();
    for setup in [setup.clone(), setup.tight(soup)] {
        let engine = setup.start(soup);
        // One preference becomes hot: `auto` may merge it.
        (0..20).for_each(|_| drop(run(&engine, stranger(soup, 0))));
        for round in 0..rounds {
            let mut strangers: Vec<Generation> = Vec::new();
            let mut repeated = Vec::new();
            for n in 0..16 {
                strangers.push(engine.submit(stranger(soup, round * 16 + n)).unwrap());
                // Each in other company, and each at another time of it.
                let turn = (n + round) % 2 == 0;
                if let Some(index) = turn.then_some(n / 2) {
                    repeated.push((index, engine.submit(requests[index].clone()).unwrap()));
                }
            }
            for (index, generation) in repeated {
                assert_eq!(seen(&collect(generation)), alone[index], "{what}: request {index}");
            }
            // Half of the strangers leave in the middle of their answers.
            strangers.truncate(8);
            strangers.into_iter().for_each(|generation| drop(collect(generation)));
        }
        for (request, alone) in requests.iter().zip(&alone) {
            assert_eq!(&seen(&run(&engine, request.clone())), alone, "{what}: alone again");
        }
        settled(&engine);
        let stats = engine.stats();
        happened.preempted += stats.preempted;
        happened.fused += stats.fused_forwards;
        happened.mixed += stats.mixed_forwards;
        happened.reused += stats.cached_tokens;
    }
    (alone, happened)
}

/// Answers in each mode, repeated; the modes of `auto` are those of the engines that have no choice.
/// Returns how often requests were computed again in `auto`.
fn repeat_in_all_modes(name: &str, soup: &Soup, isa: Isa, rounds: usize) -> u64 {
    let what = |how: &str| format!("{name}, {}, {how}", isa.name());
    let pin = |n: usize| Pin { name: format!("{n}"), coefficients: nth(soup, n) };
    let setup = |mode, pins: usize| Setup::roomy(isa, mode, (0..pins).map(pin).collect());

    let (auto, Happened { preempted, reused, .. }) =
        repeat(&what("auto"), soup, &setup(MergeMode::Auto, 0), rounds);
    assert!(reused > 0, "{}", what("no prefix was reused"));
    let (mixed, _) = repeat(&what("mixed"), soup, &setup(MergeMode::Mixed, 0), 1);
    assert_eq!(auto, mixed, "{}", what("auto and mixed"));
    let (fused, happened) = repeat(&what("fused"), soup, &setup(MergeMode::Fused, 0), 1);
    assert_eq!(happened.mixed, 0);
    let (pinned, happened) = repeat(&what("pinned"), soup, &setup(MergeMode::Auto, 2), rounds);
    assert!(happened.fused > 0 && happened.mixed > 0);
    for (index, request) in repeatable(soup).iter().enumerate() {
        let weights = request.combine == Combine::Weights;
        let is_pinned = weights && (0..2).any(|n| request.coefficients == nth(soup, n));
        let expected = if is_pinned { &fused } else { &mixed };
        assert_eq!(pinned[index], expected[index], "{}", what("pinned"));
    }
    assert!(mixed.iter().all(|seen| seen.mode == Mode::Mixed));
    assert!(fused.iter().all(|seen| seen.mode == Mode::Fused));
    preempted
}

/// The soup with the weights of its checkpoints in another storage type.
fn stored_as(dtype: Dtype, name: &str) -> (Soup, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    for part in ["soup-tiny", "soup-tiny-full", "soup-tiny-mixed"] {
        copy_tree(&fixture(part), &dir.path().join(part));
    }
    convert(dir.path(), dtype);
    list_digests(&dir.path().join(name));
    let options = OpenOptions { verify_digests: false, ..options() };
    (Soup::open(&dir.path().join(name), &options).unwrap(), dir)
}

/// Lists the digests of the soup's weight files anew.
fn list_digests(soup: &Path) {
    let manifest = soup.join("soup.toml");
    let mut table: toml::Table = toml::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
    let digests = |dir: &str, prefix: &str| -> Vec<(String, toml::Value)> {
        let files = fs::read_dir(soup.join(dir)).unwrap().map(|entry| entry.unwrap().path());
        let weights = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
        let digest = |path: PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            (format!("{prefix}{name}"), file_sha256(&path).unwrap().into())
        };
        weights.map(digest).collect()
    };
    let base = table["base"].as_table_mut().unwrap();
    let of_base = digests(base["path"].as_str().unwrap(), "");
    base.insert("sha256".to_owned(), toml::Table::from_iter(of_base).into());
    let backbones = table["backbones"].as_array().unwrap().iter();
    let parts = backbones.chain(table.get("sft")).map(|part| part["path"].as_str().unwrap());
    let all = parts.flat_map(|path| digests(path, &format!("{path}/")));
    let all = toml::Table::from_iter(all);
    table.insert("sha256".to_owned(), all.into());
    fs::write(&manifest, toml::to_string(&table).unwrap()).unwrap();
}

/// Rewrites every checkpoint below `dir`: in a quantised type all matrices, in others all tensors.
fn convert(dir: &Path, dtype: Dtype) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            convert(&path, dtype);
        }
    }
    if !dir.join("config.json").exists() {
        return;
    }
    let tensors = Checkpoint::open(dir).unwrap().tensors().clone();
    let spec = |(name, tensor): (&String, &HostTensor)| TensorSpec {
        name: name.clone(),
        dtype: if dtype.blocks().is_some() && tensor.shape().len() == 1 {
            tensor.dtype()
        } else {
            dtype
        },
        shape: tensor.shape().to_vec(),
    };
    let specs: Vec<_> = tensors.iter().map(spec).collect();
    let values: Vec<(String, Vec<f32>)> =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.to_f32())).collect();
    drop(tensors);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("model") {
            fs::remove_file(path).unwrap();
        }
    }
    write_checkpoint(dir, &specs, SHARD_BYTES, |spec| {
        let (_, values) = values.iter().find(|(name, _)| *name == spec.name).unwrap();
        let tensor = HostTensor::rounded(values, spec.dtype, spec.shape.clone()).unwrap();
        Ok::<_, WeightError>(tensor)
    })
    .unwrap();
}

#[test]
fn two_hundred_repeated_requests_get_one_answer_each() {
    let soup = common::open("soup-tiny");
    // Twice 13 rounds of 8 requests in company, and more alone.
    let preempted = repeat_in_all_modes("soup-tiny", &soup, Isa::chosen(), 13);
    assert!(preempted > 0, "nothing was computed again");
}

#[test]
fn answers_repeat_on_every_kernel_set_and_for_every_kind_of_soup() {
    let mut preempted = 0;
    for &isa in Isa::available() {
        for name in ["soup-tiny", "soup-tiny-full", "soup-tiny-mixed"] {
            let (narrow, _dir) = stored_as(Dtype::Bf16, name);
            preempted += repeat_in_all_modes(&format!("{name} in bf16"), &narrow, isa, 1);
        }
        let full = common::open("soup-tiny-full");
        preempted += repeat_in_all_modes("soup-tiny-full", &full, isa, 1);
        // Nothing is merged into quantised weights: `auto` is mixed.
        let (quantised, _dir) = stored_as(Dtype::Quantised(BlockType::Q8_0), "soup-tiny");
        let what = format!("soup-tiny in q8_0, {}", isa.name());
        let auto = Setup::roomy(isa, MergeMode::Auto, Vec::new());
        let (seen, happened) = repeat(&what, &quantised, &auto, 1);
        assert!(seen.iter().all(|seen| seen.mode == Mode::Mixed) && happened.fused == 0);
    }
    assert!(preempted > 0, "nothing was computed again");
}

#[test]
fn an_evicted_mix_is_merged_to_the_same_bits_again() {
    let (soup, _dir) = stored_as(Dtype::Bf16, "soup-tiny-full");
    let setup = Setup::roomy(Isa::chosen(), MergeMode::Fused, Vec::new()).tight(&soup);
    let engine = setup.start(&soup);
    let requests = repeatable(&soup);
    let first: Vec<Seen> =
        requests.iter().map(|request| seen(&run(&engine, request.clone()))).collect();
    let mut missed = 0;
    for round in 0..4 {
        for n in 0..6 {
            drop(run(&engine, stranger(&soup, 2 * (round * 6 + n) + 1)));
        }
        for (request, first) in requests.iter().zip(&first) {
            let answer = run(&engine, request.clone());
            assert_eq!(&seen(&answer), first);
            let miss = answer.started.unwrap().cache;
            missed += usize::from(miss == Some(ladle::engine::CacheOutcome::Miss));
        }
    }
    assert!(missed >= 4, "nothing was evicted");
}

#[test]
fn answers_repeat_where_the_backbones_are_active_on_the_answer_only() {
    let soup = common::open("soup-tiny-answer");
    let pin = |n: usize| Pin { name: format!("{n}"), coefficients: nth(&soup, n) };
    let setup = |mode, pins: usize| Setup::roomy(Isa::chosen(), mode, (0..pins).map(pin).collect());
    let (auto, happened) = repeat("auto", &soup, &setup(MergeMode::Auto, 0), 3);
    assert!(happened.reused > 0 && happened.preempted > 0);
    let (mixed, _) = repeat("mixed", &soup, &setup(MergeMode::Mixed, 0), 1);
    assert_eq!(auto, mixed);
    let (fused, happened) = repeat("fused", &soup, &setup(MergeMode::Fused, 0), 1);
    assert_eq!(happened.mixed, 0);
    assert!(fused.iter().all(|seen| seen.mode == Mode::Fused));
    // Pinned models answer fused, on prompts in the mode of all others.
    let (pinned, happened) = repeat("pinned", &soup, &setup(MergeMode::Auto, 2), 3);
    assert!(happened.fused > 0 && happened.mixed > 0);
    let modes = |seen: &[Seen], mode| seen.iter().filter(|seen| seen.mode == mode).count();
    assert!(modes(&pinned, Mode::Fused) > 0 && modes(&pinned, Mode::Mixed) > 0);
}
