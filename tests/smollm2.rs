//! The default base model, read from its GGUF, against the gguf package's and transformers' reading
//! of the same file (`reference/smollm2.py`): weights, token ids, logits, greedy text.

#[path = "support/prerequisite.rs"]
mod prerequisite;

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ladle::{
    chat::{ChatTemplate, Conversation, Message},
    import::default_models_dir,
    kernels::{
        Batch, Dtype, HostTensor, KV_BLOCK, KvDtype, KvShape, Segment,
        cpu::{CpuKernels, KvPool},
    },
    model::{config::ModelConfig, decoder::Decoder, linear::Parameter},
    simd::Isa,
    soup::Checkpoint,
    tokenizer::{TextDecoder, Tokenizer},
};
use prerequisite::skip_without;
use serde_json::Value;
use sha2::{Digest, Sha256};

const ID: &str = "smollm2-135m-instruct-f32";

/// Where `scripts/test` imports the model in f32.
fn model_dir() -> PathBuf {
    let models =
        std::env::var_os("LADLE_TEST_MODELS").map(PathBuf::from).or_else(default_models_dir);
    models.expect("LADLE_TEST_MODELS, LADLE_HOME or HOME is set").join(ID)
}

/// Whether the model is missing; then the test that asks is skipped.
fn absent() -> bool {
    let absent = !model_dir().join("config.json").is_file();
    if absent {
        let command = "`ladle import smollm2-135m-instruct --dtype f32`";
        skip_without(&format!("{} ({command})", model_dir().display()));
    }
    absent
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2").join(name);
    let bytes = std::fs::read(&path).expect("the fixture");
    let mut text = Vec::new();
    if name.ends_with(".gz") {
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut text).expect("gzip");
    } else {
        text = bytes;
    }
    serde_json::from_slice(&text).expect("JSON")
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).expect("a list")
}

fn checkpoint() -> &'static Checkpoint {
    static CHECKPOINT: OnceLock<Checkpoint> = OnceLock::new();
    CHECKPOINT.get_or_init(|| Checkpoint::open(&model_dir()).expect("opens"))
}

fn decoder() -> Decoder<HostTensor> {
    decoder_of(|weight| weight)
}

fn decoder_of(cast: impl Fn(HostTensor) -> HostTensor) -> Decoder<HostTensor> {
    let config = ModelConfig::from_json(checkpoint().config()).expect("a configuration");
    Decoder::load(config, |name| {
        checkpoint().get(name).map(|w| Parameter::merged(cast(w))).ok_or(name.to_owned())
    })
    .expect("every tensor")
}

/// One sequence in its own cache.
struct Sequence<'a> {
    decoder: &'a Decoder<HostTensor>,
    kernels: &'a CpuKernels,
    cache: KvPool,
    blocks: Vec<u32>,
    cached: usize,
}

impl<'a> Sequence<'a> {
    fn new(decoder: &'a Decoder<HostTensor>, kernels: &'a CpuKernels, tokens: usize) -> Self {
        Self::storing(Dtype::F32.into(), decoder, kernels, tokens)
    }

    /// With keys and values in a storage type.
    fn storing(
        dtype: KvDtype,
        decoder: &'a Decoder<HostTensor>,
        kernels: &'a CpuKernels,
        tokens: usize,
    ) -> Self {
        let config = decoder.config();
        let blocks = tokens.div_ceil(KV_BLOCK);
        let shape = KvShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            blocks,
            dtype,
        };
        let cache = KvPool::new(shape).expect("memory");
        let blocks = (0..u32::try_from(blocks).expect("few")).collect();
        Self { decoder, kernels, cache, blocks, cached: 0 }
    }

    /// Logits after these further tokens.
    fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        let positions = self.cached..self.cached + tokens.len();
        let batch = Batch {
            tokens: tokens.to_vec(),
            positions: positions.clone().map(|p| u32::try_from(p).expect("small")).collect(),
            segments: vec![Segment {
                rows: 0..tokens.len(),
                cached: self.cached,
                blocks: self.blocks.clone(),
            }],
            outputs: vec![tokens.len() - 1],
            ..Batch::default()
        };
        self.cached = positions.end;
        let logits = self.decoder.forward(self.kernels, &batch, &mut self.cache).expect("runs");
        logits.data().to_vec()
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("logits");
    u32::try_from(best.0).expect("a token")
}

#[test]
fn smollm2_weights_are_those_the_gguf_package_dequantises() {
    if absent() {
        return;
    }
    let expected: BTreeMap<String, String> =
        serde_json::from_value(fixture("weights.json")["sha256"].clone()).expect("digests");
    assert_eq!(expected.len(), 272);
    let got: BTreeMap<String, String> = checkpoint()
        .tensors()
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
            let digest = Sha256::digest(tensor.bytes());
            (name.clone(), digest.iter().map(|byte| format!("{byte:02x}")).collect())
        })
        .collect();
    assert_eq!(got, expected);
}

#[test]
fn smollm2_reads_and_writes_a_thousand_strings_as_the_published_tokenizer() {
    if absent() {
        return;
    }
    let fixture = fixture("tokens.json.gz");
    let strings: Vec<String> = list(&fixture["strings"]);
    let ids: Vec<Vec<u32>> = list(&fixture["ids"]);
    let decoded: Vec<String> = list(&fixture["decoded"]);
    assert_eq!((strings.len(), ids.len(), decoded.len()), (1000, 1000, 1000));
    let tokenizer = Tokenizer::from_dir(&model_dir()).expect("a tokenizer");
    for ((string, ids), decoded) in strings.iter().zip(&ids).zip(&decoded) {
        assert_eq!(tokenizer.encode(string, true).expect("encodes"), *ids, "{string:?}");
        let mut stream = TextDecoder::new(&tokenizer, true);
        let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
        text.push_str(&stream.finish());
        assert_eq!(text, *decoded);
    }
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(tokenizer.eos(), [2]);
}

#[test]
fn smollm2_chat_prompts_have_the_ids_of_transformers() {
    if absent() {
        return;
    }
    let dir = model_dir();
    let tokenizer = Tokenizer::from_dir(&dir).expect("a tokenizer");
    let template = ChatTemplate::from_dir(&dir).expect("readable").expect("a template");
    for case in fixture("greedy.json")["cases"].as_array().expect("cases") {
        let content = case["prompt"].as_str().expect("a prompt").to_owned();
        let prompt = template.render(&Conversation {
            messages: vec![Message::new("user", content)],
            add_generation_prompt: true,
            ..Conversation::default()
        });
        let ids = tokenizer.encode(&prompt.expect("renders"), false).expect("encodes");
        assert_eq!(ids, list::<u32>(&case["ids"]));
    }
}

#[test]
fn smollm2_logits_are_within_a_thousandth_of_transformers() {
    if absent() {
        return;
    }
    let fixture = fixture("logits.json.gz");
    let stride = usize::try_from(fixture["stride"].as_u64().expect("a number")).expect("small");
    let (decoder, kernels) = (decoder(), CpuKernels::default());
    for case in fixture["cases"].as_array().expect("cases") {
        let ids: Vec<u32> = list(&case["ids"]);
        let expected: Vec<f32> = list(&case["logits"]);
        let logits = Sequence::new(&decoder, &kernels, ids.len()).feed(&ids);
        let sampled: Vec<f32> = logits.iter().step_by(stride).copied().collect();
        assert_eq!(sampled.len(), expected.len());
        let differences = sampled.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        // A NaN is larger than any difference.
        let worst = differences.fold(0.0f32, |max, d| if d <= max { max } else { d });
        assert!(worst < 1e-3, "{} tokens: off by {worst}", ids.len());
        assert_eq!(u64::from(argmax(&logits)), case["argmax"].as_u64().expect("a token"));
    }
}

/// Weights in bf16, multiplied with activations as they are and rounded to bf16.
#[test]
fn smollm2_logits_in_bf16_hardly_move_when_activations_are_rounded() {
    if absent() || !Isa::chosen().multiplies_bf16() {
        return;
    }
    let narrow = |weight: HostTensor| {
        let shape = weight.shape().to_vec();
        HostTensor::rounded(&weight.to_f32(), Dtype::Bf16, shape).expect("bf16")
    };
    let decoder = decoder_of(narrow);
    let (exact, rounded) = (CpuKernels::default(), CpuKernels::with_isa(2, Isa::chosen()));
    for case in fixture("logits.json.gz")["cases"].as_array().expect("cases") {
        let ids: Vec<u32> = list(&case["ids"]);
        let of = |kernels| Sequence::new(&decoder, kernels, ids.len()).feed(&ids);
        let (exact, rounded) = (of(&exact), of(&rounded));
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        let error = square(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b));
        let share = (error / square(&mut exact.iter().copied())).sqrt();
        assert!(share < 0.05, "{} tokens: {share} of the logits", ids.len());
    }
}

/// The error of stored keys and values, as a share of the logits (docs/operations.md).
#[test]
fn smollm2_logits_hardly_move_with_keys_and_values_in_int8() {
    if absent() {
        return;
    }
    let (decoder, kernels) = (decoder(), CpuKernels::default());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    let (mut worst, mut cases) = ([0f32; 2], 0);
    for case in fixture("logits.json.gz")["cases"].as_array().expect("cases") {
        let ids: Vec<u32> = list(&case["ids"]);
        let exact = Sequence::new(&decoder, &kernels, ids.len()).feed(&ids);
        for (worst, dtype) in worst.iter_mut().zip([Dtype::Bf16.into(), KvDtype::Int8]) {
            let got = Sequence::storing(dtype, &decoder, &kernels, ids.len()).feed(&ids);
            let error = square(&mut exact.iter().zip(&got).map(|(a, b)| a - b));
            let share = (error / square(&mut exact.iter().copied())).sqrt();
            println!("{} tokens, {dtype}: {share} of the logits", ids.len());
            *worst = if share <= *worst { *worst } else { share };
        }
        cases += 1;
    }
    let [bf16, int8] = worst;
    assert!(cases > 3 && bf16 < 0.01 && int8 < 0.06, "{cases}: bf16 {bf16}, int8 {int8}");
}

#[test]
fn smollm2_says_in_f32_what_transformers_says_greedily() {
    if absent() {
        return;
    }
    let (decoder, kernels) = (decoder(), CpuKernels::default());
    for case in fixture("greedy.json")["cases"].as_array().expect("cases") {
        let prompt: Vec<u32> = list(&case["ids"]);
        let expected: Vec<u32> = list(&case["greedy"]);
        let mut sequence = Sequence::new(&decoder, &kernels, prompt.len() + 64);
        let mut said = vec![argmax(&sequence.feed(&prompt))];
        while said.len() < 64 && said.last() != Some(&2) {
            let last = said.last().copied().into_iter().collect::<Vec<_>>();
            said.push(argmax(&sequence.feed(&last)));
        }
        assert_eq!(said, expected, "{}", case["prompt"]);
    }
}
