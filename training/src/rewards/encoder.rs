//! Encoders of the BERT family for reward models: one post-norm transformer whose variants (BERT,
//! RoBERTa and XLM-RoBERTa, DistilBERT) are data.

use candle_core::{D, Result, Tensor};
use candle_nn::{
    Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, linear, ops::softmax_last_dim,
};
use serde::Deserialize;

use super::layers::{Batch, Layers, bias, model_type, parse};

/// The activation between the two layers of a feed-forward block, and of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Activation {
    /// Exact GELU (erf).
    Gelu,
    /// Tanh-approximated GELU.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    /// max(0, x).
    Relu,
}

impl Activation {
    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluNew => x.gelu(),
            Self::Relu => x.relu(),
        }
    }
}

/// `config.json` of a BERT-like checkpoint (DistilBERT's names as aliases).
#[derive(Debug, Clone, Deserialize)]
struct BertConfig {
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: Activation,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "distilbert_epsilon")]
    layer_norm_eps: f64,
}

/// DistilBERT's is not in its config.
fn distilbert_epsilon() -> f64 {
    1e-12
}

/// Tensor names and position offset of a variant.
struct Names {
    /// Prefix of the encoder in a checkpoint with a head.
    prefix: &'static str,
    layers: &'static str,
    /// query, key, value, output, attention norm, up, down, output norm.
    layer: [&'static str; 8],
    /// Position of the first token.
    first_position: usize,
}

impl Names {
    fn of(model_type: &str, pad: u32) -> Option<Self> {
        let bert = [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        ];
        let layers = "encoder.layer";
        match model_type {
            "bert" => Some(Self { prefix: "bert", layers, layer: bert, first_position: 0 }),
            "roberta" | "xlm-roberta" => {
                let first_position = pad as usize + 1;
                Some(Self { prefix: "roberta", layers, layer: bert, first_position })
            }
            "distilbert" => Some(Self {
                prefix: "distilbert",
                layers: "transformer.layer",
                layer: [
                    "attention.q_lin",
                    "attention.k_lin",
                    "attention.v_lin",
                    "attention.out_lin",
                    "sa_layer_norm",
                    "ffn.lin1",
                    "ffn.lin2",
                    "output_layer_norm",
                ],
                first_position: 0,
            }),
            _ => None,
        }
    }
}

/// One transformer layer.
pub(super) struct Layer {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    pub attention_norm: LayerNorm,
    pub up: Linear,
    pub down: Linear,
    pub output_norm: LayerNorm,
}

/// An encoder of the family.
pub(super) struct Bert {
    words: Embedding,
    positions: Embedding,
    types: Option<Embedding>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    activation: Activation,
    first_position: usize,
}

/// A norm; checkpoints converted from TensorFlow name its parameters gamma and beta.
fn norm(size: usize, epsilon: f64, weights: VarBuilder) -> Result<LayerNorm> {
    let (gain, shift) =
        if weights.contains_tensor("gamma") { ("gamma", "beta") } else { ("weight", "bias") };
    Ok(LayerNorm::new(weights.get(size, gain)?, weights.get(size, shift)?, epsilon))
}

impl Bert {
    /// The encoder of a checkpoint, its width and its longest input in tokens.
    pub fn load(json: &serde_json::Value, weights: &VarBuilder) -> Result<(Self, usize, usize)> {
        let kind = model_type(json);
        let pad = json.get("pad_token_id").and_then(|v| v.as_u64()).unwrap_or(0) as u32;
        let names = Names::of(kind, pad).ok_or_else(|| {
            candle_core::Error::Msg(format!(
                "model_type `{kind}` is not supported; bert, roberta, xlm-roberta, distilbert, \
                 deberta-v2, gpt2, llama, mistral, qwen2 and qwen3 are"
            ))
        })?;
        let config: BertConfig = parse(json)?;
        let word = format!("{}.embeddings.word_embeddings.weight", names.prefix);
        let weights =
            if weights.contains_tensor(&word) { weights.pp(names.prefix) } else { weights.clone() };
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let heads = config.num_attention_heads;
        if heads == 0 || hidden % heads != 0 {
            candle_core::bail!("{hidden} hidden units do not divide into {heads} heads");
        }
        let table = weights.pp("embeddings");
        let types = if config.type_vocab_size > 0 {
            let types = table.pp("token_type_embeddings");
            Some(embedding(config.type_vocab_size, hidden, types)?)
        } else {
            None
        };
        let [query, key, value, output, attention_norm, up, down, output_norm] = names.layer;
        let layers = (0..config.num_hidden_layers).map(|i| {
            let w = weights.pp(names.layers).pp(i);
            Ok(Layer {
                query: linear(hidden, hidden, w.pp(query))?,
                key: linear(hidden, hidden, w.pp(key))?,
                value: linear(hidden, hidden, w.pp(value))?,
                output: linear(hidden, hidden, w.pp(output))?,
                attention_norm: norm(hidden, config.layer_norm_eps, w.pp(attention_norm))?,
                up: linear(hidden, wide, w.pp(up))?,
                down: linear(wide, hidden, w.pp(down))?,
                output_norm: norm(hidden, config.layer_norm_eps, w.pp(output_norm))?,
            })
        });
        let bert = Self {
            words: embedding(config.vocab_size, hidden, table.pp("word_embeddings"))?,
            positions: embedding(
                config.max_position_embeddings,
                hidden,
                table.pp("position_embeddings"),
            )?,
            types,
            norm: norm(hidden, config.layer_norm_eps, table.pp("LayerNorm"))?,
            layers: layers.collect::<Result<_>>()?,
            heads,
            activation: config.hidden_act,
            first_position: names.first_position,
        };
        let longest = config.max_position_embeddings.saturating_sub(names.first_position);
        Ok((bert, hidden, longest))
    }
}

impl Layers for Bert {
    fn forward(&self, batch: &Batch) -> Result<Tensor> {
        let (_, length) = batch.ids.dims2()?;
        // Padding follows the tokens and is masked, so its positions do not matter.
        let first = self.first_position as u32;
        let positions = Tensor::arange(first, first + length as u32, batch.ids.device())?;
        let mut x = self.words.forward(&batch.ids)?;
        x = x.broadcast_add(&self.positions.forward(&positions)?)?;
        if let Some(types) = &self.types {
            x = (x + types.forward(&batch.types)?)?;
        }
        x = self.norm.forward(&x)?;
        let bias = bias(&batch.mask)?.unsqueeze(1)?.unsqueeze(1)?;
        for layer in &self.layers {
            let attended = layer.attend(&x, &bias, self.heads)?;
            x = layer.attention_norm.forward(&(x + attended)?)?;
            let wide = self.activation.apply(&layer.up.forward(&x)?)?;
            x = layer.output_norm.forward(&(&x + layer.down.forward(&wide)?)?)?;
        }
        Ok(x)
    }
}

impl Layer {
    /// Self-attention of `[batch, length, hidden]` with an additive mask that broadcasts to
    /// `[batch, heads, length, length]`.
    pub fn attend(&self, x: &Tensor, bias: &Tensor, heads: usize) -> Result<Tensor> {
        let (batch, length, hidden) = x.dims3()?;
        let width = hidden / heads;
        let split = |projection: &Linear| {
            let y = projection.forward(x)?.reshape((batch, length, heads, width))?;
            y.transpose(1, 2)?.contiguous()
        };
        let (query, key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let scores = (query.matmul(&key.t()?)? / (width as f64).sqrt())?.broadcast_add(bias)?;
        let mixed = softmax_last_dim(&scores)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.flatten_from(D::Minus2)?;
        self.output.forward(&mixed)
    }
}
