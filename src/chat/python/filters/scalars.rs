//! Filters of strings, numbers and any value.

use minijinja::{
    Error, State, Value, filters,
    value::{Kwargs, Tuple, ValueKind},
};

use crate::chat::python::{
    access,
    arguments::Arguments,
    printf, strings, text,
    values::{error, is_dict, type_name, undefined},
};

pub fn attr(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let (value, name) = (arguments.value()?, arguments.required(1, "name")?);
    arguments.finish(2)?;
    match value.kind() {
        // `attr` reads attributes, not the items of a dict.
        ValueKind::Map if is_dict(&value) => {
            let found = access::attribute(&value, &name)?;
            Ok(if access::is_method(&found) { found } else { Value::UNDEFINED })
        }
        _ => access::attribute(&value, &name),
    }
}

pub fn center(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let width = arguments.integer(1, "width")?.unwrap_or(80);
    arguments.finish(2)?;
    strings::padded(&text::str(&arguments.value()?), width, " ", "center")
}

pub fn default(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    let other = arguments.get(1, "default_value").unwrap_or_else(|| Value::from(""));
    let lax = arguments.flag(2, "boolean");
    arguments.finish(3)?;
    Ok(if value.is_undefined() || (lax && !value.is_true()) { other } else { value })
}

pub fn escape(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    arguments.finish(1)?;
    if value.is_safe() && arguments.function() != "forceescape" {
        return Ok(value);
    }
    Ok(Value::from_safe_string(text::escape(&text::str(&value))))
}

pub fn safe(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    arguments.finish(1)?;
    Ok(Value::from_safe_string(text::str(&value)))
}

pub fn string(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    arguments.finish(1)?;
    Ok(if value.kind() == ValueKind::String { value } else { Value::from(text::str(&value)) })
}

pub fn replace(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = text::str(&arguments.value()?);
    let old = text::str(&arguments.required(1, "old")?);
    let new = text::str(&arguments.required(2, "new")?);
    let count = arguments.integer(3, "count")?.unwrap_or(-1);
    arguments.finish(4)?;
    Ok(Value::from(strings::replace(&value, &old, &new, count)))
}

pub fn trim(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = text::str(&arguments.value()?);
    let characters = arguments.text(1, "chars")?;
    arguments.finish(2)?;
    Ok(Value::from(strings::strip(&value, characters.as_deref(), true, true)))
}

/// Words begin after spaces, hyphens and opening brackets; each gets a capital.
pub fn title(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = text::str(&arguments.value()?);
    arguments.finish(1)?;
    let is_border = |c: char| strings::is_space(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(value.len());
    let mut in_word = false;
    for character in value.chars() {
        match in_word {
            true => out.extend(character.to_lowercase()),
            false => out.extend(character.to_uppercase()),
        }
        in_word = !is_border(character);
    }
    Ok(Value::from(out))
}

pub fn indent(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.required_text(0, "s")?;
    let indention = match arguments.get(1, "width") {
        Some(width) if width.kind() == ValueKind::String => text::str(&width),
        _ => " ".repeat(arguments.integer(1, "width")?.unwrap_or(4).clamp(0, 4096) as usize),
    };
    let (first, blank) = (arguments.flag(2, "first"), arguments.flag(3, "blank"));
    arguments.finish(4)?;
    let with_end = value + "\n";
    let mut out = if first { indention.clone() } else { String::new() };
    for (index, line) in strings::lines(&with_end, false).into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&indention);
            }
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

pub fn int(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    let default = arguments.get(1, "default").unwrap_or(Value::from(0));
    let base = arguments.integer(2, "base")?.unwrap_or(10);
    arguments.finish(3)?;
    let truncated = |number: f64| number.is_finite().then(|| Value::from(number.trunc() as i128));
    let parsed = match value.kind() {
        ValueKind::Undefined => return Err(undefined()),
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value),
        ValueKind::Number => f64::try_from(value).ok().and_then(truncated),
        ValueKind::String => {
            let digits = text::str(&value);
            let digits = strings::strip(&digits, None, true, true);
            integer(digits, base).or_else(|| truncated(number(digits)?))
        }
        _ => None,
    };
    Ok(parsed.unwrap_or(default))
}

/// Python's `int(digits, base)`.
fn integer(digits: &str, base: i64) -> Option<Value> {
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    let (negative, digits) = match digits.strip_prefix(['+', '-']) {
        Some(rest) => (digits.starts_with('-'), rest),
        None => (false, digits),
    };
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let lower = digits.to_ascii_lowercase();
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    if digits.is_empty() || digits.starts_with(['_', '+', '-']) || digits.ends_with('_') {
        return None;
    }
    let number = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(Value::from(if negative { -number } else { number }))
}

/// Python's `float(digits)`.
fn number(digits: &str) -> Option<f64> {
    digits.replace('_', "").parse().ok()
}

pub fn float(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    let default = arguments.get(1, "default").unwrap_or(Value::from(0.0));
    arguments.finish(2)?;
    let parsed = match value.kind() {
        ValueKind::Undefined => return Err(undefined()),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value).ok(),
        ValueKind::String => number(strings::strip(&text::str(&value), None, true, true)),
        _ => None,
    };
    Ok(parsed.map_or(default, Value::from))
}

pub fn round(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    let precision = arguments.integer(1, "precision")?.unwrap_or(0);
    let method = arguments.text(2, "method")?.unwrap_or_else(|| "common".to_owned());
    arguments.finish(3)?;
    let precision =
        i32::try_from(precision).map_err(|_| error("round() precision is too large"))?;
    let value = match value.kind() {
        ValueKind::Undefined => return Err(undefined()),
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if method != "common" => Value::from(f64::try_from(value)?),
        _ => value,
    };
    filters::round(
        value,
        Some(precision),
        Some(&method),
        Kwargs::from_iter::<[(&str, Value); 0]>([]),
    )
}

pub fn format(state: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let format = arguments.value()?;
    let positional = arguments.values().get(1..).unwrap_or_default();
    let values = match positional {
        [] if arguments.named().args().next().is_some() => Value::from(arguments.named().clone()),
        values => Value::from(Tuple::from(values)),
    };
    printf::format(state, &text::str(&format), &values)
}

pub fn truncate(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.required(0, "s")?;
    let size = |given: Option<i64>, default| usize::try_from(given.unwrap_or(default)).unwrap_or(0);
    let length = size(arguments.integer(1, "length")?, 255);
    let kill_words = arguments.flag(2, "killwords");
    let end = arguments.text(3, "end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = size(arguments.integer(4, "leeway")?, 5);
    arguments.finish(5)?;
    let ending = end.chars().count();
    if length < ending {
        return Err(error(format!("expected length >= {ending}, got {length}")));
    }
    let own = match value.as_str() {
        Some(text) => text.chars().count(),
        None if value.is_undefined() => 0,
        None => value
            .len()
            .ok_or_else(|| error(format!("object of type '{}' has no len()", type_name(&value))))?,
    };
    if own <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let Some(text) = value.as_str() else {
        return Err(error(format!("{} cannot be cut", type_name(&value))));
    };
    let cut: String = text.chars().take(length - ending).collect();
    let kept = match cut.rsplit_once(' ') {
        Some((before, _)) if !kill_words => before,
        _ => cut.as_str(),
    };
    Ok(Value::from(kept.to_owned() + &end))
}

/// `capitalize`, `lower` and `upper`.
pub fn in_case(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = text::str(&arguments.value()?);
    arguments.finish(1)?;
    strings::call(&value, &Arguments::split(arguments.function(), &[])?)
}

pub fn abs(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.value()?;
    arguments.finish(1)?;
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number => filters::abs(value),
        ValueKind::Undefined => Err(undefined()),
        _ => Err(error(format!("bad operand type for abs(): '{}'", type_name(&value)))),
    }
}

pub fn word_count(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = text::str(&arguments.value()?);
    arguments.finish(1)?;
    let words = value.split(|c: char| !c.is_alphanumeric() && c != '_');
    Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
}
