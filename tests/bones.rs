//! `ladle init --from-bones`: the soup of backbones that say what they are, and what is refused.

#[path = "common/soup.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ladle::{
    files::{file_sha256, write_json},
    soup::Soup,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy_tree, fixture, options};

const WEIGHTS: &str = "adapter_model.safetensors";

/// Copies of the tiny soup's backbones, each with its bone.
struct Problem {
    directory: TempDir,
    bones: Vec<PathBuf>,
}

impl Problem {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let base = fixture("soup-tiny/base");
        let sha256 = file_sha256(&base.join("model.safetensors")).unwrap();
        let bone = |(own, name): (usize, &str)| {
            let dir = directory.path().join(name);
            copy_tree(&fixture("soup-tiny").join("backbones").join(name), &dir);
            let mut column = [0.25, 0.25];
            column[own] = 0.75;
            let mut realised = [0.375, 0.375];
            realised[own] = 0.625;
            let reward = |kind: &str| json!({"kind": kind});
            let bone = json!({
                "format": 1,
                "backbone": format!("{name}-v1"),
                "objective": name,
                "objectives": [
                    {"name": "helpful", "description": "Answers.", "reward": reward("rouge-l")},
                    {"name": "harmless", "reward": reward("sentiment")},
                ],
                "column": column,
                "realised": realised,
                "standardiser": {"mean": [0.1, -0.3], "std": [1.0, 0.2]},
                "balance": {"strategy": "inverse", "every": 10},
                "seed": 3,
                "shared_a": true,
                "steps": 40 + own,
                "kl": {"coefficient": 0.05, "last": null},
                "activation": "all",
                "base": {"name": base.to_str(), "sha256": {"model.safetensors": sha256}},
                "sft": null,
                "weights": {WEIGHTS: file_sha256(&dir.join(WEIGHTS)).unwrap()},
                "engine": {"name": "any", "versions": {"any": "1.0"}},
            });
            write_json(&dir.join("bone.json"), &bone).unwrap();
            dir
        };
        let bones = ["helpful", "harmless"].into_iter().enumerate().map(bone).collect();
        Self { directory, bones }
    }

    fn soup(&self) -> PathBuf {
        self.directory.path().join("soup")
    }

    fn init(&self, dirs: &[&Path], more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
        command.arg("init").arg(self.soup()).args(["--name", "made", "--from-bones"]).args(dirs);
        command.args(more).env("LADLE_HOME", "/nonexistent").output().unwrap()
    }

    #[track_caller]
    fn refuses(&self, dirs: &[&Path], more: &[&str], parts: &[&str]) {
        let output = self.init(dirs, more);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{parts:?}: it was made");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
        assert!(!self.soup().exists());
    }

    /// Changes the bone of the second backbone, expects a refusal and puts it back.
    #[track_caller]
    fn refuses_with(&self, pointer: &str, value: Value, parts: &[&str]) {
        let path = self.bones[1].join("bone.json");
        let before = fs::read(&path).unwrap();
        let mut bone: Value = serde_json::from_slice(&before).unwrap();
        *bone.pointer_mut(pointer).unwrap() = value;
        write_json(&path, &bone).unwrap();
        self.refuses(&[&self.bones[0], &self.bones[1]], &[], parts);
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn bones_in_any_order_make_the_soup_that_they_describe() {
    let problem = Problem::new();
    let (helpful, harmless) = (&problem.bones[0], &problem.bones[1]);
    let output = problem.init(&[harmless, helpful], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let soup = Soup::open(&problem.soup(), &options()).unwrap();
    let manifest = &soup.manifest;
    assert_eq!(manifest.mixing.matrix, Some(vec![vec![0.75, 0.25], vec![0.25, 0.75]]));
    assert_eq!(manifest.mixing.realised, Some(vec![vec![0.625, 0.375], vec![0.375, 0.625]]));
    let objectives = manifest.objectives.iter().map(|o| (o.name.as_str(), o.description.as_str()));
    assert!(objectives.eq([("helpful", "Answers."), ("harmless", "")]));
    let backbones = manifest.backbones.iter().map(|backbone| backbone.name.as_str());
    assert!(backbones.eq(["helpful-v1", "harmless-v1"]));
    // The weights are those of the directories, each under its own name.
    for (name, from) in [("helpful-v1", helpful), ("harmless-v1", harmless)] {
        let copied = problem.soup().join("backbones").join(name).join(WEIGHTS);
        assert_eq!(fs::read(copied).unwrap(), fs::read(from.join(WEIGHTS)).unwrap());
    }
}

#[test]
fn bones_whose_weights_never_moved_have_no_realised_matrix() {
    let problem = Problem::new();
    for dir in &problem.bones {
        let path = dir.join("bone.json");
        let mut bone: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        bone["realised"] = Value::Null;
        write_json(&path, &bone).unwrap();
    }
    assert!(problem.init(&[&problem.bones[0], &problem.bones[1]], &[]).status.success());
    let soup = Soup::open(&problem.soup(), &options()).unwrap();
    assert_eq!(soup.manifest.mixing.realised, None);
}

#[test]
fn bones_that_do_not_belong_together_are_refused_by_name() {
    let problem = Problem::new();
    let other = "0".repeat(64);
    for (pointer, value, field) in [
        ("/base/sha256/model.safetensors", json!(other), "base.sha256"),
        ("/sft", json!({WEIGHTS: other}), "sft"),
        ("/objectives/0/reward/kind", json!("bleu-4"), "objectives"),
        ("/standardiser/std/1", json!(0.2000000000000001), "standardiser"),
        ("/balance/every", json!(5), "balance"),
        ("/activation", json!("answer"), "activation"),
        ("/shared_a", json!(false), "shared_a"),
        ("/seed", json!(4), "seed"),
    ] {
        let parts = ["harmless/bone.json", field, "as in", "helpful/bone.json"];
        problem.refuses_with(pointer, value, &parts);
    }
    problem.refuses_with(
        "/backbone",
        json!("helpful-v1"),
        &["harmless/bone.json", "backbone is \"helpful-v1\"", "helpful/bone.json"],
    );
    let (helpful, twin) = (&problem.bones[0], problem.directory.path().join("twin"));
    copy_tree(helpful, &twin);
    problem.refuses(&[helpful, &twin], &[], &["twin/bone.json: objective is \"helpful\""]);
    problem.refuses(&[helpful], &[], &["no bone of objective \"harmless\"", "of helpful"]);
}

#[test]
fn a_bone_that_is_not_right_by_itself_is_refused_by_field() {
    let problem = Problem::new();
    for (pointer, value, parts) in [
        ("/format", json!(2), &["format is 2", "expected 1"][..]),
        ("/objective", json!("kind"), &["objective is \"kind\"", "helpful, harmless"]),
        ("/column", json!([0.25, 0.7]), &["column is [0.25, 0.7]", "sum 1"]),
        ("/column", json!([0.75, 0.25]), &["column is", "largest number at \"harmless\""]),
        ("/realised", json!([1.5, -0.5]), &["realised is [1.5, -0.5]", "at least 0"]),
        ("/standardiser/std", json!([1.0, 0.0]), &["standardiser", "above 0"]),
        ("/weights", json!({}), &["weights is {}", "a digest of adapter_model.safetensors"]),
        ("/weights", json!({WEIGHTS: "0", "../x": "0"}), &["weights is \"../x\"", "inside"]),
        ("/seed", json!(-3), &["bone.json", "-3"]),
        ("/kl", json!({"coefficient": 0.1}), &["bone.json", "missing field `last`"]),
        ("/engine", json!({"name": "x", "versions": {}, "of": 1}), &["unknown field `of`"]),
    ] {
        problem.refuses_with(pointer, value, parts);
    }
    let other = "0".repeat(64);
    problem.refuses_with(
        &format!("/weights/{WEIGHTS}"),
        json!(other),
        &["sha256", WEIGHTS, &other],
    );
}

#[test]
fn base_and_supervised_adapter_are_those_of_the_training() {
    let problem = Problem::new();
    let dirs: Vec<&Path> = problem.bones.iter().map(PathBuf::as_path).collect();
    let base = problem.directory.path().join("base");
    copy_tree(&fixture("soup-tiny/base"), &base);
    let weights = base.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let at = base.to_str().unwrap();
    problem.refuses(&dirs, &["--base", at], &["base/model.safetensors", "sha256 is", "expected"]);
    let sft = problem.bones[0].to_str().unwrap();
    problem.refuses(&dirs, &["--sft", sft], &["sft is null", "no --sft"]);
    for option in [["--beta", "0.7"], ["--activation", "answer"], ["--objective", "x"]] {
        problem.refuses(&dirs, &option, &["--from-bones", option[0]]);
    }
}
