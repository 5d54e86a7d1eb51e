//! The networks of reward models: token ids → hidden states, for every architecture.
//!
//! Inference only, on the CPU. Inputs are rows of token ids, padded at the end; the output is
//! `[batch, length, hidden]` f32, undefined on padding.

use candle_core::{Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::debertav2::{Config as DebertaConfig, DebertaV2Model};
use serde_json::Value;

use super::{
    encoder::Bert,
    gpt2::Gpt2,
    layers::{Batch, Layers, model_type, parse},
};

impl Layers for DebertaV2Model {
    fn forward(&self, batch: &Batch) -> Result<Tensor> {
        self.forward(&batch.ids, Some(batch.types.clone()), Some(batch.mask.clone()))
    }
}

/// Pooling of a text's states into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    /// State of the first token (encoders).
    First,
    /// State of the last token that is not padding (causal language models).
    Last,
}

/// A network with its size.
pub struct Network {
    layers: Box<dyn Layers>,
    pool: Pool,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Most tokens of one input.
    pub longest: usize,
    /// The padding token, if the checkpoint names one.
    pub pad: Option<u32>,
}

impl Network {
    pub(super) fn new(
        layers: impl Layers + 'static,
        pool: Pool,
        hidden: usize,
        longest: usize,
        config: &Value,
    ) -> Self {
        let pad = config.get("pad_token_id").and_then(Value::as_u64).map(|id| id as u32);
        Self { layers: Box::new(layers), pool, hidden, longest, pad }
    }

    /// Loads the encoder or GPT-2 of a checkpoint, whose `config.json` is `config`; the tensors may
    /// stand under the architecture's prefix (a model with a head) or not (a bare one).
    pub fn load(config: &Value, weights: &VarBuilder) -> Result<Self> {
        match model_type(config) {
            "gpt2" => {
                let (gpt2, hidden, longest) = Gpt2::load(config, weights)?;
                Ok(Self::new(gpt2, Pool::Last, hidden, longest, config))
            }
            "deberta-v2" => {
                let json = config;
                let config: DebertaConfig = parse(json)?;
                let word = "deberta.embeddings.word_embeddings.weight";
                let weights = if weights.contains_tensor(word) {
                    weights.pp("deberta")
                } else {
                    weights.clone()
                };
                let deberta = DebertaV2Model::load(weights, &config)?;
                let (hidden, longest) = (config.hidden_size, config.max_position_embeddings);
                Ok(Self::new(deberta, Pool::First, hidden, longest, json))
            }
            _ => {
                let (bert, hidden, longest) = Bert::load(config, weights)?;
                Ok(Self::new(bert, Pool::First, hidden, longest, config))
            }
        }
    }

    /// Hidden states of the last layer, `[batch, length, hidden]`.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor> {
        self.layers.forward(batch)
    }

    /// The pooled state of each text, `[batch, hidden]`, of `states` `[batch, length, hidden]`.
    pub fn pooled(&self, states: &Tensor, batch: &Batch) -> Result<Tensor> {
        if self.pool == Pool::First {
            return states.i((.., 0))?.contiguous();
        }
        let (count, length, hidden) = states.dims3()?;
        let last = |(row, ids): (usize, &Vec<u32>)| {
            let at = ids.iter().rposition(|&id| Some(id) != self.pad).unwrap_or(0);
            (row * length + at) as u32
        };
        let places: Vec<u32> = batch.rows.iter().enumerate().map(last).collect();
        let flat = states.reshape((count * length, hidden))?;
        flat.index_select(&Tensor::new(places, &Device::Cpu)?, 0)
    }
}
