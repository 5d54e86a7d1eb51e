//! `/v1/embeddings`: the hidden state that the logits of the next token are made of.

use ladle::config::{MergeMode, ServeOptions};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::server::{Server, copied, fixture, options, with};

const EMBEDDINGS: &str = "/v1/embeddings";

fn vectors(server: &Server, body: Value) -> Vec<Vec<f64>> {
    let answer = server.post(EMBEDDINGS, body).ok();
    let vector = |one: &Value| -> Vec<f64> {
        one["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    answer["data"].as_array().unwrap().iter().map(vector).collect()
}

/// Rows of the head of the tiny base, which no backbone changes.
fn head() -> Vec<Vec<f64>> {
    let bytes = std::fs::read(fixture("soup-tiny/base/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let name = ["lm_head.weight", "model.embed_tokens.weight"];
    let tensor = name.iter().find_map(|name| tensors.tensor(name).ok()).unwrap();
    let width = tensor.shape()[1];
    let value = |bytes: &[u8]| match tensor.dtype() {
        safetensors::Dtype::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        safetensors::Dtype::BF16 => f64::from(f32::from_bits(
            u32::from(u16::from_le_bytes(bytes.try_into().unwrap())) << 16,
        )),
        other => panic!("{other:?}"),
    };
    let size = tensor.data().len() / (tensor.shape()[0] * width);
    let values: Vec<f64> = tensor.data().chunks_exact(size).map(value).collect();
    values.chunks_exact(width).map(<[f64]>::to_vec).collect()
}

#[test]
fn the_head_makes_the_next_tokens_log_probabilities_of_an_embedding() {
    let head = head();
    for mode in [MergeMode::Fused, MergeMode::Mixed] {
        let server = Server::start(ServeOptions { merge_mode: Some(mode), ..options() });
        for preference in [json!([1, 0, 0]), json!([0.2, 0.3, 0.5])] {
            let embedding =
                &vectors(&server, json!({"input": "The soup is", "preference": preference}))[0];
            let length: f64 = embedding.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
            let body = json!({"prompt": "The soup is", "preference": preference, "max_tokens": 1, "logprobs": 20,
                "temperature": 0});
            let top = server.generate(body)["tokens"][0]["top"].clone();
            let top: Vec<(f64, f64)> = top
                .as_array()
                .unwrap()
                .iter()
                .map(|token| {
                    let row = &head[token["id"].as_u64().unwrap() as usize];
                    let logit: f64 = row.iter().zip(embedding).map(|(a, b)| a * b).sum();
                    (logit, token["logprob"].as_f64().unwrap())
                })
                .collect();
            // The embedding has lost its length: log-probabilities are its logits times one factor,
            // less one constant.
            let (first, last) = (top[0], top[top.len() - 1]);
            let factor = (first.1 - last.1) / (first.0 - last.0);
            assert!(factor > 0.0);
            for (logit, logprob) in &top {
                let expected = first.1 + factor * (logit - first.0);
                assert!((logprob - expected).abs() < 0.02, "{mode:?}: {logprob} beside {expected}");
            }
        }
    }
}

/// tests/reference/make_embeddings.py made the numbers.
#[test]
fn last_and_mean_states_are_those_of_transformers() {
    let text = std::fs::read(fixture("embeddings.json")).unwrap();
    let reference: Value = serde_json::from_slice(&text).unwrap();
    let few = Some(5.try_into().unwrap());
    let tokens = &reference["tokens"];
    for soup in ["soup-tiny", "soup-tiny-mixed"] {
        for mode in [MergeMode::Fused, MergeMode::Mixed] {
            // A prompt takes several steps.
            let server = Server::start(ServeOptions {
                soup: Some(fixture(soup)),
                merge_mode: Some(mode),
                max_step_tokens: few,
                max_sequences: few,
                ..options()
            });
            let cases = reference["cases"].as_array().unwrap().iter();
            for case in cases.filter(|case| case["soup"] == soup) {
                for pooling in ["last", "mean"] {
                    let input = json!({"input": tokens, "pooling": pooling});
                    let got = &vectors(&server, with(input, case["asked"].clone()))[0];
                    let expected = case[pooling].as_array().unwrap();
                    assert_eq!(got.len(), expected.len());
                    let apart = got.iter().zip(expected).map(|(x, y)| x - y.as_f64().unwrap());
                    let worst = apart.fold(0.0, |worst: f64, x| worst.max(x.abs()));
                    assert!(worst < 1e-3, "{mode:?} {pooling} {}: {worst}", case["asked"]);
                }
            }
        }
    }
}

/// Where the backbones act on the last token alone, the mean over two is of one state of θ_sft and
/// one of the preference's model.
#[test]
fn a_mean_is_over_the_states_of_whatever_computes_each_token() {
    let soup = copied("soup-tiny");
    let manifest = soup.path().join("soup.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(manifest, format!("activation = \"answer\"\n{text}")).unwrap();
    let server = Server::start(ServeOptions { soup: Some(soup.path().to_owned()), ..options() });
    let of =
        |ids: Value, more: Value| vectors(&server, with(json!({"input": ids}), more))[0].clone();
    let terse = json!({"preference": "terse"});
    let first = of(json!([301]), json!({"weights": "sft"}));
    let last = of(json!([301, 17]), terse.clone());
    let mean = of(json!([301, 17]), with(terse, json!({"pooling": "mean"})));
    // The mean of two vectors lies in their plane, between them.
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (a, b, c) = (dot(&mean, &first), dot(&mean, &last), dot(&first, &last));
    let (x, y) = ((a - b * c) / (1.0 - c * c), (b - a * c) / (1.0 - c * c));
    let rest = mean.iter().zip(first.iter().zip(&last)).map(|(m, (f, l))| m - x * f - y * l);
    let rest = rest.fold(0.0, |worst: f64, x| worst.max(x.abs()));
    assert!(x > 0.0 && y > 0.0 && rest < 1e-3, "{x} {y} {rest}");
    let other = json!({"pooling": "mean", "weights": "sft"});
    assert!(dot(&of(json!([301, 17]), other), &mean) < 0.999);
    // θ_sft needs no tokens that activate backbones.
    let soup = Some(fixture("soup-tiny-answer"));
    let server = Server::start(ServeOptions { soup, ..options() });
    server.post(EMBEDDINGS, json!({"input": "x", "weights": "sft"})).ok();
    assert_eq!(server.post(EMBEDDINGS, json!({"input": "x"})).error().1, Some("input"));
}

#[test]
fn inputs_come_in_every_form_and_embeddings_in_two() {
    let server = Server::shared();
    let ids = server.post("/tokenize", json!({"prompt": "A spoon"})).ok()["tokens"].clone();
    let both = vectors(server, json!({"input": ["The soup is", "A spoon"], "preference": "terse"}));
    let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    for (input, expected) in [
        (json!("The soup is"), &both[0]),
        (json!("A spoon"), &both[1]),
        (ids.clone(), &both[1]),
        (json!([ids]), &both[1]),
    ] {
        let one = vectors(server, json!({"input": input, "preference": "terse"}));
        assert!(one.len() == 1 && near(&one[0], expected), "{input}");
    }
    assert!(!near(&both[0], &both[1]));
    let other = vectors(server, json!({"input": "The soup is", "preference": [1, 0, 0]}));
    assert!(!near(&other[0], &both[0]), "the preference counts");
    let answer = server
        .post(
            EMBEDDINGS,
            json!({"input": ["The soup is"], "encoding_format": "base64", "preference": "terse"}),
        )
        .ok();
    let text = answer["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (both[0].len() * 4).div_ceil(3) * 4);
    let usage = &answer["usage"];
    let count = server.post("/tokenize", json!({"prompt": "The soup is"})).ok()["count"].clone();
    assert_eq!((&usage["prompt_tokens"], &usage["total_tokens"]), (&count, &count));
    server.wait_until_idle();
}

#[test]
fn embeddings_run_beside_generations_and_leave_them_as_they_are() {
    let server = Server::shared();
    let body = json!({"prompt": "The soup is", "seed": 3, "max_tokens": 24, "ignore_eos": true});
    let alone = server.generate(body.clone())["text"].clone();
    std::thread::scope(|scope| {
        let embeds: Vec<_> = (0..6)
            .map(|n| {
                scope.spawn(move || {
                    vectors(server, json!({"input": format!("Soup {n}"), "preference": [n, 1, 1]}))
                })
            })
            .collect();
        assert_eq!(server.generate(body)["text"], alone);
        assert!(embeds.into_iter().all(|embed| embed.join().unwrap().len() == 1));
    });
    // A soup whose backbones act on the answer only needs its tokens where they begin.
    let soup = fixture("soup-tiny-full");
    let full = Server::start(ServeOptions { soup: Some(soup), ..options() });
    assert_eq!(
        vectors(&full, json!({"input": "x"}))[0].len(),
        vectors(server, json!({"input": "x"}))[0].len()
    );
}

#[test]
fn what_embeddings_cannot_be_is_named() {
    let server = Server::shared();
    for (more, code, param) in [
        (json!({"input": ""}), "invalid_value", "input"),
        (json!({"input": []}), "invalid_value", "input"),
        (json!({"input": [600]}), "invalid_value", "input[0]"),
        (json!({"input": "word ".repeat(400)}), "context_length_exceeded", "input"),
        (json!({"encoding_format": "int8"}), "invalid_value", "encoding_format"),
        (json!({"pooling": "max"}), "invalid_value", "pooling"),
        (json!({"weights": "base"}), "invalid_value", "weights"),
        (json!({"weights": "sft", "preference": "terse"}), "invalid_value", "preference"),
        (json!({"weights": "sft", "alpha": 0}), "invalid_value", "alpha"),
        (json!({"weights": "sft", "model": "soup-tiny:terse"}), "invalid_value", "model"),
        (json!({"dimensions": 8}), "unsupported", "dimensions"),
        (json!({"max_tokens": 8}), "unknown_field", "max_tokens"),
    ] {
        let shown: String = more.to_string().chars().take(60).collect();
        let reply = server.post(EMBEDDINGS, with(json!({"input": "x"}), more));
        let (got, got_param, message) = reply.error();
        assert_eq!((reply.status, got, got_param), (400, code, Some(param)), "{shown}: {message}");
    }
}
