//! Bearer keys.

use std::sync::Arc;

use axum::http::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::ApiError;
use crate::config::ApiKey;

/// Digests of the accepted keys. Digests have equal lengths and are compared in constant time, so
/// the time of an answer shows neither a key's length nor how much of it was right.
pub struct Keys(Vec<Key>);

/// An accepted key.
struct Key {
    /// What its holder is called in counts.
    name: Arc<str>,
    digest: [u8; 32],
}

impl Keys {
    /// The accepted keys. Without any, every request is accepted.
    pub fn new(keys: &[ApiKey]) -> Self {
        let key = |(index, key): (usize, &ApiKey)| Key {
            name: format!("key {}", index + 1).into(),
            digest: digest(key.0.as_bytes()),
        };
        Self(keys.iter().enumerate().map(key).collect())
    }

    /// The name of the key that a request presents; `None` where the server asks for none.
    pub fn check(&self, headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let given = digest(presented(headers)?.trim().as_bytes());
        let (mut found, mut which) = (Choice::from(0), 0u32);
        for (index, known) in (0u32..).zip(&self.0) {
            let same = known.digest.ct_eq(&given);
            which.conditional_assign(&index, same);
            found |= same;
        }
        if bool::from(found) {
            Ok(self.0.get(which as usize).map(|key| key.name.clone()))
        } else {
            Err(ApiError::Unauthorized("the API key is not known"))
        }
    }
}

/// The key of a request: a bearer, or Anthropic's header.
fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
    let text = |header: &'static str| Some(headers.get(header)?.to_str().unwrap_or_default());
    let Some(bearer) = text("authorization") else {
        return text("x-api-key").ok_or(ApiError::Unauthorized(
            "no API key: send the header `Authorization: Bearer KEY`",
        ));
    };
    bearer
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key)
        .ok_or(ApiError::Unauthorized("the header Authorization is not `Bearer KEY`"))
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: Option<&str>) -> Result<Option<Arc<str>>, ApiError> {
        let keys = Keys::new(&[ApiKey("alpha".into()), ApiKey("Beta".into())]);
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("authorization", value.parse().unwrap());
        }
        keys.check(&headers)
    }

    #[test]
    fn only_a_known_key_in_the_right_case_passes() {
        assert_eq!(check(Some("Bearer alpha")), Ok(Some("key 1".into())));
        assert_eq!(check(Some("bearer Beta")), Ok(Some("key 2".into())));
        for bad in
            ["Bearer beta", "Bearer alph", "Bearer alphaa", "Bearer ", "Basic alpha", "alpha"]
        {
            assert!(check(Some(bad)).is_err(), "{bad}");
        }
        assert!(check(None).is_err());
        assert_eq!(Keys::new(&[]).check(&HeaderMap::new()), Ok(None));
        let keys = Keys::new(&[ApiKey("alpha".into())]);
        for (given, passes) in [("alpha", true), ("Alpha", false), ("", false)] {
            let headers =
                HeaderMap::from_iter([("x-api-key".parse().unwrap(), given.parse().unwrap())]);
            assert_eq!(keys.check(&headers).is_ok(), passes, "{given}");
        }
    }
}
