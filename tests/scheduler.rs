//! The scheduler by properties: a driver that computes what is planned and samples one token per
//! finished range, with random arrivals.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use ladle::{
    engine::{
        Client, Mode,
        blocks::{BlockHash, BlockPool, Chain},
        scheduler::{Item, NewSequence, Scheduler, SeqId, StepLimits, StepPlan},
    },
    preference::{Coefficients, ModelKey},
};
use proptest::prelude::*;

const BLOCK: usize = 4;

fn limits() -> StepLimits {
    StepLimits {
        step_tokens: 16,
        prefill_chunk: 8,
        lanes: 6,
        logit_rows: 4,
        aging: Duration::from_secs(1),
        patience: Duration::from_secs(1),
        prefix_cache: true,
    }
}

fn root(model: u32) -> BlockHash {
    let c = Coefficients { backbones: vec![f64::from(model)], sft: 0.0 };
    BlockHash::root("soup", &ModelKey::of(&c), Some(Mode::Mixed))
}

fn task(tokens: Vec<u32>, arrived: u64) -> NewSequence {
    NewSequence {
        tokens,
        encoded: 0,
        chains: vec![root(0).into()],
        priority: 0,
        arrived: Duration::from_millis(arrived),
        prompt_logits: false,
        client: Client::Local,
    }
}

/// A task of a client.
fn of(client: &str, task: NewSequence) -> NewSequence {
    NewSequence { client: Client::Key(client.into()), ..task }
}

/// Drives a scheduler and checks every plan.
struct Driver {
    scheduler: Scheduler,
    limits: StepLimits,
    /// Rows of prefill allowed beside decoding rows.
    beside: usize,
    now: u64,
    /// Tokens left to generate.
    left: HashMap<SeqId, usize>,
    lanes: HashMap<SeqId, usize>,
    encoded: HashMap<SeqId, usize>,
    admitted: Vec<SeqId>,
    finished: Vec<SeqId>,
    preemptions: usize,
    computed: HashMap<SeqId, usize>,
}

impl Driver {
    fn new(limits: StepLimits, blocks: usize) -> Self {
        Self {
            scheduler: Scheduler::new(limits, BlockPool::new(blocks, BLOCK)),
            limits,
            beside: usize::MAX,
            now: 0,
            left: HashMap::new(),
            lanes: HashMap::new(),
            encoded: HashMap::new(),
            admitted: Vec::new(),
            finished: Vec::new(),
            preemptions: 0,
            computed: HashMap::new(),
        }
    }

    fn add(&mut self, task: NewSequence, answer: usize) -> SeqId {
        let (lanes, encoded) = (task.chains.len(), task.encoded);
        let id = self.scheduler.enqueue(task);
        self.encoded.insert(id, encoded);
        self.left.insert(id, answer);
        self.lanes.insert(id, lanes);
        id
    }

    fn step(&mut self) -> StepPlan {
        self.step_if(|_| true)
    }

    /// One step of 10 ms; `ready` as in [`Scheduler::plan`].
    fn step_if(&mut self, ready: impl FnMut(SeqId) -> bool) -> StepPlan {
        self.now += 10;
        let plan = self.scheduler.plan(Duration::from_millis(self.now), |_, _| self.beside, ready);
        self.computed.retain(|id, _| !plan.preempted.contains(id));
        self.check(&plan);
        self.preemptions += plan.preempted.len();
        for (id, _) in &plan.admitted {
            if !self.admitted.contains(id) {
                self.admitted.push(*id);
            }
        }
        for item in &plan.items {
            self.scheduler.computed(item);
            self.computed.insert(item.id, item.range.end);
            if item.range.end == self.scheduler.tokens(item.id).len() {
                self.scheduler.push(item.id, (item.range.end % 3) as u32);
                let left = self.left.get_mut(&item.id).unwrap();
                *left -= 1;
                if *left == 0 {
                    self.scheduler.finish(item.id);
                    self.finished.push(item.id);
                }
            }
        }
        self.scheduler.check().unwrap();
        plan
    }

    fn check(&self, plan: &StepPlan) {
        self.scheduler.check().unwrap();
        // Tokens of an item that are encoded, and the others.
        let parts = |item: &Item| {
            let encoded = self.encoded[&item.id].saturating_sub(item.range.start);
            (encoded, item.range.len().saturating_sub(encoded))
        };
        let all = plan.items.iter().map(|item| (parts(item), self.lanes[&item.id]));
        let (encoded, rows) = all.fold((0, 0), |(encoded, rows), (part, lanes)| {
            (encoded + part.0 * lanes, rows + part.1 * lanes)
        });
        assert!(encoded <= self.limits.step_tokens, "{encoded} tokens to encode: {plan:?}");
        assert!(rows <= self.limits.step_tokens, "{rows} rows: {plan:?}");
        let running: usize = self.scheduler.running().iter().map(|id| self.lanes[id]).sum();
        assert!(running <= self.limits.lanes, "{running} lanes");
        let mut writers: BTreeMap<u32, SeqId> = BTreeMap::new();
        for item in &plan.items {
            let (encoded, rows) = parts(item);
            assert!(encoded == 0 || item.range.start == 0 && rows > 0, "a part: {plan:?}");
            assert!(rows <= self.limits.prefill_chunk);
            assert!(self.scheduler.running().contains(&item.id));
            for lane in 0..self.lanes[&item.id] {
                let blocks = self.scheduler.blocks(item.id, lane);
                assert!(blocks.len() * BLOCK >= item.range.end, "no block for a row");
                for position in item.range.clone() {
                    writers.insert(blocks[position / BLOCK], item.id);
                }
            }
        }
        // A block that is written belongs to its writer alone.
        for &id in self.scheduler.running() {
            for lane in 0..self.lanes[&id] {
                for block in self.scheduler.blocks(id, lane) {
                    assert!(writers.get(block).is_none_or(|&writer| writer == id));
                }
            }
        }
        // Whoever decodes does so in every step.
        for &id in self.scheduler.running() {
            let joined = plan.admitted.iter().any(|&(other, _)| other == id);
            let pending = self.scheduler.tokens(id).len() - self.computed.get(&id).unwrap_or(&0);
            if !joined && pending == 1 {
                assert!(plan.items.iter().any(|i| i.id == id), "{id} was left out: {plan:?}");
            }
        }
    }

    fn run(&mut self, most_steps: usize) {
        for _ in 0..most_steps {
            if self.finished.len() == self.left.len() {
                return;
            }
            self.step();
        }
        let waiting = self.scheduler.waiting();
        let running = self.scheduler.running();
        panic!("not finished after {most_steps} steps: waiting {waiting:?}, running {running:?}");
    }
}

#[derive(Debug, Clone)]
struct Arrival {
    after_steps: usize,
    prompt: Vec<u32>,
    answer: usize,
    models: Vec<u32>,
    priority: i32,
    prompt_logits: bool,
    client: u32,
    encoded: bool,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    // Few token values and models, so that prefixes are often shared.
    let arrival = (
        0usize..4,
        prop::collection::vec(0u32..2, 1..40),
        1usize..24,
        prop::collection::vec(0u32..3, 1..4),
        0i32..3,
        prop::bool::weighted(0.1),
        (0u32..3, prop::bool::weighted(0.3)),
    );
    let arrival =
        arrival.prop_map(|(after_steps, prompt, answer, mut models, priority, logits, rest)| {
            models.dedup();
            let (client, encoded) = rest;
            let prompt_logits = logits && !encoded;
            Arrival {
                after_steps,
                prompt,
                answer,
                models,
                priority,
                prompt_logits,
                client,
                encoded,
            }
        });
    prop::collection::vec(arrival, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn budgets_hold_nobody_shares_what_is_written_and_everybody_finishes(
        arrivals in arrivals(),
        beside in 0usize..20,
    ) {
        // 63 tokens at most in 3 lanes: 48 blocks; so one sequence fits alone, hardly two.
        let mut driver = Driver::new(limits(), 50);
        driver.beside = beside;
        for arrival in arrivals {
            for _ in 0..arrival.after_steps {
                driver.step();
            }
            // Whole blocks, with a token after them, in one step.
            let most = (arrival.prompt.len() - 1).min(16 / arrival.models.len());
            let encoded = if arrival.encoded { most / BLOCK * BLOCK } else { 0 };
            let chain = |model| match encoded {
                0 => root(model).into(),
                _ => Chain::from(root(model)).after_encoded(&arrival.prompt[..encoded]),
            };
            let task = NewSequence {
                chains: arrival.models.into_iter().map(chain).collect(),
                tokens: arrival.prompt,
                encoded,
                priority: arrival.priority,
                arrived: Duration::from_millis(driver.now),
                prompt_logits: arrival.prompt_logits,
                client: Client::Key(arrival.client.to_string().into()),
            };
            driver.add(task, arrival.answer);
        }
        driver.run(20_000);
        prop_assert_eq!(driver.scheduler.pool().available(), 50);
    }

    #[test]
    fn equal_priorities_are_served_in_order(lengths in prop::collection::vec(1usize..30, 2..30)) {
        let mut driver = Driver::new(limits(), 40);
        let ids: Vec<SeqId> = lengths
            .iter()
            .enumerate()
            .map(|(n, &len)| driver.add(task(vec![100 + n as u32; len], n as u64), 3))
            .collect();
        driver.run(5_000);
        prop_assert_eq!(driver.admitted, ids);
    }
}

#[test]
fn a_long_prompt_does_not_stall_who_decodes() {
    let mut driver = Driver::new(limits(), 300);
    let decoding = driver.add(task(vec![1, 2, 3], 0), 60);
    driver.step();
    let long = driver.add(task((10..500).collect(), 0), 1);
    for _ in 0..50 {
        let plan = driver.step();
        assert_eq!(plan.items[0].id, decoding);
        assert!(plan.items.iter().any(|item| item.id == long && item.range.len() == 8));
    }
}

#[test]
fn many_prompts_share_what_is_allowed_beside_those_who_decode() {
    let mut driver = Driver::new(limits(), 300);
    driver.beside = BLOCK + 1;
    driver.add(task(vec![1, 2, 3], 0), 60);
    driver.step();
    let prompts: Vec<SeqId> =
        (0..3).map(|n| driver.add(task((100 * n + 10..100 * n + 20).collect(), 0), 1)).collect();
    let mut steps = 0;
    while !prompts.iter().all(|id| driver.finished.contains(id)) {
        let plan = driver.step();
        let rows: usize = plan.items.iter().skip(1).map(|item| item.range.len()).sum();
        assert!((1..=BLOCK + 1).contains(&rows), "{rows} rows of prompts");
        steps += 1;
    }
    assert_eq!(steps, 3 * 10 / (BLOCK + 1));
}

#[test]
fn a_short_prompt_passes_beside_a_long_one() {
    let mut driver = Driver::new(limits(), 300);
    driver.add(task((10..500).collect(), 0), 1);
    driver.step();
    let short = driver.add(task(vec![1, 2, 3], 10), 1);
    driver.step();
    assert_eq!(driver.finished, [short]);
}

#[test]
fn higher_priorities_go_first_but_starve_nobody() {
    let one_lane = StepLimits { lanes: 1, ..limits() };
    let mut driver = Driver::new(one_lane, 40);
    driver.add(task(vec![1], 0), 4);
    driver.step();
    let low = driver.add(NewSequence { priority: -2, ..task(vec![2], 10) }, 1);
    let first = driver.add(NewSequence { priority: 5, ..task(vec![3], 10) }, 1);
    let mut others = 0;
    while !driver.finished.contains(&low) {
        // Somebody more important is always there.
        driver.add(NewSequence { priority: 0, ..task(vec![4], driver.now) }, 1);
        driver.step();
        others += 1;
        assert!(others < 2_000, "starved");
    }
    assert_eq!(driver.admitted[1], first);
    assert!(others > 100, "a lower priority waits while it is young");
}

/// A priority of 100 kept others waiting for as long as such requests came, and for 1,000 seconds
/// after the last.
#[test]
fn a_priority_is_worth_seconds_and_no_more() {
    let aging = Duration::from_millis(100);
    let mut driver = Driver::new(StepLimits { lanes: 1, aging, ..limits() }, 40);
    let urgent = |now| NewSequence { priority: 100, ..task(vec![1], now) };
    driver.add(urgent(0), 1);
    driver.step();
    let patient = driver.add(NewSequence { priority: -100, ..task(vec![2], driver.now) }, 1);
    let arrived = driver.now;
    while !driver.finished.contains(&patient) {
        // As many as can be served.
        driver.add(urgent(driver.now), 1);
        driver.step();
        assert!(driver.now - arrived <= 20_000 + 100, "200 steps of 100 ms");
    }
    assert!(driver.now - arrived > 15_000, "a priority is worth something");
}

/// Whoever sent many requests first had every lane until they were done.
#[test]
fn a_client_with_many_requests_leaves_others_their_share() {
    let aging = Duration::from_millis(10);
    let mut driver = Driver::new(StepLimits { aging, ..limits() }, 300);
    for n in 0..12 {
        driver.add(NewSequence { priority: 100, ..of("greedy", task(vec![n], 0)) }, 100);
    }
    driver.step();
    assert_eq!(driver.scheduler.running().len(), 6, "alone it has all");
    let others: Vec<SeqId> =
        (0..4).map(|n| driver.add(of("modest", task(vec![50 + n], driver.now)), 100)).collect();
    let lanes_of = |driver: &Driver| {
        let modest = |id: &&SeqId| others.contains(*id);
        let running = driver.scheduler.running();
        (running.iter().filter(modest).count(), running.len())
    };
    let mut most = 0;
    for _ in 0..60 {
        driver.step();
        most = most.max(lanes_of(&driver).0);
    }
    assert_eq!(lanes_of(&driver), (3, 6), "half of the lanes each");
    assert_eq!((most, driver.preemptions), (3, 3), "no more than its share, and taken once");
    driver.run(2_000);
    assert!(driver.preemptions <= 4, "{} preemptions", driver.preemptions);
}

#[test]
fn a_long_context_is_a_share_of_the_blocks() {
    let aging = Duration::from_millis(1);
    let mut driver = Driver::new(StepLimits { aging, ..limits() }, 120);
    // 25 blocks each, 29 at their end.
    for n in 0..4 {
        let tokens = (1000 * n..1000 * n + 100).collect();
        driver.add(of("greedy", task(tokens, 0)), 15);
    }
    driver.step();
    let modest = driver.add(of("modest", task((5000..5080).collect(), driver.now)), 1);
    while !driver.admitted.contains(&modest) {
        driver.step();
        assert!(driver.finished.is_empty(), "it waits for the others' end");
    }
    driver.run(500);
}

#[test]
fn what_is_left_over_is_anybodys() {
    let mut driver = Driver::new(limits(), 300);
    for n in 0..8 {
        driver.add(of("greedy", task(vec![n], 0)), 50);
    }
    driver.add(of("modest", task(vec![99], 0)), 50);
    driver.step();
    assert_eq!(driver.scheduler.running().len(), 6);
    assert!(driver.scheduler.running().contains(&8), "it comes last and goes first");
}

#[test]
fn who_waits_long_for_its_weights_stops_those_behind_it() {
    let mut driver = Driver::new(limits(), 40);
    let mut others = vec![driver.add(task(vec![1_000], 0), 4)];
    driver.step();
    let unready = driver.add(task(vec![2_000], 0), 1);
    // Its weights find room only when nobody else runs, and others come all the time.
    for _ in 0..1_000 {
        others.push(driver.add(task(vec![others.len() as u32], driver.now), 4));
        let busy = !driver.scheduler.running().is_empty();
        driver.step_if(|id| id != unready || !busy);
        if driver.finished.contains(&unready) {
            assert!(driver.finished.len() > 50, "others go on while it is young");
            return;
        }
    }
    panic!("starved");
}

#[test]
fn a_prefix_is_computed_once_and_only_for_its_own_model() {
    let prompt: Vec<u32> = (0..21).collect();
    let mut driver = Driver::new(limits(), 40);
    let first = driver.add(task(prompt.clone(), 0), 1);
    let twin = driver.add(task(prompt.clone(), 0), 1);
    let mut other = task(prompt.clone(), 0);
    other.chains = vec![root(1).into()];
    let other = driver.add(other, 1);
    let mut cached = HashMap::new();
    let mut computed: HashMap<SeqId, usize> = HashMap::new();
    while driver.finished.len() < 3 {
        let plan = driver.step();
        cached.extend(plan.admitted);
        plan.items.iter().for_each(|i| *computed.entry(i.id).or_default() += i.range.len());
    }
    assert_eq!((cached[&first], cached[&other]), (0, 0));
    assert_eq!((computed[&first], computed[&other]), (21, 21));
    // It waited until all it can share was there; its last token is always computed.
    assert!(cached[&twin] >= 4 && cached[&twin] + computed[&twin] == 21, "{cached:?}");

    // Much later the whole prefix is still there.
    let late = driver.add(task(prompt, driver.now), 1);
    let plan = driver.step();
    assert_eq!(plan.admitted, [(late, 20)]);
}

#[test]
fn the_less_important_gives_its_memory_up_and_is_computed_again() {
    let mut driver = Driver::new(limits(), 10);
    let first = driver.add(task(vec![1; 12], 0), 20);
    let second = driver.add(task(vec![2; 12], 1), 20);
    driver.run(500);
    assert!(driver.preemptions > 0, "memory for 40 tokens cannot hold 64");
    assert_eq!(driver.finished, [first, second]);
}

#[test]
fn forgetting_computes_everything_again() {
    let mut driver = Driver::new(limits(), 40);
    driver.add(task(vec![1; 12], 0), 20);
    driver.add(task(vec![2; 12], 0), 20);
    (0..6).for_each(|_| drop(driver.step()));
    driver.scheduler.forget();
    assert_eq!((driver.scheduler.pool().available(), driver.scheduler.pool().idle()), (40, 0));
    let plan = driver.step();
    assert!(plan.admitted.iter().all(|&(_, cached)| cached == 0) && plan.admitted.len() == 2);
    driver.run(500);
}

#[test]
fn prompt_logits_keep_to_their_budget_and_skip_the_prefix_cache() {
    let mut driver = Driver::new(limits(), 40);
    driver.add(task((0..20).collect(), 0), 1);
    driver.run(10);
    let id = driver.add(NewSequence { prompt_logits: true, ..task((0..20).collect(), 0) }, 1);
    let mut ranges = Vec::new();
    while driver.finished.len() < 2 {
        let plan = driver.step();
        ranges.extend(plan.items.into_iter().filter(|i| i.id == id).map(|i| i.range));
    }
    assert_eq!(ranges, [0..4, 4..8, 8..12, 12..16, 16..20]);
}
