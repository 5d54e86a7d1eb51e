//! The rate of each client: token buckets.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::engine::Client;

/// Most clients that have a bucket at once. A bucket that is full again is dropped.
const MAX_CLIENTS: usize = 65_536;

/// The buckets of all clients: a token bucket each.
pub struct Buckets {
    per_minute: usize,
    state: Mutex<HashMap<Client, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Buckets {
    /// Admits `per_minute` requests of each client, as a burst or spread out.
    pub fn new(per_minute: usize) -> Self {
        Self { per_minute, state: Mutex::default() }
    }

    pub fn per_minute(&self) -> usize {
        self.per_minute
    }

    /// Takes one request out of the client's bucket, or says how long until there is one.
    pub fn admit(&self, client: &Client, now: Instant) -> Result<(), Duration> {
        let capacity = self.per_minute as f64;
        let rate = capacity / 60.0;
        let level = |bucket: &Bucket| {
            (bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * rate)
                .min(capacity)
        };
        // The map is consistent even after a panic: every change is one assignment.
        let mut buckets = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_CLIENTS && !buckets.contains_key(client) {
            buckets.retain(|_, bucket| level(bucket) < capacity);
            if buckets.len() >= MAX_CLIENTS {
                return Err(Duration::from_secs(60));
            }
        }
        let bucket = buckets.entry(client.clone()).or_insert(Bucket { tokens: capacity, at: now });
        let tokens = level(bucket);
        let admitted = tokens >= 1.0;
        *bucket = Bucket { tokens: if admitted { tokens - 1.0 } else { tokens }, at: now };
        if admitted { Ok(()) } else { Err(Duration::from_secs_f64((1.0 - tokens) / rate)) }
    }
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
        assert_eq!(buckets.admit(two, start), Ok(()));
        assert_eq!(buckets.admit(one, start + Duration::from_secs(31)), Ok(()));
        assert!(buckets.admit(one, start + Duration::from_secs(31)).is_err());
    }

    #[test]
    fn memory_is_bounded_however_many_clients_come() {
        let buckets = Buckets::new(60);
        let start = Instant::now();
        for client in 0..MAX_CLIENTS as u32 {
            buckets.admit(&Client::at(IpAddr::from(client.to_be_bytes())), start).unwrap();
        }
        let late = &Client::at(IpAddr::from([255, 0, 0, 1]));
        assert!(buckets.admit(late, start).is_err(), "all buckets are in use");
        assert_eq!(
            buckets.admit(late, start + Duration::from_secs(5)),
            Ok(()),
            "full ones are forgotten"
        );
        assert_eq!(buckets.state.lock().unwrap().len(), 1);
    }
}
