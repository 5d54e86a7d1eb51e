//! `ladle init`, `inspect`, `solve` and `merge` as programs: what they write is what PEFT and torch
//! make of the same weights, and what they refuse they explain.

#[path = "common/soup.rs"]
mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use ladle::{
    kernels::{Dtype, HostTensor},
    preference::Coefficients,
    soup::{
        Adapter, Checkpoint, Soup, TensorSpec, WeightError, read_manifest,
        weights::{WeightFile, write_safetensors},
    },
};
use serde_json::Value;

use common::{
    SOUPS, copy_tree, fixture, merged, numbers, options, reference, values, with_adapter,
};

fn ladle(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
    command.args(args).env("LADLE_HOME", "/nonexistent").output().unwrap()
}

fn answer(args: &[&str]) -> Value {
    let output = ladle(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = ladle(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A vector as `--preference` takes it; `--alpha` takes JSON.
fn vector(value: &Value) -> String {
    numbers(value).iter().map(f64::to_string).collect::<Vec<_>>().join(",")
}

fn worst(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn a_merged_model_is_the_sum_that_torch_makes() {
    for name in SOUPS {
        let (document, stored) = reference(name);
        for (i, case) in document["cases"].as_array().unwrap().iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("merged");
            let (soup, preference, alpha) =
                (fixture(name), vector(&case["preference"]), case["alpha"].to_string());
            let answer = answer(&[
                "merge",
                text(&soup),
                "--preference",
                &preference,
                "--alpha",
                &alpha,
                "--out",
                text(&out),
            ]);
            let c = answer["coefficients"].as_object().unwrap();
            let sum: f64 = c.values().map(|c| c.as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{answer}");
            let sft = case["sft"].as_f64().unwrap();
            assert!((c["sft"].as_f64().unwrap() - sft).abs() < 1e-9);

            let merged = Checkpoint::open(&out).unwrap();
            let base = Soup::open(&soup, &options()).unwrap().base;
            assert!(merged.names().eq(base.names()));
            assert_eq!(merged.config(), base.config());
            assert!(out.join("tokenizer.json").is_file());
            for tensor in document["tensors"].as_array().unwrap() {
                let tensor = tensor.as_str().unwrap();
                let want = values(&stored[&format!("case{i}.{tensor}")]);
                let off = worst(&values(&merged.get(tensor).unwrap()), &want);
                assert!(off < 5e-6, "{name} case {i} {tensor}: off by {off}");
            }
        }
    }
}

#[test]
fn a_merged_adapter_is_the_change_that_peft_makes() {
    let mut base = Checkpoint::open(&fixture("soup-tiny/base")).unwrap();
    let config = base.check().unwrap();
    let (document, stored) = reference("soup-tiny");
    for (i, case) in document["cases"].as_array().unwrap().iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("adapter");
        let (preference, alpha) = (vector(&case["preference"]), case["alpha"].to_string());
        answer(&[
            "merge",
            text(&fixture("soup-tiny")),
            "--preference",
            &preference,
            "--alpha",
            &alpha,
            "--adapter",
            "--out",
            text(&out),
        ]);
        let adapter = Adapter::open(&out).and_then(|a| a.fit(&base, None, &config)).unwrap();
        // 4 + 8 of q, 4 + 8 + 3 of one v, 8 + 6 of down: one rank for all, scale 1.
        assert!(adapter.modules.values().all(|m| m.down.shape()[0] == 15 && m.scale == 1.0));
        assert_eq!(adapter.document()["r"], 15);
        for tensor in document["tensors"].as_array().unwrap() {
            let tensor = tensor.as_str().unwrap();
            let got = with_adapter(&values(&base.get(tensor).unwrap()), &adapter, tensor);
            let off = worst(&got, &values(&stored[&format!("case{i}.{tensor}")]));
            assert!(off < 5e-6, "case {i} {tensor}: off by {off}");
        }
    }
}

#[test]
fn an_adapter_over_sft_and_saved_modules_is_exact_too() {
    let dir = tempfile::tempdir().unwrap();
    let (soup_dir, out) = (dir.path().join("soup"), dir.path().join("adapter"));
    let mixed = fixture("soup-tiny-mixed");
    let backbone = |name: &str| format!("{name}={}", text(&mixed.join("backbones").join(name)));
    answer(&[
        "init",
        text(&soup_dir),
        "--name",
        "pair",
        "--base",
        text(&mixed.join("base")),
        "--sft",
        text(&mixed.join("sft")),
        "--backbone",
        &backbone("helpful"),
        "--backbone",
        &backbone("brief"),
        "--beta",
        "0.8",
    ]);
    answer(&[
        "merge",
        text(&soup_dir),
        "--preference",
        "helpful=1",
        "--alpha",
        "0.5",
        "--adapter",
        "--out",
        text(&out),
    ]);
    let soup = Soup::open(&soup_dir, &options()).unwrap();
    // λ of (1, 0) at β = 0.8, then 1 + α.
    let c = Coefficients { backbones: vec![1.5 * 4.0 / 3.0, -1.5 / 3.0], sft: -0.5 };
    let adapter = Adapter::open(&out).and_then(|a| a.fit(&soup.base, None, &soup.config)).unwrap();
    assert!(adapter.saved.contains_key("lm_head.weight"));
    for (name, tensor) in soup.base.tensors() {
        let got = with_adapter(&values(tensor), &adapter, name);
        let off = worst(&got, &merged(&soup, &c, name));
        assert!(off < 1e-5, "{name}: off by {off}");
    }
}

/// `make_truncated.py`: numpy's singular values of ΔW itself.
#[test]
fn an_adapter_of_a_smaller_rank_is_the_nearest_and_says_what_it_leaves_out() {
    let file = fs::read(fixture("truncated.json")).unwrap();
    let expected: Value = serde_json::from_slice(&file).unwrap();
    let mut base = Checkpoint::open(&fixture("soup-tiny/base")).unwrap();
    let config = base.check().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (i, case) in expected["cases"].as_array().unwrap().iter().enumerate() {
        let [small, exact] = ["small", "exact"].map(|name| dir.path().join(format!("{name}{i}")));
        let (preference, rank) = (vector(&case["preference"]), case["rank"].to_string());
        let soup = fixture("soup-tiny");
        let merge = ["merge", text(&soup), "--preference", &preference, "--adapter", "--out"];
        let said = answer(&[&merge[..], &[text(&small), "--rank", &rank]].concat());
        answer(&[&merge[..], &[text(&exact)]].concat());
        let close = |got: &Value, want: &Value| {
            (got.as_f64().unwrap() - want.as_f64().unwrap()).abs() < 1e-6
        };
        let (got, rank) = (&said["adapter"], case["rank"].as_u64().unwrap() as usize);
        assert_eq!((&got["rank"], &got["exact_rank"]), (&case["rank"], &Value::from(15)));
        assert!(close(&got["error"], &case["error"]), "{got}, expected {case}");
        assert!(close(&got["largest_error"], &case["largest_error"]), "{got}, expected {case}");
        if case["error"] != 0.0 {
            assert_eq!(got["largest_module"], case["largest_module"]);
        }
        // What was written is as far from the exact change as was said.
        let [small, exact] = [small, exact]
            .map(|dir| Adapter::open(&dir).and_then(|a| a.fit(&base, None, &config)).unwrap());
        let (mut lost, mut all) = (0f64, 0f64);
        for module in exact.modules.keys() {
            assert_eq!(small.modules[module].rank(), rank.min(15));
            let tensor = format!("{module}.weight");
            let zeros = vec![0f64; base.get(&tensor).unwrap().len()];
            let [small, exact] = [&small, &exact].map(|a| with_adapter(&zeros, a, &tensor));
            for (small, exact) in small.iter().zip(&exact) {
                lost += (small - exact).powi(2);
                all += exact.powi(2);
            }
        }
        let error = (lost / all).sqrt();
        assert!((error - case["error"].as_f64().unwrap()).abs() < 1e-5, "{error}, {case}");
    }
    let (soup, out) = (fixture("soup-tiny"), dir.path().join("none"));
    for (more, named) in
        [(["--rank", "4"].as_slice(), "--adapter"), (&["--adapter", "--rank", "0"], "--rank")]
    {
        let output = ladle(&[&["merge", text(&soup), "--out", text(&out)], more].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(named) && !out.exists());
    }
}

/// Rewrites the tensors of a safetensors file.
fn rewrite(path: &Path, change: impl Fn(&str, &HostTensor) -> HostTensor) {
    let (_, tensors) = WeightFile::open(path).unwrap();
    let tensors: Vec<_> =
        tensors.iter().map(|(name, tensor)| (name.clone(), change(name, tensor))).collect();
    let specs: Vec<_> = tensors.iter().map(|(name, t)| TensorSpec::of(name, t)).collect();
    write_safetensors(path, &specs, |spec| {
        let (_, tensor) = tensors.iter().find(|(name, _)| *name == spec.name).unwrap();
        Ok::<_, WeightError>(tensor.clone())
    })
    .unwrap();
}

fn cast(tensor: &HostTensor, dtype: Dtype, factor: f32) -> HostTensor {
    let values: Vec<f32> = tensor.to_f32().iter().map(|value| value * factor).collect();
    HostTensor::rounded(&values, dtype, tensor.shape().to_vec()).unwrap()
}

/// Four bf16 adapters of 4.7 MB became one f32 adapter of 39 MB, terms of coefficient 0 included.
#[test]
fn a_merged_adapter_keeps_the_storage_type_and_leaves_out_what_has_no_weight() {
    let dir = tempfile::tempdir().unwrap();
    let [soup, out, wide] = ["soup", "out", "wide"].map(|name| dir.path().join(name));
    let mut init = vec!["init", text(&soup), "--name", "bf16"];
    let base = fixture("soup-tiny/base");
    let backbones: Vec<String> = ["helpful", "harmless"]
        .map(|name| {
            let copy = dir.path().join(name);
            copy_tree(&fixture("soup-tiny/backbones").join(name), &copy);
            let weights = copy.join("adapter_model.safetensors");
            rewrite(&weights, |_, tensor| cast(tensor, Dtype::Bf16, 1.0));
            format!("{name}={}", text(&copy))
        })
        .to_vec();
    init.extend(["--base", text(&base), "--beta", "0.8"]);
    init.extend(backbones.iter().flat_map(|backbone| ["--backbone", backbone]));
    answer(&init);
    // μ = (0.8, 0.2) is the mix that backbone 0 was tuned for: c = (1, 0).
    let merge = ["merge", text(&soup), "--preference", "0.8,0.2", "--adapter", "--out"];
    answer(&[&merge[..], &[text(&out)]].concat());
    let adapter = Adapter::open(&out).unwrap();
    let plain = Adapter::open(&soup.join("backbones/helpful")).unwrap();
    assert!(adapter.modules.keys().eq(plain.modules.keys()));
    for (module, lora) in &adapter.modules {
        assert_eq!(
            (lora.rank(), lora.down.dtype(), lora.up.dtype()),
            (4, Dtype::Bf16, Dtype::Bf16)
        );
        // s = 2 moves into A, exactly in any binary type.
        assert_eq!(lora.up.bytes(), plain.modules[module].up.bytes());
        assert_eq!(values(&lora.down), values(&cast(&plain.modules[module].down, Dtype::F32, 2.0)));
    }
    answer(&[&merge[..], &[text(&wide), "--dtype", "f32"]].concat());
    let wide = Adapter::open(&wide).unwrap();
    assert!(wide.modules.values().all(|lora| lora.down.dtype() == Dtype::F32 && lora.rank() == 4));
}

/// `ladle merge` wrote infinities into f16 and said nothing.
#[test]
fn a_merge_that_leaves_the_range_of_the_storage_type_is_refused_with_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let [base, soup, out] = ["base", "soup", "out"].map(|name| dir.path().join(name));
    copy_tree(&fixture("soup-tiny/base"), &base);
    let tensor = "model.layers.1.mlp.up_proj.weight";
    rewrite(&base.join("model.safetensors"), |name, t| {
        cast(t, Dtype::F16, if name == tensor { 50_000.0 } else { 1.0 })
    });
    let backbone = format!("bold={}", text(&fixture("soup-tiny/backbones/harmless")));
    let far = dir.path().join("far");
    copy_tree(&fixture("soup-tiny/backbones/harmless"), &far);
    rewrite(&far.join("adapter_model.safetensors"), |name, t| {
        let factor = if name.contains("layers.1.mlp.up_proj.lora_B") { 600_000.0 } else { 1.0 };
        cast(t, Dtype::F32, factor)
    });
    let far = format!("far={}", text(&far));
    let init = ["init", text(&soup), "--name", "range", "--base", text(&base), "--beta", "0.8"];
    answer(&[&init[..], &["--backbone", &backbone, "--backbone", &far]].concat());
    let merge = ["merge", text(&soup), "--preference", "0,1", "--out", text(&out)];
    let message = refusal(&merge);
    assert!(message.contains(tensor) && message.contains("range of f16"), "{message}");
    assert!(message.contains("--dtype") && !out.exists(), "{message}");
    answer(&[&merge[..], &["--dtype", "bf16"]].concat());
    let merged = Checkpoint::open(&out).unwrap();
    assert!(merged.tensors().values().all(|t| t.to_f32().iter().all(|value| value.is_finite())));
}

#[test]
fn solve_prints_lambda_and_coefficients() {
    let circulant = ["solve", "0.9,0.1", "--objectives", "a,b", "--beta", "0.7"];
    let solved = answer(&circulant);
    let close = |value: &Value, want: f64| (value.as_f64().unwrap() - want).abs() < 1e-9;
    assert!(close(&solved["lambda"]["a"], 1.5) && close(&solved["lambda"]["b"], -0.5));
    let tiny = fixture("soup-tiny");
    let solved = answer(&["solve", "terse", "--soup", text(&tiny)]);
    assert!(close(&solved["preference"]["brief"], 0.8));
    let by_name = "brief=0.5,helpful=0.2,harmless=0.3";
    let solved = answer(&["solve", by_name, "--soup", text(&tiny)]);
    assert!(close(&solved["lambda"]["helpful"], 1.0 / 11.0));
    assert!(close(&solved["coefficients"]["sft"], 0.0));
    // What the soup's front says, as the server predicts it.
    let soup = tempfile::tempdir().unwrap();
    fs::copy(tiny.join("soup.toml"), soup.path().join("soup.toml")).unwrap();
    let reference: Value =
        serde_json::from_str(include_str!("fixtures/front-reference.json")).unwrap();
    let (case, weights) = (&reference["cases"][1], read_manifest(soup.path()).unwrap().1.weights());
    let mut front = case["front"].clone();
    front["sha256"] = serde_json::json!(weights);
    fs::write(soup.path().join("front.json"), front.to_string()).unwrap();
    let expected = &case["predictions"][0];
    let mu: Vec<String> =
        expected["preference"].as_array().unwrap().iter().map(Value::to_string).collect();
    let solved = answer(&["solve", &mu.join(","), "--soup", text(soup.path())]);
    assert!(close(&solved["predicted"]["brief"]["value"], expected["value"][2].as_f64().unwrap()));
}

#[test]
fn a_soup_that_clamps_lambda_says_so_and_solves_so_unless_asked() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = dir.path().join("soup-tiny");
    copy_tree(&fixture("soup-tiny"), &tiny);
    let manifest = tiny.join("soup.toml");
    let written = fs::read_to_string(&manifest).unwrap();
    let set = |rule: &str| {
        let mixing = format!("beta = 0.7\nlambda = {rule}\n");
        fs::write(&manifest, written.replace("beta = 0.7\n", &mixing)).unwrap();
    };
    set("\"clamp\"");
    let solve = ["solve", "helpful=1", "--soup", text(&tiny)];
    let clamped = answer(&solve);
    assert_eq!(
        (&clamped["lambda_rule"], &clamped["lambda"]["helpful"]),
        (&"clamp".into(), &1.0.into())
    );
    let exact = answer(&[&solve[..], &["--lambda", "exact"]].concat());
    assert!((exact["lambda"]["helpful"].as_f64().unwrap() - 17.0 / 11.0).abs() < 1e-12);
    let plain = String::from_utf8(ladle(&["inspect", text(&tiny)]).stdout).unwrap();
    assert!(plain.contains("λ clamped to the simplex"), "{plain}");
    // The corner's model is its backbone: merged as such.
    let [corner, backbone] = ["corner", "backbone"].map(|name| dir.path().join(name));
    answer(&["merge", text(&tiny), "--preference", "1,0,0", "--out", text(&corner)]);
    let column = ["merge", text(&tiny), "--preference", "0.7,0.15,0.15", "--out", text(&backbone)];
    answer(&[&column[..], &["--lambda", "exact"]].concat());
    let [corner, backbone] =
        [corner, backbone].map(|dir| fs::read(dir.join("model.safetensors")).unwrap());
    assert!(corner == backbone);
    set("\"clip\"");
    let message = refusal(&solve);
    assert!(
        message.contains("clip") && message.contains("exact") && message.contains("clamp"),
        "{message}"
    );
}

#[test]
fn inspect_speaks_to_people_and_programs() {
    let tiny = fixture("soup-tiny");
    let json = answer(&["inspect", text(&tiny), "--json"]);
    assert_eq!(json["name"], "soup-tiny");
    assert_eq!(json["digest"], Soup::open(&tiny, &options()).unwrap().digest);
    let plain = String::from_utf8(ladle(&["inspect", text(&tiny)]).stdout).unwrap();
    assert!(plain.contains("condition number 1.8182"), "{plain}");
}

#[test]
fn what_is_asked_wrongly_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let (tiny, out) = (fixture("soup-tiny"), dir.path().join("out"));
    let merge =
        |extra: &[&str]| refusal(&[&["merge", text(&tiny), "--out", text(&out)], extra].concat());
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--preference", "sweet=1"], &["\"sweet\"", "helpful, harmless, brief"]),
        (&["--preference", "sweet"], &["\"sweet\"", "balanced, terse"]),
        (&["--preference", "1,2"], &["2 weights", "expected 3"]),
        (&["--preference", "0,0,0"], &["all zero"]),
        (&["--preference", "-1,0,0"], &["preference.helpful is -1", "≥ 0"]),
        (&["--preference", "nan,0,1"], &["preference.helpful is NaN"]),
        (&["--preference", "brief=1,brief=2"], &["\"brief\" twice"]),
        (&["--alpha", "2.5"], &["alpha is 2.5", "[0, 2]"]),
    ];
    for (extra, parts) in cases {
        let message = merge(extra);
        assert!(parts.iter().all(|part| message.contains(part)), "{extra:?}: {message}");
        assert!(!out.exists());
    }
    let full = fixture("soup-tiny-full");
    let message = refusal(&["merge", text(&full), "--adapter", "--out", text(&out)]);
    assert!(message.contains("helpful is a full checkpoint"), "{message}");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("precious"), "").unwrap();
    assert!(merge(&[]).contains("already exists"));
    assert!(refusal(&["inspect", "/nonexistent"]).contains("/nonexistent/soup.toml"));
}

/// `ulimit -f` stands in for the full disk: writing fails after so many blocks of 512 bytes.
#[cfg(unix)]
#[test]
fn init_and_merge_on_a_full_disk_name_the_file_that_was_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let (tiny, out) = (fixture("soup-tiny"), dir.path().join("made"));
    let on_full_disk = |blocks: usize, args: &[&str]| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_ladle")]).args(args);
        let output = command.env("LADLE_HOME", "/nonexistent").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        String::from_utf8(output.stderr).unwrap()
    };
    let backbones = ["helpful", "harmless"]
        .map(|name| format!("{name}={}", tiny.join("backbones").join(name).display()));
    let base = tiny.join("base");
    let init: Vec<&str> = ["init", "--name", "made", "--beta", "0.7", "--offline", "--base"]
        .into_iter()
        .chain([text(&base), "--backbone", &backbones[0], "--backbone", &backbones[1]])
        .chain([text(&out)])
        .collect();
    let merge = ["merge", text(&tiny), "--preference", "1,1,1", "--offline", "--out", text(&out)];
    for (error, file) in [
        (on_full_disk(40, &init), "backbones/harmless/adapter_model.safetensors: copied from "),
        (on_full_disk(100, &merge), "model.safetensors: "),
    ] {
        let named = format!("{}/{file}", out.display());
        assert!(error.contains(&named) && error.contains("File too large"), "{error}");
    }
}
