//! Soups on disk: what PEFT and transformers wrote is read as they mean it. Expected numbers come
//! from tests/reference/make_tiny_soup.py (PEFT's exact `cat`, torch sums in f64).

#[path = "common/soup.rs"]
mod common;

use std::{fs, path::Path};

use ladle::{
    config::Residence,
    files::Staging,
    kernels::{Dtype, HostTensor},
    preference::{Alpha, Preference},
    soup::{
        Activation, Backbone, Checkpoint, Manifest, OpenOptions, Soup, SoupError, TensorSpec,
        WeightError,
        checkpoint::write_checkpoint,
        geometry::Geometry,
        init::{Recipe, init},
        inspect::Inspection,
        manifest::{BaseEntry, Mixing},
        weights::WeightFile,
    },
};

use common::{SOUPS, copy_tree, fixture, merged, numbers, open, options, reference, values};

/// A soup of `recipe`, without the checks of the importer.
fn made(out: &Path, recipe: &Recipe) -> Result<Manifest, SoupError> {
    init(out, recipe, &options(), |_| Ok(()))
}

#[test]
fn soups_merge_to_what_peft_and_torch_make_of_them() {
    for name in SOUPS {
        let soup = open(name);
        let (document, stored) = reference(name);
        for (i, case) in document["cases"].as_array().unwrap().iter().enumerate() {
            let preference = Preference::new(&numbers(&case["preference"]), 3).unwrap();
            let solution =
                soup.mixing.solve(&preference, &Alpha::PerObjective(numbers(&case["alpha"])));
            let lambda = numbers(&case["lambda"]);
            assert!(solution.lambda.iter().zip(&lambda).all(|(a, b)| (a - b).abs() < 1e-9));
            for tensor in document["tensors"].as_array().unwrap() {
                let tensor = tensor.as_str().unwrap();
                let got = merged(&soup, &solution.coefficients, tensor);
                let want = values(&stored[&format!("case{i}.{tensor}")]);
                assert_eq!(got.len(), want.len());
                let worst =
                    got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0f64, f64::max);
                assert!(worst < 2e-6, "{name} case {i} {tensor}: off by {worst}");
            }
        }
    }
}

#[test]
fn adapters_have_the_ranks_and_scales_that_peft_gives_them() {
    let soup = open("soup-tiny");
    let module = |backbone: usize, name: &str| match &soup.backbones[backbone] {
        Backbone::Adapter(adapter) => {
            adapter.modules.get(name).map(|lora| (lora.down.shape()[0], lora.scale))
        }
        Backbone::Full(_) => unreachable!("soup-tiny holds adapters"),
    };
    assert_eq!(module(0, "model.layers.0.self_attn.q_proj"), Some((4, 2.0)));
    assert_eq!(module(0, "model.layers.0.mlp.up_proj"), None);
    // rsLoRA: alpha / √r.
    assert_eq!(module(1, "model.layers.1.mlp.up_proj"), Some((8, 4.0 / 8f64.sqrt())));
    // Rank and alpha patterns: a dotted suffix, and a regular expression for one layer.
    assert_eq!(module(2, "model.layers.0.mlp.down_proj"), Some((6, 4.0 / 6.0)));
    assert_eq!(module(2, "model.layers.0.self_attn.v_proj"), Some((2, 1.5)));
    assert_eq!(module(2, "model.layers.1.self_attn.v_proj"), Some((3, 1.0)));
}

#[test]
fn modules_to_save_replace_whole_tensors() {
    let soup = open("soup-tiny-mixed");
    let Backbone::Adapter(helpful) = &soup.backbones[0] else { panic!("an adapter") };
    let saved: Vec<_> = helpful.saved.keys().map(String::as_str).collect();
    // PEFT's "norm" names every module whose path ends in it.
    let expected = [
        "lm_head.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.norm.weight",
    ];
    assert_eq!(saved, expected);
    // layers_to_transform = [1]
    let Backbone::Adapter(brief) = &soup.backbones[2] else { panic!("an adapter") };
    assert!(brief.modules.keys().all(|module| module.starts_with("model.layers.1.")));
    assert_eq!(brief.modules.len(), 3);
}

/// Products read rows that lie across lines of the cache more slowly, and headers have any length.
#[test]
fn the_data_of_a_copied_file_begins_with_a_line_of_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let values: Vec<u8> = (0..=255).collect();
    for padding in 0..10 {
        let shape = r#"{"w":{"dtype":"F32","shape":[4,16],"data_offsets":[0,256]}}"#;
        let header = format!("{shape}{}", " ".repeat(8 * padding));
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length[..], header.as_bytes(), &values].concat()).unwrap();
        let (file, tensors) = WeightFile::open_as(&path, Residence::Copied).unwrap();
        assert_eq!(file.bytes(), fs::read(&path).unwrap());
        assert_eq!(tensors[0].1.bytes(), values);
        assert_eq!(tensors[0].1.bytes().as_ptr().align_offset(64), 0, "{padding}");
    }
}

/// Generations of a soup share what they have in common.
#[test]
fn a_copy_of_a_file_is_in_memory_once_while_the_file_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&fixture("soup-tiny"), dir.path());
    let copied = OpenOptions { residence: Residence::Copied, ..options() };
    let opened = || Soup::open(dir.path(), &copied).unwrap();
    let at = |soup: &Soup| -> Vec<*const u8> {
        soup.weight_files().map(|file| file.bytes().as_ptr()).collect()
    };
    let (one, two) = (opened(), opened());
    assert_eq!((at(&one), at(&one).len()), (at(&two), 4));
    // Another file with the same content is another file.
    let base = dir.path().join("base/model.safetensors");
    let bytes = fs::read(&base).unwrap();
    ladle::files::write(&base, &bytes).unwrap();
    let three = opened();
    assert_ne!(at(&three)[0], at(&one)[0]);
    assert_eq!(at(&three)[1..], at(&one)[1..]);
    assert_eq!(three.digest, one.digest);
}

#[test]
fn sharded_checkpoints_hold_the_same_tensors_as_single_ones() {
    let soup = open("soup-tiny-full");
    let names = |i: usize| match &soup.backbones[i] {
        Backbone::Full(c) => (c.files().len(), c.names().map(str::to_owned).collect::<Vec<_>>()),
        Backbone::Adapter(_) => unreachable!("soup-tiny-full holds checkpoints"),
    };
    assert_eq!((names(0).0, names(1).0), (1, 3));
    assert_eq!(names(0).1, names(1).1);
}

#[test]
fn the_realised_matrix_is_used_where_the_manifest_says_so() {
    let soup = open("soup-tiny-mixed");
    assert_eq!(soup.mixing.rows()[0], [0.8, 0.1, 0.15]);
    assert_eq!(open("soup-tiny").mixing.rows()[0], [0.7, 0.15000000000000002, 0.15000000000000002]);
}

#[test]
fn presets_and_defaults_are_preferences() {
    let manifest = open("soup-tiny").manifest;
    assert_eq!(manifest.preset("terse").unwrap().weights(), [0.2, 0.0, 0.8]);
    assert_eq!(manifest.preset("nowhere"), None);
    assert_eq!(manifest.default_preference(), Preference::uniform(3));
}

#[test]
fn the_digest_tells_soups_apart() {
    let digests: Vec<_> = SOUPS.iter().map(|name| open(name).digest).collect();
    assert!(digests.iter().all(|digest| digest.len() == 64));
    assert!(digests[0] != digests[1] && digests[1] != digests[2]);
    assert_eq!(digests[0], open("soup-tiny").digest);
    let unverified = OpenOptions { verify_digests: false, ..options() };
    assert_eq!(digests[0], Soup::open(&fixture("soup-tiny"), &unverified).unwrap().digest);

    // The settings of an adapter scale it: they belong to the identity.
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&fixture("soup-tiny"), dir.path());
    let config = dir.path().join("backbones/helpful/adapter_config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"lora_alpha\": 8", "\"lora_alpha\": 9")).unwrap();
    assert_ne!(digests[0], Soup::open(dir.path(), &options()).unwrap().digest);
}

#[test]
fn tokenizer_template_and_configurations_are_part_of_the_digest() {
    let dir = tempfile::tempdir().unwrap();
    for name in SOUPS {
        copy_tree(&fixture(name), &dir.path().join(name));
    }
    let digest = |soup: &str| Soup::open(&dir.path().join(soup), &options()).unwrap().digest;
    let (adapters, full) = (digest("soup-tiny"), digest("soup-tiny-full"));
    let mut seen = vec![adapters];
    let base = dir.path().join("soup-tiny/base");
    for (file, text) in [
        ("chat_template.jinja", "{{ messages[0].content }}"),
        ("chat_template.jinja", "{{ messages[0].content }}\n"),
        ("generation_config.json", r#"{"eos_token_id": 3}"#),
        ("tokenizer_config.json", r#"{"clean_up_tokenization_spaces": false}"#),
    ] {
        fs::write(base.join(file), text).unwrap();
        seen.push(digest("soup-tiny"));
    }
    let tokenizer = base.join("tokenizer.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    fs::write(&tokenizer, format!("{text} ")).unwrap();
    seen.push(digest("soup-tiny"));
    let different: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(different.len(), seen.len(), "{seen:?}");

    let config = dir.path().join("soup-tiny-full/backbones/brief/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let longer = "\"max_position_embeddings\": 512";
    fs::write(&config, text.replace("\"max_position_embeddings\": 256", longer)).unwrap();
    assert_ne!(full, digest("soup-tiny-full"));
}

fn recipe() -> Recipe {
    let tiny = fixture("soup-tiny");
    Recipe {
        name: "made".to_owned(),
        base: BaseEntry { path: Some(tiny.join("base")), ..BaseEntry::default() },
        sft: None,
        objectives: Vec::new(),
        backbones: vec![
            ("kind".to_owned(), tiny.join("backbones/harmless")),
            ("short".to_owned(), fixture("soup-tiny-full").join("backbones/harmless")),
        ],
        mixing: Mixing { beta: Some(0.6), ..Mixing::default() },
        activation: Activation::All,
    }
}

#[test]
fn init_writes_a_soup_that_owns_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("made");
    let manifest = made(&out, &recipe()).unwrap();
    let soup = Soup::open(&out, &options()).unwrap();
    assert_eq!(soup.manifest, manifest);
    assert_eq!(manifest.objective_names().collect::<Vec<_>>(), ["kind", "short"]);
    assert!(matches!(soup.backbones.as_slice(), [Backbone::Adapter(_), Backbone::Full(_)]));
    assert_eq!(soup.mixing.rows(), [[0.6, 0.4], [0.4, 0.6]]);
    // One adapter file and three shards, all pinned.
    assert_eq!(manifest.sha256.len(), 4);
    assert_eq!(manifest.base.sha256.len(), 1);

    let again = made(&out, &recipe()).unwrap_err().to_string();
    assert!(again.contains("already exists"), "{again}");
}

#[test]
fn an_init_that_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("made");
    let mut recipe = recipe();
    recipe.backbones[1].1 = fixture("soup-tiny-mixed").join("backbones/harmless");
    let error = made(&out, &recipe).unwrap_err();
    assert!(matches!(error, SoupError::Mismatch { .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn inspect_tells_sizes_ranks_digests_and_the_condition_of_b() {
    let soup = open("soup-tiny");
    let inspection = Inspection::of(&soup);
    let json = serde_json::to_value(&inspection).unwrap();
    // Eigenvalues of the circulant matrix: 1 and (3β − 1)/2.
    let condition = json["condition"].as_f64().unwrap();
    assert!((condition - 1.0 / 0.55).abs() < 1e-9, "{condition}");
    let brief = &json["backbones"][2];
    assert_eq!(brief["ranks"], serde_json::json!([2, 3, 6]));
    let file = fixture("soup-tiny/backbones/brief/adapter_model.safetensors");
    assert_eq!(brief["bytes"], fs::metadata(file).unwrap().len());
    let digest = &soup.manifest.sha256["backbones/brief/adapter_model.safetensors"];
    assert_eq!(brief["sha256"]["adapter_model.safetensors"], *digest);
    let text = inspection.to_string();
    assert!(text.contains("condition number 1.8182") && text.contains("rank 2/3/6"), "{text}");
}

#[test]
fn distances_angles_and_subspaces_are_those_of_the_dense_matrices() {
    let text = fs::read(fixture("soup-geometry.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let close = |got: &[f64], want: &[f64], what: &str| {
        assert_eq!(got.len(), want.len(), "{what}");
        let near = got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4 * w.abs().max(1.0));
        assert!(near, "{what}: got {got:?}, expected {want:?}");
    };
    let flat = |rows: &serde_json::Value| -> Vec<f64> {
        rows.as_array().unwrap().iter().flat_map(numbers).collect()
    };
    for (name, want) in reference["soups"].as_object().unwrap() {
        let found = Geometry::of(&open(name));
        close(&found.norms, &numbers(&want["norms"]), "norms");
        close(&found.cosines.concat(), &flat(&want["cosines"]), "cosines");
        close(&found.amplification, &numbers(&want["amplification"]), "amplification");
        match &found.overlaps {
            Some(overlaps) => close(&overlaps.concat(), &flat(&want["overlaps"]), "overlaps"),
            None => assert!(want["overlaps"].is_null(), "{name}"),
        }
    }
    let text = Inspection::of(&open("soup-tiny")).to_string();
    assert!(text.contains("corners    farther from θ_sft") && text.contains("1.63"), "{text}");
}

#[test]
fn checkpoints_are_read_back_as_written_sharded_or_not() {
    let source = Checkpoint::open(&fixture("soup-tiny/base")).unwrap();
    let specs: Vec<_> =
        source.tensors().iter().map(|(name, tensor)| TensorSpec::of(name, tensor)).collect();
    for (shard_bytes, files) in [(u64::MAX, 1), (100_000, 5)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let staging = Staging::new(&out).unwrap();
        write_checkpoint(staging.path(), &specs, shard_bytes, |spec| {
            source.get(&spec.name).ok_or_else(|| panic!("{} asked for", spec.name))
        })
        .map_err(|error: WeightError| error)
        .unwrap();
        fs::write(staging.path().join("config.json"), source.config().to_string()).unwrap();
        assert!(!out.exists());
        staging.commit().unwrap();
        let read = Checkpoint::open(&out).unwrap();
        assert_eq!(read.files().len(), files);
        assert!(read.names().eq(source.names()));
        for (name, tensor) in source.tensors() {
            let back = read.get(name).unwrap();
            assert_eq!((back.shape(), back.bytes()), (tensor.shape(), tensor.bytes()), "{name}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}

#[test]
fn a_writer_that_fails_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let specs = [TensorSpec { name: "w".to_owned(), dtype: Dtype::F32, shape: vec![2, 3] }];
    let other = HostTensor::from_f32(&[0.0; 4], vec![2, 2]).unwrap();
    let error =
        write_checkpoint(dir.path(), &specs, u64::MAX, |_| Ok::<_, WeightError>(other.clone()))
            .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("tensor w: expected f32 [2, 3], got f32 [2, 2]"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
