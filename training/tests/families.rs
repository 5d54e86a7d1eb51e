//! Every family × training: the gradients of LoRA's factors say how log-probabilities change on
//! the decoder that serves (whose logits tests/model.rs compares with transformers') over weights summed
//! the slow and plain way. What is refused must say so. docs/base-models.md has the table.

#[path = "../../tests/support/families.rs"]
#[allow(dead_code)] // the server's grid needs more of it
mod families;

use std::{collections::BTreeMap, ops::Range, path::Path};

use candle_core::{Device, Tensor};
use families::{FAMILIES, Family, write_base};
use ladle::{
    kernels::{
        Batch, Dtype, HostTensor, KvShape, Segment,
        cpu::{CpuKernels, KvPool},
    },
    model::{decoder::Decoder, linear::Parameter},
};
use ladle_training::{
    rl::{lora::LoraConfig, packing::Sequence, policy::Policy},
    setup::Base,
};

const RANK: usize = 4;
const ALPHA: f64 = 8.0;
/// How much of a predicted change the measured one may differ.
const TOLERANCE: f64 = 0.01;

type Factors = BTreeMap<String, Vec<f32>>;

fn sequences(base: &Base) -> [Sequence; 2] {
    let most = base.model.vocab_size as u32 - 3;
    let tokens = |count: u32, seed: u32| (0..count).map(|i| 3 + (i * 29 + seed) % most).collect();
    [(70, 12, 1), (5, 9, 2)].map(|(prompt, response, seed)| Sequence {
        prompt: tokens(prompt, seed),
        response: tokens(response, 7 * seed),
        active_from: None,
    })
}

/// The sum of the log-probabilities of all responses, by the decoder that serves.
fn served(base: &Base, factors: &Factors) -> f64 {
    let tensor = |name: &str| {
        let weight = &base.weights[name];
        let mut sum: Vec<f64> = weight.to_f32().into_iter().map(f64::from).collect();
        let module = format!("base_model.model.{}", name.trim_end_matches(".weight"));
        let factor = |letter| factors.get(&format!("{module}.lora_{letter}.weight"));
        if let (Some(down), Some(up)) = (factor("A"), factor("B")) {
            let inputs = weight.shape()[1];
            for (at, sum) in sum.iter_mut().enumerate() {
                let (out, input) = (at / inputs, at % inputs);
                let product =
                    |r| f64::from(up[out * RANK + r]) * f64::from(down[r * inputs + input]);
                *sum += ALPHA / RANK as f64 * (0..RANK).map(product).sum::<f64>();
            }
        }
        let values: Vec<f32> = sum.into_iter().map(|v| v as f32).collect();
        let weight = HostTensor::from_f32(&values, weight.shape().to_vec()).unwrap();
        Ok::<_, std::convert::Infallible>(Parameter::merged(weight))
    };
    let decoder = Decoder::load(base.model.clone(), tensor).unwrap();
    let config = decoder.config();
    let shape = KvShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        blocks: 8,
        dtype: Dtype::F32.into(),
    };
    let mut sum = 0.0;
    let rows_of = |tokens: &[u32], blocks: Range<u32>, from: usize| Batch {
        tokens: tokens.to_vec(),
        positions: (0..tokens.len() as u32).collect(),
        segments: vec![Segment { rows: 0..tokens.len(), cached: 0, blocks: blocks.collect() }],
        outputs: (from..tokens.len()).collect(),
        ..Batch::default()
    };
    for Sequence { prompt, response, .. } in sequences(base) {
        let given = &response[..response.len() - 1];
        let batch = match &config.encoder {
            None => {
                let tokens = [prompt.as_slice(), given].concat();
                rows_of(&tokens, 0..8, prompt.len() - 1)
            }
            Some(encoder) => {
                let batch = rows_of(&[&[encoder.start], given].concat(), 6..8, 0);
                let (rows, cached) = (0..batch.tokens.len(), prompt.len());
                let encoded = vec![Segment { rows, cached, blocks: (0..6).collect() }];
                Batch {
                    prompts: Some(Box::new(rows_of(&prompt, 0..6, prompt.len()))),
                    encoded,
                    ..batch
                }
            }
        };
        let mut cache = KvPool::new(shape).unwrap();
        let logits = decoder.forward(&CpuKernels::new(1), &batch, &mut cache).unwrap();
        for (row, token) in logits.data().chunks_exact(config.vocab_size).zip(response) {
            let most = row.iter().copied().fold(f32::MIN, f32::max);
            let exps = row.iter().map(|logit| f64::from(logit - most).exp());
            sum += f64::from(row[token as usize] - most) - exps.sum::<f64>().ln();
        }
    }
    sum
}

fn train(dir: &Path) -> Result<(), String> {
    let base = Base::open(dir).map_err(|error| error.to_string())?;
    let lora = LoraConfig { rank: RANK, alpha: ALPHA, ..LoraConfig::default() };
    let policy = Policy::new(&base.model, &base.weights, &lora, &Device::Cpu, 0);
    let policy = policy.map_err(|error| error.to_string())?;
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        0.2 * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    let variables = policy.variables();
    let tensors = variables.iter().map(|(name, var)| {
        let values: Vec<f32> = (0..var.elem_count()).map(|_| noise()).collect();
        (name.clone(), Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap())
    });
    let tensors: BTreeMap<_, _> = tensors.collect();
    policy.restore(&tensors).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let factors: Factors = tensors.iter().map(|(name, t)| (name.clone(), values(t))).collect();

    let packed = policy.pack(&sequences(&base)).unwrap();
    let forward = policy.forward(&packed, 0).unwrap();
    let log_probs = policy.log_probs(&forward.hidden, &packed.targets, 1.0).unwrap();
    let sum = log_probs.values.sum_all().unwrap();
    let mut gradients = sum.backward().unwrap();
    forward.backward(&policy, &mut gradients).unwrap();
    let (got, expected) = (f64::from(sum.to_scalar::<f32>().unwrap()), served(&base, &factors));
    assert!((got - expected).abs() < 1e-3, "the sum is {got}, expected {expected}");

    // The factors of one kind of linear layer move together, along their gradient.
    let kind = |name: &str| name.rsplit('.').nth(2).unwrap().to_owned();
    let mut kinds: BTreeMap<String, Factors> = BTreeMap::new();
    for (name, var) in &variables {
        let gradient = values(gradients.get(var).unwrap_or_else(|| panic!("{name}: no gradient")));
        assert!(gradient.iter().any(|g| g.abs() > 1e-4), "{name}: the gradient is nothing");
        kinds.entry(kind(name)).or_default().insert(name.clone(), gradient);
    }
    assert!(kinds.len() >= 4, "{:?}", kinds.keys());
    for (kind, gradients) in &kinds {
        let squares = gradients.values().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>();
        // A step that changes the sum by a hundredth.
        let step = 0.01 / squares;
        let moved = |sign: f64| {
            let mut factors = factors.clone();
            for (name, gradient) in gradients {
                for (value, g) in factors.get_mut(name).unwrap().iter_mut().zip(gradient) {
                    *value += (sign * step * f64::from(*g)) as f32;
                }
            }
            served(&base, &factors)
        };
        let (measured, predicted) = (moved(1.0) - moved(-1.0), 0.02);
        let error = (measured - predicted).abs() / predicted;
        assert!(error < TOLERANCE, "{kind}: {measured}, predicted {predicted}");
    }
    Ok(())
}

/// The directory of a family's tiny model, whole.
fn base(family: &Family, to: &Path) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    match family.model_type {
        "t5" => {
            std::fs::create_dir_all(to).unwrap();
            for entry in std::fs::read_dir(fixtures.join(family.fixture).join("base")).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
        _ => write_base(&fixtures.join("models").join(family.fixture), to),
    }
}

#[test]
fn every_family_is_trained_right_or_refused_by_name() {
    for family in &FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        base(family, dir.path());
        println!("{}", family.model_type);
        match (train(dir.path()), family.refusal("train")) {
            (Ok(()), None) => {}
            (Ok(()), Some(said)) => panic!("{}: trained, expected {said:?}", family.model_type),
            (Err(error), None) => panic!("{}: {error}", family.model_type),
            (Err(error), Some(said)) => assert!(error.contains(said), "{error}"),
        }
    }
}
