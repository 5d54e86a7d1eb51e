//! The shape of the sources: no two files that use each other, and no module that uses its own
//! floor or a higher one. The floors stand in `docs/architecture.md`.

mod citations;
mod graph;
mod pages;
mod reader;
mod syntax;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use graph::{Arrows, Crate, Sources, arrows, circles};

const CRATES: [Crate; 4] = [
    Crate { name: "ladle", root: "src/lib.rs" },
    Crate { name: "the ladle binary", root: "src/main.rs" },
    Crate { name: "ladle_training", root: "training/src/lib.rs" },
    Crate { name: "the train-backbones binary", root: "training/src/main.rs" },
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a directory with one of these endings, by its path from the repository's root.
fn read(directory: &str, endings: &[&str], into: &mut Sources) {
    for entry in fs::read_dir(root().join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{directory}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read(&path, endings, into);
        } else if path.rsplit_once('.').is_some_and(|(_, ending)| endings.contains(&ending)) {
            into.insert(path.clone(), fs::read_to_string(root().join(path)).unwrap());
        }
    }
}

fn all() -> (Sources, Arrows) {
    let mut sources = Sources::new();
    read("src", &["rs"], &mut sources);
    read("training/src", &["rs"], &mut sources);
    let arrows = arrows(&sources, &CRATES);
    assert!(arrows.len() > 300, "only {} arrows found: the reader misses some", arrows.len());
    (sources, arrows)
}

/// The floor of every top-level module, from the table in `docs/architecture.md`.
fn floors() -> BTreeMap<String, u32> {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Floors")).unwrap();
    let mut floors = BTreeMap::new();
    for row in section.lines().filter_map(|line| line.strip_prefix("| ")) {
        let Some((floor, modules)) = row.split_once('|') else { continue };
        let Ok(floor) = floor.trim().parse() else { continue };
        for module in modules.split('`').skip(1).step_by(2) {
            let before = floors.insert(module.to_owned(), floor);
            assert!(before.is_none(), "`{module}` stands on two floors");
        }
    }
    floors
}

/// The top-level module of a file of the root crate.
fn module(file: &str) -> Option<&str> {
    let inside = file.strip_prefix("src/")?;
    Some(inside.split_once('/').map_or(inside, |(module, _)| module).trim_end_matches(".rs"))
}

#[test]
fn no_two_files_use_each_other() {
    let (_, arrows) = all();
    let mut told = String::new();
    for circle in circles(&arrows) {
        told += &format!("\n{} files reach each other:\n", circle.len());
        for ((from, to), path) in &arrows {
            if circle.contains(from) && circle.contains(to) {
                told += &format!("  {from} → {to} (`{path}`)\n");
            }
        }
    }
    assert!(told.is_empty(), "{told}");
}

#[test]
fn every_module_uses_only_floors_below_its_own() {
    let floors = floors();
    let (sources, arrows) = all();
    let floor = |module: &str| {
        *floors.get(module).unwrap_or_else(|| {
            panic!("`{module}` is on no floor: add it to the table of docs/architecture.md")
        })
    };
    let present: BTreeSet<&str> = sources.keys().filter_map(|file| module(file)).collect();
    present.iter().filter(|module| **module != "lib").for_each(|module| _ = floor(module));
    for name in floors.keys() {
        assert!(present.contains(name.as_str()), "`{name}` is on a floor, but not in src/");
    }
    let mut told = String::new();
    for ((from, to), path) in &arrows {
        let (Some(upper), Some(lower)) = (module(from), module(to)) else { continue };
        if upper != lower && upper != "lib" && floor(lower) >= floor(upper) {
            let (upper, lower) = (floor(upper), floor(lower));
            told += &format!("{from} (floor {upper}) uses {to} (floor {lower}): `{path}`\n");
        }
    }
    assert!(told.is_empty(), "\n{told}");
}

/// Packages with their features, of a selection and these kinds of dependencies.
fn resolved(selection: &[&str], kinds: &str) -> BTreeSet<String> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--prefix", "none", "--format", "{p} {f}", "--edges", kinds]);
    let output = tree.args(selection).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

/// Whoever builds the server and then the tests or the trainer compiles no dependency twice.
#[test]
fn the_server_alone_has_the_features_of_the_workspace() {
    let server = resolved(&["--package", "ladle"], "normal,build");
    let all = resolved(&["--workspace"], "normal,build,dev");
    let other: Vec<_> = server.difference(&all).collect();
    assert!(server.len() > 100 && other.is_empty(), "compiled again for the workspace: {other:#?}");
}

#[test]
fn the_server_does_not_use_training() {
    let (_, arrows) = all();
    for (from, to) in arrows.keys() {
        assert!(from.starts_with("training/") || to.starts_with("src/"), "{from} uses {to}");
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("ladle-training"));
}
