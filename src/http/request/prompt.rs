//! The forms of a prompt: text, token ids, or several of either.

use serde_json::Value;

use super::json::{Fields, whole};
use crate::{
    chat::ChatTemplate,
    http::{
        app::Served,
        error::{ApiError, show},
    },
    tokenizer::{Tokenizer, TokenizerError},
};

/// The forms of a prompt of `/v1/completions`.
pub const FORMS: &str = "a string, a list of token ids, or a list of either";

/// A tokenised prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Its tokens; at least one.
    pub ids: Vec<u32>,
    /// The field it came from.
    pub param: &'static str,
    /// Position of the generation prompt, for messages where the backbones become active there.
    pub opening: Option<usize>,
    text: Option<String>,
}

impl Prompt {
    /// The text as given, or that of the ids.
    pub fn text(&self, tokenizer: &Tokenizer) -> String {
        self.text.clone().unwrap_or_else(|| tokenizer.decode(&self.ids, false))
    }

    /// The position from which the backbones of the soup act; `None` where they act on every token.
    pub fn active_from(&self, served: &Served) -> Result<Option<usize>, ApiError> {
        served.active_from.position(&self.ids, self.opening).map_err(|error| ApiError::Value {
            param: self.param.into(),
            message: format!("{} {error}", self.param),
        })
    }

    /// Where each token starts in the text, in characters.
    pub fn offsets(&self, tokenizer: &Tokenizer) -> Result<Vec<usize>, ApiError> {
        match &self.text {
            Some(text) => {
                tokenizer.offsets(text, &self.ids).map_err(|error| not_encoded(self.param, error))
            }
            None => Ok(tokenizer.decoded_offsets(&self.ids)),
        }
    }
}

/// The text or conversation to continue.
pub enum Source {
    Prompt(Value),
    Messages(Value),
}

impl Source {
    /// The chat template that renders it.
    pub fn template<'a>(&self, served: &'a Served) -> Option<&'a ChatTemplate> {
        match self {
            Self::Prompt(_) => None,
            Self::Messages(_) => served.chat.as_ref(),
        }
    }
}

/// The one of `prompt` and `messages` that is given.
pub fn source(fields: &mut Fields) -> Result<Source, ApiError> {
    let got = match (fields.take("prompt"), fields.take("messages")) {
        (Some(prompt), None) => return Ok(Source::Prompt(prompt)),
        (None, Some(messages)) => return Ok(Source::Messages(messages)),
        (Some(_), Some(_)) => "given beside messages",
        (None, None) => "absent",
    };
    Err(ApiError::value("prompt", got, "either prompt or messages"))
}

/// One prompt: a string, to which `special` adds what the tokenizer puts around a text, or a list
/// of token ids.
pub fn single(
    served: &Served,
    param: &'static str,
    value: Value,
    special: bool,
) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::value(param, "\"\"", "at least one character"))
        }
        Value::String(text) => encode(served, param, text, special),
        Value::Array(items) => ids(served, param, &items),
        other => Err(ApiError::value(param, show(&other), "a string or a list of token ids")),
    }
}

/// At most `limit` prompts, each as in [`single`].
pub fn several(
    served: &Served,
    param: &'static str,
    value: Value,
    limit: usize,
    special: bool,
) -> Result<Vec<Prompt>, ApiError> {
    let items = match value {
        Value::Array(items) if items.iter().all(|item| item.is_string() || item.is_array()) => {
            items
        }
        other => return single(served, param, other, special).map(|prompt| vec![prompt]),
    };
    if items.is_empty() || items.len() > limit {
        let expected = format!("1 to {limit} prompts");
        return Err(ApiError::value(param, format!("a list of {} prompts", items.len()), expected));
    }
    items.into_iter().map(|item| single(served, param, item, special)).collect()
}

/// The tokens of a text; `special` adds what the tokenizer puts around a text.
pub fn encode(
    served: &Served,
    param: &'static str,
    text: String,
    special: bool,
) -> Result<Prompt, ApiError> {
    let encoded = served.tokenizer.encode_prompt(&text, special);
    let ids = encoded.map_err(|error| not_encoded(param, error))?;
    if ids.is_empty() {
        let got = show(&Value::String(text));
        return Err(ApiError::value(param, got, "text of at least one token"));
    }
    Ok(Prompt { ids, param, opening: None, text: Some(text) })
}

/// The error for a text that the tokenizer cannot encode.
pub fn not_encoded(param: &'static str, error: TokenizerError) -> ApiError {
    ApiError::Value { param: param.into(), message: format!("{param}: {error}") }
}

/// A prompt of token ids.
pub fn ids(served: &Served, param: &'static str, items: &[Value]) -> Result<Prompt, ApiError> {
    let vocabulary = served.engine.bounds().vocabulary;
    if items.is_empty() {
        return Err(ApiError::value(param, "an empty list", "at least one token id"));
    }
    let id = |(index, item): (usize, &Value)| {
        let id = whole(item).and_then(|id| u32::try_from(id).ok());
        id.filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
            let expected = format!("a token id below {vocabulary}");
            ApiError::value(format!("{param}[{index}]"), show(item), expected)
        })
    };
    let ids = items.iter().enumerate().map(id).collect::<Result<_, _>>()?;
    Ok(Prompt { ids, param, opening: None, text: None })
}
