//! Request bodies: bytes → [`Fields`], from which every value is taken by name with its bounds.
//!
//! Errors name the field with its path, the value that was given and what would be right. A member
//! that is `null` is absent, at every depth but inside schemas and the arguments of calls. A key that
//! occurs twice is refused, because which of the two counts is a guess.

use std::{cell::Cell, collections::HashSet, fmt, ops::RangeInclusive};

use serde::{Deserializer, de};
use serde_json::{Map, Value};

use super::foreign;
pub use super::foreign::Place;
use crate::http::error::{ApiError, shorten, show};

/// Members whose value is JSON of its own, in which null is a value like others.
const VERBATIM: &[&str] = &["guided_json", "input_schema", "json", "parameters", "schema"];

/// Floats up to here are told from each other by 1.
const EXACT: f64 = (1_u64 << 53) as f64;

/// How values are read: without repeated keys, and mostly without members that are `null`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strict {
    /// Members that are `null` are absent.
    Plain,
    /// Members that are `null` stay.
    Verbatim,
    /// The input of a call, an object that is read verbatim, or of a model, which is a list.
    Input,
}

impl Strict {
    /// How the member `key` is read.
    fn member(self, key: &str) -> Self {
        match self {
            Self::Verbatim | Self::Input => Self::Verbatim,
            Self::Plain if VERBATIM.contains(&key) => Self::Verbatim,
            Self::Plain if key == "input" => Self::Input,
            Self::Plain => Self::Plain,
        }
    }

    /// How an item is read.
    fn item(self) -> Self {
        if self == Self::Verbatim { self } else { Self::Plain }
    }
}

/// Reads a value of a body that has a bound on its values: one of two bytes takes the memory of forty.
#[derive(Clone, Copy)]
struct Reader<'a> {
    how: Strict,
    /// Values that may come yet; `None`: there were more.
    left: &'a Cell<Option<usize>>,
}

impl<'de> de::DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.left.set(self.left.get().and_then(|left| left.checked_sub(1)));
        match self.left.get() {
            Some(_) => deserializer.deserialize_any(self),
            None => Err(de::Error::custom("too many values")),
        }
    }
}

impl<'de> de::Visitor<'de> for Reader<'_> {
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
        let reader = Self { how: self.how.item(), ..self };
        while let Some(item) = items.next_element_seed(reader)? {
            list.push(item);
        }
        Ok(list.into())
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let (mut map, mut nulls) = (Map::new(), HashSet::new());
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) || nulls.contains(&key) {
                return Err(de::Error::custom(format_args!(
                    "key {:?} occurs twice",
                    shorten(&key)
                )));
            }
            let reader = Self { how: self.how.member(&key), ..self };
            match entries.next_value_seed(reader)? {
                Value::Null if self.how == Strict::Plain => drop(nulls.insert(key)),
                value => drop(map.insert(key, value)),
            }
        }
        Ok(map.into())
    }
}

/// The value of a body, of at most so many values.
fn strict(bytes: &[u8], most: usize) -> Result<Value, ApiError> {
    let left = Cell::new(Some(most));
    let reader = Reader { how: Strict::Plain, left: &left };
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let read = de::DeserializeSeed::deserialize(reader, &mut text);
    read.and_then(|value| text.end().map(|()| value)).map_err(|error| match left.get() {
        None => ApiError::TooManyValues { limit: most },
        Some(_) => ApiError::Json(error.to_string()),
    })
}

/// An object whose fields are taken one by one; [`Fields::finish`] decides what nobody took.
#[derive(Debug)]
pub struct Fields {
    place: Place,
    path: String,
    map: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Parses a body that must be a JSON object, of at most so many values.
    pub fn parse(bytes: &[u8], most_values: usize) -> Result<Self, ApiError> {
        let value = strict(bytes, most_values)?;
        let place = Place::Body;
        match value {
            Value::Object(map) => Ok(Self { place, path: String::new(), map, known: Vec::new() }),
            other => Err(ApiError::Json(format!(
                "the top level is {}, expected an object",
                show(&other)
            ))),
        }
    }

    /// The fields of an object inside a body; `path` names it.
    pub fn of(place: Place, path: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { place, path, map, known: Vec::new() }),
            other => Err(ApiError::value(path, show(&other), "an object")),
        }
    }

    /// The path of a field of this object.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field's value.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.shift_remove(name)
    }

    /// Sets a field that another one says too.
    pub fn put(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    /// The field's value, which stays for the table of foreign fields to decide.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// A number within `bounds`.
    pub fn number(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let (low, high) = (*bounds.start(), *bounds.end());
        let number = |value: &Value| value.as_f64().filter(|number| bounds.contains(number));
        self.convert(name, number, || format!("a number in [{low}, {high}]"))
    }

    /// A whole number within `bounds`.
    pub fn integer<T>(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<T>,
    ) -> Result<Option<T>, ApiError>
    where
        T: TryFrom<i128> + PartialOrd + fmt::Display,
    {
        let number = |value: &Value| {
            T::try_from(whole(value)?).ok().filter(|number| bounds.contains(number))
        };
        let expected = || format!("a whole number in [{}, {}]", bounds.start(), bounds.end());
        self.convert(name, number, expected)
    }

    /// Any 64-bit whole number; a negative one stands for its two's complement.
    pub fn bits(&mut self, name: &'static str) -> Result<Option<u64>, ApiError> {
        // A float beyond 2⁵³ may stand for another number, which is not a seed to be repeated.
        let exact =
            |value: &Value| !value.is_f64() || value.as_f64().is_some_and(|x| x.abs() <= EXACT);
        let bits = |value: &Value| {
            let number = whole(value).filter(|_| exact(value))?;
            u64::try_from(number).ok().or_else(|| i64::try_from(number).ok().map(|n| n as u64))
        };
        self.convert(name, bits, || "a whole number of at most 64 bits".to_owned())
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.convert(name, Value::as_bool, || "true or false".to_owned())
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

    /// What `convert` makes of the field's value, or that `expected` was expected.
    pub fn convert<T>(
        &mut self,
        name: &'static str,
        convert: impl FnOnce(&Value) -> Option<T>,
        expected: impl FnOnce() -> String,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match convert(&value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.refuse(name, &value, expected())),
        }
    }

    /// The error for a value of this object.
    pub fn refuse(&self, name: &str, value: &Value, expected: impl fmt::Display) -> ApiError {
        ApiError::value(self.path(name), show(value), expected)
    }

    /// The error for a field that must be given.
    pub fn missing(&self, name: &str, expected: impl fmt::Display) -> ApiError {
        ApiError::value(self.path(name), "absent", expected)
    }

    /// Decides the fields that nobody took: those of other servers by the table in [`foreign`], any
    /// other is refused.
    pub fn finish(self) -> Result<(), ApiError> {
        for (name, value) in &self.map {
            match foreign::find(self.place, name) {
                Some(field) if field.accepts(value) => {}
                Some(field) => {
                    let (param, reason) = (self.path(name), field.refusal(&show(value)));
                    return Err(ApiError::Unsupported { param, reason });
                }
                None => {
                    return Err(ApiError::UnknownField {
                        suggestion: nearest(name, &self.known).map(|near| self.path(near)),
                        name: self.path(&shorten(name)),
                        known: self.known.join(", "),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The known field that `name` is probably a misspelling of.
fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-', ' '], "");
    // Longer than any field; comparing takes the product of both lengths.
    let name = plain(&name.chars().take(64).collect::<String>());
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, &plain(candidate));
    let (near, distance) = known
        .iter()
        .map(|known| (*known, distance(known)))
        .min_by_key(|(_, distance)| *distance)?;
    let allowed = if near.len() <= 2 { 0 } else { (near.len() / 4).max(1) };
    (distance <= allowed).then_some(near)
}

/// A whole number, also when it is written as `16.0` or `1e2`. Beyond ±2¹²⁷ the nearest one that
/// fits: no field's bounds reach so far.
pub fn whole(value: &Value) -> Option<i128> {
    let float = |number: f64| (number.fract() == 0.0).then_some(number as i128);
    value
        .as_u64()
        .map(i128::from)
        .or_else(|| value.as_i64().map(i128::from))
        .or_else(|| value.as_f64().and_then(float))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
        Fields::parse(bytes, 100)
    }

    #[test]
    fn a_body_of_very_many_values_is_refused_before_it_takes_their_memory() {
        let keys: String = (0..200).map(|key| format!("\"{key}\": null,")).collect();
        for (open, many, close) in [
            ("[", "1,".repeat(200), "1]"),
            ("[", "{},".repeat(200), "1]"),
            ("{", keys, "\"x\": 1}"),
        ] {
            let body = format!("{{\"a\": {open}{many}{close}}}");
            assert_eq!(parse(body.as_bytes()).unwrap_err(), ApiError::TooManyValues { limit: 100 });
        }
        assert!(parse(format!("{{\"a\": [{}1]}}", "1,".repeat(97)).as_bytes()).is_ok());
    }

    fn fields(text: &str) -> Fields {
        parse(text.as_bytes()).unwrap()
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
            let error = parse(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{body}: {error}");
        }
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        let deep = Fields::parse(deep.as_bytes(), 1_000_000).unwrap_err().to_string();
        assert!(deep.contains("recursion limit"), "{deep}");
        assert!(parse(b"{\"a\": \"\xff\"}").is_err());
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
        let mut inner = Fields::of(Place::Message, "a", value).unwrap();
        assert_eq!(inner.text("b").unwrap_err().to_string(), "a.b is 1, expected a string");
    }

    #[test]
    fn a_near_miss_is_close_for_the_length_of_its_name() {
        let known = ["n", "stop", "preference", "max_tokens"];
        for (name, near) in [
            ("preferance", Some("preference")),
            ("preefrence", Some("preference")),
            ("maxTokens", Some("max_tokens")),
            ("stops", Some("stop")),
            ("top", Some("stop")),
            ("N", Some("n")),
            ("m", None),
            ("spot_check", None),
            ("prefs", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), near, "{name}");
        }
    }

    #[test]
    fn a_long_value_is_cut_in_the_message() {
        let text = format!("{{\"a\": \"{}\"}}", "é".repeat(5000));
        let error = fields(&text).flag("a").unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }
}
