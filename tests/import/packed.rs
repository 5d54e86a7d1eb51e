//! Packed checkpoints (`reference/make_packed.py`) are imported as the weights that they stand for, or
//! refused by name.

use std::{fs, path::Path};

use ladle::{
    import::{ImportOptions, Quantise},
    kernels::{BlockType, Dtype},
    soup::Checkpoint,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{hex, import_file, models, options};

const NAMES: [&str; 4] = ["gptq", "gptq-act-order", "awq", "fp8"];

/// The packed checkpoint with the tokenizer of the base that it was made of.
fn packed(name: &str) -> TempDir {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = tempfile::tempdir().expect("a directory");
    for from in [fixtures.join("soup-tiny/base"), fixtures.join("packed").join(name)] {
        for entry in fs::read_dir(from).expect("a fixture") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
        }
    }
    dir
}

/// Imports under a name, as the fixtures' directories have none that an id may be.
fn named(name: &str, models: &TempDir, dtype: Dtype) -> ImportOptions {
    ImportOptions { name: Some(name.to_owned()), ..options(models, dtype) }
}

#[test]
fn packed_weights_become_what_torch_dequantises() {
    for name in NAMES {
        let (packed, models) = (packed(name), models());
        let dir = import_file(packed.path(), &named("plain", &models, Dtype::F32)).expect(name);
        assert!(!dir.is_symlink());
        let checkpoint = Checkpoint::open(&dir).expect("a checkpoint");
        assert!(checkpoint.config().get("quantization_config").is_none());
        assert_eq!(checkpoint.config()["torch_dtype"], "float32");
        let expected = fs::read(packed.path().join("expected.json")).expect("the fixture");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        let digests = expected.as_object().expect("digests");
        assert_eq!(digests.len(), 2 * 7);
        for (tensor, digest) in digests {
            let values = checkpoint.get(tensor).expect("a tensor");
            assert_eq!(Some(hex(values.bytes()).as_str()), digest.as_str(), "{name}: {tensor}");
        }
        // Through blocks of ladle's own, and as the default type.
        let quantise = Some(Quantise::To(BlockType::Q8_0));
        let blocks = ImportOptions { quantise, ..named("blocks", &models, Dtype::Bf16) };
        let dir = import_file(packed.path(), &blocks).expect(name);
        let blocks = Checkpoint::open(&dir).expect("a checkpoint");
        let weight = blocks.get("model.layers.1.mlp.down_proj.weight").expect("a tensor");
        assert_eq!(weight.dtype(), Dtype::Quantised(BlockType::Q8_0));
    }
}

#[test]
fn what_cannot_be_dequantised_is_refused_by_name() {
    let set = |key: &'static str, value: Value| {
        move |config: &mut Value| config["quantization_config"][key] = value.clone()
    };
    let cases: [(&str, Box<dyn Fn(&mut Value)>, &str); 7] = [
        ("gptq", Box::new(set("bits", json!(3))), "quantization_config.bits: expected 4 or 8"),
        ("gptq", Box::new(set("checkpoint_format", json!("marlin"))), "gptq or gptq_v2"),
        ("awq", Box::new(set("version", json!("gemv"))), "quantization_config.version"),
        ("awq", Box::new(set("quant_method", json!("bitsandbytes"))), "gptq, awq or fp8"),
        ("fp8", Box::new(set("weight_block_size", json!(null))), "two numbers above 0"),
        ("fp8", Box::new(set("weight_block_size", json!([24, 24]))), "blocks [24, 24]"),
        ("gptq", Box::new(|config| config["hidden_size"] = json!(128)), "shape"),
    ];
    for (name, change, expected) in cases {
        let (packed, models) = (packed(name), models());
        let path = packed.path().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
        change(&mut config);
        fs::write(&path, config.to_string()).expect("written");
        let said = import_file(packed.path(), &named("model", &models, Dtype::F32));
        let said = said.expect_err(expected);
        assert!(said.to_string().contains(expected), "{expected} not in: {said}");
        assert_eq!(crate::leftovers(&models), Vec::<String>::new());
    }
}
