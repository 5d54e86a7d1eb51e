//! What clients rely on beside the answer itself: encodings, chunks, preflights, model ids, and the
//! errors that they look for.

use ladle::config::ServeOptions;
use serde_json::{Value, json};
use ureq::http::HeaderMap;

use crate::{
    ask::{CHAT, COMPLETIONS, GENERATE, base, refused},
    server::{Reply, Server, events, greedy, options, with},
};

#[test]
fn an_encoded_body_is_refused_by_the_name_of_its_encoding() {
    let server = Server::shared();
    let ask = |encodings: &[&str]| {
        let mut request = server.client.post(format!("{}{GENERATE}", server.url)).json(&greedy());
        for encoding in encodings {
            request = request.header("content-encoding", *encoding);
        }
        Reply::of(request.send().unwrap())
    };
    for encodings in [&["gzip"][..], &["br"], &["identity, zstd"], &["identity", "deflate"]] {
        let reply = ask(encodings);
        assert_eq!((reply.status, reply.error().0), (415, "unsupported_content_encoding"));
        assert_eq!(reply.error().1, Some("content-encoding"));
        let name = encodings.last().unwrap().rsplit(", ").next().unwrap();
        assert!(reply.error().2.contains(name), "{}", reply.body);
    }
    assert_eq!(ask(&["identity"]).status, 200);
    assert_eq!(ask(&["Identity"]).status, 200);
    assert_eq!(ask(&[""]).status, 200);
}

/// Whether a chunk comes with the first token is seen by what it says was used so far.
#[test]
fn the_first_chunk_comes_with_the_first_token() {
    // The prompt takes many steps, so a chunk that came with the first of them would come early.
    let few = Some(8.try_into().unwrap());
    let server =
        Server::start(ServeOptions { max_step_tokens: few, max_sequences: few, ..options() });
    let long = "soup ".repeat(60);
    for (path, prompt) in [
        (CHAT, json!({"messages": [{"role": "user", "content": long}]})),
        (COMPLETIONS, json!({"prompt": long})),
    ] {
        let usage = json!({"include_usage": true, "continuous_usage_stats": true});
        let body = with(base(path), with(prompt, json!({"stream": true, "stream_options": usage})));
        let mut chunks = server.stream(path, body);
        assert_eq!(chunks.pop().unwrap().1, "[DONE]");
        let chunks: Vec<Value> =
            chunks.iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
        let used: Vec<u64> = chunks
            .iter()
            .map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap())
            .collect();
        assert_eq!((used[0], *used.last().unwrap()), (1, 4), "{path}: {used:?}");
        assert!(used.is_sorted(), "{used:?}");
        let prompt = &chunks.last().unwrap()["usage"]["prompt_tokens"];
        assert!(chunks.iter().all(|chunk| chunk["usage"]["prompt_tokens"] == *prompt));
        assert_eq!(chunks[0]["choices"].as_array().unwrap().len(), 1);
        assert!(chunks[0]["ladle"]["lambda"].is_object());
        if path == CHAT {
            assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
            let roles = chunks.iter().filter(|c| c["choices"][0]["delta"]["role"].is_string());
            assert_eq!(roles.count(), 1);
        }
    }
    let refused = with(
        base(GENERATE),
        json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}}),
    );
    assert_eq!(server.post(GENERATE, refused).error().0, "unsupported");
}

#[test]
fn event_streams_say_that_they_are_utf_8() {
    let server = Server::shared();
    for path in [GENERATE, CHAT, COMPLETIONS] {
        let response = server.send(path, with(base(path), json!({"stream": true})));
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert!(events(response).count() > 2);
    }
}

#[test]
fn a_preflight_mirrors_the_headers_that_are_asked_for() {
    let server = Server::start(ServeOptions {
        allow_origin: Some(vec!["https://page.example".into()]),
        ..options()
    });
    let preflight = |origin: &str| -> HeaderMap {
        let url = format!("{}{CHAT}", server.url);
        let asked = "authorization,content-type,x-preference,x-stainless-arch,x-stainless-lang";
        let request =
            server.client.request(ureq::http::Method::OPTIONS, url).header("origin", origin);
        let request = request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", asked);
        let response = request.send().unwrap();
        assert_eq!(response.status().as_u16(), 200);
        response.headers().clone()
    };
    let headers = preflight("https://page.example");
    assert_eq!(headers["access-control-allow-origin"], "https://page.example");
    let allowed = headers["access-control-allow-headers"].to_str().unwrap().to_lowercase();
    for name in ["authorization", "x-preference", "x-stainless-arch", "x-stainless-lang"] {
        assert!(allowed.contains(name), "{allowed}");
    }
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    let stranger = preflight("https://other.example");
    assert!(!stranger.contains_key("access-control-allow-origin"));
}

#[test]
fn whatever_exceeds_the_context_is_told_in_openais_words() {
    let server = Server::shared();
    let long = "soup ".repeat(2000);
    let conversation = json!([{"role": "user", "content": long}]);
    let hello = json!({"messages": [{"role": "user", "content": "Hello"}]});
    for (path, body, param) in [
        (GENERATE, json!({"prompt": long}), "prompt"),
        (GENERATE, json!({"messages": conversation}), "messages"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 256}), "max_tokens"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 1e18}), "max_tokens"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 1e300}), "max_tokens"),
        (GENERATE, json!({"prompt": "x", "max_tokens": 256, "combine": "logits"}), "max_tokens"),
        (CHAT, json!({"messages": conversation}), "messages"),
        (CHAT, json!({"messages": conversation, "max_completion_tokens": 5}), "messages"),
        (CHAT, with(hello.clone(), json!({"max_tokens": 4096})), "max_tokens"),
        (CHAT, with(hello, json!({"max_completion_tokens": 4096})), "max_completion_tokens"),
        (COMPLETIONS, json!({"prompt": ["x", long]}), "prompt"),
        (COMPLETIONS, json!({"prompt": [5, 6, 7], "max_tokens": 254}), "max_tokens"),
        (COMPLETIONS, json!({"prompt": long, "echo": true, "max_tokens": 0}), "prompt"),
    ] {
        let reply = server.post(path, body.clone());
        assert_eq!(reply.status, 400, "{path} {param}: {}", reply.body);
        let (code, got, message) = reply.error();
        assert_eq!((code, got), ("context_length_exceeded", Some(param)), "{message}");
        let sentence = "This model's maximum context length is 256 tokens.";
        assert!(message.starts_with(sentence), "{message}");
    }
    let reply = server.post(COMPLETIONS, json!({"prompt": [5, 6, 7], "max_tokens": 254}));
    assert!(
        reply.error().2.contains("257 tokens (3 in the prompt, 254 in the completion)"),
        "{}",
        reply.body
    );
    server.post(COMPLETIONS, json!({"prompt": [5, 6, 7], "max_tokens": 253})).ok();
}

#[test]
fn a_model_id_with_a_preference_is_a_model() {
    let server = Server::shared();
    for (path, id) in [
        ("soup-tiny", "soup-tiny"),
        ("soup-tiny:terse", "soup-tiny:terse"),
        ("soup-tiny:helpful=0.7,harmless=0.3", "soup-tiny:helpful=0.7,harmless=0.3"),
        ("soup-tiny:1,0,4", "soup-tiny:1,0,4"),
        ("soup-tiny%3Ahelpful%3D0.7%2Cbrief%3D0.3", "soup-tiny:helpful=0.7,brief=0.3"),
    ] {
        let model = server.get(&format!("/v1/models/{path}")).ok();
        assert_eq!((&model["id"], &model["object"]), (&json!(id), &json!("model")));
        let asked = json!({"model": id});
        for path in [CHAT, COMPLETIONS] {
            let body = with(base(path), asked.clone());
            assert_eq!(server.post(path, body.clone()).ok()["model"], id, "{path}");
            let mut chunks = server.stream(path, with(body, json!({"stream": true})));
            assert_eq!(chunks.pop().unwrap().1, "[DONE]");
            for (_, data) in chunks {
                assert_eq!(serde_json::from_str::<Value>(&data).unwrap()["model"], id, "{path}");
            }
        }
        server.post(GENERATE, with(base(GENERATE), asked.clone())).ok();
        server.post("/tokenize", with(json!({"prompt": "x"}), asked.clone())).ok();
        server.post("/detokenize", with(json!({"tokens": [5]}), asked)).ok();
    }
    for (id, part) in [
        ("gpt-4", "this server has \"soup-tiny\""),
        ("soup-tinyx", "this server has \"soup-tiny\""),
        ("soup-tiny:mean", "a preset: balanced, terse"),
        ("soup-tiny:funny=1", "helpful, harmless, brief"),
        ("soup-tiny:1,2", "expected 3, one per objective"),
        ("soup-tiny:helpful=-1", "a finite number"),
        ("soup-tiny:", "a preset"),
        ("%ff", "UTF-8"),
    ] {
        let reply = server.get(&format!("/v1/models/{id}"));
        assert_eq!((reply.status, reply.error().0), (404, "model_not_found"), "{id}");
        assert!(reply.error().2.contains(part), "{id}: {}", reply.body);
    }
    // The model id counts on the native route as on the others.
    let preference =
        |more: Value| server.post(GENERATE, with(base(GENERATE), more)).ok()["preference"].clone();
    let terse = preference(json!({"preference": "terse"}));
    assert_eq!(preference(json!({"model": "soup-tiny:terse"})), terse);
    let both = json!({"model": "soup-tiny:terse", "preference": [1, 0, 0]});
    assert_eq!(preference(both)["helpful"], 1.0);
    let reply = server.post(CHAT, with(base(CHAT), json!({"model": "gpt-4"})));
    assert_eq!((reply.status, reply.error().0), (404, "model_not_found"));
    let long = format!("soup-tiny:{}1,0,0", " ".repeat(5000));
    refused(CHAT, json!({"model": long}), "invalid_value", "model");
}
