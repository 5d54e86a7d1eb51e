//! A `config.json` read key by key.

use serde_json::{Map, Value};

use super::config::ModelConfigError;

// Above any model of the families; products of a few such numbers do not overflow.
pub const MAX_WIDTH: usize = 1 << 20;
pub const MAX_VOCAB: usize = 1 << 24;
pub const MAX_LAYERS: usize = 1 << 12;
pub const MAX_HEADS: usize = 1 << 12;
pub const MAX_HEAD_DIM: usize = 1 << 12;
pub const MAX_POSITIONS: usize = 1 << 26;

/// A JSON object read key by key; `null` is absent.
pub struct Keys<'a> {
    /// The object.
    pub map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// A value that is present and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An integer in 1..=max.
    pub fn size(&self, key: &str, max: usize) -> Result<usize, ModelConfigError> {
        self.size_or(key, max, None)
    }

    /// As [`Self::size`], with a default.
    pub fn size_or(
        &self,
        key: &str,
        max: usize,
        default: Option<usize>,
    ) -> Result<usize, ModelConfigError> {
        match self.count_or(key, max, default)? {
            0 => Err(error(key, format!("is 0, must be an integer from 1 to {max}"))),
            size => Ok(size),
        }
    }

    /// An integer in 0..=max.
    pub fn count_or(
        &self,
        key: &str,
        max: usize,
        default: Option<usize>,
    ) -> Result<usize, ModelConfigError> {
        let Some(value) = self.get(key) else {
            return default
                .ok_or_else(|| error(key, format!("is missing, must be an integer to {max}")));
        };
        value
            .as_u64()
            .and_then(|value| usize::try_from(value).ok())
            .filter(|&value| value <= max)
            .ok_or_else(|| error(key, format!("is {value}, must be an integer to {max}")))
    }

    /// A finite number above 0.
    pub fn positive(&self, key: &str, default: Option<f64>) -> Result<f64, ModelConfigError> {
        let Some(value) = self.get(key) else {
            return default.ok_or_else(|| error(key, "is missing, must be a number above 0"));
        };
        value
            .as_f64()
            .filter(|value| value.is_finite() && *value > 0.0)
            .ok_or_else(|| error(key, format!("is {value}, must be a number above 0")))
    }

    /// ε of the norms; `default` where the key is absent.
    pub fn norm_eps(&self, key: &str, default: f64) -> Result<f32, ModelConfigError> {
        let eps = self.positive(key, Some(default))?;
        if eps > 0.1 || eps < f64::from(f32::MIN_POSITIVE) {
            return Err(error(key, format!("is {eps}, must be a small number, at most 0.1")));
        }
        Ok(eps as f32)
    }

    /// A truth value; absent is false.
    pub fn flag(&self, key: &str) -> Result<bool, ModelConfigError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| error(key, format!("is {value}, must be true or false"))),
        }
    }

    /// A token id below `vocab_size`, or a list of them; absent is none.
    pub fn ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, ModelConfigError> {
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|&id| (id as usize) < vocab_size)
                .ok_or_else(|| {
                    let reason =
                        format!("{value} is not a token id below vocab_size = {vocab_size}");
                    error(key, reason)
                })
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

/// A refusal of `key`.
pub fn error(key: &str, reason: impl Into<String>) -> ModelConfigError {
    ModelConfigError { key: key.to_owned(), reason: reason.into() }
}
