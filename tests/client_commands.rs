//! `ladle chat` and `ladle generate` against a server that is their own.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

struct Server {
    process: Child,
    url: String,
    /// The request that it suggests.
    example: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which its test has noticed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start() -> Self {
        let root = env!("CARGO_MANIFEST_DIR");
        let mut process = Command::new(env!("CARGO_BIN_EXE_ladle"))
            .args([
                "serve",
                &format!("{root}/tests/fixtures/soup-tiny"),
                "--port",
                "0",
                "--offline",
            ])
            .args(["--merge-cache", "64MiB", "--kv-cache", "16MiB", "--threads", "2"])
            .args(["--log-format", "json"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let mut said = |start: &str| {
            lines
                .by_ref()
                .map(|line| serde_json::from_str::<Value>(&line.expect("text")).expect("JSON"))
                .find_map(|line| {
                    let message =
                        line["fields"]["message"].as_str()?.strip_prefix(start)?.to_owned();
                    Some((
                        message,
                        line["fields"]["address"].as_str().unwrap_or_default().to_owned(),
                    ))
                })
                .unwrap_or_else(|| panic!("it ended before it said {start}"))
        };
        let (_, address) = said("listening");
        let (example, _) = said("try: ");
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url: format!("http://{address}"), example }
    }

    fn run(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
        command.args(args).args(["--url", &self.url]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it listens");
        child.wait_with_output().expect("it ends")
    }

    fn printed(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {told}");
        String::from_utf8(output.stdout).expect("text")
    }
}

#[test]
fn a_server_is_talked_with_from_the_command_line() {
    let server = Server::start();
    let greedy = ["--temperature", "0", "--max-tokens", "12"];
    let generate = |more: &[&str], input: &str| {
        server.printed(&[&["generate"], more, &greedy].concat(), input)
    };
    let json = |more: &[&str]| {
        let text = generate(&[more, &["--json"]].concat(), "");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };

    // The text as it comes is the text of the whole answer; a prompt may come from standard input.
    let whole = json(&["The soup is"]);
    let text = whole["text"].as_str().expect("text");
    assert_eq!(generate(&["The soup is"], ""), format!("{text}\n"));
    assert_eq!(generate(&["-"], "The soup is"), format!("{text}\n"));
    assert_eq!(generate(&[], "The soup is"), format!("{text}\n"));

    // A preference counts.
    let chosen = json(&["The soup is", "--preference", "brief=1", "--alpha", "0.5"]);
    assert_eq!((&chosen["preference"]["brief"], &chosen["alpha"]), (&1.0.into(), &0.5.into()));
    assert_eq!(json(&["The soup is", "-p", "terse"])["preference"]["brief"], 0.8);

    // A conversation remembers: its second answer is that of both questions and the first answer.
    let chat = |input: &str| server.printed(&[&["chat"], &greedy[..]].concat(), input);
    let first = chat("Hello\n");
    let both = chat("Hello\nAnd then?\n");
    let second = both.strip_prefix(&first).expect("the same first answer");
    assert!(!second.trim().is_empty());
    assert_ne!(second, chat("And then?\n"), "without the first question");
    assert_eq!(chat("Hello\n/clear\nAnd then?\n"), first.clone() + &chat("And then?\n"));
    assert_eq!(chat("And then?\n/undo\nHello\n/exit\nmore\n"), chat("And then?\n") + &first);
    assert_ne!(chat("/preference brief=1\nHello\n"), first);

    // What goes wrong is told in the server's words, or says where nobody answers.
    for (args, told) in [
        (vec!["generate", "x", "--temperature", "9"], "temperature is 9"),
        (vec!["generate", "x", "--preference", "kind=1"], "X-Preference"),
        (vec!["generate", "x", "--alpha", "warm"], "alpha is \"warm\""),
        (vec!["generate", ""], "the prompt is empty"),
    ] {
        let output = server.run(&args, "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(told), "{args:?}: {said}");
    }
    let mut lonely = Server::start();
    lonely.url = "http://127.0.0.1:1".to_owned();
    let output = lonely.run(&["generate", "x"], "");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no server answers at"));

    // What it suggests when it is ready can be pasted.
    assert!(server.example.starts_with("curl http://127.0.0.1:"), "{}", server.example);
    let body = server.example.split_once(" -d '").expect("a body").1.strip_suffix('\'');
    let body: Value = serde_json::from_str(body.expect("its end")).expect("JSON");
    let keys: Vec<&String> = body["preference"].as_object().expect("weights").keys().collect();
    assert_eq!(keys, ["helpful", "harmless", "brief"]);
    let mut asked = body;
    asked["timeout"] = 30.into();
    let answer = ureq::post(format!("{}/generate", server.url)).send_json(asked).expect("a 200");
    assert_eq!(answer.status(), 200);
}
