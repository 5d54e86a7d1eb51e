//! Workers for the checks of requests: parsing, templates, tokenising and grammars take time and
//! memory, so few run at once.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::bodies::SMALL;
use crate::engine::Client;

/// Workers for small bodies: two for each core, within these bounds.
const LEAST: usize = 4;
const MOST: usize = 8;

/// The workers: some for small bodies, of which one client may have half, and one for all that are
/// larger, so that large ones wait for each other and small ones do not wait for them.
pub struct Checks {
    small: Arc<Semaphore>,
    of_client: usize,
    turns: Mutex<HashMap<Client, Weak<Semaphore>>>,
    large: Arc<Semaphore>,
}

/// A worker that is taken; dropping it gives it back.
pub struct Worker {
    _turn: Option<OwnedSemaphorePermit>,
    _worker: OwnedSemaphorePermit,
}

impl Default for Checks {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (2 * cores).clamp(LEAST, MOST);
        Self {
            small: Arc::new(Semaphore::new(workers)),
            of_client: workers / 2,
            turns: Mutex::default(),
            large: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Checks {
    /// Waits for a worker for a body of so many bytes.
    pub fn worker(
        &self,
        client: &Client,
        bytes: usize,
    ) -> impl Future<Output = Worker> + Send + 'static {
        let large = bytes > SMALL;
        let workers = if large { self.large.clone() } else { self.small.clone() };
        let turns = (!large).then(|| self.turns(client));
        async move {
            let _turn = match turns {
                Some(turns) => Some(taken(turns).await),
                None => None,
            };
            Worker { _turn, _worker: taken(workers).await }
        }
    }

    /// The turns of a client at the workers for small bodies.
    fn turns(&self, client: &Client) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = turns.get(client).and_then(Weak::upgrade) {
            return own;
        }
        turns.retain(|_, turns| turns.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.of_client));
        turns.insert(client.clone(), Arc::downgrade(&own));
        own
    }
}

async fn taken(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("the semaphores are never closed")
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_client_leaves_workers_to_others_and_large_bodies_to_small_ones() {
        let checks = Checks::default();
        let (greedy, modest) = (Client::Key("greedy".into()), Client::Key("modest".into()));
        let worker = |client: &Client, bytes| checks.worker(client, bytes).now_or_never();
        let held: Vec<_> = (0..checks.of_client).map(|_| worker(&greedy, 1).unwrap()).collect();
        assert!(worker(&greedy, 1).is_none(), "it waits");
        let other = worker(&modest, SMALL).unwrap();
        let large = worker(&greedy, SMALL + 1).unwrap();
        assert!(worker(&modest, SMALL + 1).is_none(), "large ones wait for each other");
        drop((held, other, large));
        assert!(worker(&greedy, 1).is_some() && worker(&modest, SMALL + 1).is_some());
        assert!(checks.turns.lock().unwrap().len() <= 2);
    }
}
