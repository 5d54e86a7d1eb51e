//! The CPU kernels through their public door, on every instruction set of the machine, against
//! plain f64 arithmetic.

mod common;

use common::model::cast;
use half::bf16;
use ladle::{
    kernels::{
        AttentionShape, Batch, BlockType, ColumnScale, Dtype, HostTensor, KV_BLOCK, KernelError,
        Kernels, KvDtype, KvShape, Product, Rope, RowCoefficients, ScaledProduct, Segment,
        cpu::{CpuKernels, KvPool, panels},
    },
    simd::{Bf16Products, Isa},
};
use proptest::prelude::*;

/// Values in −1..1, different for each seed.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn weight(dtype: Dtype, shape: [usize; 2], seed: u64) -> HostTensor {
    let values = random(shape[0] * shape[1], seed);
    cast(&HostTensor::from_f32(&values, shape.to_vec()).unwrap(), dtype)
}

/// Every set of the machine, and the models of the products of bf16 where it takes few `products`.
fn sets(products: usize) -> Vec<Isa> {
    let models = [Isa::PORTABLE_BF16, Isa::PORTABLE_TILES].into_iter();
    let models = models.filter(|_| products < 60_000);
    Isa::available().iter().copied().chain(models).collect()
}

/// Inputs as a set takes them beside weights of `dtype`: rounded to bf16 where it multiplies pairs of
/// bf16.
fn taken(isa: Isa, dtype: Dtype, x: &[f32]) -> Vec<f32> {
    let pairs = isa.multiplies_bf16() && dtype == Dtype::Bf16;
    x.iter().map(|&x| if pairs { bf16::from_f32(x).to_f32() } else { x }).collect()
}

fn dtypes() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)]
}

/// A row of a head as int8 keeps it.
fn int8(row: &[f32]) -> Vec<f32> {
    let scale = row.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
    row.iter().map(|x| scale * (x * (1.0 / scale)).round_ties_even()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn products_are_right_to_f32_rounding_and_rows_do_not_feel_each_other(
        rows in 1usize..40,
        inputs in prop_oneof![1usize..80, 760usize..1700],
        outputs in 1usize..75,
        dtype in dtypes(),
        seed in any::<u64>(),
        add in any::<bool>(),
    ) {
        let w = weight(dtype, [outputs, inputs], seed);
        let (x, y) = (random(rows * inputs, !seed), random(rows * outputs, seed ^ 77));
        let wide = w.to_f32();
        for isa in sets(rows * inputs * outputs) {
            let kernels = CpuKernels::with_isa(2, isa);
            let product = |rows: std::ops::Range<usize>| {
                let part = &x[rows.start * inputs..rows.end * inputs];
                let x = kernels.tensor(rows.len(), part).unwrap();
                let y = &y[rows.start * outputs..rows.end * outputs];
                let onto = add.then(|| kernels.tensor(rows.len(), y).unwrap());
                kernels.products(vec![Product { x: &x, weight: &w, onto }]).unwrap().remove(0)
            };
            let got = product(0..rows);
            let mut on_slices = if add { y.clone() } else { vec![f32::NAN; y.len()] };
            kernels.linear(&x, &w, &mut on_slices, add).unwrap();
            prop_assert_eq!(got.data(), &on_slices[..], "{}", isa);
            prop_assert!(kernels.linear(&x, &w, &mut on_slices[1..], add).is_err());
            let x = taken(isa, dtype, &x);
            for (t, got) in got.data().chunks_exact(outputs).enumerate() {
                for (o, got) in got.iter().enumerate() {
                    let x = &x[t * inputs..(t + 1) * inputs];
                    let w = &wide[o * inputs..(o + 1) * inputs];
                    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let size: f64 = terms.clone().map(f64::abs).sum::<f64>() + 1.0;
                    let expected =
                        terms.sum::<f64>() + if add { f64::from(y[t * outputs + o]) } else { 0.0 };
                    let error = (f64::from(*got) - expected).abs();
                    prop_assert!(error < 2e-6 * size, "{}: {got} for {expected}", isa);
                }
            }
            for t in [0, rows / 2, rows - 1] {
                let alone = product(t..t + 1);
                prop_assert_eq!(alone.data(), got.row(t).unwrap(), "{}", isa);
            }
        }
    }

    #[test]
    fn low_rank_products_are_right_to_f32_rounding_and_rows_do_not_feel_each_other(
        rows in prop_oneof![1usize..20, 190usize..200],
        ranks in 1usize..50,
        outputs in 1usize..200,
        dtype in dtypes(),
        seed in any::<u64>(),
    ) {
        let b = weight(dtype, [outputs, ranks], seed);
        let (x, y) = (random(rows * ranks, !seed), random(rows * outputs, seed ^ 77));
        let c = RowCoefficients { terms: 2, values: random(rows * 2, seed ^ 5) };
        let split = ranks / 3;
        let scales = [
            ColumnScale { columns: 0..split, term: Some(1), factor: 2.0 },
            ColumnScale { columns: split..ranks, term: Some(0), factor: -0.5 },
        ];
        let (wide, stored) = (b.to_f32(), panels(&b).unwrap());
        for isa in sets(rows * ranks * outputs) {
            let kernels = CpuKernels::with_isa(2, isa);
            let product = |rows: std::ops::Range<usize>| {
                let part = |of: &[f32], width: usize| {
                    kernels.tensor(rows.len(), &of[rows.start * width..rows.end * width]).unwrap()
                };
                let c = c.select(&rows.clone().collect::<Vec<_>>());
                let product = ScaledProduct {
                    x: part(&x, ranks),
                    scales: &scales,
                    weight: &stored,
                    onto: part(&y, outputs),
                };
                kernels.scaled_products(vec![product], Some(&c)).unwrap().remove(0)
            };
            let got = product(0..rows);
            let scaled = |t: usize, r: usize| {
                let (term, factor) = if r < split { (1, 2.0) } else { (0, -0.5) };
                x[t * ranks + r] * (factor * c.values[t * 2 + term])
            };
            let scaled: Vec<f32> =
                (0..rows * ranks).map(|i| scaled(i / ranks, i % ranks)).collect();
            let x = taken(isa, dtype, &scaled);
            for (t, got) in got.data().chunks_exact(outputs).enumerate() {
                for (o, got) in got.iter().enumerate() {
                    let terms = (0..ranks)
                        .map(|r| f64::from(x[t * ranks + r]) * f64::from(wide[o * ranks + r]));
                    let size: f64 = terms.clone().map(f64::abs).sum::<f64>() + 1.0;
                    let expected = terms.sum::<f64>() + f64::from(y[t * outputs + o]);
                    let error = (f64::from(*got) - expected).abs();
                    prop_assert!(error < 2e-6 * size, "{}: {got} for {expected}", isa);
                }
            }
            for t in [0, rows / 2, rows - 1] {
                let alone = product(t..t + 1);
                prop_assert_eq!(alone.data(), got.row(t).unwrap(), "{}", isa);
            }
        }
    }

    #[test]
    fn quantised_products_are_right_up_to_the_rounding_of_their_inputs(
        rows in 1usize..30,
        blocks in 1usize..60,
        groups in 1usize..6,
        kind in prop::sample::select(&BlockType::ALL[..]),
        exact in any::<bool>(),
        seed in any::<u64>(),
        add in any::<bool>(),
    ) {
        let (inputs, outputs) = (32 * blocks, 16 * groups);
        let w = weight(Dtype::Quantised(kind), [outputs, inputs], seed);
        let wide = w.to_f32();
        let (mut x, y) = (random(rows * inputs, !seed), random(rows * outputs, seed ^ 77));
        if exact {
            // Whole 127ths of the largest of their block: nothing is rounded.
            x.iter_mut().for_each(|x| *x = (*x * 127.0).round() / 64.0);
            x.iter_mut().step_by(16).for_each(|x| *x = -127.0 / 64.0);
        }
        for &isa in Isa::available() {
            let kernels = CpuKernels::with_isa(2, isa);
            let product = |rows: std::ops::Range<usize>| {
                let part = &x[rows.start * inputs..rows.end * inputs];
                let x = kernels.tensor(rows.len(), part).unwrap();
                let y = &y[rows.start * outputs..rows.end * outputs];
                let onto = add.then(|| kernels.tensor(rows.len(), y).unwrap());
                kernels.products(vec![Product { x: &x, weight: &w, onto }]).unwrap().remove(0)
            };
            let got = product(0..rows);
            for (t, got) in got.data().chunks_exact(outputs).enumerate() {
                for (o, got) in got.iter().enumerate() {
                    let x = x[t * inputs..(t + 1) * inputs].chunks_exact(kind.values());
                    let w = wide[o * inputs..(o + 1) * inputs].chunks_exact(kind.values());
                    let mut expected = if add { f64::from(y[t * outputs + o]) } else { 0.0 };
                    let (mut size, mut rounding) = (1.0, 0.0);
                    for (x, w) in x.zip(w) {
                        let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                        for (x, w) in x.iter().zip(w).map(|(x, w)| (f64::from(*x), f64::from(*w))) {
                            expected += x * w;
                            size += (x * w).abs();
                            rounding += w.abs() * f64::from(most) / 254.0;
                        }
                    }
                    let error = (f64::from(*got) - expected).abs();
                    let allowed = 4e-6 * size + if exact { 0.0 } else { 1.001 * rounding };
                    prop_assert!(error < allowed, "{}: {got} for {expected}", isa);
                }
            }
            for t in [0, rows / 2, rows - 1] {
                let alone = product(t..t + 1);
                prop_assert_eq!(alone.data(), got.row(t).unwrap(), "{}", isa);
            }
            let tokens = [outputs as u32 - 1, 0, 5];
            let rows = kernels.embed(&w, &tokens).unwrap();
            for (row, &token) in rows.data().chunks_exact(inputs).zip(&tokens) {
                prop_assert_eq!(row, &wide[token as usize * inputs..][..inputs]);
            }
        }
    }

    #[test]
    fn attention_is_right_over_scattered_blocks_and_windows(
        cached in prop_oneof![0usize..30, 0usize..1100],
        rows in 1usize..9,
        kv_heads in 1usize..3,
        group in 1usize..5,
        half_dim in 1usize..40,
        window in prop_oneof![Just(None), (1usize..700).prop_map(Some)],
        cap in prop_oneof![Just(None), (0.5f32..20.0).prop_map(Some)],
        dtype in prop_oneof![
            Just(KvDtype::from(Dtype::F32)),
            Just(KvDtype::from(Dtype::Bf16)),
            Just(KvDtype::Int8),
        ],
        seed in any::<u64>(),
    ) {
        let head_dim = 2 * half_dim;
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim, window, cap };
        let length = cached + rows;
        let needed = length.div_ceil(KV_BLOCK);
        let blocks: Vec<u32> = (0..needed as u32).rev().collect();
        let pool = KvShape { layers: 2, kv_heads, head_dim, blocks: needed, dtype };
        let width = kv_heads * head_dim;
        let (k, v) = (random(length * width, seed), random(length * width, !seed));
        let q: Vec<f32> =
            random(length * shape.heads * head_dim, seed ^ 5).iter().map(|q| q * 3.0).collect();
        let rounded = |values: &[f32]| -> Vec<f64> {
            let tensor = HostTensor::from_f32(values, vec![values.len()]).unwrap();
            let stored = match dtype {
                KvDtype::Plain(dtype) => cast(&tensor, dtype).to_f32(),
                KvDtype::Int8 => values.chunks(head_dim).flat_map(int8).collect(),
            };
            stored.iter().map(|v| f64::from(*v)).collect()
        };
        let (wide_k, wide_v) = (rounded(&k), rounded(&v));
        for isa in sets((cached + rows) * (cached + rows) * width) {
            // Tiles round queries and weights to bf16 where keys and values are no wider.
            let tiled = isa.bf16_products() == Bf16Products::Tiles && dtype != Dtype::F32.into();
            let q = taken(isa, if tiled { Dtype::Bf16 } else { Dtype::F32 }, &q);
            let bound = if tiled { 4e-3 } else { 1e-5 };
            let kernels = CpuKernels::with_isa(2, isa);
            let feed = |cache: &mut KvPool, from: usize, to: usize| {
                let part = |values: &[f32], width: usize| {
                    kernels.tensor(to - from, &values[from * width..to * width]).unwrap()
                };
                let segments =
                    vec![Segment { rows: 0..to - from, cached: from, blocks: blocks.clone() }];
                let batch = Batch { segments, ..Batch::default() };
                let (q, k, v) = (part(&q, shape.heads * head_dim), part(&k, width), part(&v, width));
                kernels.attention(q, k, v, 1, shape, &batch, cache).unwrap()
            };
            // The rows after `cached` tokens, which came before.
            let after = |cached: usize| {
                let mut cache = KvPool::new(pool).unwrap();
                if cached > 0 {
                    feed(&mut cache, 0, cached);
                }
                feed(&mut cache, cached, length)
            };
            let got = after(cached);
            for (index, got) in got.data().chunks_exact(head_dim).enumerate() {
                let (position, head) = (cached + index / shape.heads, index % shape.heads);
                let q = &q[(position * shape.heads + head) * head_dim..][..head_dim];
                let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
                let at = |p: usize| p * width + head / group * head_dim;
                let scores: Vec<f64> = (first..=position)
                    .map(|p| {
                        let k = &wide_k[at(p)..at(p) + head_dim];
                        let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum();
                        let score = dot / (head_dim as f64).sqrt();
                        cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (d, got) in got.iter().enumerate() {
                    let values = weights.iter().zip(first..).map(|(w, p)| w * wide_v[at(p) + d]);
                    let expected = values.sum::<f64>() / total;
                    let error = (f64::from(*got) - expected).abs();
                    prop_assert!(error < bound, "{}: {got} for {expected}", isa);
                }
            }
            // Alone, the last row gives the same bits.
            if length < 150 {
                let alone = after(length - 1);
                prop_assert_eq!(alone.data(), got.row(rows - 1).unwrap(), "{}", isa);
            }
        }
    }
}

#[test]
fn caps_columns_and_rotations_of_part_of_a_head_are_right() {
    let (rows, heads, head_dim) = (3, 2, 10);
    let width = heads * head_dim;
    let values: Vec<f32> = random(rows * width, 7).iter().map(|x| x * 90.0).collect();
    let rope = Rope { head_dim, inv_freq: vec![1.0, 0.25, 0.01], scale: 1.5 };
    let positions = [0, 3, 700];
    for &isa in Isa::available() {
        let kernels = CpuKernels::with_isa(2, isa);
        let x = kernels.tensor(rows, &values).unwrap();
        let capped = kernels.soft_cap(x.clone(), 30.0).unwrap();
        for (got, x) in capped.data().iter().zip(&values) {
            let expected = 30.0 * (f64::from(*x) / 30.0).tanh();
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{isa}: {got} for {expected}");
        }
        let part = kernels.select_columns(&x, 4..11).unwrap();
        let expected: Vec<f32> =
            values.chunks_exact(width).flat_map(|row| &row[4..11]).copied().collect();
        assert_eq!(part.data(), expected);
        let more = kernels.tensor(2, &values[..2 * width]).unwrap();
        let sum = kernels.add_to_rows(x.clone(), &[2, 0], &more).unwrap();
        for (row, from) in [(0, Some(1)), (1, None), (2, Some(0))] {
            let own = &values[row * width..][..width];
            let more = |i: usize| from.map_or(0.0, |from: usize| values[from * width + i]);
            let expected: Vec<f32> = own.iter().enumerate().map(|(i, x)| x + more(i)).collect();
            assert_eq!(sum.row(row).unwrap(), expected);
        }
        assert_eq!(kernels.to_host(&x).unwrap(), values);
        let rotated = kernels.rope(x, &positions, &rope).unwrap();
        for (index, got) in rotated.data().iter().enumerate() {
            let (row, within) = (index / width, index % head_dim);
            let (pair, other) = (within % 3, index - within + (within + 3) % 6);
            let angle = f64::from(positions[row]) * f64::from(rope.inv_freq[pair]);
            let (sin, cos) = (angle.sin() * 1.5, angle.cos() * 1.5);
            let (own, other) = (f64::from(values[index]), f64::from(values[other]));
            let expected = match within {
                0..3 => own * cos - other * sin,
                3..6 => own * cos + other * sin,
                _ => own,
            };
            assert!((f64::from(*got) - expected).abs() < 2e-3, "{isa}: {got} for {expected}");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let kernels = CpuKernels::new(1);
    let x = kernels.tensor(2, &[0.0; 6]).unwrap();
    let w = weight(Dtype::F32, [4, 5], 1);
    let error = kernels.products(vec![Product { x: &x, weight: &w, onto: None }]).unwrap_err();
    assert_eq!(error.to_string(), "linear: width of the input is 3, expected 5");
    let error = kernels.embed(&w, &[1, 4]).unwrap_err();
    assert_eq!(error.to_string(), "embed: token id (at most) is 4, expected 3");
    let error = kernels.select_rows(&x, &[2]).unwrap_err();
    assert_eq!(error.to_string(), "select_rows: row (below) is 2, expected 2");
    let error = kernels.select_columns(&x, 1..4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "select_columns: end of a column range (at most) is 4, expected 3"
    );
    let error = kernels.add_to_rows(x.clone(), &[1, 1], &x).unwrap_err();
    assert_eq!(error.to_string(), "add_to_rows: row (below, and once) is 1, expected 2");
    let rope = |head_dim, pairs| Rope { head_dim, inv_freq: vec![1.0; pairs], scale: 1.0 };
    let refused = |rope: Rope| kernels.rope(x.clone(), &[0, 1], &rope).unwrap_err().to_string();
    let most = "rope: number of rotated values of a head (at most) is 4, expected 3";
    assert_eq!(refused(rope(3, 2)), most);
    assert_eq!(refused(rope(2, 1)), "rope: width modulo the group's is 1, expected 0");
}

#[test]
fn attention_refuses_blocks_that_are_missing_or_not_of_the_pool() {
    let kernels = CpuKernels::new(1);
    let pool = KvShape { layers: 1, kv_heads: 1, head_dim: 4, blocks: 2, dtype: Dtype::F32.into() };
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 4, window: None, cap: None };
    let attend = |cached: usize, blocks: Vec<u32>| -> Result<_, KernelError> {
        let mut cache = KvPool::new(pool)?;
        let x = kernels.tensor(1, &[0.5; 4])?;
        let segments = vec![Segment { rows: 0..1, cached, blocks }];
        let batch = Batch { segments, ..Batch::default() };
        kernels.attention(x.clone(), x.clone(), x, 0, shape, &batch, &mut cache)
    };
    let error = attend(KV_BLOCK, vec![0]).unwrap_err();
    let missing = "attention: number of cache blocks (at least) is 1, expected 2";
    assert_eq!(error.to_string(), missing);
    let error = attend(0, vec![2]).unwrap_err();
    assert_eq!(error.to_string(), "attention: cache block (below) is 2, expected 2");
    assert!(attend(KV_BLOCK, vec![1, 0]).is_ok());
}

#[test]
fn a_pool_that_cannot_exist_is_refused() {
    let shape = KvShape {
        layers: usize::MAX,
        kv_heads: 8,
        head_dim: 128,
        blocks: 1,
        dtype: Dtype::Bf16.into(),
    };
    let error = KvPool::new(shape).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kv pool: cannot reserve more than usize::MAX bytes: the size overflows"
    );
    assert!(KvPool::new(KvShape { layers: 1, dtype: Dtype::F16.into(), ..shape }).is_err());
}
