//! Places that clients share, such as those of the queue: so many in all, and not all of them for
//! one client, so that whoever asks for much leaves room for others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::client::Client;

/// Places of which each client may have three quarters; the process itself may have all.
pub struct Places {
    most: usize,
    of_client: Mutex<HashMap<Client, usize>>,
    taken: watch::Sender<usize>,
}

/// There is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// For anybody.
    All { taken: usize },
    /// For this client, which has so many of the most that one client may have.
    Client { taken: usize, most: usize },
    /// For this client, which has a limit of its own.
    Own { most: usize },
}

impl Places {
    /// So many places.
    pub fn new(most: usize) -> Self {
        Self { most, of_client: Mutex::default(), taken: watch::Sender::new(0) }
    }

    /// Places in all.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        *self.taken.borrow()
    }

    /// Completes when no place is taken.
    pub async fn empty(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.taken.subscribe().wait_for(|taken| *taken == 0).await;
    }

    /// Takes `count` places for a client, all or none; `limit` is the client's own.
    pub fn take(
        self: &Arc<Self>,
        client: &Client,
        count: usize,
        limit: Option<usize>,
    ) -> Result<Vec<Place>, Full> {
        let mut of_client = self.lock();
        let (taken, own) = (self.taken(), of_client.get(client).copied().unwrap_or_default());
        if let Some(most) = limit.filter(|most| count > most.saturating_sub(own)) {
            return Err(Full::Own { most });
        }
        if count > self.most.saturating_sub(taken) {
            return Err(Full::All { taken });
        }
        let most = match client {
            Client::Local => self.most,
            Client::Key(_) | Client::Network(_) => self.most - self.most / 4,
        };
        if count > most.saturating_sub(own) {
            return Err(Full::Client { taken: own, most });
        }
        if count > 0 {
            of_client.insert(client.clone(), own + count);
            self.taken.send_modify(|taken| *taken += count);
        }
        let place = || Place { places: self.clone(), client: client.clone() };
        Ok(std::iter::repeat_with(place).take(count).collect())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        // The counts are consistent even after a panic: they change without a call between.
        self.of_client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A taken place; dropping it frees it.
pub struct Place {
    places: Arc<Places>,
    client: Client,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_client = self.places.lock();
        if let Some(count) = of_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                of_client.remove(&self.client);
            }
        }
        self.places.taken.send_modify(|taken| *taken -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_places_for_others() {
        let places = Arc::new(Places::new(8));
        let (greedy, modest) = (Client::Key("greedy".into()), Client::Key("modest".into()));
        let six = places.take(&greedy, 6, None).unwrap();
        let full = Full::Client { taken: 6, most: 6 };
        assert_eq!(places.take(&greedy, 1, None).err(), Some(full));
        assert_eq!(places.take(&greedy, 1, Some(6)).err(), Some(Full::Own { most: 6 }));
        let two = places.take(&modest, 2, Some(2)).unwrap();
        assert_eq!(places.take(&modest, 1, None).err(), Some(Full::All { taken: 8 }));
        drop(six);
        assert_eq!(places.take(&greedy, 7, None).err(), Some(Full::All { taken: 2 }));
        assert_eq!(places.take(&modest, 1, Some(2)).err(), Some(Full::Own { most: 2 }));
        drop(two);
        assert_eq!(places.taken(), 0);
        assert!(places.lock().is_empty(), "nobody is remembered");
        assert_eq!(places.take(&Client::Local, 8, None).unwrap().len(), 8);
        assert_eq!(Arc::new(Places::new(1)).take(&greedy, 1, None).unwrap().len(), 1);
    }
}
