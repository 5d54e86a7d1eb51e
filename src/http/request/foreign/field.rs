//! A field of other servers, and the values under which it changes nothing.

use serde_json::Value;

/// Which object a field stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The body itself.
    Body,
    /// One of `messages`.
    Message,
    /// One part of a message's `content`.
    Part,
    /// `stream_options`.
    StreamOptions,
}

/// A field of other servers.
#[derive(Debug)]
pub struct Foreign {
    pub place: Place,
    pub names: &'static [&'static str],
    pub neutral: Neutral,
    /// Why no other value is possible, or what to use instead; why any value is, where all are.
    pub reason: &'static str,
}

/// The values that are accepted.
#[derive(Debug)]
pub enum Neutral {
    /// All: the field has no effect on an answer of this server.
    Any,
    /// Those equal to one of these JSON texts.
    Only(&'static [&'static str]),
    /// Biases of 0, in any form.
    Zeros,
    /// An object whose `type` is `text`.
    Text,
}

impl Foreign {
    /// Whether the field changes nothing with this value.
    pub fn accepts(&self, value: &Value) -> bool {
        match self.neutral {
            Neutral::Any => true,
            Neutral::Only(texts) => texts
                .iter()
                .filter_map(|text| serde_json::from_str(text).ok())
                .any(|neutral| same(value, &neutral)),
            Neutral::Zeros => is_zero(value),
            Neutral::Text => {
                value.get("type").is_none_or(|kind| kind == "text") && value.is_object()
            }
        }
    }

    /// Why the value `got` is refused.
    pub fn refusal(&self, got: &str) -> String {
        let expected = match self.neutral {
            Neutral::Any => "any value".to_owned(),
            Neutral::Only([]) => return format!("got {got}; {}", self.reason),
            Neutral::Only(texts) => texts.join(" or "),
            Neutral::Zeros => "biases of 0".to_owned(),
            Neutral::Text => "{\"type\": \"text\"}".to_owned(),
        };
        format!("got {got}, expected {expected}; {}", self.reason)
    }
}

/// Equality of JSON in which 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b,
    }
}

/// No bias: `{}`, `{"50256": 0}`, `[]`, `[[50256, 0.0]]`.
fn is_zero(bias: &Value) -> bool {
    let zero = |value: &Value| value.as_f64() == Some(0.0);
    match bias {
        Value::Object(map) => map.values().all(zero),
        Value::Array(pairs) => pairs.iter().all(|pair| pair.get(1).is_some_and(zero)),
        _ => false,
    }
}
