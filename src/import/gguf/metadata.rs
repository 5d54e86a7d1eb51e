//! Typed access to the metadata of a GGUF file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{error::GgufError, header::Meta};

/// The metadata of a file, with the file's path for messages.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Meta>,
}

impl Metadata {
    /// The metadata of the file at `path`.
    pub fn new(path: &Path, values: BTreeMap<String, Meta>) -> Self {
        Self { path: path.to_owned(), values }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Meta> {
        self.values.get(key)
    }

    /// All keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Meta)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A whole number that is not negative.
    pub fn number(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.get(key).map(|value| self.whole(key, value)).transpose()
    }

    /// A whole number that is the same for every layer: one, or a list of equal ones.
    pub fn per_layer(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some(Meta::Array(values)) = self.get(key) else { return self.number(key) };
        let numbers =
            values.iter().map(|value| self.whole(key, value)).collect::<Result<Vec<_>, _>>()?;
        match numbers.split_first() {
            Some((first, rest)) if rest.iter().all(|other| other == first) => Ok(Some(*first)),
            _ => Err(self.mistyped(key, "one number for all layers", format!("{numbers:?}"))),
        }
    }

    fn whole(&self, key: &str, value: &Meta) -> Result<u64, GgufError> {
        let number = match value {
            Meta::Unsigned(number) => Some(*number),
            Meta::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        number.ok_or_else(|| {
            let got = match value {
                Meta::Signed(number) => number.to_string(),
                other => other.kind().to_owned(),
            };
            self.mistyped(key, "a whole number", got)
        })
    }

    /// A finite 32-bit float.
    pub fn float(&self, key: &str) -> Result<Option<f32>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Meta::F32(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Meta::F32(value)) => Err(self.mistyped(key, "a finite number", value.to_string())),
            Some(other) => Err(self.mistyped(key, "an f32", other.kind())),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Meta::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(key, "a string", other.kind())),
        }
    }

    /// A boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Meta::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.mistyped(key, "a boolean", other.kind())),
        }
    }

    /// An array, each element through `read`.
    pub fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Meta) -> Option<T>,
    ) -> Result<Vec<T>, GgufError> {
        match self.get(key) {
            None => Err(self.missing(key, expected)),
            Some(Meta::Array(values)) => {
                let one = |(i, value): (usize, &'a Meta)| {
                    let got = || format!("{} at {i}", value.kind());
                    read(value).ok_or_else(|| self.mistyped(key, expected, got()))
                };
                values.iter().enumerate().map(one).collect()
            }
            Some(other) => Err(self.mistyped(key, expected, other.kind())),
        }
    }

    /// The error of a key that is not there.
    pub fn missing(&self, key: &str, expected: &str) -> GgufError {
        self.mistyped(key, expected, "nothing")
    }

    /// The error of a value that is not what it should be.
    pub fn mistyped(&self, key: &str, expected: &str, got: impl Into<String>) -> GgufError {
        GgufError::Metadata {
            path: self.path.clone(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            got: got.into(),
        }
    }

    /// The error of a setting that ladle does not have.
    pub fn unsupported(&self, key: &str, got: impl ToString, supported: &str) -> GgufError {
        GgufError::Unsupported {
            path: self.path.clone(),
            what: "setting",
            got: format!("{key} = {}", got.to_string()),
            supported: supported.to_owned(),
        }
    }
}

/// An f32 as JSON in its shortest spelling (1e-5 rather than 9.999999747378752e-6, which is the
/// same f32).
pub fn shortest(value: f32) -> Value {
    format!("{value:e}").parse::<f64>().map_or(Value::Null, |value| json!(value))
}
