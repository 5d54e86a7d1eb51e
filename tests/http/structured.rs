//! Answers that are held to a schema, an expression, choices or a grammar.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use ladle::config::ServeOptions;
use serde_json::{Value, json};

use crate::{
    prerequisite::skip_without,
    server::{Server, fixture, greedy, options, with},
};

const CHAT: &str = "/v1/chat/completions";

/// Schemas of which a random model's answer is short.
fn schemas() -> Vec<Value> {
    let short = json!({"type": "string", "maxLength": 6});
    vec![
        json!({"type": "object", "properties": {"name": short, "age": {"type": "integer", "minimum": 0,
            "maximum": 120}, "ok": {"type": "boolean"}}, "required": ["name", "age", "ok"],
            "additionalProperties": false}),
        json!({"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 4}),
        json!({"$defs": {"node": {"type": "object", "properties": {"value": {"type": "boolean"},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}, "required": ["value", "next"],
            "additionalProperties": false}}, "$ref": "#/$defs/node"}),
        json!({"type": "object", "properties": {"day": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}}, "required": ["day", "code"],
            "additionalProperties": false}),
        json!({"anyOf": [{"const": null}, {"type": "number", "multipleOf": 5, "minimum": 0, "maximum": 90}]}),
        json!({"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": ["integer", "null"],
            "minimum": -9, "maximum": 9}}, "required": ["kind"], "additionalProperties": false}),
    ]
}

fn conversation() -> Value {
    json!({"messages": [{"role": "user", "content": "Describe a soup."}], "max_tokens": 180})
}

fn json_schema(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": true,
        "schema": schema}}})
}

/// Holds answers against their schemas with the Python package jsonschema.
pub fn validate(answers: &[(Value, String)]) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("LADLE_TEST_PYTHON").map_or(root.join(".venv/bin/python"), PathBuf::from);
    if !python.exists() {
        let python = python.display();
        return skip_without(&format!(
            "{python} with the jsonschema package (or LADLE_TEST_PYTHON)"
        ));
    }
    let child = Command::new(python)
        .arg(root.join("tests/reference/json_schema_answers.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for (schema, answer) in answers {
        writeln!(child.stdin.as_ref().unwrap(), "{}", json!([schema, answer])).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.trim(), format!("{} answers validate", answers.len()));
}

/// Text and reason of every choice.
fn choices(answer: &Value) -> Vec<(String, String)> {
    let choices = answer["choices"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    choices
        .iter()
        .map(|choice| (text(&choice["message"]["content"]), text(&choice["finish_reason"])))
        .collect()
}

#[test]
fn every_answer_to_a_schema_validates() {
    let soups = ["soup-tiny", "soup-tiny-full", "soup-tiny-answer"];
    let mut answers = Vec::new();
    for name in soups {
        let server = Server::start(ServeOptions { soup: Some(fixture(name)), ..options() });
        let server = &server;
        // All at once, so that preferences, schemas and plain requests share steps.
        let bodies: Vec<(Value, Value)> = schemas()
            .into_iter()
            .enumerate()
            .flat_map(|(n, schema)| {
                let preference = json!([n, 3, 1]);
                let one = json!({"preference": preference, "seed": n, "n": 2});
                let likeliest = json!({"temperature": 0, "preference": preference});
                let logits =
                    json!({"combine": "logits", "alpha": 0, "seed": n, "preference": preference});
                [one, likeliest, logits].map(|more| (schema.clone(), more))
            })
            .collect();
        std::thread::scope(|scope| {
            let plain = || {
                let greedy = json!({"temperature": 0, "max_tokens": 20});
                server.generate(with(conversation(), greedy))["text"].clone()
            };
            let beside = scope.spawn(plain);
            let threads: Vec<_> = bodies
                .iter()
                .map(|(schema, more)| {
                    let body = with(with(conversation(), json_schema(schema)), more.clone());
                    scope.spawn(move || (schema, choices(&server.post(CHAT, body).ok())))
                })
                .collect();
            let mut ended = 0;
            for (schema, choices) in threads.into_iter().map(|thread| thread.join().unwrap()) {
                for (text, reason) in choices {
                    // What the limit on tokens cuts off is not whole.
                    if reason == "stop" {
                        ended += 1;
                        answers.push((schema.clone(), text));
                    }
                }
            }
            assert!(ended >= bodies.len(), "{name}: only {ended} answers came to their end");
            assert_eq!(beside.join().unwrap(), plain(), "{name}");
        });
    }
    validate(&answers);
}

#[test]
fn a_json_object_is_an_object() {
    // A closing brace and a quotation mark are likely, so that a random model comes to an end.
    let server = Server::shared();
    let id = |text: &str| {
        let body = json!({"prompt": text, "add_special": false});
        server.post("/tokenize", body).ok()["tokens"][0].to_string()
    };
    let body = json!({"response_format": {"type": "json_object"}, "seed": 5,
        "logit_bias": {id("}"): 12, id("\""): 8, id(":"): 4}});
    let text = choices(&server.post(CHAT, with(conversation(), body)).ok()).remove(0);
    assert_eq!(text.1, "stop", "{text:?}");
    assert!(serde_json::from_str::<Value>(&text.0).unwrap().is_object(), "{text:?}");
}

#[test]
fn every_name_of_a_constraint_holds_on_every_route() {
    let server = Server::shared();
    let routes: [(&str, Value, &str); 3] = [
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "x"}]}),
            "/choices/0/message/content",
        ),
        ("/v1/completions", json!({"prompt": "x"}), "/choices/0/text"),
        ("/generate", json!({"prompt": "x"}), "/text"),
    ];
    let schema = json!({"enum": ["left", 7]});
    let is_enum = |text: &str| ["\"left\"", "7"].contains(&text);
    let is_code = |text: &str| regex::Regex::new("^[a-f]{3}-[0-9]{2}$").unwrap().is_match(text);
    let is_choice = |text: &str| ["yes", "no", "perhaps not"].contains(&text);
    let is_sum = |text: &str| regex::Regex::new("^[0-9](\\+[0-9]){1,3}$").unwrap().is_match(text);
    let (code, choice) = ("[a-f]{3}-[0-9]{2}", json!(["yes", "no", "perhaps not"]));
    let sum = "start: digit tail\ndigit: /[0-9]/\ntail: (\"+\" digit){1,3}";
    let cases: [(Value, &dyn Fn(&str) -> bool); 11] = [
        (json_schema(&schema), &is_enum),
        (json!({"response_format": {"type": "json_object", "schema": schema}}), &is_enum),
        (json!({"guided_json": schema}), &is_enum),
        (json!({"guided_json": schema.to_string()}), &is_enum),
        (json!({"guided_regex": code}), &is_code),
        (json!({"guided_choice": choice}), &is_choice),
        (json!({"guided_grammar": sum}), &is_sum),
        (json!({"structured_outputs": {"json": schema}}), &is_enum),
        (json!({"structured_outputs": {"regex": code, "disable_fallback": true}}), &is_code),
        (json!({"structured_outputs": {"choice": choice}}), &is_choice),
        (json!({"structured_outputs": {"grammar": sum}}), &is_sum),
    ];
    for (path, base, pointer) in routes {
        for (constraint, holds) in &cases {
            let body =
                with(with(base.clone(), json!({"max_tokens": 40, "seed": 1})), constraint.clone());
            let answer = server.post(path, body.clone()).ok();
            let text = answer.pointer(pointer).unwrap().as_str().unwrap();
            assert!(holds(text), "{path} {constraint}: {text:?}");
            // Again, and as a stream: a request with a seed can be repeated under a grammar too.
            let again = server.post(path, body.clone()).ok();
            assert_eq!(again.pointer(pointer).unwrap(), text, "{path} {constraint}");
            let events = server.stream(path, with(body, json!({"stream": true})));
            let streamed: String = events
                .iter()
                .filter_map(|(name, data)| {
                    let data: Value = serde_json::from_str(data).ok()?;
                    let piece = match path {
                        CHAT => &data["choices"][0]["delta"]["content"],
                        "/v1/completions" => &data["choices"][0]["text"],
                        _ if name == "token" => &data["text"],
                        _ => return None,
                    };
                    piece.as_str().map(str::to_owned)
                })
                .collect();
            assert_eq!(streamed, text, "{path} {constraint}");
        }
    }
}

#[test]
fn null_is_a_value_inside_a_schema() {
    let body = json!({"guided_json": {"const": null}, "max_tokens": 20});
    assert_eq!(Server::shared().generate(with(json!({"prompt": "x"}), body))["text"], "null");
}

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    let server = Server::shared();
    let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
    for (more, code, param) in [
        (
            json_schema(&json!({"properties": {"a": {"not": {}}}})),
            "unsupported",
            "response_format.json_schema.schema.properties.a.not",
        ),
        (json!({"guided_json": {"uniqueItems": true}}), "unsupported", "guided_json.uniqueItems"),
        (json!({"guided_json": {"type": "colour"}}), "invalid_value", "guided_json"),
        (json!({"guided_json": "{"}), "invalid_value", "guided_json"),
        (json!({"guided_json": deep}), "invalid_value", "guided_json"),
        (
            json!({"guided_json": {"description": "x".repeat(300_000)}}),
            "invalid_value",
            "guided_json",
        ),
        (json!({"guided_regex": "("}), "invalid_value", "guided_regex"),
        (json!({"guided_choice": [1]}), "invalid_value", "guided_choice"),
        (json!({"guided_grammar": "root ::= \"a\""}), "invalid_value", "guided_grammar"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "invalid_value", "guided_choice"),
        (json!({"guided_regex": "a", "ignore_eos": true}), "invalid_value", "ignore_eos"),
        (json!({"guided_whitespace_pattern": " "}), "unsupported", "guided_whitespace_pattern"),
        (json!({"response_format": {"type": "xml"}}), "invalid_value", "response_format.type"),
        (json!({"response_format": "json"}), "invalid_value", "response_format"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "invalid_value",
            "response_format.schema",
        ),
        (
            json!({"structured_outputs": {"structural_tag": "x"}}),
            "unsupported",
            "structured_outputs.structural_tag",
        ),
        (
            json!({"structured_outputs": {"colour": 1}}),
            "unknown_field",
            "structured_outputs.colour",
        ),
        (json!({"grammar": "root ::= \"a\""}), "unsupported", "grammar"),
        (json!({"logit_bias": {"512": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"5": 101}}), "invalid_value", "logit_bias.5"),
        (json!({"logit_bias": [5]}), "invalid_value", "logit_bias"),
    ] {
        let shown: String = more.to_string().chars().take(80).collect();
        let reply = server.post(CHAT, with(conversation(), more));
        let (got, got_param, message) = reply.error();
        assert_eq!((reply.status, got, got_param), (400, code, Some(param)), "{shown}: {message}");
        assert!(message.len() < 900, "{message}");
    }
}

#[test]
fn biases_make_tokens_certain_or_impossible() {
    let server = Server::shared();
    let free = server.generate(greedy());
    let ids = |answer: &Value| {
        let tokens = answer["tokens"].as_array().unwrap().iter();
        tokens.map(|token| token["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let logprobs = json!({"logprobs": 0});
    let plain = server.generate(with(greedy(), logprobs.clone()));
    assert_eq!(plain["text"], free["text"]);
    let (first, other) = (ids(&plain)[0], 300);
    let bias = |bias: Value| {
        server.generate(with(with(greedy(), logprobs.clone()), json!({"logit_bias": bias})))
    };
    assert_eq!(ids(&bias(json!({other.to_string(): 100}))), vec![other; 8]);
    assert_eq!(ids(&bias(json!([[other, 100.0]]))), vec![other; 8], "llama.cpp's form");
    assert!(!ids(&bias(json!({first.to_string(): -100}))).contains(&first));
    assert_eq!(ids(&bias(json!({other.to_string(): 0}))), ids(&plain));
}
