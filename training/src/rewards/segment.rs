//! Sentences and sub-sentences of a response, as byte ranges.

use std::ops::Range;

/// Splits at sentence ends: `.`, `!` or `?` (with closing quotes, brackets and citation marks like
/// `[3]` after it) before white space or the end, and at line ends. A full stop after a single
/// letter or a common abbreviation does not end a sentence. Ranges are trimmed, not empty, in order.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut ends = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\n' => ends.push(at),
            '.' | '!' | '?' => {
                let closers = text.get(at + 1..).map_or(0, closing);
                let end = at + 1 + closers;
                let rest = text.get(end..).unwrap_or("");
                let stops = rest.is_empty() || rest.starts_with(char::is_whitespace);
                let before = text.get(..at).unwrap_or("");
                if stops && !(c == '.' && abbreviated(before) && !rest.is_empty()) {
                    ends.push(end);
                }
                while chars.next_if(|(i, _)| *i < end).is_some() {}
            }
            _ => {}
        }
    }
    ends.push(text.len());
    ranges(text, &ends)
}

/// Splits sentences further at `,`, `;` and `:` wherever both sides keep at least `min_words` words
/// (FineGrainedRLHF's sub-sentences, with 5).
pub fn sub_sentences(text: &str, min_words: usize) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    for sentence in sentences(text) {
        let Some(body) = text.get(sentence.clone()) else { continue };
        let mut start = sentence.start;
        for (at, c) in body.char_indices() {
            let end = sentence.start + at + 1;
            let words = |range: Range<usize>| {
                text.get(range).map_or(0, |part| part.split_whitespace().count())
            };
            if matches!(c, ',' | ';' | ':')
                && words(start..end) >= min_words
                && words(end..sentence.end) >= min_words
            {
                parts.push(start..end);
                start = end;
            }
        }
        parts.push(start..sentence.end);
    }
    parts.into_iter().filter_map(|part| trimmed(text, part)).collect()
}

fn ranges(text: &str, ends: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    let parts = ends.iter().map(|&end| std::mem::replace(&mut start, end)..end);
    parts.filter_map(|part| trimmed(text, part)).collect()
}

fn trimmed(text: &str, part: Range<usize>) -> Option<Range<usize>> {
    let body = text.get(part.clone())?;
    let start = part.start + (body.len() - body.trim_start().len());
    let length = body.trim().len();
    (length > 0).then_some(start..start + length)
}

/// Bytes of closing quotes and brackets, further stops, and citation marks after a sentence's end.
fn closing(rest: &str) -> usize {
    let mut length = 0;
    while let Some(tail) = rest.get(length..) {
        let mark = tail.trim_start_matches(' ').strip_prefix('[').and_then(|inside| {
            let end = inside.find(']')?;
            let digits = inside.get(..end)?;
            let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            number.then(|| tail.len() - inside.len() + end + 1)
        });
        let closer = tail.chars().next().filter(|c| ")]}\"'”’.!?".contains(*c));
        match mark.or(closer.map(char::len_utf8)) {
            Some(bytes) => length += bytes,
            None => break,
        }
    }
    length
}

const ABBREVIATIONS: [&str; 20] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "fig", "eq", "no", "vol",
    "al", "cf", "approx", "jr", "sr", "inc",
];

fn abbreviated(before: &str) -> bool {
    let word = before.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or("");
    let mut letters = word.chars();
    let single = letters.next().is_some_and(char::is_alphabetic) && letters.next().is_none();
    single || ABBREVIATIONS.contains(&word.to_lowercase().as_str())
}
