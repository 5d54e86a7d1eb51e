//! The engine's promises, on a soup whose tokens are hashes of all that should decide them
//! (see `hash_soup`), so that exact expectations exist and every mix-up shows.

#[path = "support/answers.rs"]
mod answers;
#[path = "support/hash_soup.rs"]
mod hash_soup;

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

#[test]
fn a_client_that_leaves_frees_its_work_within_a_step() {
    let controls = Arc::new(Controls::default());
    for mode in MODES {
        // Two passes over the prompt give the first token.
        controls.passes.hold_after(2);
        let engine = engine(&controls, config(mode));
        let mut running = engine.submit(request(&nth(0), prompt(0, 10), 400)).unwrap();
        while !matches!(running.blocking_next(), Some(Event::Token(_))) {}
        assert!(engine.stats().kv_used > 0);
        // And some that have not started.
        let waiting: Vec<_> = (0..20)
            .map(|n| engine.submit(request(&nth(n), prompt(n, 100), 300)).unwrap())
            .collect();
        drop((running, waiting));
        controls.passes.open();
        settled(&engine);
        assert_eq!(engine.stats().cancelled, 21);
        // The next good request is unharmed.
        let answer = run(&engine, request(&nth(3), prompt(1, 10), 5));
        assert_eq!(answer.ids(), greedy(&nth(3), &prompt(1, 10), 5));
    }
}

#[test]
fn a_deadline_fails_running_and_waiting_requests() {
    let controls = Arc::new(Controls::default());
    let one_lane = EngineConfig {
        limits: StepLimits { lanes: 1, ..config(MergeMode::Mixed).limits },
        ..config(MergeMode::Mixed)
    };
    let engine = engine(&controls, one_lane);
    let deadline = Instant::now() + Duration::from_millis(300);
    let late =
        |n| GenerateRequest { deadline: Some(deadline), ..request(&nth(n), prompt(n, 5), 400) };
    // The fourth pass ends after the deadline.
    controls.passes.hold_after(3);
    let (running, waiting) = (engine.submit(late(0)).unwrap(), engine.submit(late(1)).unwrap());
    until(|| Instant::now() > deadline);
    controls.passes.open();
    let (running, waiting) = (collect(running), collect(waiting));
    assert_eq!(running.failed, Some(EngineError::Deadline { generated: 4, max_tokens: 400 }));
    assert_eq!(running.ids(), greedy(&nth(0), &prompt(0, 5), 4));
    assert_eq!(waiting.failed, Some(EngineError::Deadline { generated: 0, max_tokens: 400 }));
    settled(&engine);
}

#[test]
fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let controls = Arc::new(Controls::default());
    controls.passes.hold_after(0);
    let narrow = EngineConfig {
        max_waiting: 3,
        limits: StepLimits { lanes: 1, ..config(MergeMode::Mixed).limits },
        ..config(MergeMode::Mixed)
    };
    let engine = engine(&controls, narrow);
    let mut first = engine.submit(request(&nth(0), prompt(0, 5), 30)).unwrap();
    assert!(matches!(first.blocking_next(), Some(Event::Started(_))));
    let accepted: Vec<_> =
        (0..3).map(|n| engine.submit(request(&nth(n), prompt(n, 5), 5)).unwrap()).collect();
    let refused = engine.submit(request(&nth(0), prompt(0, 5), 5)).err();
    assert_eq!(refused, Some(SubmitError::QueueFull { waiting: 3, limit: 3 }));
    controls.passes.open();
    collect_rest(first);
    accepted.into_iter().for_each(|generation| drop(collect(generation)));
    run(&engine, request(&nth(0), prompt(0, 5), 5));
    settled(&engine);
}

fn collect_rest(mut generation: Generation) {
    while generation.blocking_next().is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_completes_what_was_accepted_and_takes_nothing_new() {
    let controls = Arc::new(Controls::default());
    controls.passes.hold_after(0);
    let engine = engine(&controls, config(MergeMode::Fused));
    let accepted: Vec<_> =
        (0..20).map(|n| engine.submit(request(&nth(n), prompt(n, 15), 10)).unwrap()).collect();
    engine.drain();
    assert_eq!(engine.state(), EngineState::Draining);
    let refused = engine.submit(request(&nth(0), prompt(0, 5), 5)).err();
    assert_eq!(refused, Some(SubmitError::Draining));
    controls.passes.open();
    for (n, mut generation) in accepted.into_iter().enumerate() {
        let mut ids = Vec::new();
        while let Some(event) = generation.next().await {
            if let Event::Token(token) = event {
                ids.push(token.id);
            }
        }
        assert_eq!(ids, greedy(&nth(n), &prompt(n, 15), 10));
    }
    engine.stopped().await;
    let refused = engine.submit(request(&nth(0), prompt(0, 5), 5)).err();
    assert_eq!(refused, Some(SubmitError::Stopped));
    assert_eq!(engine.stats().integrity_failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_engine_says_so_to_everybody() {
    let controls = Arc::new(Controls::default());
    // Two passes over the prompt give the first token.
    controls.passes.hold_after(2);
    let engine = engine(&controls, config(MergeMode::Mixed));
    let mut running = engine.submit(request(&nth(0), prompt(0, 15), 400)).unwrap();
    while !matches!(running.next().await, Some(Event::Token(_))) {}
    engine.abort();
    controls.passes.open();
    let mut last = None;
    while let Some(event) = running.next().await {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Failed(EngineError::Stopped))), "{last:?}");
    engine.stopped().await;
}

#[test]
fn an_engine_without_handles_completes_what_is_awaited_and_ends() {
    let controls = Arc::new(Controls::default());
    controls.passes.hold_after(0);
    let engine = engine(&controls, config(MergeMode::Fused));
    let generation = engine.submit(request(&nth(0), prompt(0, 10), 30)).unwrap();
    drop(engine);
    controls.passes.open();
    assert_eq!(collect(generation).ids(), greedy(&nth(0), &prompt(0, 10), 30));
    until(|| controls.dropped.load(Ordering::Relaxed));
}

#[test]
fn a_panic_or_a_refusal_fails_those_involved_and_nobody_else() {
    for mode in MODES {
        let controls = Arc::new(Controls::default());
        let engine = engine(&controls, config(mode));
        for (round, bad) in [PANIC, REFUSE].into_iter().enumerate() {
            controls.passes.hold_after(0);
            let submit = |request| engine.submit(request).unwrap();
            let steady: Vec<_> =
                (0..3).map(|n| submit(request(&nth(n), prompt(n, 10), 60))).collect();
            let mut broken = prompt(9, 5);
            broken.push(bad);
            let broken = submit(request(&c([0.1, 0.2, 0.3]), broken, 5));
            controls.passes.open();
            let answer = collect(broken);
            assert!(matches!(answer.failed, Some(EngineError::Forward(_))), "{answer:?}");
            for (n, generation) in steady.into_iter().enumerate() {
                let answer = collect(generation);
                match answer.failed {
                    // In a mixed pass they shared the step that broke.
                    Some(error) => {
                        assert!(matches!(error, EngineError::Forward(_)));
                        assert_ne!(mode, MergeMode::Fused);
                    }
                    None => assert_eq!(answer.ids(), greedy(&nth(n), &prompt(n, 10), 60)),
                }
            }
            let answer = run(&engine, request(&nth(0), prompt(0, 10), 60));
            assert_eq!(answer.ids(), greedy(&nth(0), &prompt(0, 10), 60));
            // The reset follows the failed answers, and comes before the next one.
            assert_eq!(controls.resets.load(Ordering::Relaxed), 1, "round {round}");
        }
        settled(&engine);
    }
}

#[test]
fn logits_that_are_no_numbers_fail_that_request_only() {
    let engine = engine(&Arc::default(), config(MergeMode::Mixed));
    let good = engine.submit(request(&nth(0), prompt(0, 10), 30)).unwrap();
    let answer = run(&engine, request(&nth(1), vec![1, NAN, 2], 5));
    assert!(matches!(answer.failed, Some(EngineError::NotFinite(_))), "{answer:?}");
    assert_eq!(collect(good).ids(), greedy(&nth(0), &prompt(0, 10), 30));
    settled(&engine);
}

#[test]
fn a_failed_merge_fails_its_requests_and_is_tried_again() {
    let controls = Arc::new(Controls::default());
    controls.broken_merges.store(true, Ordering::Relaxed);
    let engine = engine(&controls, config(MergeMode::Fused));
    let answer = run(&engine, request(&nth(0), prompt(0, 10), 5));
    assert_eq!(answer.failed, Some(EngineError::Merge("as planned".to_owned())));
    controls.broken_merges.store(false, Ordering::Relaxed);
    let answer = run(&engine, request(&nth(0), prompt(0, 10), 5));
    assert_eq!(answer.ids(), greedy(&nth(0), &prompt(0, 10), 5));
    settled(&engine);
}

#[test]
fn running_requests_go_on_while_a_new_preference_is_merged() {
    let controls = Arc::new(Controls::default());
    let engine = engine(&controls, config(MergeMode::Fused));
    let first = run(&engine, request(&nth(0), prompt(0, 10), 5)).started.unwrap();
    assert_eq!((first.mode, first.cache), (Mode::Fused, Some(CacheOutcome::Miss)));
    assert!(first.merge > Duration::ZERO);
    controls.merging.hold_after(0);
    let new = engine.submit(request(&nth(1), prompt(1, 10), 1)).unwrap();
    until(|| controls.merges.load(Ordering::Relaxed) == 2);
    let answer = run(&engine, request(&nth(0), prompt(0, 10), 400));
    let hit = answer.started.unwrap();
    assert_eq!((hit.cache, hit.merge), (Some(CacheOutcome::Hit), Duration::ZERO));
    assert_eq!(answer.tokens.len(), 400);
    assert_eq!(controls.merged.load(Ordering::Relaxed), 1, "whole while the other is merged");
    controls.merging.open();
    let answer = collect(new);
    assert_eq!(answer.started.unwrap().cache, Some(CacheOutcome::Miss));
    assert_eq!(answer.ids(), greedy(&nth(1), &prompt(1, 10), 1));
    settled(&engine);
}

#[test]
fn weights_of_those_behind_never_keep_the_first_in_the_queue_waiting() {
    // What they hold: all merges that may be under way at once, or the whole cache.
    let mod_weights = Combine::Logits(vec![0.5, 0.3, 0.2]);
    for (merged_models, lanes, combine) in [(8, 2, Combine::Weights), (3, 3, mod_weights)] {
        let controls = Arc::new(Controls { merged_models, ..Controls::default() });
        let aging = Duration::from_millis(300);
        let limits = StepLimits { lanes, aging, ..config(MergeMode::Fused).limits };
        let engine = engine(&controls, EngineConfig { limits, ..config(MergeMode::Fused) });
        let submit = |request| engine.submit(request).unwrap();
        let starts = |generation: &mut Generation| {
            assert!(matches!(generation.blocking_next(), Some(Event::Started(_))));
        };
        // One runs, and stands in its first pass.
        controls.passes.hold_after(0);
        let mut running = vec![submit(request(&nth(0), prompt(0, 10), 300))];
        starts(&mut running[0]);
        // While those behind wait for their weights, others take the lanes.
        controls.merging.hold_after(0);
        let behind: Vec<_> = (1..5).map(|n| submit(request(&nth(n), prompt(n, 10), 5))).collect();
        running.extend((1..lanes).map(|n| submit(request(&nth(0), prompt(10 + n, 10), 300))));
        controls.passes.hold_after(1);
        running[1..].iter_mut().for_each(starts);
        controls.merging.open();
        let first = GenerateRequest {
            combine,
            priority: 100,
            deadline: Some(Instant::now() + Duration::from_secs(30)),
            ..request(&nth(6), prompt(6, 10), 5)
        };
        let submitted = Instant::now();
        let first = submit(first);
        until(|| submitted.elapsed() > aging);
        controls.passes.open();
        let first = collect(first);
        assert_eq!((first.failed, first.tokens.len()), (None, 5));
        for (n, generation) in (1..5).zip(behind) {
            assert_eq!(collect(generation).ids(), greedy(&nth(n), &prompt(n, 10), 5));
        }
        running.into_iter().for_each(collect_rest);
        settled(&engine);
    }
}

/// A request that nobody can repeat, with greedy's tokens all the same: so cold that the draw of a
/// fresh seed never decides.
fn unseeded(c: &Coefficients, prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    let sampling = SamplingParams { temperature: 1e-8, ..SamplingParams::default() };
    GenerateRequest { sampling, ..request(c, prompt, max_tokens) }
}

fn seeded(c: &Coefficients, prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    let sampling = SamplingParams { seed: Some(1), temperature: 1e-8, ..SamplingParams::default() };
    GenerateRequest { sampling, ..request(c, prompt, max_tokens) }
}

fn mode_of(answer: &Answer) -> (Mode, Option<CacheOutcome>) {
    let started = answer.started.unwrap();
    (started.mode, started.cache)
}

/// Mixed requests of one model until it is merged.
fn make_hot(engine: &EngineHandle, controls: &Controls, model: &Coefficients) {
    let before = controls.merges.load(Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(20);
    while mode_of(&run(engine, unseeded(model, prompt(0, 10), 50))).0 == Mode::Mixed {
        assert!(Instant::now() < deadline, "never promoted");
    }
    assert_eq!(controls.merges.load(Ordering::Relaxed), before + 1);
}

#[test]
fn auto_merges_a_hot_preference_for_requests_to_come() {
    let controls = Arc::new(Controls { merged_models: 2, ..Controls::default() });
    let engine = engine(&controls, config(MergeMode::Auto));
    // The price of a merge here is a small part of what one mixed pass costs more.
    let hot = run(&engine, unseeded(&nth(0), prompt(0, 10), 400));
    assert_eq!(mode_of(&hot), (Mode::Mixed, None), "nobody waits for a merge");
    assert_eq!(hot.ids(), greedy(&nth(0), &prompt(0, 10), 400));
    assert_eq!(controls.merges.load(Ordering::Relaxed), 1, "merged while it ran");
    let stats = engine.stats();
    assert_eq!(stats.fused_forwards, 0, "and yet it went on as it began: {stats:?}");
    until(|| controls.merged.load(Ordering::Relaxed) == 1);
    let again = run(&engine, unseeded(&nth(0), prompt(0, 10), 5));
    assert_eq!(mode_of(&again), (Mode::Fused, Some(CacheOutcome::Hit)));
    assert_eq!(again.ids(), greedy(&nth(0), &prompt(0, 10), 5));
    assert!(engine.stats().fused_forwards > 0);
    settled(&engine);
}

#[test]
fn the_mode_of_a_request_that_can_be_repeated_does_not_depend_on_what_ran_before() {
    let controls = Arc::new(Controls::default());
    let engine = engine(&controls, config(MergeMode::Auto));
    let repeatable = [
        request(&nth(0), prompt(0, 10), 5),
        seeded(&nth(0), prompt(0, 10), 5),
        GenerateRequest {
            sampling: SamplingParams { top_k: Some(1), ..SamplingParams::default() },
            ..request(&nth(0), prompt(0, 10), 5)
        },
        GenerateRequest { prompt_logprobs: Some(0), ..unseeded(&nth(0), prompt(0, 10), 5) },
    ];
    let cold: Vec<_> = repeatable.iter().map(|r| mode_of(&run(&engine, r.clone()))).collect();
    make_hot(&engine, &controls, &nth(0));
    // Beside a request of the same model that runs fused, too.
    controls.passes.hold_after(2);
    let mut beside = engine.submit(unseeded(&nth(0), prompt(0, 10), 400)).unwrap();
    assert!(matches!(
        beside.blocking_next(),
        Some(Event::Started(started)) if started.mode == Mode::Fused
    ));
    let submitted: Vec<_> =
        repeatable.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    controls.passes.open();
    for (generation, cold) in submitted.into_iter().zip(cold) {
        let answer = collect(generation);
        assert_eq!((mode_of(&answer), cold), ((Mode::Mixed, None), (Mode::Mixed, None)));
        assert_eq!(answer.ids(), greedy(&nth(0), &prompt(0, 10), 5));
    }
    collect_rest(beside);
    settled(&engine);
}

#[test]
fn rows_of_one_mode_are_never_reused_in_the_other() {
    let controls = Arc::new(Controls::default());
    let engine = engine(&controls, config(MergeMode::Auto));
    make_hot(&engine, &controls, &nth(0));
    let cached = |request| run(&engine, request).finished.unwrap().usage.cached_tokens;
    // The soup itself fails a row that meets keys and values of the other mode.
    assert_eq!(cached(unseeded(&nth(0), prompt(1, 42), 5)), 0);
    assert_eq!(cached(request(&nth(0), prompt(1, 42), 5)), 0, "computed in the other mode");
    assert_eq!(cached(request(&nth(0), prompt(1, 42), 5)), 40);
    assert_eq!(cached(unseeded(&nth(0), prompt(1, 42), 5)), 40);
    settled(&engine);
}

#[test]
fn pinned_models_are_merged_at_the_start_and_stay() {
    let pin = |n: usize| Pin { name: format!("preset-{n}"), coefficients: nth(n) };
    for mode in [MergeMode::Auto, MergeMode::Fused] {
        let controls = Arc::new(Controls::default());
        let pinned = vec![pin(0), pin(1), pin(0)];
        let engine = engine(&controls, EngineConfig { pinned, ..config(mode) });
        assert_eq!(controls.merges.load(Ordering::Relaxed), 2, "before the first request");
        // More models than there is room for, so that all that may be evicted is.
        let strangers: Vec<_> =
            (2..30).map(|n| engine.submit(unseeded(&nth(n), prompt(n, 10), 5)).unwrap()).collect();
        for make in [request, seeded, unseeded] {
            for n in [0, 1] {
                let answer = run(&engine, make(&nth(n), prompt(n, 10), 20));
                assert_eq!(mode_of(&answer), (Mode::Fused, Some(CacheOutcome::Hit)), "{mode:?}");
                assert_eq!(answer.ids(), greedy(&nth(n), &prompt(n, 10), 20));
            }
        }
        for (n, generation) in (2..30).zip(strangers) {
            assert_eq!(collect(generation).ids(), greedy(&nth(n), &prompt(n, 10), 5));
        }
        settled(&engine);
        assert!(controls.most_alive.load(Ordering::Relaxed) <= controls.merged_models);
    }
}

#[test]
fn pins_that_cannot_be_kept_are_refused_by_name() {
    let refused = |mode, models: usize, mixes, pins: usize| {
        let controls = Controls { merged_models: models, mixes, ..Controls::default() };
        let pin = |n: usize| Pin { name: format!("preset-{n}"), coefficients: nth(n) };
        let config = EngineConfig { pinned: (0..pins).map(pin).collect(), ..config(mode) };
        start(HashSoup::new(Arc::new(controls)), byte_tokenizer(), config)
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(refused(MergeMode::Auto, 4, true, 4), None);
    assert_eq!(refused(MergeMode::Fused, 4, true, 3), None);
    let room = "pin is preset-0, preset-1, expected at most 1 different models: the budget for \
                merged weights holds";
    assert_eq!(refused(MergeMode::Auto, 1, true, 2), Some(format!("{room} 1")));
    assert_eq!(refused(MergeMode::Fused, 2, true, 2), Some(format!("{room} 2")));
    // Where nothing is mixed, one model must stay free for all others.
    assert_eq!(refused(MergeMode::Auto, 2, false, 2), Some(format!("{room} 2")));
    let none = "pin is preset-0, expected none: with this soup and configuration no weights are \
                merged";
    for (mode, models) in [(MergeMode::Mixed, 4), (MergeMode::Auto, 0)] {
        assert_eq!(refused(mode, models, true, 1).as_deref(), Some(none));
    }
}

#[test]
fn a_pin_that_cannot_be_merged_stops_the_start_with_the_reason() {
    let controls = Arc::new(Controls::default());
    controls.broken_merges.store(true, Ordering::Relaxed);
    let pinned = vec![Pin { name: "balanced".to_owned(), coefficients: nth(0) }];
    let config = EngineConfig { pinned, ..config(MergeMode::Auto) };
    let error = start(HashSoup::new(controls), byte_tokenizer(), config).err().unwrap();
    assert_eq!(error.to_string(), "pin balanced: merging the weights failed: as planned");
}

#[test]
fn a_burst_of_a_thousand_preferences_evicts_starves_and_grows_nothing() {
    for mode in MODES {
        let controls = Arc::new(Controls::default());
        controls.passes.hold_after(2);
        let engine = engine(&controls, EngineConfig { max_waiting: 2_000, ..config(mode) });
        let mut hot = engine.submit(request(&nth(5_000), prompt(0, 10), 400)).unwrap();
        while !matches!(hot.blocking_next(), Some(Event::Token(_))) {}
        let burst: Vec<_> =
            (0..1_000).map(|n| engine.submit(request(&nth(n), prompt(n, 6), 3)).unwrap()).collect();
        controls.passes.open();
        let mut ids = vec![greedy(&nth(5_000), &prompt(0, 10), 1)[0]];
        while let Some(event) = hot.blocking_next() {
            if let Event::Token(token) = event {
                ids.push(token.id);
            }
        }
        assert_eq!(ids, greedy(&nth(5_000), &prompt(0, 10), 400), "{mode:?}");
        // The hot preference asked again in the middle of the burst is served, not starved.
        let again = GenerateRequest {
            deadline: Some(Instant::now() + Duration::from_secs(30)),
            priority: 1,
            ..request(&nth(5_000), prompt(1, 10), 5)
        };
        assert_eq!(run(&engine, again).ids(), greedy(&nth(5_000), &prompt(1, 10), 5));
        for (n, generation) in burst.into_iter().enumerate() {
            assert_eq!(collect(generation).ids(), greedy(&nth(n), &prompt(n, 6), 3), "{mode:?}");
        }
        settled(&engine);
        assert!(controls.most_alive.load(Ordering::Relaxed) <= controls.merged_models);
        let stats = engine.stats();
        assert_eq!((stats.finished, stats.failed), (1_002, 0));
    }
}

#[test]
fn requests_that_cannot_be_served_are_refused_by_field() {
    let controls = Arc::new(Controls { blocks: 50, ..Controls::default() });
    let engine = engine(&controls, config(MergeMode::Auto));
    let good = request(&nth(0), prompt(0, 10), 5);
    let infinite = Coefficients { backbones: vec![f64::INFINITY, 0.0, 0.0], sft: 0.0 };
    let cases = [
        ("prompt", GenerateRequest { prompt: vec![], ..good.clone() }),
        ("prompt", GenerateRequest { prompt: vec![261], ..good.clone() }),
        ("prompt", GenerateRequest { prompt: prompt(0, 500), ..good.clone() }),
        ("max_tokens", GenerateRequest { max_tokens: 0, ..good.clone() }),
        ("max_tokens", GenerateRequest { max_tokens: 491, ..good.clone() }),
        ("max_tokens", GenerateRequest { max_tokens: usize::MAX, ..good.clone() }),
        ("max_tokens", GenerateRequest { max_tokens: 191, ..good.clone() }),
        ("coefficients", GenerateRequest { coefficients: infinite, ..good.clone() }),
        (
            "coefficients",
            GenerateRequest {
                coefficients: Coefficients { backbones: vec![1.0], sft: 0.0 },
                ..good.clone()
            },
        ),
        ("combine", GenerateRequest { combine: Combine::Logits(vec![1.0]), ..good.clone() }),
        ("stop", GenerateRequest { stop: vec![String::new()], ..good.clone() }),
        (
            "temperature",
            GenerateRequest {
                sampling: SamplingParams { temperature: f32::NAN, ..SamplingParams::default() },
                ..good.clone()
            },
        ),
    ];
    for (expected, request) in cases {
        match engine.submit(request) {
            Err(SubmitError::Invalid { field, reason }) => assert_eq!(field, expected, "{reason}"),
            Err(other) => panic!("{expected}: {other}"),
            Ok(_) => panic!("{expected}: accepted"),
        }
    }
    assert_eq!(run(&engine, good).ids(), greedy(&nth(0), &prompt(0, 10), 5));
    settled(&engine);
}
