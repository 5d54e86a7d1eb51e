//! The engine on real (tiny) soups: adapters, full checkpoints, and both, in f32.

#[path = "support/answers.rs"]
mod answers;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicIsize, AtomicUsize, Ordering},
    },
};

use answers::*;
use ladle::{
    engine::{
        CacheOutcome, Combine, CpuBackend, CpuOptions, EngineConfig, EngineHandle, Event,
        GenerateRequest, MergeMode, Mode, StepLimits, start,
    },
    merge::CacheEvent,
    preference::{Alpha, Coefficients, Preference},
    sampling::SamplingParams,
    soup::{OpenOptions, Soup},
    tokenizer::Tokenizer,
};

const SOUPS: [&str; 3] = ["soup-tiny", "soup-tiny-full", "soup-tiny-mixed"];
const MODES: [MergeMode; 3] = [MergeMode::Auto, MergeMode::Fused, MergeMode::Mixed];

fn open(name: &str) -> Soup {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let options = OpenOptions { verify_digests: true, ..OpenOptions::default() };
    Soup::open(&dir, &options).unwrap()
}

fn config(merge_mode: MergeMode) -> EngineConfig {
    let limits = StepLimits {
        step_tokens: 64,
        prefill_chunk: 16,
        lanes: 16,
        ..EngineConfig::default().limits
    };
    EngineConfig { limits, merge_mode, ..EngineConfig::default() }
}

fn options(merge_mode: MergeMode) -> CpuOptions {
    let (kv_bytes, merged_bytes) = (8 << 20, 8 << 20);
    CpuOptions { threads: Some(2), kv_bytes, merged_bytes, merge_mode, ..CpuOptions::default() }
}

fn serve(soup: &Soup, options: &CpuOptions, config: EngineConfig) -> EngineHandle {
    let tokenizer = Tokenizer::from_dir(&soup.base_dir).unwrap();
    start(CpuBackend::open(soup, options).unwrap(), tokenizer, config).unwrap()
}

fn engine(soup: &Soup, merge_mode: MergeMode) -> EngineHandle {
    serve(soup, &options(merge_mode), config(merge_mode))
}

/// The `n`-th of many distinct models, some of them extrapolated.
fn nth(soup: &Soup, n: usize) -> Coefficients {
    let weights: Vec<f64> =
        (0..soup.mixing.len()).map(|i| 1.0 + ((n + 1) * (i + 3) * 7 % 11) as f64).collect();
    let preference = Preference::new(&weights, soup.mixing.len()).unwrap();
    let alpha = Alpha::Scalar((n % 3) as f64 * 0.25);
    soup.mixing.solve(&preference, &alpha).coefficients
}

fn prompt(n: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| 20 + ((n * 37 + i * 11) % 400) as u32).collect()
}

fn request(c: Coefficients, prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() },
        ignore_eos: true,
        ..GenerateRequest::new(prompt, c, max_tokens)
    }
}

#[test]
fn tokens_do_not_depend_on_company_chunks_or_mode() {
    for name in SOUPS {
        let soup = open(name);
        let request = |n: usize| request(nth(&soup, n), prompt(n, 5 + n * 7 % 50), 24);
        // Alone, the prompt in one go, one forward per model.
        let whole = StepLimits {
            prefill_chunk: 64,
            prefix_cache: false,
            ..config(MergeMode::Fused).limits
        };
        let mut alone_config = config(MergeMode::Fused);
        alone_config.limits = whole;
        let lone = serve(&soup, &options(MergeMode::Fused), alone_config);
        let alone: Vec<Answer> = (0..16).map(|n| run(&lone, request(n))).collect();
        settled(&lone);

        for mode in MODES {
            let engine = engine(&soup, mode);
            let company: Vec<_> = (0..16).map(|n| engine.submit(request(n)).unwrap()).collect();
            for (n, generation) in company.into_iter().enumerate() {
                let answer = collect(generation);
                assert_eq!(answer.ids(), alone[n].ids(), "{name}, {mode:?}, request {n}");
                for (a, b) in answer.tokens.iter().zip(&alone[n].tokens) {
                    let (a, b) = (a.logprob.unwrap(), b.logprob.unwrap());
                    assert!((a - b).abs() < 1e-4, "{name}, {mode:?}: log-probability {a} vs {b}");
                }
                assert_eq!(answer.text(), alone[n].text());
            }
            settled(&engine);
            let stats = engine.stats();
            match mode {
                MergeMode::Fused => assert_eq!(stats.mixed_forwards, 0),
                MergeMode::Mixed => assert_eq!(stats.fused_forwards, 0),
                MergeMode::Auto => {}
            }
        }
    }
}

#[test]
fn different_preferences_give_different_answers() {
    let soup = open("soup-tiny");
    let engine = engine(&soup, MergeMode::Mixed);
    let answers: Vec<Vec<u32>> =
        (0..4).map(|n| run(&engine, request(nth(&soup, n), prompt(0, 20), 24)).ids()).collect();
    assert!((1..4).all(|n| answers[n] != answers[0]), "{answers:?}");
}

#[test]
fn prefixes_are_reused_under_the_same_coefficients_and_change_nothing() {
    for mode in MODES {
        let soup = open("soup-tiny-mixed");
        let engine = engine(&soup, mode);
        let first = run(&engine, request(nth(&soup, 0), prompt(0, 50), 20));
        let other = run(&engine, request(nth(&soup, 1), prompt(0, 50), 20));
        let again = run(&engine, request(nth(&soup, 0), prompt(0, 50), 20));
        let cached = |answer: &Answer| answer.finished.as_ref().unwrap().usage.cached_tokens;
        assert_eq!((cached(&first), cached(&other), cached(&again)), (0, 0, 48));
        assert_eq!(first.ids(), again.ids());
        assert_ne!(first.ids(), other.ids());
    }
}

#[test]
fn sampling_with_a_seed_is_the_same_in_any_mode_and_company() {
    let soup = open("soup-tiny-full");
    let seeded = |seed| GenerateRequest {
        sampling: SamplingParams { seed: Some(seed), top_k: Some(40), ..SamplingParams::default() },
        ..request(nth(&soup, 2), prompt(1, 20), 20)
    };
    let alone = run(&engine(&soup, MergeMode::Fused), seeded(5)).ids();
    for mode in MODES {
        let engine = engine(&soup, mode);
        let company: Vec<_> = (0..10).map(|seed| engine.submit(seeded(seed)).unwrap()).collect();
        let all: Vec<_> = company.into_iter().map(|generation| collect(generation).ids()).collect();
        assert_eq!(all[5], alone, "{mode:?}");
        assert_ne!(all[4], alone);
    }
}

#[test]
fn combined_logits_of_one_backbone_are_that_backbones_model() {
    for name in SOUPS {
        let soup = open(name);
        let engine = engine(&soup, MergeMode::Mixed);
        for backbone in 0..soup.mixing.len() {
            let mut one = vec![0.0; soup.mixing.len()];
            one[backbone] = 1.0;
            let c = Coefficients { backbones: one.clone(), sft: 0.0 };
            let weights = run(&engine, request(c.clone(), prompt(backbone, 20), 16));
            let combine = Combine::Logits(one);
            let logits = GenerateRequest { combine, ..request(c, prompt(backbone, 20), 16) };
            assert_eq!(run(&engine, logits).ids(), weights.ids(), "{name}, backbone {backbone}");
        }
        settled(&engine);
    }
}

#[test]
fn log_probabilities_of_a_prompt_are_those_of_generating_it() {
    let soup = open("soup-tiny");
    let engine = engine(&soup, MergeMode::Auto);
    let start = prompt(3, 20);
    let generated = run(&engine, request(nth(&soup, 0), start.clone(), 12));
    let mut echo = start;
    echo.extend(generated.ids());
    let echoed = run(
        &engine,
        GenerateRequest { prompt_logprobs: Some(1), ..request(nth(&soup, 0), echo.clone(), 1) },
    );
    assert_eq!(echoed.prompt.iter().map(|t| t.id).collect::<Vec<_>>(), echo[1..]);
    for (token, again) in generated.tokens.iter().zip(&echoed.prompt[19..]) {
        assert!((token.logprob.unwrap() - again.logprob).abs() < 1e-4);
        assert_eq!(again.top[0].0, token.id, "it was the most likely");
    }
}

#[test]
fn a_client_that_leaves_gives_everything_back() {
    let soup = open("soup-tiny");
    for mode in MODES {
        let engine = engine(&soup, mode);
        let mut generations: Vec<_> = (0..20)
            .map(|n| engine.submit(request(nth(&soup, n), prompt(n, 40), 200)).unwrap())
            .collect();
        while !matches!(generations[0].blocking_next(), Some(Event::Token(_))) {}
        drop(generations);
        settled(&engine);
        // Where this thread is kept waiting, some have been answered by then.
        let stats = engine.stats();
        assert!(stats.cancelled > 0, "{} were answered", stats.finished);
        assert_eq!(stats.cancelled + stats.finished, 20);
    }
}

#[test]
fn a_burst_of_a_thousand_preferences_stays_within_the_budget_of_merged_weights() {
    let soup = open("soup-tiny");
    for mode in [MergeMode::Auto, MergeMode::Fused] {
        let (alive, most) = (Arc::new(AtomicIsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = (alive.clone(), most.clone());
        let mut options = options(mode);
        options.on_cache_event = Some(Arc::new(move |event| {
            let change = match event {
                CacheEvent::Miss => 1,
                CacheEvent::Evicted { .. } | CacheEvent::Failed | CacheEvent::Abandoned => -1,
                _ => 0,
            };
            let now = count.0.fetch_add(change, Ordering::SeqCst) + change;
            count.1.fetch_max(now.max(0) as usize, Ordering::SeqCst);
        }));
        // Three merged models of about a third of a megabyte each.
        options.merged_bytes = 1 << 20;
        let backend = CpuBackend::open(&soup, &options).unwrap();
        let capacity = ladle::engine::backend::Backend::facts(&backend).merged_models;
        assert!((1..8).contains(&capacity), "{capacity}");
        let tokenizer = Tokenizer::from_dir(&soup.base_dir).unwrap();
        let config = EngineConfig { max_waiting: 2_000, ..config(mode) };
        let engine = start(backend, tokenizer, config).unwrap();

        let mut hot = engine.submit(request(nth(&soup, 0), prompt(0, 10), 100)).unwrap();
        while !matches!(hot.blocking_next(), Some(Event::Token(_))) {}
        let burst: Vec<_> = (0..1_000)
            .map(|n| {
                let c = Coefficients {
                    backbones: vec![0.3 + n as f64 * 1e-4, 0.3, 0.4 - n as f64 * 1e-4],
                    sft: 0.0,
                };
                engine.submit(request(c, prompt(n, 5), 2)).unwrap()
            })
            .collect();
        let mut last = None;
        while let Some(event) = hot.blocking_next() {
            last = Some(event);
        }
        assert!(matches!(last, Some(Event::Finished(_))), "{last:?}");
        burst.into_iter().for_each(|generation| assert_eq!(collect(generation).ids().len(), 2));
        settled(&engine);
        assert!(most.load(Ordering::SeqCst) <= capacity, "{mode:?}: {most:?} of {capacity}");
    }
}

#[test]
fn a_merge_is_a_miss_once_and_then_a_hit() {
    let soup = open("soup-tiny");
    let engine = engine(&soup, MergeMode::Fused);
    let started = |n| run(&engine, request(nth(&soup, n), prompt(0, 9), 2)).started.unwrap();
    let (first, second, other) = (started(0), started(0), started(1));
    assert_eq!((first.mode, first.cache), (Mode::Fused, Some(CacheOutcome::Miss)));
    assert_eq!((second.mode, second.cache), (Mode::Fused, Some(CacheOutcome::Hit)));
    assert_eq!(other.cache, Some(CacheOutcome::Miss));
}
