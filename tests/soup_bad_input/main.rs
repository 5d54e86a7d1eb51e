//! What is wrong on disk is refused when the soup is opened, and the message names the file, the
//! tensor or key, what was expected and what was found.

#[path = "../common/soup.rs"]
mod common;
mod files;
mod manifests;

use std::{collections::BTreeMap, fs, path::PathBuf};

use ladle::{
    kernels::{BlockType, HostTensor},
    preference::MixingMatrix,
    soup::{
        Adapter, Checkpoint, Manifest, OpenOptions, Soup, TensorSpec, WeightError,
        weights::{WeightFile, write_safetensors},
    },
};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use common::{SOUPS, copy_tree, fixture, options};

/// All three fixtures side by side, so that their relative base paths hold.
struct Kitchen(tempfile::TempDir);

impl Kitchen {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in SOUPS {
            copy_tree(&fixture(name), &dir.path().join(name));
        }
        Self(dir)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn edit(&self, path: &str, from: &str, to: &str) -> &Self {
        let text = fs::read_to_string(self.path(path)).unwrap();
        assert!(text.contains(from), "{path} has no {from:?}");
        fs::write(self.path(path), text.replacen(from, to, 1)).unwrap();
        self
    }

    /// Rewrites a safetensors file; a length that no longer fits its shape is padded or cut.
    fn tensors(&self, path: &str, change: impl FnOnce(&mut Tensors)) -> &Self {
        let bytes = fs::read(self.path(path)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Tensors = file
            .iter()
            .map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
            .collect();
        change(&mut tensors);
        for (dtype, shape, data) in tensors.values_mut() {
            data.resize(shape.iter().product::<usize>() * dtype.bitsize() / 8, 0);
        }
        let views: BTreeMap<_, _> = tensors
            .iter()
            .map(|(name, (dtype, shape, data))| {
                (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
            })
            .collect();
        fs::write(self.path(path), safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    /// The refusal, which must hold all of `parts`.
    fn refuses(&self, soup: &str, parts: &[&str]) {
        let message = match Soup::open(&self.path(soup), &options()) {
            Ok(_) => panic!("{soup} was opened; expected {parts:?}"),
            Err(error) => error.to_string(),
        };
        for part in parts {
            assert!(message.contains(part), "expected {part:?} in: {message}");
        }
    }
}

impl Kitchen {
    /// Opens the soup without its digests, which changed files no longer have.
    fn accepts(&self, soup: &str) {
        let options = OpenOptions { verify_digests: false, ..options() };
        Soup::open(&self.path(soup), &options).map(|_| ()).unwrap();
    }

    /// Changes keys of a JSON file; null takes a key away.
    fn keys(&self, path: &str, changes: &Value) -> &Self {
        let mut document: Value =
            serde_json::from_slice(&fs::read(self.path(path)).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(document.as_object_mut().unwrap().remove(key)),
                value => document[key] = value.clone(),
            }
        }
        fs::write(self.path(path), document.to_string()).unwrap();
        self
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const HELPFUL: &str = "soup-tiny/backbones/helpful/adapter_model.safetensors";

const HELPFUL_CONFIG: &str = "soup-tiny/backbones/helpful/adapter_config.json";

const FULL: &str = "soup-tiny-full/backbones/helpful/model.safetensors";

const INDEX: &str = "soup-tiny-full/backbones/harmless/model.safetensors.index.json";

const SHARD: &str = "soup-tiny-full/backbones/harmless/model-00001-of-00003.safetensors";

const Q_A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";

#[test]
fn untouched_fixtures_open() {
    let kitchen = Kitchen::new();
    for soup in SOUPS {
        Soup::open(&kitchen.path(soup), &options()).unwrap();
    }
}

#[test]
fn shapes_that_do_not_fit_the_base_are_refused() {
    let q_b = Q_A.replace("lora_A", "lora_B");
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| t.get_mut(Q_A).unwrap().1 = vec![4, 32]);
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", Q_A, "[r, 64]", "[4, 32]"]);
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| t.get_mut(&q_b).unwrap().1 = vec![96, 4]);
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", &q_b, "[64, r]", "[96, 4]"]);
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| t.get_mut(Q_A).unwrap().1 = vec![5, 64]);
    kitchen.refuses("soup-tiny", &[Q_A, "[4, in]", "rank 4", "[5, 64]"]);
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| t.get_mut(Q_A).unwrap().1 = vec![256]);
    kitchen.refuses("soup-tiny", &[Q_A, "[4, in]", "[256]"]);
    let kitchen = Kitchen::new();
    let name = "model.layers.1.mlp.up_proj.weight";
    kitchen.tensors(FULL, |t| t.get_mut(name).unwrap().1 = vec![128, 63]);
    kitchen.refuses("soup-tiny-full", &["model.safetensors", name, "[128, 64]", "[128, 63]"]);
}

#[test]
fn another_vocabulary_is_refused() {
    let kitchen = Kitchen::new();
    let name = "model.embed_tokens.weight";
    kitchen.tensors(FULL, |t| t.get_mut(name).unwrap().1 = vec![513, 64]);
    kitchen.refuses("soup-tiny-full", &["model.safetensors", name, "[512, 64]", "[513, 64]"]);
    let config = "soup-tiny-full/backbones/helpful/config.json";
    kitchen.edit(config, "\"vocab_size\": 512", "\"vocab_size\": 513");
    kitchen.refuses("soup-tiny-full", &["config.json", "vocab_size", "512", "513"]);

    let kitchen = Kitchen::new();
    let head = "base_model.model.lm_head.weight";
    let path = "soup-tiny-mixed/backbones/helpful/adapter_model.safetensors";
    kitchen.tensors(path, |t| t.get_mut(head).unwrap().1 = vec![520, 64]);
    kitchen.refuses("soup-tiny-mixed", &[head, "[512, 64]", "[520, 64]"]);
}

/// A soup answers with the base's tokenizer: another one beside a tuned model says that the model was
/// trained on other tokens.
#[test]
fn a_model_that_was_tuned_with_another_tokenizer_is_refused_by_token() {
    for (soup, dir) in [
        ("soup-tiny-full", "soup-tiny-full/backbones/helpful"),
        ("soup-tiny", "soup-tiny/backbones/helpful"),
    ] {
        let own = format!("{dir}/tokenizer.json");
        let with = |change: &dyn Fn(&mut Value)| {
            let kitchen = Kitchen::new();
            let text = fs::read_to_string(kitchen.path("soup-tiny/base/tokenizer.json")).unwrap();
            let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
            change(&mut tokenizer);
            let text = serde_json::to_vec_pretty(&tokenizer).unwrap();
            fs::write(kitchen.path(&own), text).unwrap();
            kitchen
        };
        with(&|_| {}).accepts(soup);
        // What only cuts a text, and a token for which the embedding has no row.
        let cut = json!({
            "max_length": 8, "direction": "Right", "stride": 0, "strategy": "LongestFirst",
        });
        with(&|t| t["truncation"] = cut.clone()).accepts(soup);
        let padding = json!({
            "id": 512, "content": "[PAD]", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false,
        });
        with(&|t| t["added_tokens"].as_array_mut().unwrap().push(padding.clone())).accepts(soup);
        let swap = |t: &mut Value| {
            let vocabulary = t["model"]["vocab"].as_object_mut().unwrap();
            let [a, b] = ["a", "b"].map(|token| vocabulary[token].clone());
            vocabulary["a"] = b;
            vocabulary["b"] = a;
        };
        let token = "token 67: expected \"a\" (as in the base), got \"b\"";
        with(&swap).refuses(soup, &["helpful/tokenizer.json", token]);
        with(&|t| t["added_tokens"][2]["special"] = json!(false))
            .refuses(soup, &["token 2: expected special (as in the base), got plain"]);
        with(&|t| t["model"]["merges"].as_array_mut().unwrap().swap(0, 1))
            .refuses(soup, &["helpful/tokenizer.json", "merge 0: expected ["]);
    }
}

#[test]
fn a_model_that_computes_something_else_is_refused() {
    let kitchen = Kitchen::new();
    let config = "soup-tiny-full/backbones/brief/config.json";
    kitchen.edit(config, "\"num_attention_heads\": 4", "\"num_attention_heads\": 8");
    kitchen
        .refuses("soup-tiny-full", &["config.json", "num_attention_heads", "expected 4", "got 8"]);
}

/// Keys that only one of two configurations has stand at their defaults, and transformers 4 and 5
/// spell the rotary settings differently: what counts is what the models compute.
#[test]
fn full_backbones_are_compared_with_the_base_by_what_their_configurations_mean() {
    let [own, base] =
        ["soup-tiny-full/backbones/helpful/config.json", "soup-tiny/base/config.json"];
    let four = |theta: f64| json!({"rope_parameters": null, "rope_theta": theta});
    for same in [
        four(10_000.0),
        json!({"rope_parameters": null}),
        json!({"rope_parameters": {}, "rope_theta": 10_000}),
        json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 1.0}}),
        json!({"head_dim": null, "attention_bias": null, "mlp_bias": null, "pretraining_tp": null}),
        json!({"sliding_window": 16, "use_cache": false, "max_position_embeddings": 512}),
        json!({"eos_token_id": [2, 3]}),
    ] {
        Kitchen::new().keys(own, &same).accepts("soup-tiny-full");
        Kitchen::new().keys(base, &same).accepts("soup-tiny-full");
    }
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    for (other, key) in [
        (four(500_000.0), "rope_theta"),
        (json!({"rope_parameters": {"rope_theta": 500_000.0}}), "rope_theta"),
        (json!({"rope_scaling": linear}), "rope_scaling"),
        (json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}), "rope_scaling"),
        (json!({"rms_norm_eps": null}), "rms_norm_eps"),
        (json!({"tie_word_embeddings": null}), "tie_word_embeddings"),
        (json!({"head_dim": 32}), "head_dim"),
        (json!({"num_key_value_heads": null}), "num_key_value_heads"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"model_type": "mistral", "sliding_window": null}), "model_type"),
    ] {
        let kitchen = Kitchen::new();
        kitchen.keys(own, &other).refuses("soup-tiny-full", &[own, key, "as in the base"]);
    }
}

#[test]
fn missing_and_left_over_tensors_are_refused() {
    let q_b = Q_A.replace("lora_A", "lora_B");
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| drop(t.remove(&q_b)));
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", &q_b, "no such tensor"]);
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| {
        t.remove(&q_b);
        t.remove(Q_A);
    });
    kitchen.refuses("soup-tiny", &[Q_A, "target_modules names its module", "no such tensor"]);
    let kitchen = Kitchen::new();
    kitchen.edit(HELPFUL_CONFIG, "\"q_proj\"", "\"up_proj\"");
    kitchen.refuses("soup-tiny", &[Q_A, "target_modules", "left-over"]);
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| {
        let factor = t[Q_A].clone();
        t.insert("model.layers.0.self_attn.q_proj.lora_A.weight".to_owned(), factor);
    });
    kitchen.refuses("soup-tiny", &["starts with base_model.model."]);
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| {
        for side in ["lora_A", "lora_B"] {
            let factor = t[&Q_A.replace("lora_A", side)].clone();
            t.insert(
                format!("base_model.model.model.layers.9.self_attn.q_proj.{side}.weight"),
                factor,
            );
        }
    });
    kitchen.refuses("soup-tiny", &["layers.9.self_attn.q_proj", "a module of the base"]);

    let kitchen = Kitchen::new();
    kitchen.tensors(FULL, |t| drop(t.remove("model.norm.weight")));
    kitchen
        .refuses("soup-tiny-full", &["model.safetensors", "model.norm.weight", "no such tensor"]);
    let kitchen = Kitchen::new();
    kitchen.tensors(FULL, |t| {
        let norm = t["model.norm.weight"].clone();
        t.insert("model.layers.0.self_attn.q_norm.weight".to_owned(), norm);
    });
    kitchen.refuses("soup-tiny-full", &["model.safetensors", "q_norm.weight", "left-over"]);

    let kitchen = Kitchen::new();
    let path = "soup-tiny-mixed/backbones/helpful/adapter_model.safetensors";
    let norm = "base_model.model.model.norm.weight";
    kitchen.tensors(path, |t| drop(t.remove(norm)));
    kitchen.refuses("soup-tiny-mixed", &[norm, "modules_to_save", "no such tensor"]);
}

#[test]
fn factors_in_blocks_are_refused() {
    let kitchen = Kitchen::new();
    let dtype = ladle::kernels::Dtype::Quantised(BlockType::Q8_0);
    let spec = TensorSpec { name: Q_A.to_owned(), dtype, shape: vec![16, 64] };
    write_safetensors(&kitchen.path(HELPFUL), &[spec], |spec| {
        let tensor = HostTensor::rounded(&[0.0; 16 * 64], dtype, spec.shape.clone());
        Ok::<_, WeightError>(tensor.unwrap())
    })
    .unwrap();
    let parts = ["adapter_model.safetensors", Q_A, "expected dtype F32, F16 or BF16, got q8_0"];
    kitchen.refuses("soup-tiny", &parts);
}

#[test]
fn full_backbones_in_blocks_are_refused() {
    let kitchen = Kitchen::new();
    let table = "model.embed_tokens.weight";
    let checkpoint = Checkpoint::open(kitchen.path(FULL).parent().unwrap()).unwrap();
    let mut specs: Vec<_> =
        checkpoint.tensors().iter().map(|(name, tensor)| TensorSpec::of(name, tensor)).collect();
    let spec = specs.iter_mut().find(|spec| spec.name == table).unwrap();
    spec.dtype = ladle::kernels::Dtype::Quantised(BlockType::Q8_0);
    write_safetensors(&kitchen.path(FULL), &specs, |spec| {
        let values = checkpoint.get(&spec.name).unwrap().to_f32();
        let tensor = HostTensor::rounded(&values, spec.dtype, spec.shape.clone());
        Ok::<_, WeightError>(tensor.unwrap())
    })
    .unwrap();
    kitchen.refuses("soup-tiny-full", &["model.safetensors", table, "bf16", "got q8_0"]);
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| {
        t.get_mut(Q_A).unwrap().2[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", Q_A, "finite", "element 3"]);
    let kitchen = Kitchen::new();
    let path = "soup-tiny-full/backbones/brief/model.safetensors";
    kitchen.tensors(path, |t| {
        t.get_mut("model.norm.weight").unwrap().2[2..4].copy_from_slice(&[0x80, 0x7f]);
    });
    kitchen
        .refuses("soup-tiny-full", &["brief/model.safetensors", "model.norm.weight", "element 1"]);
}

#[test]
fn adapters_that_are_not_plain_lora_are_refused_by_setting() {
    let cases: [(&str, &str, &[&str]); 12] = [
        ("\"use_dora\": false", "\"use_dora\": true", &["use_dora", "it unset", "true"]),
        (
            "\"init_lora_weights\": true",
            "\"init_lora_weights\": \"pissa\"",
            &["init_lora_weights", "path_initial_model_for_weight_conversion", "pissa"],
        ),
        ("\"lora_bias\": false", "\"lora_bias\": true", &["lora_bias"]),
        ("\"bias\": \"none\"", "\"bias\": \"most\"", &["bias", "none", "most"]),
        ("\"peft_type\": \"LORA\"", "\"peft_type\": \"LOHA\"", &["peft_type", "LORA", "LOHA"]),
        ("\"r\": 4", "\"r\": 0", &["r: expected an integer ≥ 1, got 0"]),
        ("\"r\": 4", "\"r\": \"four\"", &["r: expected an integer", "four"]),
        ("\"lora_alpha\": 8", "\"lora_alpha\": []", &["lora_alpha", "a number", "[]"]),
        (
            "\"rank_pattern\": {}",
            "\"rank_pattern\": {\"(\": 4}",
            &["rank_pattern", "regular expression"],
        ),
        (
            "\"rank_pattern\": {}",
            "\"rank_pattern\": {\"q_proj\": -1}",
            &["rank_pattern", "integers ≥ 1"],
        ),
        (
            "\"target_parameters\": null",
            "\"target_parameters\": \"x\"",
            &["target_parameters", "a list"],
        ),
        ("\"layers_to_transform\": null", "\"layers_to_transform\": 0.5", &["layers_to_transform"]),
    ];
    for (from, to, parts) in cases {
        let kitchen = Kitchen::new();
        kitchen.edit(HELPFUL_CONFIG, from, to);
        kitchen.refuses("soup-tiny", &[&["adapter_config.json"], parts].concat());
    }
    let kitchen = Kitchen::new();
    kitchen.tensors(HELPFUL, |t| {
        let factor = t[Q_A].clone();
        t.insert("base_model.model.model.embed_tokens.lora_embedding_A".to_owned(), factor);
    });
    kitchen.refuses("soup-tiny", &["embed_tokens.lora_embedding_A", "embedding"]);
}

/// A value head and rotary buffers are no part of the language model, whichever side stores them; a
/// head beside tied embeddings repeats them, or the model is refused.
#[test]
fn what_a_checkpoint_repeats_or_does_not_need_is_left_out_on_either_side() {
    let base = "soup-tiny/base/model.safetensors";
    let head = "lm_head.weight";
    for path in [base, FULL] {
        let kitchen = Kitchen::new();
        kitchen.tensors(path, |t| {
            let f32s = |n: usize| (Dtype::F32, vec![n], vec![0; 4 * n]);
            t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), f32s(8));
            t.insert("model.rotary_emb.inv_freq".to_owned(), f32s(8));
            t.insert("v_head.summary.weight".to_owned(), (Dtype::F32, vec![1, 64], vec![0; 256]));
            t.insert("v_head.summary.bias".to_owned(), f32s(1));
            let table = t["model.embed_tokens.weight"].clone();
            t.insert(head.to_owned(), table);
        });
        kitchen.accepts("soup-tiny-full");
        kitchen.tensors(path, |t| {
            let (_, _, bytes) = t.get_mut(head).unwrap();
            bytes[5] ^= 1;
        });
        kitchen.refuses("soup-tiny-full", &[head, "tie_word_embeddings is true"]);
    }
}
