//! Answers that are held to a grammar, beside others that are not.

use ladle::grammar::{Compiler, Constraint, Grammar};

use super::*;

/// The grammar of 12 letters from a to m.
fn letters() -> Grammar {
    let compiler = Compiler::new(byte_tokenizer(), VOCABULARY);
    compiler.compile(Constraint::Regex("[a-m]{12}".to_owned())).unwrap()
}

fn held(c: &Coefficients, prompt: Vec<u32>, grammar: &Grammar) -> GenerateRequest {
    GenerateRequest { grammar: Some(grammar.clone()), ignore_eos: false, ..request(c, prompt, 40) }
}

/// The likeliest such answer: at each position the likeliest of the letters, then the end.
fn likeliest(c: &Coefficients, from: usize, prompt: &[u32]) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..12 {
        let logits = logits_from(c, from, &tokens);
        let letters = (u32::from(b'a')..=u32::from(b'm')).rev();
        let best = letters.max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]));
        tokens.push(best.unwrap());
    }
    tokens.push(EOS);
    tokens.split_off(prompt.len())
}

#[test]
fn an_answer_keeps_to_its_grammar_and_others_are_what_they_were() {
    let grammar = letters();
    for mode in MODES {
        for blocks in [400, 40] {
            // With 40 blocks running requests are preempted, and computed again.
            let controls = Arc::new(Controls { blocks, ..Controls::default() });
            let engine = engine(&controls, config(mode));
            let generations: Vec<_> = (0..24)
                .map(|n| {
                    let (c, prompt) = (nth(n % 5), prompt(n, 3 + n * 5 % 20));
                    let request = match n % 2 {
                        0 => held(&c, prompt, &grammar),
                        _ => request(&c, prompt, 20),
                    };
                    engine.submit(request).unwrap()
                })
                .collect();
            for (n, generation) in generations.into_iter().enumerate() {
                let (answer, c, prompt) =
                    (collect(generation), nth(n % 5), prompt(n, 3 + n * 5 % 20));
                if n % 2 == 0 {
                    assert_eq!(answer.ids(), likeliest(&c, 0, &prompt), "{mode:?}, request {n}");
                    let reason = answer.finished.unwrap().reason;
                    assert_eq!(reason, FinishReason::Stop);
                } else {
                    assert_eq!(answer.ids(), greedy(&c, &prompt, 20), "{mode:?}, request {n}");
                }
            }
            settled(&engine);
            assert!(blocks > 40 || engine.stats().preempted > 0, "nothing was preempted");
        }
    }
}

#[test]
fn log_probabilities_and_biases_under_a_grammar_are_those_of_the_model() {
    let (grammar, controls) = (letters(), Arc::new(Controls::default()));
    let engine = engine(&controls, config(MergeMode::Auto));
    let (c, prompt) = (nth(1), prompt(1, 9));
    let mut biased = held(&c, prompt.clone(), &grammar);
    biased.sampling.logprobs = Some(VOCABULARY);
    // Neither a token outside the grammar nor a bias changes what is reported.
    biased.sampling.bias = vec![(u32::from(b'c'), 50.0), (7, 100.0)];
    let answer = run(&engine, biased);
    assert_eq!(answer.ids(), [vec![u32::from(b'c'); 12], vec![EOS]].concat());
    let logits = logits(&c, &prompt);
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let first = &answer.tokens[0];
    let of = |id: u32| (f64::from(logits[id as usize]) - total.ln()) as f32;
    assert!((first.logprob.unwrap() - of(first.id)).abs() < 1e-4);
    assert!(first.top.iter().take(200).all(|&(id, logprob)| (logprob - of(id)).abs() < 1e-4));
    settled(&engine);
}

#[test]
fn a_request_that_leaves_or_fails_in_its_grammar_holds_nothing() {
    let (grammar, controls) = (letters(), Arc::new(Controls::default()));
    // Fused, each model has a pass of its own, so that a panic is of one request.
    let engine = engine(&controls, config(MergeMode::Fused));
    controls.passes.hold_after(0);
    let left = engine.submit(held(&nth(0), prompt(0, 5), &grammar)).unwrap();
    let stays = engine.submit(held(&nth(1), prompt(1, 5), &grammar)).unwrap();
    let broken = engine.submit(held(&nth(2), vec![PANIC], &grammar)).unwrap();
    drop(left);
    controls.passes.open();
    assert!(collect(broken).failed.is_some());
    // It ran when another's pass panicked, and was computed again.
    assert_eq!(collect(stays).ids(), likeliest(&nth(1), 0, &prompt(1, 5)));
    settled(&engine);
}

#[test]
fn a_grammar_ends_its_answer_so_that_nothing_can_go_on_after_it() {
    let (grammar, controls) = (letters(), Arc::new(Controls::default()));
    let engine = engine(&controls, config(MergeMode::Mixed));
    let request = GenerateRequest { ignore_eos: true, ..held(&nth(0), prompt(0, 5), &grammar) };
    let Err(SubmitError::Invalid { field, .. }) = engine.submit(request).map(|_| ()) else {
        panic!("it was accepted");
    };
    assert_eq!(field, "ignore_eos");
}

#[test]
fn logits_of_several_backbones_are_mixed_before_the_mask() {
    let (grammar, controls) = (letters(), Arc::new(Controls::default()));
    let engine = engine(&controls, config(MergeMode::Mixed));
    let (prompt, weights) = (prompt(4, 6), [0.2, 0.5, 0.3]);
    let combine = Combine::Logits(weights.to_vec());
    let mixed = GenerateRequest { combine, ..held(&nth(0), prompt.clone(), &grammar) };
    let of = |lane: usize, tokens: &[u32]| {
        let mut backbones = [0.0; 3];
        backbones[lane] = 1.0;
        logits(&c(backbones), tokens)
    };
    let mut tokens = prompt.clone();
    for _ in 0..12 {
        let lanes = [0, 1, 2].map(|lane| of(lane, &tokens));
        let mean = |id: u32| -> f32 {
            (0..3).map(|lane| weights[lane] as f32 * lanes[lane][id as usize]).sum()
        };
        let letters = (u32::from(b'a')..=u32::from(b'm')).rev();
        tokens.push(letters.max_by(|&a, &b| mean(a).total_cmp(&mean(b))).unwrap());
    }
    tokens.push(EOS);
    assert_eq!(run(&engine, mixed).ids(), tokens[prompt.len()..]);
    settled(&engine);
}

#[test]
fn soups_that_are_active_on_the_answer_keep_to_grammars_too() {
    let grammar = letters();
    let controls = Arc::new(Controls { prompts_fused: Some(false), ..Controls::default() });
    let engine = engine(&controls, config(MergeMode::Mixed));
    for n in 0..6 {
        let (c, prompt) = (nth(n), prompt(n, 12));
        let request =
            GenerateRequest { active_from: Some(7), ..held(&c, prompt.clone(), &grammar) };
        assert_eq!(run(&engine, request).ids(), likeliest(&c, 7, &prompt), "request {n}");
    }
    settled(&engine);
}
