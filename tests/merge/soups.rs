//! Small random soups in memory, and the models they stand for by the definition (`docs/algorithms.md` §2.1).

use std::collections::BTreeMap;

use ladle::{
    kernels::{Activation, Dtype, HostTensor, Norm, Rope, RowCoefficients},
    merge::plan::{Change, Ingredient, Ingredients, SoupPlan, Tensors},
    model::config::{ModelConfig, Multipliers, Norms, QkNorm, SoftCaps},
    preference::Coefficients,
    soup::LoraModule,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A row of coefficients per token row.
pub fn row_coefficients(plan: &SoupPlan, rows: &[&Coefficients]) -> RowCoefficients {
    let values = rows.iter().flat_map(|row| plan.term_values(row).unwrap()).collect();
    RowCoefficients { terms: plan.terms().len(), values }
}

/// A backbone's kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Adapter,
    /// An adapter that also replaces a norm, a bias and the embedding.
    Saving,
    Full,
}

pub struct OwnedChange {
    pub modules: BTreeMap<String, LoraModule>,
    pub saved: Tensors,
}

pub enum Owned {
    Adapter(OwnedChange),
    Full(Tensors),
}

/// A soup that owns its weights.
pub struct OwnedSoup {
    pub config: ModelConfig,
    pub base: Tensors,
    pub sft: Option<OwnedChange>,
    pub backbones: Vec<Owned>,
}

fn change(owned: &OwnedChange) -> Change<'_> {
    Change { modules: &owned.modules, saved: &owned.saved }
}

impl<'a> From<&'a OwnedSoup> for Ingredients<'a> {
    fn from(soup: &'a OwnedSoup) -> Self {
        let ingredient = |owned: &'a Owned| match owned {
            Owned::Adapter(owned) => Ingredient::Adapter(change(owned)),
            Owned::Full(tensors) => Ingredient::Full(tensors),
        };
        Self {
            base: &soup.base,
            sft: soup.sft.as_ref().map(change),
            backbones: soup.backbones.iter().map(ingredient).collect(),
            answer_only: false,
        }
    }
}

/// A decoder configuration with uneven sizes.
pub fn config(hidden: usize, ff: usize, vocab: usize, tied: bool) -> ModelConfig {
    let head_dim = 6;
    ModelConfig {
        model_type: "qwen2".into(),
        vocab_size: vocab,
        hidden_size: hidden,
        intermediate_size: ff,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim,
        max_positions: 64,
        norm: Norm { eps: 1e-6, shift: 0.0 },
        activation: Activation::Silu,
        gated: true,
        local_rope: None,
        rope: Rope {
            head_dim,
            inv_freq: (0..head_dim / 2).map(|i| 100f32.powf(-(i as f32) / 3.0)).collect(),
            scale: 1.0,
        },
        rotary: vec![true; 2],
        windows: vec![None; 2],
        qkv_bias: true,
        output_bias: false,
        mlp_bias: true,
        fused: false,
        experts: None,
        norms: Norms::Before,
        qk_norm: QkNorm::Heads,
        multipliers: Multipliers::ONE,
        caps: SoftCaps::default(),
        tied,
        eos: vec![0],
        encoder: None,
    }
}

/// Values in [−1, 1) in a storage type.
pub fn random(rng: &mut ChaCha8Rng, shape: &[usize], dtype: Dtype, gain: f32) -> HostTensor {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0f32) * gain).collect();
    stored(&values, shape, dtype)
}

pub fn stored(values: &[f32], shape: &[usize], dtype: Dtype) -> HostTensor {
    HostTensor::rounded(values, dtype, shape.to_vec()).unwrap()
}

pub fn checkpoint(rng: &mut ChaCha8Rng, config: &ModelConfig, dtype: Dtype) -> Tensors {
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let tensor = random(rng, &shape, dtype, 0.5);
        (name, tensor)
    };
    config.tensors().into_iter().map(tensor).collect()
}

/// An adapter on some of the linear layers, each with a rank and a scale of its own.
pub fn adapter(
    rng: &mut ChaCha8Rng,
    config: &ModelConfig,
    dtype: Dtype,
    saving: bool,
) -> OwnedChange {
    let mut modules = BTreeMap::new();
    let mut saved = Tensors::new();
    for (name, shape) in config.tensors() {
        let linear = shape.len() == 2 && name != "model.embed_tokens.weight";
        if linear && rng.random_bool(0.7) {
            let rank = rng.random_range(1..=5);
            let module = name.strip_suffix(".weight").unwrap().to_owned();
            let down = random(rng, &[rank, shape[1]], dtype, 0.5);
            let up = random(rng, &[shape[0], rank], dtype, 0.5);
            modules.insert(module, LoraModule { down, up, scale: rng.random_range(0.25..2.0) });
        } else if saving && !linear && rng.random_bool(0.5) {
            saved.insert(name, random(rng, &shape, dtype, 0.5));
        }
    }
    OwnedChange { modules, saved }
}

pub fn soup(
    seed: u64,
    config: ModelConfig,
    dtype: Dtype,
    sft: Option<Kind>,
    kinds: &[Kind],
) -> OwnedSoup {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let base = checkpoint(rng, &config, dtype);
    let sft = sft.map(|kind| adapter(rng, &config, dtype, kind == Kind::Saving));
    let backbones = kinds
        .iter()
        .map(|kind| match kind {
            Kind::Full => Owned::Full(checkpoint(rng, &config, dtype)),
            _ => Owned::Adapter(adapter(rng, &config, dtype, *kind == Kind::Saving)),
        })
        .collect();
    OwnedSoup { config, base, sft, backbones }
}

/// A tensor's values in f64 and, beside each, the sum of the magnitudes that made it.
pub type Wide = Vec<(f64, f64)>;

fn wide(tensor: &HostTensor) -> Wide {
    tensor.to_f32().into_iter().map(|v| (f64::from(v), f64::from(v).abs())).collect()
}

/// θ + the adapter, for one tensor.
fn changed(mut theta: Wide, name: &str, change: &OwnedChange) -> Wide {
    if let Some(saved) = change.saved.get(name) {
        theta = wide(saved);
    }
    let module = name.strip_suffix(".weight").and_then(|module| change.modules.get(module));
    if let Some(LoraModule { down, up, scale }) = module {
        let (rank, width) = (down.shape()[0], down.shape()[1]);
        let (down, up) = (wide(down), wide(up));
        for (i, value) in theta.iter_mut().enumerate() {
            let (row, column) = (i / width, i % width);
            for r in 0..rank {
                let term = scale * up[row * rank + r].0 * down[r * width + column].0;
                value.0 += term;
                value.1 += term.abs();
            }
        }
    }
    theta
}

impl OwnedSoup {
    /// Σ cᵢθᵢ + c_sft·θ_sft of one tensor, each θ written out first.
    pub fn reference(&self, name: &str, backbones: &[f64], sft: f64) -> Wide {
        let base = wide(&self.base[name]);
        let theta_sft = match &self.sft {
            Some(change) => changed(base, name, change),
            None => base,
        };
        let thetas = self.backbones.iter().map(|backbone| match backbone {
            Owned::Full(tensors) => wide(&tensors[name]),
            Owned::Adapter(change) => changed(theta_sft.clone(), name, change),
        });
        let mut sum: Wide = theta_sft.iter().map(|v| (v.0 * sft, v.1 * sft.abs())).collect();
        for (theta, c) in thetas.zip(backbones) {
            for (sum, value) in sum.iter_mut().zip(theta) {
                sum.0 += value.0 * c;
                sum.1 += value.1 * c.abs();
            }
        }
        sum
    }
}
