//! The log as people read it.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::server::{Server, copied, greedy};

#[test]
fn a_log_that_no_terminal_reads_has_no_colours_and_one_line_that_says_what_is_served() {
    let soup = copied("soup-tiny");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ladle"))
        .args(["serve", "--port", "0", "--offline", "--threads", "2"])
        .args(["--merge-cache", "64MiB", "--kv-cache", "16MiB", "--soup"])
        .arg(soup.path())
        .env("LADLE_HOME", soup.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut until = |part: &str| {
        let mut seen = Vec::new();
        for line in lines.by_ref() {
            assert!(!line.contains('\u{1b}'), "{line:?}");
            seen.push(line);
            if seen.last().unwrap().contains(part) {
                return seen;
            }
        }
        panic!("no {part} in {seen:?}");
    };
    let ready = until(" ready ").pop().unwrap();
    let told =
        |name: &str| ready.split(&format!(" {name}=")).nth(1).unwrap_or_else(|| panic!("{ready}"));
    assert!(told("soup").starts_with("\"soup-tiny\""), "{ready}");
    for name in ["digest", "base", "context", "kv_tokens", "merge_cache", "mode", "device"] {
        told(name);
    }
    let server = Server::at(told("url").split('"').nth(1).unwrap().to_owned());
    until("try: curl http://127.0.0.1:");
    server.get("/health");
    server.metric("ladle_ready");
    server.generate(greedy());
    let seen = until("answered").concat();
    assert!(seen.contains("/generate") && !seen.contains("/health"), "{seen}");
    child.kill().unwrap();
    child.wait().unwrap();
}
