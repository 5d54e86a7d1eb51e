//! Encoders of the BERT family for reward models: one post-norm transformer whose variants (BERT,
//! RoBERTa and XLM-RoBERTa, DistilBERT) are data, and DeBERTa-v2/v3 through candle-transformers.
//!
//! Inference only, f32 on the CPU. Inputs are `[batch, length]` u32 ids with a mask of ones and
//! zeros; the output is `[batch, length, hidden]`.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, linear, ops::softmax_last_dim,
};
use candle_transformers::models::debertav2::{Config as DebertaConfig, DebertaV2Model};
use serde::Deserialize;

/// A tokenised batch, padded to its longest row.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, `[batch, length]` u32.
    pub ids: Tensor,
    /// Segment ids, `[batch, length]` u32.
    pub types: Tensor,
    /// 1 for tokens, 0 for padding, `[batch, length]` u32.
    pub mask: Tensor,
}

impl Batch {
    /// Pads rows of `(ids, types)` with `pad`.
    pub fn new(rows: &[(&[u32], &[u32])], pad: u32) -> Result<Self> {
        let width = rows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0);
        let padded = |fill: u32, row: &dyn Fn(usize) -> Vec<u32>| {
            let mut flat = Vec::with_capacity(rows.len() * width);
            for at in 0..rows.len() {
                let row = row(at);
                let missing = width.saturating_sub(row.len());
                flat.extend(row);
                flat.extend(std::iter::repeat_n(fill, missing));
            }
            Tensor::from_vec(flat, (rows.len(), width), &Device::Cpu)
        };
        let column = |pick: fn(&(&[u32], &[u32])) -> Vec<u32>| {
            move |at: usize| rows.get(at).map(pick).unwrap_or_default()
        };
        Ok(Self {
            ids: padded(pad, &column(|(ids, _)| ids.to_vec()))?,
            types: padded(0, &column(|(_, types)| types.to_vec()))?,
            mask: padded(0, &column(|(ids, _)| vec![1; ids.len()]))?,
        })
    }
}

/// The activation between the two layers of a feed-forward block, and of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Exact GELU (erf).
    Gelu,
    /// Tanh-approximated GELU.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    /// max(0, x).
    Relu,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluNew => x.gelu(),
            Self::Relu => x.relu(),
        }
    }
}

/// What a BERT-like checkpoint's `config.json` says (DistilBERT's names as aliases).
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
    #[serde(default)]
    pad_token_id: Option<u32>,
}

/// DistilBERT's is not in its config.
fn distilbert_epsilon() -> f64 {
    1e-12
}

/// How a variant names its tensors and counts its positions.
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

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    output_norm: LayerNorm,
}

struct Bert {
    words: Embedding,
    positions: Embedding,
    types: Option<Embedding>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    heads: usize,
    activation: Activation,
    first_position: usize,
}

/// An encoder with its size.
pub struct Encoder {
    network: Network,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Most tokens of one input.
    pub longest: usize,
    /// Id that fills a batch.
    pub pad: u32,
}

enum Network {
    Bert(Box<Bert>),
    Deberta(Box<DebertaV2Model>),
}

impl Encoder {
    /// Loads the encoder of a checkpoint, whose `config.json` is `config`; the tensors may stand
    /// under the variant's prefix (a model with a head) or not (a bare encoder).
    pub fn load(config: &serde_json::Value, weights: &VarBuilder) -> Result<Self> {
        let kind = config.get("model_type").and_then(|v| v.as_str()).unwrap_or_default();
        if kind == "deberta-v2" {
            let config: DebertaConfig = parse(config)?;
            let prefixed = weights.contains_tensor("deberta.embeddings.word_embeddings.weight");
            let weights = if prefixed { weights.pp("deberta") } else { weights.clone() };
            return Ok(Self {
                network: Network::Deberta(Box::new(DebertaV2Model::load(weights, &config)?)),
                hidden: config.hidden_size,
                longest: config.max_position_embeddings,
                pad: config.pad_token_id.unwrap_or(0) as u32,
            });
        }
        let pad = config.get("pad_token_id").and_then(|v| v.as_u64()).unwrap_or(0) as u32;
        let names = Names::of(kind, pad).ok_or_else(|| {
            candle_core::Error::Msg(format!(
                "model_type `{kind}` is not supported; bert, roberta, xlm-roberta, distilbert and \
                 deberta-v2 are"
            ))
        })?;
        let config: BertConfig = parse(config)?;
        let word = format!("{}.embeddings.word_embeddings.weight", names.prefix);
        let weights =
            if weights.contains_tensor(&word) { weights.pp(names.prefix) } else { weights.clone() };
        Ok(Self {
            hidden: config.hidden_size,
            longest: config.max_position_embeddings.saturating_sub(names.first_position),
            pad: config.pad_token_id.unwrap_or(0),
            network: Network::Bert(Box::new(Bert::load(&config, &names, &weights)?)),
        })
    }

    /// Hidden states of the last layer, `[batch, length, hidden]`.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor> {
        match &self.network {
            Network::Bert(bert) => bert.forward(batch),
            Network::Deberta(deberta) => {
                deberta.forward(&batch.ids, Some(batch.types.clone()), Some(batch.mask.clone()))
            }
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(config: &serde_json::Value) -> Result<T> {
    T::deserialize(config).map_err(|e| candle_core::Error::Msg(format!("config.json: {e}")))
}

/// A norm under either of its names: checkpoints converted from TensorFlow say gamma and beta.
fn norm(size: usize, epsilon: f64, weights: VarBuilder) -> Result<LayerNorm> {
    let (gain, shift) =
        if weights.contains_tensor("gamma") { ("gamma", "beta") } else { ("weight", "bias") };
    Ok(LayerNorm::new(weights.get(size, gain)?, weights.get(size, shift)?, epsilon))
}

impl Bert {
    fn load(config: &BertConfig, names: &Names, weights: &VarBuilder) -> Result<Self> {
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
        Ok(Self {
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
        })
    }

    fn forward(&self, batch: &Batch) -> Result<Tensor> {
        let (_, length) = batch.ids.dims2()?;
        // Padding stands behind the tokens and is masked, so its positions don't matter.
        let first = self.first_position as u32;
        let positions = Tensor::arange(first, first + length as u32, batch.ids.device())?;
        let mut x = self.words.forward(&batch.ids)?;
        x = x.broadcast_add(&self.positions.forward(&positions)?)?;
        if let Some(types) = &self.types {
            x = (x + types.forward(&batch.types)?)?;
        }
        x = self.norm.forward(&x)?;
        // 0 for tokens, a number that no score outweighs for padding.
        let bias = batch.mask.to_dtype(DType::F32)?.affine(1e30, -1e30)?;
        let bias = bias.unsqueeze(1)?.unsqueeze(1)?;
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
    /// Self-attention of `[batch, length, hidden]` with an additive mask `[batch, 1, 1, length]`.
    fn attend(&self, x: &Tensor, bias: &Tensor, heads: usize) -> Result<Tensor> {
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
