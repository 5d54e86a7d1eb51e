//! The tokenizer of a GGUF file, rebuilt as the `tokenizer.json` that its model was published with.
//!
//! A GGUF names its pre-tokenizer only by a word (`tokenizer.ggml.pre`); what the word means is in
//! the table below. Where readers differ, the published `tokenizer.json` counts: SmolLM splits off
//! every digit before the GPT-2 pattern (llama.cpp does too, transformers' GGUF reading does not, so
//! it cuts spaces before digits differently), and Qwen2 normalises to NFC (llama.cpp does not).

use serde_json::{Map, Value, json};

use super::{
    error::GgufError,
    header::Meta,
    metadata::Metadata,
    sentencepiece,
    vocabulary::{Token, Vocabulary},
};

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

const FAMILIES: [Family; 6] = [
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
        names: &["dbrx"],
        pattern: Some(LLAMA3),
        single_digits: false,
        nfc: false,
        ignore_merges: false,
        adds_bos: false,
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

/// Settings that are read, beside the ids of tokens.
const SETTINGS: [&str; 9] = [
    "model",
    "pre",
    "tokens",
    "token_type",
    "scores",
    "merges",
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
];

/// The token types of GGUF, 1 to 6, of which these stand whole in a text.
const TYPES: std::ops::RangeInclusive<u64> = 1..=6;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

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

/// The tokenizer of a checkpoint.
#[derive(Debug)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `tokenizer_config.json`, with the chat template.
    pub config: Value,
    /// `bos_token_id`, `eos_token_id`, `pad_token_id`: those that the file names, for `config.json`
    /// and `generation_config.json`.
    pub special_ids: Map<String, Value>,
}

/// Rebuilds the tokenizer of a file.
pub fn tokenizer_files(metadata: &Metadata) -> Result<TokenizerFiles, GgufError> {
    check_settings(metadata)?;
    let vocabulary = Vocabulary::read(metadata)?;
    let kind = |value: &Meta| match value {
        Meta::Signed(kind) => u64::try_from(*kind).ok().filter(|kind| TYPES.contains(kind)),
        Meta::Unsigned(kind) => Some(*kind).filter(|kind| TYPES.contains(kind)),
        _ => None,
    };
    let types =
        vocabulary.aligned("tokenizer.ggml.token_type", "a list of token types, 1 to 6", kind)?;
    let special = |name: &str| vocabulary.special(name);
    let (bos, eos) = (special("bos")?, special("eos")?);
    let (unknown, padding) = (special("unknown")?, special("padding")?);
    let pipeline = match vocabulary.sentencepiece {
        true => sentencepiece_pipeline(&vocabulary, unknown.map(|(_, token)| token))?,
        false => byte_level_pipeline(&vocabulary)?,
    };
    let add_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(pipeline.adds_bos);
    let add_eos = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    for (added, token, name) in [(add_bos, bos, "bos"), (add_eos, eos, "eos")] {
        if added && token.is_none() {
            let key = format!("tokenizer.ggml.{name}_token_id");
            return Err(metadata.missing(&key, "the token that texts are put between"));
        }
    }

    let whole: Vec<Value> = vocabulary
        .tokens
        .iter()
        .zip(&types)
        .enumerate()
        .filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *kind != USER_DEFINED,
            })
        })
        .collect();
    let ids = vocabulary.tokens.iter().enumerate();
    let ids: Map<String, Value> = ids.map(|(id, token)| (token.to_string(), json!(id))).collect();
    let mut model = pipeline.model;
    model["vocab"] = Value::Object(ids);
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
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        config["chat_template"] = json!(template);
    }
    let special_ids = special_ids(&vocabulary, [bos, eos, padding])?;
    Ok(TokenizerFiles { tokenizer, config, special_ids })
}

/// The ids of special tokens as a checkpoint's configuration names them. A model that ends its turns
/// or messages with other tokens than its texts stops at all of them.
fn special_ids(
    vocabulary: &Vocabulary<'_>,
    [bos, eos, padding]: [Option<Token<'_>>; 3],
) -> Result<Map<String, Value>, GgufError> {
    let mut ends: Vec<u64> = eos.iter().map(|(id, _)| *id).collect();
    for name in ["eot", "eom"] {
        let id = vocabulary.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        ends.extend(id.filter(|id| !ends.contains(id)));
    }
    let ends = match ends.as_slice() {
        [] => None,
        [only] => Some(json!(only)),
        several => Some(json!(several)),
    };
    let named = [
        ("bos_token_id", bos.map(|(id, _)| json!(id))),
        ("eos_token_id", ends),
        ("pad_token_id", padding.map(|(id, _)| json!(id))),
    ];
    Ok(named.into_iter().filter_map(|(key, id)| Some((key.to_owned(), id?))).collect())
}

/// Refuses settings of the tokenizer that change what texts become and are not known.
fn check_settings(metadata: &Metadata) -> Result<(), GgufError> {
    for (key, value) in metadata.iter() {
        let Some(setting) = key.strip_prefix("tokenizer.ggml.") else { continue };
        let neutral = match (setting, value) {
            ("add_sep_token" | "remove_extra_whitespaces", Meta::Bool(flag)) => !flag,
            ("precompiled_charsmap", Meta::Array(values)) => values.is_empty(),
            _ => SETTINGS.contains(&setting) || setting.ends_with("_token_id"),
        };
        if !neutral {
            let known = "only settings that are known";
            return Err(metadata.unsupported(key, value, known));
        }
    }
    Ok(())
}

/// Byte-level BPE (GPT-2, Llama 3, Qwen2, SmolLM), by the name of its pre-tokenizer.
fn byte_level_pipeline(vocabulary: &Vocabulary<'_>) -> Result<Pipeline, GgufError> {
    let key = "tokenizer.ggml.pre";
    let pre = vocabulary.metadata.text(key)?.unwrap_or_default();
    let Some(family) = FAMILIES.iter().find(|family| family.names.contains(&pre)) else {
        let known = FAMILIES.map(|family| family.names.join(", ")).join(", ");
        return Err(vocabulary.metadata.unsupported(key, pre, &known));
    };
    Ok(Pipeline {
        normalizer: json!(family.nfc.then(|| json!({"type": "NFC"}))),
        pre_tokenizer: pre_tokenizer(family),
        decoder: byte_level(true),
        model: bpe(vocabulary.merges()?, None, family.ignore_merges),
        adds_bos: family.adds_bos,
    })
}

/// SentencePiece BPE (Llama 2, Mistral 7B), its merges in the file or in the scores.
fn sentencepiece_pipeline(
    vocabulary: &Vocabulary<'_>,
    unknown: Option<&str>,
) -> Result<Pipeline, GgufError> {
    let metadata = vocabulary.metadata;
    let adds_space = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let merges = if metadata.get("tokenizer.ggml.merges").is_some() {
        vocabulary.merges()?
    } else {
        let score = |value: &Meta| match value {
            Meta::F32(score) if !score.is_nan() => Some(*score),
            _ => None,
        };
        let scores = vocabulary.aligned("tokenizer.ggml.scores", "a list of f32", score)?;
        sentencepiece::merges(&vocabulary.tokens, &vocabulary.ids, &scores)
    };
    Ok(Pipeline {
        normalizer: sentencepiece::normalizer(adds_space),
        pre_tokenizer: Value::Null,
        decoder: sentencepiece::decoder(adds_space),
        model: bpe(merges, unknown, false),
        adds_bos: true,
    })
}

/// The BPE model without its vocabulary. One that has a token for the unknown falls back to bytes
/// before it uses it.
fn bpe(merges: Vec<Value>, unknown: Option<&str>, ignore_merges: bool) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown,
        "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": unknown.is_some(), "byte_fallback": unknown.is_some(),
        "ignore_merges": ignore_merges, "merges": merges,
    })
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
fn post_processor(bos: Option<Token<'_>>, eos: Option<Token<'_>>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |token: Option<Token<'_>>, kind: u8| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let around = |sequence: &str, kind: u8| {
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        [token(bos, kind), Some(text), token(eos, kind)].into_iter().flatten()
    };
    let special: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0).collect::<Vec<_>>(),
        "pair": around("A", 0).chain(around("B", 1)).collect::<Vec<_>>(),
        "special_tokens": special,
    })
}
