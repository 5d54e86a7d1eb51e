//! The decoder over the CPU kernels, against transformers' logits (tests/reference/
//! make_tiny_models.py) and against itself: cut and batched in every way, merged and mixed.

mod common;

use common::model::{Run, Sequence, dense_names, family_names, load, run};
use ladle::{
    kernels::{
        Batch, ColumnScale, Dtype, HostTensor, KvShape, RowCoefficients, Segment,
        cpu::{CpuKernels, KvPool, panels},
    },
    model::linear::{Dense, LowRank, Parameter},
    simd::Isa,
};

const TOLERANCE: f32 = 1e-4;

/// Every way of feeding three sequences: steps of (sequence, tokens) pairs.
fn schedules(lengths: &[usize]) -> Vec<(&'static str, Vec<Vec<(usize, usize)>>)> {
    let whole = lengths.iter().copied().enumerate().map(|one| vec![one]).collect();
    let mut chunked = Vec::new();
    for (sequence, &length) in lengths.iter().enumerate() {
        let (mut left, mut size) = (length, 1);
        while left > 0 {
            let now = left.min(size);
            chunked.push(vec![(sequence, now)]);
            left -= now;
            size = size * 2 + 1;
        }
    }
    let single = (0..lengths.len())
        .flat_map(|sequence| vec![vec![(sequence, 1)]; lengths[sequence]])
        .collect();
    // Sequence i joins at step i and gives i + 1, i + 2, … tokens a step until it ends.
    let mut ragged = Vec::new();
    let mut left = lengths.to_vec();
    for step in 0.. {
        let mut batch = Vec::new();
        for (sequence, left) in left.iter_mut().enumerate().take(step + 1) {
            let now = (*left).min(sequence + 1 + step % 5);
            if now > 0 {
                batch.push((sequence, now));
            }
            *left -= now;
        }
        if batch.is_empty() {
            break;
        }
        ragged.push(batch);
    }
    vec![("whole", whole), ("chunked", chunked), ("single", single), ("ragged", ragged)]
}

fn worst(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let pairs = got.iter().zip(expected).flat_map(|(a, b)| a.iter().zip(b));
    // A NaN compares false with everything, so it must not pass for a small difference.
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |max, d| if d <= max { max } else { d })
}

#[test]
fn logits_equal_transformers_however_the_sequences_are_fed() {
    for name in family_names() {
        let model = load(name);
        let decoder = model.decoder();
        let lengths: Vec<_> = model.sequences.iter().map(|s| s.tokens.len()).collect();
        for &isa in Isa::available() {
            let kernels = CpuKernels::with_isa(2, isa);
            for (how, steps) in schedules(&lengths) {
                let setup = Run { steps: &steps, cache: Dtype::F32, coefficients: None };
                let got = run(&kernels, &decoder, &model.sequences, setup);
                for (got, Sequence { logits, .. }) in got.iter().zip(&model.sequences) {
                    let worst = worst(got, logits);
                    assert!(worst < TOLERANCE, "{name} {} {how}: off by {worst}", isa);
                }
            }
        }
    }
}

#[test]
fn a_sequence_gets_the_same_bits_alone_and_in_any_batch() {
    for (name, dtype) in [
        ("smollm2", Dtype::Bf16),
        ("llama2", Dtype::F32),
        ("qwen3", Dtype::F16),
        ("qwen3-moe", Dtype::Bf16),
        ("gemma2", Dtype::F32),
        ("phi4-mini", Dtype::Bf16),
    ] {
        let model = load(name).cast(dtype);
        let decoder = model.decoder();
        let lengths: Vec<_> = model.sequences.iter().map(|s| s.tokens.len()).collect();
        for &isa in Isa::available() {
            let kernels = CpuKernels::with_isa(2, isa);
            let results: Vec<_> = schedules(&lengths)
                .iter()
                .map(|(_, steps)| {
                    let setup = Run { steps, cache: Dtype::Bf16, coefficients: None };
                    run(&kernels, &decoder, &model.sequences, setup)
                })
                .collect();
            for other in &results[1..] {
                assert!(*other == results[0], "{name} {}", isa);
            }
        }
    }
}

#[test]
fn narrow_weights_and_caches_stay_close_to_f32() {
    for (name, isa) in dense_names()
        .flat_map(|name| [Isa::chosen(), Isa::chosen().vectors()].map(|isa| (name, isa)))
    {
        // Values stored narrow or wide differ in the order of sums only, unless inputs are rounded.
        let products = if isa.multiplies_bf16() { 0.1 } else { 1e-4 };
        for (dtype, cache, tolerance) in [
            (Dtype::Bf16, Dtype::F32, products),
            (Dtype::F16, Dtype::F32, 1e-4),
            (Dtype::Bf16, Dtype::Bf16, 0.1 + products),
        ] {
            let narrow = load(name).cast(dtype);
            let wide = narrow.clone().cast(Dtype::F32);
            let steps = [vec![(0, 20), (1, 7)], vec![(0, 17), (1, 4), (2, 1)]];
            let kernels = CpuKernels::with_isa(2, isa);
            let of = |model: &common::model::Model, cache| {
                let setup = Run { steps: &steps, cache, coefficients: None };
                run(&kernels, &model.decoder(), &model.sequences, setup)
            };
            let (narrow, wide) = (of(&narrow, cache), of(&wide, Dtype::F32));
            for (narrow, wide) in narrow.iter().zip(&wide) {
                let worst = worst(narrow, wide);
                assert!(worst < tolerance, "{name} {isa} {dtype} cache {cache}: off by {worst}");
            }
        }
    }
}

/// Coefficients over three terms, as a soup of three backbones has them: extrapolated, negative,
/// one-hot, ordinary.
const COEFFICIENTS: [[f32; 3]; 3] = [[1.7, -0.9, 0.2], [0.0, 1.0, 0.0], [0.25, 0.35, 0.4]];

/// A random tensor of the same shape as `like`, of about `size` times its values.
fn variation(like: &HostTensor, size: f32, seed: u64) -> HostTensor {
    let mut state = seed;
    let values: Vec<f32> = like
        .to_f32()
        .iter()
        .map(|value| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let noise = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            value * (1.0 + size * noise)
        })
        .collect();
    HostTensor::from_f32(&values, like.shape().to_vec()).unwrap()
}

fn weighted_sum(terms: &[(f32, &HostTensor)]) -> HostTensor {
    let mut sum = vec![0.0f64; terms[0].1.len()];
    for (coefficient, tensor) in terms {
        for (sum, value) in sum.iter_mut().zip(tensor.to_f32()) {
            *sum += f64::from(*coefficient) * f64::from(value);
        }
    }
    let sum: Vec<f32> = sum.iter().map(|v| *v as f32).collect();
    HostTensor::from_f32(&sum, terms[0].1.shape().to_vec()).unwrap()
}

/// One mixed batch of three sequences with different coefficients against three merged models.
fn mixed_equals_merged(
    name: &str,
    mixed: &dyn Fn(&str, &HostTensor) -> Parameter<HostTensor>,
    merged: &dyn Fn(&str, &HostTensor, [f32; 3]) -> HostTensor,
) {
    let model = load(name);
    let lengths: Vec<_> = model.sequences.iter().map(|s| s.tokens.len()).collect();
    let kernels = CpuKernels::new(2);
    let mixed = model.decoder_with(mixed);
    let merged: Vec<_> = COEFFICIENTS
        .iter()
        .map(|c| model.decoder_with(|name, w| Parameter::merged(merged(name, w, *c))))
        .collect();
    let coefficients: Vec<_> = COEFFICIENTS.iter().map(|c| c.to_vec()).collect();
    for (how, steps) in schedules(&lengths) {
        let mut setup = Run { steps: &steps, cache: Dtype::F32, coefficients: None };
        let expected: Vec<_> =
            merged.iter().map(|decoder| run(&kernels, decoder, &model.sequences, setup)).collect();
        setup.coefficients = Some(&coefficients);
        let got = run(&kernels, &mixed, &model.sequences, setup);
        for (i, got) in got.iter().enumerate() {
            let worst = worst(got, &expected[i][i]);
            assert!(worst < TOLERANCE, "{name} {how} sequence {i}: off by {worst}");
            if i > 0 {
                let other = self::worst(got, &expected[0][i]);
                assert!(other > 100.0 * TOLERANCE, "{name}: coefficients make no difference");
            }
        }
    }
}

#[test]
fn full_rank_mixed_rows_equal_the_merged_models() {
    for name in family_names() {
        let backbones = |name: &str, w: &HostTensor| {
            let seed = name.bytes().fold(7, |seed: u64, b| seed * 31 + u64::from(b));
            [1, 2, 3].map(|i| variation(w, 0.3, seed + i))
        };
        mixed_equals_merged(
            name,
            &|name, w| {
                let [a, b, c] = backbones(name, w);
                Parameter {
                    first: Dense { weight: a, term: Some(0) },
                    rest: vec![
                        Dense { weight: b, term: Some(1) },
                        Dense { weight: c, term: Some(2) },
                    ],
                    low_rank: None,
                }
            },
            &|name, w, c| {
                let backbones = backbones(name, w);
                let terms: Vec<_> = c.into_iter().zip(&backbones).collect();
                weighted_sum(&terms)
            },
        );
    }
}

#[test]
fn low_rank_mixed_rows_equal_the_merged_models() {
    // Three terms of ranks 3, 5, 2 with their own scales, on every linear layer of the blocks.
    const RANKS: [usize; 3] = [3, 5, 2];
    const FACTORS: [f32; 3] = [2.0, 0.5, 1.0];
    let factor = |name: &str, shape: Vec<usize>| {
        let seed = name.bytes().fold(11, |seed: u64, b| seed * 31 + u64::from(b));
        let ones = HostTensor::from_f32(&vec![0.05; shape.iter().product()], shape).unwrap();
        // Values of either sign: one noise less another.
        weighted_sum(&[(1.0, &variation(&ones, 4.0, seed)), (-1.0, &variation(&ones, 4.0, !seed))])
    };
    for name in family_names() {
        let total: usize = RANKS.iter().sum();
        let factors = |name: &str, w: &HostTensor| {
            let (out, inputs) = (w.shape()[0], w.shape()[1]);
            let down = factor(&format!("{name}.A"), vec![total, inputs]);
            (down, factor(&format!("{name}.B"), vec![out, total]))
        };
        let adapted =
            |name: &str| name.ends_with("_proj.weight") || name.contains(".block_sparse_moe.");
        let first = |term: usize| RANKS[..term].iter().sum::<usize>();
        mixed_equals_merged(
            name,
            &|name, w| {
                let mut parameter = Parameter::merged(w.clone());
                if adapted(name) {
                    let (down, up) = factors(name, w);
                    let scales = (0..3)
                        .map(|term| ColumnScale {
                            columns: first(term)..first(term) + RANKS[term],
                            term: Some(term),
                            factor: FACTORS[term],
                        })
                        .collect();
                    parameter.low_rank = Some(LowRank { down, up: panels(&up).unwrap(), scales });
                }
                parameter
            },
            &|name, w, c| {
                if !adapted(name) {
                    return w.clone();
                }
                let (down, up) = factors(name, w);
                let (down, up, mut sum) = (down.to_f32(), up.to_f32(), w.to_f32());
                let inputs = w.shape()[1];
                for (at, sum) in sum.iter_mut().enumerate() {
                    let (out, input) = (at / inputs, at % inputs);
                    for term in 0..3 {
                        for rank in first(term)..first(term) + RANKS[term] {
                            let product = up[out * total + rank] * down[rank * inputs + input];
                            *sum += c[term] * FACTORS[term] * product;
                        }
                    }
                }
                HostTensor::from_f32(&sum, w.shape().to_vec()).unwrap()
            },
        );
    }
}

#[test]
fn a_mixed_parameter_without_its_coefficients_is_refused() {
    let model = load("llama3");
    let decoder = model.decoder_with(|_, w| Parameter {
        first: Dense { weight: w.clone(), term: Some(2) },
        rest: Vec::new(),
        low_rank: None,
    });
    let kernels = CpuKernels::new(1);
    let shape =
        KvShape { layers: 2, kv_heads: 2, head_dim: 16, blocks: 1, dtype: Dtype::F32.into() };
    for terms in [None, Some(2)] {
        let batch = Batch {
            tokens: vec![1],
            positions: vec![0],
            segments: vec![Segment { rows: 0..1, cached: 0, blocks: vec![0] }],
            outputs: vec![0],
            coefficients: terms.map(|terms| RowCoefficients { terms, values: vec![1.0; terms] }),
            ..Batch::default()
        };
        let mut cache = KvPool::new(shape).unwrap();
        let error = decoder.forward(&kernels, &batch, &mut cache).unwrap_err();
        let expected = format!(
            "mixed parameter: number of coefficients per row (at least) is {}, expected 3",
            terms.unwrap_or(0)
        );
        assert_eq!(error.to_string(), expected);
    }
}
