//! What each client may have in a minute: token buckets.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::recent::Recent;
use crate::engine::Client;

/// Clients that have a bucket at once, at least; twice as many at most. Whoever brings more addresses
/// than that only has the buckets forgotten that were not used of late: they are full again.
const CLIENTS: usize = 32_768;

/// A token bucket of each client: it holds what the client may have in a minute, and fills within one.
pub struct Buckets(Mutex<Recent<Client, Bucket>>);

#[derive(Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// What is in the bucket of a client by `now`.
    fn level(bucket: Option<&Self>, per_minute: usize, now: Instant) -> f64 {
        let capacity = per_minute as f64;
        bucket.map_or(capacity, |bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.level + passed * capacity / 60.0).min(capacity)
        })
    }
}

/// Whether a bucket holds `count`, else how long until it does.
fn enough(level: f64, count: usize, per_minute: usize) -> Result<(), Duration> {
    let missing = count as f64 - level;
    match missing <= 0.0 {
        true => Ok(()),
        false => Err(Duration::from_secs_f64(missing * 60.0 / per_minute as f64)),
    }
}

impl Default for Buckets {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(CLIENTS)))
    }
}

impl Buckets {
    /// Takes `count` out of a client's bucket, or says how long until it holds as many.
    pub fn take(
        &self,
        client: &Client,
        count: usize,
        per_minute: usize,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut buckets = self.lock();
        let level = Bucket::level(buckets.get(client), per_minute, now);
        let taken = enough(level, count, per_minute);
        let left = if taken.is_ok() { level - count as f64 } else { level };
        buckets.put(client.clone(), Bucket { level: left, at: now });
        taken
    }

    /// Puts back what was taken and not used.
    pub fn give_back(&self, client: &Client, count: usize, per_minute: usize, now: Instant) {
        let mut buckets = self.lock();
        let level = Bucket::level(buckets.get(client), per_minute, now) + count as f64;
        buckets.put(client.clone(), Bucket { level: level.min(per_minute as f64), at: now });
    }

    /// Whether there is one in the client's bucket, else how long until there is.
    pub fn wait(&self, client: &Client, per_minute: usize, now: Instant) -> Result<(), Duration> {
        enough(Bucket::level(self.lock().get(client), per_minute, now), 1, per_minute)
    }

    fn lock(&self) -> MutexGuard<'_, Recent<Client, Bucket>> {
        // The map is consistent even after a panic: every change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let buckets = Buckets::default();
        let (one, two) = (&Client::Key("one".into()), &Client::Key("two".into()));
        let start = Instant::now();
        let take = |client, at| buckets.take(client, 1, 2, at);
        assert_eq!(take(one, start), Ok(()));
        assert_eq!(take(one, start), Ok(()));
        let wait = take(one, start).unwrap_err();
        assert!((wait.as_secs_f64() - 30.0).abs() < 1e-6, "{wait:?}");
        assert_eq!(buckets.wait(one, 2, start), Err(wait));
        assert_eq!(take(two, start), Ok(()));
        assert_eq!(take(one, start + Duration::from_secs(31)), Ok(()));
        assert!(take(one, start + Duration::from_secs(31)).is_err());
    }

    #[test]
    fn what_was_not_used_returns_and_no_bucket_overflows() {
        let buckets = Buckets::default();
        let (key, now) = (&Client::Key("team".into()), Instant::now());
        assert_eq!(buckets.take(key, 90, 100, now), Ok(()));
        let wait = buckets.take(key, 40, 100, now).unwrap_err();
        assert!((wait.as_secs_f64() - 18.0).abs() < 1e-6, "{wait:?}");
        buckets.give_back(key, 60, 100, now);
        assert_eq!(buckets.take(key, 70, 100, now), Ok(()));
        buckets.give_back(key, 1000, 100, now);
        assert!(buckets.take(key, 101, 100, now).is_err());
        // A smaller limit holds at once.
        assert!(buckets.take(key, 51, 50, now).is_err());
        assert_eq!(buckets.take(key, 50, 50, now), Ok(()));
    }

    /// Whoever filled the table with addresses kept everybody else out.
    #[test]
    fn the_table_of_rates_cannot_be_filled_against_others() {
        let buckets = Buckets::default();
        let start = Instant::now();
        let take = |client: &Client| buckets.take(client, 1, 2, start);
        let at = |number: u32| Client::at(IpAddr::from(number.to_be_bytes()));
        let busy = at(u32::MAX);
        for number in 0..300_000 {
            take(&at(number)).unwrap();
            if number % 1000 == 0 {
                let _ = take(&busy);
            }
        }
        assert!(buckets.lock().len() <= 2 * CLIENTS);
        assert!(take(&busy).is_err(), "who goes on is not forgotten");
        assert_eq!(take(&at(u32::MAX - 1)), Ok(()), "late, and let in");
    }
}
