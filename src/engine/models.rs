//! The distinct models of the requests at hand: their leases on merged weights, and which of them
//! run fused.

use std::{collections::HashMap, time::Duration};

use super::{
    backend::Backend,
    blocks::BlockHash,
    cost::{CostModel, Group, Promoter},
    request::{EngineError, Mode},
};
use crate::{
    config::MergeMode,
    merge::Fetch,
    preference::{Coefficients, ModelKey},
};

/// Merges that may be under way at once: more would only compete for the memory.
const MOST_BUILDING: usize = 4;
/// A preference's credit towards promotion halves in this time.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Preferences whose credit is remembered.
const MOST_CREDITS: usize = 4096;

struct Model<Lease, Ticket> {
    root: BlockHash,
    terms: Vec<f32>,
    lease: Option<Lease>,
    /// Its merge is under way.
    ticket: Option<Ticket>,
    /// Lanes of accepted requests.
    users: usize,
}

impl<Lease, Ticket> Model<Lease, Ticket> {
    /// What became of its merge; `None` while it is under way, and without one.
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

/// Whether merged weights are there for all lanes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Readiness {
    /// They are leased.
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
    entries: HashMap<ModelKey, Model<B::Lease, B::Ticket>>,
    /// The cost model, public to learn from measured steps.
    pub cost: CostModel,
    promoter: Promoter<ModelKey>,
    /// A request found no room for merged weights since leases were last given back.
    full: bool,
}

impl<B: Backend> Models<B> {
    /// No models yet.
    pub fn new(mode: MergeMode, digest: String, cost: CostModel) -> Self {
        let promoter = Promoter::new(HALF_LIFE, MOST_CREDITS);
        Self { mode, digest, entries: HashMap::new(), cost, promoter, full: false }
    }

    /// Takes a lane of `c` in; [`Self::leave`] lets it go.
    pub fn enter(&mut self, backend: &B, c: &Coefficients) -> ModelKey {
        let key = ModelKey::of(c);
        let model = self.entries.entry(key.clone()).or_insert_with(|| Model {
            root: BlockHash::root(&self.digest, &key),
            terms: backend.terms(&key),
            lease: None,
            ticket: None,
            users: 0,
        });
        model.users += 1;
        key
    }

    /// Lets a lane go.
    pub fn leave(&mut self, key: &ModelKey) {
        if let Some(model) = self.entries.get_mut(key) {
            model.users -= 1;
            if model.users == 0 {
                self.entries.remove(key);
            }
        }
    }

    /// Number of distinct models.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no request is accepted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Name of the empty prefix under a model.
    pub fn root(&self, key: &ModelKey) -> Option<BlockHash> {
        self.entries.get(key).map(|model| model.root)
    }

    /// Term values of a model.
    pub fn terms(&self, key: &ModelKey) -> &[f32] {
        self.entries.get(key).map_or(&[], |model| &model.terms)
    }

    /// The lease that a model holds.
    pub fn lease(&self, key: &ModelKey) -> Option<&B::Lease> {
        self.entries.get(key).and_then(|model| model.lease.as_ref())
    }

    /// Merges under way.
    pub fn building(&self, backend: &B) -> usize {
        let begun = self.entries.values().filter(|model| model.ticket.is_some());
        begun.filter(|model| model.outcome(backend).is_none()).count()
    }

    /// Whether a request of these lanes may join the batch, starting merges that it waits for.
    /// `building` are the merges under way.
    pub fn ready(&mut self, backend: &mut B, keys: &[ModelKey], building: &mut usize) -> Readiness {
        if self.mode != MergeMode::Fused {
            return Readiness::Ready;
        }
        let mut full = false;
        let mut readiness = Readiness::Ready;
        for key in keys {
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
                if !keys.contains(key) && matches!(model.outcome(backend), Some(Ok(_))) {
                    model.ticket = None;
                }
            }
        }
        let leased = |key: &ModelKey| self.lease(key).is_some();
        if keys.iter().all(leased) { Readiness::Ready } else { readiness }
    }

    /// Chooses the mode of each model of a step (`rows` token rows each). Models that run fused
    /// hold a lease afterwards.
    pub fn decide(
        &mut self,
        backend: &mut B,
        step: &[(ModelKey, usize)],
        now: Duration,
    ) -> Vec<Mode> {
        match self.mode {
            MergeMode::Fused => return vec![Mode::Fused; step.len()],
            MergeMode::Mixed => return vec![Mode::Mixed; step.len()],
            MergeMode::Auto => {}
        }
        let mut groups = Vec::with_capacity(step.len());
        for (key, rows) in step {
            if let Some(model) = self.entries.get_mut(key) {
                match model.redeem(backend) {
                    Some(Ok(())) => {}
                    Some(Err(reason)) => {
                        tracing::error!(%reason, "merging a hot preference failed")
                    }
                    None => model.lease = backend.cached(key),
                }
            }
            groups.push(Group { rows: *rows, fused: self.lease(key).is_some() });
        }
        let modes = self.cost.partition(&groups);
        let mixed_rows = groups.iter().zip(&modes);
        let mixed_rows = mixed_rows.filter(|(_, mode)| **mode == Mode::Mixed);
        let mixed_rows: usize = mixed_rows.map(|(group, _)| group.rows).sum();
        let price = self.cost.merge();
        for (((key, rows), group), mode) in step.iter().zip(&groups).zip(&modes) {
            let Some(model) = self.entries.get_mut(key) else { continue };
            if *mode == Mode::Fused {
                continue;
            }
            // Merged weights that no longer pay are demoted: without a lease the cache may evict
            // them.
            model.lease = None;
            let saving = self.cost.saving(mixed_rows, *rows);
            if !group.fused
                && model.ticket.is_none()
                && self.promoter.credit(key, saving, price, now)
                && let Fetch::Building(ticket) = backend.fetch(key)
            {
                model.ticket = Some(ticket);
            }
        }
        modes
    }

    /// Gives back the leases of models that no running lane uses.
    pub fn release_unused<'a>(&mut self, running: impl Iterator<Item = &'a ModelKey>) {
        self.full = false;
        let used: std::collections::HashSet<&ModelKey> = running.collect();
        for (key, model) in &mut self.entries {
            if !used.contains(key) {
                model.lease = None;
            }
        }
    }
}
