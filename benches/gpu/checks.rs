//! Fused and mixed logits of small random soups on the device against the CPU.

use std::sync::Arc;

use ladle::{
    config::MergeMode,
    engine::{CudaBackend, CudaOptions, backend::Backend},
    kernels::{
        Batch, Dtype, HostTensor, KV_BLOCK, KvShape, RowCoefficients, Segment,
        cpu::{CpuKernels, KvPool},
        cuda::Device,
    },
    merge::{Merger, SoupPlan, mixed_decoder},
    model::{config::ModelConfig, decoder::Decoder, linear::Parameter},
    preference::{Coefficients, ModelKey},
};
use serde_json::{Value, json};

use crate::{
    soup::{Kind, Pool, config},
    speed::{lease, merged},
};

/// All storage types and widths of heads; with `few`, one of each kind of kernel.
pub fn all<D: Device>(device: &Arc<D>, few: bool) -> Vec<Value> {
    let dtypes = [(Dtype::F32, 1e-4), (Dtype::Bf16, 0.05), (Dtype::F16, 0.01)];
    let shapes = [(4, 2, 64), (2, 2, 128), (3, 1, 48)];
    let mut checks = Vec::new();
    for &(dtype, tolerance) in &dtypes[..if few { 2 } else { 3 }] {
        for &(heads, kv_heads, head_dim) in &shapes[..if few { 1 } else { 3 }] {
            for kind in [Kind::Lora { rank: 12 }, Kind::Full] {
                let model = config(128, 160, (heads, kv_heads, head_dim), 200, 2);
                let mut pool = Pool::new(dtype, 1 << 16, 0.15);
                let plan = pool.plan(&model, kind, 3);
                checks.extend(one(device, &plan, &model, dtype, kind, tolerance));
            }
        }
    }
    checks.extend([Kind::Lora { rank: 12 }, Kind::Full].map(|kind| refusal(device, kind)));
    checks
}

/// A merge beyond the range of f16, which is refused as on the CPU.
fn refusal<D: Device>(device: &Arc<D>, kind: Kind) -> Value {
    let model = config(128, 160, (2, 1, 64), 200, 1);
    let plan = Pool::new(Dtype::F16, 1 << 16, 0.15).plan(&model, kind, 1);
    let c = Coefficients { backbones: vec![1e7], sft: 1.0 - 1e7 };
    let merger = Merger::new(plan.clone(), None).unwrap();
    let mut tensors = plan.tensors().iter();
    let expected = tensors.find_map(|tensor| merger.tensor(&tensor.name, &c).err()).unwrap();
    let options = CudaOptions {
        merge_mode: MergeMode::Fused,
        kv_bytes: Some(16 << 20),
        merged_bytes: Some(64 << 20),
        ..CudaOptions::default()
    };
    let digest = "check".to_owned();
    let backend = CudaBackend::with_plan(plan, model, digest, device.clone(), &options);
    let got = match merged(&mut backend.unwrap(), &c) {
        Ok(_) => "not refused".to_owned(),
        Err(error) => error.to_string(),
    };
    json!({
        "mode": "refused", "soup": format!("{kind:?}"), "expected": expected.to_string(),
        "got": got, "passed": got.contains(&expected.to_string()),
    })
}

/// Three coefficients, one of them extrapolated.
fn coefficients() -> [Coefficients; 3] {
    [[1.4, -0.6, 0.1], [0.2, 0.5, 0.3], [0.0, 1.0, 0.0]].map(|backbones| {
        let c =
            Coefficients { sft: 1.0 - backbones.iter().sum::<f64>(), backbones: backbones.into() };
        ModelKey::of(&c).coefficients()
    })
}

/// Steps of three sequences: prompts, one longer than what a product takes at a time, then decode.
fn steps() -> Vec<Batch> {
    let lengths = [300usize, 9, 21];
    let mut steps = Vec::new();
    let mut next = 0;
    let tables = lengths.map(|len| {
        let first = next;
        next += (len + 4).div_ceil(KV_BLOCK) as u32;
        (first..next).rev().collect::<Vec<u32>>()
    });
    let token = |sequence: usize, position: usize| (sequence * 67 + position * 13) as u32 % 200;
    for step in 0..3 {
        let mut batch = Batch::default();
        for (sequence, &len) in lengths.iter().enumerate() {
            let (cached, count) = if step == 0 { (0, len) } else { (len + step - 1, 1) };
            let start = batch.tokens.len();
            for position in cached..cached + count {
                batch.tokens.push(token(sequence, position));
                batch.positions.push(position as u32);
            }
            let rows = start..start + count;
            batch.outputs.push(rows.end - 1);
            batch.segments.push(Segment { rows, cached, blocks: tables[sequence].clone() });
        }
        steps.push(batch);
    }
    steps
}

fn one<D: Device>(
    device: &Arc<D>,
    plan: &SoupPlan,
    model: &ModelConfig,
    dtype: Dtype,
    kind: Kind,
    tolerance: f32,
) -> Vec<Value> {
    let options = CudaOptions {
        kv_bytes: Some(16 << 20),
        merged_bytes: Some(64 << 20),
        step_rows: 512,
        ..CudaOptions::default()
    };
    let open = |mode| {
        let options = CudaOptions { merge_mode: mode, ..options.clone() };
        let digest = "check".to_owned();
        CudaBackend::with_plan(plan.clone(), model.clone(), digest, device.clone(), &options)
            .unwrap()
    };
    let shape = KvShape {
        layers: model.layers,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        blocks: 32,
        dtype: Dtype::F32.into(),
    };
    let cpu = CpuKernels::default();
    let compare = |mode: &str, got: Vec<f32>, expected: Vec<f32>| {
        let size = expected.iter().map(|x| x.abs()).fold(0.0, f32::max);
        let off = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        // A NaN stays the maximum; comparisons alone would drop it.
        let larger = |max: f32, d| if d <= max || max.is_nan() { max } else { d };
        let worst = off.fold(0.0, larger) / size;
        let shape = (model.heads, model.kv_heads, model.head_dim);
        json!({
            "mode": mode, "soup": format!("{kind:?}"), "dtype": dtype.to_string(),
            "heads": shape, "worst_relative_to_largest_logit": worst,
            "tolerance": tolerance, "passed": worst <= tolerance && got.len() == expected.len(),
        })
    };
    let mut results = Vec::new();

    let decoder = mixed_decoder(plan, model.clone()).unwrap();
    let mut cache = KvPool::new(shape).unwrap();
    let mut mixed = open(MergeMode::Mixed);
    let all = coefficients();
    let (mut got, mut expected) = (Vec::new(), Vec::new());
    for mut batch in steps() {
        let rows = batch.segments.iter().zip(&all).flat_map(|(s, c)| vec![c; s.rows.len()]);
        let values = rows.flat_map(|c| plan.term_values(c).unwrap()).collect();
        batch.coefficients = Some(RowCoefficients { terms: plan.terms().len(), values });
        got.extend(mixed.forward(None, &batch).unwrap());
        expected.extend_from_slice(decoder.forward(&cpu, &batch, &mut cache).unwrap().data());
    }
    results.push(compare("mixed", got, expected));
    drop(mixed);

    let merger = Merger::new(plan.clone(), None).unwrap();
    let mut fused = open(MergeMode::Fused);
    for c in &all {
        let tensor = |name: &str| merger.tensor(name, c).map(Parameter::<HostTensor>::merged);
        let decoder = Decoder::load(model.clone(), tensor).unwrap();
        let mut cache = KvPool::new(shape).unwrap();
        let lease = lease(&mut fused, c);
        let (mut got, mut expected) = (Vec::new(), Vec::new());
        for batch in steps() {
            got.extend(fused.forward(Some(&lease), &batch).unwrap());
            expected.extend_from_slice(decoder.forward(&cpu, &batch, &mut cache).unwrap().data());
        }
        results.push(compare("fused", got, expected));
    }
    results
}
