//! What is served and trained of each family: the one list, which the grids of tests/families and
//! training/tests/families.rs try cell by cell and docs/base-models.md shows.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// What a cell of the table says.
pub const CAPABILITIES: [&str; 9] =
    ["import", "LoRA", "full", "quantised", "mixed", "fused", "MOD", "answer-only", "train"];

/// A family and what is refused of it: capability, part of what the refusal says.
pub struct Family {
    pub model_type: &'static str,
    /// Its tiny model: a directory of tests/fixtures/models; of T5, a soup of tests/fixtures.
    pub fixture: &'static str,
    pub refused: &'static [(&'static str, &'static str)],
}

const fn whole(model_type: &'static str, fixture: &'static str) -> Family {
    Family { model_type, fixture, refused: &[] }
}

const fn experts(model_type: &'static str, fixture: &'static str) -> Family {
    Family { model_type, fixture, refused: &[("train", "experts are not trained")] }
}

pub const FAMILIES: [Family; 15] = [
    whole("llama", "llama3"),
    whole("mistral", "mistral"),
    experts("mixtral", "mixtral"),
    whole("qwen2", "qwen2-window"),
    whole("qwen3", "qwen3"),
    experts("qwen3_moe", "qwen3-moe"),
    whole("smollm3", "smollm3"),
    whole("olmo2", "olmo2"),
    whole("olmo3", "olmo3"),
    whole("granite", "granite"),
    whole("phi3", "phi3"),
    whole("gemma", "gemma"),
    whole("gemma2", "gemma2"),
    whole("gemma3_text", "gemma3"),
    Family {
        model_type: "t5",
        fixture: "soup-t5",
        refused: &[("answer-only", "the encoder of a t5 is merged too")],
    },
];

impl Family {
    /// The refusal of a capability; `None`: it is there.
    pub fn refusal(&self, capability: &str) -> Option<&'static str> {
        let said = self.refused.iter().find(|(refused, _)| *refused == capability);
        said.map(|(_, said)| *said)
    }
}

/// Makes a model directory of a tiny model: its configuration, its weights, and a tokenizer of as many
/// tokens.
pub fn write_base(fixture: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), to.join(file)).unwrap();
    }
    let config: Value =
        serde_json::from_slice(&fs::read(fixture.join("config.json")).unwrap()).unwrap();
    // The printable bytes, then pairs of them.
    let character = |index: u64| char::from(b'!' + (index % 94) as u8);
    let token = |id: u64| match id.checked_sub(94) {
        None => character(id).to_string(),
        Some(pair) => format!("!{}", character(pair)),
    };
    let ids = 0..config["vocab_size"].as_u64().unwrap();
    let vocabulary: serde_json::Map<_, _> = ids.map(|id| (token(id), id.into())).collect();
    let end = json!({
        "id": 1, "content": token(1), "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [end], "normalizer": null, "pre_tokenizer": byte_level,
        "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    });
    fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(to.join("generation_config.json"), r#"{"eos_token_id": 1}"#).unwrap();
}
