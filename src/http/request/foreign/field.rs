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
    /// `response_format`, and what stands in it.
    Format,
    /// `structured_outputs`.
    StructuredOutputs,
    /// `text` of a response, and `output_config` of a message.
    Output,
    /// `reasoning` of a response.
    Reasoning,
    /// One of `tools`, and one of a message's calls.
    Tool,
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
        }
    }

    /// Why the value `got` is refused.
    pub fn refusal(&self, got: &str) -> String {
        let expected = match self.neutral {
            Neutral::Any => "any value".to_owned(),
            Neutral::Only([]) => return format!("got {got}; {}", self.reason),
            Neutral::Only(texts) => texts.join(" or "),
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
