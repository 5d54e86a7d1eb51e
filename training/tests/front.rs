//! Front metrics against committed vectors (moocore), pymoo (`tests/reference/training_front.py`),
//! hand cases and brute force.

mod support;

use ladle_training::measure::{
    criterion::{Candidate, best_at_corner, by_hypervolume, by_testing_reward},
    front::{
        FrontError, controllability, grid, hypervolume, inner_product, non_dominated,
        sorted_sparsity, spacing, sparsity,
    },
};
use proptest::prelude::*;

use support::{numbers, reference, rows};

#[track_caller]
fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-9, "got {got}, expected {expected}");
}

#[test]
fn metrics_equal_the_committed_vectors() {
    for case in reference("front_metrics.json").as_array().unwrap() {
        let points = rows(&case["points_max"]);
        let volume = hypervolume(&points, &numbers(&case["ref_max"])).unwrap();
        close(volume, case["hypervolume"].as_f64().unwrap());
        let best = non_dominated(&points).unwrap();
        let expected: Vec<usize> =
            numbers(&case["nondominated"]).iter().map(|i| *i as usize).collect();
        assert_eq!(best, expected);
        let front: Vec<Vec<f64>> = best.iter().map(|&i| points[i].clone()).collect();
        close(sorted_sparsity(&front).unwrap(), case["sparsity_front"].as_f64().unwrap());
        close(spacing(&front).unwrap(), case["spacing_front_L1_n"].as_f64().unwrap());
    }
}

#[test]
fn hypervolume_equals_pymoo_in_two_to_six_dimensions() {
    for case in reference("front.json")["cases"].as_array().unwrap() {
        let volume = hypervolume(&rows(&case["points"]), &numbers(&case["reference"])).unwrap();
        close(volume, case["hypervolume"].as_f64().unwrap());
    }
}

#[test]
fn hypervolume_by_hand() {
    let points = [vec![1.0, 3.0], vec![2.0, 2.0], vec![3.0, 1.0], vec![1.0, 1.0]];
    close(hypervolume(&points, &[0.0, 0.0]).unwrap(), 6.0);
    close(hypervolume(&points, &[1.0, 1.0]).unwrap(), 1.0);
    close(hypervolume(&points, &[5.0, 5.0]).unwrap(), 0.0);
    close(hypervolume(&[vec![2.0], vec![5.0]], &[1.0]).unwrap(), 4.0);
    close(hypervolume(&[vec![1.0, 2.0, 3.0, 4.0, 5.0]], &[0.0; 5]).unwrap(), 120.0);
}

#[test]
fn sparsity_follows_the_order_of_the_preferences() {
    let walk = [vec![0.0, 0.0], vec![3.0, 4.0], vec![3.0, 4.0]];
    close(sparsity(&walk).unwrap(), 12.5);
    close(sparsity(&walk[..1]).unwrap(), 0.0);
}

#[test]
fn controllability_asks_every_dimension_of_every_pair() {
    let preferences = grid(2, 2);
    let follows = [vec![3.0, 1.0], vec![2.0, 2.0], vec![1.0, 3.0]];
    close(controllability(&preferences, &follows).unwrap(), 1.0);
    // The middle ties with the first in the second reward: 2 of 6 ordered pairs disagree.
    let ties = [vec![3.0, 1.0], vec![2.0, 1.0], vec![1.0, 3.0]];
    close(controllability(&preferences, &ties).unwrap(), 4.0 / 6.0);
    // 0.1 + 0.2 and 0.3 are one weight.
    let rounded = [vec![0.1 + 0.2, 0.7], vec![0.3, 0.7]];
    let same = [vec![1.0, 1.0], vec![1.0, 1.0]];
    close(controllability(&rounded, &same).unwrap(), 1.0);
}

#[test]
fn the_grid_has_the_published_sizes_and_order() {
    assert_eq!(grid(2, 10).len(), 11);
    assert_eq!(grid(3, 10).len(), 66);
    assert_eq!(grid(2, 2), [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]);
    for point in grid(4, 7) {
        close(point.iter().sum::<f64>(), 1.0);
    }
    assert!(grid(0, 10).is_empty() && grid(2, 0).is_empty());
}

#[test]
fn inner_product_by_hand() {
    let solutions = [vec![2.0, 0.0], vec![0.0, 4.0]];
    close(inner_product(&grid(2, 1), &solutions).unwrap(), 3.0);
}

#[test]
fn selection_takes_the_largest_and_the_first_of_equals() {
    let candidate = |value, gain: f64| Candidate {
        value,
        solutions: vec![vec![1.0 + gain, 0.0], vec![0.0, 1.0 + gain]],
    };
    let candidates = [candidate(0.6, 0.0), candidate(0.7, 0.5), candidate(0.8, 0.5)];
    assert_eq!(by_hypervolume(&candidates).unwrap().best, 1);
    let chosen = by_testing_reward(&candidates, &grid(2, 1)).unwrap();
    assert_eq!(chosen.best, 1);
    assert_eq!(chosen.scores, [1.0, 1.5, 1.5]);
    assert_eq!(best_at_corner(&candidates, &grid(2, 1), 1), Ok(0.7));
    assert_eq!(by_hypervolume(&[]), Err(FrontError::Empty { name: "points" }));
}

#[test]
fn ragged_and_non_finite_points_are_named() {
    let error = hypervolume(&[vec![1.0, 2.0], vec![1.0]], &[0.0, 0.0]).unwrap_err();
    assert_eq!(error.to_string(), "point 1 of points has 1 objectives, expected 2");
    let error = hypervolume(&[vec![1.0, f64::NAN]], &[0.0, 0.0]).unwrap_err();
    assert_eq!(error.to_string(), "point 0 of points holds NaN");
    assert!(hypervolume(&[vec![1.0, 2.0]], &[0.0]).is_err());
    assert!(inner_product(&grid(2, 1), &[vec![1.0, 2.0]]).is_err());
}

/// Volume by inclusion and exclusion over all subsets: exponential, and nothing like the code.
fn by_subsets(points: &[Vec<f64>], n: usize) -> f64 {
    (1u32..1 << points.len())
        .map(|set| {
            let chosen = points.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1);
            let mut corner = vec![f64::INFINITY; n];
            for (_, p) in chosen {
                for (c, x) in corner.iter_mut().zip(p) {
                    *c = c.min(*x);
                }
            }
            let volume: f64 = corner.iter().product();
            if set.count_ones() % 2 == 1 { volume } else { -volume }
        })
        .sum()
}

proptest! {
    #[test]
    fn hypervolume_equals_inclusion_and_exclusion(
        n in 1usize..6,
        raw in prop::collection::vec(prop::collection::vec(1u8..6, 5), 1..7),
    ) {
        // Small integers make ties and equal points common.
        let points: Vec<Vec<f64>> =
            raw.iter().map(|p| p[..n].iter().map(|x| f64::from(*x)).collect()).collect();
        let volume = hypervolume(&points, &vec![0.0; n]).unwrap();
        prop_assert!((volume - by_subsets(&points, n)).abs() < 1e-6, "{}", volume);
    }

    #[test]
    fn a_dominated_point_changes_no_volume(
        raw in prop::collection::vec(prop::collection::vec(0.1f64..1.0, 4), 1..6),
        share in 0.0f64..1.0,
    ) {
        let before = hypervolume(&raw, &[0.0; 4]).unwrap();
        let mut more = raw.clone();
        more.push(raw[0].iter().map(|x| x * share).collect());
        prop_assert!((hypervolume(&more, &[0.0; 4]).unwrap() - before).abs() < 1e-9);
    }
}
