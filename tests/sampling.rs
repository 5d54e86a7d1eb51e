//! Sampling against transformers' logits processors (tests/reference/make_sampling.py).

use ladle::{
    rng,
    sampling::{History, SampleError, SamplingParams, logprobs, sample},
};
use serde_json::Value;

/// Draws on a grid over [0, 1): the share of a token is its probability to 2 / DRAWS.
const DRAWS: usize = 5_000;

fn rows() -> Vec<Value> {
    let text = include_str!("fixtures/sampling.json");
    let json: Value = serde_json::from_str(text).unwrap();
    json["rows"].as_array().unwrap().clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn params(value: &Value) -> SamplingParams {
    let get = |name: &str, default: f64| value[name].as_f64().unwrap_or(default) as f32;
    SamplingParams {
        temperature: get("temperature", 1.0),
        top_k: value["top_k"].as_u64().map(|k| k as usize),
        top_p: get("top_p", 1.0),
        min_p: get("min_p", 0.0),
        repetition_penalty: get("repetition_penalty", 1.0),
        frequency_penalty: get("frequency_penalty", 0.0),
        presence_penalty: get("presence_penalty", 0.0),
        ..SamplingParams::default()
    }
}

fn history(row: &Value) -> History {
    let mut history = History::new(&ids(&row["prompt"]));
    ids(&row["answer"]).into_iter().for_each(|id| history.push(id));
    history
}

#[test]
fn distributions_equal_those_of_transformers() {
    for (index, row) in rows().iter().enumerate() {
        let (logits, history) = (floats(&row["logits"]), history(row));
        for case in row["cases"].as_array().unwrap() {
            let (kept, p) = (ids(&case["ids"]), floats(&case["p"]));
            let mut expected = vec![0.0; logits.len()];
            kept.iter().zip(&p).for_each(|(&id, &p)| expected[id as usize] = f64::from(p));

            let params = params(&case["params"]);
            params.check().unwrap();
            let mut counts = vec![0usize; logits.len()];
            for draw in 0..DRAWS {
                let uniform = (draw as f64 + 0.5) / DRAWS as f64;
                let token = sample(&mut logits.clone(), &history, &params, uniform).unwrap();
                counts[token.id as usize] += 1;
            }
            for (id, (&count, &p)) in counts.iter().zip(&expected).enumerate() {
                let share = count as f64 / DRAWS as f64;
                let context = format!("row {index} {} token {id}: {share} vs {p}", case["params"]);
                assert!((share - p).abs() < 2.0 / DRAWS as f64, "{context}");
                assert!(count == 0 || p > 0.0, "outside the kept set: {context}");
            }
        }
    }
}

#[test]
fn log_probabilities_are_of_the_unmodified_distribution() {
    for row in rows() {
        let (logits, expected) = (floats(&row["logits"]), floats(&row["logprobs"]));
        let strong = SamplingParams {
            temperature: 0.3,
            top_k: Some(3),
            repetition_penalty: 2.0,
            logprobs: Some(5),
            ..SamplingParams::default()
        };
        let sampled = sample(&mut logits.clone(), &history(&row), &strong, 0.5).unwrap();
        let close = |a: f32, id: u32| (a - expected[id as usize]).abs() < 2e-6;
        assert!(close(sampled.logprob.unwrap(), sampled.id));
        assert_eq!(sampled.top.iter().map(|t| t.0).collect::<Vec<_>>(), ids(&row["top"]));
        assert!(sampled.top.iter().all(|&(id, logprob)| close(logprob, id)));
        for id in 0..logits.len() as u32 {
            assert!(close(logprobs(&logits, id, 0).unwrap().0, id));
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    let mut logits = vec![0.0, 3.0, -1.0, 3.0];
    let token = sample(&mut logits, &History::default(), &SamplingParams::greedy(), 0.9).unwrap();
    assert_eq!((token.id, token.logprob), (1, None));
}

#[test]
fn a_seeded_stream_follows_the_distribution() {
    let logits = [1.0f32, 0.0, -1.0, 0.5, -2.0];
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let n = 50_000u64;
    let mut counts = [0u64; 5];
    let params = SamplingParams::default();
    for index in 0..n {
        let uniform = rng::uniform(42, index);
        let token = sample(&mut logits.to_vec(), &History::default(), &params, uniform).unwrap();
        counts[token.id as usize] += 1;
    }
    let expected = logits.map(|x| n as f64 * f64::from(x).exp() / total);
    let chi2: f64 = counts.iter().zip(expected).map(|(&c, e)| (c as f64 - e).powi(2) / e).sum();
    // Four degrees of freedom: 18.5 is the 99.9 % point.
    assert!(chi2 < 18.5, "χ² = {chi2}: {counts:?} vs {expected:?}");
}

#[test]
fn logits_that_are_no_distribution_are_an_error_and_masked_tokens_are_not() {
    let all = [
        SamplingParams::default(),
        SamplingParams::greedy(),
        SamplingParams { top_k: Some(2), ..SamplingParams::default() },
        SamplingParams { top_p: 0.5, ..SamplingParams::default() },
        SamplingParams { logprobs: Some(1), ..SamplingParams::default() },
    ];
    let none = f32::NEG_INFINITY;
    for params in all {
        let run = |mut logits: Vec<f32>, u| sample(&mut logits, &History::default(), &params, u);
        for bad in [f32::NAN, f32::INFINITY] {
            let error = run(vec![0.0, 1.0, bad, 2.0], 0.5).unwrap_err();
            assert!(matches!(error, SampleError::NotFinite { id: 2, .. }), "{error}");
        }
        assert_eq!(run(vec![none; 4], 0.5), Err(SampleError::Empty { vocabulary: 4 }));
        assert_eq!(run(vec![], 0.5), Err(SampleError::Empty { vocabulary: 0 }));
        for u in [0.0, 0.3, 0.999_999_999_999] {
            assert_eq!(run(vec![none, none, -5.0, none], u).unwrap().id, 2);
        }
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let ok = SamplingParams::default();
    let cases = [
        ("temperature", SamplingParams { temperature: -0.1, ..ok.clone() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..ok.clone() }),
        ("top_k", SamplingParams { top_k: Some(0), ..ok.clone() }),
        ("top_p", SamplingParams { top_p: 0.0, ..ok.clone() }),
        ("top_p", SamplingParams { top_p: 1.1, ..ok.clone() }),
        ("min_p", SamplingParams { min_p: f32::NAN, ..ok.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..ok.clone() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: f32::INFINITY, ..ok.clone() }),
        ("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..ok.clone() }),
    ];
    for (name, params) in cases {
        assert_eq!(params.check().unwrap_err().name, name);
    }
    ok.check().unwrap();
}
