//! The routes that take a body from anybody, from the description of the API.

use std::sync::LazyLock;

use serde_json::Value;

/// Each with the example of a body that the description gives.
pub static POSTS: LazyLock<Vec<(String, Value)>> = LazyLock::new(|| {
    let document: Value =
        serde_json::from_str(include_str!("../../src/http/openapi.json")).expect("JSON");
    let paths = document["paths"].as_object().expect("routes");
    let example = |(path, methods): (&String, &Value)| {
        let content = &methods.get("post")?["requestBody"]["content"]["application/json"];
        Some((path.clone(), content["example"].clone()))
    };
    let open = paths.iter().filter(|(path, _)| !path.starts_with("/admin/"));
    open.filter_map(example).collect()
});
