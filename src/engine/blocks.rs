//! Key/value blocks: a reference-counted allocator of fixed-size blocks and, over it, a prefix
//! cache.
//!
//! A block holds the keys and values of [`BlockPool::block_tokens`] consecutive tokens of one
//! sequence. Sequences grow by taking another block; blocks are never copied. A full block is named
//! by a [`BlockHash`] that covers the soup and *all* tokens up to its end, each with the c and the
//! execution mode that computed its row ([`Chain`]), and all of the prompt where that is encoded. Equal
//! names therefore mean equal contents to the bit (up to rounding where the mode is free), and a block
//! that another preference computed never matches. Named blocks without holders stay for reuse until space is needed; the longest unused is
//! evicted first.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::request::Mode;
use crate::preference::ModelKey;

/// Index of a block in the key/value memory.
pub type BlockId = u32;

/// Name of a full block, or of the empty prefix under one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// The empty prefix under a model of the soup `digest` in one mode, or in a mode that is free: the
    /// modes round differently, and a request that can be repeated must not meet rows of the other.
    pub fn root(digest: &str, key: &ModelKey, mode: Option<Mode>) -> Self {
        let mut hash = Sha256::new();
        hash.update((digest.len() as u64).to_le_bytes());
        hash.update(digest.as_bytes());
        hash.update(mode.map_or("free", Mode::as_str).as_bytes());
        key.bytes().for_each(|bytes| hash.update(bytes));
        Self(hash.finalize().into())
    }

    /// The same prefix in the blocks of one owner, which nobody else finds; of nobody, as it is.
    pub fn owned_by(self, owner: Option<&str>) -> Self {
        let Some(owner) = owner else { return self };
        let mut hash = Sha256::new();
        hash.update(self.0);
        // No token has this id, so no block of tokens has this name.
        hash.update(u32::MAX.to_le_bytes());
        hash.update(owner.as_bytes());
        Self(hash.finalize().into())
    }

    /// The prefix that `self` names, followed by a block that `model` computes from its row `at` on.
    fn handed_over(&self, model: &Self, at: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(model.0);
        hash.update((at as u64).to_le_bytes());
        Self(hash.finalize().into())
    }

    /// The block of `tokens` after the prefix that `self` names.
    pub fn then(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        Self(hash.finalize().into())
    }
}

/// How the blocks of a sequence are named: by the model that computes its rows, and where another one
/// takes over (`docs/algorithms.md` §2.4), by that from there on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    root: BlockHash,
    /// The first row of the other model, and its empty prefix.
    then: Option<(usize, BlockHash)>,
}

impl From<BlockHash> for Chain {
    /// One model for all rows.
    fn from(root: BlockHash) -> Self {
        Self { root, then: None }
    }
}

impl Chain {
    /// `first` computes the rows before `at`, `model` those from there on.
    pub fn handing_over(first: BlockHash, at: usize, model: BlockHash) -> Self {
        Self { root: first, then: (model != first).then_some((at, model)) }
    }

    /// The same after a prompt that is encoded as a whole: all of it is in every block's name.
    pub fn after_encoded(self, prompt: &[u32]) -> Self {
        Self { root: self.root.then(prompt), ..self }
    }

    /// The name of the block of `tokens`, the first of them at position `start`, after the block
    /// `previous`.
    pub fn name(&self, previous: Option<&BlockHash>, start: usize, tokens: &[u32]) -> BlockHash {
        let previous = previous.unwrap_or(&self.root);
        match &self.then {
            Some((at, model)) if (start..start + tokens.len()).contains(at) => {
                previous.handed_over(model, at - start).then(tokens)
            }
            _ => previous.then(tokens),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    holders: u32,
    name: Option<BlockHash>,
    /// When its last holder released it; its key in `idle`.
    idle_since: u64,
}

/// The allocator.
#[derive(Debug, Clone)]
pub struct BlockPool {
    block_tokens: usize,
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    named: HashMap<BlockHash, BlockId>,
    /// Named blocks without holders, the longest unused first.
    idle: BTreeMap<u64, BlockId>,
    clock: u64,
}

/// A block that is neither free, nor idle, nor held as often as it is counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("block {block}: {reason}")]
pub struct IntegrityError {
    /// The block.
    pub block: BlockId,
    /// What does not fit.
    pub reason: String,
}

impl BlockPool {
    /// `blocks` blocks of `block_tokens` tokens, all free.
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        let blocks = blocks.min(u32::MAX as usize);
        Self {
            block_tokens: block_tokens.max(1),
            blocks: vec![Block::default(); blocks],
            free: (0..blocks as u32).rev().collect(),
            named: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Tokens per block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that hold `tokens` tokens.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// All blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the pool has no blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Blocks that [`Self::take`] can give: free ones and idle ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks kept only for reuse.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// A block for new contents, with one holder; an idle block loses its name for it.
    pub fn take(&mut self) -> Option<BlockId> {
        let id = self.free.pop().or_else(|| {
            let (_, id) = self.idle.pop_first()?;
            if let Some(name) = self.blocks[id as usize].name.take() {
                self.named.remove(&name);
            }
            Some(id)
        })?;
        self.blocks[id as usize].holders = 1;
        Some(id)
    }

    /// Whether a block of this name exists, and whether it is idle.
    pub fn find(&self, name: &BlockHash) -> Option<bool> {
        self.named.get(name).map(|&id| self.blocks[id as usize].holders == 0)
    }

    /// The block of this name, with one holder more.
    pub fn share(&mut self, name: &BlockHash) -> Option<BlockId> {
        let id = *self.named.get(name)?;
        let block = &mut self.blocks[id as usize];
        if block.holders == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.holders += 1;
        Some(id)
    }

    /// A held block, with one holder more.
    pub fn hold(&mut self, id: BlockId) -> BlockId {
        let block = &mut self.blocks[id as usize];
        debug_assert!(block.holders > 0, "block {id} is shared without being held");
        block.holders += 1;
        id
    }

    /// Names a held block whose contents are complete. If another block has the name already
    /// (two sequences computed the same prefix at once), this one stays nameless.
    pub fn name(&mut self, id: BlockId, name: BlockHash) {
        let block = &mut self.blocks[id as usize];
        if block.name.is_none() && !self.named.contains_key(&name) {
            block.name = Some(name);
            self.named.insert(name, id);
        }
    }

    /// Gives one hold of a block back.
    pub fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        debug_assert!(block.holders > 0, "block {id} is released more often than it was taken");
        block.holders = block.holders.saturating_sub(1);
        if block.holders == 0 {
            if block.name.is_some() {
                self.clock += 1;
                block.idle_since = self.clock;
                self.idle.insert(self.clock, id);
            } else {
                self.free.push(id);
            }
        }
    }

    /// Forgets every name; idle blocks become free. Called when the contents are lost.
    pub fn forget(&mut self) {
        self.named.clear();
        self.free.extend(std::mem::take(&mut self.idle).into_values());
        self.blocks.iter_mut().for_each(|block| block.name = None);
    }

    /// Checks that every block is exactly one of free, idle, or held as often as `held` lists it.
    pub fn check(&self, held: impl IntoIterator<Item = BlockId>) -> Result<(), IntegrityError> {
        let mut holders = vec![0u32; self.blocks.len()];
        let mut listed = vec![0u32; self.blocks.len()];
        let error = |block: BlockId, reason: String| Err(IntegrityError { block, reason });
        for id in held {
            match holders.get_mut(id as usize) {
                Some(count) => *count += 1,
                None => return error(id, format!("held, but there are only {}", self.len())),
            }
        }
        self.free.iter().chain(self.idle.values()).for_each(|&id| listed[id as usize] += 1);
        for (id, block) in (0..).zip(&self.blocks) {
            let (counted, real) = (block.holders, holders[id as usize]);
            if counted != real {
                return error(id, format!("counts {counted} holders, has {real}"));
            }
            if listed[id as usize] != u32::from(counted == 0) {
                let lists = listed[id as usize];
                return error(id, format!("has {counted} holders and is listed {lists} times"));
            }
            if block.name.is_some_and(|name| self.named.get(&name) != Some(&id)) {
                return error(id, "its name leads elsewhere".to_owned());
            }
        }
        let names = self.blocks.iter().filter(|block| block.name.is_some()).count();
        if names != self.named.len() {
            return error(0, format!("{} names lead to {names} blocks", self.named.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::preference::Coefficients;

    fn key(a: f64, b: f64) -> ModelKey {
        ModelKey::of(&Coefficients { backbones: vec![a, b], sft: -0.0 })
    }

    fn name(n: u32) -> BlockHash {
        BlockHash::root("soup", &key(0.5, 0.5), Some(Mode::Mixed)).then(&[n])
    }

    #[test]
    fn names_differ_by_soup_coefficients_mode_and_every_token_before() {
        let root = BlockHash::root("soup", &key(0.5, 0.5), Some(Mode::Mixed));
        assert_ne!(root, BlockHash::root("soup", &key(0.5, 0.500001), Some(Mode::Mixed)));
        assert_ne!(root, BlockHash::root("other", &key(0.5, 0.5), Some(Mode::Mixed)));
        assert_ne!(root, BlockHash::root("soup", &key(0.5, 0.5), Some(Mode::Fused)));
        assert_ne!(root, BlockHash::root("soup", &key(0.5, 0.5), None));
        assert_ne!(root.then(&[1]).then(&[3]), root.then(&[2]).then(&[3]));
    }

    #[test]
    fn a_chain_that_hands_over_names_each_block_by_who_computed_its_rows() {
        let [first, a, b] = [key(0.0, 0.0), key(0.5, 0.5), key(1.0, 0.0)]
            .map(|key| BlockHash::root("soup", &key, Some(Mode::Mixed)));
        let names = |chain: Chain| {
            let mut names: Vec<BlockHash> = Vec::new();
            for (index, tokens) in [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]].iter().enumerate()
            {
                names.push(chain.name(names.last(), 4 * index, tokens));
            }
            names
        };
        let all = |model: BlockHash| names(model.into());
        // The block in which a model takes over, and all after it, are that model's.
        for at in 0..12 {
            let own = names(Chain::handing_over(first, at, a));
            for (index, name) in own.iter().enumerate() {
                let before = 4 * (index + 1) <= at;
                assert_eq!(*name == all(first)[index], before, "{at} {index}");
                assert_eq!(*name == names(Chain::handing_over(first, at, b))[index], before);
                assert_ne!(*name, all(a)[index], "{at} {index}");
                let later = names(Chain::handing_over(first, at + 1, a))[index];
                assert_eq!(*name == later, before, "{at} {index}");
            }
        }
        assert_eq!(names(Chain::handing_over(first, 5, first)), all(first), "one model");
        assert_eq!(names(Chain::handing_over(first, 12, a)), all(first), "not yet");
    }

    #[test]
    fn the_longest_unused_prefix_goes_first() {
        let mut pool = BlockPool::new(3, 4);
        let held: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        (0..3).for_each(|i| pool.name(held[i as usize], name(i)));
        [1, 0, 2].into_iter().for_each(|i| pool.release(held[i]));
        assert_eq!(pool.take(), Some(held[1]));
        assert_eq!((pool.find(&name(1)), pool.find(&name(0))), (None, Some(true)));
        assert_eq!(pool.share(&name(0)), Some(held[0]));
        assert_eq!(pool.take(), Some(held[2]));
        assert_eq!(pool.take(), None);
        pool.check([held[0], held[1], held[2]]).unwrap();
    }

    #[test]
    fn the_check_sees_a_lost_and_a_doubled_hold() {
        let mut pool = BlockPool::new(2, 4);
        let id = pool.take().unwrap();
        assert!(pool.check([]).is_err());
        assert!(pool.check([id, id]).is_err());
        assert!(pool.check([7]).is_err());
        pool.check([id]).unwrap();
    }

    proptest! {
        #[test]
        fn any_use_keeps_the_books(steps in prop::collection::vec((0u8..4, 0u32..8), 0..200)) {
            let mut pool = BlockPool::new(5, 4);
            let mut held: Vec<BlockId> = Vec::new();
            for (action, n) in steps {
                match action {
                    0 => held.extend(pool.take()),
                    1 => held.extend(pool.share(&name(n))),
                    2 => if let Some(&id) = held.get(n as usize) { pool.name(id, name(n)) },
                    _ => if !held.is_empty() {
                        pool.release(held.swap_remove(n as usize % held.len()));
                    },
                }
                pool.check(held.iter().copied()).unwrap();
                let distinct: std::collections::BTreeSet<_> = held.iter().collect();
                prop_assert_eq!(pool.available(), 5 - distinct.len());
            }
            held.into_iter().for_each(|id| pool.release(id));
            pool.forget();
            pool.check([]).unwrap();
            prop_assert_eq!((pool.available(), pool.idle()), (5, 0));
        }
    }
}
