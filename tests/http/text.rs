//! Texts of answers whose tokens are scripted (`tests/reference/make_scripted_soups.py`), and the
//! prompts that conversations become.

use std::{fs, sync::OnceLock};

use ladle::config::ServeOptions;
use serde_json::{Value, json};

use crate::server::{Server, fixture, options, with};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Byte-level, with special tokens.
fn bytes() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| scripted("scripted-bytes"))
}

/// SentencePiece, with a begin-of-sequence token.
fn pieces() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| scripted("scripted-pieces"))
}

fn scripted(name: &str) -> Server {
    Server::start(ServeOptions { soup: Some(fixture(name)), ..options() })
}

fn ask(prompt: &str) -> Value {
    json!({"prompt": prompt, "temperature": 0, "max_tokens": 12})
}

fn completion(server: &Server, body: Value) -> Value {
    server.post(COMPLETIONS, body).ok()["choices"][0].clone()
}

/// The choices of a stream's chunks.
fn chunks(server: &Server, body: Value) -> Vec<Value> {
    let events = server.stream(COMPLETIONS, with(body, json!({"stream": true})));
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done.1, "[DONE]");
    chunks
        .iter()
        .map(|(_, data)| serde_json::from_str::<Value>(data).unwrap()["choices"][0].take())
        .collect()
}

fn text(chunks: &[Value]) -> String {
    chunks.iter().map(|chunk| chunk["text"].as_str().unwrap()).collect()
}

/// One of the four lists of log-probabilities, over all chunks.
fn list(chunks: &[Value], name: &str) -> Vec<Value> {
    let lists = chunks.iter().filter_map(|chunk| chunk["logprobs"][name].as_array());
    lists.flatten().cloned().collect()
}

#[test]
fn answers_are_what_decoding_them_after_their_prompt_gives() {
    let expected: Value =
        serde_json::from_slice(&fs::read(fixture("scripted.json")).unwrap()).unwrap();
    for (name, server) in [("scripted-bytes", bytes()), ("scripted-pieces", pieces())] {
        let cases = expected[name].as_array().unwrap();
        assert!(cases.len() >= 7);
        for case in cases {
            let length = json!({"max_tokens": case["ids"].as_array().unwrap().len()});
            let body = with(ask(case["prompt"].as_str().unwrap()), length);
            assert_eq!(server.generate(body.clone())["text"], case["text"], "{}", case["name"]);
            assert_eq!(
                text(&chunks(server, body)),
                case["text"].as_str().unwrap(),
                "{}",
                case["name"]
            );
        }
    }
}

#[test]
fn a_stop_string_that_begins_with_the_space_after_the_prompt_is_met() {
    let choice = completion(pieces(), with(ask("is"), json!({"stop": " Paris"})));
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(""), &json!("stop")));
    let choice = completion(pieces(), with(ask("is"), json!({"stop": " and", "echo": true})));
    assert_eq!(choice["text"], "is Paris");
}

#[test]
fn a_stop_string_that_is_or_holds_a_special_token_is_met() {
    for (stop, expected) in
        [("<|tool|>", "foo"), ("oo<|tool|>b", "f"), ("foobar", ""), ("<|call|>", "foobar")]
    {
        let body = with(ask("<s3>"), json!({"stop": [stop]}));
        assert_eq!(completion(bytes(), body.clone())["text"], expected, "{stop}");
        assert_eq!(text(&chunks(bytes(), body)), expected, "{stop}");
    }
}

#[test]
fn text_offsets_count_what_is_in_the_text() {
    for (prompt, more, expected) in [
        // foo, a special token, bar; then the end.
        ("<s3>", json!({}), json!([0, 3, 3, 6])),
        // Text that a stop string holds back, and text that it cuts off.
        ("<s8>", json!({"stop": "STOPx"}), json!([0, 3, 7, 12, 17, 21])),
        ("<s8>", json!({"stop": "STOPo"}), json!([0, 3, 4])),
        // A character of four bytes in two tokens.
        ("<s2>", json!({}), json!([0, 3, 3, 4, 9])),
        // Special tokens in an echoed prompt are part of the text.
        ("a<s3>", json!({"echo": true}), json!([0, 1, 5, 8, 8, 11])),
    ] {
        let body = with(with(ask(prompt), json!({"logprobs": 0})), more);
        let choice = completion(bytes(), body.clone());
        assert_eq!(choice["logprobs"]["text_offset"], expected, "{body}");
        let chunks = chunks(bytes(), body);
        assert_eq!(text(&chunks), choice["text"].as_str().unwrap());
        for name in ["text_offset", "tokens", "token_logprobs", "top_logprobs"] {
            assert_eq!(json!(list(&chunks, name)), choice["logprobs"][name], "{name}");
        }
    }
}

#[test]
fn the_log_probabilities_of_a_chunk_are_those_of_its_text() {
    let chunks = chunks(bytes(), with(ask("<s8>"), json!({"logprobs": 0, "stop": "STOPx"})));
    let mut length = 0;
    for chunk in &chunks {
        let end = length + chunk["text"].as_str().unwrap().chars().count();
        for offset in list(std::slice::from_ref(chunk), "text_offset") {
            let offset = offset.as_u64().unwrap() as usize;
            assert!((length..=end).contains(&offset), "{offset} in {chunks:?}");
        }
        length = end;
    }
}

#[test]
fn a_prompt_with_a_begin_of_sequence_token_gets_no_second_one() {
    let count = |body: Value| pieces().post("/tokenize", body).ok()["count"].clone();
    let both = json!({"prompt": "<s>is", "add_special": true});
    assert_eq!(count(both), count(json!({"prompt": "<s>is", "add_special": false})));
    assert_eq!(count(json!({"prompt": "is"})), 2);
    assert_eq!(count(json!({"prompt": "is", "add_special": false})), 1);
    let used = |prompt: &str| {
        pieces().post(COMPLETIONS, ask(prompt)).ok()["usage"]["prompt_tokens"].clone()
    };
    assert_eq!(used("<s>"), 1);
    // The template writes one.
    let messages = json!({"messages": [{"role": "user", "content": "is"}]});
    let doubled = with(messages.clone(), json!({"add_special_tokens": true}));
    assert_eq!(count(doubled), count(messages));
}

/// A user could end their own turn and begin one of the system's, by writing it out. Expected ids
/// are those of `tests/reference/make_chat_text.py`.
#[test]
fn a_control_token_in_a_message_is_text_unless_it_is_asked_for() {
    let expected: Value =
        serde_json::from_slice(&fs::read(fixture("chat_text.json")).unwrap()).unwrap();
    for (soup, server) in [("soup-tiny", Server::shared()), ("scripted-pieces", pieces())] {
        let cases = expected["cases"][soup].as_array().unwrap();
        assert!(cases.iter().any(|case| case["text"] != case["parsed"]));
        for case in cases {
            let messages = json!({"messages": case["messages"]});
            let parsed = with(messages.clone(), json!({"parse_special": true}));
            let ids = |body: &Value| server.post("/tokenize", body.clone()).ok()["tokens"].clone();
            assert_eq!(ids(&messages), case["text"], "{messages}");
            assert_eq!(ids(&parsed), case["parsed"], "{messages}");
            for path in [CHAT, "/generate"] {
                for (body, ids) in [(&messages, &case["text"]), (&parsed, &case["parsed"])] {
                    let reply = server.post(path, with(body.clone(), json!({"max_tokens": 1})));
                    let used = reply.ok()["usage"]["prompt_tokens"].clone();
                    assert_eq!(used, ids.as_array().unwrap().len(), "{path} {body}");
                }
            }
        }
    }
}

#[test]
fn a_prompt_spells_control_tokens_out_unless_it_is_told_not_to() {
    let ids = |more: Value| {
        let body = with(json!({"prompt": "a<|im_end|>", "add_special": false}), more);
        Server::shared().post("/tokenize", body).ok()["tokens"].clone()
    };
    assert_eq!(ids(json!({})), ids(json!({"parse_special": true})));
    let plain = ids(json!({"parse_special": false}));
    assert_ne!(plain, ids(json!({})));
    let text = Server::shared().post("/detokenize", json!({"tokens": plain, "skip_special": true}));
    assert_eq!(text.ok()["text"], "a<|im_end|>");
    // Echoed, it is the same text, and each token has its place in it.
    let body = json!({
        "prompt": "a<|im_end|>", "parse_special": false, "add_special_tokens": false,
        "echo": true, "logprobs": 0, "max_tokens": 1, "temperature": 0,
    });
    let choice = completion(Server::shared(), body);
    assert!(choice["text"].as_str().unwrap().starts_with("a<|im_end|>"), "{choice}");
    let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
    assert_eq!(offsets.len(), plain.as_array().unwrap().len() + 1);
}

/// What the template makes of a message of a user who says `x`.
fn rendered(more: Value) -> Value {
    let tokens = bytes().post("/tokenize", with(conversation(json!({})), more)).ok();
    let body = json!({"tokens": tokens["tokens"]});
    bytes().post("/detokenize", body).ok()["text"].clone()
}

fn conversation(more: Value) -> Value {
    json!({"messages": [with(json!({"role": "user", "content": "x"}), more)]})
}

#[test]
fn variables_of_a_request_reach_the_chat_template() {
    let thinking = |value: Value| json!({"chat_template_kwargs": {"enable_thinking": value}});
    for (more, expected) in [
        (json!({}), "x"),
        (json!({"chat_template_kwargs": {}}), "x"),
        (json!({"chat_template_kwargs": {"other": [1, {"a": "b"}]}}), "x"),
        (thinking(json!(true)), "x"),
        (thinking(json!(false)), "no thinkingx"),
    ] {
        assert_eq!(rendered(more.clone()), expected, "{more}");
        let body = with(with(conversation(json!({})), json!({"max_tokens": 1})), more);
        let used = |path| bytes().post(path, body.clone()).ok()["usage"]["prompt_tokens"].clone();
        assert_eq!(used(CHAT), expected.len(), "{body}");
        assert_eq!(used("/generate"), expected.len(), "{body}");
    }
}

#[test]
fn names_and_reasoning_of_messages_reach_the_chat_template() {
    assert_eq!(rendered(conversation(json!({"name": "Ann"}))), "Ann: x");
    for name in ["reasoning_content", "reasoning", "thinking"] {
        assert_eq!(rendered(conversation(json!({name: "hm "}))), "hm x", "{name}");
    }
    let twice = json!({"reasoning": "hm ", "reasoning_content": "hm ", "thinking": ""});
    assert_eq!(rendered(conversation(twice)), "hm x");
    for (more, code, name) in [
        (json!({"reasoning": "hm", "thinking": "ah"}), "invalid_value", "thinking"),
        (json!({"reasoning": {"effort": "low"}}), "invalid_value", "reasoning"),
        (json!({"reasoning_details": [{"text": "hm"}]}), "unsupported", "reasoning_details"),
    ] {
        let reply = bytes().post(CHAT, conversation(more));
        let (got, param, _) = reply.error();
        let at = format!("messages[0].{name}");
        assert_eq!((reply.status, got, param), (400, code, Some(at.as_str())));
    }
}

#[test]
fn documents_reach_a_template_that_reads_them_and_are_refused_by_name_elsewhere() {
    let documents = json!({"documents": [{"title": "a", "text": "b"}, {"title": "c", "year": 7}]});
    assert_eq!(rendered(documents.clone()), "[a][c]x");
    assert_eq!(rendered(json!({"documents": []})), "x");
    for (documents, param) in [
        (json!("a"), "documents"),
        (json!(["a"]), "documents[0]"),
        (json!([{}, null]), "documents[1]"),
        (json!([{"long": vec![0; 5000]}]), "documents[0]"),
    ] {
        let reply =
            bytes().post(CHAT, with(conversation(json!({})), json!({"documents": documents})));
        let (code, at, _) = reply.error();
        assert_eq!((reply.status, code, at), (400, "invalid_value", Some(param)));
    }
    // Beside a prompt, and with a template that does not read them.
    let reply = bytes().post("/generate", with(ask("<s1>"), documents.clone()));
    assert_eq!((reply.status, reply.error().1), (400, Some("documents")));
    let reply = Server::shared().post(CHAT, with(conversation(json!({})), documents));
    let (code, at, _) = reply.error();
    assert_eq!((reply.status, code, at), (400, "unsupported", Some("documents")));
}

#[test]
fn a_wish_for_thought_reaches_a_template_that_reads_it() {
    for (more, expected) in [
        (json!({"enable_thinking": false}), "no thinkingx"),
        (json!({"think": false}), "no thinkingx"),
        (json!({"thinking": {"type": "disabled"}}), "no thinkingx"),
        (json!({"enable_thinking": true, "think": true}), "x"),
        (json!({"thinking": {"type": "enabled"}}), "x"),
        (json!({"reasoning_effort": "low"}), "low effortx"),
        (json!({"reasoning_effort": "none"}), "no thinkingnone effortx"),
    ] {
        let shown = more.to_string();
        let reply =
            bytes().post(CHAT, with(conversation(json!({})), with(more, json!({"max_tokens": 1}))));
        assert_eq!(reply.ok()["usage"]["prompt_tokens"], expected.len(), "{shown}");
    }
    let both = json!({"chat_template_kwargs": {"enable_thinking": true}, "enable_thinking": false});
    for (more, param) in [
        (both, "enable_thinking"),
        (json!({"enable_thinking": true, "think": false}), "think"),
        (json!({"enable_thinking": "no"}), "enable_thinking"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 9}}), "thinking"),
    ] {
        let reply = bytes().post(CHAT, with(conversation(json!({})), more));
        let (code, at, _) = reply.error();
        assert_eq!((reply.status, code, at), (400, "invalid_value", Some(param)));
    }
    // A template without a switch.
    for (more, status) in [
        (json!({"enable_thinking": false, "reasoning_effort": "low"}), 200),
        (json!({"enable_thinking": true}), 400),
        (json!({"thinking": {"type": "enabled"}}), 400),
    ] {
        let body = with(conversation(json!({})), with(more, json!({"max_tokens": 1})));
        assert_eq!(Server::shared().post(CHAT, body).status, status);
    }
}

#[test]
fn variables_that_a_template_cannot_take_are_refused_by_name() {
    let mut deep = json!(1);
    for _ in 0..9 {
        deep = json!([deep]);
    }
    let kwargs = |variables: Value| json!({"chat_template_kwargs": variables});
    for (variables, code, param) in [
        (json!([]), "invalid_value", "chat_template_kwargs"),
        (json!("enable_thinking"), "invalid_value", "chat_template_kwargs"),
        (json!({"messages": []}), "unsupported", "chat_template_kwargs.messages"),
        (json!({"tools": [{}]}), "unsupported", "chat_template_kwargs.tools"),
        (json!({"bos_token": "x"}), "unsupported", "chat_template_kwargs.bos_token"),
        (json!({"range": 1}), "unsupported", "chat_template_kwargs.range"),
        (json!({"a b": 1}), "unsupported", "chat_template_kwargs.a b"),
        (json!({"deep": deep}), "invalid_value", "chat_template_kwargs.deep"),
        (json!({"long": vec![0; 5000]}), "invalid_value", "chat_template_kwargs.long"),
    ] {
        for path in [CHAT, "/generate", "/tokenize"] {
            let reply =
                bytes().post(path, with(conversation(json!({})), kwargs(variables.clone())));
            let (got, at, _) = reply.error();
            assert_eq!((reply.status, got, at), (400, code, Some(param)), "{path}");
        }
    }
    // A prompt goes through no template.
    for path in ["/generate", COMPLETIONS, "/tokenize"] {
        let reply = bytes().post(path, with(json!({"prompt": "x"}), kwargs(json!({"a": 1}))));
        assert_eq!((reply.status, reply.error().1), (400, Some("chat_template_kwargs")), "{path}");
    }
}

#[test]
fn a_conversation_that_the_template_cannot_take_is_the_clients_error() {
    let messages = json!([{"role": "system", "content": "Hi"}, {"role": "user", "content": "x"}]);
    for path in [CHAT, "/generate", "/tokenize"] {
        let reply = bytes().post(path, json!({"messages": messages}));
        let (code, param, message) = reply.error();
        assert_eq!((reply.status, code, param), (400, "invalid_value", Some("messages")), "{path}");
        assert!(message.contains("no system turns: Hi"), "{message}");
    }
    // `message.name ~ ': '` takes any text, but a name is one.
    let reply = bytes().post(CHAT, conversation(json!({"name": 5})));
    assert_eq!((reply.status, reply.error().1), (400, Some("messages[0].name")));
}
