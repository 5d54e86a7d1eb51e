//! The decoder over the CPU kernels, against transformers' logits (tests/reference/
//! make_tiny_models.py) and against itself: cut and batched in every way, merged and mixed.

mod common;

use common::model::{Run, Sequence, family_names, load, run};
use ladle::kernels::{
    Dtype,
    cpu::{CpuKernels, Isa},
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
        for isa in Isa::available() {
            let kernels = CpuKernels::with_isa(2, isa);
            for (how, steps) in schedules(&lengths) {
                let setup = Run { steps: &steps, cache: Dtype::F32, coefficients: None };
                let got = run(&kernels, &decoder, &model.sequences, setup);
                for (got, Sequence { logits, .. }) in got.iter().zip(&model.sequences) {
                    let worst = worst(got, logits);
                    assert!(worst < TOLERANCE, "{name} {} {how}: off by {worst}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_sequence_gets_the_same_bits_alone_and_in_any_batch() {
    for (name, dtype) in [("smollm2", Dtype::Bf16), ("llama2", Dtype::F32), ("qwen3", Dtype::F16)] {
        let model = load(name).cast(dtype);
        let decoder = model.decoder();
        let lengths: Vec<_> = model.sequences.iter().map(|s| s.tokens.len()).collect();
        for isa in Isa::available() {
            let kernels = CpuKernels::with_isa(2, isa);
            let results: Vec<_> = schedules(&lengths)
                .iter()
                .map(|(_, steps)| {
                    let setup = Run { steps, cache: Dtype::Bf16, coefficients: None };
                    run(&kernels, &decoder, &model.sequences, setup)
                })
                .collect();
            for other in &results[1..] {
                assert!(*other == results[0], "{name} {}", isa.name());
            }
        }
    }
}

#[test]
fn narrow_weights_and_caches_stay_close_to_f32() {
    for name in family_names() {
        for (dtype, cache, tolerance) in [
            // The same values, stored narrow and wide: only the order of sums differs.
            (Dtype::Bf16, Dtype::F32, 1e-4),
            (Dtype::F16, Dtype::F32, 1e-4),
            (Dtype::Bf16, Dtype::Bf16, 0.1),
        ] {
            let narrow = load(name).cast(dtype);
            let wide = narrow.clone().cast(Dtype::F32);
            let steps = [vec![(0, 20), (1, 7)], vec![(0, 17), (1, 4), (2, 1)]];
            let kernels = CpuKernels::new(2);
            let of = |model: &common::model::Model, cache| {
                let setup = Run { steps: &steps, cache, coefficients: None };
                run(&kernels, &model.decoder(), &model.sequences, setup)
            };
            let (narrow, wide) = (of(&narrow, cache), of(&wide, Dtype::F32));
            for (narrow, wide) in narrow.iter().zip(&wide) {
                let worst = worst(narrow, wide);
                assert!(worst < tolerance, "{name} {dtype} cache {cache}: off by {worst}");
            }
        }
    }
}
