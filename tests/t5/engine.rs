//! The engine: company, modes, what is computed once, MOD, little memory, refusals.

use ladle::{
    engine::{
        Combine, CpuBackend, CpuOptions, EngineConfig, EngineHandle, FinishReason, GenerateRequest,
        MergeMode, Pooling, StepLimits, SubmitError, start,
    },
    kernels::cpu::CpuKernels,
    preference::Coefficients,
    sampling::SamplingParams,
    soup::Soup,
    tokenizer::Tokenizer,
};

use crate::{
    Expected, SOUPS, TOLERANCE,
    answers::{collect, run, settled},
    expected,
    kernels::{argmax, feed, written_out},
    soups::open,
};

const MODES: [MergeMode; 3] = [MergeMode::Auto, MergeMode::Fused, MergeMode::Mixed];

/// An engine whose steps take `step_tokens`, with `kv_bytes` of keys and values.
fn engine(soup: &Soup, merge_mode: MergeMode, step_tokens: usize, kv_bytes: usize) -> EngineHandle {
    let limits =
        StepLimits { step_tokens, prefill_chunk: 16, lanes: 12, ..EngineConfig::default().limits };
    let options = CpuOptions {
        threads: Some(2),
        kv_bytes,
        merged_bytes: 8 << 20,
        merge_mode,
        ..CpuOptions::default()
    };
    let tokenizer = Tokenizer::from_dir(&soup.base_dir).unwrap();
    let backend = CpuBackend::open(soup, &options).unwrap();
    start(backend, tokenizer, EngineConfig { limits, merge_mode, ..EngineConfig::default() })
        .unwrap()
}

fn request(expected: &Expected, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() },
        ..GenerateRequest::new(expected.prompt.clone(), expected.c.clone(), max_tokens)
    }
}

#[test]
fn answers_in_company_are_those_of_transformers_in_every_mode() {
    for name in SOUPS {
        let soup = open(name);
        let expected = expected(name);
        for mode in MODES {
            // Steps of the longest prompt alone, and steps of all prompts.
            for step_tokens in [128, 4096] {
                let engine = engine(&soup, mode, step_tokens, 8 << 20);
                let open_ended =
                    |one| GenerateRequest { ignore_eos: true, ..request(one, one.greedy.len()) };
                let all: Vec<_> = expected
                    .iter()
                    .flat_map(|one| [open_ended(one), request(one, 64)])
                    .map(|request| engine.submit(request).unwrap())
                    .collect();
                let answers: Vec<_> = all.into_iter().map(collect).collect();
                for (index, (pair, one)) in answers.chunks(2).zip(&expected).enumerate() {
                    let what = format!("{name} {mode:?} {step_tokens} answer {index}");
                    assert_eq!(pair[0].ids(), one.greedy, "{what}");
                    assert_eq!(pair[1].ids(), one.generated, "{what}");
                    assert_eq!(pair[1].text(), one.text, "{what}");
                    let finished = pair[1].finished.as_ref().unwrap();
                    let ends = one.generated.last() == Some(&1);
                    let reason = if ends { FinishReason::Stop } else { FinishReason::Length };
                    assert_eq!(finished.reason, reason, "{what}");
                    assert_eq!(finished.usage.prompt_tokens, one.prompt.len(), "{what}");
                    for (row, logits) in &one.logits {
                        let most = logits.iter().copied().fold(f32::MIN, f32::max);
                        let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
                        let got = pair[0].tokens[*row].logprob.unwrap();
                        assert!(
                            (got + sum.ln()).abs() < 2.0 * TOLERANCE,
                            "{what} row {row}: {got}"
                        );
                    }
                }
                settled(&engine);
            }
        }
    }
}

#[test]
fn a_prompt_is_encoded_once_for_its_coefficients_and_as_a_whole() {
    let soup = open("soup-t5");
    let all = expected("soup-t5");
    let (one, other) = (&all[1], &all[4]);
    assert_eq!(one.prompt, other.prompt);
    for mode in [MergeMode::Fused, MergeMode::Mixed] {
        let engine = engine(&soup, mode, 4096, 8 << 20);
        let cached = |request| run(&engine, request).finished.unwrap().usage.cached_tokens;
        let several = engine.submit_all(vec![request(one, 20); 4]).unwrap();
        let several: Vec<_> = several.into_iter().map(collect).collect();
        let usage =
            several.iter().map(|answer| answer.finished.clone().unwrap().usage.cached_tokens);
        assert_eq!(
            usage.collect::<Vec<_>>(),
            [0, one.prompt.len(), one.prompt.len(), one.prompt.len()]
        );
        assert!(several.iter().all(|answer| answer.ids() == several[0].ids()));
        assert_eq!(engine.stats().prompt_tokens as usize, one.prompt.len(), "{mode:?}");
        assert_eq!(cached(request(one, 3)), one.prompt.len(), "{mode:?}");
        assert_eq!(cached(request(other, 3)), 0, "other coefficients");
        // Another end changes what the encoder makes of the beginning.
        let mut changed = request(one, 3);
        *changed.prompt.last_mut().unwrap() = 5;
        assert_eq!(cached(changed), 0, "another end");
        let mut shorter = request(one, 3);
        shorter.prompt.truncate(32);
        assert_eq!(cached(shorter), 0, "a beginning");
        settled(&engine);
    }
}

#[test]
fn with_little_memory_prompts_are_encoded_again() {
    for mode in [MergeMode::Fused, MergeMode::Mixed] {
        let soup = open("soup-t5-gated");
        let all = expected("soup-t5-gated");
        let block = 2 * 16 * 3 * 12 * 4;
        // The longest request takes 12 blocks.
        let engine = engine(&soup, mode, 4096, 14 * block);
        let generations: Vec<_> = all
            .iter()
            .map(|one| GenerateRequest { ignore_eos: true, ..request(one, 64) })
            .map(|request| engine.submit(request).unwrap())
            .collect();
        for (generation, one) in generations.into_iter().zip(&all) {
            assert_eq!(collect(generation).ids(), one.greedy, "{mode:?}");
        }
        assert!(engine.stats().preempted > 0, "{mode:?}: nobody lost its place");
        settled(&engine);
    }
}

#[test]
fn logits_of_backbones_are_combined() {
    for name in SOUPS {
        let soup = open(name);
        let kernels = CpuKernels::new(2);
        let weights = [0.9, -0.4, 0.5];
        let prompt = expected(name).remove(0).prompt;
        let one_hot = |hot: usize| {
            let backbones = (0..3).map(|i| if i == hot { 1.0 } else { 0.0 }).collect();
            Coefficients { backbones, sft: 0.0 }
        };
        for mode in [MergeMode::Fused, MergeMode::Mixed] {
            let engine = engine(&soup, mode, 4096, 8 << 20);
            let answer = run(
                &engine,
                GenerateRequest {
                    combine: Combine::Logits(weights.to_vec()),
                    sampling: SamplingParams::greedy(),
                    ignore_eos: true,
                    ..GenerateRequest::new(prompt.clone(), one_hot(0), 24)
                },
            );
            let greedy = answer.ids();
            let lanes: Vec<_> = (0..3)
                .map(|hot| {
                    let (c, prompt, greedy) = (one_hot(hot), prompt.clone(), greedy.clone());
                    let (generated, text, logits) = (Vec::new(), String::new(), Vec::new());
                    let lane = Expected { c, prompt, greedy, generated, text, logits };
                    feed(&kernels, &written_out(&soup, &lane.c), None, &[&lane], 24).remove(0)
                })
                .collect();
            for (row, id) in greedy.iter().enumerate() {
                let sum: Vec<f32> = (0..lanes[0][row].len())
                    .map(|at| (0..3).map(|lane| weights[lane] as f32 * lanes[lane][row][at]).sum())
                    .collect();
                assert_eq!(argmax(&sum), *id, "{name} {mode:?} row {row}");
            }
            settled(&engine);
        }
    }
}

#[test]
fn what_an_encoder_cannot_do_is_refused_by_name() {
    let soup = open("soup-t5");
    let one = &expected("soup-t5")[0];
    let engine = engine(&soup, MergeMode::Auto, 64, 8 << 20);
    let refused = |request, field: &str, parts: &[&str]| match engine.submit(request).err() {
        Some(SubmitError::Invalid { field: got, reason }) => {
            assert_eq!(got, field, "{reason}");
            parts.iter().for_each(|part| assert!(reason.contains(part), "{reason}"));
        }
        other => panic!("{other:?}"),
    };
    let long = GenerateRequest { prompt: vec![5; 65], ..request(one, 1) };
    refused(long.clone(), "prompt", &["65 tokens", "at most 64", "max_step_tokens = 64"]);
    let lanes = Combine::Logits(vec![0.5, 0.25, 0.25]);
    let side_by_side = GenerateRequest { prompt: vec![5; 17], combine: lanes, ..request(one, 1) };
    refused(side_by_side, "prompt", &["17 tokens", "at most 16", "once for each lane"]);
    let scored = GenerateRequest { prompt_logprobs: Some(0), ..request(one, 1) };
    refused(scored, "prompt_logprobs", &["encodes a prompt"]);
    let embedded = GenerateRequest { embed: Some(Pooling::Last), ..request(one, 1) };
    refused(embedded, "embed", &["encodes a prompt"]);
    let whole = GenerateRequest { prompt: vec![5; 64], ..request(one, 1) };
    assert_eq!(run(&engine, whole).tokens.len(), 1);
}
