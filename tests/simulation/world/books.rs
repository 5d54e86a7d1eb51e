//! What must hold after each event and of each plan.

use std::collections::{BTreeSet, HashMap, HashSet};

use ladle::{
    engine::{
        Mode,
        scheduler::{Item, SeqId, StepPlan},
    },
    preference::ModelKey,
};

use super::{World, count};
use crate::soup::{BLOCK, model, row, terms};

impl World {
    /// A sequence has joined, with rows that others computed: they are its own.
    pub(super) fn admitted(&mut self, id: SeqId, cached: usize) {
        (0..self.live[&id].rows.len()).for_each(|lane| _ = self.present(id, lane, cached));
        let live = self.live.get_mut(&id).unwrap();
        let most = if live.prompt_logits { 0 } else { live.tokens.len() - 1 };
        assert!(cached.is_multiple_of(BLOCK) && cached <= most, "{cached} of {most}");
        for lane in 0..live.rows.len() {
            let blocks = self.scheduler.blocks(id, lane);
            for position in 0..cached {
                let owner = &self.owners[&blocks[position / BLOCK]];
                assert_eq!(owner, &live.owner, "another owner's rows");
            }
        }
        if let Some(known) = self.known.as_ref().filter(|_| self.settings.prefix_cache) {
            let found = |rows: &Vec<u64>| {
                let ends = rows.chunks_exact(BLOCK).map(|block| block[BLOCK - 1]);
                let known = |end: &u64| known.contains(&(live.owner.clone(), *end));
                ends.take(most / BLOCK).take_while(known).count() * BLOCK
            };
            assert_eq!(Some(cached), live.rows.iter().map(found).min(), "not what is there");
        }
        if !self.settings.prefix_cache {
            assert_eq!(cached, 0);
        }
        live.computed = cached;
        count(&mut self.totals, "rows from the prefix cache", cached as u64);
    }

    /// The first rows in the blocks of a lane: computed from its own tokens by its own model, and in
    /// its own mode, where that is not free.
    pub(super) fn present(&self, id: SeqId, lane: usize, end: usize) -> Vec<u64> {
        let (live, blocks) = (&self.live[&id], self.scheduler.blocks(id, lane));
        let mut before = 0;
        let present = |position: usize| {
            let row = self.soup.row(blocks, position).expect("it is computed");
            let key = &live.lanes.keys[lane];
            let (key, mode) = live.computer(position, key, self.prompts.as_ref());
            let by = |mode| self::row(before, live.tokens[position], model(&terms(key)), mode);
            let modes = mode.map_or(vec![Mode::Fused, Mode::Mixed], |mode| vec![mode]);
            assert!(modes.into_iter().any(|mode| by(mode) == row), "another's row {position}");
            before = row;
            row
        };
        (0..end).map(present).collect()
    }

    /// Budgets, and whose turn it is.
    pub(super) fn check_plan(&self, before: &HashSet<SeqId>, plan: &StepPlan) {
        let lanes = |id: SeqId| self.live[&id].lanes.keys.len();
        let rows: usize = plan.items.iter().map(|item| item.range.len() * lanes(item.id)).sum();
        assert!(rows <= self.limits.step_tokens, "{rows} rows");
        let running: usize = self.scheduler.running().iter().map(|&id| lanes(id)).sum();
        assert!(running <= self.limits.lanes, "{running} lanes");
        let mut writers: HashMap<u32, SeqId> = HashMap::new();
        for Item { id, range } in &plan.items {
            let live = &self.live[id];
            assert!(self.scheduler.running().contains(id), "{id} does not run");
            assert_eq!(range.start, live.computed, "{id} leaves a gap or computes rows again");
            assert!(!range.is_empty() && range.end <= live.tokens.len());
            assert!(range.len() <= self.limits.prefill_chunk);
            if live.prompt_logits {
                assert!(range.len() <= (self.limits.logit_rows / lanes(*id)).max(1));
            }
            for lane in 0..lanes(*id) {
                let blocks = self.scheduler.blocks(*id, lane);
                assert!(blocks.len() * BLOCK >= range.end, "no block for a row");
                for position in range.clone() {
                    let other = writers.insert(blocks[position / BLOCK], *id);
                    assert!(other.is_none_or(|other| other == *id), "two write to a block");
                }
            }
        }
        for &id in self.scheduler.running() {
            for lane in 0..lanes(id) {
                let blocks = self.scheduler.blocks(id, lane);
                let foreign = |block: &u32| writers.get(block).is_some_and(|writer| *writer != id);
                assert!(!blocks.iter().any(foreign), "a block that others hold is written");
            }
            let decodes = self.live[&id].tokens.len() - self.live[&id].computed == 1;
            if before.contains(&id) && decodes && !plan.preempted.contains(&id) {
                assert!(plan.items.iter().any(|item| item.id == id), "{id} was left out");
            }
        }
    }

    /// The books, and what each sequence holds.
    pub(super) fn check(&mut self) {
        self.scheduler.check().unwrap();
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting());
        let mut known: Vec<SeqId> = running.iter().chain(waiting).copied().collect();
        known.sort_unstable();
        assert!(known.iter().eq(self.live.keys()), "{known:?} are scheduled");
        let mut held = BTreeSet::new();
        for (&id, live) in &self.live {
            assert_eq!(self.scheduler.tokens(id), live.tokens);
            for lane in 0..live.lanes.keys.len() {
                let blocks = self.scheduler.blocks(id, lane);
                assert!(blocks.len() * BLOCK >= live.computed);
                assert!(blocks.is_empty() || running.contains(&id), "{id} waits and holds");
                assert_eq!(blocks.iter().collect::<BTreeSet<_>>().len(), blocks.len());
                held.extend(blocks);
            }
        }
        let pool = self.scheduler.pool();
        assert_eq!(pool.available() + held.len(), self.settings.blocks);
        // The block that was never used is the last to be taken: none was evicted.
        let untouched = held.last().is_none_or(|&&last| (last as usize) + 100 < pool.len());
        if !untouched {
            self.known = None;
        }
        let keys: BTreeSet<&ModelKey> =
            self.live.values().flat_map(|live| &live.lanes.keys).collect();
        assert_eq!(self.models.len(), keys.len(), "models of nobody");
        assert!(self.soup.models() <= self.settings.merged_models);
    }
}
