//! Turns on a device: engines that share it, and work in the background of their steps.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Least time of a slice of background work.
const LEAST_SLICE: Duration = Duration::from_millis(1);

/// How many times as long (at most) slices are because requests wait for them.
const MOST_WAITING: usize = 5;

/// A device's turns: of those that share it one computes at a time, in the order in which they
/// asked, so that the threads of a step have all cores.
#[derive(Debug, Default)]
pub struct Turns {
    tickets: Mutex<Tickets>,
    ended: Condvar,
    /// Nanoseconds of the last step.
    step: AtomicU64,
    /// By how many the requests that wait for background work outnumbered the others of the engine
    /// whose step was the last.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Tickets {
    drawn: u64,
    ended: u64,
}

/// A turn, which ends when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
    /// When it began, if it is a step's.
    step: Option<Instant>,
}

impl Turns {
    /// The turn of a step; waits for those who asked before.
    pub fn step(&self) -> Turn<'_> {
        let mut turn = self.take();
        turn.step = Some(Instant::now());
        turn
    }

    /// Notes by how many the requests that wait for background work outnumber the others of an engine.
    pub fn note_waiting(&self, requests: usize) {
        self.waiting.store(requests, Ordering::Relaxed);
    }

    /// A turn of background work, and how long that may take: such a share of the last step, times
    /// the number that wait.
    fn slice(&self, share: f64) -> (Turn<'_>, Duration) {
        let turn = self.take();
        let step = Duration::from_nanos(self.step.load(Ordering::Relaxed));
        let waiting = self.waiting.load(Ordering::Relaxed).clamp(1, MOST_WAITING);
        (turn, step.mul_f64(share * waiting as f64).max(LEAST_SLICE))
    }

    fn take(&self) -> Turn<'_> {
        let mut tickets = self.lock();
        let own = tickets.drawn;
        tickets.drawn += 1;
        while tickets.ended != own {
            tickets = self.ended.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { turns: self, step: None }
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(begun) = self.step {
            let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.turns.step.store(took, Ordering::Relaxed);
        }
        self.turns.lock().ended += 1;
        self.turns.ended.notify_all();
    }
}

/// How background work goes on beside the steps of a device: in slices between them.
#[derive(Debug, Clone)]
pub struct Pace {
    pub turns: Arc<Turns>,
    /// Longest slice, as a share of a step; up to five times as long where more requests wait for the
    /// work than do not ([`Turns::note_waiting`]).
    pub share: f64,
}

impl Pace {
    /// Calls `slice` in turns of its own, each time with the instant at which it should return, until it
    /// has nothing left to do: it returns whether it has.
    pub fn run<E>(&self, mut slice: impl FnMut(Instant) -> Result<bool, E>) -> Result<(), E> {
        loop {
            let (_turn, allowed) = self.turns.slice(self.share);
            let begin = Instant::now();
            let more = slice(begin + allowed)?;
            tracing::trace!(?allowed, elapsed = ?begin.elapsed(), "slice");
            if !more {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn turns_come_in_the_order_in_which_they_were_asked_for() {
        let (turns, order) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
        let first = turns.step();
        let others: Vec<_> = (1..5)
            .map(|drawn| {
                let (asks, order) = (turns.clone(), order.clone());
                let thread = thread::spawn(move || {
                    let _turn = asks.step();
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
            let _turn = turns.step();
            panic!("a step that fails");
        }));
        assert!(panicked.is_err());
        turns.step();
    }

    #[test]
    fn background_work_goes_on_in_turns_until_it_is_done_or_fails() {
        let turns = Arc::new(Turns::default());
        drop(turns.step());
        let pace = Pace { turns: turns.clone(), share: 0.25 };
        let mut left = 100;
        let outcome: Result<(), ()> = pace.run(|until| {
            // Its own turn: a step would have to wait.
            let Tickets { drawn, ended } = *turns.lock();
            assert_eq!(drawn, ended + 1);
            assert!(until > Instant::now());
            left -= 1;
            Ok(left > 0)
        });
        assert_eq!((outcome, left), (Ok(()), 0));
        assert_eq!(pace.run(|_| Err("fails")), Err("fails"));
        drop(turns.step());
    }

    #[test]
    fn a_slice_is_a_share_of_the_last_step() {
        let turns = Turns::default();
        assert_eq!(turns.slice(0.25).1, LEAST_SLICE);
        let step = turns.step();
        thread::sleep(Duration::from_millis(40));
        drop(step);
        assert!(turns.slice(0.25).1 >= Duration::from_millis(10));
        // Slices are no steps.
        assert!(turns.slice(0.25).1 >= Duration::from_millis(10));
        let of_each = |waiting| {
            turns.note_waiting(waiting);
            turns.slice(0.1).1
        };
        assert!(of_each(3) > of_each(1) * 2);
        assert_eq!((of_each(0), of_each(100)), (of_each(1), of_each(5)));
    }
}
