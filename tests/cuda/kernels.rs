//! Every kernel of a forward pass against the CPU's, or f64.

use ladle::kernels::{
    Activation, AttentionShape, Batch, ColumnScale, Dtype, HostTensor, KV_BLOCK, Kernels, KvDtype,
    KvShape, Norm, Product, Rope, RowCoefficients, ScaledProduct, Segment,
    cpu::{CpuKernels, KvPool, panels},
    cuda::CudaKernels,
};

use crate::{both_orders, common::model::cast, emulator::Emulator, random};

/// A norm whose gains are stored less one, as Gemma's.
const NORM: Norm = Norm { eps: 1e-5, shift: 1.0 };
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn weight(dtype: Dtype, shape: &[usize], seed: u64) -> HostTensor {
    let values = random(shape.iter().product(), seed);
    cast(&HostTensor::from_f32(&values, shape.to_vec()).unwrap(), dtype)
}

/// Values that a storage type holds exactly.
fn exact(dtype: Dtype, count: usize, seed: u64) -> Vec<f32> {
    weight(dtype, &[count], seed).to_f32()
}

fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{what}[{i}]: {got} for {expected}");
    }
}

#[test]
fn everything_that_goes_once_over_an_activation_equals_the_cpu() {
    let cpu = CpuKernels::new(1);
    for (n, (rows, heads, half)) in [(1, 1, 3), (5, 3, 8), (17, 2, 35)].into_iter().enumerate() {
        let width = heads * 2 * half;
        let dtype = DTYPES[n];
        let seed = n as u64;
        let (x, y) = (random(rows * width, seed), random(rows * width, seed + 10));
        let table = weight(dtype, &[19, width], seed + 20);
        let (gain, group) = (weight(dtype, &[width], seed), weight(dtype, &[2 * half], seed));
        let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 19).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|i| i * 131).collect();
        let picked: Vec<usize> = (0..rows).rev().step_by(2).collect();
        let inv_freq: Vec<f32> = random(half, 3).iter().map(|f| f.abs()).collect();
        let rope = Rope { head_dim: 2 * half, inv_freq, scale: 1.5 };
        let part = Rope { inv_freq: rope.inv_freq[..half / 2].to_vec(), ..rope.clone() };
        let columns = half - 1..2 * half;
        let scales = [
            ColumnScale { columns: 0..half, term: Some(1), factor: 2.0 },
            ColumnScale { columns: half..2 * half - 1, term: None, factor: -0.5 },
        ];
        let c = RowCoefficients { terms: 2, values: random(rows * 2, 9) };

        let host = |values: &[f32]| cpu.tensor(rows, values).unwrap();
        let expected = [
            cpu.embed(&table, &tokens).unwrap(),
            cpu.broadcast(&gain, rows).unwrap(),
            cpu.select_rows(&host(&x), &picked).unwrap(),
            cpu.bias_add(host(&x), &gain).unwrap(),
            cpu.scale_rows(host(&x), &y[..rows]).unwrap(),
            cpu.scale_columns(host(&x), &scales, Some(&c)).unwrap(),
            cpu.add(host(&x), &host(&y)).unwrap(),
            cpu.gated(Activation::Silu, host(&x), &host(&y)).unwrap(),
            cpu.gated(Activation::Gelu, host(&x), &host(&y)).unwrap(),
            cpu.rope(host(&x), &positions, &rope).unwrap(),
            cpu.rope(host(&x), &positions, &part).unwrap(),
            cpu.select_columns(&host(&x), columns.clone()).unwrap(),
            cpu.soft_cap(host(&x), 0.4).unwrap(),
            cpu.add_to_rows(host(&x), &picked, &cpu.select_rows(&host(&y), &picked).unwrap())
                .unwrap(),
            cpu.rms_norm(&host(&x), &gain, NORM).unwrap(),
            cpu.rms_norm(&host(&x), &group, NORM).unwrap(),
            cpu.rms_norm_rows(&host(&x), &host(&y), NORM).unwrap(),
        ];
        for cuda in both_orders(dtype) {
            let device = |values: &[f32]| cuda.tensor(rows, values).unwrap();
            let (table, gain) = (cuda.weight(&table).unwrap(), cuda.weight(&gain).unwrap());
            let group = cuda.weight(&group).unwrap();
            let kept = device(&x);
            let results = [
                cuda.embed(&table, &tokens).unwrap(),
                cuda.broadcast(&gain, rows).unwrap(),
                cuda.select_rows(&device(&x), &picked).unwrap(),
                cuda.bias_add(kept.clone(), &gain).unwrap(),
                cuda.scale_rows(kept.clone(), &y[..rows]).unwrap(),
                cuda.scale_columns(kept.clone(), &scales, Some(&c)).unwrap(),
                cuda.add(kept.clone(), &device(&y)).unwrap(),
                cuda.gated(Activation::Silu, kept.clone(), &device(&y)).unwrap(),
                cuda.gated(Activation::Gelu, kept.clone(), &device(&y)).unwrap(),
                cuda.rope(kept.clone(), &positions, &rope).unwrap(),
                cuda.rope(kept.clone(), &positions, &part).unwrap(),
                cuda.select_columns(&kept, columns.clone()).unwrap(),
                cuda.soft_cap(kept.clone(), 0.4).unwrap(),
                {
                    let y = cuda.select_rows(&device(&y), &picked).unwrap();
                    cuda.add_to_rows(kept.clone(), &picked, &y).unwrap()
                },
                cuda.rms_norm(&kept, &gain, NORM).unwrap(),
                cuda.rms_norm(&kept, &group, NORM).unwrap(),
                cuda.rms_norm_rows(&kept, &device(&y), NORM).unwrap(),
            ];
            for (i, (got, expected)) in results.iter().zip(&expected).enumerate() {
                close(&format!("operation {i}"), &cuda.values(got).unwrap(), expected.data(), 4e-6);
            }
            assert_eq!(cuda.values(&kept).unwrap(), x, "a shared tensor was changed");
        }
    }
}

/// `onto + Σ x w` in f64, x as the kernels read it.
fn oracle(x: &[f32], w: &HostTensor, onto: Option<&[f32]>) -> Vec<f32> {
    let (outputs, inputs) = (w.shape()[0], w.shape()[1]);
    let wide = w.to_f32();
    let mut out = Vec::new();
    for (t, x) in x.chunks_exact(inputs).enumerate() {
        for o in 0..outputs {
            let terms = x.iter().zip(&wide[o * inputs..]);
            let sum: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            out.push((sum + onto.map_or(0.0, |y| f64::from(y[t * outputs + o]))) as f32);
        }
    }
    out
}

fn check_products(
    cuda: &CudaKernels<Emulator>,
    dtype: Dtype,
    rows: usize,
    sizes: &[(usize, usize)],
) {
    let inputs = sizes[0].0;
    let x = exact(dtype, rows * inputs, 5);
    let device = cuda.tensor(rows, &x).unwrap();
    let weights: Vec<_> =
        (0..).zip(sizes).map(|(i, &(i_, o))| weight(dtype, &[o, i_], i)).collect();
    let on_device: Vec<_> = weights.iter().map(|w| cuda.weight(w).unwrap()).collect();
    let onto: Vec<_> = sizes.iter().map(|&(_, o)| random(rows * o, 77)).collect();
    let products = on_device.iter().zip(&onto).enumerate().map(|(i, (weight, onto))| Product {
        x: &device,
        weight,
        onto: (i % 2 == 0).then(|| cuda.tensor(rows, onto).unwrap()),
    });
    let results = cuda.products(products.collect()).unwrap();
    for (i, (got, w)) in results.iter().zip(&weights).enumerate() {
        let expected = oracle(&x, w, (i % 2 == 0).then_some(&onto[i]));
        let what = format!("{dtype} {rows} × {:?}", sizes[i]);
        close(&what, &cuda.values(got).unwrap(), &expected, 1e-5 * (inputs as f32).sqrt());
    }
}

#[test]
fn products_of_few_rows_in_one_launch_are_exact_to_f32_rounding() {
    for dtype in DTYPES {
        for (rows, inputs) in [(1, 64), (8, 40), (9, 520), (33, 7), (70, 96)] {
            for cuda in both_orders(dtype) {
                check_products(&cuda, dtype, rows, &[(inputs, 16), (inputs, 33), (inputs, 1)]);
            }
        }
    }
}

#[test]
fn more_products_than_a_launch_takes_are_cut() {
    let [cuda, _] = both_orders(Dtype::Bf16);
    check_products(&cuda, Dtype::Bf16, 3, &[(24, 17); 19]);
}

#[test]
fn products_of_many_rows_are_exact_to_f32_rounding() {
    for (dtype, inputs) in [(Dtype::Bf16, 72), (Dtype::F16, 136), (Dtype::Bf16, 33)] {
        for cuda in both_orders(dtype) {
            check_products(&cuda, dtype, 300, &[(inputs, 130), (inputs, 16)]);
        }
    }
}

#[test]
fn low_rank_steps_scale_each_row_by_its_own_coefficients() {
    let cpu = CpuKernels::new(1);
    for dtype in DTYPES {
        // 2⁻⁸ is a rounding of the scaled inputs; f32 has none.
        let tolerance = if dtype == Dtype::F32 { 1e-5 } else { 0.02 };
        for rows in [1, 20, 64, 65] {
            let c = RowCoefficients { terms: 3, values: random(rows * 3, 1) };
            let shapes = [(24, 40), (11, 17)];
            let ups = shapes.map(|(rank, out)| weight(dtype, &[out, rank], rank as u64));
            let xs = shapes.map(|(rank, _)| random(rows * rank, out_seed(rank)));
            let ontos = shapes.map(|(_, out)| random(rows * out, 8));
            let scales = shapes.map(|(rank, _)| {
                vec![
                    ColumnScale { columns: 0..rank / 3, term: Some(2), factor: 2.0 },
                    ColumnScale { columns: rank / 3..rank - 2, term: Some(0), factor: 0.5 },
                    ColumnScale { columns: rank - 2..rank, term: None, factor: 1.5 },
                ]
            });
            let wide = ups.each_ref().map(|up| panels(&cast(up, Dtype::F32)).unwrap());
            let products = (0..2).map(|i| ScaledProduct {
                x: cpu.tensor(rows, &xs[i]).unwrap(),
                scales: &scales[i],
                weight: &wide[i],
                onto: cpu.tensor(rows, &ontos[i]).unwrap(),
            });
            let expected = cpu.scaled_products(products.collect(), Some(&c)).unwrap();
            for cuda in both_orders(dtype) {
                let weights = ups.each_ref().map(|up| cuda.weight(up).unwrap());
                let products = (0..2).map(|i| ScaledProduct {
                    x: cuda.tensor(rows, &xs[i]).unwrap(),
                    scales: &scales[i],
                    weight: &weights[i],
                    onto: cuda.tensor(rows, &ontos[i]).unwrap(),
                });
                let got = cuda.scaled_products(products.collect(), Some(&c)).unwrap();
                for (got, expected) in got.iter().zip(&expected) {
                    let got = cuda.values(got).unwrap();
                    close(&format!("{dtype} {rows}"), &got, expected.data(), tolerance);
                }
            }
        }
    }
}

fn out_seed(rank: usize) -> u64 {
    rank as u64 + 100
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let [cuda, _] = both_orders(Dtype::Bf16);
    let w = cuda.weight(&weight(Dtype::Bf16, &[4, 8], 1)).unwrap();
    let x = cuda.tensor(2, &random(14, 1)).unwrap();
    let product = Product { x: &x, weight: &w, onto: None };
    let error = cuda.products(vec![product]).err().unwrap().to_string();
    assert!(error.contains("width of the input"), "{error}");
    assert!(cuda.embed(&w, &[0, 4]).err().unwrap().to_string().contains("token id"));
    assert!(cuda.select_rows(&x, &[2]).err().unwrap().to_string().contains("row (below)"));
    let scales = [ColumnScale { columns: 0..7, term: Some(0), factor: 1.0 }];
    assert!(cuda.scale_columns(x, &scales, None).is_err());
}

/// Sequences of different lengths over scattered blocks: what is cached first, then one step.
fn check_attention(
    stored: impl Into<KvDtype>,
    shape: AttentionShape,
    lengths: &[(usize, usize)],
    tolerance: f32,
) {
    let stored = stored.into();
    // The CPU's reference has no rounding of its own but that of int8.
    let (dtype, reference) = match stored {
        KvDtype::Plain(dtype) => (dtype, Dtype::F32.into()),
        KvDtype::Int8 => (Dtype::F32, KvDtype::Int8),
    };
    let width = shape.heads * shape.head_dim;
    let kv_width = shape.kv_heads * shape.head_dim;
    let blocks: usize = lengths.iter().map(|(c, n)| (c + n).div_ceil(KV_BLOCK)).sum();
    let pool = |dtype: KvDtype| KvShape {
        layers: 2,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        blocks: blocks + 1,
        dtype,
    };
    // From the last block down: nobody's natural order.
    let mut free = (1..=blocks as u32).rev();
    let tables: Vec<Vec<u32>> = lengths
        .iter()
        .map(|(c, n)| free.by_ref().take((c + n).div_ceil(KV_BLOCK)).collect())
        .collect();
    let step = |cached: &dyn Fn(usize) -> usize, rows: &dyn Fn(usize) -> usize| {
        let mut batch = Batch::default();
        let mut first = 0;
        for (i, blocks) in tables.iter().enumerate() {
            let rows = first..first + rows(i);
            first = rows.end;
            batch.segments.push(Segment { rows, cached: cached(i), blocks: blocks.clone() });
        }
        (batch, first)
    };
    let (before, cached_rows) = step(&|_| 0, &|i| lengths[i].0);
    let (now, rows) = step(&|i| lengths[i].0, &|i| lengths[i].1);
    let (k0, v0) =
        (exact(dtype, cached_rows * kv_width, 1), exact(dtype, cached_rows * kv_width, 2));
    let (q, k, v) = (
        exact(dtype, rows * width, 3),
        exact(dtype, rows * kv_width, 4),
        exact(dtype, rows * kv_width, 5),
    );
    let cpu = CpuKernels::new(2);
    let mut reference = KvPool::new(pool(reference)).unwrap();
    let host = |rows: usize, values: &[f32]| cpu.tensor(rows, values).unwrap();
    let q0 = vec![0.0; cached_rows * width];
    let (a, b, c) = (host(cached_rows, &q0), host(cached_rows, &k0), host(cached_rows, &v0));
    // What these rows attend to is not looked at: each to itself.
    let itself = AttentionShape { window: Some(1), ..shape };
    cpu.attention(a, b, c, 1, itself, &before, &mut reference).unwrap();
    let (a, b, c) = (host(rows, &q), host(rows, &k), host(rows, &v));
    let expected = cpu.attention(a, b, c, 1, shape, &now, &mut reference).unwrap();
    for cuda in both_orders(dtype) {
        let mut cache = cuda.cache(pool(stored)).unwrap();
        let device = |rows: usize, values: &[f32]| cuda.tensor(rows, values).unwrap();
        let (a, b, c) =
            (device(cached_rows, &q0), device(cached_rows, &k0), device(cached_rows, &v0));
        cuda.attention(a, b, c, 1, itself, &before, &mut cache).unwrap();
        let (a, b, c) = (device(rows, &q), device(rows, &k), device(rows, &v));
        let got = cuda.attention(a, b, c, 1, shape, &now, &mut cache).unwrap();
        let what = format!("{stored} {shape:?} {lengths:?}");
        close(&what, &cuda.values(&got).unwrap(), expected.data(), tolerance);
    }
}

#[test]
fn attention_on_tensor_cores_is_right_in_every_mix_of_sequences() {
    let shape = |heads, kv_heads, head_dim, window| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        window,
        cap: None,
    };
    let mixed = [(0, 40), (530, 1), (15, 1), (0, 1), (37, 20), (70, 3)];
    for dtype in [Dtype::Bf16, Dtype::F16] {
        check_attention(dtype, shape(4, 2, 64, None), &mixed, 0.01);
        check_attention(dtype, shape(3, 3, 128, Some(21)), &mixed, 0.01);
        let capped = AttentionShape { cap: Some(0.7), ..shape(4, 2, 64, None) };
        check_attention(dtype, capped, &mixed, 0.01);
    }
    check_attention(Dtype::Bf16, shape(9, 1, 64, Some(600)), &[(1030, 2), (5, 30)], 0.01);
}

#[test]
fn attention_of_any_width_and_type_is_right_in_every_mix_of_sequences() {
    let shape = |heads, kv_heads, head_dim, window| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        window,
        cap: None,
    };
    let mixed = [(0, 12), (530, 1), (15, 1), (0, 1), (20, 9)];
    check_attention(KvDtype::Int8, shape(2, 1, 6, None), &mixed, 1e-5);
    check_attention(KvDtype::Int8, shape(6, 3, 40, Some(17)), &mixed, 1e-5);
    for dtype in DTYPES {
        check_attention(dtype, shape(2, 1, 6, None), &mixed, 1e-5);
        check_attention(dtype, shape(2, 2, 40, Some(17)), &mixed, 1e-5);
        let capped = AttentionShape { cap: Some(0.7), ..shape(2, 1, 6, None) };
        check_attention(dtype, capped, &mixed, 1e-5);
    }
}
