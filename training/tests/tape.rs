//! The kernels of the trainer against those composed of candle's operations: same values, same
//! gradients; and what dropout and recomputing promise.

use std::{collections::HashMap, sync::Arc};

use candle_core::{Device, Tensor, Var};
use ladle::kernels::{
    Activation, AttentionShape, Batch, ColumnScale, Kernels, Norm, Product, Result, Rope,
    RowCoefficients, Segment,
};
use ladle_training::{
    autograd::Differentiable,
    tape::{Dropout, KeysAndValues, Stored, Tape, Value},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Var {
    let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-1.5..1.5)).collect();
    Var::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A weighting of outputs, so that a gradient sees each of them.
fn weighting(len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(99);
    (0..len).map(|_| rng.random_range(-1.5..1.5)).collect()
}

/// Something computed with any kernels from activations and weights.
trait Computation {
    fn run<K: Kernels<Weight = Tensor, Cache: Default>>(
        &self,
        k: &K,
        x: Vec<K::Tensor>,
        w: &[Tensor],
    ) -> Result<K::Tensor>;
}

/// `onto + x Wᵀ`, or `x Wᵀ` alone.
fn product<K: Kernels>(
    k: &K,
    onto: Option<K::Tensor>,
    x: &K::Tensor,
    weight: &K::Weight,
) -> Result<K::Tensor> {
    Ok(k.products(vec![Product { x, weight, onto }])?.remove(0))
}

/// Values and gradients by candle.
fn composed(what: &impl Computation, inputs: &[&Var], weights: &[Tensor]) -> Vec<Vec<f32>> {
    let kernels = Differentiable::new(Device::Cpu);
    let tracked = inputs.iter().map(|var| var.as_tensor().clone()).collect();
    let y = what.run(&kernels, tracked, weights).unwrap();
    let weighting = Tensor::from_vec(weighting(y.elem_count()), y.dims(), &Device::Cpu).unwrap();
    let grads = (&y * weighting).unwrap().sum_all().unwrap().backward().unwrap();
    let inputs = inputs.iter().map(|var| var.as_tensor()).chain(tracked_weights(weights));
    let gradients = inputs.map(|input| flat(grads.get(input).expect("a gradient")));
    std::iter::once(flat(&y)).chain(gradients).collect()
}

fn tracked_weights(weights: &[Tensor]) -> impl Iterator<Item = &Tensor> {
    weights.iter().filter(|w| w.is_variable())
}

/// Values and gradients by the tape.
fn taped(
    tape: Tape,
    what: &impl Computation,
    inputs: &[&Var],
    weights: &[Tensor],
) -> Vec<Vec<f32>> {
    let leaves: Vec<Value> = inputs
        .iter()
        .map(|var| {
            let (rows, columns) = var.dims2().unwrap();
            tape.leaf(flat(var), rows, columns)
        })
        .collect();
    let y = what.run(&tape, leaves.clone(), weights).unwrap();
    let mut gradients = tape.backward(&y, weighting(y.data().len())).unwrap();
    let mut all = vec![y.data().to_vec()];
    all.extend(leaves.iter().map(|leaf| gradients.leaf(leaf).expect("a gradient")));
    all.extend(tracked_weights(weights).map(|w| gradients.weight(w).expect("a gradient")));
    all
}

#[track_caller]
fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(got.len(), expected.len());
    for (part, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len());
        for (index, (a, b)) in got.iter().zip(expected).enumerate() {
            assert!(
                (a - b).abs() <= 2e-5 * (1.0 + b.abs()),
                "part {part}[{index}]: {a}, expected {b}"
            );
        }
    }
}

#[track_caller]
fn assert_same(what: &impl Computation, inputs: &[&Var], weights: &[Tensor]) {
    let tape = Tape::recording(None);
    assert_close(&taped(tape, what, inputs, weights), &composed(what, inputs, weights));
}

/// Defines a computation as a closure would be, which cannot be generic over kernels.
macro_rules! computation {
    ($name:ident { $($field:ident: $type:ty),* }, |$self:ident, $k:ident, $x:ident, $w:ident| $body:expr) => {
        struct $name { $($field: $type),* }
        impl Computation for $name {
            fn run<K: Kernels<Weight = Tensor, Cache: Default>>(
                &$self,
                $k: &K,
                $x: Vec<K::Tensor>,
                $w: &[Tensor],
            ) -> Result<K::Tensor> {
                $body
            }
        }
    };
}

/// A norm whose gains are stored less one, as Gemma's.
const NORM: Norm = Norm { eps: 1e-5, shift: 1.0 };

#[test]
fn norms() {
    computation!(Norm {}, |self, k, x, w| k.rms_norm(&x[0], &w[0], NORM));
    computation!(NormRows {}, |self, k, x, w| {
        k.rms_norm_rows(&x[0], &k.broadcast(&w[0], 37)?, NORM)
    });
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Whole rows, and heads of 8 columns as Qwen3's q/k norms.
    for group in [24, 8] {
        let x = random(&mut rng, 37, 24);
        let gain = random(&mut rng, 1, group).as_tensor().detach().flatten_all().unwrap();
        assert_same(&Norm {}, &[&x], std::slice::from_ref(&gain));
        assert_same(&NormRows {}, &[&x], &[gain]);
    }
}

#[test]
fn rotation() {
    computation!(Rotate { positions: Vec<u32>, rope: Rope }, |self, k, x, _w| {
        k.rope(x[0].clone(), &self.positions, &self.rope)
    });
    let rope = Rope { head_dim: 8, inv_freq: vec![1.0, 0.3, 0.1, 0.01], scale: 1.1 };
    let x = random(&mut ChaCha8Rng::seed_from_u64(2), 5, 24);
    let part = Rope { inv_freq: vec![1.0, 0.3], ..rope.clone() };
    for rope in [rope, part] {
        assert_same(&Rotate { positions: vec![0, 1, 7, 0, 400], rope }, &[&x], &[]);
    }
}

#[test]
fn gate_and_sums() {
    computation!(Gate { activation: Activation }, |self, k, x, w| {
        let sum = k.add(x[0].clone(), &k.bias_add(x[1].clone(), &w[0])?)?;
        let gated = k.gated(self.activation, x[0].clone(), &sum)?;
        let part = k.select_columns(&gated, 3..20)?;
        let capped = k.soft_cap(k.select_rows(&part, &[0, 3, 3, 18])?, 0.5)?;
        let more = k.select_rows(&part, &[7, 1])?;
        k.add_to_rows(capped, &[3, 0], &more)
    });
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (gate, up) = (random(&mut rng, 19, 33), random(&mut rng, 19, 33));
    let bias = random(&mut rng, 1, 33).as_tensor().detach().flatten_all().unwrap();
    for activation in [Activation::Silu, Activation::Gelu] {
        assert_same(&Gate { activation }, &[&gate, &up], std::slice::from_ref(&bias));
    }
}

#[test]
fn products_with_frozen_and_tracked_weights_and_scales() {
    computation!(Products {}, |self, k, x, w| {
        let coefficients =
            RowCoefficients { terms: 2, values: (0..26).map(|i| 0.1 * i as f32).collect() };
        let inner = product(k, None, &x[0], &w[1])?;
        let scales = [
            ColumnScale { columns: 0..2, term: None, factor: 3.0 },
            ColumnScale { columns: 1..4, term: Some(1), factor: 0.5 },
        ];
        let inner = k.scale_columns(inner, &scales, Some(&coefficients))?;
        let frozen = product(k, None, &x[0], &w[0])?;
        let sum = product(k, Some(frozen), &inner, &w[2])?;
        k.scale_rows(product(k, Some(sum), &x[0], &w[0])?, &coefficients.column(0))
    });
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let x = random(&mut rng, 13, 40);
    let frozen = random(&mut rng, 24, 40).as_tensor().detach();
    let (down, up) = (random(&mut rng, 4, 40), random(&mut rng, 24, 4));
    let weights = [frozen, down.as_tensor().clone(), up.as_tensor().clone()];
    assert_same(&Products {}, &[&x], &weights);
}

/// A batch of segments (rows, tokens of the segment before that they continue).
fn batch(segments: &[(usize, usize)]) -> Batch {
    let mut batch = Batch::default();
    for &(length, cached) in segments {
        let start = batch.tokens.len();
        batch.tokens.extend(vec![0; length]);
        let rows = start..start + length;
        batch.segments.push(Segment { rows, cached, blocks: Vec::new() });
    }
    batch
}

computation!(Attend { shape: AttentionShape, batch: Batch }, |self, k, x, _w| {
    let [q, key, v] = [0, 1, 2].map(|i: usize| x[i].clone());
    k.attention(q, key, v, 0, self.shape, &self.batch, &mut Default::default())
});

#[test]
fn attention() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    // One segment ends exactly at a block of queries, one is longer than two, one is a single row,
    // two continue the one before them.
    let batch = batch(&[(64, 0), (1, 0), (150, 0), (7, 0), (70, 7), (9, 7)]);
    for (window, cap) in [(None, None), (Some(1), None), (Some(20), Some(0.3)), (Some(70), None)] {
        let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 8, window, cap };
        let rows = batch.tokens.len();
        let (q, k, v) =
            (random(&mut rng, rows, 48), random(&mut rng, rows, 16), random(&mut rng, rows, 16));
        assert_same(&Attend { shape, batch: batch.clone() }, &[&q, &k, &v], &[]);
    }
}

#[test]
fn shared_rows_attend_as_copies_of_them_would() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let shared = batch(&[(40, 0), (50, 40), (1, 40), (12, 0)]);
    // The same with the 40 rows repeated: whole sequences of 90 and 41 rows.
    let copied = batch(&[(90, 0), (41, 0), (12, 0)]);
    computation!(Copies { attend: Attend }, |self, k, x, w| {
        let rows: Vec<usize> = (0..90).chain(0..40).chain(90..103).collect();
        let outputs: Vec<usize> = (0..90).chain(130..143).collect();
        let x = x.iter().map(|x| k.select_rows(x, &rows)).collect::<Result<_>>()?;
        k.select_rows(&self.attend.run(k, x, w)?, &outputs)
    });
    for window in [None, Some(1), Some(30), Some(60)] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, window, cap: None };
        let (q, k, v) =
            (random(&mut rng, 103, 32), random(&mut rng, 103, 16), random(&mut rng, 103, 16));
        let copies = Copies { attend: Attend { shape, batch: copied.clone() } };
        let one = Attend { shape, batch: shared.clone() };
        let tape = Tape::recording(None);
        assert_close(
            &taped(tape, &one, &[&q, &k, &v], &[]),
            &composed(&copies, &[&q, &k, &v], &[]),
        );
    }
}

#[test]
fn stored_rows_attend_as_rows_of_the_batch_would() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    // 40 stored rows, 7 that two continuations share, and a tree without stored rows.
    let whole = batch(&[(47, 0), (70, 47), (1, 47), (12, 0)]);
    let mut learned = batch(&[(7, 40), (70, 47), (1, 47), (12, 0)]);
    learned.segments[0].blocks = vec![1];
    computation!(After { attend: Attend }, |self, k, x, w| {
        let y = self.attend.run(k, x, w)?;
        k.select_rows(&y, &(40..130).collect::<Vec<_>>())
    });
    for window in [None, Some(1), Some(9), Some(45), Some(60)] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, window, cap: None };
        let all = [32, 16, 16].map(|width| random(&mut rng, 130, width));
        let expected = After { attend: Attend { shape, batch: whole.clone() } };
        let expected = composed(&expected, &all.each_ref(), &[]);
        let widths = [32, 32, 16, 16];
        let after = |(part, width): (&Vec<f32>, usize)| part[part.len() - 90 * width..].to_vec();
        let expected: Vec<_> = expected.iter().zip(widths).map(after).collect();

        let tape = Tape::recording(None);
        let leaves = all.each_ref().map(|var| {
            let values = flat(var);
            let width = values.len() / 130;
            tape.leaf(values[40 * width..].to_vec(), 90, width)
        });
        let stored = [1, 2].map(|input: usize| Arc::new(flat(&all[input])[..40 * 16].to_vec()));
        let none = [Arc::default(), Arc::default()];
        let stored = Arc::new(KeysAndValues::of([none, stored]));
        let mut cache = Stored { given: vec![Arc::default(), stored], ..Stored::default() };
        let [q, k, v] = leaves.clone();
        let y = tape.attention(q, k, v, 1, shape, &learned, &mut cache).unwrap();
        let mut gradients = tape.backward(&y, weighting(90 * 32)).unwrap();
        let mut got = vec![y.data().to_vec()];
        got.extend(leaves.iter().map(|leaf| gradients.leaf(leaf).unwrap()));
        assert_close(&got, &expected);
    }
    // Rows that are not stored, and kernels that store none.
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, window: None, cap: None };
    let attend = Attend { shape, batch: learned };
    let tape = Tape::idle(None);
    let x = [32, 16, 16].map(|width| Value::constant(vec![0.0; 90 * width], 90, width));
    let error = attend.run(&tape, x.to_vec(), &[]).unwrap_err().to_string();
    assert_eq!(error, "attention: stored keys is 0, expected 640");
    let x = [32, 16, 16].map(|width| random(&mut rng, 90, width).as_tensor().detach());
    let error = attend.run(&Differentiable::new(Device::Cpu), x.to_vec(), &[]).unwrap_err();
    assert_eq!(error.to_string(), "attention: stored rows is 40, expected 0");
}

computation!(Adapted {}, |self, k, x, w| {
    let inner = product(k, None, &x[0], &w[1])?;
    product(k, Some(product(k, None, &x[0], &w[0])?), &inner, &w[2])
});

/// A frozen weight `[24, 40]` and the factors of rank 4.
fn adapted(rng: &mut ChaCha8Rng) -> [Tensor; 3] {
    let frozen = random(rng, 24, 40).as_tensor().detach();
    [frozen, random(rng, 4, 40).into_inner(), random(rng, 24, 4).into_inner()]
}

fn dropout(rate: f64, draw: u64, down: &Tensor) -> Dropout {
    Dropout::new(rate, draw, Arc::new(HashMap::from([(down.id(), 5)])))
}

#[test]
fn dropout_drops_the_share_asked_for_and_scales_the_rest() {
    computation!(Down {}, |self, k, x, w| product(k, None, &x[0], &w[0]));
    // The identity shows the input that the projection sees.
    let identity: Vec<f32> = (0..64 * 64).map(|i| f32::from(u8::from(i % 65 == 0))).collect();
    let identity = Var::from_vec(identity, (64, 64), &Device::Cpu).unwrap().into_inner();
    let x = random(&mut ChaCha8Rng::seed_from_u64(7), 999, 64);
    for (rate, draw) in [(0.1, 1), (0.5, 2)] {
        let run = |draw| {
            let tape = Tape::recording(Some(dropout(rate, draw, &identity)));
            taped(tape, &Down {}, &[&x], std::slice::from_ref(&identity))
        };
        let [y, grad, _] = run(draw).try_into().unwrap();
        let mut dropped = 0;
        let inputs = flat(&x).into_iter().zip(weighting(y.len()));
        for ((y, grad), (x, weight)) in y.iter().zip(&grad).zip(inputs) {
            // The gradient has the mask of the values.
            let scale = if *y == 0.0 { 0.0 } else { 1.0 / (1.0 - rate as f32) };
            dropped += usize::from(*y == 0.0);
            assert!((y - x * scale).abs() <= 1e-5, "{y}, expected {x} · {scale}");
            assert!((grad - weight * scale).abs() <= 1e-5);
        }
        // Four standard deviations of the binomial distribution.
        let (count, deviation) = (y.len() as f64, (y.len() as f64 * rate * (1.0 - rate)).sqrt());
        assert!((dropped as f64 - count * rate).abs() < 4.0 * deviation, "{dropped} of {count}");
        assert_eq!(y, run(draw)[0], "the same draw");
        assert_ne!(y, run(draw + 1)[0], "another draw");
    }
}

#[test]
fn dropout_leaves_the_frozen_product_and_the_mean_alone() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (weights, x) = (adapted(&mut rng), random(&mut rng, 3, 40));
    let run = |tape| taped(tape, &Adapted {}, &[&x], &weights);
    let whole = run(Tape::recording(None));
    let draws = 4000;
    let mut mean: Vec<Vec<f64>> = whole.iter().map(|part| vec![0.0; part.len()]).collect();
    for draw in 0..draws {
        let parts = run(Tape::recording(Some(dropout(0.3, draw, &weights[1]))));
        for (mean, value) in mean.iter_mut().flatten().zip(parts.iter().flatten()) {
            *mean += f64::from(*value) / draws as f64;
        }
    }
    // Output and gradients of x and A are linear in the mask, whose mean is 1; so is that of B here.
    for (part, (mean, whole)) in mean.iter().zip(&whole).enumerate() {
        let size = (whole.iter().map(|x| x * x).sum::<f32>() / whole.len() as f32).sqrt();
        for (mean, whole) in mean.iter().zip(whole) {
            let error = (mean - f64::from(*whole)).abs();
            assert!(error < 0.08 * f64::from(size), "part {part}: {mean}, expected {whole}");
        }
    }
    // Everything dropped but a billionth: the frozen product is left.
    let zero = Tensor::zeros((4, 40), candle_core::DType::F32, &Device::Cpu).unwrap();
    let frozen = [weights[0].clone(), zero, weights[2].clone()];
    let frozen = taped(Tape::recording(None), &Adapted {}, &[&x], &frozen);
    let all = run(Tape::recording(Some(dropout(1.0 - 1e-9, 1, &weights[1]))));
    assert_eq!(all[0], frozen[0]);
}

#[test]
fn recomputing_gives_the_same_bits() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (weights, x) = (adapted(&mut rng), random(&mut rng, 30, 40));
    let run = |recompute: bool| {
        let tape = Tape::recording(Some(dropout(0.3, 1, &weights[1])));
        let leaf = tape.leaf(flat(&x), 30, 40);
        let layer = {
            let weights = weights.clone();
            move |tape: &Tape, x: Value| {
                let y = Adapted {}.run(tape, vec![x.clone()], &weights)?;
                tape.gated(Activation::Silu, y.clone(), &y)
            }
        };
        let y = if recompute {
            tape.recomputed(leaf.clone(), layer).unwrap()
        } else {
            layer(&tape, leaf.clone()).unwrap()
        };
        let mut gradients = tape.backward(&y, weighting(y.data().len())).unwrap();
        let factors = weights[1..].iter().map(|w| gradients.weight(w).unwrap()).collect::<Vec<_>>();
        (y.data().to_vec(), gradients.leaf(&leaf).unwrap(), factors)
    };
    assert_eq!(run(true), run(false));
}
