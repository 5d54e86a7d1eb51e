//! `--set key=value`: keys of a configuration that the command line overrides.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// One override: a dotted path and a TOML value.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// Keys from the outside in; a number picks an entry of a list.
    path: Vec<String>,
    value: Value,
}

impl FromStr for Override {
    type Err = String;

    /// Reads `rl.steps=40`. Text that is not a TOML value is taken as a string, so that
    /// `base=models/mine` needs no quotes.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, value) = text.split_once('=').ok_or("expected KEY=VALUE, as in rl.steps=40")?;
        let path: Vec<String> = path.split('.').map(|key| key.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err("expected a key before the =, as in rl.steps=40".to_owned());
        }
        let parsed = format!("value = {value}").parse::<Table>().ok();
        let parsed = parsed.filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
        let value = parsed.unwrap_or_else(|| Value::String(value.trim().to_owned()));
        Ok(Self { path, value })
    }
}

impl std::fmt::Display for Override {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.path.join("."), self.value)
    }
}

/// An override that is refused.
#[derive(Debug, thiserror::Error)]
#[error("--set {change}: {reason}")]
pub struct OverrideError {
    /// The override.
    pub change: String,
    pub reason: String,
}

/// The configuration that `table` and the overrides make together.
pub(super) fn apply<T: DeserializeOwned>(
    table: Table,
    overrides: &[Override],
) -> Result<T, OverrideError> {
    let mut table = Value::Table(table);
    // One after another, so that an error names the override that makes it.
    for change in overrides {
        let refused = |reason: String| OverrideError { change: change.to_string(), reason };
        insert(&mut table, &change.path, change.value.clone()).map_err(refused)?;
        let parsed = T::deserialize(table.clone());
        parsed.map_err(|error| refused(error.message().trim().to_owned()))?;
    }
    T::deserialize(table).map_err(|error| OverrideError {
        change: overrides.iter().map(Override::to_string).collect::<Vec<_>>().join(" "),
        reason: error.message().trim().to_owned(),
    })
}

/// Puts `value` at `path`, making the tables on the way.
fn insert(at: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        *at = value;
        return Ok(());
    };
    match at {
        Value::Table(table) => {
            // B is given in one of three ways: another one takes its place.
            if let (Some(Value::Table(mixing)), "mixing", [_]) =
                (table.get_mut(key), key.as_str(), rest)
            {
                mixing.clear();
            }
            let empty = Value::Table(Table::new());
            insert(table.entry(key).or_insert(empty), rest, value)
        }
        Value::Array(items) => {
            let count = items.len();
            let item = key.parse().ok().and_then(|index: usize| items.get_mut(index));
            let item = item.ok_or_else(|| {
                format!("{key:?}: expected an entry from 0 to {}", count.saturating_sub(1))
            })?;
            insert(item, rest, value)
        }
        other => Err(format!("{key:?}: expected a table or a list around it, found {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: &str) -> Override {
        change.parse().unwrap()
    }

    #[test]
    fn values_are_toml_and_bare_words_are_strings() {
        assert_eq!(read("rl.keep=[8, 40]").value, Value::Array(vec![8.into(), 40.into()]));
        assert_eq!(read("mixing={ beta = 0.7 }").value.get("beta"), Some(&0.7.into()));
        assert_eq!(read("base=a/b=c d").value, "a/b=c d".into());
        assert_eq!(read("data.template=\"x\\ny\"").value, "x\ny".into());
        for wrong in ["rl.steps", "=3", "rl..steps=3"] {
            assert!(wrong.parse::<Override>().is_err(), "{wrong}");
        }
    }
}
