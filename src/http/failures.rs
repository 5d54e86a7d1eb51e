//! Wrong keys: how many an address may try.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::{
    error::ApiError,
    rate::{Buckets, retry_after},
    recent::Recent,
};
use crate::engine::Client;

/// Wrong keys that an address may try in a minute.
const PER_MINUTE: usize = 30;
/// Addresses, with the keys that they brought, of which it is known that they were right.
const KNOWN: usize = 8192;

/// What came of the keys of each address.
pub struct Failures {
    wrong: Buckets,
    right: Mutex<Recent<(Client, String), ()>>,
}

impl Default for Failures {
    fn default() -> Self {
        Self { wrong: Buckets::default(), right: Mutex::new(Recent::new(KNOWN)) }
    }
}

impl Failures {
    /// Whether a request from `address` may hear what came of its key; `right` is the key's name, if
    /// it is right. An address that tried too many wrong keys may not; a key that it used before
    /// passes all the same, as it may be the address of a proxy.
    pub fn allow(
        &self,
        address: &Client,
        right: Option<&str>,
        now: Instant,
    ) -> Result<(), ApiError> {
        let refused =
            |wait| ApiError::WrongKeys { limit: PER_MINUTE, retry_after: retry_after(wait) };
        let Some(name) = right else {
            return self.wrong.take(address, 1, PER_MINUTE, now).map_err(refused);
        };
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = (address.clone(), name.to_owned());
        if right.get(&pair).is_none() {
            self.wrong.wait(address, PER_MINUTE, now).map_err(refused)?;
        }
        right.put(pair, ());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_address_that_guesses_is_not_told_when_it_is_right() {
        let failures = Failures::default();
        let here = &Client::at("192.0.2.1".parse().unwrap());
        let there = &Client::at("192.0.2.2".parse().unwrap());
        let now = Instant::now();
        let allow = |address, right, now| failures.allow(address, right, now).is_ok();
        assert!(allow(here, Some("mine"), now));
        for _ in 0..PER_MINUTE {
            assert!(allow(here, None, now));
        }
        for right in [None, Some("guessed")] {
            let error = failures.allow(here, right, now).unwrap_err();
            assert_eq!(error, ApiError::WrongKeys { limit: PER_MINUTE, retry_after: 2 });
        }
        assert!(allow(here, Some("mine"), now), "it is known");
        assert!(allow(there, None, now) && allow(there, Some("guessed"), now));
        assert!(allow(here, Some("guessed"), now + Duration::from_secs(3)));
    }
}
