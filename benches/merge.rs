//! Speed of merging whole models, against this machine's copy bandwidth measured in the same run.
//!
//! `cargo bench --bench merge -- [--dir DIR] [--reps N]` prints JSON. Models have SmolLM2-135M's
//! shapes and seeded random weights; they are written as checkpoints under DIR (kept when given,
//! so that other programs can be timed on the same files) and merged from their memory maps into a
//! recycled slab. Bytes of a merge: one read per source, one write.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    hint::black_box,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use ladle::{
    kernels::{Dtype, HostTensor},
    merge::{
        Fetch, FusedCache, FusedOptions, Merger, SoupPlan,
        plan::{Change, Ingredient, Ingredients, Tensors},
        slab::SlabPool,
    },
    model::config::ModelConfig,
    preference::{Coefficients, ModelKey},
    simd::Isa,
    soup::{
        LoraModule, TensorSpec, WeightError,
        checkpoint::{Checkpoint, write_checkpoint},
    },
};
use rayon::prelude::*;
use serde_json::{Value, json};

const BACKBONES: usize = 4;
const RANK: usize = 16;
const SEED: u64 = 20_261_121;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let reps = option("--reps").map_or(Ok(15), |reps| reps.parse())?;
    let scratch = tempfile::tempdir()?;
    let dir = option("--dir").map_or(scratch.path().to_owned(), PathBuf::from);

    let mut merges = Vec::new();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let models = checkpoints(&dir.join(dtype.to_string()), dtype)?;
        for n in 2..=BACKBONES {
            merges.push(full(&models[..n], dtype, reps)?);
        }
    }
    let bf16 = checkpoints(&dir.join("bf16"), Dtype::Bf16)?;
    let report = json!({
        "bench": "merge",
        "level": Isa::chosen().to_string(),
        "threads": rayon::current_num_threads(),
        "reps": reps,
        "seed": SEED,
        "full": merges,
        "lora": lora(&bf16[0], reps)?,
        "first_use": first_use(&bf16[..3])?,
    });
    println!("{report:#}");
    Ok(())
}

/// Something to time, and its name.
type Variant<'a> = (String, Box<dyn FnMut() + 'a>);

/// Milliseconds of every variant, `reps` rounds of each in turn, so that a noisy neighbour meets
/// all of them alike; the first round is not counted.
fn rounds(reps: usize, mut variants: Vec<Variant<'_>>) -> BTreeMap<String, Vec<f64>> {
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in 0..=reps {
        for (name, run) in &mut variants {
            let start = Instant::now();
            run();
            let elapsed = start.elapsed().as_secs_f64() * 1e3;
            if round > 0 {
                times.entry(name.clone()).or_default().push(elapsed);
            }
        }
    }
    times
}

/// A merge on every instruction set of this machine, under its name; the best is `fast`.
fn sets<'a>(fast: &'a Merger, merge: &'a dyn Fn(&Merger)) -> Vec<Variant<'a>> {
    let (best, mut variants) = (Isa::chosen().vectors(), Vec::new());
    for &isa in Isa::available().iter().filter(|isa| isa.vectors() == **isa) {
        let name = if isa == best { "fast".to_owned() } else { isa.to_string() };
        let merger = fast.clone().with_isa(isa);
        variants.push((name, Box::new(move || merge(&merger)) as Box<dyn FnMut()>));
    }
    variants
}

/// Slowdown of each other instruction set relative to the best.
fn slower(times: &BTreeMap<String, Vec<f64>>) -> BTreeMap<String, f64> {
    let others = Isa::available().iter().map(Isa::to_string);
    let ratio = |name: String| {
        let own = times.get(&name)?;
        let ratios = own.iter().zip(&times["fast"]).map(|(own, fast)| own / fast);
        Some((name, round(median(ratios))))
    };
    others.filter_map(ratio).collect()
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// n full checkpoints into one.
fn full(models: &[Model], dtype: Dtype, reps: usize) -> Result<Value> {
    let soup = Ingredients {
        base: models[0].tensors(),
        sft: None,
        backbones: models.iter().map(|model| Ingredient::Full(model.tensors())).collect(),
        answer_only: false,
    };
    let plan = SoupPlan::new(soup, &models[0].config)?;
    let c = coefficients(models.len());
    let fast = Merger::new(plan, None)?;
    let size = fast.layout().bytes();
    let pool = SlabPool::new(size, 3);
    let (mut source, mut target) = (pool.take()?, pool.take()?);
    source.as_mut().fill(1);
    let slab = RefCell::new(pool.take()?);
    let merge = |merger: &Merger| {
        merger.merge(&c, &mut slab.borrow_mut(), None).expect("a merge of checked weights");
    };
    let mut variants = sets(&fast, &merge);
    let copied = || copy_streaming(source.as_ref(), target.as_mut());
    variants.push(("copy".to_owned(), Box::new(copied)));
    let fresh = || {
        let mut fresh = SlabPool::new(size, 1).take().expect("memory for a slab");
        fast.merge(&c, &mut fresh, None).expect("a merge of checked weights");
        black_box(&fresh);
    };
    variants.push(("fresh".to_owned(), Box::new(fresh)));
    let times = rounds(reps, variants);
    let bytes = (models.len() + 1) * size;
    let rate = |bytes: usize, name: &str| bytes as f64 / median(times[name].iter().copied()) / 1e6;
    let ratio = |name: &str, over: &str| {
        median(times[over].iter().zip(&times[name]).map(|(over, own)| over / own))
    };
    Ok(json!({
        "dtype": dtype.to_string(),
        "n": models.len(),
        "bytes": bytes,
        "merge_ms": round(median(times["fast"].iter().copied())),
        "merge_gb_s": round(rate(bytes, "fast")),
        "fresh_memory_gb_s": round(rate(bytes, "fresh")),
        "copy_gb_s": round(rate(2 * size, "copy")),
        "merge_over_copy": round(ratio("fast", "copy") * bytes as f64 / (2 * size) as f64),
        "times_slower": slower(&times),
        "fresh_times_slower": round(1.0 / ratio("fresh", "fast")),
        "raw_ms": times,
    }))
}

/// A base and three adapters of rank 16 on all linear layers into one model.
fn lora(base: &Model, reps: usize) -> Result<Value> {
    let adapters: Vec<BTreeMap<String, LoraModule>> =
        (0..3).map(|i| adapter(&base.config, SEED + 100 + i)).collect::<Result<_>>()?;
    let saved = Tensors::new();
    let change = |modules| Ingredient::Adapter(Change { modules, saved: &saved });
    let soup = Ingredients {
        base: base.tensors(),
        sft: None,
        backbones: adapters.iter().map(change).collect(),
        answer_only: false,
    };
    let fast = Merger::new(SoupPlan::new(soup, &base.config)?, None)?;
    let c = coefficients(3);
    let pool = SlabPool::new(fast.layout().bytes(), 1);
    let slab = RefCell::new(pool.take()?);
    let merge = |merger: &Merger| {
        merger.merge(&c, &mut slab.borrow_mut(), None).expect("a merge of checked weights");
    };
    let times = rounds(reps, sets(&fast, &merge));
    Ok(json!({
        "adapters": 3,
        "rank": RANK,
        "merge_ms": round(median(times["fast"].iter().copied())),
        "times_slower": slower(&times),
        "raw_ms": times,
    }))
}

/// From an unknown preference to a decoder, through the cache: the first ones map new slabs, later
/// ones recycle.
fn first_use(models: &[Model]) -> Result<Value> {
    let soup = Ingredients {
        base: models[0].tensors(),
        sft: None,
        backbones: models.iter().map(|model| Ingredient::Full(model.tensors())).collect(),
        answer_only: false,
    };
    let config = &models[0].config;
    let plan = SoupPlan::new(soup, config)?;
    let budget = 2 * Merger::new(plan.clone(), None)?.layout().bytes();
    let threads = rayon::current_num_threads();
    let options = FusedOptions { budget, dtype: None, threads, pace: None };
    let cache = FusedCache::open(plan, config.clone(), &options, |_| ())?;
    let mut times = Vec::new();
    for i in 0..8 {
        let first = f64::from(i) * 0.1;
        let c = Coefficients { backbones: vec![first, 0.3, 0.7 - first], sft: 0.0 };
        let start = Instant::now();
        match cache.get(&ModelKey::of(&c)) {
            Fetch::Building(ticket) => drop(black_box(ticket.wait())),
            other => anyhow::bail!("a new key is {other:?}"),
        }
        times.push(round(start.elapsed().as_secs_f64() * 1e3));
    }
    Ok(json!({"n": models.len(), "slabs": 2, "ms": times}))
}

fn coefficients(n: usize) -> Coefficients {
    let backbones = [[1.4, -0.4, 0.0, 0.0], [1.1, -0.4, 0.3, 0.0], [0.9, -0.4, 0.3, 0.2]];
    Coefficients { backbones: backbones[n - 2][..n].to_vec(), sft: 0.0 }
}

/// All threads copy with streaming stores: the most that this machine moves.
fn copy_streaming(source: &[u8], target: &mut [u8]) {
    const CHUNK: usize = 256 << 10;
    target.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK)).for_each(|(target, source)| {
        #[cfg(target_arch = "x86_64")]
        if target.as_ptr().addr().is_multiple_of(16) && target.len().is_multiple_of(64) {
            use std::arch::x86_64::{
                __m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128,
            };
            for (to, from) in target.chunks_exact_mut(64).zip(source.chunks_exact(64)) {
                let to = to.as_mut_ptr().cast::<__m128i>();
                let from = from.as_ptr().cast::<__m128i>();
                // SAFETY: both hold 64 bytes, the target is aligned, a prefetch never faults.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>().wrapping_add(2048));
                    for i in 0..4 {
                        _mm_stream_si128(to.add(i), _mm_loadu_si128(from.add(i)));
                    }
                }
            }
            // SAFETY: SSE is part of x86-64.
            unsafe { _mm_sfence() };
            return;
        }
        target.copy_from_slice(source);
    });
}

struct Model {
    checkpoint: Checkpoint,
    config: ModelConfig,
}

impl Model {
    fn tensors(&self) -> &Tensors {
        self.checkpoint.tensors()
    }
}

fn smollm2() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152,
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2,
    })
}

/// The seeded models of one storage type, written unless they are there.
fn checkpoints(dir: &Path, dtype: Dtype) -> Result<Vec<Model>> {
    (0..BACKBONES)
        .map(|i| {
            let dir = dir.join(format!("model{i}"));
            if !dir.join("config.json").is_file() {
                write_model(&dir, dtype, SEED + i as u64)?;
            }
            let checkpoint = Checkpoint::open(&dir)?;
            let config = ModelConfig::from_json(checkpoint.config())?;
            Ok(Model { checkpoint, config })
        })
        .collect()
}

fn write_model(dir: &Path, dtype: Dtype, seed: u64) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let config = smollm2();
    let specs: Vec<TensorSpec> = ModelConfig::from_json(&config)?
        .tensors()
        .into_iter()
        .map(|(name, shape)| TensorSpec { name, dtype, shape })
        .collect();
    let mut state = seed;
    write_checkpoint(dir, &specs, u64::MAX, |spec| {
        Ok::<_, WeightError>(random(&mut state, dtype, &spec.shape))
    })?;
    std::fs::write(dir.join("config.json"), config.to_string())?;
    Ok(())
}

/// Uniform in ±0.05, by SplitMix64.
fn random(state: &mut u64, dtype: Dtype, shape: &[usize]) -> HostTensor {
    let mut next = || {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    HostTensor::rounded(&values, dtype, shape.to_vec()).expect("as many as asked for")
}

fn adapter(config: &ModelConfig, seed: u64) -> Result<BTreeMap<String, LoraModule>> {
    let mut state = seed;
    let mut modules = BTreeMap::new();
    for (name, shape) in config.tensors() {
        if let Some(module) = name.strip_suffix("_proj.weight") {
            let down = random(&mut state, Dtype::F32, &[RANK, shape[1]]);
            let up = random(&mut state, Dtype::F32, &[shape[0], RANK]);
            modules.insert(format!("{module}_proj"), LoraModule { down, up, scale: 2.0 });
        }
    }
    Ok(modules)
}
