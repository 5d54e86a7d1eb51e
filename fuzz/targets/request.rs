//! Request bodies through the server's own door, whole and streamed, on every route that takes one: an
//! answer or an error of the client, never a failure of the server; a stream is framed as its
//! specification says, holds JSON and is ended by its last event.
#![no_main]

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{OnceLock, mpsc},
    thread,
};

use ladle::{
    config::{ByteSize, ServeOptions, StoreOptions},
    http,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[path = "../../tests/support/routes.rs"]
mod routes;

use routes::POSTS;

/// A server of the tiny soup, for the whole process.
fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let soup = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/soup-tiny");
            let options = ServeOptions {
                soup: Some(soup.into()),
                port: Some(0),
                store: StoreOptions { offline: Some(true), ..StoreOptions::default() },
                merge_cache: Some(ByteSize(64 << 20)),
                kv_cache: Some(ByteSize(16 << 20)),
                threads: Some(1.try_into().expect("not zero")),
                max_tokens: Some(2.try_into().expect("not zero")),
                default_max_tokens: Some(2.try_into().expect("not zero")),
                ..ServeOptions::default()
            };
            let config = options.check().expect("options");
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = http::bind(&config).await.expect("a port");
                tell.send(listener.local_addr().expect("bound")).expect("heard");
                http::serve(config, listener, std::future::pending()).await.expect("serves");
            });
        });
        let address = told.recv().expect("an address");
        while ask(address, "GET /ready", b"").status != 200 {}
        address
    })
}

struct Answer {
    status: u16,
    streams: bool,
    body: Vec<u8>,
}

thread_local! {
    /// The connection of the request before, if it is still open.
    static CONNECTION: RefCell<Option<BufReader<TcpStream>>> = const { RefCell::new(None) };
}

fn ask(address: SocketAddr, request: &str, body: &[u8]) -> Answer {
    let kept = CONNECTION.take();
    let mut connection =
        kept.unwrap_or_else(|| BufReader::new(TcpStream::connect(address).expect("connects")));
    let length = body.len();
    let mut message = format!(
        "{request} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    )
    .into_bytes();
    message.extend_from_slice(body);
    connection.get_mut().write_all(&message).expect("sent");
    let (answer, stays) = read(&mut connection);
    if stays {
        CONNECTION.set(Some(connection));
    }
    answer
}

/// An answer, and whether the connection stays open.
fn read(connection: &mut BufReader<TcpStream>) -> (Answer, bool) {
    let line = |connection: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        connection.read_line(&mut line).expect("a line");
        line.strip_suffix("\r\n").expect("a whole line").to_ascii_lowercase()
    };
    let status = line(connection).split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut answer = Answer { status: status.expect("a status"), streams: false, body: vec![] };
    let (mut length, mut stays) = (None, true);
    loop {
        let header = line(connection);
        let Some((name, value)) = header.split_once(": ") else { break };
        match name {
            "content-length" => length = Some(value.parse().expect("a length")),
            "content-type" => answer.streams = value.starts_with("text/event-stream"),
            "connection" => stays = value != "close",
            _ => {}
        }
    }
    let mut take = |connection: &mut BufReader<TcpStream>, length: usize| {
        let start = answer.body.len();
        answer.body.resize(start + length, 0);
        connection.read_exact(&mut answer.body[start..]).expect("a body");
    };
    match length {
        Some(length) => take(connection, length),
        None => loop {
            let size = usize::from_str_radix(&line(connection), 16).expect("the size of a chunk");
            take(connection, size);
            assert_eq!(line(connection), "", "the end of a chunk");
            if size == 0 {
                break;
            }
        },
    }
    (answer, stays)
}

/// Server-sent events: lines of a field each, a blank line after each event, one line of data.
fn check_stream(body: &[u8]) {
    let text = std::str::from_utf8(body).expect("UTF-8");
    assert!(!text.contains('\r'));
    let mut last = String::new();
    for event in text.strip_suffix("\n\n").expect("ends with an event").split("\n\n") {
        let (mut name, mut data) = ("", None);
        for line in event.split('\n').filter(|line| !line.starts_with(':')) {
            match line.split_once(": ").expect("a field") {
                ("event", value) => name = value,
                ("data", value) => assert!(data.replace(value).is_none(), "two lines of data"),
                (field, _) => panic!("the field {field:?}"),
            }
        }
        let Some(data) = data else { continue };
        if data != "[DONE]" {
            serde_json::from_str::<Value>(data).expect("JSON");
        }
        last = if name.is_empty() { data.to_owned() } else { name.to_owned() };
    }
    let ends =
        ["[DONE]", "done", "error", "message_stop", "response.completed", "response.incomplete"];
    assert!(ends.contains(&last.as_str()), "ends with {last:?}");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&route, body)) = bytes.split_first() else { return };
    let (route, _) = &POSTS[usize::from(route) % POSTS.len()];
    let answer = ask(address(), &format!("POST {route}"), body);
    assert!(answer.status < 500, "{route}: {}", answer.status);
    if answer.streams {
        check_stream(&answer.body);
    } else {
        serde_json::from_slice::<Value>(&answer.body).expect("JSON");
    }
});
