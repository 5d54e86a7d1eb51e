//! A map of the entries of late: bounded, whoever fills it.

use std::{collections::HashMap, hash::Hash, mem};

/// Entries by key, at most `2 × half`. Whenever `half` were made or replaced, those that were not in
/// the meantime are forgotten.
pub struct Recent<K, V> {
    half: usize,
    new: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq, V> Recent<K, V> {
    /// An empty map.
    pub fn new(half: usize) -> Self {
        Self { half, new: HashMap::new(), old: HashMap::new() }
    }

    /// The entry of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.new.get(key).or_else(|| self.old.get(key))
    }

    /// Makes or replaces the entry of a key.
    pub fn put(&mut self, key: K, value: V) {
        if self.new.len() >= self.half && !self.new.contains_key(&key) {
            self.old = mem::take(&mut self.new);
        }
        self.new.insert(key, value);
    }

    /// Entries that are held.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.new.len() + self.old.len()
    }
}
