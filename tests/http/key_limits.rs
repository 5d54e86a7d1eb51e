//! Limits that a named key has of its own.

use std::fs;

use ladle::config::ServeOptions;
use serde_json::{Value, json};

use crate::{
    client::Response,
    keys::{Keys, failed, post},
    process::Process,
    server::{PATIENCE, Reply, Server, copied, greedy, with},
};

/// A metric, read with the key of an administrator.
fn metric(server: &Server, admin: &str, name: &str) -> Option<f64> {
    let request = server.client.get(format!("{}/metrics", server.url)).bearer_auth(admin);
    let text = request.send().unwrap().text().unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

/// What `key` is answered while a request of its own runs, and that request; asked again where it
/// ended before.
fn beside_its_own(server: &Server, key: &str) -> (Reply, Response) {
    let endless = with(greedy(), json!({"max_tokens": 240, "stream": true}));
    let begin = std::time::Instant::now();
    loop {
        let request = server.client.post(format!("{}/generate", server.url)).bearer_auth(key);
        let running = request.json(&endless).send().unwrap();
        let reply = post(server, key, "/generate", &greedy());
        if reply.status == 429 || begin.elapsed() > PATIENCE {
            return (reply, running);
        }
    }
}

#[test]
fn a_key_has_so_many_requests_in_progress_and_no_more() {
    let keys = Keys::none();
    let one = keys.add(&["one", "--max-in-flight", "1"]);
    let (free, admin) = (keys.add(&["free"]), keys.add(&["ops", "--admin"]));
    let server = Server::start(keys.options());
    let (reply, running) = beside_its_own(&server, &one);
    let (code, param, message) = reply.error();
    assert_eq!((reply.status, code, param), (429, "rate_limit_exceeded", Some("max_in_flight")));
    assert!(message.contains("\"one\" is 1"), "{message}");
    assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(post(&server, &free, "/generate", &greedy()).status, 200);
    drop(running);
    server.wait_until("its place is free", |server| {
        post(server, &one, "/generate", &greedy()).status == 200
    });
    let refused = "ladle_key_refused_total{key=\"one\",limit=\"max_in_flight\"}";
    assert!(metric(&server, &admin, refused) >= Some(1.0));
    assert!(metric(&server, &admin, "ladle_key_requests_total{key=\"free\"}") == Some(1.0));
}

#[test]
fn a_key_has_so_many_tokens_in_a_minute() {
    let whole = Server::shared().generate(greedy());
    let tokens = whole["usage"]["total_tokens"].as_u64().unwrap();
    let limit = (2 * tokens - 1).to_string();
    let keys = Keys::none();
    let [full, short] =
        ["full", "short"].map(|name| keys.add(&[name, "--tokens-per-minute", &limit]));
    let admin = keys.add(&["ops", "--admin"]);
    let server = Server::start(keys.options());

    assert_eq!(post(&server, &full, "/generate", &greedy()).ok()["text"], whole["text"]);
    let reply = post(&server, &full, "/generate", &greedy());
    let (code, param, message) = reply.error();
    assert_eq!(
        (reply.status, code, param),
        (429, "rate_limit_exceeded", Some("tokens_per_minute"))
    );
    assert!(message.contains(&format!("\"full\" is {limit}")), "{message}");
    assert!(message.contains(&format!("may take {tokens}")), "{message}");
    let wait: u64 = reply.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    // Streams and other routes are charged as well.
    for (path, body) in [
        ("/generate", with(greedy(), json!({"stream": true}))),
        ("/v1/completions", json!({"prompt": "The soup is", "max_tokens": 8})),
    ] {
        assert_eq!(post(&server, &full, path, &body).status, 429, "{path}");
    }

    // What an answer that ended sooner did not use is given back.
    let begin: String = whole["text"].as_str().unwrap().chars().take(1).collect();
    let stopped = post(&server, &short, "/generate", &with(greedy(), json!({"stop": begin}))).ok();
    assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() < 8, "{stopped}");
    assert_eq!(post(&server, &short, "/generate", &greedy()).status, 200);

    // More than the limit would never pass, so there is nothing to retry.
    let reply = post(&server, &short, "/generate", &with(greedy(), json!({"n": 3})));
    assert_eq!((reply.status, reply.error().1), (400, Some("tokens_per_minute")), "{}", reply.body);
    for (kind, field) in [("prompt", "prompt_tokens"), ("completion", "completion_tokens")] {
        let name = format!("ladle_key_tokens_total{{key=\"full\",kind=\"{kind}\"}}");
        assert_eq!(metric(&server, &admin, &name), whole["usage"][field].as_f64(), "{kind}");
    }
    let refused = "ladle_key_refused_total{key=\"full\",limit=\"tokens_per_minute\"}";
    assert_eq!(metric(&server, &admin, refused), Some(3.0));
}

#[test]
fn a_key_has_a_range_of_priorities() {
    let keys = Keys::none();
    let low = keys.add(&["low", "--priority", "-10,-2"]);
    let free = keys.add(&["free"]);
    let server = Server::start(keys.options());
    let embedded = json!({"input": "The soup"});
    for (path, body) in [("/generate", greedy()), ("/v1/embeddings", embedded)] {
        let ask = |key: &str, more: Value| post(&server, key, path, &with(body.clone(), more));
        for priority in [json!(-10), json!(-2), Value::Null] {
            assert_eq!(ask(&low, json!({"priority": priority})).status, 200, "{path} {priority}");
        }
        for priority in [-11, -1, 0, 100] {
            let reply = ask(&low, json!({"priority": priority}));
            assert_eq!((reply.status, reply.error().0), (403, "not_permitted"), "{path}");
            assert!(reply.error().2.contains("\"low\" may ask for -10 to -2"), "{}", reply.body);
            assert_eq!(ask(&free, json!({"priority": priority})).status, 200);
        }
    }
}

#[test]
fn limits_that_are_not_right_stop_the_start() {
    let keys = Keys::none();
    let digest = "0".repeat(64);
    for (line, part) in [
        ("max_in_flight = 0", "key \"a\": max_in_flight is 0, expected at least 1"),
        ("tokens_per_minute = 0", "key \"a\": tokens_per_minute is 0, expected at least 1"),
        ("tokens_per_minute = -5", "tokens_per_minute = -5"),
        ("priority = [1, 0]", "key \"a\": priority is [1, 0], expected [LEAST, MOST]"),
        ("priority = [0, 101]", "key \"a\": priority is [0, 101]"),
        ("priority = 5", "priority = 5"),
        (
            "presets = [\"terse\", \"sweet\"]",
            "key \"a\": presets is \"sweet\", expected presets of",
        ),
    ] {
        let entry = format!("[[key]]\nname = \"a\"\nsha256 = \"{digest}\"\n{line}\n");
        fs::write(&keys.file, entry).unwrap();
        let error = failed(keys.options());
        assert!(error.contains(part) && error.contains("keys.toml"), "{line}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn a_hangup_changes_the_limits_of_a_key() {
    let keys = Keys::none();
    let (key, file) = (keys.add(&["team"]), keys.file.to_str().unwrap());
    let soup = copied("soup-tiny");
    let process = Process::start(soup.path(), &["--named-keys", file]);
    let ask = || post(&process.server, &key, "/generate", &greedy());
    assert_eq!(ask().status, 200);
    let entry = fs::read_to_string(&keys.file).unwrap();
    fs::write(&keys.file, format!("{entry}tokens_per_minute = 2\n")).unwrap();
    process.signal("HUP");
    process.wait_for(&["SIGHUP", "were read"]);
    assert_eq!((ask().status, ask().error().1), (400, Some("tokens_per_minute")));
    for wrong in ["max_in_flight = 0", "presets = [\"sweet\"]"] {
        fs::write(&keys.file, format!("{entry}{wrong}\n")).unwrap();
        process.signal("HUP");
        let name = wrong.split(' ').next().unwrap();
        process.wait_for(&["SIGHUP", "stay as they were", name]);
        assert_eq!(ask().status, 400);
    }
}

/// A key of no limits has none.
#[test]
fn plain_keys_have_no_limits_of_their_own() {
    let options = ServeOptions {
        api_keys: Some(vec![ladle::config::ApiKey("plain".into())]),
        ..crate::server::options()
    };
    let server = Server::start(options);
    for priority in [-100, 100] {
        let body = with(greedy(), json!({"priority": priority, "n": 16}));
        assert_eq!(post(&server, "plain", "/generate", &body).status, 200);
    }
    assert_eq!(server.metric("ladle_key_requests_total{key=\"key 1\"}"), 2.0);
}
