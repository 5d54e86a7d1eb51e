//! `GET /openapi.json`.

use serde_json::Value;

const DOCUMENT: &str = include_str!("openapi.json");

/// The description of all routes. Tests hold it against what the routes accept and answer.
pub fn document() -> Value {
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document
}
