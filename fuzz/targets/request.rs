//! Request bodies through the server's own door, whole and streamed: an answer or an error of the
//! client, never a failure of the server; the events of a stream are well formed.
#![no_main]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{OnceLock, mpsc},
    thread,
};

use ladle::{
    config::{ByteSize, ServeOptions, StoreOptions},
    http,
};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/routes.rs"]
mod routes;

use routes::POSTS;

/// A server of the tiny soup, for the whole process.
fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let options = ServeOptions {
                soup: Some(
                    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/soup-tiny").into(),
                ),
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
        while exchange(address, "GET /ready", b"") != 200 {}
        address
    })
}

/// The status of the answer, whose body is checked if it is a stream.
fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> u16 {
    let mut socket = TcpStream::connect(address).expect("connects");
    let length = body.len();
    let head = format!(
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body)).expect("sent");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("answered");
    let answer = String::from_utf8(answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    if head.contains("text/event-stream") {
        // Chunks of the transfer hold whole events: size, data, line break.
        let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
        for data in data.filter(|data| *data != "[DONE]") {
            serde_json::from_str::<serde_json::Value>(data).expect("JSON");
        }
    }
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&route, body)) = bytes.split_first() else { return };
    let (route, _) = &POSTS[usize::from(route) % POSTS.len()];
    let status = exchange(address(), &format!("POST {route}"), body);
    assert!(status < 500, "{route}: {status}");
});
