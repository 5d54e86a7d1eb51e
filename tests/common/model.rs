//! Tiny models of tests/fixtures/models and a driver that feeds sequences through a decoder.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use ladle::{
    kernels::{
        Batch, Dtype, HostTensor, KV_BLOCK, Kernels, KvShape, RowCoefficients, Segment,
        cpu::{CpuKernels, KvPool},
    },
    model::{config::ModelConfig, decoder::Decoder, linear::Parameter},
};
use safetensors::SafeTensors;

/// A checkpoint with its reference.
#[derive(Clone)]
pub struct Model {
    pub config: ModelConfig,
    pub weights: BTreeMap<String, HostTensor>,
    pub sequences: Vec<Sequence>,
}

/// Tokens and transformers' logits at each of them.
#[derive(Clone)]
pub struct Sequence {
    pub tokens: Vec<u32>,
    pub logits: Vec<Vec<f32>>,
}

pub fn family_names() -> [&'static str; 21] {
    [
        "llama2",
        "llama3",
        "llama-bias",
        "smollm2",
        "qwen2-tied",
        "qwen2-window",
        "qwen3",
        "mistral",
        "smollm3",
        "smollm3-window",
        "olmo2",
        "granite",
        "gemma3",
        "qwen2-yarn",
        "phi3",
        "phi4-mini",
        "gemma2",
        "gemma",
        "olmo3",
        "qwen3-moe",
        "mixtral",
    ]
}

/// Those without experts: rounding that changes a token's experts moves its logits by more than rounding.
pub fn dense_names() -> impl Iterator<Item = &'static str> {
    family_names().into_iter().filter(|name| load(name).config.experts.is_none())
}

pub fn load(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name);
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = ModelConfig::from_json(&serde_json::from_str(&config).unwrap()).unwrap();
    let bytes: Arc<Vec<u8>> = Arc::new(std::fs::read(dir.join("model.safetensors")).unwrap());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let weights = tensors
        .iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), safetensors::Dtype::F32);
            let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let range = start..start + view.data().len();
            let shape = view.shape().to_vec();
            let tensor = HostTensor::new(bytes.clone(), range, Dtype::F32, shape).unwrap();
            (name.to_owned(), tensor)
        })
        .collect();
    let bytes = std::fs::read(dir.join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let sequences = (0..reference.len() / 2)
        .map(|i| {
            let tokens = reference.tensor(&format!("tokens.{i}")).unwrap();
            let tokens = tokens.data().chunks_exact(8);
            let tokens = tokens.map(|b| u32::from_le_bytes(b[..4].try_into().unwrap())).collect();
            let logits = reference.tensor(&format!("logits.{i}")).unwrap();
            let values = logits.data().chunks_exact(4);
            let values: Vec<_> =
                values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let logits = values.chunks_exact(logits.shape()[1]).map(<[f32]>::to_vec).collect();
            Sequence { tokens, logits }
        })
        .collect();
    Model { config, weights, sequences }
}

/// The values of `tensor` in another storage type.
pub fn cast(tensor: &HostTensor, dtype: Dtype) -> HostTensor {
    HostTensor::rounded(&tensor.to_f32(), dtype, tensor.shape().to_vec()).unwrap()
}

impl Model {
    pub fn cast(mut self, dtype: Dtype) -> Self {
        self.weights.values_mut().for_each(|w| *w = cast(w, dtype));
        self
    }

    pub fn decoder(&self) -> Decoder<HostTensor> {
        self.decoder_with(|_, weight| Parameter::merged(weight.clone()))
    }

    pub fn decoder_with(
        &self,
        parameter: impl Fn(&str, &HostTensor) -> Parameter<HostTensor>,
    ) -> Decoder<HostTensor> {
        let expected = self.config.tensors();
        assert_eq!(expected.len(), self.weights.len());
        for (name, shape) in &expected {
            assert_eq!(self.weights[name].shape(), shape);
        }
        let get =
            |name: &str| Ok::<_, std::convert::Infallible>(parameter(name, &self.weights[name]));
        Decoder::load(self.config.clone(), get).unwrap()
    }
}

/// How to feed sequences.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Per step: which sequences give how many of their next tokens.
    pub steps: &'a [Vec<(usize, usize)>],
    /// Storage type of keys and values.
    pub cache: Dtype,
    /// Term coefficients of each sequence.
    pub coefficients: Option<&'a [Vec<f32>]>,
}

/// Logits at every token of every sequence.
pub fn run(
    kernels: &CpuKernels,
    decoder: &Decoder<HostTensor>,
    sequences: &[Sequence],
    setup: Run<'_>,
) -> Vec<Vec<Vec<f32>>> {
    let cache = |shape| KvPool::new(shape).unwrap();
    run_on(kernels, decoder, sequences, setup, cache, |logits| logits.data().to_vec())
}

/// The same on any kernels, given how they make a cache and show a tensor's values.
pub fn run_on<K: Kernels>(
    kernels: &K,
    decoder: &Decoder<K::Weight>,
    sequences: &[Sequence],
    run: Run<'_>,
    cache: impl FnOnce(KvShape) -> K::Cache,
    values: impl Fn(&K::Tensor) -> Vec<f32>,
) -> Vec<Vec<Vec<f32>>> {
    let config = decoder.config();
    let needed: Vec<_> = sequences.iter().map(|s| s.tokens.len().div_ceil(KV_BLOCK)).collect();
    let shape = KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        blocks: needed.iter().sum::<usize>() + 3,
        dtype: run.cache.into(),
    };
    let mut cache = cache(shape);
    // Blocks in an order that is nobody's natural one: 7 is coprime to the counts used here.
    let mut free = (0..shape.blocks as u32).rev().map(|i| i * 7 % shape.blocks as u32);
    let blocks: Vec<Vec<u32>> =
        needed.iter().map(|&needed| free.by_ref().take(needed).collect()).collect();
    let mut done = vec![0; sequences.len()];
    let mut logits = vec![Vec::new(); sequences.len()];
    for step in run.steps {
        let mut batch = Batch::default();
        let mut owners = Vec::new();
        for &(sequence, count) in step {
            let tokens: Range<usize> = done[sequence]..done[sequence] + count;
            let first = batch.tokens.len();
            batch.tokens.extend(&sequences[sequence].tokens[tokens.clone()]);
            batch.positions.extend(tokens.map(|position| position as u32));
            batch.segments.push(Segment {
                rows: first..first + count,
                cached: done[sequence],
                blocks: blocks[sequence].clone(),
            });
            owners.resize(first + count, sequence);
            done[sequence] += count;
        }
        batch.outputs = (0..owners.len()).collect();
        batch.coefficients = run.coefficients.map(|c| RowCoefficients {
            terms: c[0].len(),
            values: owners.iter().flat_map(|&owner| c[owner].clone()).collect(),
        });
        let out = decoder.forward(kernels, &batch, &mut cache).unwrap();
        let values = values(&out);
        for (row, &owner) in values.chunks_exact(config.vocab_size).zip(&owners) {
            logits[owner].push(row.to_vec());
        }
    }
    logits
}
