//! Whole merged models, ready to decode with, in a cache (the fused execution mode).

use std::{collections::HashMap, sync::Arc};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{
    MergeError,
    cache::{Build, Cache, CacheEvent},
    dense::{Merger, view},
    plan::SoupPlan,
    slab::SlabPool,
};
use crate::{
    kernels::{Dtype, HostTensor},
    model::{config::ModelConfig, decoder::Decoder, linear::Parameter},
    preference::ModelKey,
    turns::Pace,
};

/// Settings of a cache of merged models.
#[derive(Debug, Clone)]
pub struct FusedOptions {
    /// Most bytes of merged weights, in use or kept.
    pub budget: usize,
    /// Storage type of the merged weights; `None` is the base's.
    pub dtype: Option<Dtype>,
    /// Threads that merge.
    pub threads: usize,
    /// How that goes on beside the steps of an engine; `None`: at once.
    pub pace: Option<Pace>,
}

/// The model of one c, its weights on any device.
pub struct MergedModel<W> {
    decoder: Decoder<W>,
    tensors: HashMap<String, W>,
}

/// The model of one c in host memory.
pub type FusedModel = MergedModel<HostTensor>;

impl<W: Clone> MergedModel<W> {
    /// A model of `config` over merged tensors by their Hugging Face names.
    pub fn new(config: ModelConfig, tensors: HashMap<String, W>) -> Result<Self, MergeError> {
        let decoder = Decoder::load(config, |name| {
            let tensor = tensors.get(name).cloned();
            let tensor = tensor.ok_or_else(|| MergeError::Missing { tensor: name.to_owned() })?;
            Ok::<_, MergeError>(Parameter::merged(tensor))
        })?;
        Ok(Self { decoder, tensors })
    }

    /// The decoder over the merged weights.
    pub fn decoder(&self) -> &Decoder<W> {
        &self.decoder
    }

    /// A merged tensor by its Hugging Face name. Views keep the model's memory: give them back
    /// with the lease.
    pub fn tensor(&self, name: &str) -> Option<&W> {
        self.tensors.get(name)
    }
}

/// Merges the models of one soup into recycled slabs.
pub struct FusedBuilder {
    merger: Merger,
    config: ModelConfig,
    slabs: SlabPool,
    threads: ThreadPool,
    pace: Option<Pace>,
}

/// The merged models of one soup.
pub type FusedCache = Cache<FusedBuilder>;

impl FusedCache {
    /// An empty cache. `on_event` is called from whichever thread an event happens on and must not
    /// block.
    pub fn open(
        plan: SoupPlan,
        config: ModelConfig,
        options: &FusedOptions,
        on_event: impl Fn(CacheEvent) + Send + Sync + 'static,
    ) -> Result<Self, MergeError> {
        let merger = Merger::new(plan, options.dtype)?;
        let model = merger.layout().bytes();
        let limit = options.budget / model.max(1);
        let threads = ThreadPoolBuilder::new()
            .num_threads(options.threads.max(1))
            .thread_name(|i| format!("merge-{i}"))
            .build()
            .map_err(|error| MergeError::Threads(error.to_string()))?;
        let slabs = SlabPool::new(model, limit);
        let pace = options.pace.clone();
        Self::new(FusedBuilder { merger, config, slabs, threads, pace }, options.budget, on_event)
    }
}

impl Build for FusedBuilder {
    type Key = ModelKey;
    type Value = FusedModel;

    fn bytes(&self) -> usize {
        self.merger.layout().bytes()
    }

    fn build(&self, key: &ModelKey) -> Result<FusedModel, MergeError> {
        let mut slab = self.slabs.take()?;
        let (coefficients, pace) = (key.coefficients(), self.pace.as_ref());
        self.threads.install(|| self.merger.merge(&coefficients, &mut slab, pace))?;
        let slab = Arc::new(slab);
        let mut tensors = HashMap::new();
        let plans = self.merger.plan().tensors().iter();
        for (tensor, place) in plans.zip(self.merger.layout().places()) {
            let range = place.offset..place.offset + place.len;
            let merged = view(slab.clone(), range, place.dtype, tensor)?;
            tensors.insert(tensor.name.clone(), merged);
        }
        MergedModel::new(self.config.clone(), tensors)
    }
}
