//! The forward pass of a Llama-family decoder over a ragged batch.
//!
//! ```text
//! x = embed(tokens)
//! per layer:  x += o(attention(rope(q(norm x)), rope(k(norm x)), v(norm x)))
//!             x += down(silu(gate(norm x)) ⊙ up(norm x))
//! logits = head(norm x[outputs])
//! ```

use super::{
    config::ModelConfig,
    linear::{Affine, Parameter, linears},
    names::{EMBEDDING, HEAD, Module, NORM},
};
use crate::kernels::{Batch, Kernels, Result, RowCoefficients};

/// A linear layer with its optional bias.
#[derive(Debug, Clone)]
pub struct Linear<W> {
    weight: Parameter<W>,
    bias: Option<Parameter<W>>,
}

impl<W> Linear<W> {
    /// This layer, its output added onto `onto` if that is given.
    fn onto<'a, K: Kernels<Weight = W>>(&'a self, onto: Option<K::Tensor>) -> Affine<'a, K> {
        Affine { weight: &self.weight, bias: self.bias.as_ref(), onto }
    }
}

#[derive(Debug, Clone)]
struct Layer<W> {
    input_norm: Parameter<W>,
    q: Linear<W>,
    k: Linear<W>,
    v: Linear<W>,
    o: Linear<W>,
    qk_norm: Option<(Parameter<W>, Parameter<W>)>,
    post_norm: Parameter<W>,
    gate: Linear<W>,
    up: Linear<W>,
    down: Linear<W>,
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
            layers.push(Layer {
                q: linear(Module::Q, config.qkv_bias)?,
                k: linear(Module::K, config.qkv_bias)?,
                v: linear(Module::V, config.qkv_bias)?,
                o: linear(Module::O, config.output_bias)?,
                gate: linear(Module::Gate, config.mlp_bias)?,
                up: linear(Module::Up, config.mlp_bias)?,
                down: linear(Module::Down, config.mlp_bias)?,
                input_norm: parameter(&Module::InputNorm.weight(index))?,
                post_norm: parameter(&Module::PostNorm.weight(index))?,
                qk_norm: if config.qk_norm {
                    let norms = [Module::QNorm, Module::KNorm].map(|norm| norm.weight(index));
                    Some((parameter(&norms[0])?, parameter(&norms[1])?))
                } else {
                    None
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
        let (rows, eps) = (batch.outputs.len(), self.config.norm_eps);
        let c = batch.coefficients.as_ref().map(|c| c.select(&batch.outputs));
        let x = self.add_mlp(k, last, x, &attended, (rows, c.as_ref()))?;
        self.norm.rms_norm(k, &x, rows, eps, c.as_ref())
    }

    /// The first part of both: the embeddings of the batch's tokens, `[rows, hidden_size]`.
    pub fn embed<K: Kernels<Weight = W>>(&self, k: &K, batch: &Batch) -> Result<K::Tensor> {
        self.embedding.embed(k, &batch.tokens, batch.coefficients.as_ref())
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
        let (layer, eps) = (&self.layers[index], self.config.norm_eps);
        let (rows, c) = (batch.tokens.len(), batch.coefficients.as_ref());
        let h = layer.input_norm.rms_norm(k, x, rows, eps, c)?;
        let qkv = [layer.q.onto(None), layer.k.onto(None), layer.v.onto(None)];
        let [mut query, mut key, value] = linears(k, &h, qkv, rows, c)?;
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            query = q_norm.rms_norm(k, &query, rows, eps, c)?;
            key = k_norm.rms_norm(k, &key, rows, eps, c)?;
        }
        let query = k.rope(query, &batch.positions, &self.config.rope)?;
        let key = k.rope(key, &batch.positions, &self.config.rope)?;
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
        let [x] = linears(k, attended, [layer.o.onto(Some(x))], rows, c)?;
        let h = layer.post_norm.rms_norm(k, &x, rows, self.config.norm_eps, c)?;
        let pair = [layer.gate.onto(None), layer.up.onto(None)];
        let [gate, up] = linears(k, &h, pair, rows, c)?;
        let h = k.swiglu(gate, &up)?;
        let [x] = linears(k, &h, [layer.down.onto(Some(x))], rows, c)?;
        Ok(x)
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
        self.norm.rms_norm(k, &x, batch.outputs.len(), self.config.norm_eps, c.as_ref())
    }

    /// Logits of hidden states → `[outputs, vocab_size]`; `coefficients` are those of the outputs.
    pub fn logits<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        hidden: &K::Tensor,
        coefficients: Option<&RowCoefficients>,
    ) -> Result<K::Tensor> {
        self.head.linear(k, hidden, coefficients)
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
        self.logits(k, &hidden, c.as_ref())
    }
}
