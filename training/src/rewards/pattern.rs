//! Form: regular expressions and JSON.

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a regular expression must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Match {
    /// Somewhere in the response.
    #[default]
    Search,
    /// Over the whole response, trimmed.
    Full,
    /// Nowhere.
    Absent,
}

/// Compiles `pattern`; the engine runs in linear time whatever the pattern is.
pub fn compile(pattern: &str, how: Match) -> Result<Regex, regex::Error> {
    match how {
        Match::Full => Regex::new(&format!(r"\A(?:{pattern})\z")),
        Match::Search | Match::Absent => Regex::new(pattern),
    }
}

/// 1 when the pattern of [`compile`] matches as asked, else 0.
pub fn matches(regex: &Regex, how: Match, response: &str) -> f64 {
    let held = match how {
        Match::Search => regex.is_match(response),
        Match::Full => regex.is_match(response.trim()),
        Match::Absent => !regex.is_match(response),
    };
    f64::from(u8::from(held))
}

/// 1 when the response is one JSON value (an object with all of `keys`, when any are asked for),
/// else 0.
pub fn valid_json(response: &str, keys: &[String]) -> f64 {
    let value: Option<Value> = serde_json::from_str(response).ok();
    let valid = match value {
        None => false,
        Some(Value::Object(object)) => keys.iter().all(|key| object.contains_key(key)),
        Some(_) => keys.is_empty(),
    };
    f64::from(u8::from(valid))
}
