//! Requests and engines that end early: clients that leave, deadlines, full queues, drains, failures.

use super::*;

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

/// What a client did not read was kept for it, however much it was.
#[test]
fn whoever_does_not_read_is_given_up() {
    let controls = Arc::new(Controls::default());
    let engine = engine(&controls, config(MergeMode::Mixed));
    let most = |max_unread| GenerateRequest { max_unread, ..request(&nth(0), prompt(0, 5), 400) };
    let (slow, patient) = (engine.submit(most(20)).unwrap(), engine.submit(most(1000)).unwrap());
    settled(&engine);
    let (slow, patient) = (collect(slow), collect(patient));
    assert_eq!(slow.failed, Some(EngineError::Unread { unread: 21 }));
    assert_eq!(slow.ids(), greedy(&nth(0), &prompt(0, 5), 20));
    assert_eq!(patient.ids().len(), 400);
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
