//! What an evaluation derives from rewards, against numpy (`tests/reference/training_evaluation.py`).

mod support;

use ladle::preference::{Alpha, LambdaRule, MixingMatrix, Preference, solve::nearest_on_simplex};
use ladle_training::measure::{
    aggregate::aggregate,
    bootstrap::{crossed, percentile, resampled},
    front::{controllability, controllability_ceiling, grid, path},
    methods::{Kind, Trained},
    points::{Point, Text},
    regime::{Corner, Region, Sweep, beats_chord, r_squared, verdicts},
    results::{FORMAT, FrontFile, MethodFront, Objective, Selected},
    settings::{Fixed, Settings},
};
use serde_json::Value;
use std::path::{Path, PathBuf};

use support::{close, numbers, reference, rows};

#[test]
fn clamped_lambda_is_the_nearest_point_of_the_simplex() {
    for case in reference("evaluation.json")["simplex"].as_array().unwrap() {
        close(&nearest_on_simplex(&numbers(&case["v"])), &numbers(&case["nearest"]), 1e-12);
    }
    // B⁻¹e₁ = (2, −.5, −.5): the corner is its backbone alone; inside, nothing changes.
    let matrix = MixingMatrix::circulant(3, 0.6).unwrap();
    let solve = |rule, mu: &[f64], alpha| {
        let preference = Preference::new(mu, 3).unwrap();
        matrix.solve_by(rule, &preference, &alpha).coefficients
    };
    let corner = solve(LambdaRule::Clamp, &[1.0, 0.0, 0.0], Alpha::Scalar(0.25));
    close(&corner.backbones, &[1.25, 0.0, 0.0], 1e-12);
    close(&[corner.sft], &[-0.25], 1e-12);
    let alpha = Alpha::PerObjective(vec![0.1, 0.2, 0.3]);
    let [exact, clamped] = [LambdaRule::Exact, LambdaRule::Clamp]
        .map(|rule| solve(rule, &[0.35, 0.35, 0.3], alpha.clone()));
    close(&clamped.backbones, &exact.backbones, 1e-12);
    close(&[clamped.sft], &[exact.sft], 1e-12);
}

#[test]
fn rewards_that_are_linear_in_lambda_are_told_from_those_that_are_not() {
    for case in reference("evaluation.json")["r_squared"].as_array().unwrap() {
        let found = r_squared(&rows(&case["inputs"]), &rows(&case["outcomes"])).unwrap();
        close(&[found], &[case["r_squared"].as_f64().unwrap()], 1e-9);
    }
    assert_eq!(r_squared(&grid(2, 4), &vec![vec![1.0, 2.0]; 5]), None);
}

#[test]
fn a_grid_has_a_ceiling_of_controllability_that_rewards_without_ties_reach() {
    for case in reference("evaluation.json")["ceilings"].as_array().unwrap() {
        let case = numbers(case);
        let preferences = grid(case[0] as usize, case[1] as usize);
        close(&[controllability_ceiling(&preferences)], &case[2..], 1e-12);
        // Rewards that grow with their weight and never tie.
        let reward = |(index, mu): (usize, &Vec<f64>)| {
            mu.iter().map(|w| w.sqrt() + 1e-6 * index as f64).collect::<Vec<f64>>()
        };
        let rewards: Vec<Vec<f64>> = preferences.iter().enumerate().map(reward).collect();
        close(&[controllability(&preferences, &rewards).unwrap()], &case[2..], 1e-12);
    }
}

#[test]
fn resampled_means_and_intervals_are_those_of_numpy() {
    let case = &reference("evaluation.json")["bootstrap"];
    let differences = rows(&case["differences"]);
    let indices =
        |value: &Value| numbers(value).into_iter().map(|x| x as usize).collect::<Vec<_>>();
    let draws = case["rows"].as_array().unwrap().iter().zip(case["columns"].as_array().unwrap());
    let mut means: Vec<f64> =
        draws.map(|(r, c)| resampled(&differences, &indices(r), &indices(c))).collect();
    close(&means, &numbers(&case["means"]), 1e-12);
    means.sort_by(f64::total_cmp);
    let found = [0.025, 0.5, 0.975].map(|q| percentile(&means, q).unwrap());
    close(&found, &numbers(&case["percentiles"]), 1e-12);
    // Other draws: as far apart as 10,000 draws of such means are.
    let interval = crossed(&differences, 10_000, 1).unwrap();
    close(&[interval.low, interval.high], &numbers(&case["interval"]), 0.03);
    assert_eq!(crossed(&differences, 100, 1), crossed(&differences, 100, 1));
    assert_eq!(crossed(&[vec![1.0], vec![1.0, 2.0]], 10, 1), None);
}

#[test]
fn a_path_steps_between_neighbours_of_the_grid() {
    for (n, steps) in [(2, 10), (3, 4), (3, 10), (4, 3)] {
        let preferences = grid(n, steps);
        let along = path(&preferences);
        let mut visited = along.clone();
        visited.sort_unstable();
        assert_eq!(visited, (0..preferences.len()).collect::<Vec<_>>());
        for pair in along.windows(2) {
            let (a, b) = (&preferences[pair[0]], &preferences[pair[1]]);
            let moved: f64 = a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum();
            assert!(n > 3 || moved < 2.0 / steps as f64 + 1e-9, "{a:?} to {b:?}");
        }
    }
}

#[test]
fn regions_and_chords() {
    let of = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]].map(|mu| Region::of(&mu));
    assert_eq!(of, [Region::Corner, Region::Edge, Region::Interior]);
    let preferences = grid(2, 2);
    let straight = [vec![1.0, 0.0], vec![0.5, 0.5], vec![0.0, 1.0]];
    assert!(!beats_chord(&preferences, &straight));
    let bent = [vec![1.0, 0.0], vec![0.7, 0.7], vec![0.0, 1.0]];
    assert!(beats_chord(&preferences, &bent));
}

#[test]
fn a_verdict_says_what_to_change() {
    let corner = |kl, dominated| Corner {
        objective: "brief".into(),
        kl: Some(kl),
        backbone_kl: Some(10.0),
        dominated,
    };
    let sweep = |r_squared, kl, corners| Sweep {
        r_squared: Some(r_squared),
        interior_kl: Some(kl),
        corners,
        beats_chord: true,
        bones: true,
    };
    let says = |sweep: Sweep, parts: &[&str]| {
        let lines = verdicts(&sweep);
        assert_eq!(lines.len(), parts.len(), "{lines:?}");
        assert!(lines.iter().zip(parts).all(|(line, part)| line.starts_with(part)), "{lines:?}");
    };
    says(sweep(0.98, 1.5, vec![corner(12.0, false)]), &["linear (R² 0.98"]);
    says(sweep(0.98, 9.0, vec![]), &["no regime of these"]);
    says(sweep(0.9, 9.0, vec![corner(16.0, false)]), &["overshoot: the corner", "past the knee"]);
    says(
        sweep(0.5, 9.0, vec![corner(1.0, true)]),
        &["overshoot: θ_sft dominates", "far from linear"],
    );
    let alone = Sweep { bones: false, ..sweep(0.9, 9.0, vec![]) };
    says(alone.clone(), &["past the knee"]);
    assert!(
        verdicts(&alone)[0]
            .ends_with("backbones trained on mixed rewards (mixing.beta) may pay inside")
    );
    let greedy = Sweep { interior_kl: None, ..sweep(0.98, 0.0, vec![]) };
    says(greedy, &["linear (R² 0.98, KL is measured at temperature 1 alone)"]);
}

#[test]
fn a_realised_matrix_that_cannot_be_solved_leaves_its_method_out() {
    let nominal = MixingMatrix::circulant(2, 0.6).unwrap();
    let methods = |rows: &[Vec<f64>]| {
        let trained = Trained {
            run: 0,
            label: "",
            nominal: Some(&nominal),
            identity: false,
            realised: Some(rows),
            policy: "average".into(),
            told: None,
        };
        let (methods, left_out) = trained.methods(&Kind::ALL, &[]);
        let names: Vec<String> = methods.into_iter().map(|m| m.name).collect();
        (names, left_out)
    };
    let (names, left_out) = methods(&[vec![0.58, 0.42], vec![0.42, 0.58]]);
    assert!(names.iter().any(|name| name == "bone soup (realised)") && left_out.is_empty());
    let cases = [
        ([[0.5, 0.5], [0.5, 0.5]], "not dominated"),
        ([[0.51, 0.49], [0.49, 0.51]], "condition number 50.0, expected at most 20"),
    ];
    for (rows, reason) in cases {
        let (names, left_out) = methods(&rows.map(|row| row.to_vec()));
        assert!(!names.iter().any(|name| name == "bone soup (realised)"), "{names:?}");
        assert!(names.iter().any(|name| name == "bone soup (nominal)"));
        assert_eq!(left_out[0].method, "bone soup (realised)");
        assert!(left_out[0].reason.contains(reason), "{}", left_out[0].reason);
    }
}

#[test]
fn settings_that_compare_nothing_are_refused_before_anything_is_asked() {
    let settings = |preferences: Vec<Vec<f64>>, seeds: &[u64], temperature| Settings {
        fixed: Fixed {
            prompts: 1,
            dev_prompts: 1,
            temperature,
            seeds: seeds.to_vec(),
            preferences,
            server: false,
        },
        alphas: vec![0.5],
        every_alpha: false,
        methods: Kind::ALL.to_vec(),
    };
    let refused = |settings: Settings, part: &str| {
        let reason = settings.checked(3).unwrap_err();
        assert!(reason.contains(part), "{part:?} is not in: {reason}");
    };
    refused(settings(grid(3, 1), &[1], 1.0), "no preference of the grid");
    refused(settings(grid(3, 2), &[1], 1.0), "at least --grid 3");
    refused(settings(grid(2, 3), &[1], 1.0), "expected 3 weights");
    refused(settings(vec![vec![0.2, 0.3, 0.5]], &[1], 1.0), "1 preferences, expected at least 3");
    refused(settings(grid(3, 3), &[1, 1], 1.0), "distinct seeds");
    refused(settings(grid(3, 3), &[1, 2], 0.0), "expected one with --temperature 0");
    refused(settings(grid(3, 3), &[1], f64::NAN), "--temperature is NaN");
    let checked = settings(grid(3, 3), &[1], 1.0).checked(3).unwrap();
    assert_eq!(checked.alphas, [0.0, 0.5]);
}

/// An evaluation of one training seed: a baseline whose rewards depend on the row, and a method that
/// is better by `gain` (raw) in the first reward. 1 σ is `std` there; below 1, the baseline at α = 0.5,
/// better by half of `gain`, is the one chosen.
fn evaluation(directory: &Path, gain: f64, std: f64, rows: usize) {
    let objective =
        |name: &str, std| Objective { name: name.into(), unit: "share".into(), mean: 0.5, std };
    let objectives = vec![objective("a", std), objective("b", 1.0)];
    let text = Text { words: 1.0, finished: 1.0, distinct_2: 1.0, rouge_l: None };
    let grid = grid(2, 2);
    let mut samples =
        String::from("method,mu:a,mu:b,row,seed,finished,reward:a,reward:b,response\n");
    let mut methods = Vec::new();
    for (name, kind, alpha, gain) in [
        ("rewarded soup", Kind::Rewarded, 0.0, 0.0),
        ("rewarded soup, α = 0.5", Kind::Rewarded, 0.5, gain / 2.0),
        ("bone soup (nominal)", Kind::Bone, 0.0, gain),
    ] {
        let points = grid.iter().map(|mu| {
            for row in 0..rows {
                let reward = 0.5 + 0.1 * row as f64;
                let (a, b) = (reward + gain, reward);
                samples += &format!(
                    "\"{name}\",{},{},\"r{row}\",1,true,{a},{b},\"x, \"\"y\"\"\"\n",
                    mu[0], mu[1]
                );
            }
            let mean = 0.05 * (rows - 1) as f64;
            Point {
                preference: mu.clone(),
                lambda: Some(mu.clone()),
                mean: vec![0.5 + mean + gain, 0.5 + mean],
                spread: vec![0.0; 2],
                standardised: vec![(mean + gain) / std, mean],
                kl: None,
                dominated: false,
                text,
            }
        });
        let points = points.collect();
        methods.push(MethodFront::measure(name.into(), (Some(kind), alpha), points, None).unwrap());
    }
    let front = FrontFile {
        format: FORMAT,
        sha256: Default::default(),
        reference_point: FrontFile::reference(&objectives),
        objectives,
        controllability_ceiling: 1.0,
        temperature: 1.0,
        prompts: rows,
        seeds: vec![1],
        methods,
        oracles: Vec::new(),
        selected: vec![Selected {
            method: "rewarded soup".into(),
            alphas: vec![0.0, 0.5],
            scores: vec![0.0; 2],
            best: if std < 1.0 { 0.5 } else { 0.0 },
        }],
        left_out: Vec::new(),
    };
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("front.json"), serde_json::to_string(&front).unwrap()).unwrap();
    std::fs::write(directory.join("samples.csv"), samples).unwrap();
}

#[test]
fn training_seeds_are_put_together_each_in_its_own_scale() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second, other] = ["1", "2", "other"].map(|name| directory.path().join(name));
    evaluation(&first, 0.2, 0.5, 4);
    evaluation(&second, 0.2, 1.0, 4);
    evaluation(&other, 0.2, 1.0, 3);
    let together = aggregate(&[first.clone(), second.clone()], "rewarded soup").unwrap();
    let bone = &together.rows[2];
    // Σ μᵢΔzᵢ: .4 and .2 at the corner of a, half of that in the middle, 0 at the corner of b.
    let gain = |name| bone.gains[name];
    close(&[gain("all").mean, gain("interior").mean, gain("corners").mean], &[0.15; 3], 1e-12);
    // Rows differ by nothing; seeds by .2 and .1: either twice, or both.
    close(&[gain("interior").low, gain("interior").high], &[0.1, 0.2], 1e-12);
    assert!(!bone.gains.contains_key("edges") && together.rows[0].gains.is_empty());
    let testing = bone.testing.unwrap();
    let each = [0.15 * 0.5 / 0.5 + 0.15 * 0.5 + 0.2, 0.15 + 0.1];
    close(&[testing.mean], &[(each[0] + each[1]) / 2.0], 1e-12);
    close(&[testing.deviation], &[(each[0] - each[1]).abs() / 2f64.sqrt()], 1e-12);
    assert!(together.to_string().contains("| bone soup (nominal) | 0.3"), "{together}");
    // Against what each seed chose: .2 less half of it, and the whole .1.
    let against = aggregate(&[first.clone(), second], "rewarded soup, chosen α").unwrap();
    let gain = against.rows[2].gains["interior"];
    close(&[gain.mean, gain.low, gain.high], &[0.1; 3], 1e-12);
    let refused = |directories: &[&PathBuf], baseline: &str| {
        let directories: Vec<PathBuf> = directories.iter().map(|path| (*path).clone()).collect();
        aggregate(&directories, baseline).unwrap_err().to_string()
    };
    assert!(refused(&[&first], "rewarded soup").contains("expected at least 2"));
    let reason = refused(&[&first, &other], "rewarded soup");
    assert!(reason.contains("test rows or sampling seeds differ"), "{reason}");
    assert!(refused(&[&first, &first], "mod").contains("no method \"mod\""));
}
