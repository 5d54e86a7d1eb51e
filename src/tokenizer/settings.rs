//! `tokenizer_config.json` and older files beside it: what they say about tokens of `tokenizer.json`.
//!
//! `transformers` applies them when it loads a tokenizer, so that a text has other tokens than
//! `tokenizer.json` alone would give it.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::files::{TokenizerError, optional_json};

/// Names of special tokens in `tokenizer_config.json`.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of further special tokens, under the names of transformers 5 and 4.
const LISTS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// `tokenizer_config.json` of a model directory, null where it has none. An older directory without
/// `added_tokens_decoder` names its special tokens in `special_tokens_map.json`, which counts then.
pub fn read(dir: &Path) -> Result<Value, TokenizerError> {
    let object = |name: &str| {
        let path = dir.join(name);
        match optional_json(&path)? {
            value @ (Value::Null | Value::Object(_)) => Ok(value),
            _ => Err(TokenizerError::Format { path, reason: "is not a JSON object".to_owned() }),
        }
    };
    let mut settings = object("tokenizer_config.json")?;
    if settings.get("added_tokens_decoder").is_some() {
        return Ok(settings);
    }
    let older = object("special_tokens_map.json")?;
    if settings.is_null() && !older.is_null() {
        settings = Value::Object(Map::new());
    }
    if let (Value::Object(settings), Value::Object(older)) = (&mut settings, older) {
        settings.extend(older);
    }
    Ok(settings)
}

/// Adds the tokens that `settings`, the `tokenizer_config.json` of `dir`, adds, gives tokens the
/// properties that it gives them, and splits special tokens of texts where it says so.
pub fn apply(
    tokenizer: &mut tokenizers::Tokenizer,
    dir: &Path,
    settings: &Value,
) -> Result<(), TokenizerError> {
    let path = dir.join("tokenizer_config.json");
    let refuse = |reason: String| TokenizerError::Format { path: path.clone(), reason };
    check_prefix_space(tokenizer, settings).map_err(refuse)?;

    let own = tokenizer.get_added_tokens_decoder().into_values();
    let mut known: BTreeMap<String, AddedToken> =
        own.map(|token| (token.content.clone(), token)).collect();
    let (listed, source) = match settings["added_tokens_decoder"].as_object() {
        Some(listed) => (decoder(listed).map_err(refuse)?, path.clone()),
        None => {
            let source = dir.join("added_tokens.json");
            (older(&optional_json(&source)?, &known), source)
        }
    };
    for (id, token) in &listed {
        tokenizer.add_tokens([token.clone()]).map_err(|error| refuse(error.to_string()))?;
        let got = tokenizer.token_to_id(&token.content);
        if got != Some(*id) {
            let (content, got) =
                (&token.content, got.map_or("none".to_owned(), |id| id.to_string()));
            let reason =
                format!("token {content:?} has id {id}, but in tokenizer.json it has {got}");
            return Err(TokenizerError::Format { path: source, reason });
        }
        known.insert(token.content.clone(), token.clone());
    }

    // A token that is not in the vocabulary stays text; it is usually a padding token.
    let named = NAMED.iter().filter_map(|name| special(&settings[*name], &known));
    let named = named.filter(|token| tokenizer.token_to_id(&token.content).is_some());
    let lists = LISTS.iter().flat_map(|name| match &settings[*name] {
        Value::Array(tokens) => tokens.iter().collect(),
        Value::Object(tokens) => tokens.values().collect(),
        _ => Vec::new(),
    });
    let tokens: Vec<AddedToken> =
        named.chain(lists.filter_map(|token| special(token, &known))).collect();
    tokenizer.add_special_tokens(tokens).map_err(|error| refuse(error.to_string()))?;

    match &settings["split_special_tokens"] {
        Value::Null => {}
        Value::Bool(split) => tokenizer.set_encode_special_tokens(*split),
        other => {
            return Err(refuse(format!("split_special_tokens is {other}, must be true or false")));
        }
    }
    Ok(())
}

/// `added_tokens_decoder`: tokens by id, in the order of their ids.
fn decoder(listed: &Map<String, Value>) -> Result<Vec<(u32, AddedToken)>, String> {
    let one = |(id, value): (&String, &Value)| {
        let token = token(value).zip(id.parse().ok());
        let (token, id) = token.ok_or_else(|| {
            format!(
                "added_tokens_decoder.{id} is {value}, must be a token's content and properties"
            )
        })?;
        Ok((id, token))
    };
    let mut tokens = listed.iter().map(one).collect::<Result<Vec<_>, String>>()?;
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

/// `added_tokens.json`: the ids of tokens, of those that `tokenizer.json` does not add itself.
fn older(listed: &Value, known: &BTreeMap<String, AddedToken>) -> Vec<(u32, AddedToken)> {
    let listed = listed.as_object().into_iter().flatten();
    let mut tokens: Vec<(u32, AddedToken)> = listed
        .filter(|(content, _)| !known.contains_key(*content))
        .filter_map(|(content, id)| {
            Some((u32::try_from(id.as_u64()?).ok()?, AddedToken::from(content.clone(), false)))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens
}

/// A token as an object describes it.
fn token(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str| value[name].as_bool();
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: value["content"].as_str()?.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}

/// A special token, by its text or as an object; one that is `known` keeps its properties.
fn special(value: &Value, known: &BTreeMap<String, AddedToken>) -> Option<AddedToken> {
    let plain = |content: &str| match known.get(content) {
        Some(token) => token.clone(),
        None => AddedToken::from(content, true),
    };
    let token = match value {
        Value::String(content) => plain(content),
        value => match known.get(value["content"].as_str()?) {
            Some(token) => token.clone(),
            None => token(value)?,
        },
    };
    Some(AddedToken { special: true, ..token })
}

/// Classes that build their own pre-tokenizer, with `add_prefix_space` as `tokenizer_config.json`
/// says (false where it says nothing), must agree with that of `tokenizer.json`.
fn check_prefix_space(tokenizer: &tokenizers::Tokenizer, settings: &Value) -> Result<(), String> {
    const CLASSES: [&str; 2] = ["GPT2Tokenizer", "Qwen2Tokenizer"];
    let class = settings["tokenizer_class"].as_str().unwrap_or_default();
    let class = class.strip_suffix("Fast").unwrap_or(class);
    if !CLASSES.contains(&class) {
        return Ok(());
    }
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).unwrap_or_default();
    let steps = match &pre_tokenizer["pretokenizers"] {
        Value::Array(steps) => steps.as_slice(),
        _ => std::slice::from_ref(&pre_tokenizer),
    };
    let step = steps.iter().find(|step| step["type"] == "ByteLevel");
    let Some(own) = step.and_then(|step| step["add_prefix_space"].as_bool()) else {
        return Ok(());
    };
    let said = settings["add_prefix_space"].as_bool().unwrap_or(false);
    if said == own {
        return Ok(());
    }
    Err(format!(
        "add_prefix_space is {said} for {class}, but the pre_tokenizer of tokenizer.json has {own}"
    ))
}
