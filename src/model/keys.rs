//! A `config.json` read key by key.

use serde_json::{Map, Value};

use super::config::ModelConfigError;

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
    pub fn norm_eps(&self, default: f64) -> Result<f32, ModelConfigError> {
        let (key, eps) = ("rms_norm_eps", self.positive("rms_norm_eps", Some(default))?);
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
}

/// A refusal of `key`.
pub fn error(key: &str, reason: impl Into<String>) -> ModelConfigError {
    ModelConfigError { key: key.to_owned(), reason: reason.into() }
}
