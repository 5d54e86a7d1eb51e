//! Named keys: made by the program, kept as digests, each with rights of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ladle::{
    config::{ApiKey, ServeOptions},
    http::ServeError,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    process::Process,
    server::{Reply, Server, copied, greedy, options, with},
};

fn new(file: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
    command.args(["key", "new"]).args(arguments).arg("--file").arg(file).output().unwrap()
}

/// A file of keys, and what their holders have.
pub struct Keys {
    _dir: TempDir,
    pub file: PathBuf,
}

impl Keys {
    pub fn none() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { file: dir.path().join("keys.toml"), _dir: dir }
    }

    pub fn add(&self, arguments: &[&str]) -> String {
        let output = new(&self.file, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn options(&self) -> ServeOptions {
        ServeOptions { named_keys: Some(self.file.clone()), ..options() }
    }
}

pub fn post(server: &Server, key: &str, path: &str, body: &Value) -> Reply {
    let request = server.client.post(format!("{}{path}", server.url)).bearer_auth(key);
    Reply::of(request.json(body).send().unwrap())
}

fn get(server: &Server, key: &str, path: &str) -> u16 {
    let request = server.client.get(format!("{}{path}", server.url)).bearer_auth(key);
    request.send().unwrap().status().as_u16()
}

#[test]
fn keys_are_drawn_and_only_their_digests_are_kept() {
    let keys = Keys::none();
    let (one, two) = (keys.add(&["one"]), keys.add(&["two"]));
    assert!(one != two && one.len() == 3 + 64, "{one} {two}");
    let text = fs::read_to_string(&keys.file).unwrap();
    assert!(!text.contains(&one[3..]) && text.contains(&ladle::files::sha256(one.as_bytes())));
    // The digest itself lets nobody in, nor does the key of a plain list that is not given.
    let server = Server::start(keys.options());
    for (key, status) in [
        (one.as_str(), 200),
        (two.as_str(), 200),
        (&ladle::files::sha256(one.as_bytes()), 401),
        ("one", 401),
    ] {
        assert_eq!(post(&server, key, "/generate", &greedy()).status, status, "{key}");
    }
    // Plain keys work beside named ones.
    let both = ServeOptions { api_keys: Some(vec![ApiKey("plain".into())]), ..keys.options() };
    let server = Server::start(both);
    assert_eq!(post(&server, "plain", "/generate", &greedy()).status, 200);
    assert_eq!(post(&server, &one, "/generate", &greedy()).status, 200);

    for (arguments, part) in [(&["one"], "an earlier key"), (&["a b"], "A-Z a-z 0-9")] {
        let output = new(&keys.file, arguments);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(part) && output.stdout.is_empty(), "{said}");
        assert_eq!(fs::read_to_string(&keys.file).unwrap(), text);
    }
}

#[test]
fn a_file_of_keys_that_is_not_right_stops_the_start() {
    let keys = Keys::none();
    let digest = "0".repeat(64);
    let entry = format!("[[key]]\nname = \"a\"\nsha256 = \"{digest}\"\n");
    for (text, part) in [
        ("[[key]]\nname = \"a\"\n".to_owned(), "sha256"),
        ("[[key]]\nname = \"a\"\nsha256 = \"secret\"\n".to_owned(), "64 lower-case"),
        (format!("{entry}{entry}"), "an earlier key"),
        (format!("{entry}colour = 1\n"), "colour"),
        ("keys = []".to_owned(), "keys"),
    ] {
        fs::write(&keys.file, &text).unwrap();
        let error = failed(keys.options());
        assert!(error.contains(part) && error.contains("keys.toml"), "{text}: {error}");
    }
    fs::remove_file(&keys.file).unwrap();
    assert!(failed(keys.options()).contains("keys.toml"));
    // Nobody is let in by a file without keys.
    fs::write(&keys.file, "").unwrap();
    let server = Server::start(keys.options());
    assert_eq!(server.post("/generate", greedy()).status, 401);
}

/// Why a server does not start.
pub fn failed(options: ServeOptions) -> String {
    let config = options.check().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome: Result<(), ServeError> = runtime.block_on(async {
        let listener = ladle::http::bind(&config).await.unwrap();
        ladle::http::serve(config, listener, std::future::pending()).await
    });
    outcome.unwrap_err().to_string()
}

#[test]
fn a_key_of_presets_may_ask_for_nothing_else() {
    let keys = Keys::none();
    let bound = keys.add(&["bound", "--preset", "balanced"]);
    let server = Server::start(keys.options());
    let ask = |more: Value| post(&server, &bound, "/generate", &with(greedy(), more));
    // The default is `balanced`; the same model in numbers is the same model.
    for allowed in [json!({}), json!({"preference": "balanced"}), json!({"preference": [2, 2, 2]})]
    {
        assert_eq!(ask(allowed.clone()).status, 200, "{allowed}");
    }
    for refused in [
        json!({"preference": "terse"}),
        json!({"preference": [1, 0, 0]}),
        json!({"alpha": 0.5}),
        json!({"preferences": ["balanced", "terse"]}),
        json!({"model": "soup-tiny:terse"}),
    ] {
        let reply = ask(refused.clone());
        let (code, _, message) = reply.error();
        assert_eq!((reply.status, code), (403, "not_permitted"), "{refused}: {}", reply.body);
        assert!(message.contains("\"bound\"") && message.contains("balanced"), "{message}");
    }
    let chat = json!({"prompt": "The soup", "model": "soup-tiny:terse", "max_tokens": 2});
    assert_eq!(post(&server, &bound, "/v1/completions", &chat).status, 403);
}

#[test]
fn metrics_are_for_admins_or_for_an_address_of_their_own() {
    let keys = Keys::none();
    let (admin, user) = (keys.add(&["ops", "--admin"]), keys.add(&["user"]));
    let server = Server::start(keys.options());
    assert_eq!(server.client.get(format!("{}/metrics", server.url)).send().unwrap().status(), 401);
    assert_eq!(get(&server, &user, "/metrics"), 403);
    assert_eq!(get(&server, &admin, "/metrics"), 200);

    let soup = copied("soup-tiny");
    let process = Process::start(soup.path(), &["--metrics-addr", "127.0.0.1:0"]);
    let line: Value = serde_json::from_str(&process.metrics).unwrap();
    let apart = Server::at(format!("http://{}", line["fields"]["address"].as_str().unwrap()));
    assert!(apart.metric("ladle_kv_usage_ratio") >= 0.0);
    assert_eq!(apart.get("/ready").status, 200);
    assert_eq!(apart.post("/generate", greedy()).status, 404);
    assert_eq!(process.server.get("/metrics").status, 404);
}

#[cfg(unix)]
#[test]
fn a_hangup_reads_the_named_keys_again() {
    let keys = Keys::none();
    let (old, file) = (keys.add(&["old"]), keys.file.to_str().unwrap());
    let soup = copied("soup-tiny");
    let process = Process::start(soup.path(), &["--named-keys", file]);
    let ask = |key: &str| post(&process.server, key, "/generate", &greedy()).status;
    assert_eq!(ask(&old), 200);
    fs::remove_file(&keys.file).unwrap();
    let new = keys.add(&["new"]);
    assert_eq!(ask(&new), 401);
    process.signal("HUP");
    process.wait_for(&["SIGHUP", "were read"]);
    assert_eq!((ask(&old), ask(&new)), (401, 200));
    // A file that is not right changes nothing.
    fs::write(&keys.file, "[[key]]\nname = 1").unwrap();
    process.signal("HUP");
    process.wait_for(&["SIGHUP", "stay as they were"]);
    assert_eq!((ask(&old), ask(&new)), (401, 200));
}

#[test]
fn a_prefix_is_found_by_its_own_key_alone_unless_they_are_shared() {
    let keys = Keys::none();
    let (one, two) = (keys.add(&["one"]), keys.add(&["two"]));
    let prompt = "The soup is warm and the spoon is long. ".repeat(4);
    let body = json!({"model": "soup-tiny", "prompt": prompt, "max_tokens": 1, "seed": 1});
    for share in [false, true] {
        let server = Server::start(ServeOptions { share_prefixes: Some(share), ..keys.options() });
        let cached = |key: &str| {
            let answer = post(&server, key, "/v1/completions", &body).ok();
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        };
        assert_eq!(cached(&one), 0);
        let own = cached(&one);
        assert!(own > 0, "the prompt has a full block");
        assert_eq!(cached(&two), if share { own } else { 0 }, "shared: {share}");
        assert_eq!(cached(&two), own);
    }
}

#[test]
fn a_prefix_is_found_under_its_own_salt_alone() {
    let server = Server::start(options());
    let prompt = "The soup is warm and the spoon is long. ".repeat(4);
    let body = json!({"model": "soup-tiny", "prompt": prompt, "max_tokens": 1, "seed": 1});
    let ask = |more: Value| {
        let answer = server.post("/v1/completions", with(body.clone(), more)).ok();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let salted = |salt: &str| ask(json!({"cache_salt": salt}));
    assert_eq!(ask(json!({})), 0);
    let own = ask(json!({}));
    assert!(own > 0, "the prompt has a full block");
    assert_eq!((salted("one"), salted("two"), salted("one"), salted("two")), (0, 0, own, own));
    // The empty salt is none.
    assert_eq!((salted(""), ask(json!({"cache_salt": null}))), (own, own));
    let long = server.post("/generate", with(greedy(), json!({"cache_salt": "s".repeat(513)})));
    assert_eq!((long.status, long.error().1), (400, Some("cache_salt")), "{}", long.body);
}
