//! Bearer keys.

use std::sync::Arc;

use axum::http::HeaderMap;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{error::ApiError, keys::Key};
use crate::{config::ApiKey, files::sha256};

/// The accepted keys. Their digests have equal lengths and are compared in constant time, so the time
/// of an answer shows neither a key's length nor how much of it was right.
pub struct Keys {
    keys: Vec<Arc<Key>>,
    /// There is a file of named keys: whoever reads the metrics needs the right to.
    named: bool,
}

impl Keys {
    /// Keys without names, which may all that asks for no right of its own, and named ones. Without
    /// either, every request is accepted; a file of no named keys lets nobody in.
    pub fn new(plain: &[ApiKey], named: Option<Vec<Key>>) -> Self {
        let key = |(index, key): (usize, &ApiKey)| Key {
            name: format!("key {}", index + 1),
            sha256: sha256(key.0.as_bytes()),
            ..Key::default()
        };
        let plain = plain.iter().enumerate().map(key);
        let keys = plain.chain(named.iter().flatten().cloned()).map(Arc::new).collect();
        Self { keys, named: named.is_some() }
    }

    /// Refuses a request whose key does not carry the right to see how the server fares. Without
    /// named keys nobody has rights, and nobody needs them.
    pub fn check_admin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match self.named && !self.check(headers)?.is_some_and(|key| key.admin) {
            true => Err(ApiError::Forbidden("the key has no admin right".to_owned())),
            false => Ok(()),
        }
    }

    /// The key that a request presents; `None` where the server asks for none.
    pub fn check(&self, headers: &HeaderMap) -> Result<Option<Arc<Key>>, ApiError> {
        if self.keys.is_empty() && !self.named {
            return Ok(None);
        }
        let given = sha256(presented(headers)?.trim().as_bytes());
        let (mut found, mut which) = (Choice::from(0), 0u32);
        for (index, known) in (0u32..).zip(&self.keys) {
            let same = known.sha256.as_bytes().ct_eq(given.as_bytes());
            which.conditional_assign(&index, same);
            found |= same;
        }
        let key = self.keys.get(which as usize).filter(|_| bool::from(found));
        match key {
            Some(key) => Ok(Some(key.clone())),
            None => Err(ApiError::Unauthorized("the API key is not known")),
        }
    }
}

/// Whether a request brings a key at all.
pub fn presents(headers: &HeaderMap) -> bool {
    headers.contains_key("authorization") || headers.contains_key("x-api-key")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: Option<&str>) -> Result<Option<String>, ApiError> {
        let (name, sha256) = ("team".into(), sha256(b"gamma"));
        let named = Key { name, sha256, admin: true, ..Key::default() };
        let keys = [ApiKey("alpha".into()), ApiKey("Beta".into())];
        let keys = Keys::new(&keys, Some(vec![named]));
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert("authorization", value.parse().unwrap());
        }
        let key = keys.check(&headers)?;
        let admin = keys.check_admin(&headers).is_ok();
        assert_eq!(admin, key.as_ref().is_some_and(|key| key.name == "team"));
        Ok(key.map(|key| key.name.clone()))
    }

    #[test]
    fn only_a_known_key_in_the_right_case_passes() {
        assert_eq!(check(Some("Bearer alpha")), Ok(Some("key 1".into())));
        assert_eq!(check(Some("bearer Beta")), Ok(Some("key 2".into())));
        assert_eq!(check(Some("Bearer gamma")), Ok(Some("team".into())));
        for bad in
            ["Bearer beta", "Bearer alph", "Bearer alphaa", "Bearer ", "Basic alpha", "alpha"]
        {
            assert!(check(Some(bad)).is_err(), "{bad}");
        }
        assert!(check(None).is_err());
        assert_eq!(Keys::new(&[], None).check(&HeaderMap::new()), Ok(None));
        assert_eq!(Keys::new(&[], None).check_admin(&HeaderMap::new()), Ok(()));
        assert!(Keys::new(&[], Some(Vec::new())).check(&HeaderMap::new()).is_err());
        let keys = Keys::new(&[ApiKey("alpha".into())], None);
        for (given, passes) in [("alpha", true), ("Alpha", false), ("", false)] {
            let headers =
                HeaderMap::from_iter([("x-api-key".parse().unwrap(), given.parse().unwrap())]);
            assert_eq!(keys.check(&headers).is_ok(), passes, "{given}");
        }
    }
}
