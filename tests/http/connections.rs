//! Clients that close one side of their connection, and clients that go.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    num::NonZeroUsize,
};

use ladle::config::ServeOptions;
use serde_json::{Value, json};

use crate::server::{PATIENCE, Server, greedy, options, with};

fn connect(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn request(version: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST /generate HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request, closes the sending side, and reads all that comes.
fn half_closing(server: &Server, version: &str, body: &Value) -> String {
    let mut socket = connect(server);
    socket.write_all(request(version, body).as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// Enough work for seconds: sequences that run one after another. Nobody waits for its end.
const CHOICES: usize = 500;

fn busy() -> Server {
    let many = NonZeroUsize::new(CHOICES).unwrap();
    Server::start(ServeOptions {
        max_n: Some(many),
        max_sequences: Some(NonZeroUsize::MIN),
        ..options()
    })
}

fn long() -> Value {
    with(greedy(), json!({"n": CHOICES, "max_tokens": 240}))
}

#[test]
fn a_client_that_closes_its_sending_side_gets_its_answer() {
    let server = Server::shared();
    let text = server.generate(greedy())["text"].clone();
    for version in ["1.1", "1.0"] {
        let answer = half_closing(server, version, &greedy());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200"), "{answer}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["text"], text);
        let answer = half_closing(server, version, &with(greedy(), json!({"stream": true})));
        assert!(answer.contains("event: done"), "{answer}");
    }
    let refused = half_closing(server, "1.1", &json!({"prompt": ""}));
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    // A request that is cut short is not one.
    let mut socket = connect(server);
    let whole = request("1.1", &greedy());
    socket.write_all(&whole.as_bytes()[..whole.len() - 5]).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(!answer.contains(" 200 "), "{answer}");
    server.wait_until_idle();
}

#[test]
fn a_half_closing_client_waits_in_the_queue_as_long_as_any_other() {
    let server = busy();
    let mut running = connect(&server);
    running.write_all(request("1.1", &long()).as_bytes()).unwrap();
    server.wait_until("busy", |server| server.metric("ladle_requests_running") > 0.0);
    let mut socket = connect(&server);
    socket.write_all(request("1.1", &greedy()).as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    // It is asked whether it is still there, in a way that clients skip.
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
    drop(running);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("HTTP/1.1 200 OK"), "{rest}");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
}

#[test]
fn a_client_that_goes_before_its_answer_begins_frees_its_work() {
    let server = busy();
    let all = (CHOICES * 240) as f64;
    for stream in [false, true] {
        let before = server.metric("ladle_generated_tokens_total");
        let mut socket = connect(&server);
        let body = with(long(), json!({"stream": stream}));
        socket.write_all(request("1.1", &body).as_bytes()).unwrap();
        server.wait_until("busy", |server| server.metric("ladle_requests_running") > 0.0);
        drop(socket);
        server.wait_until_idle();
        let generated = server.metric("ladle_generated_tokens_total") - before;
        assert!(generated < all, "{generated} of {all} tokens were generated for nobody");
    }
    // The second one's answer had begun.
    let gone = "ladle_request_duration_seconds_count{route=\"/generate\",status=\"499\"}";
    assert_eq!(server.metric(gone), 1.0);
    server.generate(greedy());
}

#[test]
fn a_stream_that_fails_before_its_first_token_has_the_status_of_its_error() {
    let server = busy();
    let mut running = connect(&server);
    running.write_all(request("1.1", &long()).as_bytes()).unwrap();
    server.wait_until("busy", |server| server.metric("ladle_requests_running") > 0.0);
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8});
    for (path, body) in
        [("/generate", greedy()), ("/v1/completions", greedy()), ("/v1/chat/completions", chat)]
    {
        // It waits behind the work that runs until its deadline passes.
        let late = with(body.clone(), json!({"stream": true, "timeout": 0.02}));
        let reply = server.post(path, late);
        assert_eq!((reply.status, reply.error().0), (504, "deadline_exceeded"), "{path}");
        let reply = server.post(path, with(body, json!({"stream": true, "max_tokens": 100_000})));
        assert_eq!((reply.status, reply.error().0), (400, "context_length_exceeded"), "{path}");
    }
}

#[test]
fn one_connection_serves_request_after_request() {
    let server = Server::shared();
    let text = server.generate(greedy())["text"].clone();
    let mut socket = connect(server);
    // Both at once: the second waits until the first is answered.
    let twice = request("1.1", &greedy()) + &request("1.1", &greedy());
    socket.write_all(twice.as_bytes()).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    socket.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert_eq!(answers.matches(&format!("\"text\":{text}")).count(), 2, "{answers}");
}
