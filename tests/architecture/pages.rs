//! Pages lead somewhere: paths of the sources that they name exist, and so do the files and headings
//! that they link to.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{read, root};

/// Pages by their path; the changelog speaks of what was.
fn pages() -> Vec<(String, String)> {
    let mut pages = Default::default();
    read("docs", &["md"], &mut pages);
    for page in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "backbones/README.md"] {
        pages.insert(page.to_owned(), fs::read_to_string(root().join(page)).unwrap());
    }
    pages.into_iter().collect()
}

/// Anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |title: &str| {
        let title = title.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    titles.map(anchor).collect()
}

#[test]
fn paths_that_pages_name_exist() {
    let mut told = String::new();
    for (page, text) in pages() {
        for code in text.split('`').skip(1).step_by(2) {
            let of_sources = ["src/", "training/src/", "tests/", "scripts/", "examples/"];
            let path = code.split_whitespace().next().unwrap_or_default();
            let named = of_sources.iter().any(|start| path.starts_with(start));
            if named && !path.contains(['{', '*']) && !root().join(path).exists() {
                told += &format!("{page}: `{path}` does not exist\n");
            }
        }
    }
    assert!(told.is_empty(), "\n{told}");
}

#[test]
fn links_between_pages_lead_to_files_and_headings() {
    let (mut links, mut told) = (0, String::new());
    for (page, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = root().join(Path::new(&page).parent().unwrap());
            let target = if file.is_empty() { root().join(&page) } else { folder.join(file) };
            let found = match fs::read_to_string(&target) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => anchor.is_empty() && target.exists(),
            };
            if !found {
                told += &format!("{page}: {link} leads nowhere\n");
            }
        }
    }
    assert!(told.is_empty(), "\n{told}");
    assert!(links > 20, "only {links} links found");
}

#[test]
fn anchors_are_those_of_github() {
    let page = "# A request's life\n## Where is …\n### Floors, 2\n";
    assert!(anchors(page).iter().eq(["a-requests-life", "floors-2", "where-is-"]));
}

#[test]
fn every_row_of_a_table_has_the_cells_of_its_title() {
    let mut told = String::new();
    for (page, text) in pages() {
        let (mut width, mut code) = (None, false);
        for (number, line) in text.lines().enumerate() {
            code ^= line.starts_with("```");
            if code || !line.starts_with('|') {
                width = None;
                continue;
            }
            let cells = line.replace("\\|", "").matches('|').count();
            if *width.get_or_insert(cells) != cells {
                told += &format!("{page}:{}: another number of cells than above\n", number + 1);
            }
        }
    }
    assert!(told.is_empty(), "\n{told}");
}
