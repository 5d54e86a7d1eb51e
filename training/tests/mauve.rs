//! MAUVE against mauve-text (`tests/reference/training_mauve.py`), and by its command.

mod support;

use std::{fs, path::Path, process::Command};

use ladle_training::measure::mauve::{Quantisation, area, frontier, frontier_integral, mauve};
use serde_json::{Value, json};
use support::{close, numbers, path, reference, rows};

#[test]
fn the_frontier_of_histograms_equals_mauve_text() {
    let reference = reference("mauve.json");
    for case in reference["curves"].as_array().unwrap() {
        let (p, q) = (numbers(&case["p"]), numbers(&case["q"]));
        let curve = frontier(&p, &q);
        close(&curve.concat(), &numbers(&case["curve"]), 1e-9);
        close(&[area(&curve)], &numbers(&json!([case["mauve"]])), 1e-9);
        let integral = frontier_integral(&p, &q);
        close(&[integral], &numbers(&json!([case["frontier_integral"]])), 1e-9);
    }
}

/// With enough starts both find the best partition, whatever their draws.
#[test]
fn scores_of_features_equal_mauve_text() {
    let reference = reference("mauve.json");
    for case in reference["features"].as_array().unwrap() {
        let buckets = case["buckets"].as_u64().map(|buckets| buckets as usize);
        let how = Quantisation { buckets, starts: 100, seed: 1 };
        let mut got = mauve(&rows(&case["p"]), &rows(&case["q"]), &how).unwrap();
        assert_eq!(got.buckets as u64, case["num_buckets"].as_u64().unwrap());
        got.histograms[0].sort_by(f64::total_cmp);
        close(&got.histograms[0], &numbers(&case["p_histogram"]), 1e-9);
        let scores = [got.mauve, got.mauve_star, got.frontier_integral];
        let names = ["mauve", "mauve_star", "frontier_integral"];
        close(&scores, &names.map(|name| case[name].as_f64().unwrap()), 1e-6);
    }
}

#[test]
fn features_that_do_not_fit_are_refused() {
    let how = |buckets, starts| Quantisation { buckets: Some(buckets), starts, seed: 1 };
    let two = vec![vec![1.0, 0.0], vec![0.0, 1.0]];
    let refused = |p: &[Vec<f64>], how: &Quantisation, part: &str| {
        let reason = mauve(p, &two, how).unwrap_err();
        assert!(reason.contains(part), "{reason}");
    };
    refused(&two, &how(5, 1), "--buckets is 5 and --starts 1, expected 1 to 4");
    refused(&two, &how(0, 1), "--buckets is 0");
    refused(&two, &how(1, 0), "--starts 0");
    refused(&[], &how(1, 1), "features of one width");
    refused(&[vec![1.0]], &how(1, 1), "features of one width");
    refused(&[vec![1.0, f64::NAN]], &how(1, 1), "not finite");
    // More clusters than different features leaves some empty; the same set is at distance 0.
    let same = mauve(&two, &two, &how(4, 1)).unwrap();
    assert!(same.mauve > 0.999 && same.frontier_integral == 0.0, "{same:?}");
    let all_alike = mauve(&[vec![1.0, 1.0]], &[vec![2.0, 2.0]], &how(2, 1)).unwrap();
    assert!(all_alike.mauve > 0.999, "{all_alike:?}");
}

fn command(human: &Path, answers: &Path, model: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_train-backbones"));
    command.env("LADLE_LOG", "warn").arg("mauve").arg(human).arg(answers);
    command.arg("--model").arg(path("models").join(model));
    command
}

#[test]
fn a_decoder_gives_texts_their_features() {
    let directory = tempfile::tempdir().unwrap();
    let written = |name: &str, texts: &[String]| {
        let lines = texts.iter().map(|text| format!("{}\n", json!({"text": text})));
        let path = directory.path().join(name);
        fs::write(&path, lines.collect::<String>()).unwrap();
        path
    };
    let boats: Vec<String> = (0..20).map(|n| format!("Boat {n} leaks, and we caulk it.")).collect();
    let noise: Vec<String> = (0..20).map(|n| format!("{} ?!", "zz ".repeat(n + 1))).collect();
    let (human, other) = (written("human", &boats), written("other", &noise));
    let measured = |answers: &Path, model: &str| -> Value {
        let output = command(&human, answers, model).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    for model in ["gpt2", "llama"] {
        let (same, far) = (measured(&human, model), measured(&other, model));
        assert_eq!(same["buckets"], 2);
        let score = |measured: &Value| measured["mauve"].as_f64().unwrap();
        assert!(score(&same) > 0.99 && score(&far) < 0.9 * score(&same), "{model}: {far}");
    }
    let refused = |mut command: Command, part: &str| {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(part), "{text}");
    };
    refused(command(&human, &other, "bert"), "model_type is bert, expected gpt2, llama");
    let broken = directory.path().join("broken");
    fs::write(&broken, "{\"text\": \"a\"}\n{\"words\": \"b\"}\n").unwrap();
    refused(command(&human, &broken, "gpt2"), "broken:2");
}

/// It compares sets of answers.
#[test]
fn mauve_is_no_reward() {
    let spec = toml::from_str("kind = \"mauve\"").unwrap();
    let error = ladle_training::rewards::registry::build("fluent", spec).err().unwrap().to_string();
    for part in ["fluent", "two sets of texts", "train-backbones mauve"] {
        assert!(error.contains(part), "{error}");
    }
}
