//! Names of keys as labels: the operator's names, never what a client sent, and so many at most.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use metrics::Label;

/// Names that are told apart. Files of keys may change as long as a server runs; those that come
/// beyond it share a label.
const MOST: usize = 1000;
const OTHERS: &str = "(others)";

/// The names that have a label.
#[derive(Default)]
pub(super) struct Names(Mutex<BTreeSet<String>>);

impl Names {
    /// The label of a name.
    pub fn label(&self, name: &str) -> Label {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.contains(name) {
            if names.len() == MOST {
                return Label::from_static_parts("key", OTHERS);
            }
            names.insert(name.to_owned());
        }
        Label::new("key", name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_keys_are_bounded() {
        let names = Names::default();
        let label = |number: usize| names.label(&format!("key-{number}")).value().to_owned();
        let labels: BTreeSet<String> = (0..2 * MOST).map(label).collect();
        assert_eq!(labels.len(), MOST + 1);
        assert_eq!((label(0), label(MOST)), ("key-0".to_owned(), OTHERS.to_owned()));
    }
}
