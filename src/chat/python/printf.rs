//! `format % values`.

use std::{iter::Peekable, str::Chars};

use minijinja::{
    Error, State, Value,
    formatting::{self, FormatStyle},
    value::ValueKind,
};

use super::{
    text,
    values::{error, is_dict, is_tuple, iterate, type_name},
};
use crate::chat::limits;

/// Widest field, and most digits after the point.
const MAX_WIDTH: usize = 4096;

/// Python's `format % values`: `values` are a tuple, a mapping for `%(name)s`, or a single value.
pub fn format(state: &mut State, format: &str, values: &Value) -> Result<Value, Error> {
    let positional = match is_tuple(values) {
        true => iterate(values)?,
        false => vec![values.clone()],
    };
    let mut values = Values { mapping: values, positional, next: 0 };
    let mut out = String::with_capacity(format.len());
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let field = Field::parse(&mut characters, &mut values)?;
        if field.conversion == '%' {
            out.push('%');
        } else {
            let value = values.take(field.key.as_deref())?;
            out.push_str(&field.format(&value)?);
        }
        limits::work(state, out.len())?;
    }
    // Lists and mappings may hold more values than the format uses.
    let exact = is_tuple(values.mapping)
        || matches!(
            values.mapping.kind(),
            ValueKind::String | ValueKind::Number | ValueKind::Bool | ValueKind::None
        );
    if values.next < values.positional.len() && exact {
        return Err(error("not all arguments converted during string formatting"));
    }
    Ok(Value::from(out))
}

/// The values that fields take in order or by name.
struct Values<'a> {
    mapping: &'a Value,
    positional: Vec<Value>,
    next: usize,
}

impl Values<'_> {
    fn take(&mut self, key: Option<&str>) -> Result<Value, Error> {
        let Some(key) = key else {
            let value = self.positional.get(self.next).cloned();
            self.next += 1;
            return value.ok_or_else(|| error("not enough arguments for format string"));
        };
        match self.mapping.get_item(&Value::from(key)) {
            Ok(value) if is_dict(self.mapping) && !value.is_undefined() => Ok(value),
            _ if is_dict(self.mapping) => Err(error(format!("key {key:?} is missing"))),
            _ => Err(error("format requires a mapping")),
        }
    }
}

/// `%(key)-08.3f`, parsed.
struct Field {
    key: Option<String>,
    flags: String,
    width: Option<usize>,
    precision: Option<usize>,
    conversion: char,
}

impl Field {
    fn parse(characters: &mut Peekable<Chars>, values: &mut Values) -> Result<Self, Error> {
        let mut key = None;
        if characters.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            loop {
                match characters.next() {
                    Some(')') => break,
                    Some(character) => name.push(character),
                    None => return Err(error("incomplete format key")),
                }
            }
            key = Some(name);
        }
        let mut flags = String::new();
        while let Some(flag) = characters.next_if(|c| "#0- +".contains(*c)) {
            flags.push(flag);
        }
        let mut width = number(characters, values)?;
        if let Some(negative) = width.filter(|width| *width < 0) {
            flags.push('-');
            width = Some(-negative);
        }
        let precision = match characters.next_if_eq(&'.') {
            Some(_) => Some(number(characters, values)?.unwrap_or(0).max(0)),
            None => None,
        };
        while characters.next_if(|c| "hlL".contains(*c)).is_some() {}
        let conversion = characters.next().ok_or_else(|| error("incomplete format"))?;
        let bounded = |size: i64| {
            usize::try_from(size)
                .ok()
                .filter(|size| *size <= MAX_WIDTH)
                .ok_or_else(|| error(format!("a format field is wider than {MAX_WIDTH}")))
        };
        Ok(Self {
            key,
            flags,
            width: width.map(bounded).transpose()?,
            precision: precision.map(bounded).transpose()?,
            conversion,
        })
    }

    fn format(&self, value: &Value) -> Result<String, Error> {
        let converted = match self.conversion {
            's' => text::str(value),
            'r' => text::repr(value),
            'c' if value.kind() == ValueKind::String => text::str(value),
            _ => return self.number(value),
        };
        let cut = match self.precision {
            Some(precision) if self.conversion != 'c' => {
                converted.chars().take(precision).collect()
            }
            _ => converted,
        };
        let padding = " ".repeat(self.width.unwrap_or(0).saturating_sub(cut.chars().count()));
        Ok(if self.flags.contains('-') { cut + &padding } else { padding + &cut })
    }

    fn number(&self, value: &Value) -> Result<String, Error> {
        if !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
            let (conversion, kind) = (self.conversion, type_name(value));
            return Err(error(format!("%{conversion} format: a number is required, not {kind}")));
        }
        let mut spec = format!("%{}", self.flags);
        if let Some(width) = self.width {
            spec += &width.to_string();
        }
        if let Some(precision) = self.precision {
            spec += &format!(".{precision}");
        }
        let truncated = |value: &Value| match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => Value::from(number.trunc() as i64),
            _ => value.clone(),
        };
        let (value, conversion) = match self.conversion {
            'd' | 'i' | 'u' => (truncated(value), 'd'),
            other => (value.clone(), other),
        };
        spec.push(conversion);
        formatting::format(FormatStyle::Printf, &spec, &[value])
    }
}

/// A width or precision: digits, or `*` for the next value.
fn number(characters: &mut Peekable<Chars>, values: &mut Values) -> Result<Option<i64>, Error> {
    if characters.next_if_eq(&'*').is_some() {
        let value = values.take(None)?;
        return value.as_i64().map(Some).ok_or_else(|| error("* wants int"));
    }
    let mut digits = String::new();
    while let Some(digit) = characters.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    Ok(Some(digits.parse().unwrap_or(i64::MAX)))
}
