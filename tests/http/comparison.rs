//! Several preferences over one prompt, and soups whose backbones are active on the answer only.

use ladle::config::ServeOptions;
use serde_json::{Value, json};

use crate::server::{Server, fixture, greedy, options, with};

fn serve(soup: std::path::PathBuf) -> Server {
    Server::start(ServeOptions { soup: Some(soup), ..options() })
}

/// A soup of full checkpoints that are active from the generation prompt.
fn full(dir: &std::path::Path) -> std::path::PathBuf {
    let soup = dir.join("soup");
    let copy = |from: &str, to: &std::path::Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(fixture(from)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
    };
    copy("soup-tiny-full", &soup);
    for name in ["helpful", "harmless", "brief"] {
        copy(&format!("soup-tiny-full/backbones/{name}"), &soup.join("backbones").join(name));
    }
    let base = format!("path = \"{}\"", fixture("soup-tiny/base").display());
    let manifest = std::fs::read_to_string(soup.join("soup.toml")).unwrap();
    let manifest = manifest
        .replacen("\n\n[base]", "\nactivation = \"answer\"\n\n[base]", 1)
        .replacen("path = \"../soup-tiny/base\"", &base, 1);
    std::fs::write(soup.join("soup.toml"), manifest).unwrap();
    soup
}

const PREFERENCES: [[f64; 3]; 3] = [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]];

fn conversation() -> Value {
    json!([{"role": "user", "content": "Please summarise the paper in one sentence. The quick \
            brown fox jumps over the lazy dog while the slow green turtle looks at the sea."}])
}

fn body() -> Value {
    json!({"messages": conversation(), "max_tokens": 12, "temperature": 0.8, "seed": 5,
           "ignore_eos": true, "logprobs": 0})
}

#[test]
fn a_comparison_has_the_answers_that_each_preference_gets_alone_in_order_with_their_echoes() {
    let dir = tempfile::tempdir().unwrap();
    for soup in [fixture("soup-tiny"), fixture("soup-tiny-answer"), full(dir.path())] {
        let server = serve(soup);
        let alone = PREFERENCES.map(|p| server.generate(with(body(), json!({"preference": p}))));
        assert_ne!(alone[0]["text"], alone[2]["text"]);
        let compared = || with(body(), json!({"preferences": PREFERENCES, "alpha": 0}));
        let answer = server.generate(compared());
        let held = |answer: &Value| {
            let choices = answer["choices"].as_array().unwrap();
            assert_eq!(choices.len(), 3);
            for (index, (choice, alone)) in choices.iter().zip(&alone).enumerate() {
                assert_eq!(choice["index"], index);
                for key in [
                    "text",
                    "finish_reason",
                    "tokens",
                    "usage",
                    "preference",
                    "alpha",
                    "lambda",
                    "coefficients",
                    "mode",
                    "soup",
                ] {
                    assert_eq!(choice[key], alone[key], "{index} {key}");
                }
                assert!(choice["timings"]["total_ms"].as_f64().unwrap() > 0.0);
            }
            assert_eq!(
                (&answer["text"], &answer["lambda"]),
                (&alone[0]["text"], &alone[0]["lambda"])
            );
            // The prompt counts once.
            let usage = |key: &str| answer["usage"][key].as_u64().unwrap();
            assert_eq!(
                usage("prompt_tokens"),
                alone[0]["usage"]["prompt_tokens"].as_u64().unwrap()
            );
            assert_eq!(usage("completion_tokens"), 36);
        };
        held(&answer);

        let events = server.stream("/generate", with(compared(), json!({"stream": true})));
        let mut texts = [String::new(), String::new(), String::new()];
        let mut started = [false; 3];
        for (name, data) in &events[..events.len() - 1] {
            let data: Value = serde_json::from_str(data).unwrap();
            let index = data["index"].as_u64().unwrap() as usize;
            match name.as_str() {
                "start" => {
                    assert!(!std::mem::replace(&mut started[index], true), "{data}");
                    assert_eq!(data["lambda"], alone[index]["lambda"]);
                    assert_eq!(data["mode"], alone[index]["mode"]);
                }
                "token" => {
                    assert!(started[index], "a token before its start: {data}");
                    texts[index].push_str(data["text"].as_str().unwrap());
                }
                other => panic!("{other}: {data}"),
            }
        }
        let (name, done) = events.last().unwrap();
        assert_eq!(name, "done");
        held(&serde_json::from_str(done).unwrap());
        for (text, alone) in texts.iter().zip(&alone) {
            assert_eq!(json!(text), alone["text"]);
        }
    }
}

#[test]
fn presets_and_logits_can_be_compared() {
    let server = serve(fixture("soup-tiny-answer"));
    let preferences = json!(["terse", {"helpful": 1}]);
    for combine in ["weights", "logits"] {
        let body = with(greedy(), json!({"prompt": null, "messages": conversation()}));
        let body = with(body, json!({"preferences": preferences, "combine": combine}));
        let answer = server.generate(body.clone());
        for (index, preference) in preferences.as_array().unwrap().iter().enumerate() {
            let one = with(body.clone(), json!({"preferences": null, "preference": preference}));
            let one = server.generate(one);
            assert_eq!(answer["choices"][index]["text"], one["text"], "{combine}");
            assert_eq!(answer["choices"][index]["preference"], one["preference"]);
        }
    }
}

#[test]
fn a_comparison_that_cannot_be_made_is_refused_by_name() {
    let server = Server::start(ServeOptions { max_n: Some(4.try_into().unwrap()), ..options() });
    let one = [1.0, 0.0, 0.0];
    for (more, param, part) in [
        (json!({"preferences": []}), "preferences", "expected a list of 2 to 4 preferences"),
        (json!({"preferences": [one]}), "preferences", "expected a list of 2 to 4 preferences"),
        (json!({"preferences": [one, one, one, one, one]}), "preferences", "2 to 4 preferences"),
        (json!({"preferences": "terse"}), "preferences", "is \"terse\", expected a list"),
        (json!({"preferences": [one, {"funny": 1}]}), "preferences[1].funny", "objectives of this"),
        (json!({"preferences": [one, null]}), "preferences[1]", "is null"),
        (json!({"preferences": [[0, 0, 0], one]}), "preferences[0]", "is all zero"),
        (json!({"preferences": [one, one], "preference": one}), "preference", "either"),
        (json!({"preferences": [one, one], "n": 2}), "n", "expected 1 beside preferences"),
        (
            json!({"preferences": [one, one], "combine": "logits", "alpha": 0.5}),
            "alpha",
            "expected 0 beside combine",
        ),
    ] {
        let reply = server.post("/generate", with(greedy(), more));
        let (code, named, message) = reply.error();
        assert_eq!((reply.status, code, named), (400, "invalid_value", Some(param)), "{message}");
        assert!(message.contains(part), "{message}");
    }
    let reply = server.post("/v1/completions", with(greedy(), json!({"preferences": [one, one]})));
    assert_eq!((reply.status, reply.error().0), (400, "unknown_field"));
}

#[test]
fn a_prompt_without_the_invocation_tokens_is_refused() {
    let server = serve(fixture("soup-tiny-answer"));
    for (path, more) in [
        ("/generate", json!({})),
        ("/v1/completions", json!({})),
        ("/generate", json!({"prompt": [279, 1, 425]})),
        ("/v1/completions", json!({"prompt": ["<|im_start|>assistant\n", "The soup"]})),
    ] {
        let reply = server.post(path, with(greedy(), more));
        let (code, param, message) = reply.error();
        assert_eq!((reply.status, code, param), (400, "invalid_value", Some("prompt")));
        let expected =
            "prompt does not hold the tokens [1, 279, 425, 429, 86, 201], which activate";
        assert!(message.starts_with(expected), "{message}");
    }
    for prompt in [json!(""), json!([])] {
        let reply = server.post("/generate", with(greedy(), json!({"prompt": prompt})));
        assert_eq!((reply.status, reply.error().1), (400, Some("prompt")));
    }
}

/// Tokens of the prompt that another preference had computed.
fn cached(server: &Server, path: &str, body: Value) -> u64 {
    let ask = |preference: &str| {
        let answer = server.post(path, with(body.clone(), json!({"preference": preference}))).ok();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(ask("balanced"), 0);
    ask("terse")
}

#[test]
fn what_one_preference_computed_of_a_prompt_every_other_finds() {
    let dir = tempfile::tempdir().unwrap();
    let ids = |server: &Server, messages: &Value| {
        let tokens = server.post("/tokenize", json!({"messages": messages})).ok();
        tokens["tokens"].as_array().unwrap().clone()
    };
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    // The header that opens the answer takes 6 tokens.
    let expected = |tokens: usize| ((tokens - 6) / 16 * 16) as u64;
    let (chat, few) = ("/v1/chat/completions", json!({"temperature": 0, "max_tokens": 2}));
    for soup in [fixture("soup-tiny-answer"), full(dir.path())] {
        let server = serve(soup.clone());
        // The header lies across the border of a block, which the whole prompt fills.
        let user = |length: usize| json!([turn("user", "1".repeat(length))]);
        let length = (1..64).find(|&length| ids(&server, &user(length)).len() == 35).unwrap();
        let found = cached(&server, chat, with(few.clone(), json!({"messages": user(length)})));
        assert_eq!((found, expected(35)), (16, 16), "{}", soup.display());

        // Messages that end with an assistant's turn are a prompt like any other: the template
        // opens another turn, and the backbones are active from there.
        let messages = json!([turn("user", "2".repeat(9)), turn("assistant", "3".repeat(20))]);
        let tokens = ids(&server, &messages).len();
        let found = cached(&server, chat, with(few.clone(), json!({"messages": messages})));
        assert_eq!(found, expected(tokens), "{} of {tokens}", soup.display());
        assert!(found > 16);
    }
    // A raw prompt is active from its last token.
    let server = serve(full(&dir.path().join("raw")));
    let prompt: Vec<usize> = (0..35).map(|i| 20 + i * 7).collect();
    let few = json!({"temperature": 0, "max_tokens": 2, "prompt": prompt});
    assert_eq!(cached(&server, "/v1/completions", few), 32);
    assert_eq!(server.get("/v1/soup").ok()["activation"], "answer");
    assert_eq!(Server::shared().get("/v1/soup").ok()["activation"], "all");
}

#[test]
fn several_answers_and_the_streams_of_every_route_are_those_of_the_whole_answer() {
    let dir = tempfile::tempdir().unwrap();
    for soup in [fixture("soup-tiny-answer"), full(dir.path())] {
        let server = serve(soup);
        let tokens = server.post("/tokenize", json!({"messages": conversation()})).ok();
        let many = json!({"max_tokens": 10, "temperature": 1.2, "seed": 7, "ignore_eos": true,
                          "n": 3, "preference": PREFERENCES[1]});
        for (path, input, whole, part) in [
            (
                "/v1/chat/completions",
                json!({"messages": conversation()}),
                "/message/content",
                "/delta/content",
            ),
            ("/v1/completions", json!({"prompt": tokens["tokens"]}), "/text", "/text"),
        ] {
            let body = with(many.clone(), input);
            let native = server.generate(body.clone());
            let texts = |answer: &Value, at: &str| -> Vec<String> {
                let choices = answer["choices"].as_array().unwrap().iter();
                choices.map(|c| c.pointer(at).unwrap().as_str().unwrap().to_owned()).collect()
            };
            let expected = texts(&native, "/text");
            assert!(expected[0] != expected[1] && expected[1] != expected[2], "{expected:?}");
            let one = server.generate(with(body.clone(), json!({"n": 1})));
            assert_eq!(one["text"], expected[0].as_str());
            // What the others of a choice had computed is found, also of another preference.
            let other = with(body.clone(), json!({"preference": PREFERENCES[0], "n": 1}));
            assert_ne!(server.generate(other)["text"], one["text"]);
            let answer = server.post(path, body.clone()).ok();
            assert_eq!(texts(&answer, whole), expected, "{path}");
            let found = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
            assert!(found.as_u64().unwrap() >= 16, "{path}: {found}");

            let mut streamed = vec![String::new(); 3];
            let mut events = server.stream(path, with(body.clone(), json!({"stream": true})));
            assert_eq!(events.pop().unwrap().1, "[DONE]");
            for (_, data) in events {
                let chunk: Value = serde_json::from_str(&data).unwrap();
                for choice in chunk["choices"].as_array().unwrap() {
                    let index = choice["index"].as_u64().unwrap() as usize;
                    let text = choice.pointer(part).and_then(Value::as_str);
                    streamed[index].push_str(text.unwrap_or_default());
                }
            }
            assert_eq!(streamed, expected, "{path}");
            let mut streamed = vec![String::new(); 3];
            for (name, data) in server.stream("/generate", with(body, json!({"stream": true}))) {
                let data: Value = serde_json::from_str(&data).unwrap();
                if name == "token" {
                    let index = data["index"].as_u64().unwrap() as usize;
                    streamed[index].push_str(data["text"].as_str().unwrap());
                }
            }
            assert_eq!(streamed, expected);
        }
        server.wait_until_idle();
    }
}

#[test]
fn log_probabilities_of_a_prompt_are_those_of_theta_sft() {
    let dir = tempfile::tempdir().unwrap();
    // The tokens of a prompt that are predicted by rows of the backbones: none where its last token
    // activates them, five where a header of six tokens does.
    for (soup, active) in [(full(dir.path()), 0), (fixture("soup-tiny-answer"), 5)] {
        let server = serve(soup);
        let tokens = server.post("/tokenize", json!({"messages": conversation()})).ok();
        let ask = |preference: &str| {
            let more = json!({"prompt": tokens["tokens"], "echo": true, "logprobs": 0,
                              "max_tokens": 2, "preference": preference});
            let answer = server.post("/v1/completions", with(greedy(), more)).ok();
            answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone()
        };
        let (one, other) = (ask("balanced"), ask("terse"));
        let prompt = one.len() - 2;
        assert_eq!(prompt, tokens["tokens"].as_array().unwrap().len());
        assert_eq!(one[..prompt - active], other[..prompt - active]);
        for token in prompt - active..one.len() {
            assert_ne!(one[token], other[token], "{token}");
        }
    }
}
