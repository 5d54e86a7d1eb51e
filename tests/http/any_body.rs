//! Whatever JSON a client sends, it gets an answer or an error of its own, and the server stays.

use std::{num::NonZeroUsize, sync::OnceLock};

use ladle::config::ServeOptions;
use proptest::{prelude::*, test_runner::RngSeed};
use serde_json::{Map, Number, Value, json};

use crate::{
    routes::POSTS,
    server::{Server, greedy, options, with},
};

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
    "lambda",
    "chat_template_kwargs",
    "documents",
    "reasoning_effort",
    "thinking",
    "reasoning",
    "add_special",
    "skip_special",
    "input",
    "instructions",
    "system",
    "tool_choice",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "input_schema",
    "output_config",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "schema",
    "format",
    "properties",
    "items",
    "anyOf",
    "enum",
    "continue_final_message",
    "add_generation_prompt",
    "encoding_format",
    "max_output_tokens",
    "stop_sequences",
    "pooling",
    "weights",
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
    let words = [
        "",
        "user",
        "assistant",
        "text",
        "json_schema",
        "object",
        "logits",
        "terse",
        "soup-tiny:terse",
        "helpful=1",
        "\u{0}é▁\n",
    ];
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

/// Answers of at most 8 tokens.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let limits = || ServeOptions { max_tokens: NonZeroUsize::new(8), ..options() };
    SERVER.get_or_init(|| Server::start(limits()))
}

/// What a body of these bytes gets: an answer, or an error of the client in OpenAI's shape.
fn answered(path: &str, body: Vec<u8>) -> Result<(), TestCaseError> {
    let shown = String::from_utf8_lossy(&body).into_owned();
    let url = format!("{}{path}", server().url);
    let request = server().client.post(url).header("content-type", "application/json");
    let response = request.body(body).send().unwrap();
    let status = response.status().as_u16();
    let answer = response.text().unwrap();
    prop_assert!([200, 400, 404].contains(&status), "{path} {shown}: {status} {answer}");
    if status == 200 {
        prop_assert!(!answer.contains("internal_error"), "{path} {shown}: {answer}");
    } else {
        let error: Value = serde_json::from_str(&answer).unwrap();
        let message = error["error"]["message"].as_str().unwrap();
        prop_assert!(!message.is_empty() && message.len() < 2000, "{path} {shown}: {message}");
    }
    Ok(())
}

/// A route with a body that it answers.
fn route() -> impl Strategy<Value = (String, Value)> {
    prop::sample::select(POSTS.as_slice())
}

fn cases(cases: u32) -> ProptestConfig {
    let (rng_seed, failure_persistence) = (RngSeed::Fixed(11), None);
    ProptestConfig { cases, rng_seed, failure_persistence, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn any_fields_give_an_answer_or_an_error_of_the_client(
        (path, base) in route(), fields in prop::collection::btree_map(name(), value(), 1..4),
    ) {
        let body = with(base, Value::Object(Map::from_iter(fields)));
        answered(&path, body.to_string().into_bytes())?;
    }

    #[test]
    fn any_damage_to_a_body_gives_an_answer_or_an_error_of_the_client(
        (path, base) in route(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
        whole: bool,
    ) {
        let mut body = base.to_string().into_bytes();
        for (place, byte) in damage {
            let place = place.index(body.len());
            body[place] = byte;
        }
        if !whole {
            body.truncate(end.index(body.len()));
        }
        answered(&path, body)?;
    }
}

#[test]
fn the_server_answers_as_before_after_odd_bodies() {
    let server = server();
    let before = server.generate(greedy())["text"].clone();
    let deep = format!("{{\"preference\": {}", "[".repeat(100_000));
    let wide = format!("{{\"preference\": [{}1]}}", "1,".repeat(100_000));
    let many: String = (0..50_000).map(|field| format!("\"f{field}\":1,")).collect();
    let many = format!("{{{many}\"prompt\":\"x\"}}");
    for body in [
        "{\"a\":\"\\ud800\"}",
        "{\"\":{}}",
        "{\"prompt\":[[[[]]]]}",
        "\u{feff}{}",
        "{}{}",
        "",
        "null",
        "\"prompt\"",
        "{\"prompt\":\"x\",\"temperature\":NaN}",
        "{\"prompt\":\"x\",\"temperature\":\"NaN\"}",
        "{\"prompt\":\"x\",\"temperature\":1e400}",
        "{\"prompt\":\"x\",\"temperature\":-Infinity}",
        "{\"prompt\":\"x\",\"n\":18446744073709551617}",
        "{\"prompt\":\"x\",\"prompt\":\"y\"}",
        "{\"prompt\":\"x\",\"\\u0070rompt\":\"y\"}",
        deep.as_str(),
        wide.as_str(),
        many.as_str(),
    ] {
        for (path, _) in POSTS.iter() {
            let shown = &body[..body.len().min(60)];
            let status = server.post_bytes(path, body).status;
            assert_eq!(status, 400, "{path} {shown}");
        }
    }
    server.wait_until_idle();
    assert_eq!(server.generate(greedy())["text"], before);
}
