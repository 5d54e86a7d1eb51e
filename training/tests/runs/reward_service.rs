//! `serve-rewards` on a real socket: its rewards against NumPy's and against the trainer's, what is
//! counted over retries and kills, and what is refused.

use std::{
    process::Child,
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::State, routing::post};
use ladle_training::draw::{self, Purpose};
use serde_json::json;

use super::*;
use crate::support::{self, close, numbers, reference};

const THREE: &str = r#"
[[objectives]]
name = "short"
reward = { kind = "brevity", full = 2, span = 8, least = 1 }
[[objectives]]
name = "ou"
reward = { kind = "regex", pattern = "ou" }
[[objectives]]
name = "found"
reward = { kind = "exact-match-recall" }
"#;

/// A running service.
struct Service {
    child: Child,
    url: String,
}

impl Service {
    fn start(config: &Path, backbone: &str, more: &[&str]) -> Self {
        let mut child = serving(config, backbone, more).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("rewards on ").expect("the service starts").to_owned();
        Self { child, url }
    }

    /// Status and body of an answer.
    fn ask(&self, path: &str, body: Option<&str>) -> (u16, String) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let url = format!("{}{path}", self.url);
        let answer = match body {
            None => agent.get(&url).call(),
            Some(body) => agent.post(&url).send(body),
        };
        let answer = answer.unwrap();
        (answer.status().as_u16(), answer.into_body().read_to_string().unwrap())
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.ask(path, Some(&body.to_string()));
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.ask("/state", None).1).unwrap()
    }

    #[track_caller]
    fn refuses(&self, path: &str, body: &str, status: u16, parts: &[&str]) {
        let before = self.state();
        let (got, text) = self.ask(path, Some(body));
        assert_eq!(got, status, "{text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        let message = error["error"]["message"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
        assert_eq!(self.state(), before, "{body} was counted");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serving(config: &Path, backbone: &str, more: &[&str]) -> Command {
    let mut command = command();
    command.arg("serve-rewards").arg(config).args(["--backbone", backbone]);
    command.args(["--listen", "127.0.0.1:0"]).args(more);
    command
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Six steps whose rewards NumPy has computed, and the service that should compute them.
struct Problem {
    directory: tempfile::TempDir,
    reference: Value,
    config: PathBuf,
}

impl Problem {
    fn new(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = format!("seed = 12\nmixing = {{ beta = 0.6 }}\n{settings}\n{THREE}");
        let config = task(directory.path(), &settings);
        let reference = reference("service.json");
        let (mean, std) = (&reference["mean"], &reference["std"]);
        let scale = format!("mean = {mean}\nstd = {std}\n");
        fs::write(directory.path().join("scale.toml"), scale).unwrap();
        Self { directory, reference, config }
    }

    fn inverse() -> Self {
        Self::new("balance = { strategy = \"inverse\", every = 2 }")
    }

    fn start(&self) -> Service {
        let at = |name: &str| self.directory.path().join(name);
        let (scale, state) = (at("scale.toml"), at("state.json"));
        Service::start(&self.config, "short", &["--share", text(&scale), "--state", text(&state)])
    }

    /// Number, rows and expected values of every part of every step, in order.
    fn parts(&self) -> Vec<(u64, &Value, &Value)> {
        let steps = (0..).zip(self.reference["steps"].as_array().unwrap());
        let parts = steps.flat_map(|(number, step)| {
            step["parts"].as_array().unwrap().iter().map(move |part| (number, part, step))
        });
        parts.collect()
    }
}

fn body(step: u64, part: &Value) -> Value {
    json!({"step": step, "part": part["part"], "rows": part["rows"]})
}

#[track_caller]
fn equals(answer: &Value, part: &Value, step: &Value) {
    close(&numbers(&answer["weights"]), &numbers(&step["weights"]), 1e-12);
    let rows = answer["rows"].as_array().unwrap();
    for (i, row) in rows.iter().enumerate() {
        close(&numbers(&row["raw"]), &numbers(&part["raw"][i]), 1e-12);
        close(&numbers(&row["standardised"]), &numbers(&part["standardised"][i]), 1e-12);
        close(&numbers(&row["reward"]), &numbers(&part["reward"][i]), 1e-12);
    }
    assert_eq!(rows.len(), part["raw"].as_array().unwrap().len());
}

#[test]
fn rewards_weights_and_realised_weights_are_those_of_numpy() {
    let problem = Problem::inverse();
    let seed = 12 + (1 << 32);
    let drawn: Vec<f64> = (0..6).map(|t| draw::uniform(seed, Purpose::Objective, t)).collect();
    close(&drawn, &numbers(&problem.reference["uniforms"]), 1e-15);
    let service = problem.start();
    for (number, part, step) in problem.parts() {
        let answer = service.post("/rewards", &body(number, part));
        equals(&answer, part, step);
        assert_eq!(answer["counted"], "new");
    }
    let state = service.state();
    close(&numbers(&state["realised"]), &numbers(&problem.reference["realised"]), 1e-12);
    close(&numbers(&state["column"]), &[0.6, 0.2, 0.2], 1e-12);
    assert_eq!((&state["steps"], &state["step"]), (&json!(6), &json!(5)));
    let metrics = service.ask("/metrics", None).1;
    for line in [
        "train_backbones_rewards_rows_total 48",
        "train_backbones_rewards_step 5",
        "train_backbones_rewards_parts_total{counted=\"new\"} 12",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
    assert_eq!(service.ask("/health", None), (200, r#"{"status":"ok"}"#.to_owned()));
}

#[test]
fn a_step_counts_once_however_often_it_comes_and_whenever_the_service_is_killed() {
    let problem = Problem::inverse();
    let mut service = problem.start();
    for (number, part, step) in problem.parts() {
        let body = body(number, part);
        let first = service.post("/rewards", &body);
        equals(&first, part, step);
        if number % 2 == 1 {
            service.child.kill().unwrap();
            service.child.wait().unwrap();
            service = problem.start();
        }
        let again = service.post("/rewards", &body);
        assert_eq!((&again["counted"], &again["rows"]), (&json!("again"), &first["rows"]));
    }
    close(&numbers(&service.state()["realised"]), &numbers(&problem.reference["realised"]), 1e-12);
    let (_, part, _) = problem.parts()[0];
    service.refuses("/rewards", &body(4, part).to_string(), 409, &["step is 4", "expected 5"]);
}

#[test]
fn a_part_that_comes_again_with_other_rows_counts_with_these() {
    let problem = Problem::inverse();
    let service = problem.start();
    // Sampled anew after a trainer's crash: the rows of the last step first, then the step's own.
    let parts = problem.parts();
    let stray = parts.last().unwrap().1;
    for (number, part, step) in &parts {
        let mut other = body(*number, stray);
        other["part"] = part["part"].clone();
        if stray != *part {
            service.post("/rewards", &other);
            let answer = service.post("/rewards", &body(*number, part));
            equals(&answer, part, step);
            assert_eq!(answer["counted"], "replaced");
        }
    }
    let last = parts.last().unwrap();
    equals(&service.post("/rewards", &body(5, last.1)), last.1, last.2);
    close(&numbers(&service.state()["realised"]), &numbers(&problem.reference["realised"]), 1e-12);
}

#[test]
fn openrlhf_gets_the_weighted_sums_and_what_they_are_made_of() {
    let problem = Problem::new("");
    let scale = problem.directory.path().join("scale.toml");
    let options = ["--share", text(&scale), "--end", "<eos>"];
    let service = Service::start(&problem.config, "short", &options);
    // The weights of the first step are the column itself.
    let (_, part, step) = problem.parts()[0];
    let rows = part["rows"].as_array().unwrap();
    let each = |f: &dyn Fn(&Value) -> Value| rows.iter().map(f).collect::<Vec<_>>();
    let prompt = |row: &Value| format!("<|user|>{}<|bot|>", row["prompt"].as_str().unwrap());
    let query = |row: &Value| {
        let end = if row["finished"] == true { "<eos>" } else { "" };
        json!(prompt(row) + row["response"].as_str().unwrap() + end)
    };
    let label = |row: &Value| json!(json!({"references": row["references"]}).to_string());
    let body = json!({
        "query": each(&query),
        "prompts": each(&|row| json!(prompt(row))),
        "labels": each(&label),
    });
    let answer = service.post("/get_reward", &body);
    close(&numbers(&answer["rewards"]), &numbers(&part["reward"]), 1e-12);
    assert_eq!(answer["scores"], answer["rewards"]);
    for (j, name) in ["short", "ou", "found"].into_iter().enumerate() {
        let raw: Vec<f64> = support::rows(&part["raw"]).iter().map(|row| row[j]).collect();
        close(&numbers(&answer["extra_logs"][format!("reward/{name}")]), &raw, 1e-12);
        let weight = step["weights"][j].as_f64().unwrap();
        let got = numbers(&answer["extra_logs"][format!("weight/{name}")]);
        close(&got, &vec![weight; rows.len()], 1e-12);
    }
    let mut other = body.clone();
    other["query"][1] = json!("Something else.");
    service.refuses(
        "/get_reward",
        &other.to_string(),
        400,
        &["query[1]", "begins with prompts[1]"],
    );
    other = body.clone();
    other["labels"] = json!(["one"]);
    service.refuses("/get_reward", &other.to_string(), 400, &["labels is 1 items", "4"]);
}

#[test]
fn what_cannot_be_scored_is_refused_by_name_and_not_counted() {
    let problem = Problem::inverse();
    let (scale, state) =
        (problem.directory.path().join("scale.toml"), problem.directory.path().join("state.json"));
    let options = ["--share", text(&scale), "--state", text(&state), "--max-rows", "2"];
    let service = Service::start(
        &problem.config,
        "short",
        &[&options[..], &["--max-bytes", "2000"]].concat(),
    );
    let row = json!({"prompt": "p", "response": "r", "finished": true, "references": ["r"]});
    let with = |key: &str, value: Value| {
        let mut row = row.clone();
        row[key] = value;
        json!({"step": 0, "rows": [row]}).to_string()
    };
    let rows = |rows: Value| json!({"step": 0, "rows": rows}).to_string();
    let long = with("response", json!("x".repeat(3000)));
    let cases: [(&str, u16, &[&str]); 16] = [
        ("{", 400, &["the body", "JSON"]),
        ("[]", 400, &["the body is []"]),
        (&json!({"rows": [row]}).to_string(), 400, &["step is missing", "weights move"]),
        (&json!({"step": -1, "rows": [row]}).to_string(), 400, &["step is -1"]),
        (&json!({"step": 0, "part": 1, "rows": [row]}).to_string(), 400, &["part is 1"]),
        (&json!({"step": 0, "row": [row]}).to_string(), 400, &["row is an unknown field", "rows"]),
        (&rows(json!([])), 400, &["rows is empty"]),
        (&rows(json!([row, row, row])), 400, &["rows is 3 items", "--max-rows"]),
        (&rows(json!([row, 3])), 400, &["rows[1] is 3", "an object"]),
        (&with("response", Value::Null), 400, &["rows[0].response is missing"]),
        (&with("finished", json!("yes")), 400, &["rows[0].finished is \"yes\"", "true"]),
        (&with("judges", json!(["shrot"])), 400, &["rows[0].judges is \"shrot\"", "short, ou"]),
        (&with("references", json!(["a", 4])), 400, &["rows[0].references[1] is 4"]),
        // A reward that lacks its data.
        (&with("references", json!([])), 400, &["reward `found` on sample 0", "no references"]),
        (&with("fields", json!({"qa_pairs": 3})), 400, &["`found`", "`qa_pairs` is not a list"]),
        (&long, 413, &["--max-bytes"]),
    ];
    for (body, status, parts) in cases {
        service.refuses("/rewards", body, status, parts);
    }
    service.refuses("/reward", "{}", 404, &["/rewards", "/get_reward"]);
    service.refuses("/health", "{}", 405, &["method"]);
    assert_eq!(service.post("/rewards", &json!({"step": 0, "rows": [row]}))["counted"], "new");
}

#[test]
fn a_service_that_could_not_keep_its_word_does_not_start() {
    let problem = Problem::inverse();
    let at = |name: &str| problem.directory.path().join(name);
    let (scale, state) = (at("scale.toml"), at("state.json"));
    let share = ["--share", text(&scale)];
    let with = |more: &[&str]| serving(&problem.config, "short", &[&share[..], more].concat());
    refuse(&mut with(&[]), &["--state is missing", "inverse"]);
    let config = &problem.config;
    refuse(&mut serving(config, "shrot", &share), &["no objective \"shrot\"", "short, ou, found"]);
    fs::write(&state, "{}").unwrap();
    refuse(&mut with(&["--state", text(&state)]), &["state.json", "missing field"]);
    fs::remove_file(&state).unwrap();
    drop(problem.start());
    let other = ["--state", text(&state), "--set", "balance.every=3"];
    refuse(&mut with(&other), &["state.json", "settings", "another --state"]);
    let other = [&share[..], &["--state", text(&state)]].concat();
    refuse(&mut serving(config, "found", &other), &["backbone is \"short\"", "\"found\""]);
    fs::write(&scale, "mean = [0.0, 1.0]\nstd = [1.0, 1.0]").unwrap();
    refuse(&mut with(&["--state", text(&at("new.json"))]), &["scale.toml", "per objective (3)"]);
}

/// A scorer that keeps the samples of each request.
type Seen = Arc<Mutex<Vec<Vec<Value>>>>;

fn scorer() -> (String, Seen) {
    let (seen, listener) = (Seen::default(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    let kept = seen.clone();
    async fn score(State(seen): State<Seen>, Json(body): Json<Value>) -> Json<Value> {
        let samples = body["samples"].as_array().unwrap().clone();
        let scores: Vec<usize> =
            samples.iter().map(|s| s["response"].as_str().unwrap().len() % 7).collect();
        seen.lock().unwrap().push(samples);
        Json(json!({ "scores": scores }))
    }
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let routes = Router::new().route("/score", post(score)).with_state(kept);
            axum::serve(listener, routes).await.unwrap();
        });
    });
    (url, seen)
}

#[test]
fn the_service_weighs_a_run_s_samples_as_its_trainer_did() {
    let directory = tempfile::tempdir().unwrap();
    let (url, seen) = scorer();
    let settings = format!(
        r#"
lora = {{ rank = 2, alpha = 4.0 }}
rollout = {{ max_new_tokens = 6, samples = 2 }}
rl = {{ algorithm = "rloo", steps = 5, batch = 8, learning_rate = 1e-3, standardise_on = 8 }}
balance = {{ strategy = "inverse", every = 2 }}
{OBJECTIVES}
[[objectives]]
name = "length"
reward = {{ kind = "http", url = "{url}" }}
"#
    );
    let config = task(directory.path(), &settings);
    let run = directory.path().join("run");
    succeed(start(&config, &run).args(["--only", "plain"]));
    // The first request was for the scale, then one a step.
    let batches: Vec<_> = seen.lock().unwrap().drain(..).skip(1).collect();
    assert_eq!(batches.len(), 5);

    let state = directory.path().join("state.json");
    let options = ["--share", text(&run), "--state", text(&state)];
    let service = Service::start(&config, "plain", &options);
    let (mut scores, mut weights) = (Vec::new(), Vec::new());
    for (step, samples) in batches.iter().enumerate() {
        let answer = service.post("/rewards", &json!({"step": step, "rows": samples}));
        let rows = answer["rows"].as_array().unwrap();
        let sum: f64 = rows.iter().map(|row| row["reward"].as_f64().unwrap()).sum();
        scores.push(sum / rows.len() as f64);
        weights.push(answer["weights"][1].as_f64().unwrap());
    }
    close(&scores, &recorded(&run, "plain", "score"), 1e-9);
    close(&weights, &recorded(&run, "plain", "weight/plain"), 1e-12);
    assert_ne!(weights[0], weights[4], "the weights have not moved");
    let realised = fs::read_to_string(run.join("adapters/plain/realised.toml")).unwrap();
    let realised: toml::Table = toml::from_str(&realised).unwrap();
    let realised: Vec<f64> =
        realised["realised"].as_array().unwrap().iter().map(|w| w.as_float().unwrap()).collect();
    close(&numbers(&service.state()["realised"]), &realised, 1e-12);
    // Another scale, other rewards: another run.
    let other = [&options[..], &["--set", "rl.standardise_on=9"]].concat();
    refuse(&mut serving(&config, "plain", &other), &["rl.standardise_on", "8", "9"]);
}
