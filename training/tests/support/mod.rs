//! Reference values of `tests/fixtures/training`, and comparisons with them.
#![allow(dead_code, reason = "no test uses all of it")]

use std::{fs, path::PathBuf};

use serde_json::Value;

/// A file below `tests/fixtures/training`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/training").join(name)
}

/// The JSON document of that name.
pub fn reference(name: &str) -> Value {
    serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap()
}

/// All numbers of a JSON value of any nesting, row-major.
pub fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

/// The rows of a matrix.
pub fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

#[track_caller]
pub fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= tolerance, "got {got:?}, expected {expected:?}");
    }
}
