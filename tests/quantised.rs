//! Quantised bases: blocks as the gguf package makes and reads them, imports that keep or make
//! them, and soups served on them.

#[path = "support/answers.rs"]
mod answers;
#[path = "common/soup.rs"]
mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use answers::*;
use common::{copy_tree, fixture, options};
use ladle::{
    engine::{
        CpuBackend, CpuOptions, EngineConfig, EngineHandle, GenerateRequest, MergeMode, OpenError,
        backend::Backend, start,
    },
    import::{ImportError, ImportOptions, Quantise, import},
    kernels::{BlockType, Dtype, HostTensor, Kernels, Product, cpu::CpuKernels},
    preference::{Alpha, Coefficients, Preference},
    sampling::SamplingParams,
    simd::Isa,
    soup::{
        Checkpoint, OpenOptions, Soup, SoupError, TensorSpec, WeightError,
        checkpoint::{SHARD_BYTES, write_checkpoint},
    },
    tokenizer::Tokenizer,
};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn import_as(source: &Path, models: &TempDir, quantise: Quantise) -> Result<PathBuf, ImportError> {
    let options =
        ImportOptions { quantise: Some(quantise), ..ImportOptions::new(models.path().join("m")) };
    import(source.to_str().unwrap(), &options).map(|imported| imported.dir)
}

/// The f32 tensors of `tests/fixtures/quantised.safetensors`, and its notes.
fn references() -> (BTreeMap<String, Vec<f32>>, HashMap<String, String>) {
    let bytes = fs::read(fixture("quantised.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| {
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let tensors = file.iter().map(|(name, view)| (name.to_owned(), floats(view.data()))).collect();
    (tensors, header.metadata().clone().unwrap())
}

#[test]
fn blocks_are_made_and_read_as_the_gguf_package_does() {
    let (tensors, _) = references();
    let values = &tensors["values"];
    for kind in BlockType::ALL {
        let tensor = HostTensor::rounded(values, Dtype::Quantised(kind), vec![16, 64]).unwrap();
        let got = tensor.to_f32();
        if let Some(want) = tensors.get(&format!("{}.values", kind.name())) {
            assert!(got.iter().zip(want).all(|(a, b)| a == b), "{}", kind.name());
            continue;
        }
        // Types that the package does not make: the nearest code, but for one beyond the highest.
        let step = match kind {
            BlockType::Q6 => 1.0 / 32.0,
            BlockType::Iq4Nl => 14.0 / 127.0,
            other => panic!("no reference of {}", other.name()),
        };
        for (got, want) in got.chunks(kind.values()).zip(values.chunks(kind.values())) {
            let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
            // And 127 halves of the smallest step of an f16 scale.
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= most * (step + 0.001) + 4e-6;
            assert!(got.iter().zip(want).all(close), "{}", kind.name());
        }
    }
}

/// How far the values of an imported tensor are from the file's, at most, as part of a block's largest:
/// Q2_K becomes q8_0; scales and minima of other superblocks are rounded to f16, 2⁻¹¹ each, and a
/// block's codes and minimum add to at most three times its largest value.
fn rounding(ggml_type: &str) -> f32 {
    match ggml_type {
        "Q2_K" => 0.0045,
        superblocks if superblocks.ends_with("_K") || superblocks == "IQ4_XS" => 3.0 / 2048.0,
        _ => 0.0,
    }
}

#[test]
fn products_with_kept_blocks_are_those_of_the_gguf_package() {
    let (tensors, notes) = references();
    let products: Vec<_> = tensors.iter().filter(|(name, _)| name.contains('/')).collect();
    let types: BTreeSet<_> = products.iter().map(|(name, _)| notes[*name].as_str()).collect();
    let all = "IQ4_NL IQ4_XS Q2_K Q3_K Q4_0 Q4_1 Q4_K Q5_0 Q5_1 Q5_K Q6_K Q8_0";
    assert_eq!(types, all.split(' ').collect());
    let models = directory();
    for (name, want) in products {
        let (file, tensor) = name.split_once('/').unwrap();
        let dir = import_as(&fixture("gguf").join(file), &models, Quantise::Keep).unwrap();
        let layer = "model.layers.0.";
        let tensor = match tensor.rsplit('.').next().unwrap() {
            "token_embd" => "model.embed_tokens".to_owned(),
            "output" => "lm_head".to_owned(),
            "attn_output" => format!("{layer}self_attn.o_proj"),
            part => match part.split_once('_').unwrap() {
                ("attn", part) => format!("{layer}self_attn.{part}_proj"),
                (_, part) => format!("{layer}mlp.{part}_proj"),
            },
        };
        let weight = Checkpoint::open(&dir).unwrap().get(&format!("{tensor}.weight")).unwrap();
        assert!(weight.dtype().blocks().is_some(), "{name} is {}", weight.dtype());
        let (x, wide) = (&tensors["x"], weight.to_f32());
        for &isa in Isa::available() {
            let kernels = CpuKernels::with_isa(2, isa);
            let x = kernels.tensor(3, x).unwrap();
            let product = Product { x: &x, weight: &weight, onto: None };
            let got = kernels.products(vec![product]).unwrap().remove(0);
            for (i, want) in want.iter().enumerate() {
                let (row, output) = (i / 16, i % 16);
                let x = x.row(row).unwrap().chunks(32);
                let terms = x.zip(wide[256 * output..][..256].chunks(32)).map(|(x, w)| {
                    let most = w.iter().fold(0f32, |most, w| most.max(w.abs()));
                    x.iter().map(|x| x.abs() * most).sum::<f32>()
                });
                let allowed = terms.sum::<f32>() * (rounding(&notes[name]) + 1e-6);
                let got = got.row(row).unwrap()[output];
                assert!((got - want).abs() <= allowed, "{name}, {isa}: {got} for {want}");
            }
        }
    }
}

#[test]
fn kept_blocks_have_the_values_that_the_gguf_package_reads() {
    let tiny: Value =
        serde_json::from_slice(&fs::read(fixture("gguf/tiny.json")).unwrap()).unwrap();
    let (mut exact_ones, mut rounded, mut remade) = (0, 0, 0);
    for expected in tiny["models"].as_array().unwrap() {
        let name = expected["file"].as_str().unwrap();
        let path = fixture("gguf").join(name);
        let models = directory();
        let dir = import_as(&path, &models, Quantise::Keep).unwrap();
        let exact =
            ImportOptions { dtype: Dtype::F32, ..ImportOptions::new(models.path().join("f")) };
        let exact = import(path.to_str().unwrap(), &exact).unwrap().dir;
        let (blocks, exact) = (Checkpoint::open(&dir).unwrap(), Checkpoint::open(&exact).unwrap());
        for (tensor, digest) in expected["sha256"].as_object().unwrap() {
            let (tensor, exact) = (blocks.get(tensor).unwrap(), exact.get(tensor).unwrap());
            assert_eq!(tensor.shape(), exact.shape());
            let values = tensor.to_f32();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let hex: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            let Some(kind) = tensor.dtype().blocks() else { continue };
            if *digest == hex {
                exact_ones += 1;
                continue;
            }
            let (part, count) = match kind {
                BlockType::Q8_0 => (rounding("Q2_K"), &mut remade),
                _ => (rounding("Q4_K"), &mut rounded),
            };
            *count += 1;
            for (got, want) in values.chunks(32).zip(exact.to_f32().chunks(32)) {
                let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= most * part;
                assert!(got.iter().zip(want).all(close), "{name}");
            }
        }
    }
    // Rounded are the superblocks of the first file (Q4_K, Q5_K, Q6_K, Q3_K), of Phi-3 (Q4_K) and of
    // Granite (Q4_K, two of IQ4_XS); remade is Q2_K. The files have eight matrices each, three of the
    // second in floats, Phi-3 six.
    assert_eq!((exact_ones, rounded, remade), (3 + 5 + 5 + 5 + 5 * 8, 4 + 1 + 3, 1));
}

/// soup-tiny with its base replaced by the one in `base`.
fn soup_on(base: PathBuf, name: &str, dir: &TempDir) -> Result<Soup, SoupError> {
    let home = tempfile::tempdir_in(dir.path()).unwrap().keep();
    copy_tree(&fixture(name), &home.join(name));
    let manifest = home.join(name).join("soup.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    // Another base has other digests.
    let text = text.lines().filter(|line| !line.starts_with("\"model.safetensors\" ="));
    fs::write(&manifest, text.collect::<Vec<_>>().join("\n")).unwrap();
    Soup::open(&home.join(name), &OpenOptions { base: Some(base), ..options() })
}

/// A copy of a checkpoint with all values in f32.
fn widened(from: &Path, to: PathBuf) -> PathBuf {
    copy_tree(from, &to);
    let checkpoint = Checkpoint::open(from).unwrap();
    let spec = |(name, tensor): (&String, &HostTensor)| TensorSpec {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: tensor.shape().to_vec(),
    };
    let specs: Vec<_> = checkpoint.tensors().iter().map(spec).collect();
    write_checkpoint(&to, &specs, SHARD_BYTES, |spec| {
        let values = checkpoint.get(&spec.name).unwrap().to_f32();
        Ok::<_, WeightError>(HostTensor::from_f32(&values, spec.shape.clone()).unwrap())
    })
    .unwrap();
    to
}

fn engine(soup: &Soup, merge_mode: MergeMode) -> EngineHandle {
    let options = CpuOptions {
        threads: Some(2),
        kv_bytes: 8 << 20,
        kv_dtype: Some(Dtype::F32.into()),
        merged_bytes: 8 << 20,
        merge_mode,
        ..CpuOptions::default()
    };
    let config = EngineConfig { merge_mode, ..EngineConfig::default() };
    let tokenizer = Tokenizer::from_dir(&soup.base_dir).unwrap();
    start(CpuBackend::open(soup, &options).unwrap(), tokenizer, config).unwrap()
}

fn nth(soup: &Soup, n: usize) -> Coefficients {
    let weights: Vec<f64> = (0..3).map(|i| 1.0 + ((n + 1) * (i + 3) * 7 % 11) as f64).collect();
    let preference = Preference::new(&weights, 3).unwrap();
    soup.mixing.solve(&preference, &Alpha::Scalar((n % 3) as f64 * 0.25)).coefficients
}

/// A prompt, its log-probabilities with the two most likely tokens, and twelve greedy ones after it.
fn request(soup: &Soup, n: usize) -> GenerateRequest {
    let prompt = (0..30).map(|i| 20 + ((n * 37 + i * 11) % 400) as u32).collect();
    GenerateRequest {
        sampling: SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() },
        prompt_logprobs: Some(2),
        ignore_eos: true,
        ..GenerateRequest::new(prompt, nth(soup, n), 12)
    }
}

#[test]
fn a_soup_on_a_quantised_base_answers_as_on_the_same_base_dequantised() {
    // The largest difference of a log-probability that rounding inputs to 8 bits may make in this
    // model of random weights (0.39 was seen), and how far ahead a token leads clearly.
    const TOLERANCE: f32 = 0.5;
    const LEAD: f32 = 0.3;
    for kind in BlockType::ALL {
        let dir = directory();
        let quantised = import_as(&fixture("soup-tiny/base"), &dir, Quantise::To(kind)).unwrap();
        let plain = widened(&quantised, dir.path().join("plain"));
        let soup = soup_on(quantised, "soup-tiny", &dir).unwrap();
        let exact = soup_on(plain, "soup-tiny", &dir).unwrap();
        let (engine, exact) = (engine(&soup, MergeMode::Auto), engine(&exact, MergeMode::Fused));

        let alone: Vec<_> = (0..8).map(|n| run(&engine, request(&soup, n))).collect();
        let company: Vec<_> = (0..8).map(|n| engine.submit(request(&soup, n)).unwrap()).collect();
        let (mut decided, mut worst) = (0, 0f32);
        for (n, (generation, alone)) in company.into_iter().zip(&alone).enumerate() {
            let answer = collect(generation);
            assert_eq!(answer.ids(), alone.ids(), "{kind:?}: request {n} in company");
            assert_eq!(answer.text(), alone.text(), "{kind:?}: request {n} in company");
            let want = run(&exact, request(&soup, n));
            for ((got, alone), want) in answer.prompt.iter().zip(&alone.prompt).zip(&want.prompt) {
                assert_eq!(got.logprob, alone.logprob, "rows do not feel each other");
                worst = worst.max((got.logprob - want.logprob).abs());
                // Which token is the most likely is the same wherever it leads clearly.
                if want.top[0].1 - want.top[1].1 > LEAD {
                    assert_eq!(got.top[0].0, want.top[0].0, "{kind:?}: request {n}");
                    decided += 1;
                }
            }
        }
        assert!(worst < TOLERANCE, "{kind:?}: a log-probability is off by {worst}");
        assert!(decided > 80, "{kind:?}: {decided} of 232 tokens lead clearly");
        settled(&engine);
        let stats = engine.stats();
        assert!(stats.fused_forwards == 0 && stats.mixed_forwards > 0);
    }
}

#[test]
fn passes_over_a_quantised_base_are_costed_by_its_bytes() {
    let dir = directory();
    let quantise = Quantise::To(BlockType::Q4_0);
    let base = import_as(&fixture("soup-tiny/base"), &dir, quantise).unwrap();
    let soup = soup_on(base, "soup-tiny", &dir).unwrap();
    let bytes = |tensors: &mut dyn Iterator<Item = usize>| tensors.sum::<usize>() as f64;
    let stored = bytes(&mut soup.base.tensors().values().map(|t| t.bytes().len()));
    let factors =
        bytes(&mut soup.adapters().flat_map(|a| a.tensors()).map(|(_, t)| t.bytes().len()));
    let backend = CpuBackend::open(&soup, &CpuOptions::default()).unwrap();
    assert_eq!(backend.facts().footprint.mixed.bytes, stored + factors);
    let whole = Soup::open(&fixture("soup-tiny"), &options()).unwrap();
    let plain = bytes(&mut whole.base.tensors().values().map(|t| t.bytes().len()));
    // The table, a third of the values, takes 8.5 of 32 bits, the layers 4.5.
    assert!(stored < 0.25 * plain, "{stored} of {plain} bytes");
}

#[test]
fn what_needs_merged_weights_is_refused_with_the_reason() {
    let dir = directory();
    let quantise = Quantise::To(BlockType::Q8_0);
    let base = import_as(&fixture("soup-tiny/base"), &dir, quantise).unwrap();
    let soup = soup_on(base.clone(), "soup-tiny", &dir).unwrap();
    let fused = CpuOptions { merge_mode: MergeMode::Fused, ..CpuOptions::default() };
    let error = CpuBackend::open(&soup, &fused).err().unwrap();
    assert!(matches!(error, OpenError::Merge(_)));
    let said = error.to_string();
    assert!(said.contains("q8_0") && said.contains("--merge-mode mixed"), "{said}");

    let error = soup_on(base.clone(), "soup-tiny-full", &dir).err().unwrap().to_string();
    assert!(error.contains("full checkpoint") && error.contains("q8_0"), "{error}");

    let merge = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
        command.args(["merge", "--base"]).arg(&base).arg("--out").arg(dir.path().join("out"));
        command.args(extra).arg(&soup.dir).env("LADLE_HOME", "/nonexistent");
        command.output().unwrap()
    };
    let refused = merge(&["--dtype", "bf16"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("q8_0"), "{said}");
    // One adapter of several merges no weight of the base.
    let adapter = merge(&["--adapter"]);
    assert!(adapter.status.success(), "{}", String::from_utf8_lossy(&adapter.stderr));
}

#[test]
fn blocks_that_lie_are_refused() {
    let dir = directory();
    let quantise = Quantise::To(BlockType::Q8_0);
    let base = import_as(&fixture("soup-tiny/base"), &dir, quantise).unwrap();
    let weights = base.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let refused = |from: &str, to: &str, parts: &[&str]| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        let mut bytes = whole.clone();
        bytes.splice(at..at + from.len(), to.bytes());
        fs::write(&weights, bytes).unwrap();
        let said = Checkpoint::open(&base).err().expect(to).to_string();
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    };
    let note = format!("\"{name}\":\"q8_0\"");
    refused(&note, &note.replace("q8_0", "q9_9"), &[name, "q8_0, q4_0, q4_1", "q9_9"]);
    refused(&note, &note.replace("q8_0", "q4_0"), &[name, "18 bytes", "[128, 68]"]);
    refused(&note, &note.replace("up_", "xx_"), &[name, "__metadata__", "U8"]);
    refused("[128,68]", "[144,68]", &["9792", "data_offsets"]);
    refused("[128,68]", "[68,128]", &["a multiple of 16 rows", "[68, 128]"]);
    fs::write(&weights, &whole[..whole.len() - 10]).unwrap();
    let said = Checkpoint::open(&base).err().unwrap().to_string();
    assert!(said.contains("needs") && said.contains(&whole.len().to_string()), "{said}");
}

#[test]
fn imports_that_cannot_be_quantised_leave_nothing() {
    let dir = directory();
    let error = import_as(&fixture("soup-tiny/base"), &dir, Quantise::Keep).unwrap_err();
    assert!(error.to_string().contains("GGUF"), "{error}");

    // The scale of the file's last block becomes infinity.
    let mut bytes = fs::read(fixture("gguf/tiny-llama2.gguf")).unwrap();
    let last = bytes.len() - BlockType::Q4_0.block_bytes();
    bytes[last..last + 2].copy_from_slice(&[0x00, 0x7c]);
    let damaged = dir.path().join("damaged.gguf");
    fs::write(&damaged, bytes).unwrap();
    let error = import_as(&damaged, &dir, Quantise::Keep).unwrap_err().to_string();
    assert!(
        error.contains("damaged.gguf") && error.contains("down_proj") && error.contains("scale"),
        "{error}"
    );
    assert!(!dir.path().join("m/damaged-keep").exists());
}

#[test]
fn the_command_says_where_the_quantised_model_is() {
    let home = directory();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ladle"));
    command.args(["import", "--quantise", "q4_0"]).arg(fixture("gguf/tiny-llama.gguf"));
    let output = command.env("LADLE_HOME", home.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dir = home.path().join("models/tiny-llama-q4_0");
    assert!(String::from_utf8_lossy(&output.stdout).contains(dir.to_str().unwrap()));
    let dtypes: Vec<_> =
        Checkpoint::open(&dir).unwrap().tensors().values().map(|t| t.dtype()).collect();
    let count = |dtype| dtypes.iter().filter(|held| **held == dtype).count();
    assert_eq!(count(Dtype::Quantised(BlockType::Q4_0)), 7);
    assert_eq!(count(Dtype::Quantised(BlockType::Q8_0)), 1, "the table");
    assert_eq!(count(Dtype::Bf16), 3, "the norms");
}
