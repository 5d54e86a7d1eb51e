//! The loop of the engine's worker in simulated time: the same scheduler, the same choice of modes,
//! the same learning of the cost model; only the forward pass is a formula.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use ladle::{
    config::MergeMode,
    engine::{
        Client, Mode, StepLimits,
        blocks::BlockPool,
        cost::CostModel,
        models::{Lanes, Models, Readiness, StepModel, Wanted},
        scheduler::{NewSequence, Scheduler, SeqId, StepPlan},
    },
    preference::ModelKey,
};
use serde::Serialize;

use crate::{
    cache::Slots,
    load::{Arrivals, Load, Source},
    machine::{Kind, Rows},
    policy::{Plan, Policy, System},
};

/// Results of a simulation. Times in milliseconds; `[p50, p99]`.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Generated tokens per second.
    pub tokens_per_s: f64,
    /// Completed requests per second.
    pub finished_per_s: f64,
    /// Requests refused because the queue was full, of those that came.
    pub refused: f64,
    /// From arrival to the first token.
    pub first_token_ms: [f64; 2],
    /// Between tokens of a request.
    pub gap_ms: [f64; 2],
    /// Mean sequences in a step.
    pub lanes: f64,
    /// Different mixes in a step.
    pub distinct: [f64; 2],
    /// Rows computed with merged weights, of all.
    pub fused_rows: f64,
    /// Requests that found their mix in a slot, where they need one.
    pub hits: Option<f64>,
    /// Slots filled.
    pub builds: usize,
    /// Slots there are, and bytes of each.
    pub slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: f64,
    /// Tokens that keys and values have room for.
    pub kv_tokens: usize,
    /// Sequences that were computed again.
    pub preempted: usize,
}

struct Live {
    lanes: Lanes,
    client: usize,
    output: usize,
    emitted: usize,
    /// When the last token came; before the first, when it arrived.
    last: f64,
    /// Whether its mix was in a slot when first asked for.
    hit: Option<bool>,
}

/// Sums and samples of what is counted.
#[derive(Default)]
struct Counts {
    tokens: usize,
    finished: usize,
    came: usize,
    refused: usize,
    hits: usize,
    started: usize,
    rows: f64,
    fused_rows: f64,
    lanes: usize,
    preempted: usize,
    first_token: Vec<f64>,
    gaps: Vec<f64>,
    distinct: Vec<f64>,
}

struct Simulation<'a> {
    system: System<'a>,
    plan: Plan,
    load: Load,
    source: Source,
    scheduler: Scheduler,
    models: Models<Slots>,
    slots: Slots,
    live: HashMap<SeqId, Live>,
    /// Arrivals to come, in order, with their client.
    coming: VecDeque<(f64, usize)>,
    /// Requests that each client has yet to send.
    clients_left: Vec<usize>,
    now: f64,
    until: f64,
    /// Counting begins here; in a closed loop with a warm-up when all have an answer.
    warm: f64,
    counts: Counts,
}

/// Simulates a load on a system.
pub fn simulate(system: System<'_>, load: Load, seed: u64) -> Outcome {
    let mut simulation = Simulation::new(system, load, seed);
    while simulation.turn() {}
    simulation.outcome()
}

impl<'a> Simulation<'a> {
    fn new(system: System<'a>, load: Load, seed: u64) -> Self {
        let plan = system.plan();
        let engine = system.engine;
        let limits = StepLimits {
            step_tokens: engine.step_tokens,
            prefill_chunk: engine.prefill_chunk,
            lanes: engine.lanes,
            logit_rows: engine.lanes,
            aging: Duration::from_millis(100),
            patience: Duration::from_secs(10),
            // No two prompts share a prefix here.
            prefix_cache: false,
        };
        let footprint = system.soup.footprint();
        let cost = CostModel::new(footprint, system.machine.figures(system.soup));
        let pool = BlockPool::new(plan.kv_blocks, engine.block_tokens);
        let mut source = Source::new(load, seed);
        let (coming, clients_left, until, warm) = match load.arrivals {
            Arrivals::Poisson { rate, seconds } => {
                (VecDeque::from([(source.gap(rate), 0)]), Vec::new(), seconds, seconds / 4.0)
            }
            Arrivals::Clients { clients, rounds, warm_up } => {
                let first = (0..clients).map(|client| (0.0, client)).collect();
                let (left, warm) =
                    if warm_up { (rounds, f64::INFINITY) } else { (rounds - 1, 0.0) };
                (first, vec![left; clients], f64::INFINITY, warm)
            }
        };
        Self {
            scheduler: Scheduler::new(limits, pool),
            models: Models::new(plan.mode, String::new(), cost, None),
            slots: Slots::new(plan.slots, plan.build, footprint),
            live: HashMap::new(),
            now: 0.0,
            counts: Counts::default(),
            system,
            plan,
            load,
            source,
            coming,
            clients_left,
            until,
            warm,
        }
    }

    /// A turn of the worker's loop; false when there is nothing more to simulate.
    fn turn(&mut self) -> bool {
        self.receive();
        self.slots.now = self.now;
        let plan = self.schedule();
        if plan.items.is_empty() {
            let arrival = self.coming.front().map(|&(at, _)| at);
            let next = arrival.into_iter().chain(self.slots.next_ready()).reduce(f64::min);
            self.now = next.unwrap_or(self.now);
            return next.is_some() && self.now < self.until;
        }
        let mut free: BTreeMap<ModelKey, usize> = BTreeMap::new();
        for item in &plan.items {
            let lanes = &self.live[&item.id].lanes;
            if lanes.fixed.is_none() {
                *free.entry(lanes.keys[0].clone()).or_default() += item.range.len();
            }
        }
        self.models.decide(&mut self.slots, &free, 0);
        let groups = self.groups(&plan);
        let step = groups.iter().map(|((key, mode), rows)| {
            let rows = rows.rows as usize;
            StepModel { key: key.clone(), mode: *mode, rows, free: rows }
        });
        self.models.promote(&mut self.slots, &step.collect::<Vec<_>>(), time(self.now));
        let elapsed = self.compute(&groups);
        if self.now >= self.warm {
            let distinct: BTreeSet<&ModelKey> = groups.iter().map(|((key, _), _)| key).collect();
            self.counts.distinct.push(distinct.len() as f64);
            self.counts.lanes += plan.items.len();
            self.counts.preempted += plan.preempted.len();
        }
        self.now += elapsed;
        self.deliver(&plan);
        let Self { scheduler, models, live, .. } = self;
        let running = scheduler.running().iter().filter_map(|id| live.get(id));
        models.release_unused(running.map(|live| &live.lanes));
        self.now < self.until
    }

    /// Takes in what has arrived.
    fn receive(&mut self) {
        while let Some(&(at, client)) = self.coming.front().filter(|&&(at, _)| at <= self.now) {
            self.coming.pop_front();
            let request = self.source.request(client);
            if let Arrivals::Poisson { rate, .. } = self.load.arrivals {
                self.coming.push_back((at + self.source.gap(rate), client));
            }
            let counted = at >= self.warm;
            self.counts.came += usize::from(counted);
            if self.scheduler.waiting().len() >= self.system.engine.max_waiting {
                self.counts.refused += usize::from(counted);
                continue;
            }
            // The load is sampled without seeds, so its requests are not repeatable.
            let mix = match self.system.policy {
                Policy::Plugin => self.system.engine.plugin.on_grid(&request.c),
                _ => request.c,
            };
            let keys = vec![ModelKey::of(&mix)];
            let wanted = Wanted { keys, from: 0, repeatable: false, owner: None };
            let lanes = self.models.enter(&self.slots, wanted);
            let id = self.scheduler.enqueue(NewSequence {
                tokens: vec![0; request.prompt],
                encoded: 0,
                chains: self.models.chains(&lanes),
                priority: 0,
                arrived: time(at),
                prompt_logits: false,
                client: Client::Local,
            });
            let live =
                Live { lanes, client, output: request.output, emitted: 0, last: at, hit: None };
            self.live.insert(id, live);
        }
    }

    fn schedule(&mut self) -> StepPlan {
        let Self { scheduler, models, slots, live, .. } = self;
        let cost = models.cost.clone();
        let mixed = live.values().any(|live| models.mode_of_all(&live.lanes) == Mode::Mixed);
        let mode = if mixed { Mode::Mixed } else { Mode::Fused };
        let mut building = models.building(slots);
        let ready = |id: SeqId| {
            let Some(live) = live.get_mut(&id) else { return false };
            let ready = models.ready(slots, &live.lanes, &mut building) == Readiness::Ready;
            live.hit.get_or_insert(ready);
            ready
        };
        scheduler.plan(
            time(self.now),
            |decoding, prompts| cost.rows_beside(mode, decoding, prompts),
            ready,
        )
    }

    /// The rows of each mix in each mode.
    fn groups(&self, plan: &StepPlan) -> Vec<((ModelKey, Mode), Rows)> {
        let mut groups: BTreeMap<(ModelKey, Mode), Rows> = BTreeMap::new();
        for item in &plan.items {
            let lanes = &self.live[&item.id].lanes;
            let mode = self.models.mode_of_all(lanes);
            let rows = groups.entry((lanes.keys[0].clone(), mode)).or_default();
            let output = item.range.end == self.scheduler.tokens(item.id).len();
            rows.add(item.range.start, item.range.end, output);
        }
        groups.into_iter().collect()
    }

    /// Seconds of a step's passes, from which the cost model learns.
    fn compute(&mut self, groups: &[((ModelKey, Mode), Rows)]) -> f64 {
        let System { machine, soup, policy, .. } = self.system;
        let lora = matches!(soup.kind, Kind::Lora { .. });
        // Merges on the device take half of it.
        let merging = matches!(policy, Policy::Auto | Policy::Fused) && self.slots.busy();
        let share = if merging { 0.5 } else { 1.0 };
        let mut together = Rows::default();
        let mut passes = Vec::new();
        for ((_, mode), rows) in groups {
            let apart = match policy {
                Policy::Auto | Policy::Fused | Policy::Mixed => *mode == Mode::Fused,
                Policy::OneAdapter | Policy::OneMix | Policy::Plugin => !lora,
            };
            if apart {
                passes.push((Mode::Fused, soup.fused(), *rows));
            } else {
                together.merge(rows);
            }
        }
        let fused_rows: f64 = passes.iter().map(|(.., rows)| rows.rows).sum();
        if together.rows > 0.0 {
            let work = match (policy, soup.mix_rank()) {
                (Policy::OneAdapter | Policy::Plugin, Some((rank, _))) => {
                    soup.adapted(groups.len() as f64, rank)
                }
                _ => soup.mixed(),
            };
            passes.push((Mode::Mixed, work, together));
        }
        let mut elapsed = machine.step;
        for (mode, work, rows) in &passes {
            let seconds = machine.pass(&soup.shape, work, rows, share);
            self.models.cost.observe_pass(*mode, rows.rows as usize, time(seconds));
            elapsed += seconds;
        }
        if self.now >= self.warm {
            self.counts.fused_rows += fused_rows;
            self.counts.rows += fused_rows + together.rows;
        }
        elapsed
    }

    fn deliver(&mut self, plan: &StepPlan) {
        let counted = self.now >= self.warm;
        for item in &plan.items {
            self.scheduler.computed(item);
            if item.range.end < self.scheduler.tokens(item.id).len() {
                continue;
            }
            let Some(live) = self.live.get_mut(&item.id) else { continue };
            let counts = &mut self.counts;
            if counted {
                counts.tokens += 1;
                let since = (self.now - live.last) * 1e3;
                if live.emitted == 0 {
                    counts.first_token.push(since);
                    counts.started += 1;
                    counts.hits += usize::from(live.hit == Some(true));
                } else {
                    counts.gaps.push(since);
                }
            }
            (live.emitted, live.last) = (live.emitted + 1, self.now);
            if live.emitted < live.output {
                self.scheduler.push(item.id, 0);
                continue;
            }
            counts.finished += usize::from(counted);
            self.scheduler.finish(item.id);
            let Some(live) = self.live.remove(&item.id) else { continue };
            self.models.leave(&live.lanes);
            self.ask_again(live.client);
        }
    }

    /// A client of a closed loop has its answer. All begin together once all are warm.
    fn ask_again(&mut self, client: usize) {
        let (now, warming) = (self.now, self.warm.is_infinite());
        let again = match warming {
            true if self.live.is_empty() => 0..self.clients_left.len(),
            true => 0..0,
            false => client..client + 1,
        };
        if warming && !again.is_empty() {
            self.warm = now;
        }
        for client in again {
            if let Some(left) = self.clients_left.get_mut(client).filter(|left| **left > 0) {
                *left -= 1;
                self.coming.push_back((now, client));
            }
        }
    }

    fn outcome(mut self) -> Outcome {
        let counts = &mut self.counts;
        let seconds = self.until.min(self.now) - self.warm;
        let steps = counts.distinct.len().max(1) as f64;
        let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
        Outcome {
            tokens_per_s: counts.tokens as f64 / seconds,
            finished_per_s: counts.finished as f64 / seconds,
            refused: share(counts.refused, counts.came),
            first_token_ms: percentiles(&mut counts.first_token),
            gap_ms: percentiles(&mut counts.gaps),
            lanes: counts.lanes as f64 / steps,
            distinct: percentiles(&mut counts.distinct),
            fused_rows: counts.fused_rows / counts.rows.max(1.0),
            hits: (self.plan.mode == MergeMode::Fused).then(|| share(counts.hits, counts.started)),
            builds: self.slots.builds,
            slots: self.plan.slots,
            slot_bytes: self.plan.slot_bytes,
            kv_tokens: self.plan.kv_blocks * self.system.engine.block_tokens,
            preempted: counts.preempted,
        }
    }
}

fn time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// p50 and p99 (nearest rank); 0 without samples.
fn percentiles(samples: &mut [f64]) -> [f64; 2] {
    samples.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| ((share * samples.len() as f64).ceil() as usize).max(1) - 1;
    [0.5, 0.99].map(|share| samples.get(at(share)).copied().unwrap_or(0.0))
}
