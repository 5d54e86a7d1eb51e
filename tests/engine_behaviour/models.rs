//! Merged models under an engine: failures, waiting, promotion, pins, bursts.

use super::*;

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
fn auto_merges_a_hot_preference_while_it_is_answered() {
    let controls = Arc::new(Controls { merged_models: 2, ..Controls::default() });
    let engine = engine(&controls, config(MergeMode::Auto));
    // The price of a merge here is a small part of what one mixed pass costs more. Half of the answer
    // is enough to ask for it, and the other half waits until it is made.
    controls.passes.hold_after(200);
    let hot = engine.submit(unseeded(&nth(0), prompt(0, 10), 400)).unwrap();
    until(|| controls.merged.load(Ordering::Relaxed) == 1);
    controls.passes.open();
    let hot = collect(hot);
    assert_eq!(mode_of(&hot), (Mode::Mixed, None), "nobody waits for a merge");
    assert_eq!(hot.ids(), greedy(&nth(0), &prompt(0, 10), 400));
    assert_eq!(controls.merges.load(Ordering::Relaxed), 1, "merged while it ran");
    let stats = engine.stats();
    assert!(stats.mixed_forwards > 0 && stats.fused_forwards > 0, "in both modes: {stats:?}");
    assert!(controls.crossed.load(Ordering::Relaxed) > 0);
    let again = run(&engine, unseeded(&nth(0), prompt(0, 10), 5));
    assert_eq!(mode_of(&again), (Mode::Fused, Some(CacheOutcome::Hit)));
    assert_eq!(again.ids(), greedy(&nth(0), &prompt(0, 10), 5));
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
    let crossed = controls.crossed.load(Ordering::Relaxed);
    assert_eq!(cached(unseeded(&nth(0), prompt(1, 42), 5)), 0);
    assert_eq!(cached(request(&nth(0), prompt(1, 42), 5)), 0, "computed in the other mode");
    assert_eq!(cached(request(&nth(0), prompt(1, 42), 5)), 40);
    assert_eq!(cached(unseeded(&nth(0), prompt(1, 42), 5)), 40);
    assert_eq!(controls.crossed.load(Ordering::Relaxed), crossed);
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
