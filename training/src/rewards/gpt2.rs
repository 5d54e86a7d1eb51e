//! GPT-2 for reward models: learned positions, pre-norm layers, causal attention, weights stored
//! `[in, out]` (transformers' `Conv1D`).

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm};
use serde::Deserialize;
use serde_json::Value;

use super::{
    encoder::{Activation, Layer},
    layers::{Batch, Layers, bias, parse},
};

#[derive(Debug, Clone, Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    #[serde(default = "Config::activation")]
    activation_function: Activation,
    #[serde(default = "Config::epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "Config::scaled")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
}

/// transformers' defaults.
impl Config {
    fn activation() -> Activation {
        Activation::GeluNew
    }

    fn epsilon() -> f64 {
        1e-5
    }

    fn scaled() -> bool {
        true
    }
}

/// The decoder without a head.
pub(super) struct Gpt2 {
    words: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    heads: usize,
    activation: Activation,
}

impl Gpt2 {
    /// The decoder of a checkpoint, its width and its longest input in tokens.
    pub fn load(config: &Value, weights: &VarBuilder) -> Result<(Self, usize, usize)> {
        let config: Config = parse(config)?;
        let Config { n_embd: hidden, n_head: heads, layer_norm_epsilon: epsilon, .. } = config;
        if heads == 0 || hidden % heads != 0 {
            candle_core::bail!("n_embd is {hidden}, expected a multiple of n_head = {heads}");
        }
        if !config.scale_attn_weights || config.scale_attn_by_inverse_layer_idx {
            candle_core::bail!(
                "only attention scaled by the head's width is supported: scale_attn_weights true, \
                 scale_attn_by_inverse_layer_idx false"
            );
        }
        let wide = config.n_inner.unwrap_or(4 * hidden);
        let prefixed = weights.contains_tensor("transformer.wte.weight");
        let weights = if prefixed { weights.pp("transformer") } else { weights.clone() };
        let layers = (0..config.n_layer).map(|index| {
            let w = weights.pp("h").pp(index);
            let [query, key, value] = columns(hidden, &w.pp("attn.c_attn"))?;
            Ok(Layer {
                query,
                key,
                value,
                output: conv1d(hidden, hidden, &w.pp("attn.c_proj"))?,
                attention_norm: layer_norm(hidden, epsilon, w.pp("ln_1"))?,
                up: conv1d(hidden, wide, &w.pp("mlp.c_fc"))?,
                down: conv1d(wide, hidden, &w.pp("mlp.c_proj"))?,
                output_norm: layer_norm(hidden, epsilon, w.pp("ln_2"))?,
            })
        });
        let gpt2 = Self {
            layers: layers.collect::<Result<_>>()?,
            words: embedding(config.vocab_size, hidden, weights.pp("wte"))?,
            positions: embedding(config.n_positions, hidden, weights.pp("wpe"))?,
            norm: layer_norm(hidden, epsilon, weights.pp("ln_f"))?,
            heads,
            activation: config.activation_function,
        };
        Ok((gpt2, hidden, config.n_positions))
    }
}

/// A layer stored `[in, out]`.
fn conv1d(inputs: usize, outputs: usize, weights: &VarBuilder) -> Result<Linear> {
    let weight = weights.get((inputs, outputs), "weight")?.t()?.contiguous()?;
    Ok(Linear::new(weight, Some(weights.get(outputs, "bias")?)))
}

/// Query, key and value of the joint projection, `[hidden, 3 · hidden]`.
fn columns(hidden: usize, weights: &VarBuilder) -> Result<[Linear; 3]> {
    let (weight, bias) =
        (weights.get((hidden, 3 * hidden), "weight")?, weights.get(3 * hidden, "bias")?);
    let part = |index: usize| {
        let weight = weight.narrow(1, index * hidden, hidden)?.t()?.contiguous()?;
        Ok::<_, candle_core::Error>(Linear::new(
            weight,
            Some(bias.narrow(0, index * hidden, hidden)?),
        ))
    };
    Ok([part(0)?, part(1)?, part(2)?])
}

impl Layers for Gpt2 {
    fn forward(&self, batch: &Batch) -> Result<Tensor> {
        let (_, length) = batch.ids.dims2()?;
        let positions = Tensor::arange(0, length as u32, &Device::Cpu)?;
        let words = self.words.forward(&batch.ids)?;
        let mut x = words.broadcast_add(&self.positions.forward(&positions)?)?;
        // Padding follows the tokens, which under causal attention do not see it.
        let causal = bias(&Tensor::tril2(length, DType::U32, &Device::Cpu)?)?;
        for layer in &self.layers {
            let attended = layer.attend(&layer.attention_norm.forward(&x)?, &causal, self.heads)?;
            x = (x + attended)?;
            let wide = layer.up.forward(&layer.output_norm.forward(&x)?)?;
            x = (x + layer.down.forward(&self.activation.apply(&wide)?)?)?;
        }
        self.norm.forward(&x)
    }
}
