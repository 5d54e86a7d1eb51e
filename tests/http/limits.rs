use std::{
    cell::RefCell,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use ladle::config::{ApiKey, ServeOptions};
use serde_json::json;

use crate::{
    client::Response,
    routes::POSTS,
    server::{PATIENCE, Reply, Server, greedy, options, with},
};

/// A request that runs until it is dropped or the context is full.
fn endless() -> serde_json::Value {
    with(greedy(), json!({"max_tokens": 240, "stream": true}))
}

/// What `body` is answered while an endless request runs, and that request; asked again where it
/// ended before, as it does after some ten milliseconds.
fn beside_an_endless_one(server: &Server, body: &serde_json::Value) -> (Reply, Response) {
    let begin = Instant::now();
    loop {
        let running = server.send("/generate", endless());
        let reply = server.post("/generate", body.clone());
        if reply.status != 200 || begin.elapsed() > PATIENCE {
            return (reply, running);
        }
        drop(running);
        server.wait_until_idle();
    }
}

#[test]
fn without_a_key_only_the_open_routes_answer() {
    let keys = vec![ApiKey("first".into()), ApiKey("second".into())];
    let server = Server::start(ServeOptions { api_keys: Some(keys), ..options() });
    for path in ["/v1/models", "/v1/soup"] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.error().0), (401, "invalid_api_key"), "{path}");
        assert_eq!(reply.headers["www-authenticate"], "Bearer");
    }
    for (path, _) in POSTS.iter() {
        assert_eq!(server.post(path, json!({})).status, 401, "{path}");
    }
    for path in ["/health", "/ready", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let ask = |key: &str| {
        let request = server.client.post(format!("{}/generate", server.url)).bearer_auth(key);
        Reply::of(request.json(&greedy()).send().unwrap()).status
    };
    assert_eq!((ask("first"), ask("second"), ask("First"), ask("third")), (200, 200, 401, 401));
    assert!(server.metric("ladle_requests_rejected_total{reason=\"unauthorized\"}") >= 8.0);
}

#[test]
fn a_client_over_its_rate_is_told_when_to_come_back() {
    let keys = vec![ApiKey("busy".into()), ApiKey("calm".into())];
    let server = Server::start(ServeOptions {
        api_keys: Some(keys),
        rate_limit: Some(3.try_into().unwrap()),
        ..options()
    });
    let ask = |key: &str| {
        let request = server.client.post(format!("{}/v1/solve", server.url)).bearer_auth(key);
        Reply::of(request.json(&json!({})).send().unwrap())
    };
    for _ in 0..3 {
        assert_eq!(ask("busy").status, 200);
    }
    let reply = ask("busy");
    assert_eq!((reply.status, reply.error().0), (429, "rate_limit_exceeded"));
    let wait: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait} s until a third of a minute has passed");
    assert_eq!(ask("calm").status, 200);
    assert_eq!(server.metric("ladle_requests_rejected_total{reason=\"rate_limited\"}"), 1.0);
}

#[test]
fn a_full_server_answers_503_and_recovers() {
    let server =
        Server::start(ServeOptions { max_in_flight: Some(1.try_into().unwrap()), ..options() });
    let before = server.generate(greedy())["text"].clone();
    let (reply, running) = beside_an_endless_one(&server, &greedy());
    assert_eq!((reply.status, reply.error().0), (503, "overloaded"), "{}", reply.body);
    assert!(reply.headers.contains_key("retry-after"));
    drop(running);
    server.wait_until("room", |server| server.post("/v1/solve", json!({})).status == 200);
    server.wait_until_idle();
    assert_eq!(server.generate(greedy())["text"], before);
}

#[test]
fn a_full_queue_answers_503_and_nothing_is_left_behind() {
    let one = 1.try_into().unwrap();
    let server =
        Server::start(ServeOptions { max_queue: Some(one), max_sequences: Some(one), ..options() });
    let (reply, running) = beside_an_endless_one(&server, &with(greedy(), json!({"n": 8})));
    assert_eq!((reply.status, reply.error().0), (503, "overloaded"), "{}", reply.body);
    assert!(reply.headers.contains_key("retry-after"));
    drop(running);
    server.wait_until_idle();
    server.generate(greedy());
}

/// One client could fill the queue, and every place in progress.
#[test]
fn one_client_leaves_others_places() {
    let keys = vec![ApiKey("greedy".into()), ApiKey("modest".into())];
    let server = Server::start(ServeOptions {
        api_keys: Some(keys),
        max_queue: Some(800.try_into().unwrap()),
        max_in_flight: Some(4.try_into().unwrap()),
        max_n: Some(1000.try_into().unwrap()),
        max_sequences: Some(1.try_into().unwrap()),
        ..options()
    });
    let soon = |more| with(greedy(), with(json!({"timeout": 0.05}), more));
    let ask = |key: &str, body| {
        let request = server.client.post(format!("{}/generate", server.url)).bearer_auth(key);
        Reply::of(request.json(&body).send().unwrap())
    };
    let reply = ask("greedy", soon(json!({"n": 700})));
    assert_eq!((reply.status, reply.error().0), (503, "overloaded"), "{}", reply.body);
    assert!(reply.error().2.contains("of this client are waiting, the limit for one is 600"));

    // Work for seconds, of which nobody waits for the end.
    let long = with(greedy(), json!({"n": 150, "max_tokens": 240})).to_string();
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer greedy\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{long}",
        long.len()
    );
    let held = RefCell::new(Vec::new());
    server.wait_until("its places are taken", |_| {
        let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        held.borrow_mut().push(socket);
        let reply = ask("greedy", soon(json!({})));
        reply.status == 503 && reply.error().2.contains("of this client are in progress")
    });
    assert_ne!(ask("modest", soon(json!({}))).status, 503);
    drop(held);
    server.wait_until_idle();
}

#[test]
fn guessed_keys_are_limited_by_address() {
    let keys = vec![ApiKey("right".into()), ApiKey("other".into())];
    let server = Server::start(ServeOptions { api_keys: Some(keys), ..options() });
    let ask = |key: &str| {
        let request = server.client.post(format!("{}/v1/solve", server.url)).bearer_auth(key);
        Reply::of(request.json(&json!({})).send().unwrap())
    };
    assert_eq!(ask("right").status, 200);
    let wrong: Vec<u16> = (0..40).map(|n| ask(&format!("guess {n}")).status).collect();
    assert_eq!(wrong[..30], [401; 30]);
    assert!(wrong.contains(&429), "{wrong:?}");
    // The key that this address used before passes.
    assert_eq!(ask("right").status, 200);
    let reply = ask("other");
    assert_eq!((reply.status, reply.error().0), (429, "rate_limit_exceeded"));
    assert!(reply.headers.contains_key("retry-after"));
}

#[test]
fn an_answer_of_no_given_length_keeps_to_the_limit_too() {
    let server =
        Server::start(ServeOptions { max_tokens: Some(3.try_into().unwrap()), ..options() });
    for path in ["/generate", "/v1/completions"] {
        let answer = server.post(path, with(greedy(), json!({"max_tokens": null}))).ok();
        assert_eq!(answer["usage"]["completion_tokens"], 3, "{path}");
    }
    let reply = server.post("/generate", with(greedy(), json!({"max_tokens": 4})));
    assert_eq!((reply.status, reply.error().1), (400, Some("max_tokens")));
}

#[test]
fn a_passed_deadline_is_504_and_frees_the_work() {
    let server = Server::shared();
    let reply = server
        .post("/generate", with(greedy(), json!({"max_tokens": 240, "timeout": 0.001, "n": 16})));
    assert_eq!((reply.status, reply.error().0), (504, "deadline_exceeded"), "{}", reply.body);
    assert!(reply.error().2.contains("0.001 s"));
    server.generate(greedy());
}

/// The longest time of any request counted while one waited to be checked.
#[test]
fn a_request_that_waits_to_be_checked_keeps_to_its_own_deadline() {
    let server = Server::shared();
    let large = json!({"prompt": "a b? ".repeat(700_000)}).to_string();
    // It would be refused as soon as it was checked.
    let waiting =
        json!({"prompt": "x", "temperature": 9, "timeout": 0.001, "stop": "a".repeat(70_000)});
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let status = server.post_bytes("/generate", large.clone()).status;
                    assert!([400, 503].contains(&status), "{status}");
                }
            });
        }
        let begin = Instant::now();
        let reply = loop {
            let reply = server.post("/generate", waiting.clone());
            if reply.status == 504 || begin.elapsed() > PATIENCE {
                break reply;
            }
            assert_eq!((reply.status, reply.error().1), (400, Some("temperature")));
        };
        done.store(true, Ordering::Relaxed);
        assert_eq!((reply.status, reply.error().0), (504, "deadline_exceeded"), "{}", reply.body);
        assert!(reply.error().2.contains("0.001 s"), "{}", reply.body);
    });
}

#[test]
fn a_body_that_never_ends_is_cut_off() {
    let server = Server::start(ServeOptions { body_timeout: Some(0.3), ..options() });
    let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    socket.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 2048];
    let length = socket.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("body_timeout"), "{answer}");
    server.generate(greedy());
}

#[test]
fn two_hundred_distinct_preferences_at_once_leave_a_hot_one_its_answer() {
    let server = Server::shared();
    let hot = server.generate(greedy())["text"].clone();
    thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || {
                for step in 0..25 {
                    let mu = f64::from(worker * 25 + step) / 200.0;
                    let body =
                        with(greedy(), json!({"preference": [mu, 1.0 - mu, 0.5], "max_tokens": 2}));
                    server.generate(body);
                }
            });
        }
        for _ in 0..10 {
            assert_eq!(server.generate(greedy())["text"], hot);
        }
    });
}
