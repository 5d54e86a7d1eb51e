//! The Porter stemmer with NLTK's extensions, which `rouge-score` stems with.

/// Stem of a lower-case word of ASCII letters and digits; other words come back as they are.
pub fn stem(word: &str) -> String {
    if !word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return word.to_string();
    }
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word) {
        return (*stem).to_string();
    }
    if word.len() <= 2 {
        return word.to_string();
    }
    let steps = [step_1a, step_1b, step_1c, step_2, step_3, step_4, step_5a, step_5b];
    steps.iter().fold(word.to_string(), |word, step| step(&word))
}

const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Whether each letter is a consonant; `y` is one unless it follows one.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for byte in word.bytes() {
        let consonant = match byte {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !flags.last().copied().unwrap_or(false),
            _ => true,
        };
        flags.push(consonant);
    }
    flags
}

/// m of `[C](VC){m}[V]`.
fn measure(stem: &str) -> usize {
    consonants(stem).windows(2).filter(|pair| matches!(pair, [false, true])).count()
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).contains(&false)
}

fn ends_in_consonant(stem: &str) -> bool {
    consonants(stem).last() == Some(&true)
}

/// Ends consonant, vowel, consonant other than w, x, y; or is just vowel, consonant.
fn ends_cvc(word: &str) -> bool {
    match consonants(word).as_slice() {
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        [false, true] => true,
        _ => false,
    }
}

/// The letter that a word ends with twice, if it is a consonant.
fn double_consonant(word: &str) -> Option<u8> {
    match word.as_bytes() {
        [.., a, b] if a == b && ends_in_consonant(word) => Some(*b),
        _ => None,
    }
}

/// The first rule whose suffix fits decides: the replacement if the condition holds of what is
/// before the suffix, else the word.
fn first_rule(word: &str, rules: &[(&str, &str)], holds: impl Fn(&str, &str) -> bool) -> String {
    for (suffix, replacement) in rules {
        if let Some(stem) = word.strip_suffix(suffix) {
            let fits = holds(stem, suffix);
            return if fits { format!("{stem}{replacement}") } else { word.to_string() };
        }
    }
    word.to_string()
}

fn step_1a(word: &str) -> String {
    match word.strip_suffix("ies") {
        Some(stem) if word.len() == 4 => format!("{stem}ie"),
        _ => {
            let rules = [("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")];
            first_rule(word, &rules, |_, _| true)
        }
    }
}

fn step_1b(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ied") {
        return format!("{stem}{}", if word.len() == 4 { "ie" } else { "i" });
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if measure(stem) > 0 { format!("{stem}ee") } else { word.to_string() };
    }
    let cut =
        ["ed", "ing"].iter().find_map(|s| word.strip_suffix(s).filter(|stem| has_vowel(stem)));
    let Some(stem) = cut else { return word.to_string() };
    if ["at", "bl", "iz"].iter().any(|end| stem.ends_with(end)) {
        return format!("{stem}e");
    }
    match double_consonant(stem) {
        Some(b'l' | b's' | b'z') => stem.to_string(),
        Some(_) => stem.get(..stem.len() - 1).unwrap_or(stem).to_string(),
        None if measure(stem) == 1 && ends_cvc(stem) => format!("{stem}e"),
        None => stem.to_string(),
    }
}

fn step_1c(word: &str) -> String {
    first_rule(word, &[("y", "i")], |stem, _| stem.len() > 1 && ends_in_consonant(stem))
}

fn step_2(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("alli").filter(|stem| measure(stem) > 0) {
        return step_2(&format!("{stem}al"));
    }
    let rules = [
        ("ational", "ate"),
        ("tional", "tion"),
        ("enci", "ence"),
        ("anci", "ance"),
        ("izer", "ize"),
        ("bli", "ble"),
        ("alli", "al"),
        ("entli", "ent"),
        ("eli", "e"),
        ("ousli", "ous"),
        ("ization", "ize"),
        ("ation", "ate"),
        ("ator", "ate"),
        ("alism", "al"),
        ("iveness", "ive"),
        ("fulness", "ful"),
        ("ousness", "ous"),
        ("aliti", "al"),
        ("iviti", "ive"),
        ("biliti", "ble"),
        ("fulli", "ful"),
        ("logi", "log"),
    ];
    // The l of "logi" counts as part of the stem, so that short ones like "geo" qualify.
    first_rule(word, &rules, |stem, suffix| {
        let stem = if suffix == "logi" { word.get(..stem.len() + 1).unwrap_or(stem) } else { stem };
        measure(stem) > 0
    })
}

fn step_3(word: &str) -> String {
    let rules = [
        ("icate", "ic"),
        ("ative", ""),
        ("alize", "al"),
        ("iciti", "ic"),
        ("ical", "ic"),
        ("ful", ""),
        ("ness", ""),
    ];
    first_rule(word, &rules, |stem, _| measure(stem) > 0)
}

fn step_4(word: &str) -> String {
    let endings = [
        "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion",
        "ou", "ism", "ate", "iti", "ous", "ive", "ize",
    ];
    let rules = endings.map(|ending| (ending, ""));
    first_rule(word, &rules, |stem, suffix| {
        measure(stem) > 1 && (suffix != "ion" || stem.ends_with(['s', 't']))
    })
}

fn step_5a(word: &str) -> String {
    first_rule(word, &[("e", "")], |stem, _| {
        let m = measure(stem);
        m > 1 || (m == 1 && !ends_cvc(stem))
    })
}

fn step_5b(word: &str) -> String {
    first_rule(word, &[("ll", "l")], |stem, _| {
        measure(word.get(..stem.len() + 1).unwrap_or(stem)) > 1
    })
}
