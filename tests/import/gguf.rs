//! GGUF files that are read with care, or refused at import with the name of what is wrong.

mod experts;
mod refused;

use std::{fs, path::Path};

use ladle::{
    import::{ImportError, ImportOptions, import},
    kernels::Dtype,
    soup::Checkpoint,
};
use rand::{Rng, SeedableRng};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::writer::{HIDDEN, LAYERS, Model, Value};

/// A directory for files and one for models.
struct Bench {
    files: TempDir,
    models: TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = || tempfile::tempdir().expect("a directory");
        Self { files: directory(), models: directory() }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.files.path().join(name);
        fs::write(&path, bytes).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn import(&self, path: &str) -> Result<Checkpoint, ImportError> {
        let models = tempfile::tempdir_in(self.models.path()).expect("a directory").keep();
        let options = ImportOptions { dtype: Dtype::F32, ..ImportOptions::new(models) };
        let dir = import(path, &options)?.dir;
        Ok(Checkpoint::open(&dir).expect("what was imported opens"))
    }

    fn accepts(&self, model: &Model) -> Checkpoint {
        self.import(&self.write("model.gguf", &model.bytes())).expect("is imported")
    }

    /// The error of bytes, which names the file and these parts.
    fn refuses_bytes(&self, bytes: &[u8], parts: &[&str]) {
        let path = self.write("model.gguf", bytes);
        self.refuses_file(&path, &[&["model.gguf"], parts].concat());
    }

    fn refuses_file(&self, path: &str, parts: &[&str]) {
        let error = self.import(path).err().unwrap_or_else(|| panic!("imported: {parts:?}"));
        let said = error.to_string();
        let missing: Vec<_> = parts.iter().filter(|part| !said.contains(**part)).collect();
        assert!(missing.is_empty(), "{missing:?} not in: {said}");
    }

    /// The error of the tiny model after a change.
    fn refuses(&self, parts: &[&str], change: impl FnOnce(&mut Model)) {
        let mut model = Model::tiny();
        change(&mut model);
        self.refuses_bytes(&model.bytes(), parts);
    }

    /// `config.json` of the tiny model after a change.
    fn config(&self, change: impl FnOnce(&mut Model)) -> Json {
        let mut model = Model::tiny();
        change(&mut model);
        self.accepts(&model).config().clone()
    }
}

fn weights(checkpoint: &Checkpoint) -> Vec<u8> {
    fs::read(checkpoint.dir().join("model.safetensors")).expect("weights")
}

/// llama.cpp: SmolLM3 leaves out each fourth layer's rotation whatever the file says; Granite's factors
/// change nothing where they are absent or 0, and `rope.scaling.finetuned` turns its rotation off.
#[test]
fn settings_that_a_family_has_beside_llamas() {
    let bench = Bench::new();
    let config = bench.config(|model| model.rename("smollm3"));
    assert_eq!(config["model_type"], "smollm3");
    assert_eq!(config["no_rope_layer_interval"], 4);
    let granite = |factor: Option<f32>| {
        bench.config(|model| {
            model.rename("granite");
            if let Some(factor) = factor {
                model.set("granite.attention.scale", Value::F32(factor));
                model.set("granite.residual_scale", Value::F32(factor));
            }
        })
    };
    let head_dim = granite(None)["head_dim"].as_f64().expect("a width");
    for config in [granite(None), granite(Some(0.0))] {
        assert_eq!(config["attention_multiplier"], head_dim.sqrt().recip());
        assert_eq!(config["residual_multiplier"], 1.0);
    }
    assert_eq!(granite(Some(0.25))["attention_multiplier"], 0.25);
    assert_eq!(granite(Some(0.25))["residual_multiplier"], 0.25);
    bench.refuses(&["granite.rope.scaling.finetuned", "true"], |model| {
        model.rename("granite");
        model.set("granite.rope.scaling.finetuned", Value::Bool(false));
    });
    bench.refuses(&["llama.residual_scale"], |model| {
        model.set("llama.residual_scale", Value::F32(0.25));
    });
}

/// llama.cpp: `rope.scaling.type` is linear where absent, and `rope.scale_linear` is the factor's
/// old name (llama-model.cpp, `load_hparams`).
#[test]
fn a_rotary_factor_without_a_type_is_linear() {
    let bench = Bench::new();
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let scaling = |settings: &[(&str, Value)]| {
        let config = bench.config(|model| {
            settings.iter().for_each(|(key, value)| {
                model.set(&format!("llama.rope.{key}"), value.clone());
            });
        });
        config["rope_scaling"].clone()
    };
    let four = || Value::F32(4.0);
    assert_eq!(scaling(&[]), Json::Null);
    assert_eq!(scaling(&[("scaling.factor", four())]), linear);
    assert_eq!(scaling(&[("scale_linear", four())]), linear);
    assert_eq!(scaling(&[("scaling.type", "linear".into()), ("scaling.factor", four())]), linear);
    let both = [("scaling.factor", four()), ("scale_linear", Value::F32(2.0))];
    assert_eq!(scaling(&both), linear, "the new name counts");
    // Factors that scale nothing, and a type that turns scaling off.
    assert_eq!(scaling(&[("scaling.type", "none".into()), ("scaling.factor", four())]), Json::Null);
    assert_eq!(scaling(&[("scaling.type", "linear".into())]), Json::Null);
    for neutral in [0.0, 1.0] {
        assert_eq!(scaling(&[("scaling.factor", Value::F32(neutral))]), Json::Null);
    }
    bench.refuses(&["llama.rope.scaling.type", "yarn", "none, linear"], |model| {
        model.set("llama.rope.scaling.type", "yarn");
        model.set("llama.rope.scaling.factor", four());
    });
    for wrong in [-2.0, f32::NAN, f32::INFINITY] {
        bench.refuses(&["llama.rope.scaling.factor"], |model| {
            model.set("llama.rope.scaling.factor", Value::F32(wrong));
        });
    }
    bench.refuses(&["llama.rope.scaling.factor", "an f32"], |model| {
        model.set("llama.rope.scaling.factor", Value::U32(4));
    });
}

#[test]
fn rotary_factors_are_those_of_llama_3_or_refused() {
    let bench = Bench::new();
    let add = |model: &mut Model, factors: &[f32]| {
        model.add("rope_freqs.weight", &[factors.len() as u64]);
        model.tensor("rope_freqs.weight").data =
            factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
    };
    // Eight pairs a head; with θ = 10000 the longest wavelength, 2π·10000^(7/8), is above 8192.
    let factors: Vec<f32> = (0..8)
        .map(|pair| {
            let wavelength = 2.0 * std::f64::consts::PI * 1e4f64.powf(f64::from(pair) / 8.0);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32
        })
        .collect();
    assert!(factors[7] == 8.0 && (1.0..8.0).contains(&factors[6]) && factors[0] == 1.0);
    let config = bench.config(|model| add(model, &factors));
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    assert_eq!(config["rope_scaling"], scaling);
    bench.refuses(&["rope_freqs.weight", "rope.scaling.type"], |model| {
        model.set("llama.rope.scaling.factor", Value::F32(4.0));
        add(model, &factors);
    });
    bench.refuses(&["rope_freqs.weight", "8 factors", "Llama 3.1"], |model| {
        add(model, &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0]);
    });
    bench.refuses(&["rope_freqs.weight", "7 factors"], |model| add(model, &factors[..7]));
    bench.refuses(&["rope_freqs.weight", "not one of a qwen3"], |model| {
        model.rename("qwen3");
        add(model, &factors);
    });
}

#[test]
fn a_split_model_is_read_whole() {
    let bench = Bench::new();
    let model = Model::tiny();
    let whole = bench.accepts(&model);
    let count = model.tensors.len();
    for counts in [vec![7, count - 7], vec![0, count - 1, 1], vec![1; count]] {
        let paths: Vec<String> = model
            .split(&counts)
            .iter()
            .enumerate()
            .map(|(i, part)| {
                let name = format!("Tiny-Q-{:05}-of-{:05}.gguf", i + 1, counts.len());
                bench.write(&name, &part.bytes())
            })
            .collect();
        let joined = bench.import(&paths[0]).expect("all parts are there");
        assert_eq!(joined.dir().file_name(), Some("tiny-q-f32".as_ref()), "the id names no part");
        assert_eq!(weights(&joined), weights(&whole));
        assert_eq!(joined.config(), whole.config());
    }
    // A file that was joined again says that it has no parts.
    let mut joined = Model::tiny();
    joined.set("split.count", Value::U16(0));
    assert_eq!(weights(&bench.accepts(&joined)), weights(&whole));
}

#[test]
fn a_split_model_whose_parts_do_not_belong_together_is_refused_by_name() {
    let model = Model::tiny();
    let count = model.tensors.len();
    let counts = [5, 5, count - 10];
    let name = |i: usize| format!("m-{:05}-of-00003.gguf", i + 1);
    // Writes the parts as they are changed, imports the first.
    let refused = |parts: &[&str], change: &dyn Fn(&mut Vec<Model>)| {
        let bench = Bench::new();
        let mut split = model.split(&counts);
        change(&mut split);
        let paths: Vec<_> = split
            .iter()
            .enumerate()
            .map(|(i, part)| bench.write(&name(i), &part.bytes()))
            .collect();
        bench.refuses_file(&paths[0], parts);
    };
    refused(&["missing", "m-00003-of-00003.gguf"], &|parts| {
        parts.pop();
    });
    refused(&["missing", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"], &|parts| {
        parts.truncate(1);
    });
    refused(&["m-00002-of-00003.gguf", "part 2 of 3"], &|parts| parts.swap(1, 2));
    refused(&["m-00001-of-00003.gguf", "is part 2 of 3"], &|parts| parts.swap(0, 1));
    refused(&["m-00002-of-00003.gguf", "part 2 of 3"], &|parts| {
        parts[1].set("split.no", Value::U16(0));
    });
    refused(&["m-00003-of-00003.gguf", "split.count"], &|parts| {
        parts[2].set("split.count", Value::U16(4));
    });
    refused(&["m-00003-of-00003.gguf", "split.count"], &|parts| parts[2].remove("split.count"));
    refused(&["split.no", "below split.count = 3"], &|parts| {
        parts[0].set("split.no", Value::U16(3));
    });
    refused(&["split.no", "nothing"], &|parts| parts[0].remove("split.no"));
    refused(&["m-00003-of-00003.gguf", "token_embd.weight", "part 1"], &|parts| {
        let twice = parts[0].tensors[0].clone();
        parts[2].tensors.push(twice);
    });
    refused(&["split.tensors.count is 20", "19 tensors"], &|parts| {
        parts[2].tensors.pop();
    });
    refused(&["m-00002-of-00003.gguf", "llama.block_count"], &|parts| {
        parts[1].set("llama.block_count", Value::U32(9));
    });
    refused(&["m-00002-of-00003.gguf", "remaining"], &|parts| {
        parts[1].tensors.last_mut().expect("a tensor").data.pop();
    });

    let bench = Bench::new();
    let parts = model.split(&counts);
    let paths: Vec<_> =
        parts.iter().enumerate().map(|(i, part)| bench.write(&name(i), &part.bytes())).collect();
    bench.refuses_file(&paths[1], &["is part 2 of 3", "import the first", &paths[0]]);
    let renamed = bench.write("renamed.gguf", &parts[0].bytes());
    bench.refuses_file(&renamed, &["renamed.gguf", "-00001-of-00003.gguf"]);
}

/// The parts of a split model are one version of it: a change of any part is another model.
#[test]
fn a_split_model_that_changed_in_a_later_part_is_not_taken_for_the_imported_one() {
    let bench = Bench::new();
    let mut parts = Model::tiny().split(&[3, 17]);
    let write = |parts: &[Model]| {
        let names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        parts.iter().zip(names).map(|(part, name)| bench.write(name, &part.bytes())).collect()
    };
    let paths: Vec<String> = write(&parts);
    let options = ImportOptions::new(bench.models.path());
    assert!(!import(&paths[0], &options).expect("is imported").already_there);
    assert!(import(&paths[0], &options).expect("is there").already_there);
    parts[1].tensors[0].data[0] ^= 1;
    let paths = write(&parts);
    let error = import(&paths[0], &options).expect_err("another model");
    assert!(matches!(error, ImportError::Occupied { .. }), "{error}");
}

#[test]
fn a_head_of_its_own_is_read_and_a_tied_one_is_left_out() {
    let bench = Bench::new();
    let tied = bench.accepts(&Model::tiny());
    assert_eq!(tied.config()["tie_word_embeddings"], true);
    assert!(tied.get("lm_head.weight").is_none());
    let mut model = Model::tiny();
    model.add("output.weight", &[263, HIDDEN]);
    let untied = bench.accepts(&model);
    assert_eq!(untied.config()["tie_word_embeddings"], false);
    let head = untied.get("lm_head.weight").expect("a head");
    assert_eq!(head.bytes(), model.tensor("output.weight").data);
}

#[test]
fn numbers_for_each_layer_are_read_where_they_are_one_number() {
    let bench = Bench::new();
    for (setting, number) in
        [("attention.head_count", 4), ("attention.head_count_kv", 2), ("feed_forward_length", 128)]
    {
        let key = format!("llama.{setting}");
        let same = vec![number; LAYERS as usize];
        let config = bench.config(|model| model.set(&key, Value::I32s(same)));
        assert_eq!(config["num_attention_heads"], 4);
        bench.refuses(&[&key, "one number for all layers"], |model| {
            model.set(&key, Value::I32s(vec![number, number * 2]));
        });
        bench.refuses(&[&key], |model| model.set(&key, Value::I32s(Vec::new())));
    }
    for setting in ["block_count", "embedding_length", "context_length", "attention.head_count"] {
        let key = format!("llama.{setting}");
        bench.refuses(&[&key, "nothing"], |model| model.remove(&key));
    }
}
