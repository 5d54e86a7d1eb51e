//! What is wrong on disk is refused when the soup is opened, and the message names the file, the
//! tensor or key, what was expected and what was found.

#[path = "common/soup.rs"]
mod common;

use std::{collections::BTreeMap, fs, path::PathBuf};

use ladle::{
    kernels::{BlockType, HostTensor},
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
fn a_truncated_file_is_told_by_its_length() {
    for path in [HELPFUL, FULL, SHARD, "soup-tiny/base/model.safetensors"] {
        let kitchen = Kitchen::new();
        let bytes = fs::read(kitchen.path(path)).unwrap();
        let soup = path.split('/').next().unwrap();
        let file = path.rsplit('/').next().unwrap();
        let (whole, cut) = (bytes.len().to_string(), (bytes.len() - 100).to_string());
        fs::write(kitchen.path(path), &bytes[..bytes.len() - 100]).unwrap();
        kitchen.refuses(soup, &[file, "needs", &whole, "has", &cut]);
        // Inside the header.
        fs::write(kitchen.path(path), &bytes[..40]).unwrap();
        kitchen.refuses(soup, &[file, "the header needs", "the file has 40"]);
        fs::write(kitchen.path(path), &bytes[..5]).unwrap();
        kitchen.refuses(soup, &[file, "needs 8 bytes, the file has 5"]);
        fs::write(kitchen.path(path), b"").unwrap();
        kitchen.refuses(soup, &[file, "needs 8 bytes, the file has 0"]);
        let longer = [bytes.as_slice(), b"tail"].concat();
        fs::write(kitchen.path(path), &longer).unwrap();
        kitchen.refuses(soup, &[file, "needs", &whole, &longer.len().to_string()]);
    }
}

/// A file with this header and `data` bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

#[test]
fn a_lying_header_is_refused_by_tensor() {
    let kitchen = Kitchen::new();
    let cases: [(&str, usize, &[&str]); 9] = [
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            12,
            &["tensor b", "bytes from 8 on", "overlap", "[4, 12]"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[16,24]}}"#,
            24,
            &["tensor b", "bytes from 8 on", "[16, 24]"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
            8,
            &["tensor a", "12 bytes", "[3]", "8 bytes"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}"#,
            8,
            &["tensor a", "more than 2^61"],
        ),
        (
            r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#,
            8,
            &["tensor a", "F32, F16 or BF16", "I64"],
        ),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, &["tensor a", "[8, 0]"]),
        (
            r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
            8,
            &["invalid safetensors header"],
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
            8,
            &["invalid safetensors header"],
        ),
        (r#"[1, 2"#, 8, &["invalid safetensors header"]),
    ];
    for (header, data, parts) in cases {
        fs::write(kitchen.path(HELPFUL), file(header, data)).unwrap();
        kitchen.refuses("soup-tiny", &[&["adapter_model.safetensors"], parts].concat());
    }
    // A header length that no file has.
    fs::write(kitchen.path(HELPFUL), [0xff; 64]).unwrap();
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", "the file has 64"]);
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
fn an_index_that_lies_is_refused() {
    let kitchen = Kitchen::new();
    fs::remove_file(kitchen.path(SHARD)).unwrap();
    kitchen.refuses("soup-tiny-full", &["index.json", "model-00001-of-00003.safetensors (absent)"]);
    for outside in ["../../helpful/model.safetensors", "/etc/passwd", ""] {
        let kitchen = Kitchen::new();
        kitchen.edit(INDEX, "\"model-00001-of-00003.safetensors\"", &format!("{outside:?}"));
        kitchen.refuses(
            "soup-tiny-full",
            &["index.json", "inside the checkpoint's directory", outside],
        );
    }
    let kitchen = Kitchen::new();
    kitchen.edit(INDEX, "\"model.norm.weight\"", "\"model.nrom.weight\"");
    kitchen.refuses("soup-tiny-full", &["model.norm.weight", "listed in the index"]);
    let kitchen = Kitchen::new();
    let ghost = "\"weight_map\": { \"ghost\": \"model-00001-of-00003.safetensors\",";
    kitchen.edit(INDEX, "\"weight_map\": {", ghost);
    kitchen.refuses("soup-tiny-full", &["index.json", "weight_map.ghost", "does not hold it"]);
    let kitchen = Kitchen::new();
    kitchen.edit(INDEX, "\"weight_map\"", "\"weight_mop\"");
    kitchen.refuses("soup-tiny-full", &["index.json", "weight_map"]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let kitchen = Kitchen::new();
    let last = "soup-tiny-full/backbones/harmless/model-00003-of-00003.safetensors";
    let bytes = fs::read(kitchen.path(last)).unwrap();
    let name = SafeTensors::deserialize(&bytes).unwrap().names()[0].to_owned();
    kitchen.tensors(SHARD, |t| drop(t.insert(name.clone(), (Dtype::F32, vec![64], Vec::new()))));
    kitchen.refuses(
        "soup-tiny-full",
        &["model-00001-of-00003", &name, "only in model-00003-of-00003"],
    );
}

#[test]
fn pickles_are_refused_with_a_way_out() {
    let kitchen = Kitchen::new();
    let dir = kitchen.path("soup-tiny/backbones/helpful");
    fs::rename(kitchen.path(HELPFUL), dir.join("adapter_model.bin")).unwrap();
    kitchen.refuses("soup-tiny", &["adapter_model.bin", "pickle", "safetensors.torch"]);
    let kitchen = Kitchen::new();
    fs::rename(kitchen.path(FULL), kitchen.path(FULL).with_file_name("pytorch_model.bin")).unwrap();
    kitchen.refuses("soup-tiny-full", &["pytorch_model.bin", "pickle", "save_pretrained"]);
    let kitchen = Kitchen::new();
    fs::remove_file(kitchen.path(FULL)).unwrap();
    kitchen.refuses("soup-tiny-full", &["backbones/helpful", "no weights", "model.safetensors"]);
}

#[test]
fn a_wrong_digest_is_refused() {
    let kitchen = Kitchen::new();
    let path = kitchen.path(HELPFUL);
    let mut bytes = fs::read(&path).unwrap();
    let expected =
        Manifest::parse(&fs::read_to_string(kitchen.path("soup-tiny/soup.toml")).unwrap())
            .unwrap()
            .sha256["backbones/helpful/adapter_model.safetensors"]
            .clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    kitchen
        .refuses("soup-tiny", &["adapter_model.safetensors", "sha256 is", "expected", &expected]);
    // Asked not to read the weights, it serves what is there.
    let unverified = OpenOptions { verify_digests: false, ..options() };
    Soup::open(&kitchen.path("soup-tiny"), &unverified).unwrap();

    let kitchen = Kitchen::new();
    kitchen.edit("soup-tiny/soup.toml", "\"backbones/helpful/adapter_model.safetensors\" = ", "# ");
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", "no sha256"]);
    let kitchen = Kitchen::new();
    kitchen.edit("soup-tiny/soup.toml", "[sha256]", &format!("[sha256]\nghost = \"{expected}\""));
    kitchen.refuses("soup-tiny", &["ghost", "no weight file", "backbones/brief"]);
    let kitchen = Kitchen::new();
    kitchen.edit(
        "soup-tiny/soup.toml",
        "[base.sha256]\n\"model.safetensors\" = \"",
        "[base.sha256]\n\"model.safetensors\" = \"0",
    );
    kitchen.refuses("soup-tiny", &["base.sha256.\"model.safetensors\"", "64 lower-case"]);
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
fn paths_that_leave_the_soup_are_refused() {
    for path in ["../soup-tiny/backbones/helpful", "/etc", "./backbones/../../x", ""] {
        let kitchen = Kitchen::new();
        kitchen.edit("soup-tiny/soup.toml", "\"backbones/helpful\"", &format!("{path:?}"));
        kitchen.refuses("soup-tiny", &["soup.toml", "backbones[0].path", "inside the soup", path]);
    }
}

#[cfg(unix)]
#[test]
fn links_that_leave_the_soup_are_refused() {
    use std::os::unix::fs::symlink;
    let kitchen = Kitchen::new();
    let (inside, outside) = (kitchen.path("soup-tiny/backbones/helpful"), kitchen.path("outside"));
    fs::rename(&inside, &outside).unwrap();
    symlink(&outside, &inside).unwrap();
    kitchen.refuses("soup-tiny", &["backbones/helpful", "leaves the soup", "outside"]);

    let kitchen = Kitchen::new();
    let (inside, outside) = (kitchen.path(HELPFUL), kitchen.path("weights"));
    fs::rename(&inside, &outside).unwrap();
    symlink(&outside, &inside).unwrap();
    kitchen.refuses("soup-tiny", &["adapter_model.safetensors", "leaves the soup", "weights"]);
}

#[test]
fn a_matrix_that_breaks_a_rule_is_refused_by_rule() {
    let cases: [(&str, &[&str]); 10] = [
        ("beta = 0.3", &["mixing.beta", "0.3", "3 objectives"]),
        ("beta = 1.0", &["mixing.beta", "beta is 1"]),
        ("matrix = [[0.5, 0.5], [0.5, 0.5]]", &["mixing.matrix", "3 rows", "got 2"]),
        (
            "matrix = [[0.5, 0.1, 0.1], [0.25, 0.8, 0.1], [0.25, 0.1]]",
            &["mixing.matrix", "row 2 has 2 entries, expected 3"],
        ),
        (
            "matrix = [[0.6, 0.1, 0.1], [0.6, 0.8, 0.1], [-0.2, 0.1, 0.8]]",
            &["mixing.matrix", "entry (2, 0) is -0.2"],
        ),
        (
            "matrix = [[0.6, 0.1, 0.1], [0.2, 0.8, 0.1], [0.3, 0.1, 0.8]]",
            &["mixing.matrix", "column 0 sums to 1.1"],
        ),
        (
            "matrix = [[0.2, 0.1, 0.1], [0.5, 0.8, 0.1], [0.3, 0.1, 0.8]]",
            &["mixing.matrix", "column 0 is not dominated"],
        ),
        ("beta = 0.7\nmatrix = [[1.0]]", &["mixing", "beta or matrix", "both"]),
        ("mapping = \"realised\"\nbeta = 0.7", &["mixing.mapping", "mixing.realised"]),
        (
            "mapping = \"realised\"\nbeta = 0.7\nrealised = [[0.36, 0.32, 0.32], [0.32, 0.36, \
             0.32], [0.32, 0.32, 0.36]]",
            &["mixing.mapping", "condition number of 20", "with 25.0"],
        ),
    ];
    for (mixing, parts) in cases {
        let kitchen = Kitchen::new();
        kitchen.edit("soup-tiny/soup.toml", "beta = 0.7", mixing);
        let parts = [&["soup.toml"], parts].concat();
        kitchen.refuses("soup-tiny", &parts);
    }
    let kitchen = Kitchen::new();
    let nearly = "matrix = [[0.33334, 0.33333, 0.33333], [0.33333, 0.33334, 0.33333], [0.33333, 0.33333, 0.33334]]";
    kitchen.edit("soup-tiny/soup.toml", "beta = 0.7", nearly);
    kitchen.refuses("soup-tiny", &["mixing.matrix", "condition number", "at most"]);
}

#[test]
fn manifests_are_refused_by_key_and_value() {
    let cases: [(&str, &str, &[&str]); 18] = [
        ("format = 1", "format = 2", &["format", "expected 1, got 2"]),
        ("format = 1", "format = 1\ncolour = \"red\"", &["unknown field `colour`", "objectives"]),
        ("name = \"soup-tiny\"", "name = \"a:b\"", &["name", "A-Z a-z", "a:b"]),
        ("name = \"soup-tiny\"", "", &["missing field `name`"]),
        ("default = \"balanced\"", "default = \"sweet\"", &["default", "balanced, terse", "sweet"]),
        ("path = \"base\"", "path = \"cellar\"", &["cellar", "nothing at", "ladle import"]),
        ("path = \"base\"", "id = \"a/b/c\"", &["base.id", "OWNER/NAME", "a/b/c"]),
        ("path = \"base\"", "id = \"../base\"", &["base.id", "../base"]),
        ("path = \"base\"", "path = \"base\"\nid = \"x\"", &["base", "one of path, id and gguf"]),
        (
            "path = \"base\"",
            "path = \"base\"\nrevision = \"x\"",
            &["base.revision", "beside an id"],
        ),
        ("name = \"harmless\"", "name = \"helpful\"", &["objectives[1].name", "\"helpful\" twice"]),
        ("name = \"harmless\"", "name = \"sft\"", &["objectives[1].name", "reserved"]),
        ("range = [0.0, 1.0]", "range = [1.0, 0.0]", &["objectives[0].range", "low < high"]),
        ("bounds = [0.0, 2.0]", "bounds = [2.0, 0.0]", &["extrapolation.bounds", "[2, 0]"]),
        ("alpha = 0.0", "alpha = 3.0", &["extrapolation.alpha", "3", "[0, 2]"]),
        (
            "alpha = 0.0",
            "alpha = { sweet = 1.0 }",
            &["extrapolation.alpha", "known: helpful", "sweet"],
        ),
        (
            "brief = 0.8, helpful",
            "brief = 0.8, sweet",
            &["presets.terse", "known: helpful", "sweet"],
        ),
        ("brief = 0.8, helpful", "brief = -0.8, helpful", &["presets.terse", "-0.8", "≥ 0"]),
    ];
    for (from, to, parts) in cases {
        let kitchen = Kitchen::new();
        kitchen.edit("soup-tiny/soup.toml", from, to);
        kitchen.refuses("soup-tiny", parts);
    }
    let kitchen = Kitchen::new();
    let text = fs::read_to_string(kitchen.path("soup-tiny/soup.toml")).unwrap();
    let last = text.rfind("[[backbones]]").unwrap();
    let sha = text.rfind("[sha256]").unwrap();
    let fewer = format!("{}{}", &text[..last], &text[sha..]);
    fs::write(kitchen.path("soup-tiny/soup.toml"), fewer).unwrap();
    kitchen.refuses("soup-tiny", &["backbones", "expected 3", "got 2"]);
    fs::write(
        kitchen.path("soup-tiny/soup.toml"),
        text.replace("path = \"backbones/brief\"", "path = \"backbones/brief\"\nweights = 3"),
    )
    .unwrap();
    kitchen.refuses("soup-tiny", &["soup.toml", "unknown field `weights`"]);
    fs::remove_file(kitchen.path("soup-tiny/soup.toml")).unwrap();
    kitchen.refuses("soup-tiny", &["soup.toml"]);
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
        ("\"target_parameters\": null", "\"target_parameters\": [\"x\"]", &["target_parameters"]),
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

/// Random bytes where the trust boundaries are: every outcome but a panic is fine, and whatever is
/// accepted must be readable to its last byte.
#[test]
fn mutated_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let adapter = fixture("soup-tiny/backbones/brief");
    let weights = fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let config = fs::read(adapter.join("adapter_config.json")).unwrap();
    let manifest = fs::read(fixture("soup-tiny-mixed/soup.toml")).unwrap();
    let harmless = fixture("soup-tiny-full/backbones/harmless");
    let index = fs::read(harmless.join("model.safetensors.index.json")).unwrap();
    copy_tree(&harmless, &dir.path().join("full"));
    let mut base = Checkpoint::open(&fixture("soup-tiny/base")).unwrap();
    let model = base.check().unwrap();
    let mut outcomes = [0usize; 2];
    for _ in 0..4000 {
        let target = dir.path().join("adapter");
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("adapter_model.safetensors"), mutate(&mut rng, &weights, header))
            .unwrap();
        fs::write(target.join("adapter_config.json"), mutate(&mut rng, &config, config.len()))
            .unwrap();
        if let Ok((_, tensors)) = WeightFile::open(&target.join("adapter_model.safetensors")) {
            for (_, tensor) in tensors {
                assert_eq!(tensor.to_f32().len(), tensor.len());
            }
        }
        let opened = Adapter::open(&target).and_then(|adapter| adapter.fit(&base, None, &model));
        outcomes[usize::from(opened.is_ok())] += 1;
        let text = mutate(&mut rng, &manifest, manifest.len());
        if let Ok(manifest) = Manifest::parse(&String::from_utf8_lossy(&text)) {
            manifest.mixing().unwrap();
            manifest.alpha().unwrap();
            manifest.default_preference();
        }
        let index = mutate(&mut rng, &index, index.len());
        fs::write(dir.path().join("full/model.safetensors.index.json"), index).unwrap();
        let _ = Checkpoint::open(&dir.path().join("full"));
    }
    // The mutations reach both sides of the boundary.
    assert!(outcomes.iter().all(|&count| count > 20), "{outcomes:?}");
}

/// `bytes` with a few changes among the first `end`: flips, copies of runs, cuts, odd numbers.
fn mutate(rng: &mut impl Rng, bytes: &[u8], end: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..rng.random_range(0..3) {
        let end = end.min(out.len()).max(1);
        let at = rng.random_range(0..end);
        match rng.random_range(0..5) {
            0 if at < out.len() => out[at] = rng.random(),
            1 if at < out.len() => out[at] ^= 1 << rng.random_range(0..8),
            2 => out.truncate(at),
            3 => {
                let odd =
                    ["-1", "0", "1e999", "18446744073709551615", "null", "\"", "{", "]", "\\u0000"];
                let odd = odd.choose(rng).unwrap().bytes();
                out.splice(at.min(out.len())..at.min(out.len()), odd);
            }
            _ => {
                let to = rng.random_range(at..=end).min(out.len());
                let run = out[at.min(to)..to].to_vec();
                out.splice(at.min(out.len())..at.min(out.len()), run);
            }
        }
    }
    out
}
