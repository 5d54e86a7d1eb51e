//! Evaluations whose answers a ladle server gives, on a real socket.

use std::{
    net::TcpListener as Listener,
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::State, routing::post};
use ladle::{
    config::{ApiKey, ByteSize, MergeMode, ServeOptions, StoreOptions},
    http::{bind, load, serve_loaded},
};
use serde_json::json;
use tokio::{net::TcpListener, runtime::Runtime};

use super::*;

/// A running server of a soup.
pub struct Ladle {
    pub url: String,
    runtime: Option<Runtime>,
}

impl Ladle {
    fn start(soup: &Path, more: ServeOptions) -> Self {
        let options = ServeOptions {
            soup: Some(soup.to_owned()),
            port: Some(0),
            merge_mode: Some(MergeMode::Fused),
            store: StoreOptions { offline: Some(true), ..StoreOptions::default() },
            merge_cache: Some(ByteSize(64 << 20)),
            kv_cache: Some(ByteSize(16 << 20)),
            threads: Some(2.try_into().unwrap()),
            ..more
        };
        let runtime = Runtime::new().unwrap();
        let config = options.check().unwrap();
        let listener = runtime.block_on(bind(&config)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(serve_loaded(config, listener, std::future::pending(), load));
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        while agent.get(format!("{url}/ready")).call().unwrap().status() != 200 {}
        Self { url, runtime: Some(runtime) }
    }

    /// Ends it at once: connections break, the port is free.
    fn kill(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Drop for Ladle {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A server of the soup that asks for no key.
pub fn served(soup: &Path) -> Ladle {
    Ladle::start(soup, ServeOptions::default())
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

const THREE: &str = r#"
[[objectives]]
name = "helpful"
reward = { kind = "brevity", full = 1, span = 8, least = 0 }
[[objectives]]
name = "harmless"
reward = { kind = "regex", pattern = "[aeiou]" }
[[objectives]]
name = "brief"
reward = { kind = "regex", pattern = "s[0-9]" }
"#;

/// A configuration for a soup of the fixtures, and the scale of its rewards beside it.
fn measured(directory: &Path, objectives: &str) -> PathBuf {
    let scale = "mean = [0.5, 0.4, 0.3]\nstd = [0.2, 0.5, 0.4]\n";
    fs::write(directory.join("scale.toml"), scale).unwrap();
    task(directory, &format!("rollout = {{ max_new_tokens = 6 }}\n{objectives}"))
}

/// `evaluate` of a soup, on a coarse grid.
fn evaluate(config: &Path, soup: &Path, out: &Path) -> Command {
    let directory = config.parent().unwrap();
    let mut command = command();
    command.arg("evaluate").arg(config).arg("--soup").arg(soup).arg("--out").arg(out);
    command.arg("--share").arg(directory.join("scale.toml")).arg("--data").arg(directory);
    command.args(["--prompts", "3", "--dev-prompts", "2", "--grid", "3"]);
    command
}

fn through(mut command: Command, url: &str) -> Command {
    command.args(["--engine", url, "--retries", "1"]);
    command
}

fn front(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("front.json")).unwrap()).unwrap()
}

/// Takes the estimates of KL out of a front: another kernel scores the answers.
fn without_kl(mut front: Value) -> (Value, Vec<f64>) {
    let mut kls = Vec::new();
    for method in front["methods"].as_array_mut().unwrap() {
        method["verdicts"].take();
        for point in method["points"].as_array_mut().unwrap() {
            kls.push(point["kl"].take().as_f64().unwrap());
        }
    }
    for oracle in front["oracles"].as_array_mut().unwrap() {
        kls.push(oracle["point"]["kl"].take().as_f64().unwrap());
    }
    (front, kls)
}

fn names(front: &Value) -> Vec<&str> {
    let methods = front["methods"].as_array().unwrap().iter();
    methods.map(|method| method["method"].as_str().unwrap()).collect()
}

#[test]
fn a_server_gives_the_answers_and_the_front_of_an_engine_of_this_process() {
    let directory = tempfile::tempdir().unwrap();
    let config = measured(directory.path(), THREE);
    let soup = fixture("soup-tiny");
    let server = served(&soup);
    let at = |name: &str| directory.path().join(name);
    for (name, decoding) in
        [("greedy", ["--temperature", "0"]), ("sampled", ["--seeds", "3,18446744073709551615"])]
    {
        let (here, there) = (at(&format!("{name}-here")), at(&format!("{name}-there")));
        let run = |out: &Path| {
            let mut command = evaluate(&config, &soup, out);
            command.args(decoding).args(["--alphas", "0,0.5"]);
            command
        };
        succeed(&mut run(&here));
        succeed(&mut through(run(&there), &server.url));
        let read = |out: &Path| fs::read_to_string(out.join("samples.csv")).unwrap();
        assert_eq!(read(&here), read(&there), "{name}");
        let (here, there) = (front(&here), front(&there));
        let at_zero: Vec<&str> =
            names(&here).into_iter().filter(|name| !name.contains(", α")).collect();
        let expected =
            ["θ_sft", "bone soup (nominal)", "aba", "bone soup (clamped)", "mod on bone backbones"];
        assert_eq!(at_zero, expected);
        if name == "greedy" {
            assert_eq!(here, there);
            continue;
        }
        let ((here, kls), (there, others)) = (without_kl(here), without_kl(there));
        assert_eq!(here, there);
        support::close(&kls, &others, 0.05);
        assert!(kls.iter().any(|kl| *kl > 0.1), "{kls:?}");
    }
}

/// Where the prompt is θ_sft's, whose tokens activate the backbones, and the soup has another matrix
/// for its λ and an adapter for θ_sft.
#[test]
fn every_kind_of_soup_is_measured_and_what_its_server_cannot_do_is_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let config = measured(directory.path(), THREE);
    let at = |name: &str| directory.path().join(name);
    let measure = |mut command: Command, methods: &str| {
        succeed(command.args(["--temperature", "0", "--methods", methods]));
    };
    let answer = fixture("soup-tiny-answer");
    let server = served(&answer);
    let methods = "bone,clamped,aba";
    measure(evaluate(&config, &answer, &at("here")), methods);
    measure(through(evaluate(&config, &answer, &at("there")), &server.url), methods);
    assert_eq!(front(&at("here")), front(&at("there")));

    let mixed = fixture("soup-tiny-mixed");
    let text = fs::read_to_string(&config).unwrap();
    let own = text.replace("soup-tiny/base", "soup-tiny-mixed/base");
    assert_ne!(text, own);
    fs::write(&config, own).unwrap();
    let server = served(&mixed);
    let methods = "bone,realised,clamped,aba";
    measure(evaluate(&config, &mixed, &at("mixed")), methods);
    measure(through(evaluate(&config, &mixed, &at("served")), &server.url), methods);
    let (mut here, there) = (front(&at("mixed")), front(&at("served")));
    assert_eq!(there["left_out"].as_array().unwrap().len(), 1);
    assert_eq!(there["left_out"][0]["method"], "bone soup (nominal)");
    let reason = there["left_out"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("no preference asks its server for c"), "{reason}");
    assert_eq!(names(&there), ["θ_sft", "bone soup (realised)", "bone soup (clamped)", "aba"]);
    let kept = |method: &Value| method["method"] != "bone soup (nominal)";
    here["methods"].as_array_mut().unwrap().retain(kept);
    assert_eq!(here["methods"], there["methods"]);
}

/// A scorer of answers behind HTTP that ends a server when it is asked for the `last` time.
fn scorer(victim: Arc<Mutex<Ladle>>, last: usize) -> (String, Arc<Mutex<Vec<usize>>>) {
    type Kept = (Arc<Mutex<Ladle>>, usize, Arc<Mutex<Vec<usize>>>);
    async fn score(
        State((victim, last, asked)): State<Kept>,
        Json(body): Json<Value>,
    ) -> Json<Value> {
        let samples = body["samples"].as_array().unwrap();
        let length = |sample: &Value| sample["response"].as_str().unwrap().len();
        let mut asked = asked.lock().unwrap();
        asked.push(samples.len());
        if asked.len() == last {
            victim.lock().unwrap().kill();
        }
        Json(json!({"scores": samples.iter().map(length).collect::<Vec<_>>()}))
    }
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = (victim, last, asked.clone());
    thread::spawn(move || {
        Runtime::new().unwrap().block_on(async {
            let routes = Router::new().route("/score", post(score)).with_state(kept);
            axum::serve(TcpListener::from_std(listener).unwrap(), routes).await.unwrap();
        });
    });
    (url, asked)
}

#[test]
fn an_evaluation_whose_server_dies_says_so_and_goes_on_with_the_next_one() {
    let soup = fixture("soup-tiny");
    let start = || Arc::new(Mutex::new(served(&soup)));
    let (doomed, next) = (start(), start());
    let (url, asked) = scorer(doomed.clone(), 5);
    let directory = tempfile::tempdir().unwrap();
    let brevity = r#"{ kind = "brevity", full = 1, span = 8, least = 0 }"#;
    let http = format!(r#"{{ kind = "http", url = "{url}" }}"#);
    let config = measured(directory.path(), &THREE.replace(brevity, &http));
    let (broken, whole) = (directory.path().join("broken"), directory.path().join("whole"));
    let url = doomed.lock().unwrap().url.clone();
    let run = |url: &str, out: &Path| {
        let mut command = through(evaluate(&config, &soup, out), url);
        command.args(["--seeds", "1,2"]);
        command
    };
    refuse(&mut run(&url, &broken), &["row", "coefficients", &url, "/generate", "2 attempts"]);
    let answered = || {
        let text = fs::read_to_string(broken.join("answers.jsonl")).unwrap();
        text.lines().count()
    };
    assert_eq!((asked.lock().unwrap().clone(), answered()), (vec![6; 5], 30));

    let url = next.lock().unwrap().url.clone();
    succeed(&mut run(&url, &broken));
    let scored: usize = asked.lock().unwrap().iter().sum();
    assert_eq!(scored, answered());
    succeed(&mut run(&url, &whole));
    assert_eq!(front(&broken), front(&whole));
    let read = |out: &Path| fs::read_to_string(out.join("samples.csv")).unwrap();
    assert_eq!(read(&broken), read(&whole));
}

#[test]
fn what_cannot_be_measured_through_a_server_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let config = measured(directory.path(), THREE);
    let soup = fixture("soup-tiny");
    let key = ServeOptions { api_keys: Some(vec![ApiKey("secret".into())]), ..Default::default() };
    let server = Ladle::start(&soup, ServeOptions { max_context: 64.try_into().ok(), ..key });
    let out = directory.path().join("out");
    let with_key = || {
        let mut command = through(evaluate(&config, &soup, &out), &server.url);
        command.env("LADLE_API_KEY", "secret").args(["--methods", "bone"]);
        command
    };
    refuse(with_key().env("LADLE_API_KEY", "wrong"), &[&server.url, "401"]);
    refuse(with_key().args(["--alphas", "0,2.5"]), &["--alphas has 2.5", "bounds 0 to 2"]);
    refuse(with_key().args(["--against", "other"]), &["--against", "--engine"]);
    let mut hot = through(evaluate(&config, &soup, &directory.path().join("hot")), &server.url);
    hot.env("LADLE_API_KEY", "secret").args(["--temperature", "3"]);
    refuse(&mut hot, &["row", "temperature is 3"]);
    let text = fs::read_to_string(&config).unwrap();
    let asks = |from: &str, to: &str| fs::write(&config, text.replace(from, to)).unwrap();
    asks("max_new_tokens = 6", "max_new_tokens = 60");
    refuse(&mut with_key(), &["context is of 64 tokens", "longest prompt and answer"]);
    asks("\"harmless\"", "\"polite\"");
    refuse(&mut with_key(), &["soup-tiny", "harmless", "polite"]);
    asks("", "");
    succeed(&mut with_key());
    refuse(&mut evaluate(&config, &soup, &out), &["evaluation.toml", "another evaluation"]);

    let other = fixture("soup-tiny-answer");
    let mut another = through(evaluate(&config, &other, &out), &server.url);
    another.env("LADLE_API_KEY", "secret");
    refuse(&mut another, &[&server.url, "serves \"soup-tiny\"", "soup-tiny-answer", "digest"]);
    let nowhere = through(evaluate(&config, &soup, &out), "nowhere");
    refuse(&mut { nowhere }, &["--engine nowhere", "http://"]);
    let mut scaleless = command();
    scaleless.arg("evaluate").arg(&config).arg("--soup").arg(&soup).arg("--out").arg(&out);
    refuse(&mut scaleless, &["--share", "scale of the rewards"]);
}
