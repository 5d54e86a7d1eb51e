//! Memory for request bodies: one budget for all that are held at a time.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that each body may hold outside the budget, so that ordinary requests pass whatever the
/// large ones hold.
pub const SMALL: usize = 64 << 10;
/// The budget is counted in units of so many bytes.
const UNIT: usize = 64 << 10;

/// The memory that bodies larger than [`SMALL`] share.
pub struct BodyMemory {
    units: Arc<Semaphore>,
    bytes: u64,
}

/// There is no memory left for a larger body.
#[derive(Debug, PartialEq, Eq)]
pub struct Exhausted;

impl BodyMemory {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(UNIT);
        Self { units: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))), bytes }
    }

    /// The budget in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A body of which nothing has arrived.
    pub fn body(&self) -> HeldBody {
        HeldBody { bytes: Vec::new(), units: self.units.clone(), held: None }
    }
}

/// A body with its part of the budget, which returns when it is dropped.
pub struct HeldBody {
    bytes: Vec<u8>,
    units: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl HeldBody {
    /// What has arrived.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends a part, if the budget holds what the body then takes.
    pub fn push(&mut self, part: &[u8]) -> Result<(), Exhausted> {
        let needed = self.bytes.len() + part.len();
        if needed > SMALL && needed > self.bytes.capacity() {
            // What is allocated is what is charged, so it does not double as a list does.
            let grown = self.bytes.len() + self.bytes.len() / 4;
            let capacity = needed.max(grown).next_multiple_of(UNIT);
            self.charge(capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }

    /// Takes the units of a body of `capacity` bytes out of the budget.
    fn charge(&mut self, capacity: usize) -> Result<(), Exhausted> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = (capacity.div_ceil(UNIT) - SMALL / UNIT).saturating_sub(held);
        let more = u32::try_from(more).map_err(|_| Exhausted)?;
        let more = self.units.clone().try_acquire_many_owned(more).map_err(|_| Exhausted)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_share_the_budget_and_small_ones_pass_beside_them() {
        let memory = BodyMemory::new(1 << 20);
        let part = [b' '; 10_000];
        let fill = |body: &mut HeldBody, bytes: usize| {
            while body.bytes().len() < bytes {
                body.push(&part)?;
            }
            Ok(())
        };
        let mut large = memory.body();
        assert_eq!(fill(&mut large, 900_000), Ok(()));
        assert!(large.bytes.capacity() <= (1 << 20) + SMALL);
        let mut other = memory.body();
        assert_eq!(fill(&mut other, 500_000), Err(Exhausted));
        let mut small = memory.body();
        assert_eq!(fill(&mut small, SMALL - part.len()), Ok(()));
        drop((large, other));
        let mut other = memory.body();
        assert_eq!(fill(&mut other, 500_000), Ok(()));
        drop((other, small));
        assert_eq!(memory.units.available_permits(), 16, "everything returns");
    }
}
