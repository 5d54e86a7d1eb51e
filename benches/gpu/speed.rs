//! Speed of merges, of decoding, and of the first token of preferences that were not asked for
//! before.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ladle::{
    config::MergeMode,
    engine::{
        CudaBackend, CudaOptions, EngineConfig, EngineError, Event, GenerateRequest, StepLimits,
        backend::Backend, cost::Machine, start,
    },
    kernels::{Batch, KV_BLOCK, RowCoefficients, Segment, cuda::Device},
    merge::Fetch,
    preference::{Coefficients, ModelKey},
    sampling::SamplingParams,
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};

use crate::{
    Scale,
    soup::{Kind, Pool},
};

pub fn all<D: Device>(device: &Arc<D>, scale: &Scale, tokenizer: &Path) -> Value {
    let mut pool = Pool::new(ladle::kernels::Dtype::Bf16, scale.pool, 0.02);
    let merges: Vec<Value> =
        (2..=4).map(|n| merge(device, scale, &mut pool, Kind::Full, n)).collect();
    let lora = Kind::Lora { rank: scale.rank };
    let lora_merge = merge(device, scale, &mut pool, lora, 3);
    let mut decodes = Vec::new();
    for kind in [lora, Kind::Full] {
        decodes.extend(decode(device, scale, &mut pool, kind));
    }
    let first =
        [lora, Kind::Full].map(|kind| first_token(device, scale, &mut pool, kind, tokenizer));
    json!({"merge": merges, "lora_merge": lora_merge, "decode": decodes, "first_token": first})
}

fn options(mode: MergeMode, scale: &Scale) -> CudaOptions {
    let most = scale.batches.iter().max().copied().unwrap_or(1);
    let tokens = most * (scale.prompt + scale.steps + KV_BLOCK).next_multiple_of(KV_BLOCK);
    let model = &scale.model;
    let token = 2 * model.layers * model.kv_heads * model.head_dim * 2;
    CudaOptions {
        merge_mode: mode,
        kv_bytes: Some(tokens * token),
        step_rows: 512,
        logit_rows: most,
        ..CudaOptions::default()
    }
}

/// The `i`-th of many coefficients of `n` backbones; none of them 0, c_sft included.
fn nth(n: usize, i: usize) -> Coefficients {
    let raw: Vec<f64> = (0..n).map(|j| 1.0 + ((i + 1) * (j + 3) * 7 % 97) as f64).collect();
    let sum: f64 = raw.iter().sum::<f64>() / 1.1;
    let backbones: Vec<f64> = raw.iter().map(|value| value / sum).collect();
    Coefficients { sft: 1.0 - backbones.iter().sum::<f64>(), backbones }
}

/// Merged weights, waiting for them.
pub fn lease<D: Device>(
    backend: &mut CudaBackend<D>,
    c: &Coefficients,
) -> <CudaBackend<D> as Backend>::Lease {
    merged(backend, c).unwrap()
}

/// As [`lease`], but a refused merge is an error.
pub fn merged<D: Device>(
    backend: &mut CudaBackend<D>,
    c: &Coefficients,
) -> Result<<CudaBackend<D> as Backend>::Lease, EngineError> {
    let ticket = match backend.fetch(&ModelKey::of(c)) {
        Fetch::Ready(lease) => return Ok(lease),
        Fetch::Building(ticket) => ticket,
        Fetch::NoRoom => panic!("no room for merged weights"),
    };
    loop {
        match backend.redeem(&ticket) {
            Some(outcome) => return outcome,
            None => std::thread::sleep(Duration::from_micros(20)),
        }
    }
}

fn seconds(mut f: impl FnMut()) -> f64 {
    let begin = Instant::now();
    f();
    begin.elapsed().as_secs_f64()
}

/// Seconds of whole merges at new coefficients, all terms read.
fn merge<D: Device>(
    device: &Arc<D>,
    scale: &Scale,
    pool: &mut Pool,
    kind: Kind,
    n: usize,
) -> Value {
    let plan = pool.plan(&scale.model, kind, n);
    let options = options(MergeMode::Fused, scale);
    let config = scale.model.clone();
    let mut backend =
        CudaBackend::with_plan(plan, config, "merge".into(), device.clone(), &options).unwrap();
    let bytes = backend.facts().footprint.merge_bytes;
    // The first ones also allocate.
    let models = backend.facts().merged_models;
    (0..models).for_each(|i| drop(lease(&mut backend, &nth(n, i))));
    let mut one = |i| seconds(|| drop(lease(&mut backend, &nth(n, models + i))));
    let all: Vec<f64> = (0..scale.merges).map(&mut one).collect();
    let best = all.iter().copied().fold(f64::INFINITY, f64::min);
    json!({
        "soup": format!("{kind:?}"), "backbones": n, "bytes": bytes, "seconds": all,
        "best_bytes_per_s": bytes / best,
    })
}

/// Prefills `sequences` prompts and decodes; what each row's model is: one merged model, or its own
/// coefficients. Returns the seconds of every decode step.
fn decode_steps<D: Device>(
    backend: &mut CudaBackend<D>,
    scale: &Scale,
    sequences: usize,
    merged: Option<&<CudaBackend<D> as Backend>::Lease>,
    terms: &[Vec<f32>],
) -> Vec<f64> {
    let blocks = (scale.prompt + scale.steps).div_ceil(KV_BLOCK);
    let table = |s: usize| ((s * blocks) as u32..((s + 1) * blocks) as u32).collect::<Vec<u32>>();
    let batch = |sequences: std::ops::Range<usize>, cached: usize, count: usize| {
        let mut batch = Batch::default();
        let mut values = Vec::new();
        for s in sequences {
            let start = batch.tokens.len();
            for position in cached..cached + count {
                batch.tokens.push((s * 31 + position * 7) as u32 % scale.model.vocab_size as u32);
                batch.positions.push(position as u32);
                values.extend(&terms[s % terms.len()]);
            }
            let rows = start..start + count;
            batch.outputs.push(rows.end - 1);
            batch.segments.push(Segment { rows, cached, blocks: table(s) });
        }
        if merged.is_none() {
            batch.coefficients = Some(RowCoefficients { terms: terms[0].len(), values });
        }
        batch
    };
    for s in 0..sequences {
        backend.forward(merged, &batch(s..s + 1, 0, scale.prompt)).unwrap();
    }
    let mut step = |i: usize| {
        let batch = batch(0..sequences, scale.prompt + i, 1);
        seconds(|| drop(backend.forward(merged, &batch).unwrap()))
    };
    (0..scale.steps).map(&mut step).collect()
}

fn decode<D: Device>(device: &Arc<D>, scale: &Scale, pool: &mut Pool, kind: Kind) -> Vec<Value> {
    let plan = pool.plan(&scale.model, kind, 3);
    let options = options(MergeMode::Auto, scale);
    let config = scale.model.clone();
    let mut backend =
        CudaBackend::with_plan(plan, config, "decode".into(), device.clone(), &options).unwrap();
    let one = lease(&mut backend, &nth(3, 0));
    let weights = backend.facts().footprint.fused.bytes;
    let mut results = Vec::new();
    for &sequences in &scale.batches {
        let distinct: Vec<Vec<f32>> =
            (0..sequences).map(|i| backend.terms(&ModelKey::of(&nth(3, i)))).collect();
        for (what, merged) in [("one, fused", Some(&one)), ("all distinct, mixed", None)] {
            let mut all = decode_steps(&mut backend, scale, sequences, merged, &distinct);
            all.sort_by(f64::total_cmp);
            let median = all[all.len() / 2];
            results.push(json!({
                "soup": format!("{kind:?} x 3"), "sequences": sequences, "preferences": what,
                "step_seconds": all, "tokens_per_s": sequences as f64 / median,
                "fused_weight_bytes_per_s": weights / median,
            }));
        }
    }
    results
}

/// Time to the first token of new preferences while others decode, through the engine.
fn first_token<D: Device>(
    device: &Arc<D>,
    scale: &Scale,
    pool: &mut Pool,
    kind: Kind,
    tokenizer: &Path,
) -> Value {
    let plan = pool.plan(&scale.model, kind, 3);
    let options = options(MergeMode::Auto, scale);
    let config = scale.model.clone();
    let backend =
        CudaBackend::with_plan(plan, config, "load".into(), device.clone(), &options).unwrap();
    let limits = StepLimits { lanes: 64, ..EngineConfig::default().limits };
    let engine = EngineConfig { limits, machine: Machine::GPU, ..EngineConfig::default() };
    let engine = start(backend, Tokenizer::from_dir(tokenizer).unwrap(), engine).unwrap();
    let load = scale.batches.iter().copied().max().unwrap_or(1).min(32);
    let request = |i: usize, tokens: usize| {
        let prompt = (0..scale.prompt as u32).map(|t| (t * 7 + i as u32) % 250).collect();
        GenerateRequest {
            sampling: SamplingParams::greedy(),
            ignore_eos: true,
            ..GenerateRequest::new(prompt, nth(3, i), tokens)
        }
    };
    let running: Vec<_> =
        (0..load).map(|i| engine.submit(request(i % 4, scale.steps)).unwrap()).collect();
    let first = |i: usize| {
        seconds(|| {
            let mut one = engine.submit(request(1000 + i, 2)).unwrap();
            while let Some(event) = one.blocking_next() {
                match event {
                    Event::Token(_) => break,
                    Event::Failed(error) => panic!("{error}"),
                    _ => {}
                }
            }
        })
    };
    let all: Vec<f64> = (0..scale.merges).map(first).collect();
    drop(running);
    json!({"soup": format!("{kind:?} x 3"), "running": load, "seconds": all})
}
