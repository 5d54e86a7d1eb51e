use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{Mutex, mpsc},
    thread,
    time::Duration,
};

use ladle::{
    config::{ByteSize, OnFailure, ServeOptions},
    engine::EngineHandle,
    http::load,
};
use serde_json::json;

use crate::{
    process::Process,
    server::{PATIENCE, Server, copied, events, fixture, greedy, options, with},
};

/// A stream that is larger than what sockets buffer: it goes on until the client has read it.
fn long() -> serde_json::Value {
    with(greedy(), json!({"max_tokens": 240, "stream": true, "n": 16, "logprobs": 20}))
}

#[test]
fn a_client_that_leaves_frees_its_work() {
    let server = Server::start(options());
    let before = server.generate(greedy())["text"].clone();
    for path in ["/generate", "/v1/completions"] {
        let mut stream = events(server.send(path, long()));
        stream.next().unwrap();
        drop(stream);
        server.wait_until_idle();
    }
    // One that waits for a whole answer is noticed as well.
    let impatient = crate::client::Client::new(Duration::from_millis(20));
    let body = with(greedy(), json!({"max_tokens": 240, "n": 16}));
    let gone = impatient.post(format!("{}/generate", server.url)).json(&body).send();
    assert!(matches!(gone, Err(ureq::Error::Timeout(_))), "16 × 240 tokens within 20 ms");
    server.wait_until_idle();
    assert_eq!(server.generate(greedy())["text"], before);
}

/// Each probe of a server that was loading wrote a warning.
#[test]
fn probes_leave_no_lines_in_the_log() {
    let soup = copied("soup-tiny");
    // It is asked whether it is ready until it is.
    let process = Process::start(soup.path(), &[]);
    assert_eq!(process.server.get("/health").status, 200);
    assert!(process.server.metric("ladle_requests_running") >= 0.0);
    process.server.generate(greedy());
    for line in process.lines_until(&["answered", "/generate"]) {
        for route in ["/ready", "/health", "/metrics"] {
            assert!(!line.contains(route), "{line}");
        }
    }
}

#[test]
fn draining_finishes_what_runs_and_refuses_what_is_new() {
    let mut server = Server::start(options());
    let whole = server.generate(with(greedy(), json!({"max_tokens": 240})))["text"].clone();
    let mut stream = events(server.send("/generate", long()));
    stream.next().unwrap();
    server.stop();
    server.wait_until("draining", |server| server.get("/ready").status == 503);
    let reply = server.post("/generate", greedy());
    assert_eq!((reply.status, reply.error().0), (503, "draining"), "{}", reply.body);
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(server.get("/health").status, 200);
    let (name, data) = stream.last().unwrap();
    assert_eq!(name, "done");
    let done: serde_json::Value = serde_json::from_str(&data).unwrap();
    assert_eq!(done["choices"][15]["text"], whole);
    server.join().unwrap();
    assert!(
        server.client.get(format!("{}/health", server.url)).send().is_err(),
        "the port is closed"
    );
}

#[test]
fn what_outlives_the_drain_timeout_is_told_so() {
    let mut server = Server::start(ServeOptions { drain_timeout: Some(0.001), ..options() });
    let mut stream = events(server.send("/generate", long()));
    stream.next().unwrap();
    server.stop();
    let (name, data) = stream.last().unwrap();
    assert_eq!(name, "error", "{data}");
    assert!(data.contains("draining"), "{data}");
    server.join().unwrap();
}

#[test]
fn a_soup_that_cannot_be_served_ends_the_server_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    for (asked, reason) in [
        (ServeOptions { soup: Some(directory.path().into()), ..options() }, "soup.toml"),
        (
            ServeOptions { kv_cache: Some(ByteSize(1)), ..options() },
            "the key/value budget is 1 bytes, expected at least ",
        ),
    ] {
        let config = asked.check().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(async {
            let listener = ladle::http::bind(&config).await.unwrap();
            ladle::http::serve(config, listener, std::future::pending()).await
        });
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(reason) && !error.contains("Some("), "{error}");
    }
}

/// The process as a whole, for it is its end that must not wait.
#[cfg(unix)]
#[test]
fn a_signal_while_the_soup_is_loaded_ends_the_process() {
    let directory = tempfile::tempdir().unwrap();
    // Reading a pipe that nobody writes to takes as long as it may.
    let pipe = directory.path().join("soup.toml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut server = Command::new(env!("CARGO_BIN_EXE_ladle"))
        .args(["serve", "--port", "0", "--offline", "--soup"])
        .arg(directory.path())
        .env("LADLE_HOME", directory.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(server.stderr.take().unwrap());
    let mut lines = log.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("listening")));
    // A pipe opens for writing when somebody opens it for reading: the server has begun to load,
    // and waits for what is never written.
    let _writer = OpenOptions::new().write(true).open(&pipe).unwrap();
    let kill = format!("kill -TERM {}", server.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let (ended, end) = mpsc::channel();
    let id = server.id();
    thread::spawn(move || ended.send(server.wait()));
    let Ok(status) = end.recv_timeout(PATIENCE) else {
        let kill = format!("kill -KILL {id}");
        Command::new("sh").args(["-c", &kill]).status().unwrap();
        panic!("the process goes on");
    };
    let status = status.unwrap();
    assert!(status.success(), "{status}");
}

/// A server, the handle of each engine that it starts, and what lets it start another: a handle can
/// end its engine behind the server's back, as a panic of its thread would.
fn with_engines(options: ServeOptions) -> (Server, mpsc::Receiver<EngineHandle>, mpsc::Sender<()>) {
    let (tell, engines) = mpsc::channel();
    let (allow, allowed) = mpsc::channel();
    allow.send(()).unwrap();
    let allowed = Mutex::new(allowed);
    let server = Server::start_loaded(options, move |config, telemetry, former| {
        allowed.lock().unwrap().recv().unwrap();
        let served = load(config, telemetry, former)?;
        tell.send(served.engine.clone()).unwrap();
        Ok(served)
    });
    (server, engines, allow)
}

#[test]
fn an_engine_that_dies_is_not_ready_and_is_started_again() {
    let (server, engines, allow) = with_engines(options());
    let before = server.generate(greedy())["text"].clone();
    let mut stream = events(server.send("/generate", long()));
    stream.next().unwrap();
    engines.recv().unwrap().abort();
    let (name, data) = stream.last().unwrap();
    assert!(name == "error" && data.contains("engine_stopped"), "{name} {data}");
    let ready = server.get("/ready");
    assert_eq!((ready.status, ready.error().0), (503, "engine_stopped"), "{}", ready.body);
    let refused = server.post("/generate", greedy());
    assert_eq!((refused.status, refused.error().0), (503, "engine_stopped"), "{}", refused.body);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(server.get("/health").status, 200);
    allow.send(()).unwrap();
    server.wait_until("ready again", |server| server.get("/ready").status == 200);
    assert_eq!(server.generate(greedy())["text"], before);
    engines.recv().unwrap();
}

#[test]
fn an_engine_that_dies_ends_the_server_where_it_is_configured_to() {
    let exit = ServeOptions { on_engine_failure: Some(OnFailure::Exit), ..options() };
    let (mut server, engines, _allow) = with_engines(exit);
    engines.recv().unwrap().abort();
    let error = server.join().unwrap_err().to_string();
    assert_eq!(error, "the engine has stopped");
}

#[test]
fn a_step_that_takes_too_long_is_not_ready_until_it_has_ended() {
    // A millionth of a second: every step is stuck.
    let mut server = Server::start(ServeOptions { step_timeout: Some(1e-6), ..options() });
    let mut stream = events(server.send("/generate", long()));
    stream.next().unwrap();
    server.wait_until("stuck", |server| {
        let ready = server.get("/ready");
        ready.status == 503 && ready.error().0 == "engine_stuck"
    });
    drop(stream);
    server.wait_until("ready again", |server| server.get("/ready").status == 200);
    server.stop();
    server.join().unwrap();
}

#[cfg(unix)]
#[test]
fn a_hangup_does_not_end_the_server() {
    let soup = copied("soup-tiny");
    let mut process = Process::start(soup.path(), &[]);
    let before = process.server.generate(greedy())["text"].clone();
    process.signal("HUP");
    process.wait_for(&["SIGHUP"]);
    assert_eq!(process.server.generate(greedy())["text"], before);
    assert_eq!(process.ended(), None);
    process.signal("TERM");
    let status = process.wait();
    assert!(status.success(), "{status}");
}

#[test]
fn what_a_killed_import_left_is_swept_when_the_server_starts() {
    let soup = copied("soup-tiny");
    // Where the process keeps its models.
    let left = soup.path().join("models/.ladle-partial-left");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("model.safetensors"), "half").unwrap();
    let _process = Process::start(soup.path(), &[]);
    assert!(!left.exists());
}

#[test]
fn a_port_in_use_is_named() {
    let server = Server::shared();
    let port: u16 = server.url.rsplit(':').next().unwrap().parse().unwrap();
    let config =
        ServeOptions { soup: Some(fixture("soup-tiny")), port: Some(port), ..Default::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(ladle::http::bind(&config.check().unwrap())).unwrap_err();
    assert!(error.to_string().contains(&format!("cannot listen on 127.0.0.1:{port}")), "{error}");
}

#[test]
fn requests_in_flight_do_not_mix_their_answers() {
    let server = Server::shared();
    let body = |index: usize| {
        let preference = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]][index % 4];
        let prompt = ["The soup is", "A spoon", "Hello there, "][index % 3];
        with(greedy(), json!({"preference": preference, "prompt": prompt, "max_tokens": 16}))
    };
    let alone: Vec<_> = (0..12).map(|index| server.generate(body(index))["text"].clone()).collect();
    let together: Vec<_> = thread::scope(|scope| {
        let handles: Vec<_> = (0..12)
            .map(|index| scope.spawn(move || server.generate(body(index))["text"].clone()))
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}
