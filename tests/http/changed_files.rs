//! Files that change under a server: it lives, and answers as before.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
};

use ladle::config::{MergeMode, ServeOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    process::Process,
    server::{Server, copy, fixture, greedy, options, with},
};

/// Every kind of file whose bytes are read after the start: soup, file.
const FILES: [(&str, &str); 6] = [
    ("soup-tiny", "backbones/helpful/adapter_model.safetensors"),
    ("soup-tiny", "base/model.safetensors"),
    ("soup-tiny-mixed", "sft/adapter_model.safetensors"),
    ("soup-tiny-mixed", "backbones/harmless/model-00001-of-00002.safetensors"),
    ("soup-tiny-full", "backbones/helpful/model.safetensors"),
    ("soup-tiny-full", "backbones/harmless/model-00003-of-00003.safetensors"),
];

/// A request whose model nobody has asked for.
fn question(index: usize) -> Value {
    let preference = [[6, 3, 1], [1, 6, 3], [3, 1, 6], [2, 5, 3], [5, 3, 2]][index];
    with(greedy(), json!({"preference": preference, "max_tokens": 16}))
}

fn answers(server: &Server, range: std::ops::Range<usize>) -> Vec<Value> {
    range.map(|index| server.generate(question(index))["text"].clone()).collect()
}

/// The soups side by side: one names the base of another.
struct Soups(TempDir);

impl Soups {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["soup-tiny", "soup-tiny-mixed", "soup-tiny-full"] {
            let to = dir.path().join(name);
            fs::create_dir(&to).unwrap();
            copy(&fixture(name), &to);
        }
        Self(dir)
    }

    fn path(&self, soup: &str) -> PathBuf {
        self.0.path().join(soup)
    }
}

#[test]
fn a_weight_file_that_is_truncated_under_the_server_changes_no_answer() {
    for (mode, merge_mode) in [("fused", MergeMode::Fused), ("mixed", MergeMode::Mixed)] {
        for (soup, file) in FILES {
            let whole = Server::start(ServeOptions {
                soup: Some(fixture(soup)),
                merge_mode: Some(merge_mode),
                ..options()
            });
            let expected = answers(&whole, 0..5);
            let soups = Soups::new();
            let mut process = Process::start(&soups.path(soup), &["--merge-mode", mode]);
            let mut got = answers(&process.server, 0..1);
            let path = soups.path(soup).join(file);
            let open = OpenOptions::new().write(true).open(path).unwrap();
            open.set_len(open.metadata().unwrap().len() / 2).unwrap();
            got.extend(answers(&process.server, 1..3));
            open.set_len(0).unwrap();
            got.extend(answers(&process.server, 3..5));
            assert_eq!(got, expected, "{mode} {soup} {file}");
            assert_eq!(process.ended(), None, "{mode} {soup} {file}");
        }
    }
}

#[test]
fn the_log_names_a_file_that_changed_under_the_server() {
    let soups = Soups::new();
    let soup = soups.path("soup-tiny");
    let process = Process::start(&soup, &[]);
    let expected = answers(&process.server, 0..2);
    let base = soup.join("base/model.safetensors");
    // Written over in place with other weights of the same shape.
    let mut bytes = fs::read(&base).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].iter_mut().for_each(|byte| *byte = 0);
    fs::write(&base, bytes).unwrap();
    process.wait_for(&["WARN", "base/model.safetensors", "changed on disk"]);
    assert_eq!(answers(&process.server, 0..2), expected);
    // Replaced, as everything here does it.
    let [from, to] = ["helpful", "brief"]
        .map(|name| soup.join("backbones").join(name).join("adapter_model.safetensors"));
    fs::rename(from, to).unwrap();
    process.wait_for(&["WARN", "adapter_model.safetensors", "changed on disk"]);
    assert_eq!(answers(&process.server, 0..2), expected);
}
