//! TLS: the same answers, and nothing for those who do not speak it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use ladle::config::ServeOptions;
use serde_json::json;

use crate::{
    keys::failed,
    server::{PATIENCE, Server, events, fixture, greedy, options, with},
};

fn sealed() -> ServeOptions {
    ServeOptions {
        tls_cert: Some(fixture("tls/cert.pem")),
        tls_key: Some(fixture("tls/key.pem")),
        ..options()
    }
}

#[test]
fn answers_over_tls_are_those_without_it() {
    let server = Server::start(sealed());
    let plain = Server::shared();
    let body = with(greedy(), json!({"max_tokens": 40}));
    assert_eq!(server.generate(body.clone())["text"], plain.generate(body.clone())["text"]);
    let streamed = with(body, json!({"stream": true}));
    let text = |server: &Server| -> Vec<_> {
        let events = events(server.send("/generate", streamed.clone()));
        events.filter(|(name, _)| name != "done").collect()
    };
    assert_eq!(text(&server), text(plain));
    // One that leaves in the middle frees its work.
    let long = with(greedy(), json!({"max_tokens": 240, "stream": true, "n": 16}));
    let mut stream = events(server.send("/generate", long));
    stream.next().unwrap();
    drop(stream);
    server.wait_until_idle();
}

#[test]
fn who_does_not_speak_tls_hears_nothing_and_keeps_nothing() {
    let server = Server::start(ServeOptions { header_timeout: Some(0.2), ..sealed() });
    let address = server.url.strip_prefix("https://").unwrap();
    for begin in [&b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"[..], b"", b"\x16\x03\x01"] {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(begin).unwrap();
        let mut heard = Vec::new();
        // Closed or reset: the server does not wait for more.
        let _ = socket.read_to_end(&mut heard);
        assert!(!heard.windows(4).any(|bytes| bytes == b"HTTP"), "{begin:?}: {heard:?}");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_certificate_that_cannot_be_used_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage.pem");
    fs::write(&garbage, "no PEM").unwrap();
    let (cert, key) = (fixture("tls/cert.pem"), fixture("tls/key.pem"));
    for (cert, key, part) in [
        (dir.path().join("none.pem"), key.clone(), "none.pem"),
        (cert.clone(), garbage.clone(), "garbage.pem"),
        (garbage, key, "garbage.pem"),
    ] {
        let options = ServeOptions { tls_cert: Some(cert), tls_key: Some(key), ..options() };
        let error = failed(options);
        assert!(error.contains(part), "{error}");
    }
    let alone = ServeOptions { tls_cert: Some(cert), ..options() };
    assert!(alone.check().unwrap_err().to_string().contains("tls_key"));
}
