//! Importing base models: GGUF files and wheels against the gguf package's and transformers' reading
//! (`reference/tiny_gguf.py`), directories, and what is refused.

mod gguf;
mod packed;
mod served;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use half::bf16;
use ladle::{
    import::{ImportError, ImportOptions, Source, Store, import},
    kernels::Dtype,
    soup::Checkpoint,
    tokenizer::Tokenizer,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn models() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn options(models: &TempDir, dtype: Dtype) -> ImportOptions {
    ImportOptions { dtype, ..ImportOptions::new(models.path()) }
}

/// The store in `models`, without a network.
fn store(models: &TempDir) -> Store {
    Store { models_dir: models.path().to_owned(), offline: true }
}

fn import_file(path: &Path, options: &ImportOptions) -> Result<PathBuf, ImportError> {
    import(path.to_str().expect("UTF-8"), options).map(|imported| imported.dir)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names under the models directory that are not a model's own.
fn leftovers(models: &TempDir) -> Vec<String> {
    fs::read_dir(models.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".lock")
        .collect()
}

#[test]
fn gguf_files_are_read_as_the_gguf_package_and_the_published_tokenizers_read_them() {
    let tiny: Value = serde_json::from_slice(&fs::read(fixture("tiny.json")).expect("the fixture"))
        .expect("JSON");
    let texts: Vec<&str> =
        tiny["texts"].as_array().expect("texts").iter().filter_map(Value::as_str).collect();
    for expected in tiny["models"].as_array().expect("models") {
        let name = expected["file"].as_str().expect("a name");
        let models = models();
        let dir = import_file(&fixture(name), &options(&models, Dtype::F32)).expect(name);
        let checkpoint = Checkpoint::open(&dir).expect("a checkpoint");

        let digests = expected["sha256"].as_object().expect("digests");
        let names: BTreeSet<&str> = checkpoint.names().collect();
        assert_eq!(names, digests.keys().map(String::as_str).collect(), "{name}");
        for (tensor, digest) in digests {
            let values = checkpoint.get(tensor).expect("listed above");
            assert_eq!(values.dtype(), Dtype::F32);
            assert_eq!(Some(hex(values.bytes()).as_str()), digest.as_str(), "{name}: {tensor}");
        }
        for (key, value) in expected["config"].as_object().expect("a configuration") {
            assert_eq!(checkpoint.config()[key], *value, "{name}: {key}");
        }

        let tokenizer = Tokenizer::from_dir(&dir).expect("a tokenizer");
        let begin = expected["begin"].as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Vec<Vec<u32>> =
            serde_json::from_value(expected["ids"].clone()).expect("lists of ids");
        assert_eq!(ids.len(), texts.len());
        for (text, ids) in texts.iter().zip(ids) {
            assert_eq!(tokenizer.encode(text, false).expect("encodes"), ids, "{name}: {text:?}");
            let with = tokenizer.encode(text, true).expect("encodes");
            let adds_begin = !["tiny-qwen2.gguf", "tiny-olmo2.gguf"].contains(&name);
            assert_eq!(with.len(), ids.len() + usize::from(adds_begin), "{name}: {text:?}");
            assert!(!adds_begin || with.first().copied() == begin, "{name}: {text:?}");
        }
        let end = expected["config"]["eos_token_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        assert_eq!(tokenizer.bos(), begin);
        assert_eq!(tokenizer.eos(), [end.expect("an id")]);
    }
}

#[test]
fn bf16_weights_are_the_nearest_to_the_f32_ones() {
    let models = models();
    let file = fixture("tiny-llama.gguf");
    let exact = import_file(&file, &options(&models, Dtype::F32)).expect("imports");
    let rounded = import_file(&file, &options(&models, Dtype::Bf16)).expect("imports");
    let (exact, rounded) =
        (Checkpoint::open(&exact).expect("opens"), Checkpoint::open(&rounded).expect("opens"));
    assert_eq!(rounded.config()["torch_dtype"], "bfloat16");
    for (name, values) in exact.tensors() {
        let expected: Vec<bf16> = values.to_f32().into_iter().map(bf16::from_f32).collect();
        let got = rounded.get(name).expect("the same tensors");
        assert_eq!(got.as_bf16(), Some(expected.as_slice()), "{name}");
    }
}

#[test]
fn a_second_import_changes_nothing_and_another_file_of_that_name_is_refused() {
    let models = models();
    let options = options(&models, Dtype::Bf16);
    let first =
        import(fixture("tiny-llama.gguf").to_str().expect("UTF-8"), &options).expect("imports");
    assert!(!first.already_there);
    let weights = first.dir.join("model.safetensors");
    let written = fs::metadata(&weights).and_then(|m| m.modified()).expect("a time");

    let second =
        import(fixture("tiny-llama.gguf").to_str().expect("UTF-8"), &options).expect("imports");
    assert!(second.already_there);
    assert_eq!(second.dir, first.dir);
    assert_eq!(fs::metadata(&weights).and_then(|m| m.modified()).expect("a time"), written);

    let other = models.path().join("elsewhere");
    fs::create_dir(&other).expect("a directory");
    let other = other.join("tiny-llama.gguf");
    fs::copy(fixture("tiny-qwen2.gguf"), &other).expect("copied");
    let error = import_file(&other, &options).expect_err("another model");
    assert!(matches!(error, ImportError::Occupied { .. }), "{error}");
    assert!(error.to_string().contains("--name"), "{error}");

    let named = ImportOptions { name: Some("mine/other".to_owned()), ..options };
    assert_eq!(import_file(&other, &named).expect("imports"), models.path().join("mine/other"));
}

#[test]
fn a_base_is_found_by_path_by_id_or_imported() {
    let models = models();
    let file = fixture("tiny-llama.gguf");
    let file = file.to_str().expect("UTF-8");
    let dir = store(&models).resolve(file).expect("imports without a network");
    assert_eq!(dir, models.path().join("tiny-llama"));
    assert_eq!(store(&models).resolve("tiny-llama").expect("an id"), dir);
    let path = dir.to_str().expect("UTF-8");
    assert_eq!(store(&models).resolve(path).expect("a path"), dir);

    for absent in ["smollm2-135m-instruct", "owner/name", "owner/name@main"] {
        let error = store(&models).resolve(absent).expect_err("absent");
        let said = error.to_string();
        assert!(matches!(error, ImportError::Offline { .. }), "{said}");
        assert!(said.contains(&format!("ladle import {absent}")), "{said}");
    }
    for wrong in ["no-such-model", "../tiny-llama", "a/b/c", "", "absent.gguf", ".hidden/x"] {
        let error = store(&models).resolve(wrong).expect_err("not a source");
        assert!(matches!(error, ImportError::Spec { .. }), "{wrong}: {error}");
        assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
    }
    assert_eq!(leftovers(&models), ["tiny-llama"]);
}

#[test]
fn the_default_ids_say_what_is_kept() {
    let id = |spec: &str, dtype| Source::parse(spec).expect("a source").id(dtype, None);
    assert_eq!(id("smollm2-135m-instruct", Dtype::Bf16), "smollm2-135m-instruct");
    assert_eq!(id("smollm2-135m-instruct", Dtype::F32), "smollm2-135m-instruct-f32");
    assert_eq!(id("Owner/Name", Dtype::F32), "Owner/Name");
    assert_eq!(id("Owner/Name@refs/pr/1", Dtype::Bf16), "Owner/Name@refs-pr-1");
}

#[test]
fn damaged_gguf_files_are_refused_and_leave_nothing() {
    let whole = fs::read(fixture("tiny-llama.gguf")).expect("the fixture");
    let models = models();
    let scratch = tempfile::tempdir().expect("a directory");
    let refused = |bytes: &[u8], expected: &str| {
        let path = scratch.path().join("damaged.gguf");
        fs::write(&path, bytes).expect("written");
        let error = import_file(&path, &options(&models, Dtype::Bf16)).expect_err(expected);
        let said = error.to_string();
        assert!(said.contains("damaged.gguf") && said.contains(expected), "{said}");
        assert_eq!(leftovers(&models), Vec::<String>::new(), "{said}");
    };
    refused(b"", "damaged.gguf");
    refused(b"not a model at all", "magic");
    refused(whole.get(..whole.len() - 1000).expect("longer"), "remaining");
    refused(whole.get(..5000).expect("longer"), "damaged.gguf");

    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        let mut bytes = whole.clone();
        bytes.splice(at..at + from.len(), to.bytes());
        bytes
    };
    refused(&replaced("general.architecture", "general.architectura"), "general.architecture");
    refused(&replaced("blk.0.ffn_gate", "blk.0.ffn_gaze"), "blk.0.ffn_gaze");
    refused(&replaced("llama-bpe", "martianxx"), "martianxx");
    refused(
        &replaced("llama.embedding_length", "llama.embedding_lengte"),
        "llama.embedding_lengte",
    );
}

/// A zip file of one member, deflated or stored.
fn wheel(members: &[(&str, &[u8])], deflated: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in members {
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let packed = match deflated {
            false => content.to_vec(),
            true => {
                let mut encoder =
                    flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(content).expect("in memory");
                encoder.finish().expect("in memory")
            }
        };
        let length = |n: usize| u32::try_from(n).expect("small").to_le_bytes();
        let name_length = u16::try_from(name.len()).expect("short").to_le_bytes();
        let method = if deflated { [8, 0] } else { [0, 0] };
        // Shared by both headers: version, flags, method, time, date, CRC, sizes, name length, extra.
        let mut shared = vec![20, 0, 0, 0];
        shared.extend(method);
        shared.extend([0, 0, 0x21, 0x50]);
        shared.extend(crc.sum().to_le_bytes());
        shared.extend(length(packed.len()));
        shared.extend(length(content.len()));
        shared.extend(name_length);
        shared.extend([0, 0]);
        let offset = length(out.len());
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&shared);
        directory.extend([0; 10]);
        directory.extend(offset);
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&shared);
        out.extend(name.as_bytes());
        out.extend(packed);
    }
    let count = u16::try_from(members.len()).expect("few").to_le_bytes();
    let (start, size) = (out.len(), directory.len());
    out.extend(directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend(count);
    out.extend(count);
    out.extend(u32::try_from(size).expect("small").to_le_bytes());
    out.extend(u32::try_from(start).expect("small").to_le_bytes());
    out.extend([0, 0]);
    out
}

#[test]
fn a_wheel_gives_the_model_inside_it() {
    let gguf = fs::read(fixture("tiny-llama.gguf")).expect("the fixture");
    for deflated in [false, true] {
        let models = models();
        let path = models.path().join("tiny-1.0.whl");
        let members: [(&str, &[u8]); 2] =
            [("tiny/__init__.py", b"x = 1\n"), ("tiny/m.gguf", &gguf)];
        fs::write(&path, wheel(&members, deflated)).expect("written");
        let from_wheel = import_file(&path, &options(&models, Dtype::Bf16)).expect("imports");
        let from_file = import_file(&fixture("tiny-llama.gguf"), &options(&models, Dtype::Bf16));
        let read = |dir: &Path| fs::read(dir.join("model.safetensors")).expect("weights");
        assert_eq!(read(&from_wheel), read(&from_file.expect("imports")));
    }
}

#[test]
fn damaged_wheels_are_refused_and_leave_nothing() {
    let gguf = fs::read(fixture("tiny-llama.gguf")).expect("the fixture");
    let models = models();
    let scratch = tempfile::tempdir().expect("a directory");
    let refused = |bytes: &[u8], expected: &str| {
        let path = scratch.path().join("damaged.whl");
        fs::write(&path, bytes).expect("written");
        let error = import_file(&path, &options(&models, Dtype::Bf16)).expect_err(expected);
        let said = error.to_string();
        assert!(matches!(error, ImportError::Archive { .. }), "{said}");
        assert!(said.contains("damaged.whl") && said.contains(expected), "{said}");
        assert_eq!(leftovers(&models), Vec::<String>::new(), "{said}");
    };
    refused(b"not a zip", "not a wheel");
    refused(&wheel(&[("a.py", b"x")], false), "got 0");
    refused(&wheel(&[("a.gguf", &gguf), ("b.gguf", &gguf)], false), "got 2");
    let mut flipped = wheel(&[("a.gguf", &gguf)], false);
    let middle = flipped.len() / 2;
    *flipped.get_mut(middle).expect("a byte") ^= 1;
    refused(&flipped, "checksum");
    let mut lying = wheel(&[("a.gguf", &gguf)], true);
    let at = lying.windows(4).rposition(|w| w == b"PK\x01\x02").expect("the directory");
    *lying.get_mut(at + 24).expect("the size") ^= 1;
    refused(&lying, "expected");
}

#[test]
fn a_local_directory_is_linked_or_copied_once_it_is_checked() {
    let models = models();
    let source = tempfile::tempdir().expect("a directory");
    let here = ImportOptions::new(source.path());
    let dir = import_file(&fixture("tiny-llama.gguf"), &here).expect("imports");
    fs::write(dir.join("notes.txt"), "not part of the model").expect("written");

    let link = import_file(&dir, &ImportOptions::new(models.path())).expect("links");
    assert!(link.is_symlink());
    assert_eq!(link.canonicalize().expect("a target"), dir.canonicalize().expect("a path"));
    let again = import(dir.to_str().expect("UTF-8"), &ImportOptions::new(models.path()));
    assert!(again.expect("links").already_there);
    assert_eq!(store(&models).resolve("tiny-llama").expect("an id"), link);

    let copying = ImportOptions {
        copy: true,
        name: Some("copied".to_owned()),
        ..ImportOptions::new(models.path())
    };
    let copy = import_file(&dir, &copying).expect("copies");
    assert!(!copy.is_symlink() && !copy.join("notes.txt").exists());
    assert_eq!(
        fs::read(copy.join("model.safetensors")).expect("weights"),
        fs::read(dir.join("model.safetensors")).expect("weights")
    );

    fs::remove_file(dir.join("tokenizer.json")).expect("removed");
    let broken = ImportOptions { name: Some("broken".to_owned()), ..copying };
    for copy in [false, true] {
        let error =
            import_file(&dir, &ImportOptions { copy, ..broken.clone() }).expect_err("no tokenizer");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
        assert!(!models.path().join("broken").exists());
    }
}

#[test]
fn an_import_that_lost_a_file_is_not_taken_for_whole() {
    let models = models();
    let options = options(&models, Dtype::Bf16);
    let dir = import_file(&fixture("tiny-llama.gguf"), &options).expect("imports");
    let files: BTreeMap<String, Value> = serde_json::from_value(
        serde_json::from_slice::<Value>(&fs::read(dir.join("ladle.json")).expect("a record"))
            .expect("JSON")["files"]
            .clone(),
    )
    .expect("files");
    for (name, file) in &files {
        let bytes = fs::read(dir.join(name)).expect("recorded");
        assert_eq!(file["sha256"], hex(&bytes), "{name}");
        assert_eq!(file["bytes"], bytes.len(), "{name}");
    }
    assert!(files.contains_key("model.safetensors"));
    fs::remove_file(dir.join("model.safetensors")).expect("removed");
    let error = import_file(&fixture("tiny-llama.gguf"), &options).expect_err("not whole");
    assert!(matches!(error, ImportError::Occupied { .. }), "{error}");
}

#[test]
fn what_killed_imports_left_is_removed_and_what_is_being_made_is_not() {
    let models = models();
    let [left, owned, made] = [".ladle-partial-a", "owner/.ladle-partial-b", ".ladle-partial-c"]
        .map(|name| models.path().join(name));
    for dir in [&left, &owned, &made] {
        fs::create_dir_all(dir).expect("a directory");
        fs::write(dir.join("model.safetensors"), "half").expect("written");
    }
    // As whoever makes one holds it.
    let held = fs::File::open(&made).expect("a directory");
    held.lock_shared().expect("a lock");
    import_file(&fixture("tiny-llama.gguf"), &options(&models, Dtype::Bf16)).expect("imports");
    assert!(!left.exists() && !owned.exists() && made.exists());
}
