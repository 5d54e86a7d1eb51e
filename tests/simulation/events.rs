//! What happens to the engine, and how it is drawn.

use ladle::config::MergeMode;
use proptest::prelude::*;

/// What holds for a whole simulation.
#[derive(Debug, Clone)]
pub struct Settings {
    pub mode: MergeMode,
    pub answer_only: bool,
    /// One of the models is pinned.
    pub pinned: bool,
    pub merged_models: usize,
    pub blocks: usize,
    pub prefix_cache: bool,
    /// Rows of prefill beside those who decode; `None`: as the cost model says.
    pub beside: Option<usize>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its prompt begins as that of others, and goes on by itself.
    pub stem: u32,
    pub shared: usize,
    pub own: Vec<u32>,
    /// The first row of its own model, in parts of the prompt.
    pub from: u8,
    pub answer: usize,
    /// The model of each lane.
    pub models: Vec<u8>,
    pub repeatable: bool,
    pub priority: i32,
    pub prompt_logits: bool,
    pub client: u8,
    pub owner: Option<u8>,
    /// A second one is submitted with it.
    pub twin: bool,
}

#[derive(Debug, Clone)]
pub enum Event {
    Arrive(Arrival),
    Step,
    /// A step whose first forward pass is refused.
    RefusedStep,
    /// A client leaves.
    Leave(u8),
    MergeEnds,
    MergeFails,
    /// All keys and values are lost, as after a panic.
    Forget,
    /// Time passes.
    Wait(u16),
}

pub fn settings() -> impl Strategy<Value = Settings> {
    let modes = [MergeMode::Auto, MergeMode::Fused, MergeMode::Mixed];
    (
        prop::sample::select(modes.to_vec()),
        any::<bool>(),
        any::<bool>(),
        3usize..6,
        // The longest request takes 3 lanes of 15 blocks; of the many none is ever evicted.
        prop_oneof![2 => 46usize..60, 1 => Just(4000)],
        prop::bool::weighted(0.9),
        prop::option::of(0usize..20),
    )
        .prop_map(
            |(mode, answer_only, pinned, merged_models, blocks, prefix_cache, beside)| Settings {
                mode,
                answer_only,
                pinned,
                merged_models,
                blocks,
                prefix_cache,
                beside,
            },
        )
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let prompt = (0u32..3, 0usize..30, prop::collection::vec(0u32..2, 1..9), any::<u8>());
    let models = prop_oneof![
        4 => prop::collection::vec(0u8..4, 1),
        1 => prop::collection::vec(0u8..4, 2..4),
    ];
    let how = (any::<bool>(), -2i32..3, prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let who = (0u8..3, prop::option::of(0u8..2));
    (prompt, 1usize..20, models, how, who).prop_map(
        |((stem, shared, own, from), answer, models, how, (client, owner))| {
            let (repeatable, priority, prompt_logits, twin) = how;
            Arrival {
                stem,
                shared,
                own,
                from,
                answer,
                models,
                repeatable,
                priority,
                prompt_logits,
                client,
                owner,
                twin,
            }
        },
    )
}

pub fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        120 => Just(Event::Step),
        2 => Just(Event::RefusedStep),
        25 => arrival().prop_map(Event::Arrive),
        10 => any::<u8>().prop_map(Event::Leave),
        15 => Just(Event::MergeEnds),
        2 => Just(Event::MergeFails),
        1 => Just(Event::Forget),
        5 => (0u16..2_000).prop_map(Event::Wait),
    ]
}
