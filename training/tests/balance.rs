//! Dynamic reward balancing: Algorithm 1 as transcribed in `tests/reference/training_losses.py`, and
//! what holds for every run.

mod support;

use ladle::preference::mixing::condition_number;
use ladle_training::rl::balance::{
    Balance, BalanceConfig, BalanceError, Normalisation, Standardiser, Strategy, keep_dominance,
};
use proptest::prelude::*;

use support::{close, numbers, reference};

/// Means of a batch that every reward judged a part of.
fn some(means: &[f64]) -> Vec<Option<f64>> {
    means.iter().map(|mean| Some(*mean)).collect()
}

#[test]
fn a_reward_without_responses_in_a_batch_keeps_its_mean() {
    let config = BalanceConfig { strategy: Strategy::Inverse, every: 2, ..Default::default() };
    let run = |batches: &[[Option<f64>; 2]]| {
        let mut balance = Balance::new(vec![1.0, 1.0], None, config.clone()).unwrap();
        for batch in batches {
            balance.advance(0, batch).unwrap();
        }
        balance.weights().to_vec()
    };
    // The second type is in every other batch: its mean is that of these.
    let seldom = run(&[
        [Some(0.5), Some(-0.2)],
        [Some(0.5), None],
        [Some(0.5), Some(-0.4)],
        [Some(0.5), None],
    ]);
    let always = run(&[[Some(0.5), Some(-0.3)]; 4]);
    close(&seldom, &always, 1e-12);
    // Counted as 0 it would seem to do better.
    assert!(seldom[1] > run(&[[Some(0.5), Some(-0.15)]; 4])[1]);
}

#[test]
fn every_step_equals_the_transcription_of_algorithm_1() {
    let reference = reference("losses.json");
    let mut mended = 0;
    for case in reference["drbo"].as_array().unwrap() {
        let config = BalanceConfig {
            strategy: serde_json::from_value(case["strategy"].clone()).unwrap(),
            normalisation: serde_json::from_value(case["normalisation"].clone()).unwrap(),
            every: case["every"].as_u64().unwrap(),
            shift: case["shift"].as_f64().unwrap(),
            floor: case["floor"].as_f64().unwrap(),
            lead: case["lead"].as_f64(),
        };
        let dominant = case["dominant"].as_u64().map(|i| i as usize);
        let mut balance = Balance::new(numbers(&case["preset"]), dominant, config).unwrap();
        for step in case["trace"].as_array().unwrap() {
            let drawn = balance.draw(step["uniform"].as_f64().unwrap());
            assert_eq!(drawn as u64, step["drawn"].as_u64().unwrap());
            balance.advance(drawn, &some(&numbers(&step["batch"]))).unwrap();
            close(balance.weights(), &numbers(&step["weights"]), 1e-9);
        }
        close(&balance.realised(), &numbers(&case["realised"]), 1e-9);
        let (floored, projections) = balance.interventions();
        assert_eq!(floored, case["floored"].as_u64().unwrap());
        mended += projections;
    }
    assert!(mended > 0, "no case of the reference needs its dominance mended");
}

#[test]
fn average_never_leaves_the_column_and_realises_it() {
    let column = vec![0.6, 0.2, 0.2];
    let preset = column.iter().map(|w| 3.0 * w).collect();
    let mut balance = Balance::new(preset, Some(0), BalanceConfig::default()).unwrap();
    for step in 0..50 {
        let drawn = balance.draw(f64::from(step) / 50.0);
        assert_eq!(balance.advance(drawn, &some(&[1.0, -5.0, 3.0])).unwrap(), None);
    }
    close(balance.weights(), &column, 1e-12);
    close(&balance.realised(), &column, 1e-12);
    assert!((balance.combine(&some(&[1.0, 2.0, 3.0])).unwrap() - 1.6).abs() < 1e-12);
}

#[test]
fn inverse_raises_the_objective_that_lags() {
    let config = BalanceConfig { strategy: Strategy::Inverse, every: 1, ..Default::default() };
    let mut balance = Balance::new(vec![1.0, 1.0], None, config).unwrap();
    balance.advance(0, &some(&[0.0, 0.0])).unwrap();
    balance.advance(1, &some(&[2.0, 0.0])).unwrap();
    // t = 2, counts (2, 2), R̄ = (1, 0): x̂ = (2, 1) + √(ln 2).
    let optimism = 2f64.ln().sqrt();
    let z = [1.0 / (2.0 + optimism), 1.0 / (1.0 + optimism)];
    close(balance.weights(), &[z[0] / (z[0] + z[1]), z[1] / (z[0] + z[1])], 1e-12);
}

#[test]
fn a_weight_vector_that_lost_its_lead_moves_to_the_first_point_that_has_it() {
    // Leads of entry 0: −0.2 at w, +0.4 at b; 0.1 at half of the way.
    let (w, moved) = keep_dominance(&[0.3, 0.5, 0.2], &[0.6, 0.2, 0.2], 0, 0.1);
    close(&[moved], &[0.5], 1e-12);
    close(&w, &[0.45, 0.35, 0.2], 1e-12);
    assert_eq!(keep_dominance(&[0.5, 0.3, 0.2], &[0.6, 0.2, 0.2], 0, 0.1).1, 0.0);
}

/// Before, the own weight kept a lead of 1e-6: with B̃ = ((.5, .5), (.5, .5)) λ was (25, −24).
#[test]
fn a_realised_matrix_stays_far_from_singular_however_well_the_own_objective_does() {
    let config = BalanceConfig { strategy: Strategy::Inverse, every: 1, ..Default::default() };
    let mut columns = Vec::new();
    for own in 0..2 {
        let preset = [0.4, 0.4]
            .iter()
            .enumerate()
            .map(|(j, w)| 2.0 * (w + if j == own { 0.2 } else { 0.0 }));
        let mut balance = Balance::new(preset.collect(), Some(own), config.clone()).unwrap();
        for step in 0..200 {
            let batch = if own == 0 { [3.0, 0.0] } else { [0.0, 3.0] };
            balance.advance(step % 2, &some(&batch)).unwrap();
        }
        // The column leads by .2, the default asks for half of that.
        let lead = balance.weights()[own] - balance.weights()[1 - own];
        assert!((lead - 0.1).abs() < 1e-9, "{lead}");
        columns.push(balance.realised());
    }
    let rows = vec![vec![columns[0][0], columns[1][0]], vec![columns[0][1], columns[1][1]]];
    let condition = condition_number(&rows);
    assert!(condition < 11.0, "{condition}");
}

#[test]
fn delta_takes_negative_gains_as_they_are() {
    let config = BalanceConfig { strategy: Strategy::Delta, every: 1, ..Default::default() };
    let mut balance = Balance::new(vec![1.0, 1.0], None, config).unwrap();
    balance.advance(0, &some(&[0.0, 0.0])).unwrap();
    balance.advance(1, &some(&[-8.0, 0.0])).unwrap();
    // t = 2, counts (2, 2): x̂ = (−4, 0) + √(ln 2), T = 0.02: all weight on the second objective.
    close(balance.weights(), &[0.0, 1.0], 1e-12);
    assert_eq!(balance.interventions(), (0, 0));
}

#[test]
fn standardising_uses_the_samples_it_was_fitted_on_and_floors_a_constant_reward() {
    let f = Standardiser::fit(&[vec![1.0, 3.0], vec![7.0, 7.0]]).unwrap();
    close(&f.mean, &[2.0, 7.0], 0.0);
    close(&f.std, &[1.0, 1e-6], 0.0);
    close(&f.apply(&[4.0, 7.0]).unwrap(), &[2.0, 0.0], 0.0);
    assert_eq!(Standardiser::fit(&[vec![], vec![]]), Err(BalanceError::NoSamples));
    // Each on the responses that it judges.
    let uneven = Standardiser::fit(&[vec![5.0], vec![1.0, 2.0]]).unwrap();
    assert_eq!(uneven.mean, [5.0, 1.5]);
    assert_eq!(uneven.apply_present(&[None, Some(2.0)]).unwrap(), [None, Some(1.0)]);
    assert!(f.apply(&[f64::NAN, 0.0]).is_err());
}

#[test]
fn bad_settings_and_columns_are_named() {
    let new = |preset: &[f64], dominant, config| Balance::new(preset.to_vec(), dominant, config);
    let default = BalanceConfig::default;
    let text = |r: Result<Balance, BalanceError>| r.unwrap_err().to_string();
    assert!(text(new(&[1.0, -1.0], None, default())).starts_with("preset[1] is -1"));
    assert!(text(new(&[0.0, 0.0], None, default())).contains("not all zero"));
    assert!(text(new(&[1.0, 1.0], Some(0), default())).contains("does not dominate"));
    assert!(text(new(&[1.0, 0.5], Some(2), default())).contains("does not dominate"));
    let config = BalanceConfig { floor: 0.0, ..default() };
    assert!(text(new(&[1.0], None, config)).starts_with("floor[0] is 0"));
    let config = BalanceConfig { lead: Some(0.5), ..default() };
    assert!(
        text(new(&[0.6, 0.4], Some(0), config)).starts_with("lead is 0.5, expected at most 0.1999")
    );
    let normalisation = Some(Normalisation::Sum);
    let config = BalanceConfig { strategy: Strategy::Delta, normalisation, ..default() };
    assert!(text(new(&[1.0, 1.0], None, config)).contains("expected softmax"));
    let mut balance = new(&[1.0, 1.0], None, default()).unwrap();
    assert!(balance.advance(2, &some(&[0.0, 0.0])).is_err());
    assert!(balance.advance(0, &some(&[0.0])).is_err());
    assert_eq!(balance.step(), 0);
}

prop_compose! {
    fn run()(
        n in 2usize..5,
        strategy in prop::sample::select(vec![Strategy::Inverse, Strategy::Delta]),
        softmax in prop::bool::ANY,
        shift in 0.0f64..2.0,
        batches in prop::collection::vec((prop::collection::vec(-50f64..50.0, 5), 0f64..1.0), 1..40),
        preset in prop::collection::vec(0.1f64..3.0, 5),
    ) -> (Vec<f64>, BalanceConfig, Vec<(Vec<f64>, f64)>) {
        let normalisation = softmax.then_some(Normalisation::Softmax);
        let config = BalanceConfig { strategy, normalisation, every: 3, shift, ..Default::default() };
        let batches = batches.into_iter().map(|(b, u)| (b[..n].to_vec(), u)).collect();
        (preset[..n].to_vec(), config, batches)
    }
}

fn on_the_simplex(w: &[f64]) -> bool {
    w.iter().all(|x| x.is_finite() && *x >= 0.0) && (w.iter().sum::<f64>() - 1.0).abs() < 1e-9
}

proptest! {
    #[test]
    fn weights_stay_on_the_simplex_and_the_own_objective_stays_largest((preset, config, batches) in run()) {
        let mut preset = preset;
        preset[0] = 3.5;
        let mut balance = Balance::new(preset, Some(0), config).unwrap();
        for (batch, uniform) in &batches {
            let drawn = balance.draw(*uniform);
            balance.advance(drawn, &some(batch)).unwrap();
            let w = balance.weights();
            prop_assert!(on_the_simplex(w), "{w:?}");
            // Half of the column's lead, which is at least (3.5 − 3)/Σ preset.
            prop_assert!(w[1..].iter().all(|x| w[0] - x > 0.5 / 2.0 / 12.5 - 1e-9), "{w:?}");
            prop_assert!(on_the_simplex(&balance.realised()));
        }
    }

    #[test]
    fn renaming_the_objectives_renames_the_weights((preset, config, batches) in run()) {
        let reversed = |v: &[f64]| v.iter().rev().copied().collect::<Vec<_>>();
        let n = preset.len();
        let mut a = Balance::new(preset.clone(), None, config.clone()).unwrap();
        let mut b = Balance::new(reversed(&preset), None, config).unwrap();
        for (batch, uniform) in &batches {
            let drawn = (uniform * n as f64) as usize;
            a.advance(drawn, &some(batch)).unwrap();
            b.advance(n - 1 - drawn, &some(&reversed(batch))).unwrap();
            let renamed = reversed(b.weights());
            for (x, y) in a.weights().iter().zip(&renamed) {
                prop_assert!((x - y).abs() < 1e-9, "{:?} {renamed:?}", a.weights());
            }
        }
        prop_assert_eq!(a.interventions(), b.interventions());
    }

    #[test]
    fn a_saved_state_continues_bit_for_bit((preset, config, batches) in run()) {
        let mut whole = Balance::new(preset, None, config).unwrap();
        let half = batches.len() / 2;
        let play = |balance: &mut Balance, part: &[(Vec<f64>, f64)]| {
            for (batch, uniform) in part {
                let drawn = balance.draw(*uniform);
                balance.advance(drawn, &some(batch)).unwrap();
            }
        };
        play(&mut whole, &batches[..half]);
        let mut resumed: Balance = toml::from_str(&toml::to_string(&whole).unwrap()).unwrap();
        prop_assert_eq!(&resumed, &whole);
        play(&mut whole, &batches[half..]);
        play(&mut resumed, &batches[half..]);
        prop_assert_eq!(resumed, whole);
    }
}
