//! Turns of engines that share a device.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A device's turns: of the engines that share it one computes at a time, in the order in which they
/// asked, so that the threads of one step have all cores.
#[derive(Debug, Default)]
pub struct Turns {
    tickets: Mutex<Tickets>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Tickets {
    drawn: u64,
    ended: u64,
}

/// A turn, which ends when this is dropped.
#[derive(Debug)]
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for those who asked before.
    pub fn take(&self) -> Turn<'_> {
        let mut tickets = self.lock();
        let own = tickets.drawn;
        tickets.drawn += 1;
        while tickets.ended != own {
            tickets = self.ended.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().ended += 1;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use super::*;

    #[test]
    fn turns_come_in_the_order_in_which_they_were_asked_for() {
        let (turns, order) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
        let first = turns.take();
        let others: Vec<_> = (1..5)
            .map(|drawn| {
                let (asks, order) = (turns.clone(), order.clone());
                let thread = thread::spawn(move || {
                    let _turn = asks.take();
                    order.lock().unwrap().push(drawn);
                });
                while turns.lock().drawn <= drawn {
                    thread::sleep(Duration::from_millis(1));
                }
                thread
            })
            .collect();
        assert!(order.lock().unwrap().is_empty());
        drop(first);
        others.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*order.lock().unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_turn_that_panics_ends() {
        let turns = Turns::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = turns.take();
            panic!("a step that fails");
        }));
        assert!(panicked.is_err());
        turns.take();
    }
}
