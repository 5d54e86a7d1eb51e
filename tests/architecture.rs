//! The floors of the crate: each module uses only modules below its own floor.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules by floor, lowest first; the same table stands in `src/lib.rs`.
const FLOORS: [&[&str]; 6] = [
    &["math"],
    &["kernels", "preference", "sampling", "tokenizer", "rng", "config", "telemetry"],
    &["model", "soup", "chat"],
    &["merge"],
    &["engine"],
    &["http"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The top-level modules that a source file names: `crate::a`, `crate::{a, b::c}`.
fn imports(source: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = Vec::new();
    for (_, rest) in
        source.match_indices("crate::").map(|(at, hit)| (at, &source[at + hit.len()..]))
    {
        let Some(group) = rest.strip_prefix('{') else {
            found.push(name(rest));
            continue;
        };
        let (mut depth, mut item) = (0, String::new());
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => found.push(name(&std::mem::take(&mut item))),
                _ => {}
            }
            if depth == 0 && c != ',' {
                item.push(c);
            }
        }
        found.push(name(&item));
    }
    found
}

#[test]
fn modules_use_only_the_floors_below() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut arrows = 0;
    for file in rust_files(&root) {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if ["lib", "main", "cli"].contains(&module) {
            continue;
        }
        let own = floor(module).unwrap_or_else(|| panic!("{module} is on no floor"));
        for used in imports(&fs::read_to_string(&file).unwrap()) {
            let Some(below) = floor(&used) else { continue };
            assert!(
                used == module || below < own,
                "{}: `{module}` (floor {}) uses `{used}` (floor {})",
                relative.display(),
                own,
                below,
            );
            arrows += usize::from(used != module);
        }
    }
    assert!(arrows > 10, "the scan found only {arrows} imports: it no longer reads the sources");
}

#[test]
fn the_scan_reads_every_form_of_import() {
    assert_eq!(imports("use crate::model::config;"), ["model"]);
    assert_eq!(
        imports("use crate::{kernels::{Batch, Kernels}, model, soup::Soup};"),
        ["kernels", "model", "soup"]
    );
    assert_eq!(imports("fn f() -> crate::merge::Plan {}"), ["merge"]);
}

#[test]
fn the_server_does_not_depend_on_training() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    assert!(!fs::read_to_string(manifest).unwrap().contains("ladle-training"));
}
