//! What other engines are given, from one configuration: by `bone-export`, as it stands in the sources.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

const CONFIG: &str = r#"
name = "tiny"
base = "base"
lora = { rank = 4, alpha = 8.0 }
rollout = { max_new_tokens = 1, samples = 4 }
rl = { algorithm = "rloo", steps = 2, batch = 32, kl_target = 0.0 }
[data]
format = "jsonl"
template = "{{ question }}"
train = "rows.jsonl"
[[objectives]]
name = "vowels"
reward = { kind = "regex", pattern = "^ ?[aeiou]" }
[[objectives]]
name = "others"
reward = { kind = "regex", pattern = "^ ?[b-df-hj-np-tv-z]" }
"#;

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

struct Place {
    dir: TempDir,
    exporter: PathBuf,
}

impl Place {
    /// `None` without a Python that reads TOML (3.11), which the package needs.
    fn new() -> Option<Self> {
        let python = Command::new("python3").args(["-c", "import tomllib"]).output();
        if !python.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), CONFIG).unwrap();
        let exporter = dir.path().join("bone-export");
        let package = concat!(env!("CARGO_MANIFEST_DIR"), "/engines/trl");
        script(
            &exporter,
            &format!("PYTHONPATH='{package}' exec python3 -m bone_train.export \"$@\""),
        );
        Some(Self { dir, exporter })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().canonicalize().unwrap().join(name).to_str().unwrap().to_owned()
    }

    /// `train-backbones export` into `out`.
    fn export(&self, exporter: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train-backbones"));
        command.current_dir(self.dir.path()).args(["export", "config.toml", "out", "--base", "."]);
        command.args(["--exporter"]).arg(exporter);
        command.args(arguments).output().unwrap()
    }
}

#[test]
fn trl_is_started_for_each_backbone_with_the_configuration_in_force() {
    let Some(place) = Place::new() else { return };
    let changes =
        ["--engine", "trl", "--set", "rl.steps=3", "--gpus", "2", "--rewards", "rewards:9000"];
    let output = place.export(&place.exporter, &changes);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let config = fs::read_to_string(place.path("out/config.toml")).unwrap();
    assert!(config.contains("steps = 3") && config.contains("advantage_clip"), "{config}");
    // What starts the engine is replaced by something that tells what it was asked.
    let programs = place.dir.path().join("programs");
    fs::create_dir(&programs).unwrap();
    script(&programs.join("accelerate"), "echo \"$BONE_REWARDS\"; printf '%s\\n' \"$@\"");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let here = place.dir.path().canonicalize().unwrap().to_str().unwrap().to_owned();
    for (name, port) in [("vowels", 9000), ("others", 9001)] {
        let mut run = Command::new(place.path(&format!("out/{name}/run")));
        let told = run.arg("--per-device=1").env("PATH", &path).env_remove("BONE_REWARDS").output();
        let told = String::from_utf8(told.unwrap().stdout).unwrap();
        let expected = [
            &format!("http://rewards:{port}"),
            "launch",
            "--num_processes",
            "2",
            "-m",
            "bone_train",
            &place.path("out/config.toml"),
            "--backbone",
            name,
            "--data",
            &here,
            "--base",
            &here,
            "--out",
            &place.path(&format!("out/{name}/bone")),
            "--per-device=1",
        ];
        assert_eq!(told.lines().collect::<Vec<_>>(), expected);
        let elsewhere = run.env("BONE_REWARDS", "http://elsewhere").output().unwrap();
        assert!(elsewhere.stdout.starts_with(b"http://elsewhere\n"));
    }
}

#[test]
fn what_an_engine_cannot_do_is_refused_by_name_and_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    let absent = place.dir.path().join("absent");
    let (given, none) = (place.exporter.as_path(), absent.as_path());
    for (exporter, arguments, part) in [
        (
            given,
            &["--engine", "trl", "--set", "rl.kl_target=3.0"][..],
            "rl.kl_target is 3.0, expected 0",
        ),
        (
            given,
            &["--engine", "openrlhf", "--set", "balance.strategy=\"inverse\""],
            "balance.strategy is 'inverse', expected \"average\": openrlhf",
        ),
        (
            given,
            &["--engine", "verl", "--set", "rl.advantage_clip=5.0"],
            "rl.advantage_clip is 5.0",
        ),
        (
            given,
            &["--engine", "trl", "--backbone", "loud"],
            "\"loud\", expected one of vowels, others",
        ),
        (given, &["--engine", "trl", "--set", "rl.step=3"], "rl.step"),
        (given, &["--engine", "deepspeed"], "deepspeed"),
        (given, &["--engine", "trl", "--rewards", "rewards"], "HOST:PORT"),
        (none, &["--engine", "trl"], "pip install training/engines/trl"),
    ] {
        let output = place.export(exporter, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{arguments:?}: {said}");
        assert!(!Path::new(&place.path("out")).exists(), "{arguments:?}");
    }
    // Nor is what is there already touched.
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/mine"), "").unwrap();
    let output = place.export(given, &["--engine", "trl"]);
    assert!(!output.status.success() && Path::new(&place.path("out/mine")).exists());
}
