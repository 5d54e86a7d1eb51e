//! The plan of the next step: a pure function of the queue and the budgets.
//!
//! A sequence is its tokens (prompt and answer so far) and how many of them are `computed`, that
//! is, have keys and values in the cache. What is not computed is *pending*: one token when
//! decoding, more while prefilling. So chunked prefill, decode and recomputation after a
//! preemption are one rule: compute some pending tokens; when none is left, sample.
//!
//! - **Decode first.** Every decoding sequence is in every step; prefill gets the rest of
//!   `step_tokens`, at most `prefill_chunk` per sequence and, beside decoding rows, no more rows
//!   than the caller's cost model allows, so that prompts do not stall answers.
//! - **Order.** By arrival, in which each step of priority counts as `aging` of waiting, so a
//!   priority is worth seconds and nothing starves; equal priorities stay in order. A head of the
//!   queue that does not fit stops admission, so that a large request is not overtaken forever.
//! - **Shares.** While several clients want the engine each may use an equal part of its lanes and
//!   blocks, and goes before those who have theirs; what is left over is anybody's. Who waits
//!   for its share takes the place of a sequence of a client that has more.
//! - **Key/value memory never overruns.** Admission takes the blocks of all present tokens and
//!   leaves one per running lane; growth takes a block at a time. When there is none, the least
//!   important running sequence gives up all of its blocks and is computed again later, from the
//!   prefix cache where its blocks are still there. The most important sequence always goes on, so
//!   all finish. (Reserving prompt + `max_tokens` instead would leave most of the memory idle:
//!   answers are usually far shorter than their limit.)
//! - **What an encoder reads is computed whole:** its rows attend to one another, so they are in one
//!   step, in blocks of their own, which are shared all together or not at all.
//! - **A shared prefix is computed once:** a sequence whose next block another one is about to
//!   compute waits for it, and lanes of one sequence whose first blocks have equal names hold the same
//!   blocks, which the first lane computes.

mod fairness;
mod sequence;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
    time::Duration,
};

pub use self::sequence::NewSequence;
use self::sequence::{Lane, Sequence};
use super::blocks::{BlockHash, BlockId, BlockPool, IntegrityError};

/// Number of a sequence, unique within an engine.
pub type SeqId = u64;

/// Budgets of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Token rows of one step; at least `lanes`. Of prompts that are encoded, which are computed before
    /// the other rows, as many beside them.
    pub step_tokens: usize,
    /// Rows of one sequence's prefill in one step.
    pub prefill_chunk: usize,
    /// Running lanes (a sequence has one, or one per backbone when logits are combined).
    pub lanes: usize,
    /// Rows of logits per step for prompts whose log-probabilities were asked for.
    pub logit_rows: usize,
    /// Waiting this long is worth a step of priority.
    pub aging: Duration,
    /// A sequence that waits this long for its weights stops the admission of those behind it.
    pub patience: Duration,
    /// Whether computed prefixes are reused.
    pub prefix_cache: bool,
}

/// Rows of one sequence in a step: `tokens[range]`, in each of its lanes. When the range reaches
/// the last token, the next one is to be sampled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The sequence.
    pub id: SeqId,
    /// Positions to compute; its start is what the cache holds already.
    pub range: Range<usize>,
}

/// Plan of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepPlan {
    /// Rows to compute, decoding sequences first.
    pub items: Vec<Item>,
    /// Sequences that joined, with the tokens that the prefix cache had for them.
    pub admitted: Vec<(SeqId, usize)>,
    /// Sequences that left and will be computed again.
    pub preempted: Vec<SeqId>,
}

/// The queue, the running sequences and their key/value blocks.
#[derive(Debug, Clone)]
pub struct Scheduler {
    limits: StepLimits,
    pool: BlockPool,
    sequences: HashMap<SeqId, Sequence>,
    waiting: Vec<SeqId>,
    running: Vec<SeqId>,
    next: SeqId,
}

impl Scheduler {
    /// An empty scheduler over `pool`.
    pub fn new(limits: StepLimits, pool: BlockPool) -> Self {
        let (sequences, next) = (HashMap::new(), 0);
        Self { limits, pool, sequences, waiting: Vec::new(), running: Vec::new(), next }
    }

    /// Puts a task in the queue. The task must fit the pool and the lanes on its own.
    pub fn enqueue(&mut self, task: NewSequence) -> SeqId {
        let id = self.next;
        self.next += 1;
        let mut sequence = Sequence::new(task);
        if self.limits.prefix_cache {
            sequence.extend_names(self.pool.block_tokens());
        }
        self.sequences.insert(id, sequence);
        self.waiting.push(id);
        id
    }

    /// Plans a step. `beside(decoding, prompts)` says how many rows of prefill may join so many
    /// decoding rows while so many sequences have prompts to compute (one token always may).
    /// `ready` is asked about a waiting sequence when all else allows it to join: whether its
    /// weights are there.
    pub fn plan(
        &mut self,
        now: Duration,
        beside: impl FnOnce(usize, usize) -> usize,
        mut ready: impl FnMut(SeqId) -> bool,
    ) -> StepPlan {
        let mut plan = StepPlan::default();
        let mut budget = Budget::new(&self.limits);
        let mut shares = self.shares();
        if let Some(id) = self.to_make_room(&shares, now, &mut ready) {
            self.preempt(id);
            plan.preempted.push(id);
            shares = self.shares();
        }
        let mut order = self.running.clone();
        order.sort_by_cached_key(|&id| self.importance(&shares, id));

        let (mut index, mut short) = (0, false);
        while let Some(&id) = order.get(index) {
            index += 1;
            if self.sequences[&id].pending() != 1 {
                continue;
            }
            while !self.grow(id) {
                // The victim is `id` itself when nothing less important runs.
                let Some(victim) = order.pop() else { break };
                self.preempt(victim);
                plan.preempted.push(victim);
                short = true;
                if victim == id {
                    break;
                }
            }
            if order.len() >= index {
                let sequence = &self.sequences[&id];
                budget.rows = budget.rows.saturating_sub(sequence.lanes.len());
                plan.items.push(Item { id, range: sequence.computed..sequence.tokens.len() });
            }
        }
        let decoding = self.limits.step_tokens - budget.rows;
        if decoding > 0 {
            let widest = self.sequences.values().map(|sequence| sequence.lanes.len()).max();
            let computing = order.iter().filter(|id| self.sequences[id].pending() > 1).count();
            let places = self.limits.lanes.saturating_sub(self.running_lanes());
            let prompts = computing + self.waiting.len().min(places);
            let beside = beside(decoding, prompts);
            budget.rows = budget.rows.min(beside.max(widest.unwrap_or(1)));
            budget.encoded = budget.encoded.min(beside);
        }
        for &id in &order {
            if self.sequences[&id].pending() > 1 {
                plan.items.extend(self.chunk(id, &mut budget));
            }
        }
        // Blocks that the growth of some took from others are for the sequences that run.
        if !short {
            self.admit(now, &mut budget, &mut plan, &mut ready);
        }
        plan
    }

    /// Lets waiting sequences join: those of clients that have less than their share, then any.
    fn admit(
        &mut self,
        now: Duration,
        budget: &mut Budget,
        plan: &mut StepPlan,
        ready: &mut impl FnMut(SeqId) -> bool,
    ) {
        let mut lanes = self.running_lanes();
        if self.waiting.is_empty() || lanes >= self.limits.lanes || budget.rows == 0 {
            return;
        }
        let mut shares = self.shares();
        let mut order = self.waiting.clone();
        order.sort_by_cached_key(|&id| self.turn(id));
        let mut order: VecDeque<_> = order.into_iter().map(|id| (id, false)).collect();
        let mut computing: HashSet<BlockHash> = HashSet::new();
        self.running.iter().for_each(|&id| computing.extend(self.unfinished_names(id)));

        while let Some((id, put_off)) = order.pop_front() {
            let sequence = &self.sequences[&id];
            if !put_off && shares.used_up(&sequence.client) {
                order.push_back((id, true));
                continue;
            }
            let width = sequence.lanes.len();
            if lanes + width > self.limits.lanes || budget.rows < width {
                break;
            }
            let shared = self.shared_blocks(sequence);
            let next = sequence.lanes.first().and_then(|lane| lane.names.get(shared));
            if !sequence.prompt_logits && next.is_some_and(|name| computing.contains(name)) {
                continue;
            }
            let encoded = sequence.to_encode(shared * self.pool.block_tokens());
            if !self.fits(sequence, shared, lanes) || !budget.encodes(encoded) {
                break;
            }
            if !ready(id) {
                if now.saturating_sub(sequence.arrived) >= self.limits.patience {
                    break;
                }
                continue;
            }
            self.start(id, shared);
            shares.add(&self.sequences[&id]);
            lanes += width;
            plan.admitted.push((id, shared * self.pool.block_tokens()));
            computing.extend(self.unfinished_names(id));
            plan.items.extend(self.chunk(id, budget));
        }
    }

    /// The next rows of a sequence with pending tokens, within the budget.
    fn chunk(&self, id: SeqId, budget: &mut Budget) -> Option<Item> {
        let sequence = &self.sequences[&id];
        let lanes = sequence.lanes.len();
        let encoded = sequence.to_encode(sequence.computed);
        if !budget.encodes(encoded) {
            return None;
        }
        let first = sequence.computed.max(sequence.encoded);
        let pending = sequence.tokens.len() - first;
        let mut len = pending.min(self.limits.prefill_chunk).min(budget.rows / lanes);
        if sequence.prompt_logits {
            // At least a row per step, so that the prompt is finished.
            len = len.min((budget.logits / lanes).max(1));
            budget.logits = budget.logits.saturating_sub(len * lanes);
        }
        if len == 0 {
            return None;
        }
        budget.rows -= len * lanes;
        budget.encode(encoded);
        Some(Item { id, range: sequence.computed..first + len })
    }

    /// Leading blocks of a waiting sequence that the prefix cache has in every lane. The last
    /// token is always computed: its logits are needed.
    fn shared_blocks(&self, sequence: &Sequence) -> usize {
        if sequence.prompt_logits {
            return 0;
        }
        let most = sequence.tokens.len().saturating_sub(1) / self.pool.block_tokens();
        let found = |lane: &Lane| {
            lane.names.iter().take(most).take_while(|name| self.pool.find(name).is_some()).count()
        };
        let found = sequence.lanes.iter().map(found).min().unwrap_or(0);
        // What is encoded is there as a whole, or encoded anew.
        if found * self.pool.block_tokens() < sequence.encoded { 0 } else { found }
    }

    fn fits(&self, sequence: &Sequence, shared: usize, running_lanes: usize) -> bool {
        let fresh = self.pool.blocks_for(sequence.tokens.len()).saturating_sub(shared);
        let needed = fresh * sequence.lanes.len() + running_lanes;
        let names = sequence.lanes.iter().flat_map(|lane| &lane.names[..shared]);
        let idle = names.filter(|name| self.pool.find(name) == Some(true)).count();
        self.pool.available().saturating_sub(idle) >= needed
    }

    fn start(&mut self, id: SeqId, shared: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let blocks = self.pool.blocks_for(sequence.tokens.len());
        // Taking a fresh block may evict an idle one, so all shared blocks are held first.
        for lane in &mut sequence.lanes {
            lane.blocks.extend(lane.names[..shared].iter().map_while(|n| self.pool.share(n)));
        }
        // The last block is every lane's own: decoding writes to it.
        let most = sequence.tokens.len().saturating_sub(1) / self.pool.block_tokens();
        sequence.common = sequence.equal_blocks().min(most).max(shared);
        let mut common: Vec<BlockId> = Vec::new();
        for lane in &mut sequence.lanes {
            lane.blocks.extend(common.iter().map(|&block| self.pool.hold(block)));
            let rest = lane.blocks.len()..blocks;
            lane.blocks.extend(rest.map_while(|_| self.pool.take()));
            if common.is_empty() {
                common = lane.blocks[shared..sequence.common].to_vec();
            }
        }
        sequence.computed = shared * self.pool.block_tokens();
        sequence.named = shared;
        self.waiting.retain(|&other| other != id);
        self.running.push(id);
    }

    /// Takes the blocks that all present tokens of a running sequence need; false if there are
    /// too few (it keeps what it got).
    fn grow(&mut self, id: SeqId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return true };
        let needed = self.pool.blocks_for(sequence.tokens.len());
        for lane in &mut sequence.lanes {
            while lane.blocks.len() < needed {
                match self.pool.take() {
                    Some(block) => lane.blocks.push(block),
                    None => return false,
                }
            }
        }
        true
    }

    fn preempt(&mut self, id: SeqId) {
        self.release(id);
        self.running.retain(|&other| other != id);
        self.waiting.push(id);
    }

    fn release(&mut self, id: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            for lane in &mut sequence.lanes {
                // The last block is released first, so that it is evicted first: more sequences
                // share the start.
                lane.blocks.drain(..).rev().for_each(|block| self.pool.release(block));
            }
            (sequence.computed, sequence.named, sequence.common) = (0, 0, 0);
        }
    }

    /// Records that the rows of `item` were computed.
    pub fn computed(&mut self, item: &Item) {
        let Some(sequence) = self.sequences.get_mut(&item.id) else { return };
        sequence.computed = item.range.end;
        if self.limits.prefix_cache {
            let block_tokens = self.pool.block_tokens();
            sequence.extend_names(block_tokens);
            let full = sequence.computed / block_tokens;
            for lane in &sequence.lanes {
                let done = sequence.named..full.max(sequence.named);
                for (&block, &name) in lane.blocks[done.clone()].iter().zip(&lane.names[done]) {
                    self.pool.name(block, name);
                }
            }
            sequence.named = full;
        }
    }

    /// Appends a sampled token.
    pub fn push(&mut self, id: SeqId, token: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.push(token);
        }
    }

    /// Removes a sequence, running or waiting; its blocks return.
    pub fn finish(&mut self, id: SeqId) {
        self.release(id);
        self.sequences.remove(&id);
        self.waiting.retain(|&other| other != id);
        self.running.retain(|&other| other != id);
    }

    /// Forgets all keys and values: what ran will be computed again.
    pub fn forget(&mut self) {
        for id in self.running.clone() {
            self.preempt(id);
        }
        self.pool.forget();
    }

    /// Prompt and answer so far.
    pub fn tokens(&self, id: SeqId) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.tokens)
    }

    /// Key/value blocks of a lane.
    pub fn blocks(&self, id: SeqId, lane: usize) -> &[BlockId] {
        let lane = self.sequences.get(&id).and_then(|sequence| sequence.lanes.get(lane));
        lane.map_or(&[], |lane| &lane.blocks)
    }

    /// The first position whose keys and values a lane computes itself: what is before it, the first
    /// lane computes for all.
    pub fn own_from(&self, id: SeqId, lane: usize) -> usize {
        let common = self.sequences.get(&id).map_or(0, |sequence| sequence.common);
        if lane == 0 { 0 } else { common * self.pool.block_tokens() }
    }

    /// Sequences in the batch.
    pub fn running(&self) -> &[SeqId] {
        &self.running
    }

    /// Sequences in the queue.
    pub fn waiting(&self) -> &[SeqId] {
        &self.waiting
    }

    /// The key/value blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Checks that every block is free, idle or held as counted.
    pub fn check(&self) -> Result<(), IntegrityError> {
        let lanes = self.sequences.values().flat_map(|sequence| &sequence.lanes);
        self.pool.check(lanes.flat_map(|lane| lane.blocks.iter().copied()))
    }

    fn running_lanes(&self) -> usize {
        self.running.iter().map(|id| self.sequences[id].lanes.len()).sum()
    }

    /// Names of the full blocks that a sequence has yet to compute.
    fn unfinished_names(&self, id: SeqId) -> impl Iterator<Item = BlockHash> + '_ {
        let sequence = &self.sequences[&id];
        let first = sequence.computed / self.pool.block_tokens();
        sequence.lanes.iter().flat_map(move |lane| lane.names.iter().skip(first).copied())
    }
}

/// The rest of a step's budgets.
struct Budget {
    rows: usize,
    logits: usize,
    /// Tokens to encode. The first prompt may be longer, so that it has its turn.
    encoded: usize,
    /// Whether none has been encoded.
    none_encoded: bool,
}

impl Budget {
    fn new(limits: &StepLimits) -> Self {
        let (rows, logits) = (limits.step_tokens, limits.logit_rows);
        Self { rows, logits, encoded: rows, none_encoded: true }
    }

    /// Whether so many tokens may be encoded.
    fn encodes(&self, tokens: usize) -> bool {
        tokens <= self.encoded || self.none_encoded
    }

    fn encode(&mut self, tokens: usize) {
        self.encoded = self.encoded.saturating_sub(tokens);
        self.none_encoded &= tokens == 0;
    }
}
