//! The policy in training: a frozen network with low-rank factors that learn (LoRA,
//! `y = W x + s B A d(x)`, s = alpha/r, d dropout), over the same decoder that serves.
//!
//! The reference of the KL penalty is the same network with the adapters off; both share every
//! frozen tensor.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use candle_core::{Device, Tensor, TensorId, Var, backprop::GradStore};
use ladle::{
    kernels::{Batch, ColumnScale, HostTensor, KernelError, Kernels, Segment},
    model::{
        config::ModelConfig,
        decoder::Decoder,
        linear::{Dense, LowRank, Parameter},
        names::{is_table, last_of},
    },
    soup::LoraModule,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    head::BLOCK,
    log_probs::{LogProbs, log_probs},
    lora::LoraConfig,
    packing::{Packed, Sequence, pack, pack_after, pack_encoded},
    prompt_cache::PromptCache,
};
use crate::{
    autograd::Differentiable,
    precision::Precision,
    tape::{Dropout, KeysAndValues, Narrow, Stored, Tape, Value},
    weights::Lora,
};

/// Errors of a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The checkpoint lacks a tensor of its configuration.
    #[error("the base model has no tensor {0}")]
    Missing(String),
    /// A configured target names no linear layer.
    #[error("lora.targets: {got:?} is no linear layer of the model; it has {known}")]
    Target {
        got: String,
        /// What may be named.
        known: String,
    },
    /// The rank is out of range.
    #[error("lora.rank is {0}, expected 1 to 1024")]
    Rank(usize),
    /// The dropout is not in 0..1.
    #[error("lora.dropout is {0}, expected 0 or more and less than 1")]
    Dropout(f64),
    /// Dropout is asked for where it is not implemented.
    #[error("lora.dropout is {0}, expected 0 on {1:?}: dropout runs on the CPU only")]
    DropoutDevice(f64, Device),
    /// bf16 is asked for where it is not implemented.
    #[error("precision is bf16, expected f32 on {0:?}: bf16 is computed on the CPU only")]
    PrecisionDevice(Device),
    /// An encoder–decoder model is to be trained where that is not implemented.
    #[error(
        "{0} is an encoder–decoder model, expected a decoder on {1:?}: the former train on the CPU only"
    )]
    EncoderDevice(String, Device),
    /// The model is a mixture of experts.
    #[error("{0} is a mixture of experts, expected a dense model: experts are not trained")]
    Experts(String),
    /// A factor to be restored does not fit.
    #[error("{name}: shape {got:?}, expected {expected:?}")]
    Shape {
        /// The factor.
        name: String,
        /// Shape in the policy.
        expected: Vec<usize>,
        /// Shape that was given.
        got: Vec<usize>,
    },
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, PolicyError>;

/// Refuses a model that no policy can be made of.
pub fn check_trainable(model: &ModelConfig) -> Result<()> {
    match model.experts {
        None => Ok(()),
        Some(_) => Err(PolicyError::Experts(model.model_type.clone())),
    }
}

/// The two factors of one adapted layer, in f32.
#[derive(Debug, Clone)]
pub struct Factor {
    /// Module path, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// A, `[rank, in]`.
    pub down: Var,
    /// B, `[out, rank]`.
    pub up: Var,
}

/// A network whose low-rank factors learn. On the CPU it runs on a [`Tape`], elsewhere on candle's
/// autograd.
pub struct Policy {
    kernels: Differentiable,
    adapted: Arc<Decoder<Tensor>>,
    reference: Decoder<Tensor>,
    /// Every tensor of the model's configuration, the output head's among them.
    frozen: BTreeMap<String, Tensor>,
    narrow: Option<Arc<Narrow>>,
    factors: Vec<Factor>,
    config: LoraConfig,
    recompute: bool,
    cache: Arc<PromptCache>,
}

/// A forward of the policy that can be differentiated.
pub struct Forward {
    /// Final hidden states `[outputs, hidden]`, tracked.
    pub hidden: Tensor,
    /// The tape and its value; `None` where candle tracks the graph.
    taped: Option<(Tape, Value)>,
}

impl Forward {
    /// Continues the backward of a loss of [`Self::hidden`]: adds the gradients of the policy's
    /// variables to `grads`. Adds none if the loss does not depend on the hidden states.
    pub fn backward(self, policy: &Policy, grads: &mut GradStore) -> Result<()> {
        let (Some((tape, value)), Some(grad)) = (self.taped, grads.remove(&self.hidden)) else {
            return Ok(());
        };
        let mut gradients = tape.backward(&value, grad.flatten_all()?.to_vec1()?)?;
        for (_, var) in policy.variables() {
            if let Some(grad) = gradients.weight(&var) {
                grads.insert(&var, Tensor::from_vec(grad, var.dims(), var.device())?);
            }
        }
        Ok(())
    }
}

impl Policy {
    /// A policy that starts as the base: A is uniform in ±1/√in (as PEFT draws it), B is zero.
    /// `weights` gives the frozen tensors by Hugging Face name.
    pub fn new(
        model: &ModelConfig,
        weights: &BTreeMap<String, HostTensor>,
        config: &LoraConfig,
        device: &Device,
        seed: u64,
    ) -> Result<Self> {
        if !(1..=1024).contains(&config.rank) {
            return Err(PolicyError::Rank(config.rank));
        }
        let (targets, known) = (config.targets(model), model.targets());
        if let Some(target) = targets.iter().find(|target| !known.contains(target)) {
            return Err(PolicyError::Target { got: target.to_string(), known: known.join(", ") });
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(PolicyError::Dropout(config.dropout));
        }
        if config.dropout > 0.0 && !device.is_cpu() {
            return Err(PolicyError::DropoutDevice(config.dropout, device.clone()));
        }
        if model.encoder.is_some() && !device.is_cpu() {
            return Err(PolicyError::EncoderDevice(model.model_type.clone(), device.clone()));
        }
        check_trainable(model)?;
        let kernels = Differentiable::new(device.clone());
        let mut frozen = BTreeMap::new();
        for (name, _) in model.tensors() {
            let host = weights.get(&name).ok_or_else(|| PolicyError::Missing(name.clone()))?;
            frozen.insert(name, kernels.weight(host)?);
        }
        let mut factors = Vec::new();
        for (index, (name, shape)) in model.tensors().into_iter().enumerate() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let [outer, inner] = shape[..] else { continue };
            if !targets.contains(&last_of(&name)) {
                continue;
            }
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(index as u64);
            let bound = 1.0 / (inner as f32).sqrt();
            let down: Vec<f32> =
                (0..config.rank * inner).map(|_| rng.random_range(-bound..bound)).collect();
            let down = Var::from_vec(down, (config.rank, inner), device)?;
            let up = Var::zeros((outer, config.rank), candle_core::DType::F32, device)?;
            factors.push(Factor { module: module.to_owned(), down, up });
        }
        let scale = config.alpha / config.rank as f64;
        let low_rank = |name: &str| {
            let module = name.strip_suffix(".weight")?;
            let factor = factors.iter().find(|factor| factor.module == module)?;
            let columns = 0..config.rank;
            let scales = vec![ColumnScale { columns, term: config.term(), factor: scale as f32 }];
            let (down, up) = (factor.down.as_tensor().clone(), factor.up.as_tensor().clone());
            Some(LowRank { down, up, scales })
        };
        let load = |with_adapters: bool| -> Result<Decoder<Tensor>> {
            Decoder::load(model.clone(), |name| {
                let weight = frozen.get(name).cloned();
                let weight = weight.ok_or_else(|| PolicyError::Missing(name.to_owned()))?;
                let low_rank = if with_adapters { low_rank(name) } else { None };
                Ok(Parameter { first: Dense { weight, term: None }, rest: Vec::new(), low_rank })
            })
        };
        let (adapted, reference) = (Arc::new(load(true)?), load(false)?);
        let config = config.clone();
        let (narrow, recompute, cache) = (None, false, Arc::new(PromptCache::new(0)));
        Ok(Self { kernels, adapted, reference, frozen, narrow, factors, config, recompute, cache })
    }

    /// Sets what products with frozen weights are computed in; on other devices than the CPU f32 alone.
    pub fn in_precision(self, precision: Precision) -> Result<Self> {
        let narrow = match precision {
            Precision::F32 => None,
            Precision::Bf16 if !self.kernels.device().is_cpu() => {
                return Err(PolicyError::PrecisionDevice(self.kernels.device().clone()));
            }
            Precision::Bf16 => {
                let kernels = precision.kernels();
                let layers = self.frozen.iter().filter(|(name, _)| !is_table(name));
                let layers = layers.map(|(_, weight)| weight);
                let narrow = Narrow::new(kernels, layers, self.head(), BLOCK);
                Some(Arc::new(narrow?))
            }
        };
        Ok(Self { narrow, ..self })
    }

    /// Sets whether a forward on the CPU saves only the input of each layer and the backward computes
    /// the layer again: less memory for a third more work.
    pub fn recomputing(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// Sets where the keys and values of prompts are kept, which all policies with these frozen
    /// tensors can share; none are kept otherwise.
    pub fn keeping(self, cache: Arc<PromptCache>) -> Self {
        Self { cache, ..self }
    }

    /// The output head, `[vocab, hidden]`.
    pub fn head(&self) -> &Tensor {
        &self.frozen[self.model().head()]
    }

    /// The model's configuration.
    pub fn model(&self) -> &ModelConfig {
        self.adapted.config()
    }

    /// Shape of the adapters.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The factors, in the order of the model's tensors.
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// The trainable variables by PEFT's names.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let named = self.factors.iter().flat_map(|factor| {
            let name = |letter| format!("base_model.model.{}.lora_{letter}.weight", factor.module);
            [(name('A'), factor.down.clone()), (name('B'), factor.up.clone())]
        });
        named.collect()
    }

    /// Packs sequences. On the CPU the rows of prompts that the adapters do not act on are left out:
    /// their keys and values are kept or computed now.
    pub fn pack(&self, sequences: &[Sequence]) -> Result<Packed> {
        if let Some(encoder) = &self.model().encoder {
            return Ok(pack_encoded(sequences, encoder.start));
        }
        if !self.kernels.device().is_cpu() {
            return Ok(pack(sequences));
        }
        pack_after(sequences, |tokens| {
            Ok(Some(self.cache.get(tokens, || self.keys_and_values(tokens))?))
        })
    }

    /// Keys and values of the rows of `tokens` with the adapters off. The tokens are computed by
    /// themselves, so that they always have the same bits.
    fn keys_and_values(&self, tokens: &[u32]) -> Result<KeysAndValues> {
        let rows = 0..tokens.len();
        let positions = (0..).take(tokens.len()).collect();
        let segments = vec![Segment { rows, cached: 0, blocks: Vec::new() }];
        let batch = Batch { tokens: tokens.to_vec(), positions, segments, ..Batch::default() };
        let mut stored = Stored { kept: Some(KeysAndValues::default()), ..Stored::default() };
        self.reference.outputs(&self.idle(), &batch, &mut stored)?;
        Ok(stored.kept.unwrap_or_default())
    }

    /// A forward to be differentiated. `noise` seeds dropout.
    pub fn forward(&self, packed: &Packed, noise: u64) -> Result<Forward> {
        let Packed { batch, stored, .. } = packed;
        if !self.kernels.device().is_cpu() {
            let hidden = self.adapted.outputs(&self.kernels, batch, &mut ())?;
            return Ok(Forward { hidden, taped: None });
        }
        let dropout = (self.config.dropout > 0.0)
            .then(|| Dropout::new(self.config.dropout, noise, self.projections()));
        let tape = Tape::recording(dropout).narrowed(self.narrow.clone());
        let value = if self.recompute {
            self.recomputed(&tape, batch, stored)?
        } else {
            self.adapted.outputs(&tape, batch, &mut stored.clone())?
        };
        let hidden = Var::from_tensor(&tensor(&value)?)?.into_inner();
        Ok(Forward { hidden, taped: Some((tape, value)) })
    }

    /// [`Decoder::outputs`] of which only the inputs of layers are kept.
    fn recomputed(&self, tape: &Tape, batch: &Batch, stored: &Stored) -> Result<Value> {
        let (batch, layers) = (Arc::new(batch.clone()), self.model().layers);
        let mut x = self.adapted.embed(tape, &batch)?;
        for index in 0..layers {
            let (decoder, batch, stored) = (self.adapted.clone(), batch.clone(), stored.clone());
            let layer = move |tape: &Tape, x| {
                let mut stored = stored.clone();
                if index + 1 < layers {
                    decoder.layer(tape, index, x, &batch, &mut stored)
                } else {
                    decoder.last_layer(tape, x, &batch, &mut stored)
                }
            };
            x = tape.recomputed(x, layer)?;
        }
        Ok(x)
    }

    /// Final hidden states `[outputs, hidden]`, without dropout and untracked.
    pub fn hidden(&self, packed: &Packed) -> Result<Tensor> {
        self.run(&self.adapted, packed)
    }

    /// Final hidden states `[outputs, hidden]` with the adapters off, untracked.
    pub fn reference_hidden(&self, packed: &Packed) -> Result<Tensor> {
        self.run(&self.reference, packed)
    }

    fn run(&self, decoder: &Decoder<Tensor>, packed: &Packed) -> Result<Tensor> {
        let Packed { batch, stored, .. } = packed;
        if self.kernels.device().is_cpu() {
            return Ok(tensor(&decoder.outputs(&self.idle(), batch, &mut stored.clone())?)?);
        }
        Ok(decoder.outputs(&self.kernels, batch, &mut ())?.detach())
    }

    /// Log-probabilities of `targets`, one per row of hidden states `[rows, hidden]`, under this
    /// policy's head.
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        temperature: f64,
    ) -> Result<LogProbs> {
        let cap = self.model().caps.logits.map(|cap| f64::from(cap) / temperature);
        let temperature = temperature / f64::from(self.model().multipliers.logits);
        let narrow = self.narrow.as_deref();
        Ok(log_probs(hidden, self.head(), targets, (temperature, cap), narrow)?)
    }

    /// Kernels without gradients and dropout.
    fn idle(&self) -> Tape {
        Tape::idle(None).narrowed(self.narrow.clone())
    }

    /// The down projections, numbered.
    fn projections(&self) -> Arc<HashMap<TensorId, u64>> {
        Arc::new(self.factors.iter().map(|factor| factor.down.id()).zip(0..).collect())
    }

    /// A copy of the current factors on the host, in f32.
    pub fn lora(&self) -> Result<Lora> {
        let host = |var: &Var| -> Result<HostTensor> {
            let values = var.as_tensor().flatten_all()?.to_vec1::<f32>()?;
            let tensor = HostTensor::from_f32(&values, var.dims().to_vec());
            tensor.map_err(|error| candle_core::Error::wrap(error).into())
        };
        let scale = self.config.alpha / self.config.rank as f64;
        let factors = self.factors.iter().map(|factor| {
            let (down, up) = (host(&factor.down)?, host(&factor.up)?);
            Ok((factor.module.clone(), LoraModule { down, up, scale }))
        });
        factors.collect()
    }

    /// Replaces the values of the variables by those of `tensors`, by name.
    pub fn restore(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, var) in self.variables() {
            let tensor = tensors.get(&name).ok_or_else(|| PolicyError::Missing(name.clone()))?;
            if tensor.dims() != var.dims() {
                let (expected, got) = (var.dims().to_vec(), tensor.dims().to_vec());
                return Err(PolicyError::Shape { name, expected, got });
            }
            var.set(tensor)?;
        }
        Ok(())
    }
}

/// The values of an activation as a tensor on the CPU.
fn tensor(value: &Value) -> candle_core::Result<Tensor> {
    Tensor::from_slice(value.data(), value.dims(), &Device::Cpu)
}
