//! The policy in training: a frozen network with low-rank factors that learn (LoRA,
//! `y = W x + s B A x`, s = alpha/r), over the same decoder that serves.
//!
//! The reference of the KL penalty is the same network with the adapters off; both share every
//! frozen tensor, so there is no second copy.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use ladle::{
    kernels::{
        Batch, ColumnScale, HostTensor, KernelError, Kernels, differentiable::Differentiable,
    },
    model::{
        config::ModelConfig,
        decoder::Decoder,
        linear::{Dense, LowRank, Parameter},
    },
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Shape of the adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank r of every factor pair (64: [BS] Table 8).
    pub rank: usize,
    /// LoRA's alpha; the product is scaled by alpha / r (128: [BS] Table 8).
    pub alpha: f64,
    /// Last names of the adapted linear layers (all of them: QLoRA, Dettmers et al. 2023, §4).
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self { rank: 64, alpha: 128.0, targets: targets.map(str::to_owned).to_vec() }
    }
}

/// Why a policy could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The checkpoint lacks a tensor of its configuration.
    #[error("the base model has no tensor {0}")]
    Missing(String),
    /// A configured target names no linear layer.
    #[error("lora.targets: {0:?} is no linear layer of the model; it has {known}", known = KNOWN.join(", "))]
    Target(String),
    /// The rank is out of range.
    #[error("lora.rank is {0}, expected 1 to 1024")]
    Rank(usize),
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

/// Linear layers that can be adapted.
pub const KNOWN: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

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

/// A low-rank term on the host: `scale · up · down`, up `[out, r]`, down `[r, in]`.
#[derive(Debug, Clone)]
pub struct HostFactor {
    /// A, `[r, in]`.
    pub down: HostTensor,
    /// B, `[out, r]`.
    pub up: HostTensor,
    /// alpha / r.
    pub scale: f64,
}

/// A network whose low-rank factors learn.
pub struct Policy {
    kernels: Differentiable,
    adapted: Decoder<Tensor>,
    reference: Decoder<Tensor>,
    head: Tensor,
    factors: Vec<Factor>,
    config: LoraConfig,
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
        if let Some(target) = config.targets.iter().find(|t| !KNOWN.contains(&t.as_str())) {
            return Err(PolicyError::Target(target.clone()));
        }
        let kernels = Differentiable::new(device.clone());
        let mut frozen = BTreeMap::new();
        for (name, _) in model.tensors() {
            let host = weights.get(&name).ok_or_else(|| PolicyError::Missing(name.clone()))?;
            frozen.insert(name, kernels.weight(host)?);
        }
        let mut factors = Vec::new();
        for (index, (name, shape)) in model.tensors().into_iter().enumerate() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let last = module.rsplit('.').next().unwrap_or(module);
            let [outer, inner] = shape[..] else { continue };
            if !config.targets.iter().any(|target| target == last) {
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
            let scales = vec![ColumnScale { columns, term: None, factor: scale as f32 }];
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
        let (adapted, reference) = (load(true)?, load(false)?);
        let head = if model.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let head =
            frozen.get(head).cloned().ok_or_else(|| PolicyError::Missing(head.to_owned()))?;
        Ok(Self { kernels, adapted, reference, head, factors, config: config.clone() })
    }

    /// The kernels of the policy's device.
    pub fn kernels(&self) -> &Differentiable {
        &self.kernels
    }

    /// The output head, `[vocab, hidden]`.
    pub fn head(&self) -> &Tensor {
        &self.head
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

    /// Everything that learns, with its name in PEFT's form.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let named = self.factors.iter().flat_map(|factor| {
            let name = |letter| format!("base_model.model.{}.lora_{letter}.weight", factor.module);
            [(name('A'), factor.down.clone()), (name('B'), factor.up.clone())]
        });
        named.collect()
    }

    /// Final hidden states `[outputs, hidden]` of the policy, tracked.
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.adapted.hidden(&self.kernels, batch, &mut ())?)
    }

    /// Final hidden states `[outputs, hidden]` with the adapters off; nothing is tracked.
    pub fn reference_hidden(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.reference.hidden(&self.kernels, batch, &mut ())?)
    }

    /// The current factors on the host, by module, copied.
    pub fn host_factors(&self) -> Result<BTreeMap<String, HostFactor>> {
        let host = |var: &Var| -> Result<HostTensor> {
            let values = var.as_tensor().flatten_all()?.to_vec1::<f32>()?;
            let tensor = HostTensor::from_f32(&values, var.dims().to_vec());
            tensor.map_err(|error| candle_core::Error::wrap(error).into())
        };
        let scale = self.config.alpha / self.config.rank as f64;
        let factors = self.factors.iter().map(|factor| {
            let (down, up) = (host(&factor.down)?, host(&factor.up)?);
            Ok((factor.module.clone(), HostFactor { down, up, scale }))
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
