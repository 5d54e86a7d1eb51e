//! Methods of Python's `str`.

use minijinja::{
    Error, Value,
    formatting::{self, FormatStyle},
    value::{Tuple, ValueKind},
};

use super::{
    arguments::Arguments,
    text::is_printable,
    values::{error, is_tuple, iterate, type_name},
};

/// Names of the methods.
pub const METHODS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
/// Largest width of padded text, in characters.
const MAX_WIDTH: i64 = 1 << 16;

/// Calls a method of `text`.
pub fn call(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let method = arguments.function();
    if let Some(holds) = predicate(text, method) {
        arguments.finish(0)?;
        return Ok(Value::from(holds));
    }
    match method {
        "capitalize" => plain(arguments, capitalize(text)),
        "casefold" => plain(arguments, text.to_lowercase().replace('ß', "ss")),
        "lower" => plain(arguments, text.to_lowercase()),
        "swapcase" => plain(arguments, swap_case(text)),
        "title" => plain(arguments, title(text)),
        "upper" => plain(arguments, text.to_uppercase()),
        "center" | "ljust" | "rjust" => pad(text, arguments),
        "zfill" => zero_fill(text, arguments),
        "strip" | "lstrip" | "rstrip" => {
            let characters = arguments.text(0, "chars")?;
            arguments.finish(1)?;
            let (left, right) = (method != "rstrip", method != "lstrip");
            Ok(Value::from(strip(text, characters.as_deref(), left, right)))
        }
        "removeprefix" | "removesuffix" => {
            let affix = arguments.required_text(0, "affix")?;
            arguments.finish(1)?;
            let rest = match method {
                "removeprefix" => text.strip_prefix(affix.as_str()),
                _ => text.strip_suffix(affix.as_str()),
            };
            Ok(Value::from(rest.unwrap_or(text)))
        }
        "startswith" | "endswith" => affixed(text, arguments),
        "count" | "find" | "index" | "rfind" | "rindex" => search(text, arguments),
        "replace" => {
            let old = arguments.required_text(0, "old")?;
            let new = arguments.required_text(1, "new")?;
            let count = arguments.integer(2, "count")?.unwrap_or(-1);
            arguments.finish(3)?;
            bounded(text.len() + text.matches(old.as_str()).count().saturating_mul(new.len()))?;
            Ok(Value::from(replace(text, &old, &new, count)))
        }
        "split" | "rsplit" => split(text, arguments),
        "splitlines" => {
            let keep = arguments.flag(0, "keepends");
            arguments.finish(1)?;
            Ok(lines(text, keep).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => partition(text, arguments),
        "join" => join(text, arguments),
        _ => format(text, arguments),
    }
}

fn plain(arguments: &Arguments, text: String) -> Result<Value, Error> {
    arguments.finish(0)?;
    Ok(Value::from(text))
}

/// Python's whitespace: Unicode's, and the four ASCII separators.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn is_cased(character: char) -> bool {
    character.is_lowercase() || character.is_uppercase()
}

fn predicate(text: &str, method: &str) -> Option<bool> {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let any = |test: fn(char) -> bool| text.chars().any(test);
    Some(match method {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" | "isdigit" | "isnumeric" => all(char::is_numeric),
        "islower" => any(char::is_lowercase) && !any(char::is_uppercase),
        "isprintable" => text.chars().all(is_printable),
        "isspace" => all(is_space),
        "istitle" => any(is_cased) && title(text) == text,
        "isupper" => any(char::is_uppercase) && !any(char::is_lowercase),
        _ => return None,
    })
}

/// A character in upper case; where that is several characters, only the first: `ß` becomes `Ss`.
fn title_case(character: char) -> impl Iterator<Item = char> {
    let mut upper = character.to_uppercase();
    upper.next().into_iter().chain(upper.flat_map(char::to_lowercase))
}

/// The first character in upper case, the rest in lower case.
fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.next().into_iter().flat_map(title_case).collect();
    first + &characters.as_str().to_lowercase()
}

fn swap_case(text: &str) -> String {
    let swap = |character: char| match character.is_uppercase() {
        true => character.to_lowercase().collect::<String>(),
        false => character.to_uppercase().collect(),
    };
    text.chars().map(swap).collect()
}

/// Each run of letters in lower case after a first one in upper case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for character in text.chars() {
        match in_word {
            true => out.extend(character.to_lowercase()),
            false => out.extend(title_case(character)),
        }
        in_word = is_cased(character);
    }
    out
}

fn pad(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let width = arguments.integer(0, "width")?.unwrap_or(0);
    let fill = arguments.text(1, "fillchar")?.unwrap_or_else(|| " ".to_owned());
    arguments.finish(2)?;
    if fill.chars().count() != 1 {
        return Err(error("The fill character must be exactly one character long"));
    }
    padded(text, width, &fill, arguments.function())
}

/// `text` padded to `width` characters by `ljust`, `rjust` or `center`.
pub fn padded(text: &str, width: i64, fill: &str, how: &str) -> Result<Value, Error> {
    if width > MAX_WIDTH {
        return Err(error(format!("{how}() width {width} is more than {MAX_WIDTH}")));
    }
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(Value::from(fill.repeat(left) + text + &fill.repeat(missing - left)))
}

fn zero_fill(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let width = arguments.integer(0, "width")?.unwrap_or(0);
    arguments.finish(1)?;
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = &text[..text.len() - digits.len()];
    let width = width.saturating_sub(sign.len() as i64);
    let filled = padded(digits, width, "0", "rjust")?;
    Ok(Value::from(sign.to_owned() + filled.as_str().unwrap_or_default()))
}

/// `text` without the characters in `characters` (`None`: whitespace) at its ends.
pub fn strip<'a>(text: &'a str, characters: Option<&str>, left: bool, right: bool) -> &'a str {
    let strips = |c: char| characters.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if left { text.trim_start_matches(strips) } else { text };
    if right { text.trim_end_matches(strips) } else { text }
}

/// The part of `text` that the arguments `start` and `end` select, and its start in characters;
/// `None` where `start` lies behind the end.
fn selected<'a>(text: &'a str, arguments: &Arguments) -> Result<Option<(&'a str, usize)>, Error> {
    let (start, end) = (arguments.integer(1, "start")?, arguments.integer(2, "end")?);
    arguments.finish(3)?;
    if start.is_none() && end.is_none() {
        return Ok(Some((text, 0)));
    }
    let length = text.chars().count() as i64;
    let position = |bound: i64| match bound < 0 {
        true => bound.saturating_add(length).max(0),
        false => bound,
    };
    let start = start.map_or(0, position);
    let end = end.map_or(length, position).min(length);
    if start > end {
        return Ok(None);
    }
    let byte = |at: i64| text.char_indices().nth(at as usize).map_or(text.len(), |(byte, _)| byte);
    Ok(Some((&text[byte(start)..byte(end)], start as usize)))
}

fn affixed(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let affixes = arguments.required(0, "prefix")?;
    let affixes = match is_tuple(&affixes) {
        true => iterate(&affixes)?,
        false => vec![affixes],
    };
    let Some((text, _)) = selected(text, arguments)? else { return Ok(Value::from(false)) };
    for affix in affixes {
        let Some(affix) = affix.as_str().filter(|_| affix.kind() == ValueKind::String) else {
            let (method, kind) = (arguments.function(), type_name(&affix));
            return Err(error(format!(
                "{method} first arg must be str or a tuple of str, not {kind}"
            )));
        };
        let holds = match arguments.function() {
            "startswith" => text.starts_with(affix),
            _ => text.ends_with(affix),
        };
        if holds {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn search(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let sought = arguments.required_text(0, "sub")?;
    let part = selected(text, arguments)?;
    let method = arguments.function();
    if method == "count" {
        return Ok(Value::from(part.map_or(0, |(part, _)| part.matches(sought.as_str()).count())));
    }
    let found = part.and_then(|(part, start)| {
        let byte = match method {
            "find" | "index" => part.find(sought.as_str()),
            _ => part.rfind(sought.as_str()),
        };
        Some(start + part[..byte?].chars().count())
    });
    match found {
        Some(index) => Ok(Value::from(index)),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(error("substring not found")),
    }
}

/// `text` with the first `count` occurrences replaced; all where `count` is negative.
pub fn replace(text: &str, old: &str, new: &str, count: i64) -> String {
    match usize::try_from(count) {
        Ok(count) => text.replacen(old, new, count),
        Err(_) => text.replace(old, new),
    }
}

fn split(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let separator = arguments.text(0, "sep")?;
    let most = arguments.integer(1, "maxsplit")?.unwrap_or(-1);
    arguments.finish(2)?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let from_right = arguments.function() == "rsplit";
    let parts: Vec<&str> = match separator.as_deref() {
        Some("") => return Err(error("empty separator")),
        Some(separator) if from_right => {
            let mut parts: Vec<_> = text.rsplitn(most.saturating_add(1), separator).collect();
            parts.reverse();
            parts
        }
        Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
        None => words(text, most, from_right),
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The words between whitespace; after `most` of them the rest is one.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, !from_right, from_right);
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let border = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(border) = border else {
            parts.push(rest);
            break;
        };
        let (left, right) = rest.split_at(border);
        let right_word = strip(right, None, true, false);
        match from_right {
            true => {
                parts.push(right_word);
                rest = strip(left, None, false, true);
            }
            false => {
                parts.push(left);
                rest = right_word;
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// The lines of a text, split at all line ends of Python's `splitlines`.
pub fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        let end = &rest[at..];
        let width = match end.starts_with("\r\n") {
            true => 2,
            false => end.chars().next().map_or(1, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn partition(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let separator = arguments.required_text(0, "sep")?;
    arguments.finish(1)?;
    if separator.is_empty() {
        return Err(error("empty separator"));
    }
    let from_right = arguments.function() == "rpartition";
    let found = match from_right {
        true => text.rsplit_once(separator.as_str()),
        false => text.split_once(separator.as_str()),
    };
    let parts = match found {
        Some((before, after)) => [before, separator.as_str(), after],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn join(separator: &str, arguments: &Arguments) -> Result<Value, Error> {
    let items = iterate(&arguments.required(0, "iterable")?)?;
    arguments.finish(1)?;
    let mut out = String::new();
    for (index, item) in items.iter().enumerate() {
        let Some(text) = item.as_str().filter(|_| item.kind() == ValueKind::String) else {
            let kind = type_name(item);
            return Err(error(format!(
                "sequence item {index}: expected str instance, {kind} found"
            )));
        };
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
        bounded(out.len())?;
    }
    Ok(Value::from(out))
}

fn format(text: &str, arguments: &Arguments) -> Result<Value, Error> {
    let too_wide = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4);
    if too_wide {
        return Err(error("a format field is wider than 9999"));
    }
    let mut values = arguments.values().to_vec();
    values.push(Value::from(arguments.named().clone()));
    formatting::format(FormatStyle::StrFormat, text, &values).map(Value::from)
}

/// Refuses results that are far longer than any prompt.
fn bounded(bytes: usize) -> Result<(), Error> {
    const MOST: usize = 256 << 20;
    if bytes > MOST {
        return Err(error(format!("a string has {bytes} bytes, expected at most {MOST}")));
    }
    Ok(())
}
