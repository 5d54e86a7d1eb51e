//! What each client uses of the engine, and whose turn it is.

use std::{collections::HashMap, time::Duration};

use super::{Scheduler, SeqId, StepLimits, sequence::Sequence};
use crate::engine::client::Client;

/// After waiting for so many steps of priority, a sequence of a client that has less than its share
/// takes the place of one of a client that has more.
const GRACE: u32 = 10;

/// What the clients with sequences use: of the lanes or of the blocks, whichever is the larger part.
/// Each may use an equal part; what others do not want is anybody's.
pub(super) struct Shares {
    used: HashMap<Client, Used>,
    lanes: usize,
    blocks: usize,
}

#[derive(Clone, Copy, Default)]
struct Used {
    lanes: usize,
    blocks: usize,
}

impl Shares {
    /// What is used by those who have sequences, waiting ones included.
    fn new<'a>(
        sequences: impl Iterator<Item = &'a Sequence>,
        limits: &StepLimits,
        blocks: usize,
    ) -> Self {
        let mut shares = Self { used: HashMap::new(), lanes: limits.lanes, blocks };
        sequences.for_each(|sequence| shares.add(sequence));
        shares
    }

    /// Counts what a sequence holds.
    pub(super) fn add(&mut self, sequence: &Sequence) {
        let used = match self.used.get_mut(&sequence.client) {
            Some(used) => used,
            None => self.used.entry(sequence.client.clone()).or_default(),
        };
        used.lanes += sequence.held_lanes();
        used.blocks += sequence.held_blocks();
    }

    /// Whether a client has its share or more. One that is alone never has.
    pub(super) fn used_up(&self, client: &Client) -> bool {
        self.is_share(self.used(client))
    }

    /// Whether the client of a running sequence has its share without it, too.
    fn can_spare(&self, sequence: &Sequence) -> bool {
        let used = self.used(&sequence.client);
        self.is_share(Used {
            lanes: used.lanes.saturating_sub(sequence.held_lanes()),
            blocks: used.blocks.saturating_sub(sequence.held_blocks()),
        })
    }

    fn used(&self, client: &Client) -> Used {
        self.used.get(client).copied().unwrap_or_default()
    }

    fn is_share(&self, used: Used) -> bool {
        let clients = self.used.len();
        clients > 1 && (used.lanes * clients >= self.lanes || used.blocks * clients >= self.blocks)
    }
}

impl Scheduler {
    /// What each client uses now.
    pub(super) fn shares(&self) -> Shares {
        Shares::new(self.sequences.values(), &self.limits, self.pool.len())
    }

    /// Sorts the more important first: those of clients that have less than their share, then those
    /// whose turn it is.
    pub(super) fn importance(&self, shares: &Shares, id: SeqId) -> (bool, (i128, SeqId)) {
        (shares.used_up(&self.sequences[&id].client), self.turn(id))
    }

    /// Sorts by arrival, in which a step of priority counts as [`StepLimits::aging`] of waiting.
    pub(super) fn turn(&self, id: SeqId) -> (i128, SeqId) {
        let Sequence { arrived, priority, .. } = &self.sequences[&id];
        let earlier = self.limits.aging.as_micros() as i128 * i128::from(*priority);
        (arrived.as_micros() as i128 - earlier, id)
    }

    /// The running sequence that makes room for one that has waited long, of a client with less than
    /// its share; its own client keeps its share. `None` where nobody need leave.
    pub(super) fn to_make_room(
        &self,
        shares: &Shares,
        now: Duration,
        ready: &mut impl FnMut(SeqId) -> bool,
    ) -> Option<SeqId> {
        let of = |id: &SeqId| &self.sequences[id];
        let spare = self.running.iter().copied().filter(|id| shares.can_spare(of(id)));
        let victim = spare.max_by_key(|&id| self.turn(id))?;
        let wanting = self.waiting.iter().copied().filter(|id| !shares.used_up(&of(id).client));
        let first = wanting.min_by_key(|&id| self.turn(id))?;
        let sequence = of(&first);
        if now.saturating_sub(sequence.arrived) < self.limits.aging * GRACE {
            return None;
        }
        let lanes = self.running_lanes();
        let fits = lanes + sequence.lanes.len() <= self.limits.lanes
            && self.fits(sequence, self.shared_blocks(sequence), lanes);
        (!fits && ready(first)).then_some(victim)
    }
}
