//! The rate of each client: token buckets.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::recent::Recent;
use crate::engine::Client;

/// Clients that have a bucket at once, at least; twice as many at most. Whoever brings more addresses
/// than that only has the buckets forgotten that were not used of late: they are full again.
const CLIENTS: usize = 32_768;

/// The buckets of all clients: a token bucket each.
pub struct Buckets {
    per_minute: usize,
    state: Mutex<Recent<Client, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Buckets {
    /// Admits `per_minute` requests of each client, as a burst or spread out.
    pub fn new(per_minute: usize) -> Self {
        Self { per_minute, state: Mutex::new(Recent::new(CLIENTS)) }
    }

    pub fn per_minute(&self) -> usize {
        self.per_minute
    }

    /// Takes one request out of the client's bucket, or says how long until there is one.
    pub fn admit(&self, client: &Client, now: Instant) -> Result<(), Duration> {
        // The map is consistent even after a panic: every change is one assignment.
        let mut buckets = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = self.level(buckets.get(client), now);
        let admitted = self.enough(tokens);
        let left = if admitted.is_ok() { tokens - 1.0 } else { tokens };
        buckets.put(client.clone(), Bucket { tokens: left, at: now });
        admitted
    }

    /// Whether there is a request in the client's bucket, else how long until there is.
    pub fn wait(&self, client: &Client, now: Instant) -> Result<(), Duration> {
        let buckets = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.enough(self.level(buckets.get(client), now))
    }

    fn level(&self, bucket: Option<&Bucket>, now: Instant) -> f64 {
        let capacity = self.per_minute as f64;
        bucket.map_or(capacity, |bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.tokens + passed * capacity / 60.0).min(capacity)
        })
    }

    fn enough(&self, tokens: f64) -> Result<(), Duration> {
        match tokens >= 1.0 {
            true => Ok(()),
            false => Err(Duration::from_secs_f64((1.0 - tokens) * 60.0 / self.per_minute as f64)),
        }
    }
}

/// Whole seconds of `Retry-After`.
pub fn retry_after(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil() as u64
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_client_over_its_rate_waits_and_others_do_not() {
        let buckets = Buckets::new(2);
        let (one, two) = (&Client::Key("one".into()), &Client::Key("two".into()));
        let start = Instant::now();
        assert_eq!(buckets.admit(one, start), Ok(()));
        assert_eq!(buckets.admit(one, start), Ok(()));
        let wait = buckets.admit(one, start).unwrap_err();
        assert!((wait.as_secs_f64() - 30.0).abs() < 1e-6, "{wait:?}");
        assert_eq!(buckets.wait(one, start), Err(wait));
        assert_eq!(buckets.admit(two, start), Ok(()));
        assert_eq!(buckets.admit(one, start + Duration::from_secs(31)), Ok(()));
        assert!(buckets.admit(one, start + Duration::from_secs(31)).is_err());
    }

    /// Whoever filled the table with addresses kept everybody else out.
    #[test]
    fn the_table_of_rates_cannot_be_filled_against_others() {
        let buckets = Buckets::new(2);
        let start = Instant::now();
        let at = |number: u32| Client::at(IpAddr::from(number.to_be_bytes()));
        let busy = at(u32::MAX);
        for number in 0..300_000 {
            buckets.admit(&at(number), start).unwrap();
            if number % 1000 == 0 {
                let _ = buckets.admit(&busy, start);
            }
        }
        assert!(buckets.state.lock().unwrap().len() <= 2 * CLIENTS);
        assert!(buckets.admit(&busy, start).is_err(), "who goes on is not forgotten");
        assert_eq!(buckets.admit(&at(u32::MAX - 1), start), Ok(()), "late, and let in");
    }
}
