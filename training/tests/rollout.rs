//! Rollouts against the network that is trained: same log-probabilities, and no dependence on who
//! shares the batch or the prompt.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};
use ladle::soup::Activation;
use ladle_training::{
    precision::Precision,
    rl::{
        lora::LoraConfig,
        packing::Sequence,
        policy::Policy,
        rollout::{Request, Rollout, Sampler, Sampling, decoder},
    },
    setup::Base,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The base of a soup of the fixtures.
fn base(soup: &str) -> Base {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    Base::open(&fixtures.join(soup).join("base")).unwrap()
}

/// A policy whose adapters do something.
fn policy(base: &Base, activation: Activation) -> Policy {
    policy_in(Precision::F32, base, activation)
}

fn policy_in(precision: Precision, base: &Base, activation: Activation) -> Policy {
    let lora = LoraConfig { rank: 4, alpha: 8.0, activation, ..LoraConfig::default() };
    let policy = Policy::new(&base.model, &base.weights, &lora, &Device::Cpu, 3).unwrap();
    let policy = policy.in_precision(precision).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let drawn = policy.variables().into_iter().map(|(name, var)| {
        let values: Vec<f32> =
            (0..var.elem_count()).map(|_| rng.random_range(-0.3f32..0.3)).collect();
        (name, Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap())
    });
    policy.restore(&drawn.collect::<BTreeMap<_, _>>()).unwrap();
    policy
}

/// Four samples of each of three prompts, one of them shorter than a cache block. Adapters that are
/// active on the answer are so from the prompt's last four tokens on.
fn requests(activation: Activation) -> Vec<Request> {
    let prompts: [Vec<u32>; 3] =
        [(3..43).collect(), (5..12).collect(), (9..42).map(|t| t * 2 % 70).collect()];
    let each = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, 4)).zip(0..);
    let request = |(prompt, stream): (&Vec<u32>, u64)| Request {
        active_from: (activation == Activation::Answer).then_some(prompt.len() - 4),
        ..Request::drawn(prompt, stream)
    };
    each.map(request).collect()
}

fn sample(base: &Base, policy: &Policy, requests: &[Request], slots: usize) -> Vec<Rollout> {
    counted(Precision::F32, base, policy, requests, slots).0
}

/// The responses, and the rows of prompts that were computed for them.
fn counted(
    precision: Precision,
    base: &Base,
    policy: &Policy,
    requests: &[Request],
    slots: usize,
) -> (Vec<Rollout>, usize) {
    let factors = policy.lora().unwrap();
    let frozen = precision.frozen(base.weights.clone()).unwrap();
    let adapters = [(&factors, policy.config().term())];
    let decoder = decoder(&base.model, &frozen, &adapters).unwrap();
    let mut sampler = Sampler::new(&base.model, precision.kernels(), slots, 60).unwrap();
    let sampling = Sampling {
        temperature: 0.8,
        max_new_tokens: 12,
        end: base.tokenizer.eos().to_vec(),
        seed: 7,
        keep_hidden: true,
    };
    let rollouts = sampler.sample(&decoder, requests, &sampling).unwrap();
    (rollouts, sampler.prompt_rows())
}

#[test]
fn log_probs_of_rollouts_are_those_of_the_trained_network() {
    for (soup, activation) in [
        ("soup-tiny", Activation::All),
        ("soup-tiny", Activation::Answer),
        ("soup-t5", Activation::All),
        ("soup-t5-gated", Activation::All),
    ] {
        rollouts_equal_the_network(Precision::F32, soup, activation, 1e-4);
    }
}

/// Both round the same weights; sums in other orders are rounded again by the next product, and these
/// adapters are large.
#[test]
fn in_bf16_they_are_so_within_its_rounding() {
    rollouts_equal_the_network(Precision::Bf16, "soup-tiny", Activation::All, 0.2);
    rollouts_equal_the_network(Precision::Bf16, "soup-tiny", Activation::Answer, 0.2);
}

fn rollouts_equal_the_network(
    precision: Precision,
    soup: &str,
    activation: Activation,
    tolerance: f32,
) {
    let base = base(soup);
    let policy = policy_in(precision, &base, activation);
    let requests = requests(activation);
    let rollouts = counted(precision, &base, &policy, &requests, 12).0;
    let sequences: Vec<Sequence> = requests
        .iter()
        .zip(&rollouts)
        .map(|(r, o)| Sequence {
            prompt: r.prompt.clone(),
            response: o.tokens.clone(),
            active_from: r.active_from,
        })
        .collect();
    let packed = policy.pack(&sequences).unwrap();
    let hidden = policy.hidden(&packed).unwrap();
    let scored = policy.log_probs(&hidden, &packed.targets, 0.8).unwrap();
    let trained = scored.values.to_vec1::<f32>().unwrap();
    let sampled: Vec<f32> = rollouts.iter().flat_map(|r| r.log_probs.clone()).collect();
    assert_eq!(sampled.len(), trained.len());
    assert!(sampled.len() > 60, "only {} tokens to compare", sampled.len());
    for (index, (sampled, trained)) in sampled.iter().zip(&trained).enumerate() {
        assert!(
            (sampled - trained).abs() < tolerance,
            "token {index}: {sampled}, expected {trained}"
        );
    }
    let kept: Vec<f32> = rollouts.iter().flat_map(|r| r.hidden.clone()).collect();
    let hidden = hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(kept.len(), hidden.len());
    for (kept, hidden) in kept.iter().zip(&hidden) {
        assert!(
            (kept - hidden).abs() < 10.0 * tolerance,
            "hidden state: {kept}, expected {hidden}"
        );
    }
}

#[test]
fn a_rollout_is_the_same_alone_in_company_and_with_a_shared_prompt() {
    for (soup, activation) in [("soup-tiny", Activation::Answer), ("soup-t5", Activation::All)] {
        let base = base(soup);
        let policy = policy(&base, activation);
        let requests = requests(activation);
        let together = sample(&base, &policy, &requests, 12);
        // Fewer slots than responses to one prompt: some find its blocks filled, some fill them anew.
        assert_eq!(together, sample(&base, &policy, &requests, 3));
        for (request, rollout) in requests.iter().zip(&together) {
            let alone = sample(&base, &policy, std::slice::from_ref(request), 1);
            assert_eq!(alone.first(), Some(rollout));
        }
    }
}

#[test]
fn the_samples_of_a_prompt_share_its_whole_blocks_and_compute_them_once() {
    // The last of 40 tokens predicts: 2 blocks of 16 are shared, of 7 tokens none, of 33 two. What is
    // encoded is shared whole.
    let decoded = (40 + 3 * 8) + 4 * 7 + (33 + 3);
    for (soup, activation, expected) in [
        ("soup-tiny", Activation::All, decoded),
        ("soup-tiny", Activation::Answer, decoded),
        ("soup-t5", Activation::All, 40 + 7 + 33),
    ] {
        let base = base(soup);
        let (policy, requests) = (policy(&base, activation), requests(activation));
        assert_eq!(counted(Precision::F32, &base, &policy, &requests, 12).1, expected);
    }
}
