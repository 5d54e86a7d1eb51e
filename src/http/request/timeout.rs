//! The time that a request gives itself.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;

/// Seconds that a request may give itself.
pub fn range(longest: Duration) -> RangeInclusive<f64> {
    0.001..=longest.as_secs_f64()
}

/// The `timeout` of a body that is not checked yet; `longest` where it names none, or none that is
/// right, which its check will say.
pub fn asked(body: &[u8], longest: Duration) -> Duration {
    #[derive(Deserialize)]
    struct Body {
        timeout: Option<f64>,
    }
    let asked = serde_json::from_slice(body).ok().and_then(|Body { timeout }| timeout);
    let right = asked.filter(|seconds| range(longest).contains(seconds));
    right.map_or(longest, Duration::from_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_from_a_body_whatever_stands_around_it() {
        let longest = Duration::from_secs(600);
        let asked = |body: &str| asked(body.as_bytes(), longest).as_secs_f64();
        assert_eq!(asked(r#"{"prompt": "\"timeout\": 3", "timeout": 2.5, "n": [{}]}"#), 2.5);
        assert_eq!(asked(r#"{"timeout": 1e1}"#), 10.0);
        for none in [
            "{}",
            r#"{"timeout": null}"#,
            r#"{"timeout": 0}"#,
            r#"{"timeout": 601}"#,
            r#"{"timeout": "1"}"#,
            r#"{"timeout": 1, "timeout": 2}"#,
            r#"{"a": {"timeout": 1}}"#,
            r#"{"timeout": 1"#,
        ] {
            assert_eq!(asked(none), 600.0, "{none}");
        }
    }
}
