//! `str()` and `repr()`.

use std::fmt::Write;

use minijinja::{Error, ErrorKind, Output, State, Value, value::ValueKind};

use super::values::{is_dict, is_tuple, pairs};
use crate::chat::limits;

/// Prints a value as Python's `str()` does.
pub fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = str(value);
    limits::output(state, text.len())?;
    out.write_str(&text).map_err(|_| Error::from(ErrorKind::WriteFailure))
}

/// Python's `str(value)`; an undefined value is empty.
pub fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => {
            let mut out = String::new();
            write(value, &mut out);
            out
        }
    }
}

/// Python's `repr(value)`.
pub fn repr(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => _ = write!(out, "{value}"),
        ValueKind::Number => {
            out.push_str(&f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float))
        }
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let (open, close) = if is_tuple(value) { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                write(&item, out);
                count += 1;
            }
            if count == 1 && is_tuple(value) {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map if is_dict(value) => {
            out.push('{');
            for (index, (key, item)) in pairs(value).iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write(key, out);
                out.push_str(": ");
                write(item, out);
            }
            out.push('}');
        }
        ValueKind::Iterable => out.push_str("<generator object>"),
        _ => _ = write!(out, "{value}"),
    }
}

/// The shortest decimal form that reads back as the same number; exponents are written as in
/// `1e-05` and `1e+16`.
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Debug switches to an exponent where Python does, but writes 1e16 and 1e-5.
    let text = format!("{number:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or_default();
            format!("{digits}e{exponent:+03}")
        }
    }
}

/// The string in single quotes, or in double quotes if it holds single and no double ones.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` of one character.
pub fn is_printable(character: char) -> bool {
    // Rust's escapes leave out the same categories (other, and separators except the space) when
    // the character does not stand first, where it also escapes marks that combine.
    let mut escaped = ['a', character].iter().collect::<String>().escape_debug().count();
    if matches!(character, '"' | '\'' | '\\') {
        escaped = 2;
    }
    escaped == 2
}

/// The string with HTML's special characters replaced by entities.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('>', "&gt;")
        .replace('<', "&lt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;")
}
