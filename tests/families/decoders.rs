//! The cells of decoders.

use std::path::PathBuf;

use ladle::{
    engine::{GenerateRequest, MergeMode},
    import::{ImportOptions, Quantise, import},
    kernels::{
        Batch, BlockType, Dtype, HostTensor, KvShape, Segment,
        cpu::{CpuKernels, KvPool},
    },
    model::{decoder::Decoder, linear::Parameter},
    preference::Coefficients,
    soup::{Activation, Checkpoint, Soup},
};
use tempfile::TempDir;

use crate::{
    common::{fixture, merged},
    families::{Family, write_base},
    soups::{Backbones, ask, combined, engine, request, soup, widened},
};

/// Of a log-probability, where nothing is rounded to fewer bits than f32 has.
const TOLERANCE: f32 = 2e-4;
/// Of a log-probability, where inputs are rounded to 8 bits.
const ROUNDED: f32 = 0.15;
/// Coefficients of the requests of a batch.
const COEFFICIENTS: [[f64; 2]; 3] = [[1.0, 0.0], [0.6, 0.7], [1.5, -0.4]];
const TOKENS: usize = 6;
/// Where the backbones of answer-only requests begin to act.
const FROM: usize = 11;

fn coefficients() -> impl Iterator<Item = Coefficients> {
    COEFFICIENTS.into_iter().map(|[a, b]| Coefficients { backbones: vec![a, b], sft: 1.0 - a - b })
}

fn prompt(index: usize) -> Vec<u32> {
    (0..17 + 3 * index).map(|i| 3 + ((index * 41 + i * 29) % 120) as u32).collect()
}

struct Bench {
    models: TempDir,
    base: PathBuf,
}

impl Bench {
    /// The family's tiny model, imported.
    fn new(family: &Family, quantise: Option<Quantise>) -> Result<Self, String> {
        let models = tempfile::tempdir().unwrap();
        let source = models.path().join("source");
        write_base(&fixture("models").join(family.fixture), &source);
        let options = ImportOptions {
            quantise,
            copy: true,
            name: Some("model".to_owned()),
            ..ImportOptions::new(models.path().join("models"))
        };
        let imported = import(source.to_str().unwrap(), &options).map_err(|e| e.to_string())?;
        Ok(Self { models, base: imported.dir })
    }

    fn soup(&self, backbones: Backbones, activation: Activation) -> Result<Soup, String> {
        let dir = tempfile::tempdir_in(self.models.path()).unwrap().keep();
        soup(&self.base, &dir, backbones, activation)
    }
}

/// The model of some coefficients, every tensor summed.
fn summed(soup: &Soup, c: &Coefficients) -> Decoder<HostTensor> {
    let tensor = |name: &str| {
        let values: Vec<f32> = merged(soup, c, name).into_iter().map(|v| v as f32).collect();
        let shape = soup.base.get(name).unwrap().shape().to_vec();
        let weight = HostTensor::from_f32(&values, shape).unwrap();
        Ok::<_, std::convert::Infallible>(Parameter::merged(weight))
    };
    Decoder::load(soup.config.clone(), tensor).unwrap()
}

/// The logits after each token, of stretches of tokens that one model each computes.
pub fn logits(stretches: &[(&Decoder<HostTensor>, &[u32])]) -> Vec<Vec<f32>> {
    let kernels = CpuKernels::new(2);
    let config = stretches[0].0.config();
    let shape = KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        blocks: 8,
        dtype: Dtype::F32.into(),
    };
    let mut cache = KvPool::new(shape).unwrap();
    let (mut rows, mut done) = (Vec::new(), 0);
    for (decoder, tokens) in stretches {
        let count = tokens.len();
        let batch = Batch {
            tokens: tokens.to_vec(),
            positions: (done as u32..).take(count).collect(),
            segments: vec![Segment { rows: 0..count, cached: done, blocks: (0..8).collect() }],
            outputs: (0..count).collect(),
            ..Batch::default()
        };
        let out = decoder.forward(&kernels, &batch, &mut cache).unwrap();
        rows.extend(out.data().chunks_exact(config.vocab_size).map(<[f32]>::to_vec));
        done += count;
    }
    rows
}

/// The log-probability of a token, and how far the likeliest one is ahead of it.
fn log_probability(logits: &[f32], token: u32) -> (f32, f32) {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
    (logits[token as usize] - most - sum.ln(), most - logits[token as usize])
}

/// How requests are answered.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Plain,
    Mod,
    AnswerOnly,
}

/// Answers three requests in one batch, and compares each token with what `exact`, a soup of the same
/// models in floats, gives when its weights are summed.
fn answers(
    soup: &Soup,
    exact: &Soup,
    mode: MergeMode,
    how: How,
    tolerance: f32,
) -> Result<(), String> {
    let engine = engine(soup, mode)?;
    let requests = coefficients().enumerate().map(|(index, c)| {
        let request = request(&prompt(index), &c, TOKENS);
        match how {
            How::Plain => request,
            How::Mod => combined(request, &[c.backbones[0] + c.sft, c.backbones[1]]),
            How::AnswerOnly => GenerateRequest { active_from: Some(FROM), ..request },
        }
    });
    let given = ask(&engine, requests.collect())?;
    let stats = engine.stats();
    let (fused, mixed) = (stats.fused_forwards > 0, stats.mixed_forwards > 0);
    match mode {
        MergeMode::Fused => assert!(fused && !mixed),
        MergeMode::Mixed => assert!(mixed && !fused),
        MergeMode::Auto => assert!(fused || mixed),
    }
    let one = |a: f64, b: f64| Coefficients { backbones: vec![a, b], sft: 1.0 - a - b };
    for ((index, c), answer) in coefficients().enumerate().zip(given) {
        let prompt = prompt(index);
        let tokens = [prompt.clone(), answer.ids()].concat();
        let rows = match how {
            How::Plain => logits(&[(&summed(exact, &c), &tokens)]),
            How::Mod => {
                let weights = [c.backbones[0] + c.sft, c.backbones[1]].map(|w| w as f32);
                let [left, right] = [one(1.0, 0.0), one(0.0, 1.0)]
                    .map(|c| logits(&[(&summed(exact, &c), &tokens)]));
                let sum = |(a, b): (&f32, &f32)| weights[0] * a + weights[1] * b;
                let rows = left.iter().zip(&right);
                rows.map(|(a, b)| a.iter().zip(b).map(sum).collect()).collect()
            }
            How::AnswerOnly => {
                let (before, after) = (summed(exact, &one(0.0, 0.0)), summed(exact, &c));
                logits(&[(&before, &tokens[..FROM]), (&after, &tokens[FROM..])])
            }
        };
        assert_eq!(answer.tokens.len(), TOKENS);
        for (at, token) in answer.tokens.iter().enumerate() {
            let (expected, behind) = log_probability(&rows[prompt.len() - 1 + at], token.id);
            let error = (token.logprob.unwrap() - expected).abs();
            if error > tolerance || behind > tolerance {
                return Err(format!("answer {index}, token {at}: off by {error}, {behind} behind"));
            }
        }
    }
    Ok(())
}

pub fn attempt(family: &Family, capability: &str) -> Result<(), String> {
    let plain = |backbones, mode| {
        let bench = Bench::new(family, None)?;
        let soup = bench.soup(backbones, Activation::All)?;
        answers(&soup, &soup, mode, How::Plain, TOLERANCE)
    };
    match capability {
        "import" => {
            let bench = Bench::new(family, None)?;
            let config = Checkpoint::open(&bench.base).map_err(|e| e.to_string())?;
            assert_eq!(config.config()["model_type"], family.model_type);
            Ok(())
        }
        "LoRA" => plain(Backbones::Adapters, MergeMode::Auto),
        "full" => plain(Backbones::Full, MergeMode::Auto),
        "mixed" | "fused" => {
            let mode = if capability == "mixed" { MergeMode::Mixed } else { MergeMode::Fused };
            plain(Backbones::Adapters, mode)?;
            plain(Backbones::Full, mode)
        }
        "quantised" => {
            let bench = Bench::new(family, Some(Quantise::To(BlockType::Q6)))?;
            let soup = bench.soup(Backbones::Adapters, Activation::All)?;
            let blocks = soup.base.tensors().values().filter(|t| t.dtype().blocks().is_some());
            assert!(blocks.count() >= 4, "{}: few matrices are in blocks", family.model_type);
            let base = widened(&bench.base, bench.models.path().join("wide"));
            let bench = Bench { base, ..bench };
            let exact = bench.soup(Backbones::Adapters, Activation::All)?;
            answers(&soup, &exact, MergeMode::Auto, How::Plain, ROUNDED)
        }
        "MOD" => {
            let bench = Bench::new(family, None)?;
            let soup = bench.soup(Backbones::Adapters, Activation::All)?;
            answers(&soup, &soup, MergeMode::Auto, How::Mod, 2.0 * TOLERANCE)
        }
        "answer-only" => {
            let bench = Bench::new(family, None)?;
            let soup = bench.soup(Backbones::Adapters, Activation::Answer)?;
            answers(&soup, &soup, MergeMode::Fused, How::AnswerOnly, TOLERANCE)?;
            answers(&soup, &soup, MergeMode::Mixed, How::AnswerOnly, TOLERANCE)
        }
        other => panic!("{other} is not tried here"),
    }
}
