//! The reader itself, on made-up sources: one for each form in which a file names another's items.

use crate::graph::{Crate, Sources, arrows, circles};

fn sources(files: &[(&str, &str)]) -> Sources {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// `from → to` of every arrow between the made-up files, without `src/` and `.rs`.
fn read(files: &[(&str, &str)]) -> Vec<String> {
    let crates = [Crate { name: "made_up", root: "src/lib.rs" }];
    let short = |file: &str| file.trim_start_matches("src/").trim_end_matches(".rs").to_owned();
    let arrows = arrows(&sources(files), &crates);
    arrows.keys().map(|(from, to)| format!("{} → {}", short(from), short(to))).collect()
}

/// A crate of `a`, `b` (which defines `Item`, `Kind`, `work` and `inner::Deep`) and `c`, which
/// passes on what `b` defines. `a` has the text given.
fn with(a: &str) -> Vec<String> {
    read(&[
        ("src/lib.rs", "mod a; mod b; mod c;"),
        ("src/a.rs", a),
        (
            "src/b/mod.rs",
            "pub mod inner; pub struct Item; pub enum Kind { One } pub fn work() {}
             pub use inner::Deep;",
        ),
        ("src/b/inner.rs", "pub struct Deep;"),
        ("src/c.rs", "pub use crate::b::{Item as Other, inner::Deep}; pub use crate::b::*;"),
    ])
    .into_iter()
    .filter(|arrow| arrow.starts_with("a "))
    .collect()
}

#[test]
fn every_form_of_import_is_an_arrow_to_the_file_that_defines_the_item() {
    for text in [
        "use crate::b::Item;",
        "use crate::{b::Item};",
        "use crate::b::{self, Item as It};",
        "use super::b::Item;",
        "use super::b::Kind::*;",
        "use crate::b; fn f() { b::work() }",
        "use crate::b as renamed; fn f(_: renamed::Kind) {}",
        "use crate::b::*; fn f(_: Item) {}",
        "fn f() { crate::b::work() }",
        "fn f() { super::b::work() }",
        "fn f() { use crate::b::work; }",
        "impl From<crate::b::Item> for u8 {}",
        "fn f() { let _ = vec![crate::b::Item]; }",
        "use crate::b; fn f() { assert!(matches!(1, b::Kind::One)); }",
        "use crate::b::Kind::One;",
        "mod inside { use crate::b::Item; }",
        "mod inside { use super::super::b::Item; }",
        "macro_rules! m { () => { $crate::b::work() } }",
        "struct S { #[arg(value_parser = crate::b::work)] s: u8 }",
        "use crate::b::made_by_a_macro;",
        "pub use crate::b::Item;",
    ] {
        assert_eq!(with(text), ["a → b/mod"], "{text}");
    }
}

#[test]
fn a_reexport_leads_to_the_definition() {
    for text in [
        "use crate::b::Deep;",
        "use crate::b::inner::Deep;",
        "use crate::c::Deep;",
        "use crate::c; fn f(_: c::Deep) {}",
        "use crate::c::*; fn f(_: Deep) {}",
    ] {
        assert_eq!(with(text), ["a → b/inner"], "{text}");
    }
    for text in ["use crate::c::Other;", "use crate::c::Item;", "fn f() { crate::c::work() }"] {
        assert_eq!(with(text), ["a → b/mod"], "{text}");
    }
}

#[test]
fn what_names_no_other_file_is_no_arrow() {
    for text in [
        "use std::fmt; fn f(_: fmt::Error) {}",
        "use crate::b;",
        "use ::b::Item;",
        "/// [`crate::b::Item`]\nstruct S;",
        "#[cfg(test)] mod tests { use crate::b::Item; }",
        "#[cfg(all(test, unix))] use crate::b::Item;",
        "struct Item; fn f(_: Item) {}",
        "use self::Own as Mine; struct Own;",
        "const S: &str = \"crate::b::Item\"; // crate::b::Item",
    ] {
        assert_eq!(with(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_parent_that_passes_its_children_on_is_no_arrow_but_one_that_uses_them_is() {
    let child = ("src/a/child.rs", "use super::Shared; pub struct Child(Shared);");
    let read = |parent| read(&[("src/lib.rs", "mod a;"), ("src/a/mod.rs", parent), child]);
    let passes = "mod child; pub use child::Child; pub(crate) use self::child::*; struct Shared;";
    assert_eq!(read(passes), ["a/child → a/mod"]);
    let uses = "mod child; pub use child::Child; struct Shared; fn f(_: Child) {}";
    assert_eq!(read(uses), ["a/child → a/mod", "a/mod → a/child"]);
    let uses = "mod child; use child::Child; struct Shared;";
    assert_eq!(read(uses), ["a/child → a/mod", "a/mod → a/child"]);
}

#[test]
fn files_are_found_where_rust_looks_for_them() {
    let arrows = read(&[
        ("src/lib.rs", "mod a; mod inline { mod deep; } #[path = \"elsewhere.rs\"] mod moved;"),
        ("src/a.rs", "mod b; use crate::moved::Thing;"),
        ("src/a/b.rs", "fn f() { crate::inline::deep::g() }"),
        ("src/inline/deep.rs", "pub fn g() {}"),
        ("src/elsewhere.rs", "pub struct Thing;"),
    ]);
    assert_eq!(arrows, ["a → elsewhere", "a/b → inline/deep"]);
}

#[test]
fn exported_macros_and_other_crates_are_followed() {
    let crates = [
        Crate { name: "low", root: "low/lib.rs" },
        Crate { name: "the binary", root: "low/main.rs" },
        Crate { name: "high", root: "high/lib.rs" },
    ];
    let arrows = arrows(
        &sources(&[
            ("low/lib.rs", "pub mod deep;"),
            ("low/deep.rs", "#[macro_export] macro_rules! token { () => {} } pub struct Thing;"),
            ("low/main.rs", "use low::deep::Thing; mod cli;"),
            ("low/cli.rs", "fn f() { low::token!() }"),
            ("high/lib.rs", "use low::deep; fn f(_: deep::Thing) {}"),
        ]),
        &crates,
    );
    let expected = [
        ("high/lib.rs", "low/deep.rs"),
        ("low/cli.rs", "low/deep.rs"),
        ("low/main.rs", "low/deep.rs"),
    ];
    assert!(arrows.keys().map(|(a, b)| (a.as_str(), b.as_str())).eq(expected), "{arrows:?}");
}

#[test]
fn circles_are_the_groups_of_files_that_reach_each_other() {
    let arrow = |(from, to): &(&str, &str)| ((from.to_string(), to.to_string()), String::new());
    let pairs =
        [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e"), ("e", "d"), ("f", "a")];
    let circles = circles(&pairs.iter().map(arrow).collect());
    let names: Vec<Vec<&str>> =
        circles.iter().map(|circle| circle.iter().map(String::as_str).collect()).collect();
    assert_eq!(names, [vec!["a", "b", "c"], vec!["d", "e"]]);
}
