//! Turns on a device: engines that share it, and work in the background of their steps.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Least time of a slice of background work.
const LEAST_SLICE: Duration = Duration::from_millis(1);

/// A device's turns: of those that share it one computes at a time, in the order in which they
/// asked, so that the threads of a step have all cores.
#[derive(Debug, Default)]
pub struct Turns {
    tickets: Mutex<Tickets>,
    ended: Condvar,
    /// Nanoseconds of the last step.
    step: AtomicU64,
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

    /// A turn of background work, and how long that may take: such a share of the last step.
    fn slice(&self, share: f64) -> (Turn<'_>, Duration) {
        let turn = self.take();
        let step = Duration::from_nanos(self.step.load(Ordering::Relaxed));
        (turn, step.mul_f64(share).max(LEAST_SLICE))
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
    /// Longest slice, as a share of a step.
    pub share: f64,
}

impl Pace {
    /// Does `work` on runs of `items`, each as long as a slice allows.
    pub fn run<T, E>(
        &self,
        items: Vec<T>,
        mut work: impl FnMut(Vec<T>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut items, mut count) = (items.into_iter().peekable(), 1);
        while items.peek().is_some() {
            let (turn, allowed) = self.turns.slice(self.share);
            let begun = Instant::now();
            work(items.by_ref().take(count).collect())?;
            let took = begun.elapsed();
            drop(turn);
            count = next_count(count, took, allowed);
        }
        Ok(())
    }
}

/// Items of the next slice, after `count` took so long; at most twice and at least half as many.
fn next_count(count: usize, took: Duration, allowed: Duration) -> usize {
    let fit = count as f64 * allowed.as_secs_f64() / took.as_secs_f64().max(1e-9);
    (fit as usize).clamp(count.div_ceil(2), 2 * count)
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
    fn background_work_is_done_once_each_in_order_and_between_steps() {
        let turns = Arc::new(Turns::default());
        drop(turns.step());
        let pace = Pace { turns: turns.clone(), share: 0.25 };
        let (mut done, mut slices) = (Vec::new(), 0);
        let outcome: Result<(), ()> = pace.run((0..1000).collect(), |items| {
            // Its own turn: a step would have to wait.
            let Tickets { drawn, ended } = *turns.lock();
            assert_eq!(drawn, ended + 1);
            slices += 1;
            done.extend(items);
            Ok(())
        });
        assert_eq!((outcome, done), (Ok(()), (0..1000).collect::<Vec<_>>()));
        assert!(slices > 1);
        let mut left = 3;
        let failed = pace.run(vec![(); 1000], |_| {
            left -= 1;
            if left == 0 { Err("fails") } else { Ok(()) }
        });
        assert_eq!((failed, left), (Err("fails"), 0), "nothing after a failure");
        drop(turns.step());
    }

    #[test]
    fn slices_come_near_what_they_may_take() {
        let ms = Duration::from_millis;
        assert_eq!(next_count(8, ms(2), ms(3)), 12);
        assert_eq!(next_count(8, ms(2), ms(100)), 16);
        assert_eq!(next_count(8, ms(100), ms(2)), 4);
        assert_eq!(next_count(1, ms(100), ms(1)), 1);
        assert_eq!(next_count(3, Duration::ZERO, ms(1)), 6);
    }
}
