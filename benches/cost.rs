//! The cost model's predictions against the engine's own passes, on a soup that is served: for each
//! number of rows, merged weights (all requests share a mix) and per-row coefficients (every request
//! has its own).
//!
//! `cargo bench --bench cost -- --soup DIR [--threads N]` prints one JSON object. `prior_ms` is what
//! the model says before it has seen a pass, `predicted_ms` what it said in the engine.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use ladle::{
    engine::{
        CpuBackend, CpuOptions, EngineConfig, EngineStats, Event, ForwardReport, GenerateRequest,
        MergeMode, Mode, Observer, StepReport, backend::Backend, cost::CostModel, start,
    },
    import::{Store, default_models_dir},
    merge::CacheEvent,
    preference::{Alpha, Preference},
    soup::{OpenOptions, Soup},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};

/// Requests at once: rows of a decoding step.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Prompt of the decoding requests, and tokens they generate.
const PROMPT: usize = 32;
const TOKENS: usize = 24;
/// A long prompt, for the passes of its chunks.
const LONG: usize = 1024;
/// Passes that make a point.
const LEAST: usize = 3;

#[derive(Default)]
struct Passes(Mutex<Vec<ForwardReport>>);

impl Observer for Passes {
    fn step(&self, report: &StepReport, _: &EngineStats) {
        // Passes of a step that has several disturb nobody, but are not what is asked.
        if let [forward] = report.forwards.as_slice() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(*forward);
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let dir = PathBuf::from(option("--soup").unwrap_or_else(|| "backbones".to_owned()));
    let threads = option("--threads").map(|n| n.parse()).transpose().context("--threads")?;
    let models_dir = default_models_dir().context("set LADLE_HOME")?;
    let store = Store { models_dir, offline: true };
    let soup = store.open(&dir, OpenOptions { verify_digests: true, ..OpenOptions::default() })?;

    let modes = [MergeMode::Fused, MergeMode::Mixed];
    let mut runs = Vec::new();
    for mode in modes {
        runs.push(measure(&soup, mode, threads)?);
    }
    let report = json!({ "bench": "cost", "soup": soup.manifest.name, "runs": runs });
    println!("{report:#}");
    Ok(())
}

/// Runs the loads of one mode through an engine.
fn measure(soup: &Soup, merge_mode: MergeMode, threads: Option<usize>) -> Result<Value> {
    let merges: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let told = merges.clone();
    let options = CpuOptions {
        threads,
        merge_mode,
        on_cache_event: Some(Arc::new(move |event| {
            if let CacheEvent::Built { elapsed, .. } = event {
                told.lock().unwrap_or_else(PoisonError::into_inner).push(elapsed);
            }
        })),
        ..CpuOptions::default()
    };
    let backend = CpuBackend::open(soup, &options)?;
    let footprint = backend.facts().footprint;
    let passes = Arc::new(Passes::default());
    let config =
        EngineConfig { merge_mode, observer: Some(passes.clone()), ..EngineConfig::default() };
    let prior = CostModel::new(footprint, config.machine);
    let engine = start(backend, Tokenizer::from_dir(&soup.base_dir)?, config)?;

    let n = soup.mixing.len();
    let request = |index: usize, prompt: usize, tokens: usize| {
        let distinct = if merge_mode == MergeMode::Mixed { index } else { 0 };
        let weights: Vec<f64> =
            (0..n).map(|i| 1.0 + ((distinct + 1) * (i + 3) % 17) as f64).collect();
        let preference = Preference::new(&weights, n)?;
        let c = soup.mixing.solve(&preference, &Alpha::default()).coefficients;
        let prompt = (0..prompt).map(|at| 100 + ((index * 37 + at * 11) % 4000) as u32).collect();
        anyhow::Ok(GenerateRequest { ignore_eos: true, ..GenerateRequest::new(prompt, c, tokens) })
    };
    let mut loads: Vec<(usize, usize, usize)> = ROWS.map(|rows| (rows, PROMPT, TOKENS)).to_vec();
    loads.extend([(1, LONG, 1); LEAST]);
    // The first round warms memory and the model's factors and is left out.
    for round in 0..2 {
        if round == 1 {
            passes.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        for (number, &(requests, prompt, tokens)) in loads.iter().enumerate() {
            let mut generations = Vec::new();
            for index in 0..requests {
                // No prompt comes twice, so none is found in the prefix cache.
                let index = index + 100 * (number + 1) + 5000 * round;
                generations.push(engine.submit(request(index, prompt, tokens)?)?);
            }
            for mut generation in generations {
                while let Some(event) = generation.blocking_next() {
                    if let Event::Failed(error) = event {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    let mut points: BTreeMap<usize, Vec<ForwardReport>> = BTreeMap::new();
    for pass in passes.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        points.entry(pass.rows).or_default().push(*pass);
    }
    let mode = if merge_mode == MergeMode::Fused { Mode::Fused } else { Mode::Mixed };
    let points: Vec<Value> = points
        .iter()
        .filter(|(_, passes)| passes.len() >= LEAST)
        .map(|(&rows, passes)| point(rows, passes, prior.pass(mode, rows)))
        .collect();
    let merges: Vec<f64> =
        merges.lock().unwrap_or_else(PoisonError::into_inner).iter().map(milliseconds).collect();
    Ok(json!({
        "mode": mode.as_str(),
        "pass_bytes": (if mode == Mode::Fused { footprint.fused } else { footprint.mixed }).bytes,
        "merge_bytes": footprint.merge_bytes,
        "merge_ms": merges,
        "merge_prior_ms": prior.merge() * 1e3,
        "points": points,
    }))
}

/// Medians of the passes of so many rows.
fn point(rows: usize, passes: &[ForwardReport], prior: f64) -> Value {
    let measured: Vec<f64> = passes.iter().map(|pass| milliseconds(&pass.elapsed)).collect();
    let predicted = median(passes.iter().map(|pass| milliseconds(&pass.predicted)).collect());
    let middle = median(measured.clone());
    json!({
        "rows": rows,
        "passes": passes.len(),
        "measured_ms": middle,
        "predicted_ms": predicted,
        "predicted_over_measured": predicted / middle,
        "prior_ms": prior * 1e3,
        "raw_ms": measured,
    })
}

fn milliseconds(time: &Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
