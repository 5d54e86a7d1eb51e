//! The connections that are open: how many there may be, of all clients and of one, and which one
//! makes room for another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    error::ApiError,
    socket::{Socket, Waits},
};
use crate::engine::Client;

/// Descriptors that are left for everything but connections.
const OTHER_DESCRIPTORS: u64 = 64;
/// Connections that are served however few descriptors there are.
const LEAST: u64 = 16;
/// `Retry-After` of a connection that is refused, seconds.
const RETRY: u64 = 1;

/// The connections of a server.
pub struct Connections {
    most: usize,
    most_of_client: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, (Client, Arc<Socket>)>,
    of_client: HashMap<Client, usize>,
}

impl Open {
    fn remove(&mut self, id: u64) -> Option<Arc<Socket>> {
        let (client, socket) = self.connections.remove(&id)?;
        if let Some(count) = self.of_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.of_client.remove(&client);
            }
        }
        Some(socket)
    }
}

impl Connections {
    /// At most so many connections in all and of one client.
    pub fn new(most: usize, most_of_client: usize) -> Self {
        Self { most, most_of_client, open: Mutex::default() }
    }

    /// Counts a connection until the guard is dropped. Where there are too many, one that waits for a
    /// request is closed for it: of the client with the most connections the one that has waited
    /// longest.
    pub fn admit(
        self: &Arc<Self>,
        client: Client,
        socket: Arc<Socket>,
    ) -> Result<OpenConnection, ApiError> {
        let mut open = self.lock();
        if open.of_client.get(&client).is_some_and(|count| *count >= self.most_of_client) {
            return Err(ApiError::ConnectionLimit { limit: self.most_of_client });
        }
        if open.connections.len() >= self.most && !make_room(&mut open) {
            return Err(ApiError::Overloaded {
                message: format!("{} connections are open, the limit", self.most),
                retry_after: RETRY,
            });
        }
        let id = open.next;
        open.next += 1;
        *open.of_client.entry(client.clone()).or_default() += 1;
        open.connections.insert(id, (client, socket));
        Ok(OpenConnection { connections: self.clone(), id })
    }

    /// Closes a connection that waits for a request, so that its descriptor becomes free.
    pub fn free_one(&self) {
        make_room(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Counts are consistent even after a panic: they change together without a call between.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_room(open: &mut Open) -> bool {
    let waiting = open.connections.iter().filter(|(_, (_, socket))| socket.is_idle());
    let longest = waiting.filter_map(|(&id, (client, socket))| match socket.waits() {
        Waits::Request(since) | Waits::Head(since) => {
            let count = open.of_client.get(client).copied().unwrap_or_default();
            Some((count, since.elapsed(), id))
        }
        Waits::Answer => None,
    });
    let Some((_, _, id)) = longest.max() else { return false };
    if let Some(socket) = open.remove(id) {
        socket.give_up();
    }
    true
}

/// An open connection, which is counted until this is dropped.
pub struct OpenConnection {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.connections.lock().remove(self.id);
    }
}

/// How many connections the process has descriptors for, of those that are wanted; its own limit of
/// descriptors is raised as far as the system lets it.
pub fn affordable(wanted: usize) -> usize {
    let needed = (wanted as u64).saturating_add(OTHER_DESCRIPTORS);
    let Some(descriptors) = descriptors(needed) else { return wanted };
    let most = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(LEAST);
    if most < wanted as u64 {
        tracing::warn!(
            descriptors,
            max_connections = most,
            "fewer connections than configured: the limit of open files (ulimit -n) is too low"
        );
    }
    wanted.min(usize::try_from(most).unwrap_or(usize::MAX))
}

/// The descriptors that the process may have, after asking for as many as are needed; `None` where
/// the system does not say.
#[cfg(unix)]
fn descriptors(needed: u64) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a valid struct for the length of the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return None;
    }
    let raised = libc::rlimit { rlim_cur: needed.min(limit.rlim_max), ..limit };
    if raised.rlim_cur <= limit.rlim_cur {
        return Some(limit.rlim_cur);
    }
    // SAFETY: as above.
    let failed = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } != 0;
    Some(if failed { limit.rlim_cur } else { raised.rlim_cur })
}

#[cfg(not(unix))]
fn descriptors(_: u64) -> Option<u64> {
    None
}
