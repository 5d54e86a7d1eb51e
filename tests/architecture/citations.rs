//! Sections that sources cite: `§` names a heading of `docs/algorithms.md`, or stands with its source
//! (`Bone Soups §3.2`, `Ziegler et al. 2019, §2.2`).

use std::{collections::BTreeSet, fs};

use crate::{read, root};

/// Numbers of the page's headings: `1`, `1.1` …
fn headings() -> BTreeSet<String> {
    let page = fs::read_to_string(root().join("docs/algorithms.md")).unwrap();
    let titles = page.lines().filter(|line| line.starts_with("##"));
    let number =
        |title: &str| title.split_whitespace().nth(1).unwrap().trim_end_matches('.').to_owned();
    titles.map(number).collect()
}

/// Why a `§` resolves to nothing; `before` is the text of its line up to it.
fn fault(before: &str, after: &str, headings: &BTreeSet<String>) -> Option<String> {
    let number: String = after.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let number = number.trim_end_matches('.');
    if before.ends_with("algorithms.md` ") || before.ends_with("algorithms.md ") {
        return (!headings.contains(number))
            .then(|| format!("docs/algorithms.md has no heading {number}"));
    }
    let year = before.as_bytes().windows(4).any(|word| {
        (word.starts_with(b"19") || word.starts_with(b"20")) && word.iter().all(u8::is_ascii_digit)
    });
    let sourced = year || before.contains("Bone Soups ") || before.contains("DRBO ");
    (!sourced).then(|| format!("§{number} names no source"))
}

#[test]
fn every_cited_section_is_a_heading_or_names_its_source() {
    let mut files = Default::default();
    for directory in
        ["src", "tests", "benches", "training/src", "training/tests", "training/benches"]
    {
        read(directory, &["rs", "py", "cu", "cuh"], &mut files);
    }
    let (headings, mut cited, mut told) = (headings(), 0, String::new());
    for (file, text) in files.iter().filter(|(file, _)| !file.starts_with("tests/architecture")) {
        for (number, line) in text.lines().enumerate() {
            for (at, _) in line.match_indices('§') {
                cited += 1;
                if let Some(fault) = fault(&line[..at], &line[at + '§'.len_utf8()..], &headings) {
                    told += &format!("{file}:{}: {fault}\n", number + 1);
                }
            }
        }
    }
    assert!(told.is_empty(), "\n{told}");
    assert!(cited > 10, "only {cited} citations found");
}

#[test]
fn citations_without_a_heading_or_a_source_are_found() {
    let headings = BTreeSet::from(["1".to_owned(), "1.2".to_owned()]);
    for (before, after) in [
        ("(`docs/algorithms.md` ", "1.2), where"),
        ("docs/algorithms.md ", "1."),
        ("Bone Soups ", "3.2"),
        ("(Ziegler et al. 2019, ", "2.2)"),
    ] {
        assert_eq!(fault(before, after, &headings), None, "{before}§{after}");
    }
    for (before, after) in [("`docs/algorithms.md` ", "1.3"), ("ALGORITHMS ", "1"), ("", "4 of it")]
    {
        assert!(fault(before, after, &headings).is_some(), "{before}§{after}");
    }
}
