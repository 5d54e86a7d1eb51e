//! A loaded soup as a [`Backend`]. The plan, the cache of merged models, the decoder of mixed passes
//! and the size of the key/value memory are the same on every device; a device adds the forward pass
//! of a decoder ([`Passes`]).

use std::sync::Arc;

use super::{
    backend::{Backend, Facts},
    error::OpenError,
    footprint::footprint,
    merged::Merged,
    request::EngineError,
};
use crate::{
    kernels::{Batch, KV_BLOCK, KernelError, KvDtype, KvShape},
    merge::{Build, Fetch, Lease, MergedModel, SoupPlan, Ticket},
    model::{config::ModelConfig, decoder::Decoder},
    preference::ModelKey,
};

/// Forward passes on one device, with its key/value memory.
pub trait Passes: Send + 'static {
    /// A weight on the device.
    type Weight: Clone + Send + Sync + 'static;
    /// Builder of its merged models.
    type Builder: Build<Key = ModelKey, Value = MergedModel<Self::Weight>>;
    /// Logits of one pass.
    type Logits;

    /// Key/value blocks.
    fn blocks(&self) -> usize;
    /// One pass: logits of `batch.outputs`.
    fn forward(
        &mut self,
        decoder: &Decoder<Self::Weight>,
        batch: &Batch,
    ) -> Result<Self::Logits, KernelError>;
    /// The values of logits, `[outputs, vocabulary]`.
    fn values<'a>(&self, logits: &'a mut Self::Logits) -> &'a mut [f32];
    /// The final hidden states behind logits: [`Backend::hidden`].
    fn hidden<'a>(&self, _logits: &'a Self::Logits) -> Option<&'a [f32]> {
        None
    }
    /// Starts anew after a panic.
    fn reset(&mut self) -> Result<(), KernelError>;
}

/// A soup on the device of `P`.
pub struct Loaded<P: Passes> {
    // Models before the device that they live on.
    merged: Merged<P::Builder>,
    /// All terms, for passes with per-row coefficients; absent where every request runs fused.
    mixed: Option<Decoder<P::Weight>>,
    pub(super) passes: P,
    soup: Identity,
}

/// The parts of a soup that are the same on every device.
pub(super) struct Identity {
    pub config: ModelConfig,
    pub plan: SoupPlan,
    /// Keeps prefixes of different soups apart.
    pub digest: String,
}

impl<P: Passes> Loaded<P> {
    pub(super) fn new(
        soup: Identity,
        merged: Merged<P::Builder>,
        mixed: Option<Decoder<P::Weight>>,
        passes: P,
    ) -> Self {
        Self { merged, mixed, passes, soup }
    }
}

impl<P: Passes> Backend for Loaded<P> {
    type Lease = Lease<MergedModel<P::Weight>>;
    type Ticket = Ticket<MergedModel<P::Weight>>;
    type Logits = P::Logits;

    fn facts(&self) -> Facts {
        let Identity { config, plan, digest } = &self.soup;
        Facts {
            vocabulary: config.vocab_size,
            backbones: plan.backbones(),
            answer_only: plan.answer_only(),
            context: config.max_positions,
            start: config.encoder.map(|encoder| encoder.start),
            blocks: self.passes.blocks(),
            block_tokens: KV_BLOCK,
            digest: digest.clone(),
            merged_models: self.merged.capacity(),
            mixes: self.mixed.is_some(),
            footprint: footprint(plan, config),
        }
    }

    fn terms(&self, key: &ModelKey) -> Vec<f32> {
        // The engine's bounds have checked the coefficients. If that failed, the kernels refuse a
        // batch without terms.
        self.soup.plan.term_values(&key.coefficients()).unwrap_or_default()
    }

    fn cached(&self, key: &ModelKey) -> bool {
        self.merged.cached(key)
    }

    fn fetch(&mut self, key: &ModelKey) -> Fetch<Self::Lease, Self::Ticket> {
        self.merged.fetch(key)
    }

    fn redeem(&self, ticket: &Self::Ticket) -> Option<Result<Self::Lease, EngineError>> {
        self.merged.redeem(ticket)
    }

    fn set_waker(&mut self, wake: Arc<dyn Fn() + Send + Sync>) {
        self.merged.set_waker(wake);
    }

    /// After running out of memory, gives up the merged models that nobody holds and makes the pass
    /// again, which writes the same keys and values.
    fn forward(
        &mut self,
        merged: Option<&Self::Lease>,
        batch: &Batch,
    ) -> Result<P::Logits, KernelError> {
        let decoder = match merged {
            Some(model) => model.decoder(),
            None => self.mixed.as_ref().ok_or(KernelError::Shape {
                op: "forward",
                what: "number of merged models",
                expected: 1,
                got: 0,
            })?,
        };
        match self.passes.forward(decoder, batch) {
            Err(error) if error.is_out_of_memory() && self.merged.clear() > 0 => {
                self.passes.forward(decoder, batch)
            }
            outcome => outcome,
        }
    }

    fn values<'a>(&self, logits: &'a mut P::Logits) -> &'a mut [f32] {
        self.passes.values(logits)
    }

    fn hidden<'a>(&self, logits: &'a P::Logits) -> Option<&'a [f32]> {
        self.passes.hidden(logits)
    }

    fn reset(&mut self) -> Result<(), KernelError> {
        self.passes.reset()
    }
}

/// Key/value memory for a model within `budget` bytes: at least one block.
pub(super) fn kv_shape(
    config: &ModelConfig,
    dtype: KvDtype,
    budget: usize,
) -> Result<KvShape, OpenError> {
    let mut shape = KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        blocks: 0,
        dtype,
    };
    let block = shape.block_bytes();
    shape.blocks = block.and_then(|bytes| budget.checked_div(bytes)).unwrap_or(0);
    if shape.blocks == 0 {
        return Err(OpenError::KvBudget { budget, block });
    }
    Ok(shape)
}
