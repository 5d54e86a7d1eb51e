//! The programs in `examples/`, run on the tiny soup.

#[allow(dead_code)]
#[path = "../examples/merge.rs"]
mod merge;
#[allow(dead_code)]
#[path = "../examples/serve.rs"]
mod serve;
#[allow(dead_code)]
#[path = "../examples/solve.rs"]
mod solve;

use std::path::{Path, PathBuf};

use ladle::soup::Checkpoint;
use serde_json::json;

fn soup() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/soup-tiny")
}

#[test]
fn solve_prints_the_closed_form() {
    let solution = solve::solve(&[0.2, 0.3, 0.5], 0.25).unwrap();
    for (lambda, elevenths) in solution.lambda.iter().zip([1.0, 3.0, 7.0]) {
        assert!((lambda - elevenths / 11.0).abs() < 1e-12, "{lambda}");
    }
    assert!((solution.coefficients.sft + 0.25).abs() < 1e-12);
}

#[test]
fn merge_writes_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("merged");
    merge::merge(&soup(), "terse", &out).unwrap();
    let merged = Checkpoint::open(&out).unwrap();
    assert!(merged.get("model.norm.weight").is_some());
}

#[tokio::test]
async fn serve_answers_once_and_stops() {
    let body =
        json!({"prompt": "The soup", "preference": "terse", "max_tokens": 4, "temperature": 0});
    let answer = serve::ask(&soup(), body).await.unwrap();
    assert!(answer["usage"]["completion_tokens"].as_u64().is_some_and(|n| n > 0), "{answer}");
    assert_eq!(answer["preference"]["brief"], 0.8, "{answer}");
}
