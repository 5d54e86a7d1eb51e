//! Arguments of methods and filters, by position or by name.

use minijinja::{
    Error, Value,
    value::{Kwargs, ValueKind, from_args},
};

use super::values::{error, type_name};

/// Arguments of one call of a method or filter.
pub struct Arguments<'a> {
    function: &'a str,
    values: &'a [Value],
    named: Kwargs,
}

impl<'a> Arguments<'a> {
    /// The arguments of a call of `function`.
    pub fn new(function: &'a str, values: &'a [Value], named: Kwargs) -> Self {
        Self { function, values, named }
    }

    /// The arguments of a call as minijinja passes them: named ones in the last value.
    pub fn split(function: &'a str, values: &'a [Value]) -> Result<Self, Error> {
        let (values, named) = from_args(values)?;
        Ok(Self { function, values, named })
    }

    /// Name of the called method or filter.
    pub fn function(&self) -> &str {
        self.function
    }

    /// All arguments by position.
    pub fn values(&self) -> &'a [Value] {
        self.values
    }

    /// All arguments by name.
    pub fn named(&self) -> &Kwargs {
        &self.named
    }

    /// An argument, if given.
    pub fn get(&self, index: usize, name: &str) -> Option<Value> {
        let named = || self.named.get::<Value>(name).ok().filter(|_| self.named.has(name));
        self.values.get(index).cloned().or_else(named)
    }

    /// An argument that must be given.
    pub fn required(&self, index: usize, name: &str) -> Result<Value, Error> {
        self.get(index, name)
            .ok_or_else(|| error(format!("{}() misses its argument {name}", self.function)))
    }

    /// The value that a filter is applied to.
    pub fn value(&self) -> Result<Value, Error> {
        self.required(0, "value")
    }

    /// A string, if given; None counts as absent.
    pub fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.get(index, name) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) if value.kind() == ValueKind::String => {
                Ok(value.as_str().map(str::to_owned))
            }
            Some(value) => Err(self.unexpected(name, "str", &value)),
        }
    }

    /// A string that must be given.
    pub fn required_text(&self, index: usize, name: &str) -> Result<String, Error> {
        let missing = || error(format!("{}() misses its argument {name}", self.function));
        self.text(index, name)?.ok_or_else(missing)
    }

    /// An integer, if given; None counts as absent.
    pub fn integer(&self, index: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.get(index, name) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) if value.is_integer() || value.kind() == ValueKind::Bool => {
                Ok(Some(value.as_i64().unwrap_or(i64::MAX)))
            }
            Some(value) => Err(self.unexpected(name, "int", &value)),
        }
    }

    /// A truth value; `false` if absent.
    pub fn flag(&self, index: usize, name: &str) -> bool {
        self.get(index, name).is_some_and(|value| value.is_true())
    }

    /// Refuses more than `most` positional arguments, and names that were not read.
    pub fn finish(&self, most: usize) -> Result<(), Error> {
        if self.values.len() > most {
            let (function, count) = (self.function, self.values.len());
            return Err(error(format!(
                "{function}() takes at most {most} arguments ({count} given)"
            )));
        }
        self.named.assert_all_used()
    }

    fn unexpected(&self, name: &str, expected: &str, got: &Value) -> Error {
        let (function, got) = (self.function, type_name(got));
        error(format!("{function}() argument {name} must be {expected}, not {got}"))
    }
}
