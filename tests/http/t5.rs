//! T5 through the routes: answers of transformers and PEFT (tests/reference/make_tiny_t5.py), n, streams,
//! and what an encoder cannot do.

use std::fs;

use ladle::config::ServeOptions;
use serde_json::{Value, json};

use crate::server::{Server, fixture, options, with};

fn start(soup: &str) -> Server {
    Server::start(ServeOptions { soup: Some(fixture(soup)), ..options() })
}

fn reference(soup: &str) -> Value {
    let path = fixture(&format!("{soup}-reference.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A greedy request for a prompt of the reference by the soup's first backbone: B⁻¹μ = e₁.
fn first(document: &Value, prompt: usize) -> Value {
    json!({"prompt": document["prompts"][prompt], "preference": [0.7, 0.15, 0.15], "max_tokens": 64,
        "temperature": 0})
}

/// What the reference's first backbone answers it with.
fn answer(document: &Value, prompt: usize) -> &Value {
    let mut answers = document["answers"].as_array().unwrap().iter();
    answers.find(|answer| answer["model"] == "first" && answer["prompt"] == prompt).unwrap()
}

#[test]
fn prompts_are_answered_as_by_transformers() {
    for soup in ["soup-t5", "soup-t5-gated"] {
        let (server, document) = (start(soup), reference(soup));
        for prompt in 0..3 {
            let (body, expected) = (first(&document, prompt), answer(&document, prompt));
            let got = server.generate(body.clone());
            assert!(
                (got["coefficients"]["relevant"].as_f64().unwrap() - 1.0).abs() < 1e-9,
                "{got}"
            );
            assert_eq!(got["text"], expected["text"], "{soup} {prompt}");
            let (tokens, generated) = (&document["tokens"][prompt], &expected["generate"]);
            let count = |list: &Value| list.as_array().unwrap().len();
            assert_eq!(got["usage"]["prompt_tokens"], count(tokens));
            assert_eq!(got["usage"]["completion_tokens"], count(generated));

            let events = server.stream("/generate", with(body.clone(), json!({"stream": true})));
            let pieces = events.iter().filter(|(name, _)| name == "token");
            let text = |(_, data): &(String, String)| {
                let data: Value = serde_json::from_str(data).unwrap();
                data["text"].as_str().unwrap().to_owned()
            };
            let streamed: String = pieces.map(text).collect();
            assert_eq!(streamed, expected["text"].as_str().unwrap(), "{soup} {prompt}");

            let completion = server.post("/v1/completions", with(body, json!({"n": 2}))).ok();
            for choice in completion["choices"].as_array().unwrap() {
                assert_eq!(choice["text"], expected["text"], "{soup} {prompt}");
            }
        }
        server.wait_until_idle();
    }
}

#[test]
fn a_repeated_prompt_is_not_encoded_again_and_seeds_repeat_draws() {
    let (server, document) = (start("soup-t5"), reference("soup-t5"));
    let drawn = json!({"temperature": 0.9, "seed": 7, "n": 3, "logprobs": 2, "max_tokens": 12});
    let body = with(first(&document, 1), drawn);
    let (once, again) = (server.generate(body.clone()), server.generate(body));
    let texts = |answer: &Value| {
        let choices = answer["choices"].as_array().unwrap().iter();
        choices.map(|choice| choice["text"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&once), texts(&again));
    let tokens = document["tokens"][1].as_array().unwrap().len();
    assert_eq!(server.metric("ladle_prompt_tokens_total"), tokens as f64);
}

#[test]
fn what_an_encoder_cannot_do_is_refused_by_name() {
    let server = start("soup-t5");
    let even = json!({"preference": [1, 1, 1], "max_tokens": 1});
    let scored = with(even.clone(), json!({"prompt": "a", "echo": true, "logprobs": 1}));
    let reply = server.post("/v1/completions", scored);
    assert_eq!((reply.status, reply.error().1), (400, Some("echo")), "{}", reply.body);
    let reply = server.post("/v1/embeddings", json!({"input": "a", "preference": [1, 1, 1]}));
    assert_eq!((reply.status, reply.error().1), (400, Some("model")), "{}", reply.body);
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    let chat = with(even.clone(), chat);
    let reply = server.post("/v1/chat/completions", chat);
    assert_eq!(reply.status, 400, "{}", reply.body);
    assert!(reply.error().2.contains("chat template"), "{}", reply.body);
    let long = with(even, json!({"prompt": "the soup ".repeat(400)}));
    let reply = server.post("/generate", long);
    assert_eq!((reply.status, reply.error().1), (400, Some("prompt")), "{}", reply.body);
    assert!(reply.error().2.contains("max_step_tokens"), "{}", reply.body);
}
