//! The model that a request asks for.

use serde::Deserialize;

/// The `model` of a body that is not checked yet; `None` where it names none, or is not right, which
/// its check will say.
pub fn asked(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        model: Option<String>,
    }
    serde_json::from_slice(body).ok().and_then(|Body { model }| model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_read_from_a_body_whatever_stands_around_it() {
        let asked = |body: &str| asked(body.as_bytes());
        let body = r#"{"prompt": "\"model\": 3", "model": "a:b=1", "n": [{"model": "c"}]}"#;
        assert_eq!(asked(body), Some("a:b=1".to_owned()));
        for none in [
            "{}",
            r#"{"model": null}"#,
            r#"{"model": 1}"#,
            r#"{"model": "a", "model": "b"}"#,
            r#"{"a": {"model": "b"}}"#,
            r#"{"model": "a""#,
            r#"["model", "a"]"#,
        ] {
            assert_eq!(asked(none), None, "{none}");
        }
    }
}
