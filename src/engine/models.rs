//! The models of the requests at hand: in which mode each request runs, the leases on merged
//! weights, and which models are worth merging.
//!
//! The two modes round differently, so the mode of a request that can be repeated (see
//! [`GenerateRequest::is_repeatable`](super::GenerateRequest::is_repeatable)) follows from the
//! request, the soup and the configuration alone, and is the same from its first token to its last:
//!
//! | merge mode | pinned model | repeatable request | any other request |
//! |---|---|---|---|
//! | fused | fused | fused | fused |
//! | mixed | – | mixed | mixed |
//! | auto | fused | mixed | free: in each step what the cost model says, where the merged weights are in the cache |
//!
//! Rows that were computed in both modes have names of their own, so that only free requests find
//! them.
//!
//! Where the backbones are active on the answer only (`docs/algorithms.md` §2.4), the rows before are
//! θ_sft's ([`Prompts`]). All requests share them, so their mode is the engine's, not the request's:
//! fused where every request is, else mixed.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use super::{
    backend::Backend,
    blocks::{BlockHash, Chain},
    cost::{CostModel, Group, Promoter},
    request::{EngineError, Mode},
};
use crate::{config::MergeMode, merge::Fetch, preference::ModelKey};

/// Merges under way at once (at most): more would only compete for the memory.
const MOST_BUILDING: usize = 4;
/// A model's credit towards promotion halves in this time.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Models whose credit is remembered.
const MOST_CREDITS: usize = 4096;

/// The models that a request wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The model of each lane.
    pub keys: Vec<ModelKey>,
    /// The first row that they compute; θ_sft computes those before.
    pub from: usize,
    /// Whether the request can be repeated.
    pub repeatable: bool,
    /// The holder of the key whose prefixes alone it may find; `None`: those that are shared.
    pub owner: Option<Arc<str>>,
}

/// The lanes of an accepted request: a model each.
#[derive(Debug, Clone, PartialEq)]
pub struct Lanes {
    /// The model of each lane.
    pub keys: Vec<ModelKey>,
    /// The first row that they compute; θ_sft computes those before.
    pub from: usize,
    /// Their mode of execution, from the first token to the last; `None`: free.
    pub fixed: Option<Mode>,
    /// The holder of the key whose prefixes alone it may find; `None`: those that are shared.
    pub owner: Option<Arc<str>>,
}

/// The model of the rows before the backbones are active: θ_sft, the same for all requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// θ_sft.
    pub key: ModelKey,
    /// Its mode of execution.
    pub mode: Mode,
    /// Its term values.
    pub terms: Vec<f32>,
}

impl Prompts {
    /// θ_sft of a soup, on an engine of the given merge mode.
    pub fn new<B: Backend>(backend: &B, mode: MergeMode) -> Self {
        let key = ModelKey::sft(backend.facts().backbones);
        let mode = match mode {
            MergeMode::Fused => Mode::Fused,
            MergeMode::Auto | MergeMode::Mixed => Mode::Mixed,
        };
        Self { terms: backend.terms(&key), mode, key }
    }
}

/// The rows of a step under one model in one mode.
#[derive(Debug, Clone, PartialEq)]
pub struct StepModel {
    pub key: ModelKey,
    /// Its mode of execution.
    pub mode: Mode,
    /// Token rows.
    pub rows: usize,
    /// Of those, rows that are free to run fused.
    pub free: usize,
}

struct Model<Lease, Ticket> {
    terms: Vec<f32>,
    lease: Option<Lease>,
    /// Its lanes wait for a merge.
    ticket: Option<Ticket>,
    /// Lanes of accepted requests.
    lanes: usize,
    /// Of those, lanes that run on merged weights once there are some.
    free: usize,
    /// Whether merged weights were in the cache when it was last looked up.
    merged: bool,
    /// How its free rows run.
    mode: Mode,
}

impl<Lease, Ticket> Model<Lease, Ticket> {
    /// Result of its merge; `None` while the merge is under way, and without a merge.
    fn outcome<B>(&self, backend: &B) -> Option<Result<Lease, EngineError>>
    where
        B: Backend<Lease = Lease, Ticket = Ticket>,
    {
        backend.redeem(self.ticket.as_ref()?)
    }

    /// Whether its merged weights are leased, after a look at its ticket; `None`: not yet.
    fn redeem<B>(&mut self, backend: &B) -> Option<Result<(), EngineError>>
    where
        B: Backend<Lease = Lease, Ticket = Ticket>,
    {
        if self.lease.is_some() {
            return Some(Ok(()));
        }
        let outcome = self.outcome(backend)?;
        self.ticket = None;
        Some(outcome.map(|lease| self.lease = Some(lease)))
    }
}

/// Whether merged weights are there for all lanes of a request that needs them.
#[derive(Debug, Clone, PartialEq)]
pub enum Readiness {
    /// They are leased, or not needed.
    Ready,
    /// They are being merged or there is no room yet.
    NotYet,
    /// They cannot be had.
    Failed(EngineError),
}

/// The models of the accepted requests.
pub struct Models<B: Backend> {
    mode: MergeMode,
    digest: String,
    /// The model of the prompt, where the backbones are active on the answer only.
    prompts: Option<Prompts>,
    /// Ordered, so that equal histories give equal decisions.
    entries: BTreeMap<ModelKey, Model<B::Lease, B::Ticket>>,
    /// Models whose merged weights are held for the engine's whole life.
    pinned: BTreeMap<ModelKey, B::Lease>,
    /// The cost model, public to learn from measured steps.
    pub cost: CostModel,
    promoter: Promoter<ModelKey>,
    /// Merges for requests to come.
    promotions: BTreeMap<ModelKey, B::Ticket>,
    /// A request found no room for merged weights since leases were last given back.
    full: bool,
}

impl<B: Backend> Models<B> {
    /// No models yet. `prompts` computes the rows before the backbones are active; it is given
    /// where they are active on the answer only.
    pub fn new(mode: MergeMode, digest: String, cost: CostModel, prompts: Option<Prompts>) -> Self {
        Self {
            mode,
            digest,
            prompts,
            entries: BTreeMap::new(),
            pinned: BTreeMap::new(),
            cost,
            promoter: Promoter::new(HALF_LIFE, MOST_CREDITS),
            promotions: BTreeMap::new(),
            full: false,
        }
    }

    /// Keeps merged weights for the engine's whole life; requests for them run fused.
    pub fn pin(&mut self, key: ModelKey, lease: B::Lease) {
        self.pinned.insert(key, lease);
    }

    /// Takes in the lanes of a request and settles its mode, unless that is free; [`Self::leave`] lets
    /// them go.
    pub fn enter(&mut self, backend: &B, wanted: Wanted) -> Lanes {
        let Wanted { keys, from, repeatable, owner } = wanted;
        let fixed = match self.mode {
            MergeMode::Fused => Some(Mode::Fused),
            MergeMode::Mixed => Some(Mode::Mixed),
            MergeMode::Auto if keys.iter().all(|key| self.pinned.contains_key(key)) => {
                Some(Mode::Fused)
            }
            MergeMode::Auto => repeatable.then_some(Mode::Mixed),
        };
        for key in &keys {
            let model = self.entries.entry(key.clone()).or_insert_with(|| Model {
                terms: backend.terms(key),
                lease: None,
                ticket: None,
                lanes: 0,
                free: 0,
                merged: false,
                mode: Mode::Mixed,
            });
            model.lanes += 1;
            model.free += usize::from(fixed.is_none());
        }
        Lanes { keys, from, fixed, owner }
    }

    /// Lets the lanes of a request go.
    pub fn leave(&mut self, lanes: &Lanes) {
        for key in &lanes.keys {
            let Some(model) = self.entries.get_mut(key) else { continue };
            model.lanes -= 1;
            model.free -= usize::from(lanes.fixed.is_none());
            if model.lanes == 0 {
                self.entries.remove(key);
            }
        }
    }

    /// Chooses how the free rows of a step run, `free` by model, beside so many that are fixed to
    /// run mixed: as the cost model says, fused only where merged weights are there.
    pub fn decide(&mut self, backend: &mut B, free: &BTreeMap<ModelKey, usize>, mixed: usize) {
        if free.is_empty() {
            return;
        }
        let groups = free.iter().map(|(key, &rows)| {
            let merged = self.lease(key).is_some() || backend.cached(key);
            self.entries.get_mut(key).into_iter().for_each(|model| model.merged = merged);
            Group { rows, fused: merged }
        });
        let mut groups: Vec<Group> = groups.collect();
        groups.push(Group { rows: mixed, fused: false });
        for (key, mode) in free.keys().zip(self.cost.partition(&groups)) {
            let pinned = self.pinned.contains_key(key);
            let Some(model) = self.entries.get_mut(key) else { continue };
            if mode == Mode::Fused && !pinned && model.lease.is_none() {
                // A ticket is for weights that have been evicted since: nobody waits for them.
                model.lease = match backend.fetch(key) {
                    Fetch::Ready(lease) => Some(lease),
                    Fetch::Building(_) | Fetch::NoRoom => None,
                };
            }
            let leased = pinned || model.lease.is_some();
            model.mode = if leased { mode } else { Mode::Mixed };
        }
    }

    /// How the rows of a lane run, those of θ_sft apart; where it is free, in this step.
    pub fn mode(&self, lanes: &Lanes, key: &ModelKey) -> Mode {
        let free = || self.entries.get(key).map_or(Mode::Mixed, |model| model.mode);
        lanes.fixed.unwrap_or_else(free)
    }

    /// Fused where all lanes of a request run fused in this step.
    pub fn mode_of_all(&self, lanes: &Lanes) -> Mode {
        let mixed = lanes.keys.iter().any(|key| self.mode(lanes, key) == Mode::Mixed);
        if mixed { Mode::Mixed } else { Mode::Fused }
    }

    /// Number of distinct models.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no request is accepted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How the blocks of each lane are named.
    pub fn chains(&self, lanes: &Lanes) -> Vec<Chain> {
        let owner = lanes.owner.as_deref();
        let root = |key, mode| BlockHash::root(&self.digest, key, mode).owned_by(owner);
        let chain = |key| match &self.prompts {
            None => root(key, lanes.fixed).into(),
            Some(first) => {
                let prompt = root(&first.key, Some(first.mode));
                Chain::handing_over(prompt, lanes.from, root(key, lanes.fixed))
            }
        };
        lanes.keys.iter().map(chain).collect()
    }

    /// The rows of a lane of `key`, cut where its model takes over from θ_sft: each part with what
    /// computes it, and whether its mode is free.
    pub fn parts<'a>(
        &'a self,
        lanes: &'a Lanes,
        key: &'a ModelKey,
        rows: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &'a ModelKey, Mode, bool)> {
        let cut = if self.prompts.is_some() { lanes.from } else { 0 };
        let cut = cut.clamp(rows.start, rows.end);
        let prompt =
            self.prompts.iter().map(move |first| (rows.start..cut, &first.key, first.mode, false));
        let own = (cut..rows.end, key, self.mode(lanes, key), lanes.fixed.is_none());
        prompt.chain([own]).filter(|(rows, ..)| !rows.is_empty())
    }

    /// Whether a model in a mode is the one that computes the rows before the backbones are active.
    pub fn computes_prompts(&self, key: &ModelKey, mode: Mode) -> bool {
        self.prompts.as_ref().is_some_and(|prompts| prompts.key == *key && prompts.mode == mode)
    }

    /// Term values of a model.
    pub fn terms(&self, key: &ModelKey) -> &[f32] {
        let prompts = self.prompts.as_ref().filter(|prompts| prompts.key == *key);
        prompts
            .map(|prompts| &prompts.terms)
            .or_else(|| Some(&self.entries.get(key)?.terms))
            .map_or(&[], Vec::as_slice)
    }

    /// The lease on a model's merged weights.
    pub fn lease(&self, key: &ModelKey) -> Option<&B::Lease> {
        self.pinned.get(key).or_else(|| self.entries.get(key)?.lease.as_ref())
    }

    /// Takes note of promotions that have ended; returns the merges under way.
    pub fn building(&mut self, backend: &B) -> usize {
        let Self { promotions, entries, .. } = self;
        promotions.retain(|key, ticket| match backend.redeem(ticket) {
            None => true,
            Some(Ok(_)) => {
                // The cache keeps the weights; without a lease it may evict them.
                entries.get_mut(key).into_iter().for_each(|model| model.merged = true);
                false
            }
            Some(Err(reason)) => {
                tracing::error!(%reason, "merging a hot preference failed");
                false
            }
        });
        let begun = entries.values().filter(|model| model.ticket.is_some());
        promotions.len() + begun.filter(|model| model.outcome(backend).is_none()).count()
    }

    /// Whether a request may join the batch, starting merges that it waits for. `building` are the
    /// merges under way.
    pub fn ready(&mut self, backend: &mut B, lanes: &Lanes, building: &mut usize) -> Readiness {
        if lanes.fixed != Some(Mode::Fused) {
            return Readiness::Ready;
        }
        let mut full = false;
        let mut readiness = Readiness::Ready;
        for key in lanes.keys.iter().filter(|key| !self.pinned.contains_key(key)) {
            let Some(model) = self.entries.get_mut(key) else { continue };
            match model.redeem(backend) {
                Some(Ok(())) => continue,
                Some(Err(reason)) => return Readiness::Failed(reason),
                None => readiness = Readiness::NotYet,
            }
            if model.ticket.is_none() && *building < MOST_BUILDING {
                match backend.fetch(key) {
                    Fetch::Ready(lease) => model.lease = Some(lease),
                    Fetch::Building(ticket) => {
                        model.ticket = Some(ticket);
                        *building += 1;
                    }
                    Fetch::NoRoom => full = true,
                }
            }
        }
        if full && !std::mem::replace(&mut self.full, true) {
            // The first in the queue that finds no room: those behind it give up the weights that
            // came while they could not join. They stay in the cache, where they may be evicted.
            for (key, model) in &mut self.entries {
                if !lanes.keys.contains(key) && matches!(model.outcome(backend), Some(Ok(_))) {
                    model.ticket = None;
                }
            }
        }
        let leased = |key: &ModelKey| self.lease(key).is_some();
        if lanes.keys.iter().all(leased) { Readiness::Ready } else { readiness }
    }

    /// Credits the models of a step with what merged weights would have saved, and begins to merge
    /// those whose credit has reached the price.
    pub fn promote(&mut self, backend: &mut B, step: &[StepModel], now: Duration) {
        if self.mode != MergeMode::Auto {
            return;
        }
        let mixed = || step.iter().filter(|model| model.mode == Mode::Mixed);
        let mixed_rows: usize = mixed().map(|model| model.rows).sum();
        let price = self.cost.merge();
        for StepModel { key, free, .. } in mixed().filter(|model| model.free > 0) {
            let Some(model) = self.entries.get_mut(key) else { continue };
            if model.merged || self.promotions.contains_key(key) {
                continue;
            }
            let saving = self.cost.saving(mixed_rows, *free);
            if self.promoter.credit(key, saving, price, now) {
                match backend.fetch(key) {
                    Fetch::Ready(_) => model.merged = true,
                    Fetch::Building(ticket) => drop(self.promotions.insert(key.clone(), ticket)),
                    Fetch::NoRoom => {}
                }
            }
        }
    }

    /// By how many the lanes that would run on what is being merged in the background outnumber the
    /// others.
    pub fn waiting(&self) -> usize {
        let all: usize = self.entries.values().map(|model| model.lanes).sum();
        let promoted = self.promotions.keys().filter_map(|key| self.entries.get(key));
        let waiting: usize = promoted.map(|model| model.free).sum();
        waiting.saturating_sub(all - waiting)
    }

    /// Gives back the leases of models that no running request executes fused.
    pub fn release_unused<'a>(&mut self, running: impl Iterator<Item = &'a Lanes>) {
        self.full = false;
        let lanes = running.flat_map(|lanes| lanes.keys.iter().map(move |key| (lanes, key)));
        let fused = lanes.filter(|(lanes, key)| self.mode(lanes, key) == Mode::Fused);
        let used: HashSet<&ModelKey> = fused.map(|(_, key)| key).collect();
        for (key, model) in &mut self.entries {
            if !used.contains(key) {
                model.lease = None;
            }
        }
    }
}
