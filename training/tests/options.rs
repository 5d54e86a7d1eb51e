//! The command line of `train-backbones`: its page, names that are ladle's, and what errors print.

use std::process::{Command, Output};

fn train(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train-backbones"));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(args).env("RUST_BACKTRACE", "1").output().expect("runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_page_of_training_shows_the_options_as_they_are() {
    let output = train(&["options", "docs/training.md", "--check"]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_version_names_the_program() {
    let version = String::from_utf8(train(&["--version"]).stdout).expect("text");
    assert_eq!(version, concat!("train-backbones ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn options_that_both_programs_have_are_the_same() {
    let help = |command: &str| String::from_utf8(train(&[command, "--help"]).stdout).expect("text");
    for option in [
        "--models-dir <DIR>",
        "--offline[=<BOOL>]",
        "--log <FILTER>",
        "LADLE_MODELS_DIR",
        "LADLE_OFFLINE",
    ] {
        assert!(help("run").contains(option), "{option}");
    }
}

#[test]
fn a_cause_is_printed_once_and_without_a_backtrace() {
    for args in [
        &["run", "/nonexistent.toml", "--out", "/nonexistent"][..],
        &["resume", "/nonexistent"],
        &["select-alpha", "/nonexistent", "--alphas", "-0.33,0"],
        &[
            "reward",
            "hh-rlhf",
            "/nonexistent.jsonl",
            "--model",
            "/nonexistent",
            "--out",
            "/nonexistent",
        ],
    ] {
        let output = train(args);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.matches("No such file").count(), 1, "{text}");
        assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
        assert!(!text.contains("stack backtrace") && !text.contains("Os {"), "{text}");
    }
}
