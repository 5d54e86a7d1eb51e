//! μ → λ → c against the hand-worked cases, the closed form, and the quadratic problem of
//! Bone Soup's Example 1 and Theorem 1.

use ladle::preference::{
    Alpha, AlphaError, MixingError, MixingMatrix, Preference, PreferenceError,
};
use proptest::prelude::*;

fn preference(weights: &[f64]) -> Preference {
    Preference::new(weights, weights.len()).unwrap()
}

fn lambda(b: &MixingMatrix, mu: &[f64]) -> Vec<f64> {
    b.solve(&preference(mu), &Alpha::default()).lambda
}

#[track_caller]
fn assert_close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= tolerance, "got {got:?}, expected {expected:?}");
    }
}

#[test]
fn circulant_hand_cases() {
    let cases: [(f64, &[f64], &[f64]); 7] = [
        (0.6, &[0.5, 0.5], &[0.5, 0.5]),
        (0.6, &[1.0, 0.0], &[3.0, -2.0]),
        (0.6, &[0.4, 0.6], &[0.0, 1.0]),
        (0.7, &[0.9, 0.1], &[1.5, -0.5]),
        (0.7, &[0.2, 0.3, 0.5], &[1.0 / 11.0, 3.0 / 11.0, 7.0 / 11.0]),
        (0.6, &[1.0, 0.0, 0.0], &[2.0, -0.5, -0.5]),
        (0.8, &[0.1, 0.2, 0.3, 0.4], &[1.0 / 22.0, 4.0 / 22.0, 7.0 / 22.0, 10.0 / 22.0]),
    ];
    for (beta, mu, expected) in cases {
        let b = MixingMatrix::circulant(mu.len(), beta).unwrap();
        assert_close(&lambda(&b, mu), expected, 1e-12);
    }
}

#[test]
fn an_asymmetric_matrix_is_solved_by_columns() {
    // Columns (.7, .2, .1), (.1, .8, .1), (.2, .2, .6); expected by Cramer's rule (det B = 0.3).
    let b =
        MixingMatrix::from_rows(&[vec![0.7, 0.1, 0.2], vec![0.2, 0.8, 0.2], vec![0.1, 0.1, 0.6]])
            .unwrap();
    let mu = [0.2, 0.3, 0.5];
    let expected = [0.01 / 0.3, 0.05 / 0.3, 0.24 / 0.3];
    assert_close(&lambda(&b, &mu), &expected, 1e-12);
    assert_close(&b.column(0), &[0.7, 0.2, 0.1], 0.0);
}

#[test]
fn rewarded_soup_is_the_identity() {
    assert_close(&lambda(&MixingMatrix::identity(3), &[0.2, 0.3, 0.5]), &[0.2, 0.3, 0.5], 1e-15);
}

#[test]
fn scalar_extrapolation_is_equation_9() {
    let b = MixingMatrix::circulant(3, 0.6).unwrap();
    let solution = b.solve(&preference(&[1.0, 0.0, 0.0]), &Alpha::Scalar(0.5));
    assert_close(&solution.coefficients.backbones, &[3.0, -0.75, -0.75], 1e-12);
    assert_close(&[solution.coefficients.sft], &[-0.5], 1e-12);
    assert_close(&solution.lambda, &[2.0, -0.5, -0.5], 1e-12);
}

#[test]
fn extrapolation_per_objective_scales_each_column() {
    // c = Σⱼ μⱼ kⱼ B⁻¹eⱼ: β = .6, n = 2, B⁻¹ = [[3, −2], [−2, 3]], μ = (.5, .5), k = (1.2, 1).
    let b = MixingMatrix::circulant(2, 0.6).unwrap();
    let solution = b.solve(&preference(&[0.5, 0.5]), &Alpha::PerObjective(vec![0.2, 0.0]));
    assert_close(&solution.coefficients.backbones, &[0.8, 0.3], 1e-12);
    assert_close(&[solution.coefficients.sft], &[-0.1], 1e-12);
}

#[test]
fn each_broken_rule_is_named() {
    let cases: [(&[&[f64]], &str); 7] = [
        (&[], "square"),
        (&[&[0.6, 0.4], &[0.4]], "square"),
        (&[&[1.1, 0.4], &[-0.1, 0.6]], "(1, 0) is -0.1"),
        (&[&[0.6, f64::NAN], &[0.4, 0.6]], "(0, 1) is NaN"),
        (&[&[0.6, 0.4], &[0.3, 0.6]], "column 0 sums to 0.8999"),
        (&[&[0.5, 0.4], &[0.5, 0.6]], "column 0 is not dominated"),
        (&[&[0.500_01, 0.499_99], &[0.499_99, 0.500_01]], "condition number"),
    ];
    for (rows, expected) in cases {
        let rows: Vec<Vec<f64>> = rows.iter().map(|row| row.to_vec()).collect();
        let message = MixingMatrix::from_rows(&rows).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
    let message = MixingMatrix::circulant(2, 0.5).unwrap_err().to_string();
    assert!(message.contains("beta is 0.5") && message.contains("(0.5, 1)"), "{message}");
    assert!(matches!(MixingMatrix::circulant(3, f64::NAN), Err(MixingError::Beta { .. })));
}

#[test]
fn bad_weights_are_refused_with_their_value() {
    assert_eq!(Preference::new(&[0.5], 2), Err(PreferenceError::Length { expected: 2, got: 1 }));
    assert_eq!(Preference::new(&[0.0, 0.0], 2), Err(PreferenceError::Zero));
    assert_eq!(
        Preference::new(&[1.0, -0.5], 2),
        Err(PreferenceError::Weight { index: 1, value: -0.5 })
    );
    assert!(matches!(
        Preference::new(&[f64::NAN, 1.0], 2),
        Err(PreferenceError::Weight { index: 0, .. })
    ));
    assert!(Preference::new(&[f64::INFINITY, 1.0], 2).is_err());
    assert_close(preference(&[f64::MAX, f64::MAX]).weights(), &[0.5, 0.5], 1e-15);
    assert_close(preference(&[f64::MIN_POSITIVE, 0.0]).weights(), &[1.0, 0.0], 0.0);
}

#[test]
fn alpha_outside_its_bounds_is_refused() {
    assert_eq!(Alpha::Scalar(0.5).check(3, 0.0, 1.0), Ok(()));
    assert_eq!(
        Alpha::Scalar(1.5).check(3, 0.0, 1.0),
        Err(AlphaError::Bounds { value: 1.5, min: 0.0, max: 1.0 })
    );
    assert!(Alpha::Scalar(f64::NAN).check(3, 0.0, 1.0).is_err());
    assert_eq!(
        Alpha::PerObjective(vec![0.0; 2]).check(3, 0.0, 1.0),
        Err(AlphaError::Length { expected: 3, got: 2 })
    );
}

/// A random valid B (n = 2..6): a dominant diagonal plus a random point of the simplex per column.
fn mixing_matrix() -> impl Strategy<Value = MixingMatrix> {
    (2usize..=6)
        .prop_flat_map(|n| {
            let column = prop::collection::vec(0.01f64..1.0, n);
            (prop::collection::vec(column, n), prop::collection::vec(0.51f64..0.95, n))
        })
        .prop_map(|(columns, diagonal)| {
            let n = columns.len();
            let mut rows = vec![vec![0.0; n]; n];
            for (i, (column, beta)) in columns.iter().zip(&diagonal).enumerate() {
                let rest: f64 =
                    column.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, v)| v).sum();
                for (j, row) in rows.iter_mut().enumerate() {
                    row[i] = if i == j { *beta } else { (1.0 - beta) * column[j] / rest };
                }
            }
            MixingMatrix::from_rows(&rows).unwrap()
        })
}

fn problem() -> impl Strategy<Value = (MixingMatrix, Vec<f64>, Vec<f64>)> {
    mixing_matrix().prop_flat_map(|b| {
        let n = b.len();
        let weights = prop::collection::vec(0.001f64..1.0, n);
        let alphas = prop::collection::vec(0.0f64..1.0, n);
        (Just(b), weights, alphas)
    })
}

proptest! {
    #[test]
    fn coefficients_sum_to_one((b, weights, alphas) in problem()) {
        let solution = b.solve(&preference(&weights), &Alpha::PerObjective(alphas));
        let sum: f64 = solution.coefficients.backbones.iter().sum::<f64>() + solution.coefficients.sft;
        prop_assert!((sum - 1.0).abs() < 1e-9);
        prop_assert!((solution.lambda.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn b_times_lambda_gives_the_preference_back((b, weights, _) in problem()) {
        let mu = preference(&weights);
        let lambda = b.solve(&mu, &Alpha::default()).lambda;
        for (row, target) in b.rows().iter().zip(mu.weights()) {
            let product: f64 = row.iter().zip(&lambda).map(|(x, y)| x * y).sum();
            prop_assert!((product - target).abs() < 1e-9);
        }
    }

    #[test]
    fn a_scalar_alpha_is_the_same_alpha_per_objective((b, weights, alphas) in problem()) {
        let mu = preference(&weights);
        let scalar = b.solve(&mu, &Alpha::Scalar(alphas[0]));
        let vector = b.solve(&mu, &Alpha::PerObjective(vec![alphas[0]; b.len()]));
        prop_assert_eq!(scalar.coefficients, vector.coefficients);
    }

    #[test]
    fn permuting_objectives_permutes_lambda((b, weights, _) in problem(), seed in any::<u64>()) {
        let n = b.len();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(seed | 1));
        let rows = b.rows();
        let permuted: Vec<Vec<f64>> =
            order.iter().map(|&i| order.iter().map(|&j| rows[i][j]).collect()).collect();
        let moved: Vec<f64> = order.iter().map(|&i| weights[i]).collect();
        let expected = lambda(&b, &weights);
        let got = lambda(&MixingMatrix::from_rows(&permuted).unwrap(), &moved);
        for (g, &i) in got.iter().zip(&order) {
            prop_assert!((g - expected[i]).abs() < 1e-9);
        }
    }

    #[test]
    fn circulant_matches_its_closed_form(
        weights in prop::collection::vec(0.001f64..1.0, 2..8), share in 0.05f64..0.95,
    ) {
        let n = weights.len() as f64;
        let beta = 1.0 / n + share * (1.0 - 1.0 / n);
        let b = MixingMatrix::circulant(weights.len(), beta).unwrap();
        let mu = preference(&weights);
        let got = lambda(&b, &weights);
        for (l, m) in got.iter().zip(mu.weights()) {
            let expected = (m * (n - 1.0) - (1.0 - beta)) / (beta * n - 1.0);
            prop_assert!((l - expected).abs() < 1e-9);
        }
    }

    #[test]
    fn normalisation_ignores_scale(weights in prop::collection::vec(0.001f64..1.0, 1..8), scale in 1e-6f64..1e6) {
        let scaled: Vec<f64> = weights.iter().map(|w| w * scale).collect();
        let (a, b) = (preference(&weights), preference(&scaled));
        for (x, y) in a.weights().iter().zip(b.weights()) {
            prop_assert!((x - y).abs() < 1e-12);
        }
    }
}

/// A concave quadratic reward −Σ qₖ(xₖ−pₖ)² in the plane.
struct Quadratic {
    peak: [f64; 2],
    curvature: [f64; 2],
}

impl Quadratic {
    fn at(&self, x: [f64; 2]) -> f64 {
        -(0..2).map(|k| self.curvature[k] * (x[k] - self.peak[k]).powi(2)).sum::<f64>()
    }
}

/// argmax of Σ wⱼ rⱼ: per coordinate the curvature-weighted mean of the peaks.
fn optimum(rewards: &[Quadratic; 2], w: &[f64]) -> [f64; 2] {
    [0, 1].map(|k| {
        let mass: f64 = (0..2).map(|j| w[j] * rewards[j].curvature[k]).sum();
        (0..2).map(|j| w[j] * rewards[j].curvature[k] * rewards[j].peak[k]).sum::<f64>() / mass
    })
}

fn soup(rewards: &[Quadratic; 2], b: &MixingMatrix, mu: &[f64]) -> [f64; 2] {
    let backbones: Vec<[f64; 2]> = (0..2).map(|i| optimum(rewards, &b.column(i))).collect();
    let lambda = lambda(b, mu);
    [0, 1].map(|k| (0..2).map(|i| lambda[i] * backbones[i][k]).sum())
}

fn example_1() -> [Quadratic; 2] {
    [
        Quadratic { peak: [1.0, 1.0], curvature: [1.0, 1.0] },
        Quadratic { peak: [3.0, -1.0], curvature: [1.0, 4.0] },
    ]
}

#[test]
fn example_1_of_bone_soup() {
    let rewards = example_1();
    let bone = MixingMatrix::circulant(2, 0.6).unwrap();
    // Column 0 of B is (.6, .4): backbone 1 leans to r₁, whose peak is x = 1.
    assert_close(&optimum(&rewards, &bone.column(0)), &[1.8, -5.0 / 11.0], 1e-12);
    assert_close(&optimum(&rewards, &bone.column(1)), &[2.2, -5.0 / 7.0], 1e-12);
    let mu = [0.5, 0.5];
    assert_close(&soup(&rewards, &bone, &mu), &[2.0, -0.584_416], 1e-6);
    assert_close(&soup(&rewards, &MixingMatrix::identity(2), &mu), &[2.0, 0.0], 1e-12);
    assert_close(&optimum(&rewards, &mu), &[2.0, -0.6], 1e-12);
}

/// How far the soup's scalarised reward stays below the optimum at μ.
fn regret(rewards: &[Quadratic; 2], b: &MixingMatrix, mu: &[f64]) -> f64 {
    let total = |x: [f64; 2]| (0..2).map(|j| mu[j] * rewards[j].at(x)).sum::<f64>();
    total(optimum(rewards, mu)) - total(soup(rewards, b, mu))
}

/// β and the interval of μ₁ in which Theorem 1 promises that Bone Soup beats Rewarded Soup.
const THEOREM_1: [(f64, f64, f64); 3] =
    [(0.6, 0.139_445, 0.860_555), (0.7, 0.119_211, 0.880_789), (0.8, 0.087_689, 0.912_311)];

#[test]
fn theorem_1_bone_soup_beats_rewarded_soup_inside_the_interval() {
    let rewards = example_1();
    for (beta, low, high) in THEOREM_1 {
        let bone = MixingMatrix::circulant(2, beta).unwrap();
        let plain = MixingMatrix::identity(2);
        for step in 0..=100 {
            let first = low + (high - low) * f64::from(step) / 100.0;
            let mu = [first, 1.0 - first];
            assert!(
                regret(&rewards, &bone, &mu) < regret(&rewards, &plain, &mu),
                "β = {beta}, μ₁ = {first}"
            );
        }
        // Near the ends, outside the interval, the single-reward models are the better points.
        for first in [0.05, 0.95] {
            let mu = [first, 1.0 - first];
            assert!(regret(&rewards, &bone, &mu) > regret(&rewards, &plain, &mu));
        }
    }
}

proptest! {
    #[test]
    fn theorem_1_holds_for_any_quadratic_rewards(
        peaks in prop::array::uniform4(-5.0f64..5.0),
        curvatures in prop::array::uniform4(0.01f64..100.0),
        case in 0usize..3,
        share in 0.0f64..1.0,
    ) {
        let rewards = [
            Quadratic { peak: [peaks[0], peaks[1]], curvature: [curvatures[0], curvatures[1]] },
            Quadratic { peak: [peaks[2], peaks[3]], curvature: [curvatures[2], curvatures[3]] },
        ];
        let (beta, low, high) = THEOREM_1[case];
        let first = low + (high - low) * share;
        let mu = [first, 1.0 - first];
        let bone = regret(&rewards, &MixingMatrix::circulant(2, beta).unwrap(), &mu);
        let plain = regret(&rewards, &MixingMatrix::identity(2), &mu);
        prop_assert!(bone <= plain + 1e-9 * (1.0 + plain.abs()));
    }
}
