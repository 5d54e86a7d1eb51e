//! The file → file graph of the crates, read from their sources with `syn`.
//!
//! An arrow goes from a file to the file that defines an item which the first one names: in a `use`,
//! in a path (`crate::a::b()`, `super::c`, `a::D` where `a` is imported), in the tokens of a macro or
//! an attribute. Re-exports are followed to the definition. Three things are no arrow: `mod child;`,
//! a module that re-exports what its descendants define, and whatever stands under `#[cfg(test)]`.
//! Fields and methods are reached through a type that is named somewhere, so they need no reading.

use std::collections::{BTreeMap, BTreeSet};

pub use crate::tree::{Arrows, Sources};
use crate::{
    syntax::{directory, read},
    tree::{Module, Tree},
};

/// A crate: the name that other crates call it by, and its root file.
pub struct Crate {
    pub name: &'static str,
    pub root: &'static str,
}

/// The arrows of all crates together.
pub fn arrows(sources: &Sources, crates: &[Crate]) -> Arrows {
    let mut tree = Tree::default();
    for krate in crates {
        let root = tree.add(Module::of(krate.root, directory(krate.root), None));
        tree.roots.insert(krate.name, root);
        read(&mut tree, sources, root);
    }
    tree.arrows()
}

/// The groups of files that reach each other, smallest file first.
pub fn circles(arrows: &Arrows) -> Vec<BTreeSet<String>> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let reached = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for to in next.get(file).into_iter().flatten() {
                if seen.insert(*to) {
                    open.push(to);
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        next.keys().map(|file| (*file, reached(file))).collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (file, to) in &reach {
        if !to.contains(file) || circles.iter().any(|circle| circle.contains(*file)) {
            continue;
        }
        let back = |other: &&&str| reach.get(**other).is_some_and(|reach| reach.contains(file));
        circles.push(to.iter().filter(back).map(ToString::to_string).collect());
    }
    circles
}
