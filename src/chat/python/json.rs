//! `tojson`: Python's `json.dumps`.

use std::fmt::Write;

use minijinja::{Error, State, Value, value::ValueKind};

use super::{
    arguments::Arguments,
    operators, text,
    values::{error, is_dict, iterate, pairs, type_name},
};

/// The options of `json.dumps`.
struct Style {
    ascii: bool,
    sort: bool,
    /// Indentation of each level; `None` puts everything on one line.
    indent: Option<String>,
    between_items: String,
    after_key: String,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn to_json(_: &mut State, arguments: &Arguments) -> Result<Value, Error> {
    let value = arguments.required(0, "x")?;
    let indent = match arguments.get(2, "indent") {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = arguments.integer(2, "indent")?.unwrap_or(0).clamp(0, 64);
                " ".repeat(width as usize)
            }
        }),
    };
    let separators = match arguments.get(3, "separators") {
        None => None,
        Some(separators) if separators.is_none() => None,
        Some(separators) => {
            let pair = iterate(&separators)?;
            let both = pair.iter().filter_map(|item| item.as_str().map(str::to_owned));
            match both.collect::<Vec<_>>().as_slice() {
                [between_items, after_key] if pair.len() == 2 => {
                    Some((between_items.clone(), after_key.clone()))
                }
                _ => return Err(error("tojson() argument separators must be two strings")),
            }
        }
    };
    let (between_items, after_key) = separators.unwrap_or_else(|| {
        let between = if indent.is_some() { "," } else { ", " };
        (between.to_owned(), ": ".to_owned())
    });
    let style = Style {
        ascii: arguments.flag(1, "ensure_ascii"),
        sort: arguments.flag(4, "sort_keys"),
        indent,
        between_items,
        after_key,
    };
    arguments.finish(5)?;
    let mut out = String::new();
    style.write(&value, 1, &mut out)?;
    Ok(Value::from(out))
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.quote(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.group(('[', ']'), items.len(), depth, out, |index, out| {
                    self.write(&items[index], depth + 1, out)
                })?;
            }
            ValueKind::Map if is_dict(value) => {
                let mut items = pairs(value);
                if self.sort {
                    operators::sort(&mut items, |(key, _)| key.clone())?;
                }
                self.group(('{', '}'), items.len(), depth, out, |index, out| {
                    let (key, item) = &items[index];
                    self.quote(&key_text(key)?, out);
                    out.push_str(&self.after_key);
                    self.write(item, depth + 1, out)
                })?;
            }
            _ => {
                let kind = type_name(value);
                return Err(error(format!("Object of type {kind} is not JSON serializable")));
            }
        }
        Ok(())
    }

    fn group(
        &self,
        (open, close): (char, char),
        count: usize,
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for index in 0..count {
            if index > 0 {
                out.push_str(&self.between_items);
            }
            self.line(depth, out);
            item(index, out)?;
        }
        if count > 0 {
            self.line(depth - 1, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn quote(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()).unwrap_or(f64::NAN) {
        number if number.is_nan() => "NaN".to_owned(),
        number if number.is_infinite() => {
            if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
        }
        number => text::float(number),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(text::str(key)),
        ValueKind::Number => Ok(number(key)),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        _ => Err(error(format!(
            "keys must be str, int, float, bool or None, not {}",
            type_name(key)
        ))),
    }
}
