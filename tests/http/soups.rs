//! The served soup replaced without a restart: generations, who may, and what comes of bad ones.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ladle::{
    config::{ApiKey, ByteSize, MergeMode, ServeOptions},
    engine::EngineHandle,
    http::load,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    keys::{Keys, failed, post},
    process::Process,
    server::{Reply, Server, copy, events, fixture, greedy, options, with},
    structured::validate,
};

pub const ROUTE: &str = "/admin/soups/soup-tiny";

/// A directory of soups with one name: `one` of adapters, and `two` of full checkpoints on the base of
/// the first.
fn soups() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (from, to) in [("soup-tiny", "one"), ("soup-tiny-full", "two")] {
        fs::create_dir(root.path().join(to)).unwrap();
        copy(&fixture(from), &root.path().join(to));
    }
    edit(&root.path().join("two"), "name = \"soup-tiny-full\"", "name = \"soup-tiny\"");
    edit(&root.path().join("two"), "../soup-tiny/base", "../one/base");
    root
}

/// Changes a text of a soup's manifest.
pub fn edit(soup: &Path, from: &str, to: &str) {
    let path = soup.join("soup.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

pub fn call(server: &Server, method: &str, path: &str, key: &str, body: Option<Value>) -> Reply {
    let url = format!("{}{path}", server.url);
    let request = server.client.request(method.parse().unwrap(), url);
    let request = if key.is_empty() { request } else { request.bearer_auth(key) };
    let request = body.into_iter().fold(request, |request, body| request.json(&body));
    Reply::of(request.send().unwrap())
}

/// A server whose soup may be replaced by those beside it.
pub struct Managed {
    root: TempDir,
    pub keys: Keys,
    /// The key of who may.
    pub key: String,
    pub server: Server,
    /// The handles of engines that it has started.
    pub engines: Arc<Mutex<Vec<EngineHandle>>>,
}

impl Managed {
    pub fn start(more: ServeOptions) -> Self {
        let (root, keys) = (soups(), Keys::none());
        let key = keys.add(&["deploy", "--soups", "--admin"]);
        let places = ServeOptions {
            soup: Some(root.path().join("one")),
            soup_root: Some(root.path().into()),
            ..keys.options()
        };
        let engines = Arc::<Mutex<Vec<EngineHandle>>>::default();
        let handles = engines.clone();
        let server = Server::start_loaded(more.over(places), move |config, telemetry, beside| {
            let served = load(config, telemetry, beside)?;
            handles.lock().unwrap().push(served.engine.clone());
            Ok(served)
        });
        Self { root, keys, key, server, engines }
    }

    pub fn path(&self, soup: &str) -> PathBuf {
        self.root.path().join(soup)
    }

    pub fn put(&self, body: Value) -> Reply {
        call(&self.server, "PUT", ROUTE, &self.key, Some(body))
    }

    /// The served soup, as its manager sees it.
    fn soup(&self) -> Value {
        let listed = call(&self.server, "GET", "/admin/soups", &self.key, None).ok();
        assert_eq!(listed["soups"].as_array().unwrap().len(), 1, "{listed}");
        listed["soups"][0].clone()
    }

    pub fn generate(&self, body: &Value) -> Value {
        post(&self.server, &self.key, "/generate", body).ok()
    }

    pub fn metric(&self, name: &str) -> f64 {
        let request = self.server.client.get(format!("{}/metrics", self.server.url));
        let text = request.bearer_auth(&self.key).send().unwrap().text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    /// Former generations hold nothing any more, once nobody has the handle of their engines.
    fn wait_until_drained(&self) {
        self.server.wait_until("drained", |_| {
            self.engines.lock().unwrap().clear();
            self.soup()["draining"] == json!([])
        });
    }
}

/// A request whose answer differs between the soups.
pub fn question(index: usize) -> Value {
    let preference = [[6, 3, 1], [1, 6, 3], [3, 1, 6], [2, 5, 3]][index % 4];
    with(greedy(), json!({"preference": preference, "max_tokens": 24}))
}

/// What each of the soups answers on a server of its own, by its digest.
fn alone(root: &Path) -> BTreeMap<String, Vec<Value>> {
    let answers = |soup: &str| {
        let soup = Some(root.join(soup));
        let server = Server::start(ServeOptions { soup, ..options() });
        let answers: Vec<Value> = (0..4).map(|index| server.generate(question(index))).collect();
        let digest = answers[0]["soup"]["digest"].as_str().unwrap().to_owned();
        (digest, answers.into_iter().map(|answer| answer["text"].clone()).collect())
    };
    ["one", "two"].map(answers).into()
}

#[test]
fn a_replacement_under_load_loses_no_answer_and_mixes_none() {
    // Two lanes for four clients: some requests wait.
    let lanes = Some(2.try_into().unwrap());
    let managed = Managed::start(ServeOptions { max_sequences: lanes, ..Default::default() });
    let expected = alone(managed.root.path());
    assert_eq!(expected.len(), 2);
    let (differ, done) = (expected.values().collect::<Vec<_>>(), AtomicBool::new(false));
    assert_ne!(differ[0], differ[1]);
    let (counted, replaced) = thread::scope(|scope| {
        let client = |client: usize| {
            let (managed, expected, done) = (&managed, &expected, &done);
            scope.spawn(move || {
                let mut counts = BTreeMap::<String, usize>::new();
                for index in (0..4).cycle().skip(client) {
                    if done.load(Ordering::Relaxed) {
                        return counts;
                    }
                    let stream = with(question(index), json!({"stream": true}));
                    let request =
                        managed.server.client.post(format!("{}/generate", managed.server.url));
                    let answer = request.bearer_auth(&managed.key).json(&stream).send().unwrap();
                    let (name, data) = events(answer).last().unwrap();
                    assert_eq!(name, "done", "{data}");
                    let answer: Value = serde_json::from_str(&data).unwrap();
                    let digest = answer["soup"]["digest"].as_str().unwrap();
                    assert_eq!(answer["text"], expected[digest][index], "{index} of {digest}");
                    *counts.entry(digest.to_owned()).or_default() += 1;
                }
                unreachable!("an endless cycle")
            })
        };
        let clients: Vec<_> = (0..4).map(client).collect();
        let mut replaced = Vec::new();
        for soup in ["two", "one", "two", "one"] {
            managed.wait_until_drained();
            let new = managed.put(json!({"source": soup})).ok();
            // Whoever asks from now on is answered by the new one.
            let answer = managed.generate(&question(replaced.len()));
            let digest = new["digest"].as_str().unwrap();
            assert_eq!(answer["soup"]["digest"], digest);
            assert_eq!(answer["text"], expected[digest][replaced.len()]);
            replaced.push(new["generation"].as_u64().unwrap());
        }
        done.store(true, Ordering::Relaxed);
        let counts = clients.into_iter().flat_map(|client| client.join().unwrap());
        let mut sum = BTreeMap::<String, usize>::new();
        counts.for_each(|(digest, count)| *sum.entry(digest).or_default() += count);
        (sum, replaced)
    });
    assert_eq!(counted.len(), 2, "{counted:?}");
    assert!(replaced.is_sorted_by(|a, b| a < b), "{replaced:?}");
    // Counters count on, over all generations.
    let answers = counted.values().sum::<usize>() + replaced.len();
    managed.wait_until_drained();
    managed.server.wait_until("counted", |_| {
        managed.metric("ladle_generated_tokens_total") == (answers * 24) as f64
    });
}

#[test]
fn what_began_with_a_generation_ends_with_it_and_gives_its_memory_back() {
    let fused = Some(MergeMode::Fused);
    let managed = Managed::start(ServeOptions { merge_mode: fused, ..Default::default() });
    let (old, before) = (managed.soup(), managed.generate(&question(0)));
    let merged = || managed.metric("ladle_merge_cache_models");
    (1..3).for_each(|index| _ = managed.generate(&question(index)));
    assert_eq!(merged(), 3.0);
    let long = with(question(0), json!({"stream": true, "max_tokens": 200}));
    let request = managed.server.client.post(format!("{}/generate", managed.server.url));
    let mut stream = events(request.bearer_auth(&managed.key).json(&long).send().unwrap());
    stream.next().unwrap();

    let new = managed.put(json!({"source": "two", "if_generation": old["generation"]})).ok();
    assert_ne!(new["digest"], old["digest"]);
    // Its engine lives as long as somebody holds it: a third generation must wait.
    let draining = new["draining"].as_array().unwrap();
    assert_eq!((draining.len(), &draining[0]["generation"]), (1, &old["generation"]), "{new}");
    assert_eq!(managed.metric("ladle_soup_draining"), 1.0);
    let refused = managed.put(json!({"source": "one"}));
    assert_eq!((refused.status, refused.error().0), (409, "replacement_in_progress"));
    assert!(refused.error().2.contains(&old["generation"].to_string()), "{}", refused.body);
    assert!(refused.headers.contains_key("retry-after"));
    let (name, data) = stream.last().unwrap();
    let answer: Value = serde_json::from_str(&data).unwrap();
    assert_eq!((name.as_str(), &answer["soup"]), ("done", &before["soup"]), "{data}");
    let text = answer["text"].as_str().unwrap();
    assert!(text.starts_with(before["text"].as_str().unwrap()), "{text}");

    assert_eq!(managed.generate(&question(0))["soup"]["digest"], new["digest"]);
    assert_eq!(merged(), 4.0);
    managed.wait_until_drained();
    assert_eq!((merged(), managed.metric("ladle_soup_draining")), (1.0, 0.0));
    managed.put(json!({"source": "one"})).ok();
}

#[test]
fn a_generation_that_is_not_served_is_not_replaced() {
    let managed = Managed::start(ServeOptions::default());
    let first = managed.soup()["generation"].as_u64().unwrap();
    let put = |generation: u64| managed.put(json!({"source": "two", "if_generation": generation}));
    let refused = put(first + 1);
    let (code, param, message) = refused.error();
    assert_eq!((refused.status, code), (412, "generation_mismatch"));
    assert_eq!(param, Some("if_generation"));
    assert!(message.contains(&first.to_string()), "{message}");
    assert_eq!(managed.soup()["generation"], first);
    // Of two who have seen the same generation one replaces it.
    let both = thread::scope(|scope| {
        [(), ()].map(|()| scope.spawn(|| put(first).status)).map(|put| put.join().unwrap())
    });
    // The other one comes while it is replaced, or afterwards.
    assert!(both.contains(&200) && (both.contains(&409) || both.contains(&412)), "{both:?}");
    let second = managed.soup()["generation"].as_u64().unwrap();
    assert!(second > first);
    assert_eq!(managed.metric("ladle_soup_generation"), second as f64);
    assert_eq!(managed.server.get("/ready").ok()["generation"], second);
    // A join on the soup's name finds one.
    let info = managed.server.client.get(format!("{}/metrics", managed.server.url));
    let text = info.bearer_auth(&managed.key).send().unwrap().text().unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("ladle_model_info{")).count(), 1);
}

#[test]
fn a_soup_that_cannot_be_served_changes_nothing() {
    let managed =
        Managed::start(ServeOptions { pin: Some(vec!["terse".into()]), ..Default::default() });
    let new = |name: &str| {
        fs::create_dir(managed.path(name)).unwrap();
        copy(&managed.path("two"), &managed.path(name));
        managed.path(name)
    };
    let weights = new("cut").join("backbones/helpful/model.safetensors");
    let file = OpenOptions::new().write(true).open(weights).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    edit(&new("renamed"), "name = \"soup-tiny\"", "name = \"another\"");
    edit(&new("other-digest"), "\" = \"", "\" = \"0");
    edit(&new("without-preset"), "terse = {", "short = {");
    let outside = soups();
    std::os::unix::fs::symlink(outside.path().join("one"), managed.path("link")).unwrap();
    fs::create_dir(managed.path("empty")).unwrap();

    let (before, answer) = (managed.soup(), managed.generate(&question(1)));
    for (source, part) in [
        ("cut", "model.safetensors"),
        ("renamed", "\"another\", expected \"soup-tiny\""),
        ("other-digest", "sha256"),
        ("without-preset", "terse"),
        ("empty", "soup.toml"),
        ("absent", "below soup_root"),
        ("link", "below soup_root"),
        ("../one", "below soup_root"),
        ("one/../two", "below soup_root"),
        ("/etc", "below soup_root"),
        (".", "below soup_root"),
        ("", "below soup_root"),
    ] {
        let refused = managed.put(json!({"source": source}));
        let (code, param, message) = refused.error();
        assert_eq!((refused.status, code), (400, "invalid_value"), "{source}: {message}");
        assert_eq!(param, Some("source"), "{source}: {message}");
        assert!(message.contains(part), "{source}: {message}");
    }
    for (body, param) in [
        (json!({}), "source"),
        (json!({"source": 1}), "source"),
        (json!({"source": "two", "if_generation": -1}), "if_generation"),
        (json!({"source": "two", "generation": 1}), "generation"),
    ] {
        let refused = managed.put(body.clone());
        assert_eq!((refused.status, refused.error().1), (400, Some(param)), "{body}");
    }
    let other = "/admin/soups/another";
    let absent = call(&managed.server, "PUT", other, &managed.key, Some(json!({"source": "two"})));
    assert_eq!((absent.status, absent.error().0), (404, "model_not_found"));
    assert_eq!(managed.soup(), before);
    assert_eq!(managed.generate(&question(1))["text"], answer["text"]);

    // A key that is bound to a preset needs a soup that has it.
    managed.keys.add(&["bound", "--preset", "balanced"]);
    edit(&new("unbalanced"), "balanced = {", "even = {");
    edit(&managed.path("unbalanced"), "default = \"balanced\"", "default = \"even\"");
    let refused = managed.put(json!({"source": "unbalanced"}));
    assert!(refused.status == 400 && refused.error().2.contains("bound"), "{}", refused.body);
    assert_eq!(managed.soup(), before);
    managed.put(json!({"source": "two"})).ok();
}

#[test]
fn soups_are_replaced_by_whoever_has_the_right_and_by_nobody_else() {
    let plain = Some(vec![ApiKey("plain".into())]);
    let managed = Managed::start(ServeOptions { api_keys: plain, ..Default::default() });
    let admin = managed.keys.add(&["ops", "--admin"]);
    let body = || Some(json!({"source": "two"}));
    let before = managed.soup();
    // A key that is new to the file is not known yet.
    for (key, status) in [("", 401), ("wrong", 401), (admin.as_str(), 401), ("plain", 403)] {
        assert_eq!(call(&managed.server, "PUT", ROUTE, key, body()).status, status, "{key}");
        assert_eq!(call(&managed.server, "GET", "/admin/soups", key, None).status, status, "{key}");
    }
    assert_eq!(managed.soup(), before);

    // Without the option the soup can be looked at, and the right to read metrics is another one.
    let options = ServeOptions { soup: Some(managed.path("one")), ..managed.keys.options() };
    let fixed = Server::start(options);
    let refused = call(&fixed, "PUT", ROUTE, &managed.key, body());
    assert_eq!((refused.status, refused.error().0), (403, "not_permitted"));
    assert!(refused.error().2.contains("soup_root"), "{}", refused.body);
    assert_eq!(call(&fixed, "GET", "/admin/soups", &managed.key, None).status, 200);
    assert_eq!(call(&fixed, "PUT", ROUTE, &admin, body()).status, 403);
    assert_eq!(call(&fixed, "GET", "/admin/soups", &admin, None).status, 403);
    // A server that asks for no key has nobody with the right.
    let open = Server::shared();
    assert_eq!(call(open, "PUT", ROUTE, "", body()).status, 403);
    assert_eq!(call(open, "GET", "/admin/soups", "", None).status, 403);
    let options =
        ServeOptions { soup_root: Some(managed.root.path().into()), ..crate::server::options() };
    let error = options.check().unwrap_err().to_string();
    assert!(error.contains("named_keys") && error.contains("soup_root"), "{error}");
}

#[test]
fn two_generations_fit_into_the_memory_of_the_process_or_the_second_is_refused() {
    let error = failed(ServeOptions { max_memory: Some(ByteSize(64 << 20)), ..options() });
    let needed = error.split("at least ").nth(1).unwrap().split(' ').next().unwrap();
    let enough: u64 = needed.parse::<u64>().unwrap() << 20;
    let with_memory = |bytes: u64| {
        Managed::start(ServeOptions { max_memory: Some(ByteSize(bytes)), ..Default::default() })
    };
    let managed = with_memory(enough + (40 << 20));
    let before = managed.soup();
    let refused = managed.put(json!({"source": "two"}));
    let (code, param, message) = refused.error();
    assert_eq!((refused.status, code, param), (400, "invalid_value", Some("source")), "{message}");
    assert!(message.contains("max_memory") && message.contains("served meanwhile"), "{message}");
    assert_eq!(managed.soup(), before);
    // What it says would do does, and the same holds for the one after it.
    let needed = message.split("at least ").nth(1).unwrap().split(' ').next().unwrap();
    let managed = with_memory(needed.parse::<u64>().unwrap() << 20);
    for soup in ["two", "one", "two"] {
        managed.wait_until_drained();
        let reply = managed.put(json!({"source": soup}));
        assert_eq!(reply.status, 200, "{soup}: {}", reply.body);
    }
}

#[test]
fn an_engine_that_dies_is_started_again_with_the_soup_that_it_had() {
    let managed = Managed::start(ServeOptions::default());
    let two = managed.put(json!({"source": "two"})).ok();
    managed.engines.lock().unwrap()[1].abort();
    managed.server.wait_until("ready again", |server| {
        let ready = server.get("/ready");
        ready.status == 200 && ready.body["generation"] != two["generation"]
    });
    assert_eq!(managed.soup()["digest"], two["digest"]);
    managed.generate(&question(0));
}

#[test]
fn what_managers_see_is_what_is_described() {
    let managed = Managed::start(ServeOptions::default());
    let document = managed.server.get("/openapi.json").ok();
    let described = |path: &str, method: &str| {
        let answer = &document["paths"][path][method]["responses"]["200"];
        let schema = &answer["content"]["application/json"]["schema"];
        with(schema.clone(), json!({"components": document["components"]}))
    };
    let put = &document["paths"]["/admin/soups/{name}"]["put"]["requestBody"]["content"];
    assert!(put["application/json"]["schema"]["properties"]["if_generation"].is_object());
    // The former one's handle is not taken: it drains.
    let replaced = managed.put(json!({"source": "two"})).ok();
    let listed = call(&managed.server, "GET", "/admin/soups", &managed.key, None).ok();
    validate(&[
        (described("/admin/soups/{name}", "put"), replaced.to_string()),
        (described("/admin/soups", "get"), listed.to_string()),
    ]);
}

#[cfg(unix)]
#[test]
fn a_hangup_reads_a_soup_that_has_changed_again() {
    let root = soups();
    let soup = root.path().join("one");
    let process = Process::start(&soup, &[]);
    let digest = || process.server.get("/v1/soup").ok()["digest"].clone();
    let hang_up = || {
        // A former generation that is about to end would be the reason of a refusal.
        process.server.wait_until("drained", |server| server.metric("ladle_soup_draining") == 0.0);
        process.signal("HUP");
    };
    let first = digest();
    hang_up();
    process.wait_for(&["SIGHUP", "the soup has not changed"]);
    edit(&soup, "beta = 0.7", "beta = 0.6");
    assert_eq!(digest(), first);
    hang_up();
    process.wait_for(&["SIGHUP", "the soup was loaded again"]);
    let second = digest();
    assert_ne!(second, first);
    let echoed = process.server.generate(greedy())["soup"]["digest"].clone();
    assert_eq!(echoed, second);
    edit(&soup, "beta = 0.6", "beta = 7");
    hang_up();
    process.wait_for(&["SIGHUP", "the soup stays as it was", "beta"]);
    assert_eq!(digest(), second);
    // Weights that are replaced are noticed, too.
    edit(&soup, "beta = 7", "beta = 0.6");
    let base = soup.join("base/model.safetensors");
    fs::write(&base, fs::read(&base).unwrap()).unwrap();
    hang_up();
    process.wait_for(&["SIGHUP", "the soup was loaded again"]);
    assert_eq!(digest(), second);
}
