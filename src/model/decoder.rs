//! The forward pass of a Llama-family decoder over a ragged batch.
//!
//! ```text
//! x = embed(tokens)
//! per layer:  x += o(attention(rope(q(norm x)), rope(k(norm x)), v(norm x)))
//!             x += down(activation(gate(norm x)) ⊙ up(norm x))
//! logits = head(norm x[outputs])
//! ```
//!
//! Families differ in where norms stand, in layers without rotation, in constant factors and soft caps,
//! and in which layers share a tensor: all of it is data of [`ModelConfig`].

use super::{
    config::{Experts, ModelConfig, QkNorm},
    feed_forward::{FeedForward, Mixture, Mlp},
    linear::{Inputs, Linear, Parameter, linears},
    names::{EMBEDDING, HEAD, Module, NORM},
};
use crate::kernels::{Batch, Kernels, Result, RowCoefficients};

#[derive(Debug, Clone)]
struct Layer<W> {
    /// Norms before and after attention, before and after the feed-forward layer.
    norms: [Option<Parameter<W>>; 4],
    qkv: Inputs<W, 3>,
    o: Linear<W>,
    qk_norm: Option<(Parameter<W>, Parameter<W>)>,
    mlp: Mlp<W>,
}

/// A decoder whose parameters live on the device of its kernels.
#[derive(Debug, Clone)]
pub struct Decoder<W> {
    config: ModelConfig,
    embedding: Parameter<W>,
    layers: Vec<Layer<W>>,
    norm: Parameter<W>,
    head: Parameter<W>,
}

impl<W: Clone> Decoder<W> {
    /// Takes every parameter of `config` from `parameter`, called once with each Hugging Face name
    /// of [`ModelConfig::tensors`].
    pub fn load<E>(
        config: ModelConfig,
        mut parameter: impl FnMut(&str) -> std::result::Result<Parameter<W>, E>,
    ) -> std::result::Result<Self, E> {
        let embedding = parameter(EMBEDDING)?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let mut linear = |module: Module, bias: bool| {
                Ok(Linear {
                    weight: parameter(&module.weight(index))?,
                    bias: if bias { Some(parameter(&module.bias(index))?) } else { None },
                })
            };
            let [q_norm, k_norm] = [Module::QNorm, Module::KNorm];
            layers.push(Layer {
                qkv: if config.fused {
                    let [q, kv] = [config.heads, config.kv_heads].map(|n| n * config.head_dim);
                    Inputs::Fused(linear(Module::Qkv, config.qkv_bias)?, [q, kv, kv])
                } else {
                    let mut of = |module| linear(module, config.qkv_bias);
                    Inputs::Apart([of(Module::Q)?, of(Module::K)?, of(Module::V)?])
                },
                o: linear(Module::O, config.output_bias)?,
                mlp: match config.experts(index) {
                    Some(settings) => Mlp::Mixture(load_mixture(settings, index, &mut parameter)?),
                    None => Mlp::Dense(FeedForward {
                        gate_up: if config.fused {
                            let width = config.intermediate_size;
                            Inputs::Fused(linear(Module::GateUp, config.mlp_bias)?, [width; 2])
                        } else {
                            let mut of = |module| linear(module, config.mlp_bias);
                            Inputs::Apart([of(Module::Gate)?, of(Module::Up)?])
                        },
                        down: linear(Module::Down, config.mlp_bias)?,
                    }),
                },
                qk_norm: if config.qk_norm == QkNorm::None {
                    None
                } else {
                    Some((parameter(&q_norm.weight(index))?, parameter(&k_norm.weight(index))?))
                },
                norms: {
                    let mut norms = [None, None, None, None];
                    for (norm, module) in norms.iter_mut().zip(config.norms.modules()) {
                        *norm =
                            module.map(|module| parameter(&module.weight(index))).transpose()?;
                    }
                    norms
                },
            });
        }
        let norm = parameter(NORM)?;
        let head = if config.tied { embedding.clone() } else { parameter(HEAD)? };
        Ok(Self { config, embedding, layers, norm, head })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Final hidden states, normed, of `batch.outputs` → `[outputs, hidden_size]`. Keys and values
    /// of every row are stored in `cache`.
    pub fn hidden<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let mut x = self.embed(k, batch)?;
        for index in 0..self.layers.len() {
            x = self.layer(k, index, x, batch, cache)?;
        }
        self.finish(k, &x, batch)
    }

    /// [`Self::hidden`] whose last layer is computed for the outputs alone as soon as all keys and
    /// values are stored. The same bits where kernels compute a row the same whatever the other rows.
    pub fn outputs<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let mut x = self.embed(k, batch)?;
        for index in 0..self.layers.len().saturating_sub(1) {
            x = self.layer(k, index, x, batch, cache)?;
        }
        self.last_layer(k, x, batch, cache)
    }

    /// The last part of [`Self::outputs`]: the last layer and the final norm, `[outputs, hidden_size]`.
    pub fn last_layer<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: K::Tensor,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let Some(last) = self.layers.len().checked_sub(1) else { return self.finish(k, &x, batch) };
        let attended = self.attend(k, last, &x, batch, cache)?;
        let x = k.select_rows(&x, &batch.outputs)?;
        if batch.outputs.is_empty() {
            return Ok(x);
        }
        let attended = k.select_rows(&attended, &batch.outputs)?;
        let (rows, constants) = (batch.outputs.len(), self.config.norm);
        let c = batch.coefficients.as_ref().map(|c| c.select(&batch.outputs));
        let x = self.add_mlp(k, last, x, &attended, (rows, c.as_ref()))?;
        self.norm.rms_norm(k, &x, rows, constants, c.as_ref())
    }

    /// The first part of both: the embeddings of the batch's tokens, `[rows, hidden_size]`.
    pub fn embed<K: Kernels<Weight = W>>(&self, k: &K, batch: &Batch) -> Result<K::Tensor> {
        let x = self.embedding.embed(k, &batch.tokens, batch.coefficients.as_ref())?;
        scaled(k, x, batch.tokens.len(), self.config.multipliers.embedding)
    }

    /// One layer, on all rows; `index` is below [`ModelConfig::layers`].
    pub fn layer<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        index: usize,
        x: K::Tensor,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let attended = self.attend(k, index, &x, batch, cache)?;
        let rows = (batch.tokens.len(), batch.coefficients.as_ref());
        self.add_mlp(k, index, x, &attended, rows)
    }

    /// Output of attention for the rows of `x`, `[rows, heads · head_dim]`.
    fn attend<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        index: usize,
        x: &K::Tensor,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let (layer, constants) = (&self.layers[index], self.config.norm);
        let (rows, c) = (batch.tokens.len(), batch.coefficients.as_ref());
        let h = match &layer.norms[0] {
            Some(norm) => &norm.rms_norm(k, x, rows, constants, c)?,
            None => x,
        };
        let [mut query, mut key, value] = layer.qkv.of(k, h, (rows, c))?;
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            query = q_norm.rms_norm(k, &query, rows, constants, c)?;
            key = k_norm.rms_norm(k, &key, rows, constants, c)?;
        }
        if self.config.rotary[index] {
            let rope = self.config.rope_of(index);
            query = k.rope(query, &batch.positions, rope)?;
            key = k.rope(key, &batch.positions, rope)?;
        }
        let query = scaled(k, query, rows, self.config.multipliers.query)?;
        let shape = self.config.attention(index);
        k.attention(query, key, value, index, shape, batch, cache)
    }

    /// The second half of a layer, for rows of `x` and their output of attention.
    fn add_mlp<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        index: usize,
        x: K::Tensor,
        attended: &K::Tensor,
        (rows, c): (usize, Option<&RowCoefficients>),
    ) -> Result<K::Tensor> {
        let layer = &self.layers[index];
        let [_, after_attention, before, after] = &layer.norms;
        let x = self.residual(k, x, attended, (&layer.o, after_attention.as_ref()), (rows, c))?;
        let h = match before {
            Some(norm) => &norm.rms_norm(k, &x, rows, self.config.norm, c)?,
            None => &x,
        };
        let activation = self.config.activation;
        match &layer.mlp {
            Mlp::Dense(dense) => {
                let h = dense.inner(k, h, activation, (rows, c))?;
                self.residual(k, x, &h, (&dense.down, after.as_ref()), (rows, c))
            }
            Mlp::Mixture(mixture) => {
                let x = (h, x.clone());
                mixture.onto(k, x, (activation, self.config.multipliers.residual), c)
            }
        }
    }

    /// `x + multiplier · norm(linear(h))`.
    fn residual<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: K::Tensor,
        h: &K::Tensor,
        (linear, norm): (&Linear<W>, Option<&Parameter<W>>),
        (rows, c): (usize, Option<&RowCoefficients>),
    ) -> Result<K::Tensor> {
        let multiplier = self.config.multipliers.residual;
        if norm.is_none() && multiplier == 1.0 {
            let [x] = linears(k, h, [linear.onto(Some(x))], rows, c)?;
            return Ok(x);
        }
        let [mut y] = linears(k, h, [linear.onto(None)], rows, c)?;
        if let Some(norm) = norm {
            y = norm.rms_norm(k, &y, rows, self.config.norm, c)?;
        }
        k.add(x, &scaled(k, y, rows, multiplier)?)
    }

    /// The last part of [`Self::hidden`]: the output rows of the last layer's result, normed.
    fn finish<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        x: &K::Tensor,
        batch: &Batch,
    ) -> Result<K::Tensor> {
        let x = k.select_rows(x, &batch.outputs)?;
        let c = batch.coefficients.as_ref().map(|c| c.select(&batch.outputs));
        self.norm.rms_norm(k, &x, batch.outputs.len(), self.config.norm, c.as_ref())
    }

    /// Logits of hidden states of `rows` outputs → `[rows, vocab_size]`; `coefficients` are theirs.
    pub fn logits<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        hidden: &K::Tensor,
        rows: usize,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        let logits = self.head.linear(k, hidden, coefficients)?;
        let logits = scaled(k, logits, rows, self.config.multipliers.logits)?;
        match self.config.caps.logits {
            None => Ok(logits),
            Some(cap) => k.soft_cap(logits, cap),
        }
    }

    /// [`Self::outputs`] and [`Self::logits`] in one: `[outputs, vocab_size]`.
    pub fn forward<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let hidden = self.outputs(k, batch, cache)?;
        let c = batch.coefficients.as_ref().map(|c| c.select(&batch.outputs));
        self.logits(k, &hidden, batch.outputs.len(), c.as_ref())
    }
}

/// The mixture of a layer.
fn load_mixture<W, E>(
    settings: &Experts,
    layer: usize,
    parameter: &mut impl FnMut(&str) -> std::result::Result<Parameter<W>, E>,
) -> std::result::Result<Mixture<W>, E> {
    let names = settings.names;
    let router = parameter(&format!("{}.weight", names.router(layer)))?;
    let mut experts = Vec::with_capacity(settings.count);
    for expert in 0..settings.count {
        let mut of = |module| {
            let name = format!("{}.weight", names.path(layer, expert, module));
            Ok(Linear { weight: parameter(&name)?, bias: None })
        };
        let gate_up = Inputs::Apart([of(Module::Gate)?, of(Module::Up)?]);
        experts.push(FeedForward { gate_up, down: of(Module::Down)? });
    }
    Ok(Mixture { settings: settings.clone(), router, experts })
}

/// `factor · x` for `x` of `rows` rows.
fn scaled<K: Kernels>(k: &K, x: K::Tensor, rows: usize, factor: f32) -> Result<K::Tensor> {
    if factor == 1.0 { Ok(x) } else { k.scale_rows(x, &vec![factor; rows]) }
}
