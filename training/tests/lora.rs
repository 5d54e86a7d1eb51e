//! LoRA training against PyTorch and PEFT (tests/reference/make_lora_training.py, float64).

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor, Var, backprop::GradStore, safetensors::load};
use half::bf16;
use ladle::{
    kernels::{HostTensor, cpu::CpuKernels},
    model::config::ModelConfig,
    simd::Isa,
    soup::Activation,
};
use ladle_training::{
    optimizer::{AdamW, AdamWConfig, learning_rate},
    precision::Precision,
    rl::{
        head::BLOCK,
        log_probs::{LogProbs, log_probs},
        lora::LoraConfig,
        packing::{Packed, Sequence, micro_batches, pack},
        policy::Policy,
        prompt_cache::{Counts, PromptCache},
        value_head::ValueHead,
    },
    tape::Narrow,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

struct Reference {
    policy: Policy,
    values: BTreeMap<String, Tensor>,
    settings: Value,
    sequences: Vec<Sequence>,
}

fn reference() -> Reference {
    reference_with(0.0)
}

fn reference_with(dropout: f64) -> Reference {
    reference_of(LoraConfig { dropout, ..LoraConfig::default() })
}

fn reference_of(lora: LoraConfig) -> Reference {
    read_reference("lora-training", "lora-training", lora)
}

/// The network of one folder of the fixtures with the reference of another.
fn read_reference(network: &str, reference: &str, lora: LoraConfig) -> Reference {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let path = |name: &str| match name.strip_prefix("reference.") {
        Some(_) => fixtures.join(reference).join(name),
        None => fixtures.join(network).join(name),
    };
    let read = |name: &str| load(path(name), &Device::Cpu).unwrap();
    let json = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(path(name)).unwrap()).unwrap()
    };
    let weights: BTreeMap<_, _> = read("model.safetensors")
        .into_iter()
        .map(|(name, tensor)| {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (name, HostTensor::from_f32(&values, tensor.dims().to_vec()).unwrap())
        })
        .collect();
    let settings = json("reference.json");
    let model = ModelConfig::from_json(&json("config.json")).unwrap();
    let lora = LoraConfig { rank: 4, alpha: 8.0, ..lora };
    let policy = Policy::new(&model, &weights, &lora, &Device::Cpu, 0).unwrap();
    let values: BTreeMap<_, _> = read("reference.safetensors").into_iter().collect();
    policy.restore(&values).unwrap();
    let tokens = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
    };
    let sequences = settings["sequences"].as_array().unwrap().iter();
    let sequences = sequences
        .map(|s| Sequence {
            prompt: tokens(&s["prompt"]),
            response: tokens(&s["response"]),
            active_from: None,
        })
        .collect();
    Reference { policy, values, settings, sequences }
}

impl Reference {
    /// Log-probabilities and entropies, and the gradients of what `loss` makes of the former.
    fn run(
        &self,
        packed: &Packed,
        temperature: f64,
        loss: impl Fn(&Tensor) -> Tensor,
    ) -> (LogProbs, GradStore) {
        let forward = self.policy.forward(packed, 0).unwrap();
        let out = self.policy.log_probs(&forward.hidden, &packed.targets, temperature).unwrap();
        let mut grads = loss(&out.values).backward().unwrap();
        forward.backward(&self.policy, &mut grads).unwrap();
        (out, grads)
    }

    fn expected(&self, name: &str) -> Vec<f32> {
        self.values[name].flatten_all().unwrap().to_vec1().unwrap()
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(name: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance, "{name}[{index}]: {got}, expected {expected}");
    }
}

#[test]
fn log_probs_and_entropy_of_packed_sequences_equal_torch() {
    check_log_probs(&reference());
}

fn check_log_probs(reference: &Reference) {
    let packed = reference.policy.pack(&reference.sequences).unwrap();
    for (name, temperature) in [("1", 1.0), ("0.7", 0.7)] {
        let hidden = reference.policy.hidden(&packed).unwrap();
        let LogProbs { values: log_probs, entropy } =
            reference.policy.log_probs(&hidden, &packed.targets, temperature).unwrap();
        let expected = reference.expected(&format!("log_probs.{name}"));
        assert_close("log_probs", &values(&log_probs), &expected, 5e-5);
        let expected = reference.expected(&format!("entropy.{name}"));
        assert_close("entropy", &entropy, &expected, 5e-5);
    }
}

#[test]
fn a_shared_prompt_gives_the_log_probs_and_gradients_of_separate_ones() {
    let reference = reference();
    let prompt = reference.sequences[0].prompt.clone();
    let sequences: Vec<Sequence> = reference.sequences[..3]
        .iter()
        .map(|s| Sequence { prompt: prompt.clone(), ..s.clone() })
        .collect();
    let run = |batches: &[&[Sequence]]| {
        let (mut all, mut sums) = (Vec::new(), Vec::<Vec<f32>>::new());
        for batch in batches {
            let square = |log_probs: &Tensor| log_probs.sqr().unwrap().sum_all().unwrap();
            let (out, grads) = reference.run(&pack(batch), 1.0, square);
            all.extend(values(&out.values));
            let variables = reference.policy.variables();
            let each = variables.iter().map(|(_, var)| values(grads.get(var).unwrap()));
            let each: Vec<_> = each.collect();
            if sums.is_empty() {
                sums = each;
            } else {
                let pairs = sums.iter_mut().flatten().zip(each.iter().flatten());
                pairs.for_each(|(sum, grad)| *sum += grad);
            }
        }
        (all, sums)
    };
    let (shared, gradients) = run(&[&sequences]);
    let separate: Vec<&[Sequence]> = sequences.chunks(1).collect();
    let (expected, expected_gradients) = run(&separate);
    assert_close("log_probs", &shared, &expected, 2e-5);
    for (got, expected) in gradients.iter().zip(&expected_gradients) {
        let largest = expected.iter().fold(1e-3f32, |max, g| max.max(g.abs()));
        assert_close("gradient", got, expected, 1e-4 * largest);
    }
}

#[test]
fn the_reference_is_the_network_with_the_adapters_off_and_untracked() {
    check_network_without_adapters(&reference());
}

fn check_network_without_adapters(reference: &Reference) {
    let packed = reference.policy.pack(&reference.sequences).unwrap();
    let hidden = reference.policy.reference_hidden(&packed).unwrap();
    assert!(!hidden.track_op());
    let out = reference.policy.log_probs(&hidden, &packed.targets, 1.0).unwrap();
    assert_close(
        "log_probs",
        &values(&out.values),
        &reference.expected("log_probs.reference"),
        5e-5,
    );
}

#[test]
fn every_factor_gets_torchs_gradient_and_no_frozen_tensor_any() {
    let reference = reference();
    assert_eq!(reference.policy.variables().len(), 2 * 2 * 7);
    check_gradients(&reference);
}

/// Variants of the decoder (`make_lora_families.py`).
#[test]
fn other_families_have_torchs_log_probs_and_gradients() {
    let names = [
        "smollm3",
        "smollm3-window",
        "olmo2",
        "olmo3",
        "granite",
        "phi3",
        "gemma",
        "gemma2",
        "gemma3",
    ];
    for name in names {
        let [network, reference] = ["models", "lora-training"].map(|dir| format!("{dir}/{name}"));
        let reference = read_reference(&network, &reference, LoraConfig::default());
        check_log_probs(&reference);
        check_network_without_adapters(&reference);
        check_gradients(&reference);
    }
}

/// Encoder and decoder, tied and ReLU, untied and gated (`make_t5_training.py`): factors of every linear
/// layer of both, and a value head on the decoder.
#[test]
fn t5_has_torchs_log_probs_gradients_and_values() {
    for name in ["t5", "t5-gated"] {
        let network = format!("soup-{name}/base");
        let reference = format!("lora-training/{name}");
        let reference = read_reference(&network, &reference, LoraConfig::default());
        check_log_probs(&reference);
        check_network_without_adapters(&reference);
        check_gradients(&reference);

        let packed = reference.policy.pack(&reference.sequences).unwrap();
        let hidden = reference.policy.hidden(&packed).unwrap();
        let head = ValueHead::new(reference.policy.model().hidden_size, &Device::Cpu).unwrap();
        for (name, var) in head.variables() {
            var.set(&reference.values[&name]).unwrap();
        }
        let got = head.values(&hidden).unwrap();
        assert_close("values", &values(&got), &reference.expected("values"), 5e-5);
        let loss = (got - 1.0).unwrap().sqr().unwrap().mean_all().unwrap();
        let grads = loss.backward().unwrap();
        for (name, var) in head.variables() {
            let expected = reference.expected(&format!("grad.{name}"));
            assert_close(&name, &values(grads.get(&var).unwrap()), &expected, 2e-4);
        }
    }
}

fn check_gradients(reference: &Reference) {
    let packed = reference.policy.pack(&reference.sequences).unwrap();
    let (_, grads) = reference.run(&packed, 0.7, |x| x.mean_all().unwrap().neg().unwrap());
    let variables = reference.policy.variables();
    for (name, var) in &variables {
        let grad = values(grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")));
        let expected = reference.expected(&format!("grad.{name}"));
        let largest = expected.iter().fold(0f32, |max, g| max.max(g.abs()));
        assert!(largest > 1e-4, "{name}: the reference gradient is {largest}");
        assert_close(name, &grad, &expected, 2e-4 * largest.max(1e-3));
    }
    assert!(grads.get(reference.policy.head()).is_none(), "the frozen embedding got a gradient");
    let factors: Vec<_> = variables.iter().map(|(_, var)| var.as_tensor().id()).collect();
    assert_eq!(grads.get_ids().filter(|id| !factors.contains(id)).count(), 0);
}

/// A vocabulary of two blocks and a part, in the model of the instructions for tiles; the weights are
/// bf16, so that only the probabilities are rounded.
#[test]
fn log_probs_with_a_head_in_bf16_are_those_of_f32_block_by_block() {
    let (rows, width, vocabulary) = (5, 24, 2 * BLOCK + 452);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut drawn = |rows: usize, size: f32| {
        let values =
            (0..rows * width).map(|_| bf16::from_f32(rng.random_range(-size..size)).to_f32());
        Tensor::from_vec(values.collect::<Vec<_>>(), (rows, width), &Device::Cpu).unwrap()
    };
    let (hidden, head) = (drawn(rows, 2.0), drawn(vocabulary, 0.7));
    let targets = [3, BLOCK as u32, 1500, 2047, 2499];
    let kernels = CpuKernels::with_isa(2, Isa::PORTABLE_TILES);
    let narrow = Narrow::new(kernels, [], &head, BLOCK).unwrap();
    for cap in [None, Some(4.0)] {
        let run = |narrow: Option<&Narrow>| {
            let hidden = Var::from_tensor(&hidden).unwrap();
            let out = log_probs(hidden.as_tensor(), &head, &targets, (0.5, cap), narrow).unwrap();
            let grads = out.values.sum_all().unwrap().backward().unwrap();
            (values(&out.values), values(grads.get(&hidden).unwrap()))
        };
        let ((plain, plain_grads), (narrow, narrow_grads)) = (run(None), run(Some(&narrow)));
        assert_close("log_probs", &narrow, &plain, 1e-4);
        assert_close("gradient", &narrow_grads, &plain_grads, 1e-2);
        assert_ne!(narrow_grads, plain_grads, "the probabilities are not rounded");
    }
    let none = log_probs(&hidden.narrow(0, 0, 0).unwrap(), &head, &[], (1.0, None), None);
    assert_eq!(none.unwrap().values.dims(), [0]);
}

/// Root mean square.
fn size(values: impl Iterator<Item = f32> + Clone) -> f32 {
    (values.clone().map(|x| x * x).sum::<f32>() / values.count() as f32).sqrt()
}

/// Errors of a network whose weights, inputs of products and gradients are rounded to 8 bits, which add
/// up over its layers: most in T5, whose attention scales no products.
#[test]
fn in_bf16_log_probs_and_gradients_are_torchs_within_its_rounding() {
    let cases = [("", 0.02), ("smollm3-window", 0.02), ("gemma3", 0.02), ("t5-gated", 0.25)];
    for (name, tolerance) in cases {
        let (network, expected) = match name {
            "" => ("lora-training".to_owned(), "lora-training".to_owned()),
            "t5-gated" => ("soup-t5-gated/base".into(), "lora-training/t5-gated".into()),
            _ => (format!("models/{name}"), format!("lora-training/{name}")),
        };
        let read = || read_reference(&network, &expected, LoraConfig::default());
        let (plain, mut narrow) = (read(), read());
        narrow.policy = narrow.policy.in_precision(Precision::Bf16).unwrap();
        let packed = narrow.policy.pack(&narrow.sequences).unwrap();
        let run = |reference: &Reference| {
            let (out, grads) =
                reference.run(&packed, 0.7, |x| x.mean_all().unwrap().neg().unwrap());
            let variables = reference.policy.variables();
            let grads = variables.iter().flat_map(|(_, var)| values(grads.get(var).unwrap()));
            (values(&out.values), grads.collect::<Vec<f32>>())
        };
        let ((narrow_out, narrow_grads), (plain_out, _)) = (run(&narrow), run(&plain));
        assert_ne!(narrow_out, plain_out, "{name} is computed in f32");
        let variables = narrow.policy.variables();
        let expected = variables.iter().flat_map(|(of, _)| narrow.expected(&format!("grad.{of}")));
        let expected: Vec<f32> = expected.collect();
        let error =
            |got: &[f32], expected: &[f32]| size(got.iter().zip(expected).map(|(got, e)| got - e));
        let log_probs = error(&narrow_out, &narrow.expected("log_probs.0.7"));
        let gradients = error(&narrow_grads, &expected) / size(expected.iter().copied());
        assert!(
            log_probs.max(gradients) < tolerance,
            "{name}: log-probabilities {log_probs}, gradients {gradients}"
        );
    }
}

#[test]
fn recomputing_layers_gives_the_same_gradients_bit_for_bit() {
    let packed = pack(&reference().sequences);
    let gradients = |reference: &Reference| -> Vec<Vec<f32>> {
        let (_, grads) = reference.run(&packed, 1.0, |x| x.mean_all().unwrap());
        let variables = reference.policy.variables();
        variables.iter().map(|(_, var)| values(grads.get(var).unwrap())).collect()
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let in_precision = |recompute: bool| {
            let Reference { policy, values, settings, sequences } = reference_with(0.2);
            let policy = policy.recomputing(recompute).in_precision(precision).unwrap();
            Reference { policy, values, settings, sequences }
        };
        let kept = gradients(&in_precision(false));
        assert!(kept.iter().flatten().any(|grad| *grad != 0.0));
        assert!(kept == gradients(&in_precision(true)), "{precision:?}");
    }
}

#[test]
fn dropout_acts_on_updates_alone_and_follows_its_noise() {
    let (plain, reference) = (reference_with(0.0), reference_with(0.2));
    let packed = pack(&reference.sequences);
    let forward = |reference: &Reference, noise: u64| {
        values(&reference.policy.forward(&packed, noise).unwrap().hidden)
    };
    assert_eq!(forward(&reference, 1), forward(&reference, 1));
    assert_ne!(forward(&reference, 1), forward(&reference, 2));
    let hidden = |reference: &Reference| values(&reference.policy.hidden(&packed).unwrap());
    assert_eq!(hidden(&reference), hidden(&plain));
    assert_eq!(forward(&plain, 1), hidden(&plain));
    let off = |reference: &Reference| values(&reference.policy.reference_hidden(&packed).unwrap());
    assert_eq!(off(&reference), off(&plain));
}

#[test]
fn adamw_with_clipping_and_decay_follows_torch() {
    let reference = reference();
    let setting = |name: &str| reference.settings[name].as_f64().unwrap();
    let numbers = |name: &str| -> Vec<f64> {
        let list = reference.settings[name].as_array().unwrap();
        list.iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let config = AdamWConfig { weight_decay: setting("weight_decay"), ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(reference.policy.variables(), config).unwrap();
    let total: usize = reference.sequences.iter().map(|s| s.response.len()).sum();
    let steps = setting("steps") as u64;
    for step in 0..steps {
        let mut loss = 0.0;
        // Micro-batches of different sizes add up to the gradient of the whole.
        for run in micro_batches(&reference.sequences, 30) {
            let packed = pack(&reference.sequences[run]);
            let mean = |x: &Tensor| (x.sum_all().unwrap() * (-1.0 / total as f64)).unwrap();
            let (out, grads) = reference.run(&packed, 1.0, mean);
            loss += mean(&out.values).to_scalar::<f32>().unwrap();
            optimizer.accumulate(&grads).unwrap();
        }
        let norm = optimizer.step(learning_rate(setting("peak"), step, 0, steps)).unwrap();
        let index = step as usize;
        assert!((f64::from(loss) - numbers("losses")[index]).abs() < 1e-4, "loss {loss}");
        assert!((norm / numbers("norms")[index] - 1.0).abs() < 1e-4, "norm {norm}");
    }
    for (name, var) in reference.policy.variables() {
        let expected = reference.expected(&format!("after.{name}"));
        assert_close(&name, &values(var.as_tensor()), &expected, 2e-4);
    }
}

/// Against PEFT's aLoRA (tests/reference/make_lora_training_answer.py, float64).
#[test]
fn adapters_that_are_active_on_the_answer_learn_what_peft_gives_activated_lora() {
    let lora = LoraConfig { activation: Activation::Answer, ..LoraConfig::default() };
    let mut reference = reference_of(lora);
    let directory =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lora-training");
    let answer = load(directory.join("answer.safetensors"), &Device::Cpu).unwrap();
    let from: Vec<i64> = answer["from"].to_vec1().unwrap();
    for (sequence, from) in reference.sequences.iter_mut().zip(from) {
        sequence.active_from = Some(from as usize);
    }
    let mean = |log_probs: &Tensor| log_probs.mean_all().unwrap().neg().unwrap();
    let cache = Arc::new(PromptCache::new(1 << 20));
    reference.policy = reference.policy.keeping(cache.clone());
    for recompute in [false, true] {
        reference.policy = reference.policy.recomputing(recompute);
        // All rows with a coefficient each; those before the answer left out, computed and found.
        let learned = || reference.policy.pack(&reference.sequences).unwrap();
        for packed in [pack(&reference.sequences), learned(), learned()] {
            let (out, grads) = reference.run(&packed, 0.7, mean);
            let expected = values(&answer["log_probs"]);
            assert_close("log_probs", &values(&out.values), &expected, 5e-5);
            for (name, var) in reference.policy.variables() {
                let expected = values(&answer[&format!("grad.{name}")]);
                let largest = expected.iter().fold(1e-3f32, |max, g| max.max(g.abs()));
                let got = values(grads.get(&var).unwrap());
                assert_close(&name, &got, &expected, 2e-4 * largest.max(1e-2));
            }
        }
    }
    let before: usize = reference.sequences.iter().filter_map(|s| s.active_from).sum();
    let Counts { computed, found, .. } = cache.counts();
    assert_eq!((computed, found), (before, 3 * before));
    // Responses that share their prompt's rows, and one that does not: the same gradient.
    let first = reference.sequences[1].clone();
    let other = Sequence { response: vec![9, 8, 7], ..first.clone() };
    let learned = |sequences: &[Sequence]| reference.policy.pack(sequences).unwrap();
    let (shared, together) = reference.run(&learned(&[first.clone(), other.clone()]), 1.0, mean);
    let (one, alone) = reference.run(&learned(std::slice::from_ref(&first)), 1.0, mean);
    let (two, apart) = reference.run(&learned(std::slice::from_ref(&other)), 1.0, mean);
    let separate = [values(&one.values), values(&two.values)].concat();
    assert_close("shared", &values(&shared.values), &separate, 2e-5);
    let share = |sequence: &Sequence| {
        sequence.response.len() as f32 / (first.response.len() + other.response.len()) as f32
    };
    for (name, var) in reference.policy.variables() {
        let parts = values(alone.get(&var).unwrap()).into_iter();
        let parts = parts.zip(values(apart.get(&var).unwrap()));
        let sum: Vec<f32> = parts.map(|(a, b)| a * share(&first) + b * share(&other)).collect();
        assert_close(&name, &values(together.get(&var).unwrap()), &sum, 1e-5);
    }
}

/// The rows before the answer enter no product of a forward, and what is learned does not depend on
/// whether they were found.
#[test]
fn prompts_are_computed_once_and_found_or_not_they_give_the_same_bits() {
    let lora = LoraConfig { activation: Activation::Answer, ..LoraConfig::default() };
    let mut reference = reference_of(lora);
    for sequence in &mut reference.sequences {
        sequence.active_from = Some(sequence.prompt.len() - 1);
    }
    let mean = |log_probs: &Tensor| log_probs.mean_all().unwrap().neg().unwrap();
    let (all, last) = (reference.sequences.clone(), &reference.sequences[2..]);
    let run = |reference: &Reference, sequences: &[Sequence]| {
        let packed = reference.policy.pack(sequences).unwrap();
        let rows: usize = sequences.iter().map(|s| s.response.len()).sum();
        assert_eq!(packed.batch.tokens.len(), rows);
        let (out, grads) = reference.run(&packed, 1.0, mean);
        let each = reference.policy.variables().into_iter();
        let each = each.map(|(_, var)| values(grads.get(&var).unwrap()));
        let hidden = values(&reference.policy.reference_hidden(&packed).unwrap());
        (values(&out.values), each.collect::<Vec<_>>(), hidden)
    };
    // No budget: every use computes them anew.
    let anew = run(&reference, last);
    let cache = Arc::new(PromptCache::new(1 << 20));
    reference.policy = reference.policy.keeping(cache.clone());
    run(&reference, &all);
    assert!(run(&reference, last) == anew);
    let rows = |sequences: &[Sequence]| sequences.iter().filter_map(|s| s.active_from).sum();
    let Counts { computed, found, bytes } = cache.counts();
    assert_eq!((computed, found), (rows(&all), rows(last)));
    let model = reference.policy.model();
    assert_eq!(bytes, computed * model.layers * 2 * model.kv_heads * model.head_dim * 4);
}
