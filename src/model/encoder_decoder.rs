//! What an encoder–decoder model (T5) adds to the decoder: an encoder, attention to its output, and
//! biases of scores by distance.
//!
//! ```text
//! encoder:  x = embed(prompt);  x += o(attention(…, all of the prompt));  x += mlp(x);  e = norm x
//! decoder, between attention and feed-forward layer of each layer:
//!           x += o(attention(q(norm x), k(e), v(e)))
//! ```
//!
//! A prompt is encoded in one pass, as each of its rows attends to all of it. What is kept of it are
//! the keys and values k(e), v(e) of every decoder layer, in blocks of the same cache as the decoder's
//! own. While the prompt is encoded, the first layer of these blocks holds the keys and values of one
//! encoder layer after another.

use super::{
    config::{EncoderConfig, ModelConfig},
    layer::{Layer, Rows, scaled},
    linear::{Affine, Linear, Parameter, linears},
    names::{Module, Stack, T5_BIASES, T5_NORMS},
};
use crate::kernels::{Batch, Kernels, RelativeBias, Result, Sight};

/// The encoder and what binds the decoder to it.
#[derive(Debug, Clone)]
pub(super) struct Encoder<W> {
    layers: Vec<Layer<W>>,
    norm: Parameter<W>,
    distances: Distances<W>,
    decoder_distances: Distances<W>,
    /// Of each decoder layer.
    cross: Vec<Cross<W>>,
}

/// Biases of scores by distance.
#[derive(Debug, Clone)]
struct Distances<W> {
    /// `[buckets, heads]`.
    biases: Parameter<W>,
    /// The bucket of each distance from −reach to reach.
    buckets: Vec<u16>,
}

/// Attention to the encoder's output.
#[derive(Debug, Clone)]
struct Cross<W> {
    norm: Parameter<W>,
    q: Linear<W>,
    k: Linear<W>,
    v: Linear<W>,
    o: Linear<W>,
}

impl<W: Clone> Encoder<W> {
    /// Takes its parameters from `parameter`, by their Hugging Face names.
    pub(super) fn load<E>(
        config: &ModelConfig,
        encoder: &EncoderConfig,
        parameter: &mut impl FnMut(&str) -> std::result::Result<Parameter<W>, E>,
    ) -> std::result::Result<Self, E> {
        let stack = Stack::T5Encoder { gated: config.gated };
        let layers =
            (0..encoder.layers).map(|index| Layer::load(config, (stack, index), parameter));
        let layers = layers.collect::<std::result::Result<_, E>>()?;
        let [own, decoders] = T5_BIASES;
        let mut distances = |name, both| {
            let buckets = buckets(encoder.buckets, encoder.max_distance, both);
            Ok(Distances { biases: parameter(name)?, buckets })
        };
        let (distances, decoder_distances) = (distances(own, true)?, distances(decoders, false)?);
        let norm = parameter(T5_NORMS[0])?;
        let cross = (0..config.layers).map(|index| Cross::load(config.stack(), index, parameter));
        let cross = cross.collect::<std::result::Result<_, E>>()?;
        Ok(Self { layers, norm, distances, decoder_distances, cross })
    }

    /// Encodes prompts, whose embedded tokens are `x`, and leaves their keys and values for every
    /// decoder layer in the cache.
    pub(super) fn encode<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        config: &ModelConfig,
        mut x: K::Tensor,
        prompts: &Batch,
        cache: &mut K::Cache,
    ) -> Result<()> {
        let rows = (prompts.tokens.len(), prompts.coefficients.as_ref());
        let biases = self.distances.biases.table(k, rows.0, rows.1)?;
        let shape = config.attention(0);
        for layer in &self.layers {
            let [query, key, value] = layer.project(k, config, &x, rows)?;
            let query = scaled(k, query, rows.0, config.multipliers.query)?;
            k.store(&key, &value, 0, &prompts.segments, cache)?;
            let bias = RelativeBias { table: &biases, buckets: &self.distances.buckets };
            let (segments, sight) = (&prompts.segments, Sight::Segment);
            let attended = k.attend(&query, 0, shape, segments, sight, Some(bias), cache)?;
            x = layer.add_attended(k, config, x, &attended, rows)?;
            x = layer.add_mlp(k, config, x, rows)?;
        }
        let encoded = self.norm.rms_norm(k, &x, rows.0, config.norm, rows.1)?;
        for (index, cross) in self.cross.iter().enumerate() {
            let pair = [cross.k.onto(None), cross.v.onto(None)];
            let [key, value] = linears(k, &encoded, pair, rows.0, rows.1)?;
            k.store(&key, &value, index, &prompts.segments, cache)?;
        }
        Ok(())
    }

    /// The decoder's own attention in layer `index`: that of a decoder alone, with biases by distance.
    pub(super) fn attend_self<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        config: &ModelConfig,
        [query, key, value]: [K::Tensor; 3],
        index: usize,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let Distances { biases, buckets } = &self.decoder_distances;
        let table = biases.table(k, batch.tokens.len(), batch.coefficients.as_ref())?;
        let bias = RelativeBias { table: &table, buckets };
        k.store(&key, &value, index, &batch.segments, cache)?;
        let (shape, segments) = (config.attention(index), &batch.segments);
        k.attend(&query, index, shape, segments, Sight::Causal, Some(bias), cache)
    }

    /// `x` with what layer `index` reads from the encoded prompts added to it. `x` are the rows of
    /// `batch`, in order.
    pub(super) fn add_encoded<K: Kernels<Weight = W>>(
        &self,
        k: &K,
        config: &ModelConfig,
        x: K::Tensor,
        index: usize,
        batch: &Batch,
        cache: &mut K::Cache,
    ) -> Result<K::Tensor> {
        let (rows, c): Rows<'_> = (batch.tokens.len(), batch.coefficients.as_ref());
        let cross = &self.cross[index];
        let h = cross.norm.rms_norm(k, &x, rows, config.norm, c)?;
        let [query] = linears(k, &h, [cross.q.onto(None)], rows, c)?;
        let query = scaled(k, query, rows, config.multipliers.query)?;
        let (shape, segments) = (config.attention(index), &batch.encoded);
        let attended = k.attend(&query, index, shape, segments, Sight::Cached, None, cache)?;
        let onto = Affine { onto: Some(x), ..cross.o.onto(None) };
        let [x] = linears(k, &attended, [onto], rows, c)?;
        Ok(x)
    }
}

impl<W> Cross<W> {
    fn load<E>(
        stack: Stack,
        index: usize,
        parameter: &mut impl FnMut(&str) -> std::result::Result<Parameter<W>, E>,
    ) -> std::result::Result<Self, E> {
        let mut weight = |module| parameter(&stack.weight(module, index));
        let norm = weight(Module::CrossNorm)?;
        let mut linear = |module| Ok(Linear { weight: weight(module)?, bias: None });
        Ok(Self {
            norm,
            q: linear(Module::CrossQ)?,
            k: linear(Module::CrossK)?,
            v: linear(Module::CrossV)?,
            o: linear(Module::CrossO)?,
        })
    }
}

/// The bucket of each distance from −`far` to `far`. Half of the buckets are of single distances, the
/// others of logarithmic ranges up to `far`; where a row sees `both` sides, each has half of them all.
fn buckets(count: usize, far: usize, both: bool) -> Vec<u16> {
    let side = if both { count / 2 } else { count };
    let exact = side / 2;
    // In f32, as transformers computes them.
    let bucket = |distance: usize| {
        if distance < exact {
            return distance;
        }
        let ratio = (distance as f32 / exact as f32).ln() / (far as f64 / exact as f64).ln() as f32;
        (exact + (ratio * (side - exact) as f32) as usize).min(side - 1)
    };
    let before = (0..=far).rev().map(bucket);
    let after = (1..=far).map(|distance| if both { side + bucket(distance) } else { 0 });
    before.chain(after).map(|bucket| bucket as u16).collect()
}
