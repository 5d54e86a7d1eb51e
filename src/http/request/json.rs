//! Request bodies: bytes → [`Fields`], from which every value is taken by name with its bounds.
//!
//! Errors name the field with its path, the value that was given and what would be right. A key
//! that occurs twice is refused, because which of the two counts is a guess.

use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

use crate::http::error::{ApiError, shorten, show};

/// JSON without repeated keys.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Strict(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(list.into())
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom(format_args!(
                            "key {:?} occurs twice",
                            shorten(&key)
                        )));
                    }
                    map.insert(key, entries.next_value::<Strict>()?.0);
                }
                Ok(map.into())
            }
        }

        deserializer.deserialize_any(Visitor).map(Strict)
    }
}

/// An object whose fields are taken one by one; [`Fields::finish`] refuses what nobody took.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Parses a body that must be a JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let Strict(value) =
            serde_json::from_slice(bytes).map_err(|error| ApiError::Json(error.to_string()))?;
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map, known: Vec::new() }),
            other => Err(ApiError::Json(format!(
                "the top level is {}, expected an object",
                show(&other)
            ))),
        }
    }

    /// The fields of an object inside a body; `path` names it.
    pub fn of(path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map, known: Vec::new() }),
            other => Err(ApiError::value(path, show(&other), "an object")),
        }
    }

    /// The path of a field of this object.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field's value; `null` counts as absent.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    /// A number within `bounds`.
    pub fn number(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|number| bounds.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(
                name,
                &value,
                format!("a number in [{}, {}]", bounds.start(), bounds.end()),
            )),
        }
    }

    /// A whole number within `bounds`.
    pub fn integer(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value).filter(|number| bounds.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(
                name,
                &value,
                format!("a whole number in [{}, {}]", bounds.start(), bounds.end()),
            )),
        }
    }

    /// A whole number of either sign within `bounds`.
    pub fn signed(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<i32>,
    ) -> Result<Option<i32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
        match number.filter(|number| bounds.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(
                name,
                &value,
                format!("a whole number in [{}, {}]", bounds.start(), bounds.end()),
            )),
        }
    }

    /// Any 64-bit whole number; a negative one stands for its two's complement.
    pub fn bits(&mut self, name: &'static str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().or_else(|| value.as_i64().map(|number| number as u64)) {
            Some(bits) => Ok(Some(bits)),
            None => Err(self.refuse(name, &value, "a whole number of at most 64 bits")),
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.refuse(name, &other, "true or false")),
        }
    }

    /// A string.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(name, &other, "a string")),
        }
    }

    /// A list.
    pub fn list(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.refuse(name, &other, "a list")),
        }
    }

    /// Takes fields that have no effect here and need none.
    pub fn ignore(&mut self, names: &'static [&'static str]) {
        for name in names {
            self.map.shift_remove(*name);
        }
    }

    /// Refuses a field that cannot be honoured, unless its value asks for what happens anyway.
    pub fn without(
        &mut self,
        name: &str,
        harmless: impl FnOnce(&Value) -> bool,
        reason: &'static str,
    ) -> Result<(), ApiError> {
        match self.map.shift_remove(name) {
            Some(value) if !value.is_null() && !harmless(&value) => {
                Err(ApiError::Unsupported { param: self.path(name), reason })
            }
            _ => Ok(()),
        }
    }

    /// The error for a value of this object.
    pub fn refuse(&self, name: &str, value: &Value, expected: impl fmt::Display) -> ApiError {
        ApiError::value(self.path(name), show(value), expected)
    }

    /// Refuses the first field that nobody took.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::UnknownField {
                name: self.path(&shorten(name)),
                known: self.known.join(", "),
            }),
        }
    }
}

/// A whole number ≥ 0, also when it is written with a fraction of zero (`16.0`).
pub fn whole(value: &Value) -> Option<usize> {
    let float = |number: f64| {
        (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
    };
    value
        .as_u64()
        .or_else(|| value.as_f64().and_then(float))
        .and_then(|number| usize::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_bad_body_is_located_by_line_and_column() {
        for (body, part) in [
            ("", "line 1 column 0"),
            ("{\"a\": }", "line 1 column 7"),
            ("{\"a\": 1,\n \"b\": NaN}", "line 2 column 7"),
            ("{\"a\": 1e999}", "number out of range at line 1 column 11"),
            ("{\"a\": 1, \"a\": 2}", "key \"a\" occurs twice at line 1"),
            ("[1]", "expected an object"),
            ("{\"a\": 1} x", "trailing characters"),
            ("{\"a\": \"\u{1}\"}", "control character"),
        ] {
            let error = Fields::parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{body}: {error}");
        }
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(
            Fields::parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion limit")
        );
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn values_are_checked_where_they_are_taken() {
        let mut f =
            fields(r#"{"t": "hot", "k": 1.5, "n": 2.0, "big": 1e300, "none": null, "x": 3}"#);
        let message = |error: ApiError| error.to_string();
        assert_eq!(
            message(f.number("t", 0.0..=2.0).unwrap_err()),
            "t is \"hot\", expected a number in [0, 2]"
        );
        assert_eq!(
            message(f.integer("k", 1..=5).unwrap_err()),
            "k is 1.5, expected a whole number in [1, 5]"
        );
        assert_eq!(f.integer("n", 1..=5), Ok(Some(2)));
        assert!(f.integer("big", 0..=usize::MAX).is_err());
        assert_eq!(f.text("none"), Ok(None));
        assert_eq!(
            message(f.finish().unwrap_err()),
            "unknown field \"x\"; the fields are t, k, n, big, none"
        );
    }

    #[test]
    fn a_nested_field_is_named_with_its_path() {
        let value = fields(r#"{"a": {"b": 1}}"#).take("a").unwrap();
        let mut inner = Fields::of("a", value).unwrap();
        assert_eq!(inner.text("b").unwrap_err().to_string(), "a.b is 1, expected a string");
    }

    #[test]
    fn a_long_value_is_cut_in_the_message() {
        let text = format!("{{\"a\": \"{}\"}}", "é".repeat(5000));
        let error = fields(&text).flag("a").unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }
}
