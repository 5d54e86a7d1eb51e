//! Backbones that are active on the answer only, on a soup whose tokens are hashes of all that should
//! decide them (see `hash_soup`): rows before the point of activation are θ_sft's, whatever computed
//! them and whenever, and those from there on the request's own.

#[path = "support/answers.rs"]
#[allow(dead_code)] // its other users need more of it
mod answers;
#[path = "support/hash_soup.rs"]
#[allow(dead_code)] // its other users need more of it
mod hash_soup;

use std::sync::Arc;

use answers::*;
use hash_soup::*;
use ladle::{
    engine::{
        Combine, EngineConfig, EngineHandle, GenerateRequest, Generation, MergeMode, Mode, Pin,
        StepLimits, start,
    },
    preference::Coefficients,
    sampling::SamplingParams,
};
use proptest::{prelude::*, test_runner::RngSeed};

const MODES: [MergeMode; 3] = [MergeMode::Auto, MergeMode::Fused, MergeMode::Mixed];

fn c(backbones: [f64; 3]) -> Coefficients {
    Coefficients { backbones: backbones.to_vec(), sft: 1.0 - backbones.iter().sum::<f64>() }
}

/// The `n`-th of many distinct models.
fn nth(n: usize) -> Coefficients {
    c([0.5 + n as f64 * 1e-3, 0.25, -0.1])
}

fn prompt(n: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((n * 37 + i * 11) % 251) as u32).collect()
}

fn request(c: &Coefficients, prompt: &[u32], from: usize, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams::greedy(),
        ignore_eos: true,
        active_from: Some(from),
        ..GenerateRequest::new(prompt.to_vec(), c.clone(), max_tokens)
    }
}

fn limits() -> StepLimits {
    StepLimits { step_tokens: 32, prefill_chunk: 8, lanes: 16, ..EngineConfig::default().limits }
}

fn controls(mode: MergeMode) -> Controls {
    Controls { prompts_fused: Some(mode == MergeMode::Fused), ..Controls::default() }
}

fn engine(controls: Controls, merge_mode: MergeMode, limits: StepLimits) -> EngineHandle {
    let config = EngineConfig { limits, merge_mode, ..EngineConfig::default() };
    start(HashSoup::new(Arc::new(controls)), byte_tokenizer(), config).unwrap()
}

fn expected(request: &GenerateRequest) -> Vec<u32> {
    let from = request.active_from.unwrap();
    greedy_from(&request.coefficients, from, &request.prompt, request.max_tokens)
}

#[derive(Debug, Clone)]
struct Asked {
    model: usize,
    /// Which prompt, and how much of it.
    prompt: usize,
    len: usize,
    /// The point of activation, in hundredths of the prompt.
    from: usize,
    answer: usize,
    leaves: bool,
}

impl Asked {
    fn request(&self) -> GenerateRequest {
        let tokens = prompt(self.prompt, self.len);
        request(&nth(self.model), &tokens, self.from * self.len / 100, self.answer)
    }
}

fn asked() -> impl Strategy<Value = Vec<Asked>> {
    // Few prompts and models, so that prefixes of all kinds are shared.
    let one =
        (0usize..4, 0usize..2, 1usize..40, 0usize..100, 1usize..14, prop::bool::weighted(0.1));
    let one = one.prop_map(|(model, prompt, len, from, answer, leaves)| Asked {
        model,
        prompt,
        len,
        from,
        answer,
        leaves,
    });
    prop::collection::vec(one, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        rng_seed: RngSeed::Fixed(20_261_128),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_points_chunkings_and_cache_states_give_the_tokens_of_a_computation_from_scratch(
        asked in asked(),
        mode in prop::sample::select(&MODES[..]),
        chunk in 1usize..12,
        blocks in prop::sample::select(&[30usize, 60, 400][..]),
        prefix_cache: bool,
    ) {
        let limits = StepLimits { prefill_chunk: chunk, prefix_cache, ..limits() };
        let engine = engine(Controls { blocks, ..controls(mode) }, mode, limits);
        let running: Vec<(GenerateRequest, Generation)> = asked
            .iter()
            .filter_map(|one| {
                let generation = engine.submit(one.request()).unwrap();
                (!one.leaves).then(|| (one.request(), generation))
            })
            .collect();
        for (request, generation) in running {
            prop_assert_eq!(collect(generation).ids(), expected(&request));
        }
        settled(&engine);
    }
}

#[test]
fn requests_that_are_preempted_are_computed_again_by_the_same_models() {
    let mut preempted = 0;
    for mode in MODES {
        let engine = engine(Controls { blocks: 40, ..controls(mode) }, mode, limits());
        let requests: Vec<_> = (0..32)
            .map(|n| {
                let len = 1 + n * 3 % 40;
                request(&nth(n % 5), &prompt(n % 7, len), n * 5 % len, 5 + n % 20)
            })
            .collect();
        let running: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        for (request, generation) in requests.iter().zip(running) {
            assert_eq!(collect(generation).ids(), expected(request), "{mode:?}");
        }
        settled(&engine);
        preempted += engine.stats().preempted;
    }
    assert!(preempted > 0);
}

#[test]
fn a_prompt_is_computed_once_for_all_preferences() {
    for mode in MODES {
        let engine = engine(controls(mode), mode, limits());
        let long = prompt(1, 43);
        let cached = |n: usize, from: usize| {
            let request = request(&nth(n), &long, from, 4);
            let answer = run(&engine, request.clone());
            assert_eq!(answer.ids(), expected(&request));
            answer.finished.unwrap().usage.cached_tokens
        };
        assert_eq!(cached(0, 41), 0);
        // Blocks of 4: the one that the models take over in is each model's own.
        assert_eq!(cached(1, 41), 40, "{mode:?}: another preference");
        assert_eq!(cached(1, 42), 40, "{mode:?}: another point in the same block");
        assert_eq!(cached(2, 38), 36, "{mode:?}: another point");
        assert_eq!(cached(2, 43 - 1), 40);
        assert_eq!(cached(3, 0), 0, "{mode:?}: all of it is the model's");
        assert_eq!(cached(3, 0), 40);
    }
}

#[test]
fn a_comparison_computes_its_prompt_once_at_once() {
    for mode in MODES {
        let engine = engine(Controls { merged_models: 20, ..controls(mode) }, mode, limits());
        let long = prompt(1, 43);
        let requests: Vec<_> = (0..16).map(|n| request(&nth(n), &long, 41, 3)).collect();
        let running = engine.submit_all(requests.clone()).unwrap();
        for (request, generation) in requests.iter().zip(running) {
            assert_eq!(collect(generation).ids(), expected(request), "{mode:?}");
        }
        // One computes 43 rows, each of the others its last 3.
        assert_eq!(engine.stats().prompt_tokens, 43 + 15 * 3, "{mode:?}");
    }
}

#[test]
fn backbones_that_decode_side_by_side_share_the_prompt() {
    for mode in MODES {
        let blocks = if mode == MergeMode::Fused { 400 } else { 60 };
        let engine = engine(Controls { blocks, ..controls(mode) }, mode, limits());
        for (len, from) in [(43, 41), (43, 20), (5, 4), (3, 0), (44, 43)] {
            let combine = Combine::Logits(vec![0.5, 0.3, 0.2]);
            let one = request(&nth(0), &prompt(len, len), from, 6);
            let one = GenerateRequest { combine, ..one };
            let mut tokens = one.prompt.clone();
            for _ in 0..6 {
                let hot = |i| c([0, 1, 2].map(|j| f64::from(u8::from(i == j))));
                let rows: Vec<_> = (0..3).map(|i| logits_from(&hot(i), from, &tokens)).collect();
                let mixed: Vec<f32> = (0..VOCABULARY)
                    .map(|id| 0.5 * rows[0][id] + 0.3 * rows[1][id] + 0.2 * rows[2][id])
                    .collect();
                tokens.push(argmax(&mixed[..=EOS as usize]));
            }
            let answer = run(&engine, one);
            assert_eq!(answer.ids(), tokens[len..], "{mode:?} {len} {from}");
        }
        settled(&engine);
    }
}

#[test]
fn log_probabilities_of_the_prompt_are_those_of_the_model_that_computed_each_row() {
    for mode in MODES {
        let engine = engine(controls(mode), mode, limits());
        let tokens = prompt(2, 30);
        let echo = GenerateRequest { prompt_logprobs: Some(1), ..request(&nth(1), &tokens, 22, 2) };
        let answer = run(&engine, echo.clone());
        assert_eq!(answer.ids(), expected(&echo));
        assert_eq!(answer.prompt.len(), 29);
        for (row, got) in answer.prompt.iter().enumerate() {
            let logits = logits_from(&nth(1), 22, &tokens[..=row]);
            assert_eq!(got.top[0].0, argmax(&logits[..=EOS as usize]), "{mode:?} row {row}");
        }
        // θ_sft's, before the point: equal for all preferences.
        let other = GenerateRequest { coefficients: nth(2), ..echo };
        let other = run(&engine, other);
        assert_eq!(answer.prompt[..22], other.prompt[..22]);
        assert_ne!(answer.prompt[22..], other.prompt[22..]);
    }
}

#[test]
fn pinned_models_answer_fused_on_prompts_that_all_requests_share() {
    let config = EngineConfig {
        limits: limits(),
        merge_mode: MergeMode::Auto,
        pinned: vec![Pin { name: "hot".to_owned(), coefficients: nth(0) }],
        ..EngineConfig::default()
    };
    let controls = Arc::new(controls(MergeMode::Auto));
    let engine = start(HashSoup::new(controls), byte_tokenizer(), config).unwrap();
    let long = prompt(1, 43);
    for (n, mode, cached) in [(1, Mode::Mixed, 0), (0, Mode::Fused, 40), (2, Mode::Mixed, 40)] {
        let request = request(&nth(n), &long, 41, 6);
        let answer = run(&engine, request.clone());
        assert_eq!(answer.ids(), expected(&request));
        assert_eq!(answer.started.unwrap().mode, mode);
        assert_eq!(answer.finished.unwrap().usage.cached_tokens, cached);
    }
}

#[test]
fn fused_engines_keep_the_model_of_the_prompts() {
    let controls = Controls { merged_models: 1, ..controls(MergeMode::Fused) };
    let config = EngineConfig { merge_mode: MergeMode::Fused, ..EngineConfig::default() };
    let refused = start(HashSoup::new(Arc::new(controls)), byte_tokenizer(), config);
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("at least 2 merged models"), "{refused}");
}

#[test]
fn the_point_of_activation_is_given_exactly_where_the_soup_has_one() {
    let tokens = prompt(1, 5);
    let point = |from| GenerateRequest { active_from: from, ..request(&nth(0), &tokens, 0, 2) };
    let answer_only = engine(controls(MergeMode::Mixed), MergeMode::Mixed, limits());
    let all = engine(Controls::default(), MergeMode::Mixed, limits());
    for (engine, from, part) in [
        (&answer_only, None, "active_from: nothing, expected a position below 5"),
        (&answer_only, Some(5), "active_from: 5, expected a position below 5"),
        (&all, Some(0), "active_from: 0, expected nothing"),
    ] {
        let error = engine.submit(point(from)).err().unwrap().to_string();
        assert!(error.starts_with(part), "{error}");
    }
    assert!(answer_only.submit(point(Some(4))).is_ok() && all.submit(point(None)).is_ok());
}
