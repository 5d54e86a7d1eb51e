//! What an answer is held to.

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::{GrammarError, lark::Text, schema};

/// Longest text of a constraint, bytes.
const MAX_BYTES: usize = 256 << 10;
const MAX_CHOICES: usize = 1024;

/// What an answer is held to.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// JSON that a schema describes.
    Schema(Value),
    /// Text that a regular expression matches from its beginning to its end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a grammar in llguidance's dialect of Lark, whose first rule is `start`.
    Lark(String),
}

impl Constraint {
    /// The grammar of llguidance, of bounded size.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, GrammarError> {
        let bytes = match self {
            Self::Schema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        };
        if bytes > MAX_BYTES {
            let reason = format!("it has {bytes} bytes, expected at most {MAX_BYTES}");
            return Err(GrammarError::Invalid(reason));
        }
        match self {
            Self::Schema(schema) => {
                Ok(TopLevelGrammar::from_json_schema(schema::prepare(schema.clone())?))
            }
            Self::Regex(regex) => Ok(TopLevelGrammar::from_regex(regex)),
            Self::Choice(texts) => choice(texts).map(TopLevelGrammar::from_lark),
            Self::Lark(grammar) => match other_dialect(grammar) {
                None => Ok(TopLevelGrammar::from_lark(grammar.clone())),
                Some(dialect) => {
                    let reason = format!("it is {dialect}, expected Lark, such as start: /[a-z]+/");
                    Err(GrammarError::Invalid(reason))
                }
            },
        }
    }
}

/// A grammar of given texts.
fn choice(texts: &[String]) -> Result<String, GrammarError> {
    if texts.is_empty() || texts.len() > MAX_CHOICES || texts.iter().any(String::is_empty) {
        let reason = format!("expected 1 to {MAX_CHOICES} texts, none of them empty");
        return Err(GrammarError::Invalid(reason));
    }
    let texts: Vec<String> = texts.iter().map(|text| Text(text).to_string()).collect();
    Ok(format!("start: {}", texts.join(" | ")))
}

/// Names of what other servers' grammars are written in, by signs that Lark does not have.
fn other_dialect(grammar: &str) -> Option<&'static str> {
    grammar.contains("::=").then_some("GBNF or EBNF")
}
