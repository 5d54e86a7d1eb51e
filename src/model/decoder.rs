//! The forward pass of a decoder over a ragged batch.
//!
//! ```text
//! x = embed(tokens)
//! per layer:  x += o(attention(rope(q(norm x)), rope(k(norm x)), v(norm x)))
//!             x += down(activation(gate(norm x)) ⊙ up(norm x))
//! logits = head(norm x[outputs])
//! ```
//!
//! Families differ in where norms stand, in layers without rotation, in constant factors and soft
//! caps, in which layers share a tensor or have experts, and in what stands beside the decoder: all of it
//! is data of [`ModelConfig`].

use super::{
    config::ModelConfig,
    encoder_decoder::Encoder,
    layer::{Layer, scaled},
    linear::Parameter,
    names::HEAD,
};
use crate::kernels::{Batch, Kernels, Result, RowCoefficients};

/// A decoder whose parameters live on the device of its kernels.
#[derive(Debug, Clone)]
pub struct Decoder<W> {
    config: ModelConfig,
    embedding: Parameter<W>,
    layers: Vec<Layer<W>>,
    norm: Parameter<W>,
    head: Parameter<W>,
    encoder: Option<Encoder<W>>,
}

impl<W: Clone> Decoder<W> {
    /// Takes every parameter of `config` from `parameter`, called once with each Hugging Face name
    /// of [`ModelConfig::tensors`].
    pub fn load<E>(
        config: ModelConfig,
        mut parameter: impl FnMut(&str) -> std::result::Result<Parameter<W>, E>,
    ) -> std::result::Result<Self, E> {
        let embedding = parameter(config.embedding())?;
        let encoder = match &config.encoder {
            Some(encoder) => Some(Encoder::load(&config, encoder, &mut parameter)?),
            None => None,
        };
        let layers = (0..config.layers)
            .map(|index| Layer::load(&config, (config.stack(), index), &mut parameter))
            .collect::<std::result::Result<_, E>>()?;
        let norm = parameter(config.last_norm())?;
        let head = if config.tied { embedding.clone() } else { parameter(HEAD)? };
        Ok(Self { config, embedding, layers, norm, head, encoder })
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
        self.encode(k, batch, cache)?;
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
        self.encode(k, batch, cache)?;
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
        if self.encoder.is_some() {
            let x = self.layer(k, last, x, batch, cache)?;
            return self.finish(k, &x, batch);
        }
        let attended = self.attend(k, last, &x, batch, cache)?;
        let x = k.select_rows(&x, &batch.outputs)?;
        if batch.outputs.is_empty() {
            return Ok(x);
        }
        let attended = k.select_rows(&attended, &batch.outputs)?;
        let c = batch.coefficients.as_ref().map(|c| c.select(&batch.outputs));
        let (layer, rows) = (&self.layers[last], (batch.outputs.len(), c.as_ref()));
        let x = layer.add_attended(k, &self.config, x, &attended, rows)?;
        let x = layer.add_mlp(k, &self.config, x, rows)?;
        self.norm.rms_norm(k, &x, rows.0, self.config.norm, rows.1)
    }

    /// Encodes the prompts of a batch, where it has some.
    fn encode<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<()> {
        let (Some(encoder), Some(prompts)) = (&self.encoder, &batch.prompts) else { return Ok(()) };
        let x = self.embed(k, prompts)?;
        encoder.encode(k, &self.config, x, prompts, cache)
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
        let layer = &self.layers[index];
        let mut x = layer.add_attended(k, &self.config, x, &attended, rows)?;
        if let Some(encoder) = &self.encoder {
            x = encoder.add_encoded(k, &self.config, x, index, batch, cache)?;
        }
        layer.add_mlp(k, &self.config, x, rows)
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
        let rows = (batch.tokens.len(), batch.coefficients.as_ref());
        let [mut query, mut key, value] = self.layers[index].project(k, &self.config, x, rows)?;
        if self.config.rotary[index] {
            let rope = self.config.rope_of(index);
            query = k.rope(query, &batch.positions, rope)?;
            key = k.rope(key, &batch.positions, rope)?;
        }
        let query = scaled(k, query, rows.0, self.config.multipliers.query)?;
        if let Some(encoder) = &self.encoder {
            let qkv = [query, key, value];
            return encoder.attend_self(k, &self.config, qkv, index, batch, cache);
        }
        let shape = self.config.attention(index);
        k.attention(query, key, value, index, shape, batch, cache)
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
