//! `ladle serve` as a process of its own, for what may end it.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
};

use serde_json::Value;

use crate::server::{PATIENCE, Server};

pub struct Process {
    /// For requests to it.
    pub server: Server,
    /// The line of the log that names the metrics' address, where they have one.
    pub metrics: String,
    child: Option<Child>,
    log: mpsc::Receiver<String>,
}

impl Process {
    /// Serves `soup`; returns once the server is ready.
    pub fn start(soup: &Path, arguments: &[&str]) -> Self {
        let mut command = Self::command(soup.as_os_str(), soup, arguments);
        Self::run(command.arg("--offline"), arguments)
    }

    /// What serves a soup, and keeps below `home` what it fetches.
    pub fn command(soup: &OsStr, home: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
        command.args(["serve", "--port", "0", "--log-format", "json", "--soup"]).arg(soup);
        command.args(["--merge-cache", "64MiB", "--kv-cache", "16MiB", "--threads", "2"]);
        command.args(arguments).env("LADLE_HOME", home).stderr(Stdio::piped());
        command
    }

    /// Runs it; returns once the server is ready.
    pub fn run(command: &mut Command, arguments: &[&str]) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (tell, log) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let mut process = Self {
            server: Server::at(String::new()),
            metrics: String::new(),
            child: Some(child),
            log,
        };
        let line: Value = serde_json::from_str(&process.wait_for(&["listening"])).unwrap();
        let address = line["fields"]["address"].as_str().unwrap();
        process.server = Server::at(format!("http://{address}"));
        if arguments.contains(&"--metrics-addr") {
            process.metrics = process.wait_for(&["listening for metrics"]);
        }
        process.server.wait_until("ready", |server| server.get("/ready").status == 200);
        process
    }

    /// The next line of the log that holds all of `parts`.
    pub fn wait_for(&self, parts: &[&str]) -> String {
        self.lines_until(parts).pop().unwrap()
    }

    /// The next lines of the log, up to one that holds all of `parts`.
    pub fn lines_until(&self, parts: &[&str]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        while !lines.last().is_some_and(|line| parts.iter().all(|part| line.contains(part))) {
            let line = self.log.recv_timeout(PATIENCE);
            lines.push(line.unwrap_or_else(|_| panic!("no line with {parts:?} in the log")));
        }
        lines
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let (ended, end) = mpsc::channel();
        let id = child.id();
        thread::spawn(move || ended.send(child.wait()));
        end.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("process {id} goes on")).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
