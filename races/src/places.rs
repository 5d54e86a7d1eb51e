//! The places of the queue.

#[allow(dead_code)]
mod source {
    include!(concat!(env!("OUT_DIR"), "/engine_places.rs"));
}

/// What the places know of clients.
mod client {
    #[allow(dead_code)]
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    pub enum Client {
        Local,
        Key(u8),
        Network(u8),
    }
}

use std::sync::Arc;

use client::Client;
use shuttle::thread;
use source::Places;

#[test]
fn places_are_never_more_than_there_are_and_all_come_home() {
    crate::check(|| {
        let places = Arc::new(Places::new(4));
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let places = places.clone();
                thread::spawn(move || {
                    let client = Client::Key(number % 2);
                    for count in [2, 1] {
                        let taken = places.take(&client, count, None);
                        thread::yield_now();
                        assert!(places.taken() <= 4, "more than there are");
                        drop(taken);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(places.taken(), 0);
        assert_eq!(places.take(&Client::Local, 4, None).map(|all| all.len()).ok(), Some(4));
    });
}
