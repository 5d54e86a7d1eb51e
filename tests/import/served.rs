//! `import` and `init` take only what `serve` can serve.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ladle::{
    import::{ImportOptions, Store, import},
    soup::{
        Activation, OpenOptions,
        init::Recipe,
        manifest::{BaseEntry, Mixing},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn soup() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/soup-tiny")
}

/// A copy of the tiny soup's base.
fn base() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(soup().join("base")).expect("a base") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
    }
    dir
}

fn edit(dir: &Path, file: &str, key: &str, value: Value) {
    let path = dir.join(file);
    let mut document: Value =
        serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    document[key] = value;
    fs::write(path, document.to_string()).expect("written");
}

fn recipe(base: &Path) -> Recipe {
    let helpful = soup().join("backbones/helpful");
    let brief = soup().join("backbones/brief");
    Recipe {
        name: "made".to_owned(),
        base: BaseEntry { path: Some(base.to_owned()), ..BaseEntry::default() },
        sft: None,
        objectives: Vec::new(),
        backbones: vec![("helpful".to_owned(), helpful), ("brief".to_owned(), brief)],
        mixing: Mixing { beta: Some(0.6), ..Mixing::default() },
        activation: Activation::All,
    }
}

#[test]
fn what_cannot_be_served_is_neither_imported_nor_made_a_soup_of() {
    let cases: [(&str, &dyn Fn(&Path)); 9] = [
        ("model.norm.weight: expected finite values, got NaN", &|dir| {
            let path = dir.join("model.safetensors");
            let mut bytes = fs::read(&path).expect("weights");
            let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8")));
            let header = 8 + header.expect("a length");
            let tensors: Value = serde_json::from_slice(&bytes[8..header]).expect("JSON");
            let norm = &tensors["model.norm.weight"];
            assert_eq!(norm["dtype"], "F32");
            let start = norm["data_offsets"][0].as_u64().expect("an offset") as usize + header;
            bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            fs::write(path, bytes).expect("written");
        }),
        ("model.layers.2.", &|dir| edit(dir, "config.json", "num_hidden_layers", json!(3))),
        ("model.layers.1.", &|dir| edit(dir, "config.json", "num_hidden_layers", json!(1))),
        ("rope_type", &|dir| {
            edit(
                dir,
                "config.json",
                "rope_scaling",
                json!({"rope_type": "longrope", "factor": 4.0}),
            );
        }),
        ("shape", &|dir| edit(dir, "config.json", "intermediate_size", json!(64))),
        ("gpt2", &|dir| edit(dir, "config.json", "model_type", json!("gpt2"))),
        ("token 99999", &|dir| {
            edit(dir, "generation_config.json", "eos_token_id", json!([99_999]));
        }),
        ("template", &|dir| {
            edit(dir, "tokenizer_config.json", "chat_template", json!("{% for %}"));
        }),
        ("tokenizer.json", &|dir| fs::write(dir.join("tokenizer.json"), "{}").expect("written")),
    ];
    for (expected, change) in cases {
        let base = base();
        change(base.path());
        let models = tempfile::tempdir().expect("a directory");
        for copy in [false, true] {
            let name = Some("model".to_owned());
            let options = ImportOptions { name, copy, ..ImportOptions::new(models.path()) };
            let path = base.path().to_str().expect("UTF-8");
            let said = import(path, &options).expect_err(expected).to_string();
            assert!(said.contains(expected), "{expected} not in: {said}");
            assert!(!models.path().join("model").exists());
        }
        let store = Store { models_dir: models.path().to_owned(), offline: true };
        let made = models.path().join("soup");
        let said = store.init(&made, &recipe(base.path())).expect_err(expected).to_string();
        assert!(said.contains(expected), "{expected} not in: {said}");
        assert!(!made.exists());
    }
}

#[test]
fn init_takes_the_path_of_a_base_from_the_working_directory() {
    let home = tempfile::tempdir().expect("a directory");
    let base = base();
    std::os::unix::fs::symlink(base.path(), home.path().join("mine")).expect("a link");
    let backbone = |name: &str| format!("{name}={}", soup().join("backbones").join(name).display());
    let output = Command::new(env!("CARGO_BIN_EXE_ladle"))
        .args(["init", "made/soup", "--name", "made", "--base", "mine", "--beta", "0.6"])
        .args(["--backbone", &backbone("helpful"), "--backbone", &backbone("brief")])
        .current_dir(home.path())
        .env("LADLE_HOME", home.path())
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(home.path().join("made/soup/soup.toml").is_file());
}

#[test]
fn a_byte_that_changed_since_the_import_is_noticed_when_a_soup_is_verified() {
    let (models, place) = (TempDir::new().expect("a directory"), TempDir::new().expect("one"));
    let base = base();
    let options = ImportOptions {
        copy: true,
        name: Some("tiny".to_owned()),
        ..ImportOptions::new(models.path())
    };
    let imported = import(base.path().to_str().expect("UTF-8"), &options).expect("imports").dir;
    let store = Store { models_dir: models.path().to_owned(), offline: true };
    let dir = place.path().join("soup");
    let by_id = BaseEntry { id: Some("tiny".to_owned()), ..BaseEntry::default() };
    store.init(&dir, &Recipe { base: by_id, ..recipe(base.path()) }).expect("a soup");
    let manifest = dir.join("soup.toml");
    let pinned = fs::read_to_string(&manifest).expect("a manifest");
    let unpinned: Vec<_> =
        pinned.lines().filter(|line| !line.starts_with("\"model.safetensors\"")).collect();
    for (text, file) in [
        (pinned.clone(), "model.safetensors"),
        (pinned.clone(), "tokenizer.json"),
        (unpinned.join("\n"), "model.safetensors"),
    ] {
        fs::write(&manifest, text).expect("written");
        let verified = OpenOptions { verify_digests: true, ..OpenOptions::default() };
        store.open(&dir, verified.clone()).expect("untouched");
        let path = imported.join(file);
        let whole = fs::read(&path).expect("a file");
        let mut bytes = whole.clone();
        match bytes.iter().position(|byte| *byte == b'\n').filter(|_| file.ends_with("json")) {
            Some(line_break) => bytes[line_break] = b' ',
            // The sign of a number.
            None => *bytes.last_mut().expect("not empty") ^= 0x80,
        }
        fs::write(&path, bytes).expect("written");
        let error = store.open(&dir, verified).err().expect("refused").to_string();
        assert!(error.contains(file) && error.contains("sha256 is"), "{error}");
        store.open(&dir, OpenOptions::default()).expect("not verified");
        fs::write(&path, whole).expect("written");
    }
}

#[test]
fn a_t5_is_imported_as_it_is_or_refused_by_name() {
    let cases: [(&str, &dyn Fn(&Path)); 5] = [
        ("", &|_| ()),
        ("is_gated_act: is true, must be false", &|dir| {
            edit(dir, "config.json", "is_gated_act", json!(true));
        }),
        ("decoder_start_token_id: expected 0, as in config.json, got 3", &|dir| {
            edit(dir, "generation_config.json", "decoder_start_token_id", json!(3));
        }),
        ("decoder.block.3.layer", &|dir| {
            edit(dir, "config.json", "num_decoder_layers", json!(4));
        }),
        ("encoder.block.1.layer", &|dir| edit(dir, "config.json", "num_layers", json!(1))),
    ];
    for (expected, change) in cases {
        let base = tempfile::tempdir().expect("a directory");
        for entry in fs::read_dir(soup().with_file_name("soup-t5").join("base")).expect("a base") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), base.path().join(entry.file_name())).expect("copied");
        }
        change(base.path());
        let models = tempfile::tempdir().expect("a directory");
        let name = Some("model".to_owned());
        let options = ImportOptions { name, copy: true, ..ImportOptions::new(models.path()) };
        let imported = import(base.path().to_str().expect("UTF-8"), &options);
        match (expected, imported) {
            ("", imported) => assert!(imported.expect("a T5").dir.join("config.json").is_file()),
            (_, Ok(_)) => panic!("imported: {expected}"),
            (_, Err(error)) => assert!(error.to_string().contains(expected), "{error}"),
        }
    }
}
