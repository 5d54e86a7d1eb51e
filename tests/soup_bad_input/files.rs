//! Files: truncated, with lying headers and indices, pickled, with random bytes.

use super::*;

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
