//! The engine without its thread, its clock and its numbers: scheduler, blocks, models and layout,
//! driven by events. Beside it stands the reference: for each request the rows that it must have,
//! computed from its own tokens alone, and what the others may do to it, which is nothing.

mod books;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ladle::{
    config::MergeMode,
    engine::{
        Client, Mode,
        backend::Backend,
        batch::{Encoded, Forward, LaneRows, layout},
        blocks::BlockPool,
        cost::{CostModel, Machine},
        models::{Lanes, Models, Prompts, Readiness, StepModel, Wanted},
        scheduler::{Item, NewSequence, Scheduler, SeqId, StepLimits, StepPlan},
    },
    preference::{Coefficients, ModelKey},
};

use crate::{
    events::{Arrival, Event, Settings},
    soup::{BACKBONES, BLOCK, Soup, attend, mix, model, terms, then},
};

/// Requests at a time.
const MOST_LIVE: usize = 24;

/// How often what happened.
pub type Totals = BTreeMap<&'static str, u64>;

/// What must happen in a run of any length.
pub const KINDS: [&str; 12] = [
    "events",
    "steps",
    "tokens",
    "finished",
    "left",
    "failed",
    "preempted",
    "rows from the prefix cache",
    "rows computed fused",
    "rows computed mixed",
    "modes changed",
    "backbones became active",
];

struct Live {
    lanes: Lanes,
    prompt: usize,
    tokens: Vec<u32>,
    /// For each lane, the name of each row.
    rows: Vec<Vec<u64>>,
    /// Rows that the scheduler counts as computed.
    computed: usize,
    /// Tokens of the answer that are still to come.
    left: usize,
    prompt_logits: bool,
    /// Positions of the prompt whose logits came.
    reported: Vec<usize>,
    owner: Option<Arc<str>>,
}

pub struct World {
    settings: Settings,
    limits: StepLimits,
    soup: Soup,
    models: Models<Soup>,
    scheduler: Scheduler,
    /// What computes the rows before the backbones are active.
    prompts: Option<Prompts>,
    pinned: BTreeSet<ModelKey>,
    now: Duration,
    live: BTreeMap<SeqId, Live>,
    /// Whose rows lie in a block.
    owners: HashMap<u32, Option<Arc<str>>>,
    /// Full blocks that were computed, by owner and last row, while none can have been evicted.
    known: Option<HashSet<(Option<Arc<str>>, u64)>>,
    pub totals: Totals,
}

fn key(number: u8) -> ModelKey {
    match number {
        0 => ModelKey::sft(BACKBONES),
        _ => {
            let share = f64::from(number) / 8.0;
            ModelKey::of(&Coefficients { backbones: vec![share, 0.25, 0.0], sft: 0.75 - share })
        }
    }
}

fn count(totals: &mut Totals, what: &'static str, times: u64) {
    *totals.entry(what).or_default() += times;
}

impl World {
    pub fn new(settings: &Settings) -> Self {
        let settings = settings.clone();
        let limits = StepLimits {
            step_tokens: 16,
            prefill_chunk: 8,
            lanes: 6,
            logit_rows: 4,
            aging: Duration::from_millis(100),
            patience: Duration::from_millis(200),
            prefix_cache: settings.prefix_cache,
        };
        let mut soup = Soup::new(settings.answer_only, settings.merged_models, settings.blocks);
        let prompts = settings.answer_only.then(|| Prompts::new(&soup, settings.mode));
        let cost = CostModel::new(soup.facts().footprint, Machine::default());
        let mut models = Models::new(settings.mode, "simulated".to_owned(), cost, prompts.clone());
        let mut pinned = BTreeSet::new();
        if settings.answer_only && settings.mode == MergeMode::Fused {
            pinned.insert(key(0));
        }
        if settings.pinned && settings.mode != MergeMode::Mixed {
            pinned.insert(key(1));
        }
        for key in &pinned {
            let ladle::merge::Fetch::Building(ticket) = soup.fetch(key) else { panic!("no room") };
            soup.end_merge(false);
            models.pin(key.clone(), soup.redeem(&ticket).unwrap().unwrap());
        }
        Self {
            scheduler: Scheduler::new(limits, BlockPool::new(settings.blocks, BLOCK)),
            settings,
            limits,
            soup,
            models,
            prompts,
            pinned,
            now: Duration::ZERO,
            live: BTreeMap::new(),
            owners: HashMap::new(),
            known: Some(HashSet::new()),
            totals: Totals::default(),
        }
    }

    /// Lets an event happen, and checks everything.
    pub fn apply(&mut self, event: &Event) {
        count(&mut self.totals, "events", 1);
        match event {
            Event::Arrive(arrival) => self.arrive(arrival),
            Event::Step => self.step(false),
            Event::RefusedStep => self.step(true),
            Event::Leave(which) => {
                let ids: Vec<SeqId> = self.live.keys().copied().collect();
                if let Some(&id) = ids.get(usize::from(*which) % ids.len().max(1)) {
                    count(&mut self.totals, "left", 1);
                    self.remove(id);
                }
            }
            Event::MergeEnds => drop(self.soup.end_merge(false)),
            Event::MergeFails => drop(self.soup.end_merge(true)),
            Event::Forget => {
                self.scheduler.forget();
                self.soup.reset().unwrap();
                self.live.values_mut().for_each(Live::forget);
                self.owners.clear();
                self.known = None;
            }
            Event::Wait(milliseconds) => self.now += Duration::from_millis((*milliseconds).into()),
        }
        self.check();
    }

    /// Lets everybody finish, and checks that nothing is left.
    pub fn drain(&mut self) {
        for _ in 0..5_000 {
            if self.live.is_empty() {
                break;
            }
            self.soup.end_merge(false);
            self.step(false);
            self.check();
        }
        let (waiting, running) = (self.scheduler.waiting(), self.scheduler.running());
        assert!(self.live.is_empty(), "starved: waiting {waiting:?}, running {running:?}");
        while self.soup.end_merge(false) {}
        assert_eq!(self.models.building(&self.soup), 0);
        assert_eq!(self.soup.held(), self.pinned.len(), "merged weights are still held");
        assert_eq!(
            self.scheduler.pool().available(),
            self.settings.blocks,
            "blocks are still held"
        );
    }

    fn arrive(&mut self, arrival: &Arrival) {
        let Arrival { stem, shared, own, from, answer, models, repeatable, .. } = arrival;
        let fit = match self.settings.mode {
            MergeMode::Fused => self.settings.merged_models - self.pinned.len(),
            MergeMode::Auto | MergeMode::Mixed => self.limits.lanes,
        };
        let mut tokens: Vec<u32> = (0..*shared as u32).map(|n| (stem * 5 + n) % 3).collect();
        tokens.extend(own);
        let keys: Vec<ModelKey> = models.iter().take(fit).map(|&number| key(number)).collect();
        let from = if self.prompts.is_some() { usize::from(*from) * tokens.len() / 256 } else { 0 };
        let owner = arrival.owner.map(|number| Arc::from(number.to_string()));
        for _ in 0..1 + usize::from(arrival.twin) {
            if self.live.len() >= MOST_LIVE {
                return;
            }
            let wanted =
                Wanted { keys: keys.clone(), from, repeatable: *repeatable, owner: owner.clone() };
            let lanes = self.models.enter(&self.soup, wanted);
            let fixed = match self.settings.mode {
                MergeMode::Fused => Some(Mode::Fused),
                MergeMode::Mixed => Some(Mode::Mixed),
                MergeMode::Auto if keys.iter().all(|key| self.pinned.contains(key)) => {
                    Some(Mode::Fused)
                }
                MergeMode::Auto => repeatable.then_some(Mode::Mixed),
            };
            assert_eq!(lanes.fixed, fixed, "{lanes:?}");
            let id = self.scheduler.enqueue(NewSequence {
                tokens: tokens.clone(),
                encoded: 0,
                chains: self.models.chains(&lanes),
                priority: arrival.priority,
                arrived: self.now,
                prompt_logits: arrival.prompt_logits,
                client: Client::Key(arrival.client.to_string().into()),
            });
            let mut live = Live {
                rows: vec![Vec::new(); keys.len()],
                lanes,
                prompt: tokens.len(),
                tokens: Vec::new(),
                computed: 0,
                left: *answer,
                prompt_logits: arrival.prompt_logits,
                reported: Vec::new(),
                owner: owner.clone(),
            };
            tokens.iter().for_each(|&token| live.push(token, self.prompts.as_ref()));
            self.live.insert(id, live);
        }
    }

    fn remove(&mut self, id: SeqId) {
        self.scheduler.finish(id);
        let live = self.live.remove(&id).unwrap();
        self.models.leave(&live.lanes);
    }

    /// One turn of the engine's thread.
    fn step(&mut self, refused: bool) {
        count(&mut self.totals, "steps", 1);
        self.now += Duration::from_millis(10);
        let before: HashSet<SeqId> = self.scheduler.running().iter().copied().collect();
        let plan = self.plan();
        for &id in &plan.preempted {
            assert!(before.contains(&id), "who does not run cannot be preempted");
            count(&mut self.totals, "preempted", 1);
            self.live.get_mut(&id).unwrap().forget();
        }
        for &(id, cached) in &plan.admitted {
            self.admitted(id, cached);
        }
        self.check_plan(&before, &plan);
        self.compute(&plan, refused);
        let Self { scheduler, models, live, .. } = self;
        let running = scheduler.running().iter().map(|id| &live[id].lanes);
        models.release_unused(running);
    }

    fn plan(&mut self) -> StepPlan {
        let Self { scheduler, models, soup, live, settings, .. } = self;
        let cost = models.cost.clone();
        let mut building = models.building(soup);
        let mut failed = Vec::new();
        let plan = scheduler.plan(
            self.now,
            |decoding, prompts| {
                settings.beside.unwrap_or(cost.rows_beside(Mode::Mixed, decoding, prompts))
            },
            |id| match models.ready(soup, &live[&id].lanes, &mut building) {
                Readiness::Ready => true,
                Readiness::NotYet => false,
                Readiness::Failed(_) => {
                    failed.push(id);
                    false
                }
            },
        );
        failed.sort_unstable();
        failed.dedup();
        for id in failed {
            count(&mut self.totals, "failed", 1);
            self.remove(id);
        }
        plan
    }

    /// Makes a planned step, as the engine's thread does.
    fn compute(&mut self, plan: &StepPlan, refused: bool) {
        self.decide(plan);
        let (forwards, list) = self.layout(plan);
        self.models.promote(&mut self.soup, &list, self.now);
        let (mut attended, mut broken) = (HashMap::new(), BTreeSet::new());
        for (number, forward) in forwards.iter().enumerate() {
            if refused && number == 0 {
                broken.extend(&forward.sequences);
                continue;
            }
            let rows = forward.batch.tokens.len() as u64;
            let lease = forward.merged.map(|index| self.models.lease(&list[index].key));
            let lease = lease.map(|lease| lease.expect("merged weights are leased"));
            match lease {
                Some(_) => count(&mut self.totals, "rows computed fused", rows),
                None => count(&mut self.totals, "rows computed mixed", rows),
            }
            let results = self.soup.forward(lease, &forward.batch).unwrap();
            assert_eq!(results.len(), forward.outputs.len());
            for (output, result) in forward.outputs.iter().zip(results) {
                let key = (output.id, output.position, output.lane);
                assert_eq!(attended.insert(key, result), None, "{key:?} is computed twice");
            }
        }
        for id in broken {
            count(&mut self.totals, "failed", 1);
            self.remove(id);
        }
        for item in &plan.items {
            if self.live.contains_key(&item.id) {
                self.computed(item, &attended);
            }
        }
    }

    /// Lets the models choose how free rows run.
    fn decide(&mut self, plan: &StepPlan) {
        let (mut free, mut mixed) = (BTreeMap::<ModelKey, usize>::new(), 0);
        for Item { id, range } in &plan.items {
            let Live { lanes, .. } = &self.live[id];
            for (lane, key) in lanes.keys.iter().enumerate() {
                let start = range.start.max(self.scheduler.own_from(*id, lane)).min(range.end);
                for (rows, key, mode, is_free) in self.models.parts(lanes, key, start..range.end) {
                    match is_free {
                        true => *free.entry(key.clone()).or_default() += rows.len(),
                        false if mode == Mode::Mixed => mixed += rows.len(),
                        false => {}
                    }
                }
            }
        }
        let modes = |world: &Self| -> Vec<Mode> {
            world.live.values().map(|live| world.models.mode_of_all(&live.lanes)).collect()
        };
        let before = modes(self);
        self.models.decide(&mut self.soup, &free, mixed);
        let changed = before.iter().zip(modes(self)).filter(|(before, now)| *before != now).count();
        count(&mut self.totals, "modes changed", changed as u64);
    }

    /// The forward passes of a plan, and the models of the step.
    fn layout(&self, plan: &StepPlan) -> (Vec<Forward>, Vec<StepModel>) {
        let mut parts = Vec::new();
        for Item { id, range } in &plan.items {
            let Live { lanes, .. } = &self.live[id];
            for (lane, key) in lanes.keys.iter().enumerate() {
                let start = range.start.max(self.scheduler.own_from(*id, lane)).min(range.end);
                let of_lane = self.models.parts(lanes, key, start..range.end);
                parts.extend(
                    of_lane.map(|(rows, key, mode, free)| (*id, lane, rows, key, mode, free)),
                );
            }
        }
        let mut list: Vec<StepModel> = Vec::new();
        let prompts_first = |key: &ModelKey, mode| !self.models.computes_prompts(key, mode);
        parts.sort_by_key(|(.., key, mode, _)| prompts_first(key, *mode));
        let mut indices = Vec::new();
        for (_, _, rows, key, mode, free) in &parts {
            let found = list.iter().position(|model| model.key == **key && model.mode == *mode);
            let index = found.unwrap_or_else(|| {
                let key = ModelKey::clone(key);
                list.push(StepModel { key, mode: *mode, rows: 0, free: 0 });
                list.len() - 1
            });
            list[index].rows += rows.len();
            list[index].free += if *free { rows.len() } else { 0 };
            indices.push(index);
        }
        let rows = parts.iter().zip(&indices).map(|((id, lane, rows, ..), &model)| {
            let live = &self.live[id];
            let wanted = |&row: &usize| {
                let next = rows.start + row + 1;
                next == live.tokens.len() || live.prompt_logits && next < live.prompt
            };
            LaneRows {
                id: *id,
                lane: *lane,
                model,
                start: rows.start,
                tokens: &self.scheduler.tokens(*id)[rows.clone()],
                blocks: self.scheduler.blocks(*id, *lane),
                encoded: Encoded::default(),
                outputs: (0..rows.len()).filter(wanted).collect(),
            }
        });
        let models: Vec<(Mode, &[f32])> =
            list.iter().map(|model| (model.mode, self.models.terms(&model.key))).collect();
        (layout(&rows.collect::<Vec<_>>(), &models), list)
    }

    /// Rows of a sequence were computed: they are what the reference says, and give its next token.
    fn computed(&mut self, item: &Item, attended: &HashMap<(SeqId, usize, usize), u64>) {
        let id = item.id;
        self.scheduler.computed(item);
        let lanes = 0..self.live[&id].rows.len();
        let present: Vec<_> = lanes.map(|lane| self.present(id, lane, item.range.end)).collect();
        let live = self.live.get_mut(&id).unwrap();
        live.computed = item.range.end;
        for (lane, rows) in live.rows.iter().enumerate() {
            let blocks = self.scheduler.blocks(id, lane);
            for position in item.range.clone() {
                self.owners.insert(blocks[position / BLOCK], live.owner.clone());
                if let Some(known) = self.known.as_mut().filter(|_| position % BLOCK == BLOCK - 1) {
                    known.insert((live.owner.clone(), rows[position]));
                }
            }
        }
        if self.prompts.is_some() && item.range.contains(&live.lanes.from) {
            count(&mut self.totals, "backbones became active", 1);
        }
        for position in item.range.clone() {
            let last = position + 1 == live.tokens.len();
            let of_prompt = live.prompt_logits && position + 1 < live.prompt;
            if !last && !of_prompt {
                continue;
            }
            let mut token = 0;
            for (lane, rows) in present.iter().enumerate() {
                let got = attended.get(&(id, position, lane)).copied();
                let expected = attend(rows[..=position].iter().copied());
                assert_eq!(got, Some(expected), "row {position} of lane {lane} of {id}");
                token = mix(token, expected);
            }
            if of_prompt {
                live.reported.push(position);
            }
            if last {
                let expected = if live.prompt_logits { live.prompt - 1 } else { 0 };
                assert!(live.reported.iter().copied().eq(0..expected), "rows of the prompt");
                count(&mut self.totals, "tokens", 1);
                live.left -= 1;
                if live.left == 0 {
                    count(&mut self.totals, "finished", 1);
                    return self.remove(id);
                }
                // Few values, so that answers are prefixes of others.
                let token = (token % 2) as u32;
                live.push(token, self.prompts.as_ref());
                self.scheduler.push(id, token);
            }
        }
    }
}

impl Live {
    /// What computes a row of a model: in which mode, if that is not free.
    fn computer<'a>(
        &'a self,
        position: usize,
        key: &'a ModelKey,
        prompts: Option<&'a Prompts>,
    ) -> (&'a ModelKey, Option<Mode>) {
        match prompts.filter(|_| position < self.lanes.from) {
            Some(prompts) => (&prompts.key, Some(prompts.mode)),
            None => (key, self.lanes.fixed),
        }
    }

    /// Takes a token in, with the name of the row that each lane has for it.
    fn push(&mut self, token: u32, prompts: Option<&Prompts>) {
        let position = self.tokens.len();
        self.tokens.push(token);
        for lane in 0..self.rows.len() {
            let (key, mode) = self.computer(position, &self.lanes.keys[lane], prompts);
            let before = self.rows[lane].last().copied().unwrap_or_default();
            let row = then(before, token, model(&terms(key)), mode);
            self.rows[lane].push(row);
        }
    }

    /// Its rows are lost.
    fn forget(&mut self) {
        self.computed = 0;
        self.reported.clear();
    }
}
