//! Connections that take descriptors, memory or places without asking for anything.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    num::NonZeroUsize,
    process::{Child, Command, Stdio},
};

use ladle::config::{ApiKey, ServeOptions};
use serde_json::{Value, json};

use crate::server::{PATIENCE, Server, fixture, greedy, options, with};

fn connect(url: &str) -> TcpStream {
    let socket = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Everything until the server closes the connection.
fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "not closed: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Status and code of an answer that ends a connection.
fn last_error(socket: TcpStream) -> (u16, String) {
    let answer = rest(socket);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.contains("\r\nconnection: close"), "{head}");
    assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"].as_object().unwrap().len(), 4, "{body}");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body["error"]["code"].as_str().unwrap().to_owned())
}

/// The head of one answer, whose body is read too.
fn answered(socket: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(socket.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
    }
    let length = head.split_once("content-length: ").unwrap().1;
    let length = length.split_once('\r').unwrap().0.parse().unwrap();
    socket.read_exact(&mut vec![0; length]).unwrap();
    head
}

/// An answer to a request whose body was not waited for closed the connection without saying so, and the
/// client's next request was lost.
#[test]
fn an_answer_before_the_body_says_that_the_connection_closes() {
    let api_keys = Some(vec![ApiKey("right".into())]);
    let server = Server::start(ServeOptions { api_keys, ..options() });
    let mut socket = BufReader::new(connect(&server.url));
    let mut ask = |line: &str, key: &str, more: &str| {
        let text = format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{more}");
        socket.get_mut().write_all(text.as_bytes()).unwrap();
        answered(&mut socket)
    };
    let head = ask("GET /v1/soup", "wrong", "\r\n");
    assert!(head.contains(" 401 ") && !head.contains("connection: close"), "{head}");
    let json = "content-type: application/json\r\ncontent-length: 1\r\n\r\n";
    let head = ask("POST /generate", "right", &format!("{json}5"));
    assert!(head.contains(" 400 ") && !head.contains("connection: close"), "{head}");
    let head = ask("POST /generate", "wrong", json);
    assert!(head.contains(" 401 ") && head.contains("\r\nconnection: close"), "{head}");
    assert_eq!(rest(socket.into_inner()), "");
}

/// A connection whose head was never finished stayed open for ever.
#[test]
fn a_head_that_never_ends_is_cut_off() {
    let server = Server::start(ServeOptions { header_timeout: Some(0.3), ..options() });
    let mut first = connect(&server.url);
    first.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n").unwrap();
    assert_eq!(last_error(first), (408, "head_timeout".to_owned()));
    // After a whole request, too.
    let mut second = BufReader::new(connect(&server.url));
    second.get_mut().write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"{\"status\":\"ok\"}") {
        answer.push(second.by_ref().bytes().next().unwrap().unwrap());
    }
    second.get_mut().write_all(b"GET /health HT").unwrap();
    assert_eq!(last_error(second.into_inner()).0, 408);
}

#[test]
fn a_connection_without_a_request_is_closed() {
    let server = Server::start(ServeOptions {
        idle_timeout: Some(0.3),
        header_timeout: Some(0.2),
        ..options()
    });
    assert_eq!(rest(connect(&server.url)), "");
    let mut used = connect(&server.url);
    used.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(rest(used).ends_with("{\"status\":\"ok\"}"));
}

#[test]
fn heads_that_cannot_be_read_get_an_error_in_json() {
    let server = Server::shared();
    let large = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned();
    for (head, status, code) in [
        ("NOT HTTP\r\n\r\n".to_owned(), 400, "invalid_head"),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400, "invalid_head"),
        (large, 431, "head_too_large"),
        (many, 431, "head_too_large"),
        (preface, 400, "invalid_head"),
    ] {
        let mut socket = connect(&server.url);
        println!("{head:.80}");
        socket.write_all(head.as_bytes()).unwrap();
        assert_eq!(last_error(socket), (status, code.to_owned()));
    }
}

#[test]
fn one_address_has_its_share_of_connections() {
    let two = NonZeroUsize::new(2);
    let server = Server::start(ServeOptions { max_address_connections: two, ..options() });
    // The client that saw the server ready keeps a connection.
    let first = connect(&server.url);
    let told = last_error(connect(&server.url));
    assert_eq!(told, (429, "too_many_connections".to_owned()));
    drop(first);
    server.wait_until("room", |server| {
        let mut socket = connect(&server.url);
        socket.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
        rest(socket).contains(" 200 ")
    });
}

#[test]
fn a_connection_that_waits_makes_room_for_one_that_asks() {
    let three = NonZeroUsize::new(3);
    let server = Server::start(ServeOptions {
        max_connections: three,
        max_address_connections: three,
        ..options()
    });
    let waiting: Vec<_> = (0..20).map(|_| connect(&server.url)).collect();
    server.generate(greedy());
    drop(waiting);
}

/// 300 half-sent heads stopped a server of 256 descriptors for good.
#[cfg(unix)]
#[test]
fn a_server_of_few_descriptors_outlives_many_half_sent_heads() {
    struct Process(Child);
    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let mut server = Process(
        Command::new("sh")
            .args(["-c", "ulimit -n 96 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ladle")])
            .args(["serve", "--port", "0", "--offline", "--kv-cache", "16MiB", "--soup"])
            .arg(fixture("soup-tiny"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let log = BufReader::new(server.0.stderr.take().unwrap());
    let mut lines = log.lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("listening")).unwrap();
    let plain: String = line.chars().filter(|c| !c.is_control()).collect();
    let port = plain.rsplit(':').next().unwrap().chars().take_while(char::is_ascii_digit);
    let url = format!("http://127.0.0.1:{}", port.collect::<String>());
    // The log is read on, so that the server can write.
    std::thread::spawn(move || lines.for_each(drop));
    let half = |_| {
        let mut socket = connect(&url);
        socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n").ok();
        socket
    };
    let half_sent: Vec<TcpStream> = (0..300).map(half).collect();
    let mut socket = connect(&url);
    socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let answer = rest(socket);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    drop(half_sent);
}

/// A client that took nothing of its answer kept its place for a minute.
#[test]
fn a_client_that_reads_nothing_is_dropped() {
    let server = Server::start(ServeOptions { write_timeout: Some(0.3), ..options() });
    let mut socket = connect(&server.url);
    let long = json!({"max_tokens": 240, "stream": true, "n": 16, "logprobs": 20});
    let body = with(greedy(), long).to_string();
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    let dropped = "ladle_request_duration_seconds_count{route=\"/generate\",status=\"200\"}";
    server.wait_until("dropped", |server| {
        let text =
            server.client.get(format!("{}/metrics", server.url)).send().unwrap().text().unwrap();
        text.lines().any(|line| line.starts_with(dropped))
    });
    let answer = rest(socket);
    assert!(!answer.contains("event: done"), "it was read to its end");
    server.wait_until_idle();
}
