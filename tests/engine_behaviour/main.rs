//! The engine's promises, on a soup whose tokens are hashes of all that should decide them
//! (see `hash_soup`), so that exact expectations exist and every mix-up shows.

#[path = "../support/answers.rs"]
mod answers;
mod grammars;
#[path = "../support/hash_soup.rs"]
mod hash_soup;
mod lifecycle;
mod models;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use answers::*;
use hash_soup::*;
use ladle::{
    engine::{
        CacheOutcome, Combine, EngineConfig, EngineError, EngineHandle, EngineState, Event,
        FinishReason, GenerateRequest, Generation, MergeMode, Mode, Pin, StepLimits, SubmitError,
        start,
    },
    preference::Coefficients,
    sampling::SamplingParams,
};

fn c(backbones: [f64; 3]) -> Coefficients {
    Coefficients { backbones: backbones.to_vec(), sft: 1.0 - backbones.iter().sum::<f64>() }
}

/// The `n`-th of many distinct models.
fn nth(n: usize) -> Coefficients {
    c([0.5 + n as f64 * 1e-3, 0.25, -0.1])
}

/// Waits until `done`, which must come.
fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never came");
        std::thread::yield_now();
    }
}

fn prompt(n: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((n * 37 + i * 11) % 251) as u32).collect()
}

fn request(c: &Coefficients, prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams::greedy(),
        ignore_eos: true,
        ..GenerateRequest::new(prompt, c.clone(), max_tokens)
    }
}

fn config(merge_mode: MergeMode) -> EngineConfig {
    let limits = StepLimits {
        step_tokens: 32,
        prefill_chunk: 8,
        lanes: 16,
        ..EngineConfig::default().limits
    };
    EngineConfig { limits, merge_mode, ..EngineConfig::default() }
}

fn engine(controls: &Arc<Controls>, config: EngineConfig) -> EngineHandle {
    start(HashSoup::new(controls.clone()), byte_tokenizer(), config).unwrap()
}

const MODES: [MergeMode; 3] = [MergeMode::Auto, MergeMode::Fused, MergeMode::Mixed];

fn collect_rest(mut generation: Generation) {
    while generation.blocking_next().is_some() {}
}

#[test]
fn tokens_do_not_depend_on_who_shares_the_batch_or_on_the_mode() {
    // Fused requests that wait for their weights may leave the others room enough.
    let mut preempted = 0;
    for mode in MODES {
        for blocks in [400, 40] {
            // 40 blocks of 4 tokens: requests are preempted and computed again.
            let controls = Arc::new(Controls { blocks, ..Controls::default() });
            let engine = engine(&controls, config(mode));
            let requests: Vec<_> = (0..32)
                .map(|n| request(&nth(n % 5), prompt(n % 7, 1 + n * 3 % 40), 5 + n % 20))
                .collect();
            let generations: Vec<_> =
                requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
            for (request, generation) in requests.iter().zip(generations) {
                let answer = collect(generation);
                let expected = greedy(&request.coefficients, &request.prompt, request.max_tokens);
                assert_eq!(answer.ids(), expected, "{mode:?}, {blocks} blocks");
                let finished = answer.finished.unwrap();
                assert_eq!(finished.reason, FinishReason::Length);
                assert_eq!(finished.usage.prompt_tokens, request.prompt.len());
                assert_eq!(finished.usage.completion_tokens, request.max_tokens);
            }
            settled(&engine);
            let stats = engine.stats();
            assert_eq!((stats.finished, stats.failed, stats.cancelled), (32, 0, 0));
            assert!(stats.preempted == 0 || blocks == 40, "{stats:?}");
            preempted += stats.preempted;
            match mode {
                MergeMode::Fused => assert_eq!(stats.mixed_forwards, 0),
                MergeMode::Mixed => assert_eq!(stats.fused_forwards, 0),
                MergeMode::Auto => assert!(stats.mixed_forwards > 0),
            }
        }
    }
    assert!(preempted > 0);
}

#[test]
fn a_seed_gives_the_same_tokens_alone_and_in_company() {
    let engine = engine(&Arc::default(), config(MergeMode::Mixed));
    let seeded = |seed| GenerateRequest {
        sampling: SamplingParams { seed: Some(seed), top_p: 0.9, ..SamplingParams::default() },
        ..request(&nth(0), prompt(3, 20), 20)
    };
    let alone = run(&engine, seeded(7)).ids();
    let company: Vec<_> = (0..15).map(|n| engine.submit(seeded(n)).unwrap()).collect();
    let all: Vec<_> = company.into_iter().map(|generation| collect(generation).ids()).collect();
    assert_eq!(all[7], alone);
    assert_ne!(all[6], alone);
    let unseeded = GenerateRequest {
        sampling: SamplingParams::default(),
        ..request(&nth(0), prompt(3, 20), 20)
    };
    assert_ne!(run(&engine, unseeded.clone()).ids(), run(&engine, unseeded).ids());
}

#[test]
fn a_prefix_is_reused_under_the_same_coefficients_only() {
    let engine = engine(&Arc::default(), config(MergeMode::Mixed));
    let long = prompt(1, 42);
    let cached = |c: &Coefficients, prompt: &[u32]| {
        let answer = run(&engine, request(c, prompt.to_vec(), 4));
        assert_eq!(answer.ids(), greedy(c, prompt, 4));
        answer.finished.unwrap().usage.cached_tokens
    };
    assert_eq!(cached(&nth(0), &long), 0);
    assert_eq!(cached(&nth(0), &long), 40);
    assert_eq!(cached(&nth(0), &long[..40]), 36, "the last token is always computed");
    assert_eq!(cached(&nth(1), &long), 0, "other coefficients");
    let mut other = long.clone();
    other[5] += 1;
    assert_eq!(cached(&nth(0), &other), 4, "up to the first other token");
    let mut rounded = nth(0);
    rounded.backbones[0] += 1e-9;
    rounded.sft -= 1e-9;
    let answer = run(&engine, request(&rounded, long, 4));
    assert_eq!(answer.finished.unwrap().usage.cached_tokens, 40, "the same canonical model");
    settled(&engine);
}

#[test]
fn an_answer_ends_at_a_stop_string_an_end_token_or_its_length() {
    let engine = engine(&Arc::default(), config(MergeMode::Mixed));
    let (model, start) = (nth(0), prompt(5, 9));
    let full = run(&engine, request(&model, start.clone(), 60));
    let text = full.text();
    let ids = full.ids();
    assert_eq!(text, byte_tokenizer().decode(&ids, true));

    // A string in the middle of the text, longer than a token.
    let middle: String = text.chars().skip(20).take(3).collect();
    let stopped = run(
        &engine,
        GenerateRequest {
            stop: vec!["not there".to_owned(), middle.clone()],
            ..request(&model, start.clone(), 60)
        },
    );
    assert_eq!(stopped.text(), text[..text.find(&middle).unwrap()]);
    let finished = stopped.finished.unwrap();
    assert_eq!((finished.reason, finished.stop.as_deref()), (FinishReason::Stop, Some(&*middle)));
    assert!(finished.usage.completion_tokens < 60);

    // Prompts until one whose greedy answer holds the end token.
    let (start, expected) = (0..)
        .map(|n| (prompt(n, 9), greedy(&model, &prompt(n, 9), 60)))
        .find(|(_, ids)| ids.contains(&EOS))
        .unwrap();
    let end = expected.iter().position(|&id| id == EOS).unwrap();
    let ended =
        run(&engine, GenerateRequest { ignore_eos: false, ..request(&model, start.clone(), 60) });
    assert_eq!(ended.ids(), expected[..=end]);
    assert_eq!(ended.text(), byte_tokenizer().decode(&expected[..end], true));
    assert_eq!(ended.finished.unwrap().reason, FinishReason::Stop);
    let ignored = run(&engine, request(&model, start, 60));
    assert_eq!(ignored.ids(), expected);
    settled(&engine);
}

#[test]
fn combined_logits_are_the_weighted_sum_of_the_backbones() {
    for mode in MODES {
        let engine = engine(&Arc::default(), config(mode));
        let weights = [0.2, 0.5, 0.3];
        let start = prompt(2, 13);
        let combined = GenerateRequest {
            combine: Combine::Logits(weights.to_vec()),
            ..request(&c([0.0; 3]), start.clone(), 12)
        };
        let others: Vec<_> =
            (0..6).map(|n| engine.submit(request(&nth(n), prompt(n, 20), 12)).unwrap()).collect();
        let answer = run(&engine, combined);

        let mut tokens = start;
        for id in answer.ids() {
            let mut sum = vec![0.0f32; VOCABULARY];
            for (lane, weight) in weights.iter().enumerate() {
                let mut one = [0.0; 3];
                one[lane] = 1.0;
                let logits = logits(&c(one), &tokens);
                sum.iter_mut().zip(logits).for_each(|(s, x)| *s += *weight as f32 * x);
            }
            assert_eq!(id, argmax(&sum), "{mode:?}");
            tokens.push(id);
        }
        assert_eq!(tokens.len(), 13 + 12);
        others.into_iter().for_each(|generation| drop(collect(generation)));
        settled(&engine);
    }
}

#[test]
fn log_probabilities_of_prompt_and_answer_are_the_models_own() {
    let engine = engine(&Arc::default(), config(MergeMode::Mixed));
    let (model, start) = (nth(0), prompt(4, 30));
    // The prefix cache is warm, and must not be used.
    run(&engine, request(&model, start.clone(), 1));
    let answer = run(
        &engine,
        GenerateRequest {
            prompt_logprobs: Some(2),
            sampling: SamplingParams { logprobs: Some(3), ..SamplingParams::greedy() },
            ..request(&model, start.clone(), 5)
        },
    );
    let mut tokens = start.clone();
    tokens.extend(answer.ids());
    let reported = answer
        .prompt
        .iter()
        .map(|t| (t.id, t.logprob, t.top.clone(), 2))
        .chain(answer.tokens.iter().map(|t| (t.id, t.logprob.unwrap(), t.top.clone(), 3)));
    let mut count = 0;
    for (position, (id, logprob, top, n)) in reported.enumerate() {
        let x = logits(&model, &tokens[..=position]);
        let max = f64::from(x.iter().copied().fold(f32::MIN, f32::max));
        let sum: f64 = x.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        let expected = |id: u32| (f64::from(x[id as usize]) - max - sum.ln()) as f32;
        assert_eq!(id, tokens[position + 1]);
        assert!((logprob - expected(id)).abs() < 1e-5);
        assert_eq!(top.len(), n);
        assert_eq!(top[0].0, argmax(&x));
        assert!(top.iter().all(|&(id, value)| (value - expected(id)).abs() < 1e-5));
        count += 1;
    }
    assert_eq!(count, 29 + 5);
}
