//! What the engine asks of a loaded soup: logits of a batch under merged weights or per-row
//! coefficients, and merged weights. The worker is written once over this trait;
//! [`super::loaded::Loaded`] is the one that serves.

use std::sync::Arc;

use super::{cost::Footprint, request::EngineError};
use crate::{
    kernels::{Batch, KernelError},
    merge::Fetch,
    preference::ModelKey,
};

/// Properties of a loaded soup.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Logits per row.
    pub vocabulary: usize,
    pub backbones: usize,
    /// Whether they are active on the answer only.
    pub answer_only: bool,
    /// Longest sequence of the model, in tokens.
    pub context: usize,
    /// Where the model encodes prompts first: the token that every answer begins after.
    pub start: Option<u32>,
    /// Key/value blocks.
    pub blocks: usize,
    /// Tokens per block.
    pub block_tokens: usize,
    /// Digest of the soup.
    pub digest: String,
    /// Merged models that fit the cache at once; 0 when there is no cache.
    pub merged_models: usize,
    /// Whether it computes per-row coefficients.
    pub mixes: bool,
    /// Costs of passes and merges.
    pub footprint: Footprint,
}

/// A loaded soup on a device, with its key/value memory.
pub trait Backend: Send + 'static {
    /// Merged weights; they stay in memory while the lease exists.
    type Lease: Send;
    /// A place in the queue for merged weights.
    type Ticket: Send;
    /// Logits of one forward pass.
    type Logits;

    /// The soup's sizes and abilities.
    fn facts(&self) -> Facts;
    /// Term values of a model for [`crate::kernels::RowCoefficients`].
    fn terms(&self, key: &ModelKey) -> Vec<f32>;
    /// Whether its merged weights are there.
    fn cached(&self, key: &ModelKey) -> bool;
    /// Merged weights, starting a merge in the background if need be; never waits.
    fn fetch(&mut self, key: &ModelKey) -> Fetch<Self::Lease, Self::Ticket>;
    /// The merged weights of a ticket, or why the merge failed, once it has ended.
    fn redeem(&self, ticket: &Self::Ticket) -> Option<Result<Self::Lease, EngineError>>;
    /// Sets what is called (from any thread) when a merge has ended.
    fn set_waker(&mut self, wake: Arc<dyn Fn() + Send + Sync>);
    /// Logits of `batch.outputs`, with merged weights or, without, with the batch's coefficients.
    fn forward(
        &mut self,
        merged: Option<&Self::Lease>,
        batch: &Batch,
    ) -> Result<Self::Logits, KernelError>;
    /// The values of logits, `[outputs, vocabulary]`.
    fn values<'a>(&self, logits: &'a mut Self::Logits) -> &'a mut [f32];
    /// The final hidden states, normed, behind logits, `[outputs, hidden size]`; `None` where the
    /// device does not keep them.
    fn hidden<'a>(&self, _logits: &'a Self::Logits) -> Option<&'a [f32]> {
        None
    }
    /// Makes the key/value memory and scratch state anew after a panic, which may have left them in
    /// any state.
    fn reset(&mut self) -> Result<(), KernelError>;
}
