//! Soups of random weights, as large as a 7B model or small enough to check.

use std::{collections::BTreeMap, sync::Arc};

use half::{bf16, f16};
use ladle::{
    kernels::{Activation, Bytes, Dtype, HostTensor, Norm, Rope},
    merge::{
        SoupPlan,
        plan::{Change, Ingredient, Ingredients, Tensors},
    },
    model::config::{ModelConfig, Multipliers, Norms, QkNorm, SoftCaps},
    soup::LoraModule,
};

/// Kind of the backbones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// LoRA adapters of this rank on every linear layer.
    Lora { rank: usize },
    /// Whole checkpoints.
    Full,
}

/// Llama-2-7B's shape.
pub fn seven_b(layers: usize) -> ModelConfig {
    config(4096, 11008, (32, 32, 128), 32000, layers)
}

pub fn config(
    hidden: usize,
    ff: usize,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    vocab: usize,
    layers: usize,
) -> ModelConfig {
    let frequency = |j: usize| 1e4f32.powf(-2.0 * j as f32 / head_dim as f32);
    ModelConfig {
        model_type: "llama".into(),
        vocab_size: vocab,
        hidden_size: hidden,
        intermediate_size: ff,
        layers,
        heads,
        kv_heads,
        head_dim,
        max_positions: 4096,
        norm: Norm { eps: 1e-5, shift: 0.0 },
        activation: Activation::Silu,
        gated: true,
        local_rope: None,
        rope: Rope { head_dim, inv_freq: (0..head_dim / 2).map(frequency).collect(), scale: 1.0 },
        rotary: vec![true; layers],
        windows: vec![None; layers],
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        fused: false,
        experts: None,
        norms: Norms::Before,
        qk_norm: QkNorm::None,
        multipliers: Multipliers::ONE,
        caps: SoftCaps::default(),
        tied: false,
        eos: Vec::new(),
        encoder: None,
    }
}

/// Random values, of which each tensor is a window, so that a soup of many gigabytes needs little
/// host memory; on the device each tensor is a separate copy.
pub struct Pool {
    dtype: Dtype,
    random: Bytes,
    bytes: usize,
    taken: usize,
}

impl Pool {
    /// `values` values of about ±`size`.
    pub fn new(dtype: Dtype, values: usize, size: f32) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut bytes = Vec::with_capacity(values * dtype.size());
        for _ in 0..values {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let value = ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size;
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                Dtype::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
                Dtype::Quantised(_) => unreachable!("a GPU serves no quantised weights"),
            }
        }
        let len = bytes.len();
        Self { dtype, random: Arc::new(bytes), bytes: len, taken: 0 }
    }

    fn tensor(&mut self, shape: &[usize]) -> HostTensor {
        let len = shape.iter().product::<usize>() * self.dtype.size();
        assert!(len < self.bytes, "a pool of {} bytes for a tensor of {len}", self.bytes);
        self.taken += 1;
        // Windows start at different multiples of 64, spread over the pool.
        let start = self.taken * 7919 * 64 % (self.bytes - len) / 64 * 64;
        let range = start..start + len;
        HostTensor::new(self.random.clone(), range, self.dtype, shape.to_vec()).unwrap()
    }

    fn checkpoint(&mut self, config: &ModelConfig) -> Tensors {
        config.tensors().into_iter().map(|(name, shape)| (name, self.tensor(&shape))).collect()
    }

    /// A plan of `n` backbones.
    pub fn plan(&mut self, config: &ModelConfig, kind: Kind, n: usize) -> SoupPlan {
        let base = self.checkpoint(config);
        let nothing = Tensors::new();
        let mut full = Vec::new();
        let mut adapters = Vec::new();
        for _ in 0..n {
            match kind {
                Kind::Full => full.push(self.checkpoint(config)),
                Kind::Lora { rank } => {
                    let linear = |(name, shape): (String, Vec<usize>)| {
                        let module = name.strip_suffix(".weight")?;
                        let up = self.tensor(&[shape[0], rank]);
                        let down = self.tensor(&[rank, *shape.get(1)?]);
                        name.contains("_proj")
                            .then(|| (module.to_owned(), LoraModule { down, up, scale: 2.0 }))
                    };
                    let modules: BTreeMap<_, _> =
                        config.tensors().into_iter().filter_map(linear).collect();
                    adapters.push(modules);
                }
            }
        }
        let backbones = full.iter().map(Ingredient::Full).chain(
            adapters.iter().map(|modules| Ingredient::Adapter(Change { modules, saved: &nothing })),
        );
        let backbones = backbones.collect();
        let soup = Ingredients { base: &base, sft: None, backbones, answer_only: false };
        SoupPlan::new(soup, config).unwrap()
    }
}
