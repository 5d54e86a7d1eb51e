//! Words of English text, their syllables, and whether they are everyday words.

use std::{collections::HashSet, sync::LazyLock};

/// Runs of letters, with inner apostrophes and hyphens' parts apart; lower case.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !(c.is_alphabetic() || matches!(c, '\'' | '’')))
        .map(|w| w.trim_matches(['\'', '’']).replace('’', "'").to_lowercase())
        .filter(|w| !w.is_empty())
}

/// Syllables of a lower-case English word by its vowel groups: a silent final `e` and `-ed`
/// (but not after `t` or `d`) don't count, a final consonant + `le` does. At least 1.
pub fn syllables(word: &str) -> usize {
    let vowel = |c: char| "aeiouy".contains(c);
    let letters: Vec<char> = word.chars().filter(|c| c.is_alphabetic()).collect();
    let mut groups = 0usize;
    let mut before = false;
    for &c in &letters {
        groups += usize::from(vowel(c) && !before);
        before = vowel(c);
    }
    let silent = match letters.as_slice() {
        [.., a, 'l', 'e'] if !vowel(*a) => false,
        [.., a, 'e'] => !vowel(*a),
        [.., a, 'e', 'd'] => !vowel(*a) && !matches!(a, 't' | 'd'),
        [.., a, 'e', 's'] => !vowel(*a) && !"csxzgh".contains(*a),
        _ => false,
    };
    groups.saturating_sub(usize::from(silent)).max(1)
}

/// Whether a lower-case word is on the list of everyday words, by itself or without an ending
/// (`-s`, `-ed`, `-ing`, `-ly`, `-er`, `-est`, `'s`).
///
/// The list was counted by `scripts/plain-words` from two corpora at once: a word is on it when it
/// is frequent both in everyday dialogues and in encyclopaedia answers, which keeps
/// out chat slang as well as names and technical terms.
pub fn is_plain(word: &str) -> bool {
    static LIST: LazyLock<HashSet<&str>> = LazyLock::new(|| {
        include_str!("plain_words.txt").lines().filter(|l| !l.starts_with('#')).collect()
    });
    let known = |w: &str| LIST.contains(w);
    if known(word) {
        return true;
    }
    ["'s", "s", "es", "ed", "d", "ing", "ly", "er", "r", "est", "st"].iter().any(|ending| {
        let Some(stem) = word.strip_suffix(ending).filter(|s| s.len() > 2) else { return false };
        let undoubled = stem.chars().next_back().and_then(|last| {
            let shorter = stem.strip_suffix(last)?;
            shorter.ends_with(last).then_some(shorter)
        });
        known(stem)
            || (*ending == "ing" && known(&format!("{stem}e")))
            || (matches!(*ending, "es" | "ed" | "er" | "est" | "ly")
                && stem.strip_suffix('i').is_some_and(|s| known(&format!("{s}y"))))
            || (matches!(*ending, "ed" | "ing" | "er" | "est") && undoubled.is_some_and(known))
    })
}
