//! A server on a free port, and a client for it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ladle::{
    config::{ByteSize, ServeConfig, ServeOptions, StoreOptions},
    http::{Beside, LoadError, ServeError, Served, bind, load, serve_loaded},
    telemetry::Telemetry,
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::client::{Client, Response};

/// Long enough for a busy machine, short enough to fail a hung test.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    pub url: String,
    pub client: Client,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

/// A status, its headers and the JSON that came with it.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Value,
}

impl Reply {
    pub fn of(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().unwrap();
        let body = match status {
            204 if text.is_empty() => Value::Null,
            _ => {
                serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: not JSON: {text}"))
            }
        };
        Self { status, headers, body }
    }

    /// The body of a 200.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// Code, parameter and message of an error in OpenAI's shape.
    pub fn error(&self) -> (&str, Option<&str>, &str) {
        let error = &self.body["error"];
        assert_eq!(error.as_object().map(|e| e.len()), Some(4), "{}", self.body);
        assert!(error["type"].is_string(), "{}", self.body);
        (
            error["code"].as_str().unwrap(),
            error["param"].as_str(),
            error["message"].as_str().unwrap(),
        )
    }
}

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy of a fixture.
pub fn copied(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture(name), dir.path());
    dir
}

/// Copies what is in a directory into another.
pub fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Options for the tiny soup, small budgets.
pub fn options() -> ServeOptions {
    ServeOptions {
        soup: Some(fixture("soup-tiny")),
        port: Some(0),
        store: StoreOptions { offline: Some(true), ..Default::default() },
        merge_cache: Some(ByteSize(64 << 20)),
        kv_cache: Some(ByteSize(16 << 20)),
        threads: Some(2.try_into().unwrap()),
        drain_timeout: Some(30.0),
        ..Default::default()
    }
}

impl Server {
    /// A server that runs already.
    pub fn at(url: String) -> Self {
        Self { url, client: Client::new(PATIENCE), stop: None, thread: None }
    }

    pub fn start(options: ServeOptions) -> Self {
        Self::start_loaded(options, load)
    }

    /// Starts with what `load` makes of the configuration.
    pub fn start_loaded(
        options: ServeOptions,
        load: impl Fn(&ServeConfig, Arc<Telemetry>, &Beside) -> Result<Served, LoadError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let certificate = options.tls_cert.as_ref().map(|path| fs::read(path).unwrap());
        let config = options.check().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let listener = bind(&config).await?;
                tell.send(listener.local_addr()?).unwrap();
                serve_loaded(config, listener, async { _ = stopped.await }, load).await
            })
        });
        let address = told.recv_timeout(PATIENCE).expect("the server bound a port");
        let (url, client) = match certificate {
            None => (format!("http://{address}"), Client::new(PATIENCE)),
            Some(pem) => (format!("https://{address}"), Client::trusting(PATIENCE, &pem)),
        };
        let server = Self { url, client, stop: Some(stop), thread: Some(thread) };
        server.wait_until("ready", |server| server.get("/ready").status == 200);
        server
    }

    /// One server for all tests that leave it as they found it.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(options()))
    }

    pub fn get(&self, path: &str) -> Reply {
        Reply::of(self.client.get(format!("{}{path}", self.url)).send().unwrap())
    }

    pub fn post(&self, path: &str, body: Value) -> Reply {
        Reply::of(self.send(path, body))
    }

    pub fn send(&self, path: &str, body: Value) -> Response {
        self.client.post(format!("{}{path}", self.url)).json(&body).send().unwrap()
    }

    pub fn post_bytes(&self, path: &str, body: impl Into<Vec<u8>>) -> Reply {
        let request = self
            .client
            .post(format!("{}{path}", self.url))
            .header("content-type", "application/json");
        Reply::of(request.body(body.into()).send().unwrap())
    }

    pub fn generate(&self, body: Value) -> Value {
        self.post("/generate", body).ok()
    }

    /// The data of all events of a stream, with their names.
    pub fn stream(&self, path: &str, body: Value) -> Vec<(String, String)> {
        events(self.send(path, body)).collect()
    }

    /// The value of a metric; labels are part of the name as Prometheus prints it.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.client.get(format!("{}/metrics", self.url)).send().unwrap().text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    /// Asks until the condition holds; each look is a request, so nothing else need pass the time.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        }
    }

    /// Nothing is running, waiting or held.
    pub fn wait_until_idle(&self) {
        self.wait_until("idle", |server| {
            server.metric("ladle_requests_running") == 0.0
                && server.metric("ladle_requests_waiting") == 0.0
                && server.metric("ladle_kv_usage_ratio") == 0.0
        });
    }

    /// Begins to drain.
    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end of a server that was stopped.
    pub fn join(&mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Name and data of the events of a stream, as they come.
pub fn events(response: Response) -> impl Iterator<Item = (String, String)> {
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut lines = BufReader::new(response).lines().map(Result::unwrap);
    std::iter::from_fn(move || {
        let (mut name, mut data) = (String::new(), None);
        for line in lines.by_ref() {
            if let Some(value) = line.strip_prefix("event: ") {
                name = value.to_owned();
            } else if let Some(value) = line.strip_prefix("data: ") {
                data = Some(value.to_owned());
            } else if let (true, Some(data)) = (line.is_empty(), data.take()) {
                return Some((name, data));
            }
        }
        None
    })
}

/// A greedy request with a fixed answer.
pub fn greedy() -> Value {
    json!({"prompt": "The soup is", "max_tokens": 8, "temperature": 0, "ignore_eos": true})
}

/// `base` with further fields.
pub fn with(base: Value, more: Value) -> Value {
    let mut merged = base;
    for (key, value) in more.as_object().unwrap() {
        merged[key] = value.clone();
    }
    merged
}
