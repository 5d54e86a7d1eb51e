//! Losses, gradients and advantages against PyTorch (`tests/reference/training_losses.py`), by hand,
//! and by their invariances.

mod support;

use candle_core::{Device, Tensor, Var};
use ladle_training::rl::{
    advantage::{
        AdvantageError, TokenScore, gae, log_ratio, rewards_to_go, token_at, token_rewards, whiten,
    },
    gdpo::gdpo_advantages,
    modpo::Pairing,
    ppo::{KlController, Loss, LossError, Tokens, policy_loss, value_loss},
    remax::{remax_advantages, remax_loss},
};
use serde_json::Value;

use support::{numbers, reference, rows};

fn f32s(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

fn tensor(value: &Value, shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(f32s(value), shape, &Device::Cpu).unwrap()
}

fn var(value: &Value, shape: (usize, usize)) -> Var {
    Var::from_tensor(&tensor(value, shape)).unwrap()
}

fn gradient(loss: &Loss, of: &Var) -> Vec<f64> {
    let grads = loss.loss.backward().unwrap();
    let grad = grads.get(of).expect("the graph reaches the variable");
    grad.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

#[track_caller]
fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * (1.0 + e.abs()), "[{i}] got {g}, expected {e}");
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn losses_and_gradients_equal_pytorch() {
    for case in reference("losses.json")["losses"].as_array().unwrap() {
        let shape = numbers(&case["shape"]);
        let shape = (shape[0] as usize, shape[1] as usize);
        let t = |name: &str| tensor(&case[name], shape);
        let clip = case["clip"].as_f64().unwrap();
        let tokens = Tokens::mean(&t("mask")).unwrap();

        let log_probs = var(&case["log_probs"], shape);
        let policy = policy_loss(&log_probs, &t("old"), &t("advantages"), &tokens, clip).unwrap();
        let expected = &case["policy"];
        close(&[policy.value], &numbers(&expected["loss"]), 1e-5);
        close(&gradient(&policy, &log_probs), &numbers(&expected["gradient"]), 1e-5);
        close(&[policy.clip_fraction], &numbers(&expected["clip_fraction"]), 1e-6);
        close(&[policy.approximate_kl], &numbers(&expected["approximate_kl"]), 1e-5);

        let values = var(&case["values"], shape);
        let value = value_loss(&values, &t("old_values"), &t("returns"), &tokens, clip).unwrap();
        let expected = &case["value"];
        close(&[value.value], &numbers(&expected["loss"]), 1e-5);
        close(&gradient(&value, &values), &numbers(&expected["gradient"]), 1e-5);
        close(&[value.clip_fraction], &numbers(&expected["clip_fraction"]), 1e-6);

        let per_response = Tokens::over(&t("mask"), shape.0 as f64).unwrap();
        let remax = remax_loss(&log_probs, &t("advantages"), &per_response).unwrap();
        close(&[remax.value], &numbers(&case["remax"]["loss"]), 1e-5);
        close(&gradient(&remax, &log_probs), &numbers(&case["remax"]["gradient"]), 1e-5);
    }
}

#[test]
fn rewards_gae_and_whitening_equal_trl() {
    for case in reference("losses.json")["advantages"].as_array().unwrap() {
        let (gamma, lambda) = (case["gamma"].as_f64().unwrap(), case["lambda"].as_f64().unwrap());
        let coefficient = case["kl_coefficient"].as_f64().unwrap();
        let mut batch = Vec::new();
        for response in case["responses"].as_array().unwrap() {
            let kl = f32s(&response["kl"]);
            let score =
                TokenScore { token: kl.len() - 1, score: response["score"].as_f64().unwrap() };
            let rewards = token_rewards(&kl, coefficient, &[score]).unwrap();
            close(&wide(&rewards), &numbers(&response["rewards"]), 1e-6);
            let got = gae(&rewards, &f32s(&response["values"]), gamma, lambda).unwrap();
            close(&wide(&got.advantages), &numbers(&response["advantages"]), 1e-6);
            close(&wide(&got.returns), &numbers(&response["returns"]), 1e-6);
            batch.push(got.advantages);
        }
        whiten(&mut batch);
        close(&wide(&batch.concat()), &numbers(&case["whitened"]), 1e-5);
    }
}

#[test]
fn gae_of_three_tokens_by_hand() {
    // γ = 1, λ = ½, r = (0, 0, 1), V = (0.5, 0.25, 0.75):
    // δ = (−0.25, 0.5, 0.25); A = (−0.25 + 0.3125, 0.5 + 0.125, 0.25).
    let got = gae(&[0.0, 0.0, 1.0], &[0.5, 0.25, 0.75], 1.0, 0.5).unwrap();
    assert_eq!(got.advantages, [0.0625, 0.625, 0.25]);
    assert_eq!(got.returns, [0.5625, 0.875, 1.0]);
}

#[test]
fn gae_with_lambda_one_is_reward_to_go_minus_value_and_with_zero_the_td_error() {
    let (rewards, values) = ([0.5, -1.0, 2.0], [1.0, 0.25, -0.5]);
    let full = gae(&rewards, &values, 1.0, 1.0).unwrap();
    assert_eq!(full.returns, rewards_to_go(&rewards, 1.0).as_slice());
    assert_eq!(full.returns, [1.5, 1.0, 2.0]);
    let one_step = gae(&rewards, &values, 1.0, 0.0).unwrap();
    assert_eq!(one_step.advantages, [-0.25, -1.75, 2.5]);
}

#[test]
fn span_scores_are_paid_where_they_end() {
    let scores = [TokenScore { token: 0, score: 0.5 }, TokenScore { token: 2, score: -1.0 }];
    assert_eq!(token_rewards(&[0.5, -0.5, 0.0], 2.0, &scores).unwrap(), [-0.5, 1.0, -1.0]);
    let outside = [TokenScore { token: 3, score: 1.0 }];
    assert_eq!(
        token_rewards(&[0.0; 3], 0.2, &outside),
        Err(AdvantageError::Token { token: 3, tokens: 3 })
    );
}

#[test]
fn a_span_is_paid_on_the_token_that_completes_it() {
    // "Yes", "." , " N", a byte of "ö", the rest of it, end of sequence.
    let ends = [3, 4, 6, 6, 8, 8];
    assert_eq!([1, 3, 4, 5, 8].map(|end| token_at(&ends, end)), [0, 0, 1, 2, 4].map(Some));
    assert_eq!(token_at(&ends, 99), Some(5));
    assert_eq!(token_at(&[], 1), None);
}

#[test]
fn numbers_that_are_not_finite_are_named_and_lengths_compared() {
    let error = gae(&[0.0, f32::NAN], &[0.0, 0.0], 1.0, 0.95).unwrap_err();
    assert!(error.to_string().starts_with("rewards[1] is NaN"), "{error}");
    let error = gae(&[0.0, 1.0], &[0.0], 1.0, 0.95).unwrap_err();
    assert_eq!(error.to_string(), "values has 1 tokens, expected 2");
    assert!(log_ratio(&[0.0], &[]).is_err());
}

#[test]
fn remax_advantage_is_the_score_difference_minus_the_kl_still_to_come() {
    let got = remax_advantages(2.0, 0.5, &[0.5, 1.0, -0.5], 0.5).unwrap();
    assert_eq!(got, [1.0, 1.25, 1.75]);
    assert!(remax_advantages(2.0, 0.5, &[], 0.5).unwrap().is_empty());
}

#[test]
fn gdpo_advantages_are_those_of_trl() {
    for case in reference("losses.json")["gdpo"].as_array().unwrap() {
        let samples = case["samples"].as_u64().unwrap() as usize;
        let (rewards, weights) = (rows(&case["rewards"]), numbers(&case["weights"]));
        let mut rewards: Vec<Vec<Option<f64>>> =
            rewards.into_iter().map(|series| series.into_iter().map(Some).collect()).collect();
        let got = gdpo_advantages(&rewards, &weights, samples);
        // A reward that judges nothing changes nothing.
        rewards.push(vec![None; got.len()]);
        let with = [&weights[..], &[1.0]].concat();
        assert_eq!(gdpo_advantages(&rewards, &with, samples), got);
        close(&got, &numbers(&case["advantages"]), 1e-9);
    }
}

#[test]
fn modpo_weights_are_the_gradient_of_its_loss() {
    for case in reference("losses.json")["modpo"].as_array().unwrap() {
        let (own, beta) = (case["own"].as_u64().unwrap() as usize, case["beta"].as_f64().unwrap());
        let weights = numbers(&case["weights"]);
        let rewards: Vec<Vec<Option<f64>>> = rows(&case["rewards"])
            .into_iter()
            .map(|rewards| rewards.into_iter().map(Some).collect())
            .collect();
        let rewards: Vec<&[Option<f64>]> = rewards.iter().map(Vec::as_slice).collect();
        let pairing = Pairing { own, weights: &weights, beta };
        let got = pairing.weights(&rewards, &numbers(&case["log_ratios"]));
        let negative: Vec<f64> = got.iter().map(|weight| -weight).collect();
        close(&negative, &numbers(&case["gradient"]), 1e-9);
        // Equal answers order nothing.
        let tied = vec![rewards[0]; rewards.len()];
        let none = pairing.weights(&tied, &numbers(&case["log_ratios"]));
        assert!(none.iter().all(|weight| *weight == 0.0));
    }
}

/// One problem laid out four ways: packed, padded with zeros, padded with numbers that would poison
/// any sum, and with its responses in another order.
#[test]
fn padding_and_batch_order_change_no_loss_and_no_gradient() {
    let responses: [&[f32]; 3] = [&[-1.0, -2.5], &[-0.5], &[-3.0, -1.5, -0.25]];
    let layout = |order: &[usize], width: usize, pad: f32| -> (Vec<f32>, Vec<f32>) {
        let mut values = Vec::new();
        let mut mask = Vec::new();
        for &r in order {
            for t in 0..width {
                values.push(responses[r].get(t).copied().unwrap_or(pad));
                mask.push(if t < responses[r].len() { 1.0 } else { 0.0 });
            }
        }
        (values, mask)
    };
    let run = |order: &[usize], width: usize, pad: f32| {
        let (values, mask) = layout(order, width, pad);
        let shape = (order.len(), width);
        let make = |v: Vec<f32>| Tensor::from_vec(v, shape, &Device::Cpu).unwrap();
        let mask = make(mask);
        let log_probs = Var::from_tensor(&make(values.clone())).unwrap();
        let old = make(values.iter().map(|v| v * 1.25).collect());
        let advantages = make(values.iter().map(|v| 1.0 + v).collect());
        let tokens = Tokens::mean(&mask).unwrap();
        let loss = policy_loss(&log_probs, &old, &advantages, &tokens, 0.2).unwrap();
        let gradients = gradient(&loss, &log_probs);
        let mut rows = vec![Vec::new(); responses.len()];
        for (slot, &r) in order.iter().enumerate() {
            let row = &gradients[slot * width..(slot + 1) * width];
            rows[r] = row[..responses[r].len()].to_vec();
            assert!(row[responses[r].len()..].iter().all(|&g| g == 0.0));
        }
        (loss.value, rows.concat())
    };
    let (value, gradients) = run(&[0, 1, 2], 3, 0.0);
    for (order, width, pad) in [
        ([0, 1, 2], 9, 0.0),
        ([2, 0, 1], 3, 0.0),
        ([1, 2, 0], 5, f32::INFINITY),
        ([0, 1, 2], 4, f32::NAN),
    ] {
        let (other, others) = run(&order, width, pad);
        close(&[other], &[value], 1e-6);
        close(&others, &gradients, 1e-6);
    }
}

#[test]
fn micro_batches_over_the_same_divisor_add_up_to_the_whole() {
    let case = &reference("losses.json")["losses"][1];
    let shape = (3, 5);
    let whole = var(&case["log_probs"], shape);
    let t = |name: &str| tensor(&case[name], shape);
    let mask = t("mask");
    let count = f64::from(mask.sum_all().unwrap().to_scalar::<f32>().unwrap());
    let all = Tokens::mean(&mask).unwrap();
    let expected = policy_loss(&whole, &t("old"), &t("advantages"), &all, 0.2).unwrap();
    let (mut value, mut gradients) = (0.0, Vec::new());
    for row in 0..3 {
        let part = |x: &Tensor| x.narrow(0, row, 1).unwrap();
        let log_probs = Var::from_tensor(&part(&whole)).unwrap();
        let tokens = Tokens::over(&part(&mask), count).unwrap();
        let loss = policy_loss(&log_probs, &part(&t("old")), &part(&t("advantages")), &tokens, 0.2)
            .unwrap();
        value += loss.value;
        gradients.extend(gradient(&loss, &log_probs));
    }
    close(&[value], &[expected.value], 1e-5);
    close(&gradients, &gradient(&expected, &whole), 1e-5);
}

#[test]
fn losses_refuse_other_shapes_empty_masks_and_infinities() {
    let cpu = &Device::Cpu;
    let zeros = Tensor::zeros((1, 2), candle_core::DType::F32, cpu).unwrap();
    assert!(matches!(Tokens::mean(&zeros), Err(LossError::Empty(_))));
    let tokens = Tokens::mean(&zeros.ones_like().unwrap()).unwrap();
    let narrow = zeros.narrow(1, 0, 1).unwrap();
    let error = policy_loss(&zeros, &zeros, &narrow, &tokens, 0.2).unwrap_err();
    assert_eq!(error.to_string(), "advantages has shape [1, 1], expected [1, 2]");
    let infinite = Tensor::new(&[[0f32, f32::INFINITY]], cpu).unwrap();
    let error = policy_loss(&infinite, &zeros, &zeros, &tokens, 0.2).unwrap_err();
    assert!(matches!(error, LossError::NotFinite { name: "policy", .. }), "{error}");
}

#[test]
fn the_kl_coefficient_follows_its_target_in_steps_of_at_most_a_fifth() {
    let start = KlController { coefficient: 0.2, target: Some(3.0), horizon: 10_000.0 };
    let after = |kl: f64| {
        let mut controller = start.clone();
        controller.update(kl, 64);
        controller.coefficient
    };
    close(&[after(3.0), after(3.3)], &[0.2, 0.2 * (1.0 + 0.1 * 64.0 / 1e4)], 1e-12);
    close(&[after(300.0)], &[0.2 * (1.0 + 0.2 * 64.0 / 1e4)], 1e-12);
    close(&[after(0.0)], &[0.2 * (1.0 - 0.2 * 64.0 / 1e4)], 1e-12);
    assert_eq!(after(f64::NAN), 0.2);
    let mut fixed = KlController { target: None, ..start };
    fixed.update(50.0, 64);
    assert_eq!(fixed.coefficient, 0.2);
}
