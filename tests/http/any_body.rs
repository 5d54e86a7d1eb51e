//! Whatever JSON a client sends, it gets an answer or an error of its own, and the server stays.

use proptest::prelude::*;
use serde_json::{Map, Number, Value, json};

use crate::server::{Server, greedy, with};

const FIELDS: &[&str] = &[
    "model",
    "prompt",
    "messages",
    "preference",
    "alpha",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "n",
    "best_of",
    "logprobs",
    "top_logprobs",
    "echo",
    "ignore_eos",
    "stream",
    "stream_options",
    "priority",
    "combine",
    "add_special_tokens",
    "tokens",
    "logit_bias",
    "response_format",
    "tools",
    "min_tokens",
    "role",
    "content",
    "type",
    "text",
    "helpful",
    "include_usage",
];

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-3i64..300).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3.0..3.0f64).prop_map(Value::from),
        any::<f64>().prop_map(|number| Number::from_f64(number).map_or(Value::Null, Value::from)),
        Just(json!(-0.0)),
    ]
}

fn text() -> impl Strategy<Value = Value> {
    let words =
        ["", "user", "text", "logits", "terse", "soup-tiny:terse", "helpful=1", "\u{0}é▁\n"];
    prop_oneof![
        prop::sample::select(words.to_vec()).prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(FIELDS.to_vec()).prop_map(str::to_owned),
        1 => "[a-z_]{1,12}",
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), number(), text(),];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..4)
                .prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_fields_give_an_answer_or_an_error_of_the_client(
        path in prop::sample::select(vec![
            "/generate", "/v1/chat/completions", "/v1/completions", "/v1/solve", "/tokenize", "/detokenize",
        ]),
        fields in prop::collection::btree_map(name(), value(), 1..4),
    ) {
        let base = match path {
            "/v1/chat/completions" => {
                json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2})
            }
            "/generate" | "/v1/completions" => json!({"prompt": "The soup is", "max_tokens": 2}),
            "/tokenize" => json!({"prompt": "The soup is"}),
            "/detokenize" => json!({"tokens": [5, 6]}),
            _ => json!({}),
        };
        let body = with(base, Value::Object(Map::from_iter(fields)));
        let response = Server::shared().send(path, body.clone());
        let status = response.status().as_u16();
        let answer = response.text().unwrap();
        prop_assert!([200, 400, 404].contains(&status), "{path} {body}: {status} {answer}");
        if status != 200 {
            let error: Value = serde_json::from_str(&answer).unwrap();
            let message = error["error"]["message"].as_str().unwrap();
            prop_assert!(!message.is_empty() && message.len() < 2000, "{path} {body}: {message}");
        } else {
            prop_assert!(!answer.contains("internal_error"), "{path} {body}: {answer}");
        }
    }
}

#[test]
fn the_server_answers_as_before_after_odd_bodies() {
    let server = Server::shared();
    let before = server.generate(greedy())["text"].clone();
    for body in ["{\"a\":\"\\ud800\"}", "{\"\":{}}", "{\"prompt\":[[[[]]]]}", "\u{feff}{}", "{}{}"]
    {
        let status = server.post_bytes("/generate", body).status;
        assert_eq!(status, 400, "{body}");
    }
    assert_eq!(server.generate(greedy())["text"], before);
}
