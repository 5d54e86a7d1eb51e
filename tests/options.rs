//! The command line of `ladle`: one definition for parsing, help, pages, man pages and completions.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
};

use ladle::engine::CpuOptions;
use serde_json::Value;

fn ladle(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
    // What an error prints must not depend on it.
    command.env("RUST_BACKTRACE", "1").env_remove("LADLE_SOUP").output().expect("runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(args: &[&str]) -> String {
    let output = ladle(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_page_of_operations_shows_the_options_as_they_are() {
    printed(&["options", "docs/operations.md", "--check"]);
}

/// Names of environment variables in the sources below `directory`.
fn variables(directory: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            variables(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).expect("text");
            let literals = text.split('"').skip(1).step_by(2).map(str::to_owned);
            into.extend(literals.filter(|literal| {
                let known = ["LADLE_", "HF_"].iter().any(|prefix| literal.starts_with(prefix));
                known && literal.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
            }));
        }
    }
}

#[test]
fn every_environment_variable_is_on_a_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    variables(&root.join("src"), &mut names);
    variables(&root.join("training/src"), &mut names);
    assert!(names.contains("LADLE_ISA") && names.len() > 30, "{names:?}");
    let page = |name| std::fs::read_to_string(root.join("docs").join(name)).expect("a page");
    let pages = page("operations.md") + &page("training.md");
    let missing: Vec<_> =
        names.iter().filter(|name| !pages.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "on no table: {missing:?}");
    let help = printed(&["--help"]);
    assert!(help.contains("LADLE_ISA") && help.contains("LADLE_CUDA_LIBS"), "{help}");
}

#[test]
fn a_stale_page_is_named_with_the_command_that_writes_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = dir.path().join("page.md");
    let path = page.to_str().expect("text");
    std::fs::write(&page, "<!-- options: solve -->\n<!-- end of options -->\n").expect("written");
    let stale = ladle(&["options", path, "--check"]);
    assert_eq!(stale.status.code(), Some(1));
    assert!(said(&stale).contains(&format!("ladle options {path}")), "{}", said(&stale));
    printed(&["options", path]);
    printed(&["options", path, "--check"]);
    assert!(std::fs::read_to_string(&page).expect("text").contains("`--alpha <ALPHA>`"));
}

#[test]
fn the_version_names_the_program() {
    assert_eq!(printed(&["--version"]), concat!("ladle ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn man_pages_and_completions_have_every_command() {
    let dir = tempfile::tempdir().expect("a directory");
    printed(&["man", dir.path().to_str().expect("text")]);
    let man = std::fs::read_to_string(dir.path().join("ladle-serve.1")).expect("a page");
    assert!(man.contains("LADLE_MERGE_CACHE") && man.contains("[default: 8080]"), "{man}");
    for shell in ["bash", "zsh", "fish"] {
        let completions = printed(&["completions", shell]);
        for word in ["serve", "import", "init", "inspect", "merge", "solve", "merge-cache"] {
            assert!(completions.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_budgets_that_help_names_are_those_of_the_engine() {
    let (help, engine) = (printed(&["serve", "--help"]), CpuOptions::default());
    for (option, bytes) in
        [("fused weights", engine.merged_bytes), ("keys and values", engine.kv_bytes)]
    {
        let text = format!("Byte budget of {option} [default: {}GiB", bytes >> 30);
        assert!(help.contains(&text), "no {text:?} in {help}");
    }
}

#[test]
fn negative_numbers_are_values() {
    let circulant = ["--objectives", "a,b", "--beta", "0.7"];
    for alpha in [&["--alpha", "-0.5"][..], &["--alpha=-0.5"]] {
        let refused = ladle(&[&["solve", "0.9,0.1"], alpha, &circulant].concat());
        assert!(said(&refused).contains("alpha is -0.5, expected"), "{}", said(&refused));
    }
    let refused = ladle(&["serve", "--request-timeout", "-1", "tests/fixtures/soup-tiny"]);
    assert!(said(&refused).contains("request_timeout is -1, expected"), "{}", said(&refused));
    let text = printed(&[&["solve", "0.9,0.1", "--alpha", "0.5"], &circulant[..]].concat());
    let solved: Value = serde_json::from_str(&text).expect("JSON");
    assert!((solved["coefficients"]["sft"].as_f64().expect("a number") + 0.5).abs() < 1e-9);
}

#[test]
fn a_soup_is_given_by_position_or_by_name_and_not_by_both() {
    for args in [&["serve", "nowhere"][..], &["serve", "--soup", "nowhere"]] {
        let output = ladle(&[args, &["--port", "0"]].concat());
        assert!(said(&output).contains("nowhere/soup.toml"), "{}", said(&output));
    }
    let mut environment = Command::new(env!("CARGO_BIN_EXE_ladle"));
    environment.env("LADLE_SOUP", "elsewhere").args(["serve", "nowhere", "--port", "0"]);
    let output = environment.output().expect("runs");
    assert!(said(&output).contains("nowhere/soup.toml"), "{}", said(&output));
    let twice = ladle(&["serve", "one", "--soup", "two"]);
    assert_eq!(twice.status.code(), Some(2));
    assert!(said(&twice).contains("given twice"), "{}", said(&twice));
}

#[test]
fn a_cause_is_printed_once_and_without_a_backtrace() {
    for args in [
        &["inspect", "/nonexistent"][..],
        &["solve", "1,0", "--soup", "/nonexistent"],
        &["serve", "/nonexistent", "--port", "0", "--log", "off"],
        &["serve", "/nonexistent", "--config", "/nonexistent"],
        &["import", "/nonexistent.gguf", "--offline"],
        &["merge", "/nonexistent", "--out", "/nonexistent/out"],
    ] {
        let output = ladle(args);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.matches("No such file").count() <= 1, "{text}");
        assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
        assert!(!text.contains("stack backtrace") && !text.contains("Os {"), "{text}");
    }
}
