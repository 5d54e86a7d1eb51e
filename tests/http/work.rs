//! Requests that would be much work are refused before it is done.

use std::{cell::RefCell, io::Write, net::TcpStream, sync::OnceLock};

use ladle::config::{ByteSize, ServeOptions};
use serde_json::{Value, json};

use crate::server::{Server, greedy, options, with};

/// A text of very many tokens for its size, in a body just below the limit.
fn megabytes() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| "a b\u{e9}?! ".repeat((4 << 20) / 9 - 200))
}

/// A body for each way in which a text is given.
fn bodies(text: &str) -> Vec<(&'static str, &'static str, Value)> {
    let messages = json!([{"role": "user", "content": text}]);
    vec![
        ("/generate", "prompt", json!({"prompt": text})),
        ("/generate", "messages", json!({"messages": messages})),
        ("/v1/chat/completions", "messages", json!({"messages": messages})),
        ("/v1/completions", "prompt", json!({"prompt": ["a", text]})),
        ("/tokenize", "prompt", json!({"prompt": text})),
        ("/tokenize", "messages", json!({"messages": messages})),
    ]
}

/// A prompt of 4 MiB was encoded whole before its length was looked at.
#[test]
fn a_text_of_megabytes_is_refused_without_being_encoded_to_its_end() {
    let server = Server::shared();
    for (path, field, body) in bodies(megabytes()) {
        let reply = server.post(path, body);
        let (code, param, message) = reply.error();
        let got = (reply.status, code, param);
        assert_eq!(got, (400, "context_length_exceeded", Some(field)), "{path}: {message}");
        // How many there are was not counted.
        assert!(message.contains("resulted in more than that"), "{message}");
    }
    let reply = server.post("/generate", with(greedy(), json!({"stop": [megabytes()]})));
    assert_eq!((reply.status, reply.error().1), (400, Some("stop")));
    server.generate(greedy());
}

/// Its time-out was looked at once it had been encoded.
#[test]
fn a_text_of_megabytes_keeps_to_the_deadline_of_its_request() {
    for (path, _, body) in bodies(megabytes()) {
        if path == "/tokenize" {
            continue;
        }
        let reply = Server::shared().post(path, with(body, json!({"timeout": 0.001})));
        assert_eq!((reply.status, reply.error().0), (504, "deadline_exceeded"), "{path}");
    }
}

#[test]
fn a_body_of_millions_of_small_values_is_refused() {
    let server = Server::shared();
    for values in ["1,", "[],", "{},"] {
        for field in ["prompt", "messages", "stop", "logit_bias", "response_format", "tools"] {
            let body = format!("{{\"{field}\": [{}1]}}", values.repeat(1 << 20));
            let reply = server.post_bytes("/v1/completions", body);
            assert_eq!((reply.status, reply.error().0), (413, "body_too_large"), "{}", reply.body);
        }
    }
    // As many token ids as all prompts of a request may have are fine.
    let ids = vec![5; 200];
    let body = json!({"prompt": vec![ids; 16], "max_tokens": 1, "temperature": 0});
    assert_eq!(server.post("/v1/completions", body).status, 200);
}

/// Every body was held, whatever the others took.
#[test]
fn bodies_share_a_budget_that_small_ones_do_not_need() {
    let mebibyte = Some(ByteSize(1 << 20));
    let server =
        Server::start(ServeOptions { max_body: mebibyte, body_memory: mebibyte, ..options() });
    let large = json!({"prompt": "a ".repeat(250_000)});
    let refused = |server: &Server| {
        let reply = server.post("/generate", large.clone());
        (reply.status == 503).then_some(reply)
    };
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        1 << 20
    );
    let holders = RefCell::new(Vec::new());
    server.wait_until("the budget is used", |server| {
        // One that meets another large body is refused itself, so there may have to be several.
        let mut holder = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
        holder.write_all(head.as_bytes()).unwrap();
        holder.write_all(&vec![b' '; 900_000]).unwrap();
        holders.borrow_mut().push(holder);
        server.generate(greedy());
        refused(server).is_some()
    });
    let reply = refused(&server).unwrap();
    assert_eq!(reply.error().0, "overloaded");
    assert!(reply.error().2.contains("1048576 bytes"), "{}", reply.body);
    assert!(reply.headers.contains_key("retry-after"));
    // Whoever only sends does not take a place, and small requests pass.
    server.generate(greedy());
    drop(holders);
    server.wait_until("it is given back", |server| refused(server).is_none());
    let reply = server.post("/generate", large);
    assert_eq!((reply.status, reply.error().0), (400, "context_length_exceeded"));
}
