//! Soups whose backbones are active on the answer only, against PEFT's aLoRA and a reference that
//! multiplies each row with its own matrix (`tests/reference/make_answer_only.py`): through the engine,
//! in every mode, however the prompt is cut, on cold and warm prefixes. And what is refused.

#[path = "support/answers.rs"]
#[allow(dead_code)] // its other users need more of it
mod answers;
#[path = "common/soup.rs"]
mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
    sync::LazyLock,
};

use answers::{run, settled};
use common::{copy_tree, fixture, numbers};
use ladle::{
    config::MergeMode,
    engine::{
        CpuBackend, CpuOptions, EngineConfig, EngineHandle, GenerateRequest, Mode, Pin, StepLimits,
        start,
    },
    kernels::HostTensor,
    preference::Coefficients,
    sampling::SamplingParams,
    soup::{ActiveFrom, OpenOptions, Soup, inspect::Inspection, weights::WeightFile},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const VOCABULARY: usize = 512;
const SOUPS: [&str; 3] = ["soup-tiny-answer", "soup-tiny-full", "soup-tiny-mixed"];

static REFERENCE: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_slice(&fs::read(fixture("answer-only.json")).unwrap()).unwrap()
});
static LOGITS: LazyLock<BTreeMap<String, HostTensor>> = LazyLock::new(|| {
    WeightFile::open(&fixture("answer-only.safetensors")).unwrap().1.into_iter().collect()
});

/// A fixture's copy whose backbones are active on the answer only.
fn copied(dir: &Path, name: &str) {
    copy_tree(&fixture(name), dir);
    edit(&dir.join("soup.toml"), |text| match text.contains("activation") {
        true => text,
        false => text.replacen("\n\n[base]", "\nactivation = \"answer\"\n\n[base]", 1),
    });
}

fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = change(fs::read_to_string(path).unwrap());
    fs::write(path, text).unwrap();
}

fn open_copy(dir: &Path, name: &str) -> Result<Soup, String> {
    let base = if name == "soup-tiny-mixed" { name } else { "soup-tiny" };
    let base = Some(fixture(base).join("base"));
    Soup::open(dir, &OpenOptions { base, verify_digests: true, ..OpenOptions::default() })
        .map_err(|e| e.to_string())
}

fn open(name: &str) -> (Soup, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    copied(dir.path(), name);
    (open_copy(dir.path(), name).unwrap(), dir)
}

struct Case {
    tokens: Vec<u32>,
    from: usize,
    rows: Vec<usize>,
    c: Coefficients,
    /// Logits of `rows`.
    logits: Vec<Vec<f32>>,
}

fn rows(name: &str) -> Vec<Vec<f32>> {
    LOGITS[name].to_f32().chunks(VOCABULARY).map(<[f32]>::to_vec).collect()
}

/// The merges of a soup, then each backbone alone.
fn cases(soup: &str) -> Vec<Case> {
    let documents = REFERENCE["soups"][soup].as_array().unwrap();
    let whole = |value: &Value| numbers(value).into_iter().map(|v| v as usize).collect::<Vec<_>>();
    let case = |document: &Value, c: Coefficients, name: String| Case {
        tokens: whole(&document["tokens"]).into_iter().map(|t| t as u32).collect(),
        from: document["from"].as_u64().unwrap() as usize,
        rows: whole(&document["rows"]),
        c,
        logits: rows(&name),
    };
    let merges = documents.iter().enumerate().map(|(index, document)| {
        let backbones = numbers(&document["coefficients"]);
        let sft = document["sft"].as_f64().unwrap();
        case(document, Coefficients { backbones, sft }, format!("{soup}.{index}"))
    });
    let names = ["helpful", "harmless", "brief"];
    let singles = names.iter().enumerate().map(|(index, name)| {
        let backbones = (0..3).map(|i| f64::from(u8::from(i == index))).collect();
        case(&documents[0], Coefficients { backbones, sft: 0.0 }, format!("{soup}.{name}"))
    });
    merges.chain(singles).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().fold(f64::MIN, |most, &v| most.max(f64::from(v)));
    let sum: f64 = logits.iter().map(|&v| (f64::from(v) - most).exp()).sum();
    logits.iter().map(|&v| f64::from(v) - most - sum.ln()).collect()
}

fn worst(top: &[(u32, f32)], logits: &[f32]) -> f64 {
    assert_eq!(top.len(), VOCABULARY);
    let expected = log_softmax(logits);
    let off = |&(id, value): &(u32, f32)| (f64::from(value) - expected[id as usize]).abs();
    top.iter().map(off).fold(0.0, f64::max)
}

fn request(c: &Coefficients, tokens: &[u32], from: usize) -> GenerateRequest {
    GenerateRequest {
        sampling: SamplingParams { logprobs: Some(VOCABULARY), ..SamplingParams::greedy() },
        active_from: Some(from),
        ..GenerateRequest::new(tokens.to_vec(), c.clone(), 1)
    }
}

fn engine(soup: &Soup, merge_mode: MergeMode, chunk: usize, pinned: Vec<Pin>) -> EngineHandle {
    let options = CpuOptions {
        threads: Some(2),
        kv_bytes: 4 << 20,
        merged_bytes: 16 << 20,
        merge_mode,
        ..CpuOptions::default()
    };
    let limits = StepLimits { prefill_chunk: chunk, lanes: 8, ..EngineConfig::default().limits };
    let config = EngineConfig { limits, merge_mode, pinned, ..EngineConfig::default() };
    let tokenizer = Tokenizer::from_dir(&soup.base_dir).unwrap();
    start(CpuBackend::open(soup, &options).unwrap(), tokenizer, config).unwrap()
}

/// Holds every row of the reference, computed at once and after another preference's prompt.
fn hold(what: &str, engine: &EngineHandle, cases: &[Case], mode: Mode) {
    for (index, case) in cases.iter().enumerate() {
        let asked = request(&case.c, &case.tokens, case.from);
        let echo = GenerateRequest { prompt_logprobs: Some(VOCABULARY), ..asked.clone() };
        let cold = run(engine, echo);
        assert_eq!((cold.failed.as_ref(), cold.started.unwrap().mode), (None, mode), "{what}");
        for (row, logits) in case.rows.iter().zip(&case.logits) {
            let top = match row + 1 == case.tokens.len() {
                true => &cold.tokens[0].top,
                false => &cold.prompt[*row].top,
            };
            let off = worst(top, logits);
            assert!(off < 1e-4, "{what}: case {index} row {row} is off by {off}");
        }
        let warm = run(engine, asked);
        let cached = warm.finished.unwrap().usage.cached_tokens;
        assert!(cached >= case.from / 16 * 16, "{what}: {cached} of {} cached", case.from);
        let off = worst(&warm.tokens[0].top, case.logits.last().unwrap());
        assert!(off < 1e-4, "{what}: case {index} on a warm prefix is off by {off}");
    }
    settled(engine);
}

#[test]
fn every_row_has_the_logits_that_peft_and_a_matrix_per_row_give() {
    for name in SOUPS {
        let (soup, _dir) = open(name);
        let cases = cases(name);
        for chunk in [5, 256] {
            for (merge_mode, mode) in [
                (MergeMode::Auto, Mode::Mixed),
                (MergeMode::Mixed, Mode::Mixed),
                (MergeMode::Fused, Mode::Fused),
            ] {
                let engine = engine(&soup, merge_mode, chunk, Vec::new());
                hold(&format!("{name} {merge_mode:?} by {chunk}"), &engine, &cases, mode);
            }
            // Merged weights answer on prompts that were computed with per-row coefficients.
            let pin = |case: &Case| Pin { name: "one".to_owned(), coefficients: case.c.clone() };
            let pinned = cases.iter().map(pin).collect();
            let engine = engine(&soup, MergeMode::Auto, chunk, pinned);
            hold(&format!("{name} pinned by {chunk}"), &engine, &cases, Mode::Fused);
        }
    }
}

#[test]
fn coefficients_of_theta_sft_alone_give_its_answer_wherever_they_become_active() {
    for name in SOUPS {
        let (soup, _dir) = open(name);
        let sft = Coefficients { backbones: vec![0.0; 3], sft: 1.0 };
        let tokens = cases(name)[0].tokens.clone();
        for mode in [MergeMode::Mixed, MergeMode::Fused] {
            let engine = engine(&soup, mode, 256, Vec::new());
            let top = |from| run(&engine, request(&sft, &tokens, from)).tokens[0].top.clone();
            let expected = top(0);
            for from in [1, 16, 17, tokens.len() - 1] {
                assert_eq!(top(from), expected, "{name} {mode:?} from {from}");
            }
        }
    }
}

#[test]
fn invocation_tokens_are_read_as_peft_writes_them_and_shown() {
    let (soup, _dir) = open("soup-tiny-answer");
    let tokens = numbers(&REFERENCE["invocation"]).into_iter().map(|t| t as u32).collect();
    assert_eq!(soup.active_from, ActiveFrom::Tokens(tokens));
    for case in cases("soup-tiny-answer") {
        // The header stands twice in each prompt.
        assert_eq!(soup.active_from.position(&case.tokens, None), Ok(Some(case.from)));
    }
    let inspection = Inspection::of(&soup);
    let shown = inspection.to_string();
    assert!(shown.contains("active on  the answer, from the tokens [1, 279, "), "{shown}");
    let document = serde_json::to_value(&inspection).unwrap();
    assert_eq!(document["activation"], "answer");
    assert_eq!(document["active_from"]["tokens"], REFERENCE["invocation"]);

    let (full, _dir) = open("soup-tiny-full");
    assert_eq!(full.active_from, ActiveFrom::GenerationPrompt);
    assert_eq!(common::open("soup-tiny").active_from, ActiveFrom::Start);
}

/// `adapter_config.json` of a backbone with one key changed.
fn set(dir: &Path, backbone: &str, key: &str, value: Value) {
    edit(&dir.join(backbone).join("adapter_config.json"), |text| {
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document[key] = value;
        document.to_string()
    });
}

#[test]
fn backbones_that_disagree_are_refused_by_name() {
    type Change = fn(&Path);
    let tokens = "alora_invocation_tokens";
    let cases: [(&str, &str, Change, &[&str]); 8] = [
        (
            "soup-tiny-answer",
            "no activation",
            |dir| edit(&dir.join("soup.toml"), |t| t.replace("activation = \"answer\"\n", "")),
            &["helpful", tokens, "it unset, or activation = \"answer\" in soup.toml"],
        ),
        (
            "soup-tiny-answer",
            "an unknown activation",
            |dir| edit(&dir.join("soup.toml"), |t| t.replace("= \"answer\"", "= \"answers\"")),
            &["soup.toml", "answers", "`all` or `answer`"],
        ),
        (
            "soup-tiny-answer",
            "other tokens",
            |dir| set(dir, "backbones/harmless", "alora_invocation_tokens", json!([1, 2])),
            &["harmless", tokens, "as in the backbones before it, got [1, 2]"],
        ),
        (
            "soup-tiny-answer",
            "no tokens in one",
            |dir| set(dir, "backbones/brief", "alora_invocation_tokens", Value::Null),
            &["brief", tokens, "[1, 279, 425, 429, 86, 201], as in the backbones", "got nothing"],
        ),
        (
            "soup-tiny-answer",
            "tokens beyond the vocabulary",
            |dir| set(dir, "backbones/helpful", "alora_invocation_tokens", json!([1, 512])),
            &["helpful", tokens, "token ids below 512, got 512"],
        ),
        (
            "soup-tiny-answer",
            "no list of tokens",
            |dir| set(dir, "backbones/helpful", "alora_invocation_tokens", json!("assistant")),
            &["helpful", tokens, "a list of token ids, got \"assistant\""],
        ),
        (
            "soup-tiny-mixed",
            "an SFT adapter with tokens",
            |dir| set(dir, "sft", "alora_invocation_tokens", json!([1, 2])),
            &["sft", tokens, "it unset: θ_sft computes every row, got [1, 2]"],
        ),
        (
            "soup-tiny-mixed",
            "tokens beside tensors stored whole",
            |dir| set(dir, "backbones/helpful", "alora_invocation_tokens", json!([1, 2])),
            &[
                "helpful",
                "none beside alora_invocation_tokens, because PEFT loads it for every token",
            ],
        ),
    ];
    for (name, what, change, parts) in cases {
        let dir = tempfile::tempdir().unwrap();
        copied(dir.path(), name);
        change(dir.path());
        let error = open_copy(dir.path(), name).err().unwrap_or_else(|| panic!("{what}: opened"));
        for part in parts {
            assert!(error.contains(part), "{what}: no {part:?} in {error}");
        }
    }
}

fn ladle(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
    command.args(args).env("LADLE_HOME", "/nonexistent").output().unwrap()
}

fn done(args: &[&str]) {
    let output = ladle(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn refusal(args: &[&str]) -> String {
    let output = ladle(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The arguments of a merge to `out` of a case.
fn merge(soup: &str, document: &Value, out: &str) -> Vec<String> {
    let preference: Vec<_> = numbers(&document["preference"]).iter().map(f64::to_string).collect();
    let alpha = document["alpha"].to_string();
    ["merge", soup, "--preference", &preference.join(","), "--alpha", &alpha, "--out", out]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn a_merged_adapter_is_activated_lora_and_serves_as_the_soup_does() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let soup = fixture("soup-tiny-answer");
    let documents = REFERENCE["soups"]["soup-tiny-answer"].as_array().unwrap();
    for (index, document) in documents.iter().enumerate() {
        let (merged, made) = (at(&format!("merged-{index}")), at(&format!("made-{index}")));
        let mut args = merge(soup.to_str().unwrap(), document, &merged);
        args.push("--adapter".to_owned());
        done(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let config = fs::read(Path::new(&merged).join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["alora_invocation_tokens"], REFERENCE["invocation"]);

        let base = fixture("soup-tiny/base");
        let backbone = format!("one={merged}");
        let init = ["init", &made, "--name", "one", "--base", base.to_str().unwrap()];
        let init = [&init[..], &["--backbone", &backbone, "--matrix", "[[1]]"]].concat();
        let error = refusal(&init);
        assert!(error.contains("ladle init --activation answer"), "{error}");
        done(&[&init[..], &["--activation", "answer"]].concat());
        let one = Soup::open(Path::new(&made), &OpenOptions::default()).unwrap();
        let case = &cases("soup-tiny-answer")[index];
        let alone = Coefficients { backbones: vec![1.0], sft: 0.0 };
        let engine = engine(&one, MergeMode::Mixed, 256, Vec::new());
        let answer = run(&engine, request(&alone, &case.tokens, case.from));
        let off = worst(&answer.tokens[0].top, case.logits.last().unwrap());
        assert!(off < 1e-4, "case {index} is off by {off}");
    }
}

#[test]
fn merges_that_no_file_can_hold_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("merged");
    let out = out.to_str().unwrap();
    let soup = |name: &str| {
        let to = dir.path().join(name);
        copied(&to, name);
        let manifest = to.join("soup.toml");
        let base = if name == "soup-tiny-mixed" { name } else { "soup-tiny" };
        let base = fixture(base).join("base");
        let path = format!("path = \"{}\"", base.display());
        let line =
            |text: &str| text.lines().skip_while(|l| *l != "[base]").nth(1).unwrap().to_owned();
        edit(&manifest, |text| text.replacen(&line(&text), &path, 1));
        to.to_str().unwrap().to_owned()
    };
    let document = &REFERENCE["soups"]["soup-tiny-answer"][0];
    for (name, adapter, part) in [
        (
            "soup-tiny-answer",
            false,
            "active on the answer only, which one set of weights cannot be",
        ),
        ("soup-tiny-full", false, "active on the answer only, which one set of weights cannot be"),
        ("soup-tiny-full", true, "backbone helpful is a full checkpoint"),
    ] {
        let mut args = merge(&soup(name), document, out);
        args.extend(adapter.then(|| "--adapter".to_owned()));
        let error = refusal(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains(part), "{name}: {error}");
        assert!(!Path::new(out).exists());
    }
}

#[test]
fn merges_over_an_sft_adapter_and_of_whole_tensors_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mixed = |path: &str| fixture("soup-tiny-mixed").join(path).display().to_string();
    let (helpful, brief) = (mixed("backbones/helpful"), mixed("backbones/brief"));
    let (base, sft) = (mixed("base"), mixed("sft"));
    // One backbone stores tensors whole; the other, over an SFT adapter, does not.
    let whole = format!("one={helpful}");
    let adapter = format!("one={brief}");
    for (name, backbone, more, part) in [
        ("whole", &whole, &[][..], "whole, which PEFT loads for prompts too"),
        ("sft", &adapter, &["--sft", &sft][..], "with an SFT adapter"),
    ] {
        let (made, out) = (at(name), at(&format!("{name}-merged")));
        let init = ["init", &made, "--name", "one", "--base", &base, "--backbone", backbone];
        let init = [&init[..], &["--matrix", "[[1]]", "--activation", "answer"], more].concat();
        done(&init);
        let error = refusal(&["merge", &made, "--adapter", "--out", &out]);
        assert!(error.contains(part), "{name}: {error}");
        assert!(!Path::new(&out).exists());
    }
}

#[test]
fn an_adapter_of_backbones_without_tokens_is_active_from_the_generation_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (made, out) = (at("made"), at("merged"));
    let tiny = fixture("soup-tiny");
    let backbone = |name: &str| format!("{name}={}", tiny.join("backbones").join(name).display());
    let base = tiny.join("base");
    done(&[
        "init",
        &made,
        "--name",
        "made",
        "--base",
        base.to_str().unwrap(),
        "--beta",
        "0.6",
        "--backbone",
        &backbone("helpful"),
        "--backbone",
        &backbone("brief"),
        "--activation",
        "answer",
    ]);
    done(&["merge", &made, "--preference", "1,1", "--adapter", "--out", &out]);
    let config = fs::read(Path::new(&out).join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    // <|im_start|>assistant and a line's end.
    assert_eq!(config["alora_invocation_tokens"], REFERENCE["invocation"]);

    // A base whose template appends nothing has no tokens to begin with.
    let silent = dir.path().join("silent");
    copy_tree(&base, &silent);
    edit(&silent.join("tokenizer_config.json"), |text| {
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["chat_template"] = json!("{% for m in messages %}{{ m.content }}{% endfor %}");
        document.to_string()
    });
    let silent = silent.to_str().unwrap();
    let error = refusal(&["merge", &made, "--base", silent, "--adapter", "--out", &at("other")]);
    assert!(error.contains("no tokens begin the answers of this soup"), "{error}");
}
