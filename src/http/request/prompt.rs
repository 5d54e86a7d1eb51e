//! The forms of a prompt: text, token ids, or several of either.

use std::time::Duration;

use serde_json::Value;

use super::{
    Context, Deadline,
    json::{Fields, whole},
};
use crate::{
    chat::{ChatTemplate, Conversation, NoMark},
    http::{
        error::{ApiError, show},
        served::Served,
    },
    preference::Solution,
    soup::ActiveFrom,
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

    /// The position from which the model of `solution` acts; `None` where backbones act on every token.
    pub fn active_from(
        &self,
        served: &Served,
        solution: &Solution,
    ) -> Result<Option<usize>, ApiError> {
        let is_sft = solution.coefficients.backbones.iter().all(|c| *c == 0.0);
        if is_sft && served.active_from != ActiveFrom::Start {
            return Ok(Some(0)); // Where no backbone acts, nothing has to activate one.
        }
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
    /// Whether it is a prompt, which may spell special tokens out; what a chat template makes of
    /// messages has them already.
    pub fn is_prompt(&self) -> bool {
        matches!(self, Self::Prompt(_))
    }

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

/// How the texts of a request become tokens.
#[derive(Debug, Clone, Copy)]
pub struct Encoding {
    /// Whether to add what the tokenizer puts around a text.
    pub special: bool,
    /// Whether special tokens that a text spells out become those tokens.
    pub parse_special: bool,
}

impl Encoding {
    /// A chat template writes the special tokens itself, and what messages bring is text.
    const MESSAGES: Self = Self { special: false, parse_special: false };
    /// A prompt may spell special tokens out.
    const PROMPT: Self = Self { special: true, parse_special: true };

    /// Takes it from a body, for a prompt or else for messages.
    pub fn take(fields: &mut Fields, prompt: bool) -> Result<Self, ApiError> {
        let default = if prompt { Self::PROMPT } else { Self::MESSAGES };
        Ok(Self {
            special: fields.flag("add_special_tokens")?.unwrap_or(default.special),
            parse_special: fields.flag("parse_special")?.unwrap_or(default.parse_special),
        })
    }

    /// Takes it from a body of messages in another protocol than OpenAI's chat.
    pub fn of_messages(fields: &mut Fields) -> Result<Self, ApiError> {
        let parse_special = fields.flag("parse_special")?.unwrap_or(false);
        Ok(Self { parse_special, ..Self::MESSAGES })
    }

    /// The encoder of a request that gives itself so much time.
    pub fn within<'a>(self, context: &Context<'a>, timeout: Duration) -> Encoder<'a> {
        Encoder { served: context.served, encoding: self, deadline: context.deadline(timeout) }
    }
}

/// Makes tokens of the texts of a request.
pub struct Encoder<'a> {
    pub served: &'a Served,
    encoding: Encoding,
    /// By when.
    deadline: Deadline,
}

impl Encoder<'_> {
    /// One prompt: a string, or a list of token ids.
    pub fn single(&self, param: &'static str, value: Value) -> Result<Prompt, ApiError> {
        match value {
            Value::String(text) if text.is_empty() => {
                Err(ApiError::value(param, "\"\"", "at least one character"))
            }
            Value::String(text) => self.prompt(param, text),
            Value::Array(items) => ids(self.served, param, &items),
            other => Err(ApiError::value(param, show(&other), "a string or a list of token ids")),
        }
    }

    /// At most `limit` prompts, each as in [`Self::single`].
    pub fn several(
        &self,
        param: &'static str,
        value: Value,
        limit: usize,
    ) -> Result<Vec<Prompt>, ApiError> {
        let items = match value {
            Value::Array(items) if items.iter().all(|item| item.is_string() || item.is_array()) => {
                items
            }
            other => return self.single(param, other).map(|prompt| vec![prompt]),
        };
        if items.is_empty() || items.len() > limit {
            let got = format!("a list of {} prompts", items.len());
            return Err(ApiError::value(param, got, format!("1 to {limit} prompts")));
        }
        items.into_iter().map(|item| self.single(param, item)).collect()
    }

    /// The prompt of a text.
    fn prompt(&self, param: &'static str, mut text: String) -> Result<Prompt, ApiError> {
        let mark = self.mark(param, &mut text)?;
        self.encode(param, text, mark)
    }

    /// Marks the special tokens of a conversation whose texts are plain text.
    pub fn mark_all(&self, conversation: &mut Conversation) -> Result<Option<char>, ApiError> {
        if self.encoding.parse_special {
            return Ok(None);
        }
        let mark = self.served.control.mark(conversation);
        mark.map_err(|error| not_marked("messages", &error))
    }

    /// Marks the special tokens of a text that is taken as plain text.
    fn mark(&self, param: &'static str, text: &mut String) -> Result<Option<char>, ApiError> {
        if self.encoding.parse_special {
            return Ok(None);
        }
        let mark = self.served.control.mark_text(text);
        mark.map_err(|error| not_marked(param, &error))
    }

    /// The tokens of a text that may be empty.
    pub fn text(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        let mut text = text.to_owned();
        let mark = self.mark("prompt", &mut text)?;
        self.tokens("prompt", &text, mark)
    }

    /// The tokens of a text, at least one; `mark` stands within special tokens that are plain text.
    pub fn encode(
        &self,
        param: &'static str,
        text: String,
        mark: Option<char>,
    ) -> Result<Prompt, ApiError> {
        let ids = self.tokens(param, &text, mark)?;
        if ids.is_empty() {
            let got = show(&Value::String(text));
            return Err(ApiError::value(param, got, "text of at least one token"));
        }
        Ok(Prompt { ids, param, opening: None, text: Some(text).filter(|_| mark.is_none()) })
    }

    /// The tokens of a text that the context can hold.
    pub fn tokens(
        &self,
        param: &'static str,
        text: &str,
        mark: Option<char>,
    ) -> Result<Vec<u32>, ApiError> {
        let Self { served, encoding: Encoding { special, .. }, deadline } = self;
        deadline.check()?;
        let context = served.context();
        let refuse = |refused: Refused| match refused {
            Refused::Late => deadline.error(),
            Refused::Text(error) => not_encoded(param, error),
        };
        let in_time = || deadline.check().map_err(|_| Refused::Late);
        if served.tokenizer.exceeds(text, mark, context, in_time).map_err(refuse)? {
            return Err(ApiError::PromptLength { context, prompt: param });
        }
        let ids = served.tokenizer.encode_prompt(text, mark, *special);
        ids.map_err(|error| not_encoded(param, error))
    }
}

/// Why a text was not counted to its end.
enum Refused {
    Late,
    Text(TokenizerError),
}

impl From<TokenizerError> for Refused {
    fn from(error: TokenizerError) -> Self {
        Self::Text(error)
    }
}

/// The error for a text in which special tokens cannot be told from text.
fn not_marked(param: &'static str, error: &NoMark) -> ApiError {
    ApiError::Value { param: param.into(), message: format!("{param}: {error}") }
}

/// The error for a text that the tokenizer cannot encode.
fn not_encoded(param: &'static str, error: TokenizerError) -> ApiError {
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
