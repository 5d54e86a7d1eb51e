//! The fused operations against the composed ones: same values, same gradients.

use candle_core::{Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{attention, composed, fused, tree::trees};
use crate::kernels::{AttentionShape, Batch, Result, Rope, Segment};

fn random(rng: &mut ChaCha8Rng, rows: usize, columns: usize) -> Var {
    let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-1.5..1.5)).collect();
    Var::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

/// Values and gradients of `f` at `inputs`, under a random weighting of the output.
fn run(inputs: &[&Var], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let tracked: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tracked).unwrap();
    let (rows, columns) = y.dims2().unwrap();
    let weights = random(&mut ChaCha8Rng::seed_from_u64(99), rows, columns);
    let grads = (&y * weights.as_tensor().detach()).unwrap().sum_all().unwrap().backward().unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let gradients = inputs.iter().map(|var| flat(grads.get(var).expect("a gradient")));
    std::iter::once(flat(&y)).chain(gradients).collect()
}

#[track_caller]
fn assert_same(fused: Vec<Vec<f32>>, composed: Vec<Vec<f32>>) {
    for (part, (fused, composed)) in fused.iter().zip(&composed).enumerate() {
        assert_eq!(fused.len(), composed.len());
        for (index, (a, b)) in fused.iter().zip(composed).enumerate() {
            assert!(
                (a - b).abs() <= 2e-5 * (1.0 + b.abs()),
                "part {part}[{index}]: {a}, expected {b}"
            );
        }
    }
}

#[test]
fn fused_norm_equals_composed_norm() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Whole rows, and heads of 8 columns as Qwen3's q/k norms.
    for group in [24, 8] {
        let x = random(&mut rng, 37, 24);
        let gain = random(&mut rng, 1, group).as_tensor().detach().flatten_all().unwrap();
        assert_same(
            run(&[&x], |x| fused::rms_norm(&x[0], &gain, 1e-5)),
            run(&[&x], |x| composed::rms_norm(&x[0], &gain, group, 1e-5)),
        );
    }
}

#[test]
fn fused_rotation_equals_composed_rotation() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let x = random(&mut rng, 5, 24);
    let rope = Rope { inv_freq: vec![1.0, 0.3, 0.1, 0.01], scale: 1.1 };
    let positions = [0, 1, 7, 0, 400];
    assert_same(
        run(&[&x], |x| fused::rope(&x[0], &positions, &rope)),
        run(&[&x], |x| composed::rope(&x[0], &positions, &rope)),
    );
}

#[test]
fn fused_gate_equals_composed_gate() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (gate, up) = (random(&mut rng, 19, 33), random(&mut rng, 19, 33));
    assert_same(
        run(&[&gate, &up], |x| fused::swiglu(&x[0], &x[1])),
        run(&[&gate, &up], |x| composed::swiglu(&x[0], &x[1])),
    );
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

#[test]
fn fused_attention_equals_composed_attention() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    // One segment ends exactly at a block of queries, one is longer than two, one is a single row,
    // two continue the one before them.
    let batch = batch(&[(64, 0), (1, 0), (150, 0), (7, 0), (70, 7), (9, 7)]);
    for window in [None, Some(1), Some(20), Some(70)] {
        let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 8, window };
        let rows = batch.tokens.len();
        let (q, k, v) =
            (random(&mut rng, rows, 48), random(&mut rng, rows, 16), random(&mut rng, rows, 16));
        let trees = trees(&batch).unwrap();
        assert_same(
            run(&[&q, &k, &v], |x| attention::fused(&x[0], &x[1], &x[2], shape, trees.clone())),
            run(&[&q, &k, &v], |x| composed::attention(&x[0], &x[1], &x[2], shape, &trees)),
        );
    }
}

#[test]
fn shared_rows_attend_as_copies_of_them_would() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let shared = batch(&[(40, 0), (50, 40), (1, 40), (12, 0)]);
    // The same with the 40 rows repeated: whole sequences of 90 and 41 rows.
    let copied = batch(&[(90, 0), (41, 0), (12, 0)]);
    let rows: Vec<u32> = (0..90).chain(0..40).chain(90..103).collect();
    let outputs: Vec<u32> = (0..90).chain(130..143).collect();
    let (rows, outputs) =
        [rows, outputs].map(|rows| Tensor::new(rows, &Device::Cpu).unwrap()).into();
    for window in [None, Some(1), Some(30), Some(60)] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, window };
        let (q, k, v) =
            (random(&mut rng, 103, 32), random(&mut rng, 103, 16), random(&mut rng, 103, 16));
        let copies = |x: &[Tensor]| -> Result<Tensor> {
            let x = x.iter().map(|x| Ok(x.index_select(&rows, 0)?)).collect::<Result<Vec<_>>>()?;
            let trees = trees(&copied)?;
            let y = composed::attention(&x[0], &x[1], &x[2], shape, &trees)?;
            Ok(y.index_select(&outputs, 0)?)
        };
        let trees = trees(&shared).unwrap();
        assert_same(
            run(&[&q, &k, &v], |x| attention::fused(&x[0], &x[1], &x[2], shape, trees.clone())),
            run(&[&q, &k, &v], copies),
        );
    }
}
