//! The HTTP reward against a scorer on a real socket.

use ladle_training::rewards::{
    Reward, RewardError, Sample,
    http::{HttpConfig, HttpReward},
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc::{Receiver, channel},
};

/// What the scorer does with one request.
enum Act {
    Answer(u16, &'static str),
    /// 503, and to come back at once.
    Later,
    Hang,
}

/// A scorer that follows a script, one act a connection; gives its URL and the bodies it got.
fn scorer(script: Vec<Act>) -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    let (bodies, received) = channel();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for act in script {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            bodies.send(serde_json::from_slice(&body).unwrap()).unwrap();
            match act {
                Act::Hang => held.push(stream),
                Act::Later => {
                    let head = "HTTP/1.1 503 x\r\nretry-after: 0\r\ncontent-length: 0\r\n\
                                connection: close\r\n\r\n";
                    stream.write_all(head.as_bytes()).unwrap();
                }
                Act::Answer(status, text) => {
                    let head = format!(
                        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                        text.len()
                    );
                    stream.write_all(head.as_bytes()).unwrap();
                    stream.write_all(text.as_bytes()).unwrap();
                }
            }
        }
    });
    (url, received)
}

fn reward(url: &str, more: &str) -> HttpReward {
    let config: HttpConfig =
        toml::from_str(&format!("url = \"{url}\"\nbackoff_s = 0.001\n{more}")).unwrap();
    HttpReward::new("mine".into(), config).unwrap()
}

fn samples(n: usize) -> Vec<Sample> {
    (0..n).map(|i| Sample { response: format!("response {i}"), ..Sample::default() }).collect()
}

#[test]
fn samples_go_out_in_batches_and_scores_come_back_in_order() {
    let (url, bodies) = scorer(vec![
        Act::Answer(200, r#"{"scores": [1, 2.5]}"#),
        Act::Answer(200, r#"{"scores": [-3]}"#),
    ]);
    let scores = reward(&url, "batch = 2").score(&samples(3)).unwrap();
    assert_eq!(scores, [1.0, 2.5, -3.0]);
    let bodies: Vec<Value> = bodies.iter().collect();
    assert_eq!(bodies[0]["samples"][1]["response"], "response 1");
    assert_eq!(bodies[1]["samples"].as_array().unwrap().len(), 1);
}

#[test]
fn busy_and_silent_scorers_are_asked_again() {
    let (url, bodies) = scorer(vec![
        Act::Answer(503, "busy"),
        Act::Hang,
        Act::Answer(429, ""),
        Act::Answer(200, r#"{"scores": [4]}"#),
    ]);
    let scores = reward(&url, "timeout_s = 1.0").score(&samples(1)).unwrap();
    assert_eq!(scores, [4.0]);
    assert_eq!(bodies.iter().count(), 4);
}

#[test]
fn a_scorer_that_says_when_to_come_back_is_waited_for_beyond_the_attempts() {
    let answer = Act::Answer(200, r#"{"scores": [4]}"#);
    let (url, bodies) =
        scorer(vec![Act::Later, Act::Later, Act::Answer(500, ""), Act::Later, answer]);
    assert_eq!(reward(&url, "retries = 1").score(&samples(1)).unwrap(), [4.0]);
    assert_eq!(bodies.iter().count(), 5);
}

#[test]
fn giving_up_says_where_why_and_after_how_many_attempts() {
    let (url, _bodies) = scorer(vec![Act::Answer(500, "broken"), Act::Answer(500, "still broken")]);
    let error = reward(&url, "retries = 1").score(&samples(1)).unwrap_err().to_string();
    assert!(error.contains(&url) && error.contains("still broken"), "{error}");
    assert!(error.contains("2 attempts"), "{error}");
}

#[test]
fn a_refusal_is_final() {
    let (url, bodies) = scorer(vec![Act::Answer(400, "no such model"), Act::Hang]);
    let error = reward(&url, "").score(&samples(1)).unwrap_err().to_string();
    assert!(error.contains("400") && error.contains("no such model"), "{error}");
    assert_eq!(bodies.try_iter().count(), 1);
}

#[test]
fn wrong_answers_name_the_sample_or_the_count() {
    let fails = |answer: &'static str, more: &str| {
        let (url, _bodies) = scorer(vec![Act::Answer(200, answer)]);
        reward(&url, more).score(&samples(2)).unwrap_err()
    };
    let error = fails(r#"{"scores": [1]}"#, "");
    assert!(matches!(error, RewardError::Count { expected: 2, got: 1, .. }), "{error}");
    let error = fails(r#"{"scores": [1, null]}"#, "").to_string();
    assert!(error.contains("sample 1") && error.contains("response 1"), "{error}");
    let error = fails(r#"{"scores": [1, 7]}"#, "range = { low = 0, high = 5 }").to_string();
    assert!(error.contains("sample 1") && error.contains("outside 0..5"), "{error}");
    assert!(matches!(fails("not json", ""), RewardError::Failed { .. }));
}

#[test]
fn settings_that_cannot_work_are_refused_before_the_run() {
    let refused = |toml: &str| {
        let config: HttpConfig = toml::from_str(toml).unwrap();
        HttpReward::new("mine".into(), config).err().unwrap().to_string()
    };
    assert!(refused("url = \"nowhere\"").contains("nowhere"));
    assert!(refused("url = \"http://h\"\ntimeout_s = -1.0").contains("timeout_s"));
    assert!(refused("url = \"http://h\"\nbatch = 0").contains("batch"));
    let range = refused("url = \"http://h\"\nrange = { low = 5, high = 0 }");
    assert!(range.contains("range is 5..0, expected low below high"), "{range}");
    let token = refused("url = \"http://h\"\ntoken_env = \"LADLE_NO_SUCH_VARIABLE\"");
    assert!(token.contains("LADLE_NO_SUCH_VARIABLE"), "{token}");
}
