//! Keys and values of prompts: where adapters are active on the answer only, θ_sft computes the rows
//! before it, so these are constants that all samples, epochs and policies over one θ_sft share, the
//! reference too (`docs/algorithms.md` §2.4).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::tape::KeysAndValues;

/// Keys and values by the tokens that they are of, within a budget of bytes; the same θ_sft computes
/// all of them.
///
/// Prompts come again only after all others (an epoch, another policy), so room is made by what was
/// used last before this step: what stays is found again at least. What a step uses stays until the
/// next one; where it alone fills the budget, the rest is computed again at each use. Neither changes
/// a value.
#[derive(Debug)]
pub struct PromptCache {
    budget: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Vec<u32>, Entry>,
    counts: Counts,
    /// Number of uses so far.
    uses: u64,
    /// `uses` when the step began.
    began: u64,
}

#[derive(Debug)]
struct Entry {
    values: Arc<KeysAndValues>,
    /// Number of its last use.
    used: u64,
}

/// What was asked for so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that were computed.
    pub computed: usize,
    /// Rows that were found.
    pub found: usize,
    /// Bytes that are kept.
    pub bytes: usize,
}

impl PromptCache {
    /// Keeps at most `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { budget, state: Mutex::default() }
    }

    /// Begins a step: what was used before may make room from now on.
    pub fn begin_step(&self) {
        let mut state = self.state();
        state.began = state.uses;
    }

    /// Rows computed and found so far, and what is kept.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The keys and values of the rows of `tokens`: found, or computed and kept if there is room.
    pub fn get<E>(
        &self,
        tokens: &[u32],
        compute: impl FnOnce() -> Result<KeysAndValues, E>,
    ) -> Result<Arc<KeysAndValues>, E> {
        if let Some(found) = self.state().find(tokens) {
            return Ok(found);
        }
        let values = Arc::new(compute()?);
        self.state().keep(tokens, values.clone(), self.budget);
        Ok(values)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic leaves no entry half made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&mut self, tokens: &[u32]) -> Option<Arc<KeysAndValues>> {
        let entry = self.entries.get_mut(tokens)?;
        self.uses += 1;
        entry.used = self.uses;
        self.counts.found += tokens.len();
        Some(entry.values.clone())
    }

    fn keep(&mut self, tokens: &[u32], values: Arc<KeysAndValues>, budget: usize) {
        self.counts.computed += tokens.len();
        let bytes = values.bytes();
        while bytes <= budget && self.counts.bytes + bytes > budget {
            let before = self.entries.iter().filter(|(_, entry)| entry.used <= self.began);
            let Some(last) = before.max_by_key(|(_, entry)| entry.used) else { return };
            let last = last.0.clone();
            let freed = self.entries.remove(&last).map_or(0, |entry| entry.values.bytes());
            self.counts.bytes -= freed;
        }
        if bytes <= budget {
            self.uses += 1;
            self.counts.bytes += bytes;
            self.entries.insert(tokens.to_vec(), Entry { values, used: self.uses });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Asks for the prompts in turn, 12 bytes each; true where one was found.
    fn ask(cache: &PromptCache, tokens: &[u32]) -> Vec<bool> {
        let one = |&token: &u32| {
            let before = cache.counts().found;
            let values = Arc::new(vec![token as f32; 2]);
            let made = KeysAndValues::of([[values, Arc::new(vec![0.5])]]);
            cache.get(&[token], || Ok::<_, Infallible>(made)).unwrap();
            cache.counts().found > before
        };
        tokens.iter().map(one).collect()
    }

    #[test]
    fn a_step_finds_what_it_has_computed_as_far_as_the_budget_goes() {
        let cache = PromptCache::new(3 * 12);
        assert_eq!(ask(&cache, &[1, 2, 3, 4]), [false; 4]);
        assert_eq!(ask(&cache, &[4, 3, 2, 1]), [false, true, true, true]);
        assert_eq!(cache.counts(), Counts { computed: 5, found: 3, bytes: 36 });
        // The next step's take the place of what was used last.
        cache.begin_step();
        assert_eq!(ask(&cache, &[5, 5]), [false, true]);
        assert_eq!(ask(&cache, &[3, 2, 1]), [true, true, false]);
    }

    #[test]
    fn prompts_that_come_again_after_all_others_are_found_as_far_as_the_budget_goes() {
        let cache = PromptCache::new(4 * 12);
        let mut found = 0;
        for epoch in 0..5 {
            for token in 0..6 {
                cache.begin_step();
                let hit = ask(&cache, &[token])[0];
                found += usize::from(hit && epoch > 0);
            }
        }
        assert!(found >= 4 * 3, "{found} of 24 found, where the least recently used finds none");
        assert_eq!(cache.counts().bytes, 48);
        let none = PromptCache::new(11);
        assert_eq!(ask(&none, &[1, 1]), [false, false]);
        assert_eq!(none.counts().bytes, 0);
    }
}
