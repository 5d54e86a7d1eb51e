//! Requests that brought other inference servers down or made them do what they should not
//! (docs/reliability.md lists their advisories).

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
};

use serde_json::{Value, json};

use crate::server::{PATIENCE, Server, greedy, with};

/// What `path` answers to a body, the server being as before.
fn refused(path: &str, body: Value) -> (u16, String) {
    let server = Server::shared();
    let reply = server.post(path, body);
    let told = reply.error().2.to_owned();
    server.generate(greedy());
    (reply.status, told)
}

#[test]
fn numbers_that_multiply_work_are_bounded() {
    for (field, value) in [
        ("n", json!(1_000_000_000)),
        ("n", json!(1e300)),
        ("best_of", json!(1_000_000)),
        ("max_tokens", json!(u64::MAX)),
        ("logprobs", json!(1_000_000)),
        ("top_k", json!(-2)),
        ("min_tokens", json!(-1)),
        ("prompt_logprobs", json!(1_000_000)),
        ("priority", json!(i64::MIN)),
    ] {
        let body = with(greedy(), json!({field: value}));
        let (status, told) = refused("/v1/completions", body);
        assert_eq!(status, 400, "{field}: {told}");
        assert!(told.contains(field), "{field}: {told}");
    }
    // Where nothing is cut off a context, a number that says how much has no meaning.
    let server = Server::shared();
    let answer = server.generate(with(greedy(), json!({"n_discard": -1, "n_keep": -5})));
    assert_eq!(answer["text"], server.generate(greedy())["text"]);
    let empty = refused("/v1/completions", json!({"prompt": "", "max_tokens": 1}));
    assert_eq!(empty.0, 400, "{}", empty.1);
}

#[test]
fn schemas_and_expressions_that_are_wrong_or_explode_do_no_harm() {
    let ask = |field: &str, value: Value| {
        let body = json!({"prompt": "x", "max_tokens": 4, field: value});
        let reply = Server::shared().post("/generate", body);
        Server::shared().generate(greedy());
        reply
    };
    let nested = (0..200).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "object", "properties": {"a": inner}, "required": ["a"]}),
    );
    for (field, value) in [
        ("guided_json", nested),
        ("guided_json", json!({"$ref": "#"})),
        ("guided_json", json!({"type": "no such type"})),
        ("guided_json", json!({"type": "string", "pattern": "(("})),
        ("guided_json", json!("not even JSON {")),
        ("guided_regex", json!("[")),
        ("guided_regex", json!("(?=a)b")),
        ("guided_grammar", json!("start: other")),
    ] {
        let reply = ask(field, value.clone());
        assert_eq!(reply.status, 400, "{field} {value}: {}", reply.body);
    }
    // Automata are built as they are walked, and nothing backtracks.
    for expression in ["(a+)+b", "(a{1000}){1000}", "((a{0,100}){0,100}){0,100}"] {
        let reply = ask("guided_regex", json!(expression));
        assert!([200, 400].contains(&reply.status), "{expression}: {}", reply.body);
    }
}

#[test]
fn nothing_in_a_request_is_code_or_a_pickle() {
    let messages = json!([{"role": "user", "content": "{{ cycler.__init__.__globals__.os }}"}]);
    for (field, value) in [
        ("chat_template", json!("{{ 1 }}")),
        ("chat_template_kwargs", json!({"tokenize": true})),
        ("chat_template_kwargs", json!({"chat_template": "{{ 1 }}"})),
        ("prompt_embeds", json!("gASVAAAA")),
        ("logits_processors", json!(["os.system"])),
        ("custom_params", json!({"__reduce__": "os.system"})),
    ] {
        let body = json!({"messages": messages, "max_tokens": 1, field: value});
        let (status, told) = refused("/v1/chat/completions", body);
        assert_eq!(status, 400, "{field}: {told}");
        assert!(told.contains(field), "{field}: {told}");
    }
    // As text it is text.
    let body = json!({"messages": messages, "max_tokens": 1});
    assert_eq!(Server::shared().post("/v1/chat/completions", body).status, 200);
}

#[test]
fn no_field_makes_the_server_open_a_connection() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let url = format!("http://{}/image.png", elsewhere.local_addr().unwrap());
    let markdown = format!("![]({url})");
    let content = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    for (body, status) in [
        (content(json!({"type": "image_url", "image_url": {"url": url}})), 400),
        (content(json!({"type": "input_audio", "input_audio": {"data": url}})), 400),
        (content(json!({"type": "video_url", "video_url": {"url": url}})), 400),
        (json!({"messages": [{"role": "user", "content": markdown, "images": [url]}]}), 400),
        (with(content(json!({"type": "text", "text": markdown})), json!({"max_tokens": 1})), 200),
    ] {
        assert_eq!(
            Server::shared().post("/v1/chat/completions", body.clone()).status,
            status,
            "{body}"
        );
    }
    let schema = json!({"$ref": url});
    assert_eq!(refused("/generate", json!({"prompt": "x", "guided_json": schema})).0, 400);
    let none = elsewhere.accept().unwrap_err();
    assert_eq!(none.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn paths_do_not_leave_the_routes() {
    let server = Server::shared();
    for path in [
        "/v1/models/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/models/%2e%2e%2f%2e%2e",
        "/..%2f..%2fetc/passwd",
        "/static/../../etc/passwd",
        "/api/pull",
        "/api/create",
        "/v1/load_lora_adapter",
        "/update_weights_from_disk",
        "/slots/0?action=save",
        "/collective_rpc",
    ] {
        for reply in [server.get(path), server.post(path, json!({"name": "x", "path": "/etc"}))] {
            assert!([404, 405].contains(&reply.status), "{path}: {}", reply.body);
        }
    }
}

/// All that a server sends on one connection to `request`, after which the client sends nothing.
fn conversation(request: &str) -> String {
    let server = Server::shared();
    let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let _ = socket.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    // A reset after the last answer is an end, too.
    let _ = socket.read_to_end(&mut answers);
    String::from_utf8_lossy(&answers).into_owned()
}

/// A request whose end two readers see at different places carries a second one past the first reader.
#[test]
fn requests_of_two_lengths_are_refused_with_what_they_carry() {
    let smuggled = "GET /v1/soup HTTP/1.1\r\nhost: x\r\n\r\n";
    let head = "POST /v1/solve HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let chunked = format!("0\r\n\r\n{smuggled}");
    let length = chunked.len();
    for framing in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n\r\n{chunked}"),
        format!("content-length: 2\r\ncontent-length: {length}\r\n\r\n{{}}{smuggled}"),
        format!("content-length: 2, {length}\r\n\r\n{{}}{smuggled}"),
        format!("content-length: +2\r\n\r\n{{}}{smuggled}"),
        format!("content-length: 0x2\r\n\r\n{{}}{smuggled}"),
        format!("content-length : 2\r\n\r\n{{}}{smuggled}"),
        format!("transfer-encoding: chunked, identity\r\n\r\n{chunked}"),
        format!("transfer-encoding: xchunked\r\n\r\n{chunked}"),
        format!("transfer-encoding : chunked\r\n\r\n{chunked}"),
        format!("x: y\r\n transfer-encoding: chunked\r\n\r\n{chunked}"),
        format!("transfer-encoding: chunked\r\n\r\n-1\r\n\r\n{smuggled}"),
        format!("transfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n{smuggled}"),
    ] {
        let answers = conversation(&format!("{head}{framing}"));
        assert!(answers.starts_with("HTTP/1.1 400"), "{framing}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{framing}: {answers}");
        assert!(!answers.contains("objectives"), "{framing}: {answers}");
    }
}
