//! A preference (μ) or an extrapolation (α) as a request, a model id, a header or a command line
//! writes it, before names are looked up in the soup's [`Menu`](super::Menu).

use serde_json::Value;

const PREFERENCES: &str = "an object of weights by objective, a list of weights in the order of \
                           the objectives, or the name of a preset";
const ALPHAS: &str = "a number, a list in the order of the objectives, or an object by objective";
const WEIGHT: &str = "a finite number ≥ 0";

/// A preference as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// Weights by objective.
    Named(Vec<(String, f64)>),
    /// Weights in the order of the objectives.
    Listed(Vec<f64>),
    /// The name of a preset.
    Preset(String),
}

/// An extrapolation as written.
#[derive(Debug, Clone, PartialEq)]
pub enum AlphaForm {
    /// One α for all objectives.
    Scalar(f64),
    /// α in the order of the objectives.
    Listed(Vec<f64>),
    /// α by objective.
    Named(Vec<(String, f64)>),
}

/// Why what is written is not a preference or an extrapolation of the soup. `field` is the path of
/// the field, header or option that holds it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FormError {
    /// A value that is not acceptable.
    #[error("{field} is {got}, expected {expected}")]
    Value {
        /// Its path.
        field: String,
        /// The value as JSON, or in words.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// A name that no objective of the soup has.
    #[error("{field} names {name:?}, expected objectives of this soup: {known}")]
    Objective {
        /// The path of the form.
        field: String,
        /// The name.
        name: String,
        /// The objectives, comma-separated.
        known: String,
    },
    /// An objective that is named more than once.
    #[error("{field} names {name:?} twice, expected each objective at most once")]
    Repeated {
        /// The path of the form.
        field: String,
        /// The objective.
        name: String,
    },
}

impl FormError {
    /// A value that is not acceptable.
    pub fn value(
        field: impl Into<String>,
        got: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value { field: field.into(), got: got.to_string(), expected: expected.into() }
    }
}

impl Form {
    /// Reads JSON; `field` names it in errors. A member that is `null` counts as left out.
    pub fn from_json(field: &str, value: Value) -> Result<Self, FormError> {
        match value {
            Value::String(name) => Ok(Self::Preset(name)),
            Value::Array(items) => listed(field, &items, WEIGHT).map(Self::Listed),
            Value::Object(map) => named(field, map, WEIGHT).map(Self::Named),
            other => Err(FormError::value(field, other, PREFERENCES)),
        }
    }

    /// Reads a model id or a header: `a=0.7,b=0.3`, `0.7,0.3`, or a preset.
    pub fn from_text(field: &str, text: &str) -> Result<Self, FormError> {
        let parts = || text.split(',').map(str::trim);
        if text.contains('=') {
            return parts()
                .map(|part| pair(field, part))
                .collect::<Result<_, _>>()
                .map(Self::Named);
        }
        let numbers: Result<Vec<f64>, _> = parts().map(str::parse).collect();
        match numbers {
            Ok(weights) => Ok(Self::Listed(weights)),
            Err(_) => Ok(Self::Preset(text.trim().to_owned())),
        }
    }
}

impl AlphaForm {
    /// Reads JSON; `field` names it in errors. A member that is `null` counts as left out.
    pub fn from_json(field: &str, value: Value) -> Result<Self, FormError> {
        match value {
            Value::Array(items) => listed(field, &items, "a number").map(Self::Listed),
            Value::Object(map) => named(field, map, "a number").map(Self::Named),
            other => match other.as_f64() {
                Some(alpha) => Ok(Self::Scalar(alpha)),
                None => Err(FormError::value(field, other, ALPHAS)),
            },
        }
    }
}

fn listed(field: &str, items: &[Value], expected: &str) -> Result<Vec<f64>, FormError> {
    let number = |(index, item): (usize, &Value)| {
        item.as_f64().ok_or_else(|| FormError::value(format!("{field}[{index}]"), item, expected))
    };
    items.iter().enumerate().map(number).collect()
}

fn named(
    field: &str,
    map: serde_json::Map<String, Value>,
    expected: &str,
) -> Result<Vec<(String, f64)>, FormError> {
    let number = |(name, item): (String, Value)| match item.as_f64() {
        Some(number) => Ok((name, number)),
        None => Err(FormError::value(format!("{field}.{name}"), item, expected)),
    };
    map.into_iter().filter(|(_, item)| !item.is_null()).map(number).collect()
}

fn pair(field: &str, part: &str) -> Result<(String, f64), FormError> {
    let expected = "objective=weight pairs, such as helpful=0.7,harmless=0.3";
    let refuse = || FormError::value(field, format!("{part:?}"), expected);
    let (name, weight) = part.split_once('=').ok_or_else(refuse)?;
    Ok((name.trim().to_owned(), weight.trim().parse().map_err(|_| refuse())?))
}
