//! The tokenizer of a GGUF file, rebuilt as the `tokenizer.json` that its model was published with.
//!
//! A GGUF names its pre-tokenizer only by a word (`tokenizer.ggml.pre`); what the word means is in
//! the table below. Where readers differ, the published `tokenizer.json` counts: SmolLM splits off
//! every digit before the GPT-2 pattern (llama.cpp does too, transformers' GGUF reading does not, so
//! it cuts spaces before digits differently), and Qwen2 normalises to NFC (llama.cpp does not).

use candle_core::quantized::gguf_file::Value as Meta;
use serde_json::{Map, Value, json};

use super::{Gguf, GgufError, sentencepiece};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a pre-tokenizer's name stands for.
#[derive(Debug, Clone, Copy)]
struct Family {
    names: &'static [&'static str],
    /// The pattern that cuts text into words; `None` is GPT-2's own.
    pattern: Option<&'static str>,
    /// Every digit stands alone, before the pattern is applied.
    single_digits: bool,
    /// Text is normalised to NFC first.
    nfc: bool,
    /// A word that is a token is that token, whatever its merges say.
    ignore_merges: bool,
    /// Texts start with the begin-of-sequence token unless the file says otherwise.
    adds_bos: bool,
}

const FAMILIES: [Family; 5] = [
    Family {
        names: &["smollm", "starcoder", "refact", "command-r"],
        pattern: None,
        single_digits: true,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Family {
        names: &["gpt-2"],
        pattern: None,
        single_digits: false,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
    },
    Family {
        names: &["llama-bpe", "llama3", "llama-v3", "smaug-bpe"],
        pattern: Some(LLAMA3),
        single_digits: false,
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
    Family {
        names: &["qwen2", "deepseek-r1-qwen"],
        pattern: Some(QWEN2),
        single_digits: false,
        nfc: true,
        ignore_merges: false,
        adds_bos: false,
    },
    Family {
        names: &["tekken"],
        pattern: Some(TEKKEN),
        single_digits: false,
        nfc: false,
        ignore_merges: true,
        adds_bos: true,
    },
];

/// The token types of GGUF that stand whole in a text.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Everything of a `tokenizer.json` but its added tokens and post-processor.
struct Pipeline {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// The BPE model, without its vocabulary.
    model: Value,
    /// Texts start with the begin-of-sequence token unless the file says otherwise.
    adds_bos: bool,
}

/// The two tokenizer files of a checkpoint.
#[derive(Debug)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`, with the chat template.
    pub config: Value,
}

/// Rebuilds the tokenizer of a file.
pub fn tokenizer_files(gguf: &Gguf) -> Result<TokenizerFiles, GgufError> {
    let tokens = gguf.array("tokenizer.ggml.tokens", "a list of strings", text)?;
    let types = gguf.array("tokenizer.ggml.token_type", "a list of i32", |value| match value {
        Meta::I32(kind) => Some(*kind),
        _ => None,
    })?;
    let named = |key: &str| -> Result<Option<(u64, &String)>, GgufError> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let Some(id) = gguf.optional(&key)? else { return Ok(None) };
        match usize::try_from(id).ok().and_then(|id| tokens.get(id)) {
            Some(token) => Ok(Some((id, token))),
            None => Err(gguf.unsupported(key, id, format!("ids below {}", tokens.len()))),
        }
    };
    let (bos, eos) = (named("bos")?, named("eos")?);
    let (unknown, padding) = (named("unknown")?, named("padding")?);
    let pipeline = match gguf.string("tokenizer.ggml.model")?.as_deref() {
        Some("gpt2") => byte_level_pipeline(gguf)?,
        Some("llama") => sentencepiece_pipeline(gguf, &tokens, unknown.map(|(_, token)| token))?,
        other => {
            let (key, known) = ("tokenizer.ggml.model".to_owned(), "gpt2, llama".to_owned());
            return Err(gguf.unsupported(key, other.unwrap_or_default(), known));
        }
    };
    let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(pipeline.adds_bos);
    let add_eos = gguf.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);

    let whole: Vec<Value> = tokens
        .iter()
        .zip(&types)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *kind != USER_DEFINED,
            })
        })
        .collect();
    let vocabulary: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut model = pipeline.model;
    model["vocab"] = Value::Object(vocabulary);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": whole,
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": post_processor(bos.filter(|_| add_bos), eos.filter(|_| add_eos)),
        "decoder": pipeline.decoder,
        "model": model,
    });

    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
    });
    let special = [("bos", bos), ("eos", eos), ("unk", unknown), ("pad", padding)];
    for (name, token) in special {
        if let Some((_, token)) = token {
            config[format!("{name}_token")] = json!(token);
        }
    }
    if let Some(template) = gguf.string("tokenizer.chat_template")? {
        config["chat_template"] = json!(template);
    }
    Ok(TokenizerFiles { tokenizer, config })
}

/// Byte-level BPE (GPT-2, Llama 3, Qwen2, SmolLM), by the name of its pre-tokenizer.
fn byte_level_pipeline(gguf: &Gguf) -> Result<Pipeline, GgufError> {
    let pre = gguf.string("tokenizer.ggml.pre")?.unwrap_or_default();
    let Some(family) = FAMILIES.iter().find(|family| family.names.contains(&pre.as_str())) else {
        let known = FAMILIES.map(|family| family.names.join(", ")).join(", ");
        return Err(gguf.unsupported("tokenizer.ggml.pre".to_owned(), pre, known));
    };
    Ok(Pipeline {
        normalizer: json!(family.nfc.then(|| json!({"type": "NFC"}))),
        pre_tokenizer: pre_tokenizer(family),
        decoder: byte_level(true),
        model: bpe(merges(gguf)?, None, family.ignore_merges),
        adds_bos: family.adds_bos,
    })
}

/// SentencePiece BPE (Llama 2, Mistral 7B), its merges in the file or in the scores.
fn sentencepiece_pipeline(
    gguf: &Gguf,
    tokens: &[String],
    unknown: Option<&String>,
) -> Result<Pipeline, GgufError> {
    let adds_space = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let merges = if gguf.has("tokenizer.ggml.merges") {
        merges(gguf)?
    } else {
        let scores = gguf.array("tokenizer.ggml.scores", "a list of f32", |value| match value {
            Meta::F32(score) => Some(*score),
            _ => None,
        })?;
        sentencepiece::merges(tokens, &scores)
    };
    Ok(Pipeline {
        normalizer: sentencepiece::normalizer(adds_space),
        pre_tokenizer: Value::Null,
        decoder: sentencepiece::decoder(adds_space),
        model: bpe(merges, unknown, false),
        adds_bos: true,
    })
}

fn merges(gguf: &Gguf) -> Result<Vec<Value>, GgufError> {
    gguf.array("tokenizer.ggml.merges", "a list of pairs of tokens", |value| {
        let (left, right) = match value {
            Meta::String(pair) => pair.split_once(' ')?,
            _ => return None,
        };
        Some(json!([left, right]))
    })
}

/// The BPE model without its vocabulary. One that has a token for the unknown falls back to bytes
/// before it uses it.
fn bpe(merges: Vec<Value>, unknown: Option<&String>, ignore_merges: bool) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown,
        "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": unknown.is_some(), "byte_fallback": unknown.is_some(),
        "ignore_merges": ignore_merges, "merges": merges,
    })
}

fn text(value: &Meta) -> Option<String> {
    match value {
        Meta::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn pre_tokenizer(family: &Family) -> Value {
    match family.pattern {
        Some(pattern) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]}),
        None if family.single_digits => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            byte_level(true),
        ]}),
        None => byte_level(true),
    }
}

/// Puts the begin- and end-of-sequence tokens around a text.
fn post_processor(bos: Option<(u64, &String)>, eos: Option<(u64, &String)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |token: Option<(u64, &String)>, kind: u8| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let around = |sequence: &str, kind: u8| {
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        [token(bos, kind), Some(text), token(eos, kind)].into_iter().flatten()
    };
    let special: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0).collect::<Vec<_>>(),
        "pair": around("A", 0).chain(around("B", 1)).collect::<Vec<_>>(),
        "special_tokens": special,
    })
}
