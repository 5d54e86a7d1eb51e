//! A soup whose every token is a hash of all that should decide it: what the key/value blocks hold,
//! and the coefficients. Any mix-up of blocks, rows, lanes or models changes the tokens.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use ladle::{
    engine::{
        EngineError,
        backend::{Backend, Facts},
        cost::{Footprint, Pass},
    },
    kernels::{Batch, KernelError},
    merge::Fetch,
    preference::{Coefficients, ModelKey},
    tokenizer::Tokenizer,
};

/// Bytes, an end-of-sequence token, and tokens that make the soup misbehave.
pub const VOCABULARY: usize = 261;
pub const EOS: u32 = 256;
/// In a sequence: its forward pass panics.
pub const PANIC: u32 = 257;
/// In a sequence: its logits are NaN.
pub const NAN: u32 = 258;
/// In a sequence: its forward pass is refused.
pub const REFUSE: u32 = 259;
/// Blocks hold this many tokens.
pub const BLOCK: usize = 4;

/// A token in key/value memory, with the model and the mode that it was computed under.
#[derive(Clone, Copy, PartialEq)]
struct Slot {
    token: u32,
    model: u64,
    fused: bool,
}

/// Where passes or merges wait while a test holds them.
#[derive(Default)]
pub struct Gate {
    /// How many may still go through; none: all.
    left: Mutex<Option<usize>>,
    moved: Condvar,
}

impl Gate {
    /// Lets `n` more through, the next only after [`Self::open`].
    pub fn hold_after(&self, n: usize) {
        *self.left.lock().unwrap() = Some(n);
        self.moved.notify_all();
    }

    pub fn open(&self) {
        *self.left.lock().unwrap() = None;
        self.moved.notify_all();
    }

    fn pass(&self) {
        let left = self.left.lock().unwrap();
        let mut left = self.moved.wait_while(left, |left| *left == Some(0)).unwrap();
        if let Some(left) = &mut *left {
            *left -= 1;
        }
    }
}

/// Settings and counters of a [`HashSoup`], shared with its test.
pub struct Controls {
    pub passes: Gate,
    pub merging: Gate,
    pub merged_models: usize,
    pub mixes: bool,
    pub blocks: usize,
    /// The backbones are active on the answer only; the rows before are computed fused where this
    /// holds `Some(true)`, mixed where it holds `Some(false)`.
    pub prompts_fused: Option<bool>,
    /// What passes and merges are said to cost.
    pub footprint: Footprint,
    /// Merges fail.
    pub broken_merges: AtomicBool,
    /// Merges that began.
    pub merges: AtomicUsize,
    /// Merges that ended.
    pub merged: AtomicUsize,
    pub most_alive: AtomicUsize,
    /// Rows that attended to keys and values of their model in the other mode.
    pub crossed: AtomicUsize,
    pub resets: AtomicUsize,
    pub forwards: AtomicUsize,
    /// The soup was let go of.
    pub dropped: AtomicBool,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            passes: Gate::default(),
            merging: Gate::default(),
            merged_models: 4,
            mixes: true,
            blocks: 400,
            prompts_fused: None,
            // Mixed passes cost so much more that `auto` fuses what is merged, whatever a test's
            // machine teaches the cost model.
            footprint: Footprint {
                fused: Pass { bytes: 1e6, flops_per_row: 1e6 },
                mixed: Pass { bytes: 1e15, flops_per_row: 1e6 },
                merge_bytes: 1e6,
                merge_flops: 0.0,
            },
            broken_merges: AtomicBool::new(false),
            merges: AtomicUsize::new(0),
            merged: AtomicUsize::new(0),
            most_alive: AtomicUsize::new(0),
            crossed: AtomicUsize::new(0),
            resets: AtomicUsize::new(0),
            forwards: AtomicUsize::new(0),
            dropped: AtomicBool::new(false),
        }
    }
}

/// Merged weights: only their identity.
pub struct Merged {
    model: u64,
}

enum State {
    Building,
    Built(Arc<Merged>),
    Failed,
}

/// A place in the cache; whoever has a ticket holds it.
struct Entry {
    state: State,
    held: Arc<()>,
}

pub struct Ticket {
    model: u64,
    _held: Arc<()>,
}

impl Entry {
    fn ticket(&self, model: u64) -> Ticket {
        Ticket { model, _held: self.held.clone() }
    }

    fn is_idle(&self) -> bool {
        let leased = match &self.state {
            State::Building => true,
            State::Built(merged) => Arc::strong_count(merged) > 1,
            State::Failed => false,
        };
        !leased && Arc::strong_count(&self.held) == 1
    }
}

pub struct HashSoup {
    controls: Arc<Controls>,
    memory: Vec<[Option<Slot>; BLOCK]>,
    cache: Arc<Mutex<HashMap<u64, Entry>>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl HashSoup {
    pub fn new(controls: Arc<Controls>) -> Self {
        let memory = vec![[None; BLOCK]; controls.blocks];
        Self { controls, memory, cache: Arc::default(), wake: Arc::new(|| ()) }
    }
}

impl Drop for HashSoup {
    fn drop(&mut self) {
        self.controls.dropped.store(true, Ordering::Relaxed);
    }
}

fn mix(state: u64, value: u64) -> u64 {
    let mut z = (state ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn model(terms: &[f32]) -> u64 {
    terms.iter().fold(1, |state, term| mix(state, u64::from(term.to_bits())))
}

fn terms(c: &Coefficients) -> Vec<f32> {
    c.backbones.iter().chain([&c.sft]).map(|&v| (v + 0.0) as f32).collect()
}

fn sft() -> u64 {
    model(&terms(&Coefficients { backbones: vec![0.0; 3], sft: 1.0 }))
}

/// The logits after `tokens` under coefficients `c`: what the soup must give, from scratch.
pub fn logits(c: &Coefficients, tokens: &[u32]) -> Vec<f32> {
    logits_from(c, 0, tokens)
}

/// The same where θ_sft computes the tokens before `from`.
pub fn logits_from(c: &Coefficients, from: usize, tokens: &[u32]) -> Vec<f32> {
    let own = model(&terms(c));
    let of = |position| if position < from { sft() } else { own };
    let rows = tokens.iter().enumerate().map(|(position, &token)| (of(position), token));
    logits_of(of(tokens.len() - 1), rows)
}

fn logits_of(model: u64, rows: impl Iterator<Item = (u64, u32)>) -> Vec<f32> {
    let mut misbehaves = false;
    let state = rows.fold(model, |state, (model, token)| {
        misbehaves |= token == NAN;
        mix(mix(state, model), u64::from(token))
    });
    let value = |id: u64| (mix(state, id) >> 40) as f32 / 1e6;
    let mut logits: Vec<f32> = (0..VOCABULARY as u64).map(value).collect();
    // The end comes only by chance among 257; the tokens that misbehave never.
    logits[EOS as usize + 1..].fill(f32::NEG_INFINITY);
    if misbehaves {
        logits[7] = f32::NAN;
    }
    logits
}

/// Greedy continuation of `prompt`, from scratch.
pub fn greedy(c: &Coefficients, prompt: &[u32], n: usize) -> Vec<u32> {
    greedy_from(c, 0, prompt, n)
}

/// The same where θ_sft computes the tokens before `from`.
pub fn greedy_from(c: &Coefficients, from: usize, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        tokens.push(argmax(&logits_from(c, from, &tokens)));
    }
    tokens.split_off(prompt.len())
}

pub fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

impl Backend for HashSoup {
    type Lease = Arc<Merged>;
    type Ticket = Ticket;
    type Logits = Vec<f32>;

    fn facts(&self) -> Facts {
        Facts {
            vocabulary: VOCABULARY,
            backbones: 3,
            answer_only: self.controls.prompts_fused.is_some(),
            context: 500,
            start: None,
            blocks: self.controls.blocks,
            block_tokens: BLOCK,
            digest: "hash".to_owned(),
            merged_models: self.controls.merged_models,
            mixes: self.controls.mixes,
            footprint: self.controls.footprint,
        }
    }

    fn terms(&self, key: &ModelKey) -> Vec<f32> {
        terms(&key.coefficients())
    }

    fn cached(&self, key: &ModelKey) -> bool {
        let cache = self.cache.lock().unwrap();
        let entry = cache.get(&model(&self.terms(key)));
        matches!(entry.map(|entry| &entry.state), Some(State::Built(_)))
    }

    fn fetch(&mut self, key: &ModelKey) -> Fetch<Arc<Merged>, Ticket> {
        let model = model(&self.terms(key));
        let mut cache = self.cache.lock().unwrap();
        match cache.get(&model).map(|entry| (&entry.state, entry)) {
            Some((State::Built(merged), _)) => return Fetch::Ready(merged.clone()),
            Some((State::Building, entry)) => return Fetch::Building(entry.ticket(model)),
            Some((State::Failed, _)) => drop(cache.remove(&model)),
            None => {}
        }
        if cache.len() >= self.controls.merged_models {
            let victim = cache.iter().find(|(_, entry)| entry.is_idle()).map(|(&key, _)| key);
            let Some(victim) = victim else { return Fetch::NoRoom };
            cache.remove(&victim);
        }
        let entry = Entry { state: State::Building, held: Arc::new(()) };
        let ticket = entry.ticket(model);
        cache.insert(model, entry);
        self.controls.merges.fetch_add(1, Ordering::Relaxed);
        self.controls.most_alive.fetch_max(cache.len(), Ordering::Relaxed);
        let (shared, controls) = (self.cache.clone(), self.controls.clone());
        let wake = self.wake.clone();
        std::thread::spawn(move || {
            controls.merging.pass();
            let failed = controls.broken_merges.load(Ordering::Relaxed);
            if let Some(entry) = shared.lock().unwrap().get_mut(&model) {
                entry.state =
                    if failed { State::Failed } else { State::Built(Arc::new(Merged { model })) };
            }
            controls.merged.fetch_add(1, Ordering::Relaxed);
            wake();
        });
        Fetch::Building(ticket)
    }

    fn redeem(&self, ticket: &Ticket) -> Option<Result<Arc<Merged>, EngineError>> {
        match &self.cache.lock().unwrap().get(&ticket.model)?.state {
            State::Building => None,
            State::Built(merged) => Some(Ok(merged.clone())),
            State::Failed => Some(Err(EngineError::Merge("as planned".to_owned()))),
        }
    }

    fn set_waker(&mut self, wake: Arc<dyn Fn() + Send + Sync>) {
        self.wake = wake;
    }

    fn forward(
        &mut self,
        merged: Option<&Arc<Merged>>,
        batch: &Batch,
    ) -> Result<Vec<f32>, KernelError> {
        self.controls.passes.pass();
        self.controls.forwards.fetch_add(1, Ordering::Relaxed);
        assert_eq!(merged.is_none(), batch.coefficients.is_some());
        let mut out = Vec::new();
        let mut outputs = batch.outputs.iter().peekable();
        for segment in &batch.segments {
            for row in segment.rows.clone() {
                let position = segment.cached + row - segment.rows.start;
                assert_eq!(batch.positions[row] as usize, position);
                let model = match (merged, &batch.coefficients) {
                    (Some(merged), _) => merged.model,
                    (None, Some(c)) => model(&c.values[row * c.terms..(row + 1) * c.terms]),
                    (None, None) => unreachable!(),
                };
                let token = batch.tokens[row];
                assert!(token != PANIC, "a planned panic");
                if token == REFUSE {
                    let (op, what) = ("hash", "token");
                    return Err(KernelError::Shape { op, what, expected: 0, got: 1 });
                }
                let block = &mut self.memory[segment.blocks[position / BLOCK] as usize];
                block[position % BLOCK] = Some(Slot { token, model, fused: merged.is_some() });
                if outputs.next_if_eq(&&row).is_some() {
                    let mut crossed = false;
                    let read = |p: usize| {
                        let slot = self.memory[segment.blocks[p / BLOCK] as usize][p % BLOCK];
                        let slot = slot.expect("keys and values that were never computed");
                        let of_prompt =
                            Some(slot.fused) == self.controls.prompts_fused && slot.model == sft();
                        assert!(
                            slot.model == model || of_prompt,
                            "keys and values of another model"
                        );
                        crossed |= slot.fused != merged.is_some() && !of_prompt;
                        (slot.model, slot.token)
                    };
                    out.extend(logits_of(model, (0..=position).map(read)));
                    self.controls.crossed.fetch_add(crossed.into(), Ordering::Relaxed);
                }
            }
        }
        Ok(out)
    }

    fn values<'a>(&self, logits: &'a mut Vec<f32>) -> &'a mut [f32] {
        logits
    }

    fn reset(&mut self) -> Result<(), KernelError> {
        self.controls.resets.fetch_add(1, Ordering::Relaxed);
        self.memory.fill([None; BLOCK]);
        Ok(())
    }
}

/// A tokenizer of bytes: token i is byte i, 256 ends the text.
pub fn byte_tokenizer() -> Tokenizer {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocabulary.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    vocabulary.insert("<end>".to_owned(), EOS.into());
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(EOS, "<end>")],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer.json", tokenizer.to_string());
    write("tokenizer_config.json", r#"{"eos_token": "<end>"}"#.to_owned());
    Tokenizer::from_dir(Path::new(dir.path())).unwrap()
}
