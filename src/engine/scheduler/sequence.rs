//! A sequence in the queue or in the batch: its tokens, how far they are computed, what it holds.

use std::time::Duration;

use crate::engine::{
    blocks::{BlockHash, BlockId, Chain},
    client::Client,
};

/// A sequence as it enters the queue.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// Its prompt.
    pub tokens: Vec<u32>,
    /// Leading tokens, whole blocks of them, that are encoded: all in one step, with at least one
    /// token after them. Else 0.
    pub encoded: usize,
    /// For every lane, how its blocks are named: by what computes their rows.
    pub chains: Vec<Chain>,
    /// Higher goes first.
    pub priority: i32,
    /// When it arrived; all times are since the engine's start.
    pub arrived: Duration,
    /// Logits of the whole prompt are needed, so all of it is computed.
    pub prompt_logits: bool,
    /// Whose share it is counted to.
    pub client: Client,
}

#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub chain: Chain,
    /// Names of the full blocks of `tokens`.
    pub names: Vec<BlockHash>,
    pub blocks: Vec<BlockId>,
}

#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub tokens: Vec<u32>,
    pub encoded: usize,
    pub computed: usize,
    pub lanes: Vec<Lane>,
    /// Full blocks that have been offered to the prefix cache.
    pub named: usize,
    /// Leading blocks that all lanes hold together and the first one computes.
    pub common: usize,
    pub priority: i32,
    pub arrived: Duration,
    pub prompt_logits: bool,
    pub client: Client,
}

impl Sequence {
    /// A sequence that holds nothing.
    pub fn new(task: NewSequence) -> Self {
        let lane = |chain| Lane { chain, names: Vec::new(), blocks: Vec::new() };
        Self {
            tokens: task.tokens,
            encoded: task.encoded,
            computed: 0,
            lanes: task.chains.into_iter().map(lane).collect(),
            named: 0,
            common: 0,
            priority: task.priority,
            arrived: task.arrived,
            prompt_logits: task.prompt_logits,
            client: task.client,
        }
    }

    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens to encode, over all lanes, if the first `computed` are in the cache.
    pub fn to_encode(&self, computed: usize) -> usize {
        if computed < self.encoded { self.encoded * self.lanes.len() } else { 0 }
    }

    /// Lanes in the batch: all while it runs, else none.
    pub fn held_lanes(&self) -> usize {
        self.lanes.iter().filter(|lane| !lane.blocks.is_empty()).count()
    }

    /// Key/value blocks of all lanes.
    pub fn held_blocks(&self) -> usize {
        self.lanes.iter().map(|lane| lane.blocks.len()).sum()
    }

    pub fn extend_names(&mut self, block_tokens: usize) {
        for lane in &mut self.lanes {
            let blocks = self.tokens.chunks_exact(block_tokens).enumerate();
            for (index, tokens) in blocks.skip(lane.names.len()) {
                let name = lane.chain.name(lane.names.last(), index * block_tokens, tokens);
                lane.names.push(name);
            }
        }
    }

    /// Leading blocks of equal names in all lanes. Where the logits of the prompt are needed, every
    /// lane computes its own.
    pub fn equal_blocks(&self) -> usize {
        let Some((first, rest)) = self.lanes.split_first().filter(|_| !self.prompt_logits) else {
            return 0;
        };
        let equal = |lane: &Lane| {
            lane.names.iter().zip(&first.names).take_while(|(name, other)| name == other).count()
        };
        rest.iter().map(equal).min().unwrap_or(0)
    }
}
