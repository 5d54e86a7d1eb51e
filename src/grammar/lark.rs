//! Parts of Lark grammars as text.

use std::fmt;

use serde_json::Value;

/// Text as a literal of a Lark grammar; nothing for the empty text, which Lark has no literal of.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Lark's strings are JSON's.
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}", Value::from(self.0)) }
    }
}

/// JSON that a schema describes, as [`super::prepare_schema`] gave it.
#[derive(Debug, Clone, Copy)]
pub struct Json<'a>(pub &'a Value);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%json {}", self.0)
    }
}
