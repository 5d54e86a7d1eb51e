//! A soup whose memory says what computed each row, and whose merges end when the simulation says.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, OnceLock},
};

use ladle::{
    engine::{
        EngineError, Mode,
        backend::{Backend, Facts},
        cost::{Footprint, Pass},
    },
    kernels::{Batch, KernelError},
    merge::Fetch,
    preference::ModelKey,
};

/// Tokens of a block of keys and values.
pub const BLOCK: usize = 4;
/// Backbones.
pub const BACKBONES: usize = 3;

/// A merge: not ended, or its weights (their model), or why there are none.
type Slot = Arc<OnceLock<Result<Arc<u64>, EngineError>>>;

pub struct Soup {
    pub answer_only: bool,
    /// Merged models that fit at once.
    pub capacity: usize,
    /// What the rows in each block are: see [`row`].
    memory: Vec<[Option<u64>; BLOCK]>,
    cache: BTreeMap<ModelKey, Slot>,
    /// Merges that have not ended, the oldest first.
    building: VecDeque<ModelKey>,
}

/// What a row is: the tokens up to it and the models that computed them, and in its lowest bit the
/// mode that computed the row itself.
pub fn row(before: u64, token: u32, model: u64, mode: Mode) -> u64 {
    let chain = mix(before & !1, mix(model, u64::from(token)));
    chain & !1 | u64::from(mode == Mode::Fused)
}

/// The name of a row: everything before it, its token, the model and, if that is not free, the mode
/// that computes it.
pub fn then(before: u64, token: u32, model: u64, mode: Option<Mode>) -> u64 {
    let mode = mode.map_or(0, |mode| 1 + u64::from(mode == Mode::Fused));
    mix(before, mix(model, u64::from(token) << 2 | mode))
}

/// What attention over rows sees.
pub fn attend(rows: impl Iterator<Item = u64>) -> u64 {
    rows.fold(0, mix)
}

/// A model, from its term values.
pub fn model(terms: &[f32]) -> u64 {
    terms.iter().fold(1, |state, term| mix(state, u64::from(term.to_bits())))
}

pub fn terms(key: &ModelKey) -> Vec<f32> {
    let c = key.coefficients();
    c.backbones.iter().chain([&c.sft]).map(|&value| value as f32).collect()
}

pub fn mix(state: u64, value: u64) -> u64 {
    let z = (state ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Soup {
    pub fn new(answer_only: bool, capacity: usize, blocks: usize) -> Self {
        let memory = vec![[None; BLOCK]; blocks];
        Self { answer_only, capacity, memory, cache: BTreeMap::new(), building: VecDeque::new() }
    }

    /// Ends the oldest merge that has not ended; false if there is none.
    pub fn end_merge(&mut self, fails: bool) -> bool {
        let Some(key) = self.building.pop_front() else { return false };
        let Some(slot) = self.cache.get(&key).cloned() else { return true };
        if fails {
            self.cache.remove(&key);
        }
        let failed = || EngineError::Merge("as planned".to_owned());
        let outcome = if fails { Err(failed()) } else { Ok(Arc::new(model(&terms(&key)))) };
        slot.set(outcome).expect("a merge ends once");
        true
    }

    /// Merged models that are here or in the making.
    pub fn models(&self) -> usize {
        self.cache.len()
    }

    /// Models that a lease or ticket holds.
    pub fn held(&self) -> usize {
        self.cache.values().filter(|slot| is_held(slot)).count()
    }

    /// What a row of a block is.
    pub fn row(&self, blocks: &[u32], position: usize) -> Option<u64> {
        self.memory[blocks[position / BLOCK] as usize][position % BLOCK]
    }
}

fn is_held(slot: &Slot) -> bool {
    let leased = match slot.get() {
        None => true,
        Some(Ok(weights)) => Arc::strong_count(weights) > 1,
        Some(Err(_)) => false,
    };
    leased || Arc::strong_count(slot) > 1
}

impl Backend for Soup {
    type Lease = Arc<u64>;
    type Ticket = Slot;
    type Logits = Vec<u64>;

    fn facts(&self) -> Facts {
        // Merges are cheap and mixed passes dear, so that models run in both modes.
        let footprint = Footprint {
            fused: Pass { bytes: 270e6, flops_per_row: 270e6 },
            mixed: Pass { bytes: 540e6, flops_per_row: 540e6 },
            merge_bytes: 555e6,
            merge_flops: 130e6,
        };
        Facts {
            vocabulary: 8,
            backbones: BACKBONES,
            answer_only: self.answer_only,
            context: 1000,
            start: None,
            blocks: self.memory.len(),
            block_tokens: BLOCK,
            digest: "simulated".to_owned(),
            merged_models: self.capacity,
            mixes: true,
            footprint,
        }
    }

    fn terms(&self, key: &ModelKey) -> Vec<f32> {
        terms(key)
    }

    fn cached(&self, key: &ModelKey) -> bool {
        self.cache.get(key).is_some_and(|slot| matches!(slot.get(), Some(Ok(_))))
    }

    fn fetch(&mut self, key: &ModelKey) -> Fetch<Arc<u64>, Slot> {
        if let Some(slot) = self.cache.get(key) {
            return match slot.get() {
                Some(Ok(weights)) => Fetch::Ready(weights.clone()),
                _ => Fetch::Building(slot.clone()),
            };
        }
        if self.cache.len() >= self.capacity {
            let victim = self.cache.iter().find(|(_, slot)| !is_held(slot));
            let Some(victim) = victim.map(|(key, _)| key.clone()) else { return Fetch::NoRoom };
            self.cache.remove(&victim);
        }
        let slot = Slot::default();
        self.cache.insert(key.clone(), slot.clone());
        self.building.push_back(key.clone());
        Fetch::Building(slot)
    }

    fn redeem(&self, ticket: &Slot) -> Option<Result<Arc<u64>, EngineError>> {
        ticket.get().cloned()
    }

    fn set_waker(&mut self, _: Arc<dyn Fn() + Send + Sync>) {}

    /// What the rows of `batch.outputs` attend to.
    fn forward(
        &mut self,
        merged: Option<&Arc<u64>>,
        batch: &Batch,
    ) -> Result<Vec<u64>, KernelError> {
        assert_eq!(merged.is_none(), batch.coefficients.is_some());
        let mode = if merged.is_some() { Mode::Fused } else { Mode::Mixed };
        let (mut attended, mut outputs) = (Vec::new(), batch.outputs.iter().peekable());
        for segment in &batch.segments {
            let blocks = &segment.blocks;
            for row in segment.rows.clone() {
                let position = segment.cached + row - segment.rows.start;
                assert_eq!(batch.positions[row] as usize, position);
                let model = match (merged, &batch.coefficients) {
                    (Some(merged), _) => **merged,
                    (None, Some(c)) => model(&c.values[row * c.terms..(row + 1) * c.terms]),
                    (None, None) => unreachable!(),
                };
                // After a pass that was refused there may be none.
                let read = |position| self.row(blocks, position).unwrap_or_default();
                let before = position.checked_sub(1).map_or(0, read);
                let own = self::row(before, batch.tokens[row], model, mode);
                self.memory[blocks[position / BLOCK] as usize][position % BLOCK] = Some(own);
                if outputs.next_if_eq(&&row).is_some() {
                    let read = |position| self.row(blocks, position).unwrap_or_default();
                    attended.push(attend((0..=position).map(read)));
                }
            }
        }
        Ok(attended)
    }

    fn values<'a>(&self, _: &'a mut Vec<u64>) -> &'a mut [f32] {
        &mut []
    }

    fn reset(&mut self) -> Result<(), KernelError> {
        self.memory.fill([None; BLOCK]);
        Ok(())
    }
}
