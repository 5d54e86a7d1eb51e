//! `GET /openapi.json`.

use std::sync::LazyLock;

use axum::{Json, response::IntoResponse};
use serde_json::Value;

/// The description of all routes. Tests hold it against what the routes accept and answer.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document: Value =
        serde_json::from_str(include_str!("openapi.json")).expect("openapi.json is JSON");
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document
});

/// The description.
pub async fn document() -> impl IntoResponse {
    Json(&*DOCUMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_parses() {
        assert_eq!(DOCUMENT["openapi"], "3.1.0");
    }
}
