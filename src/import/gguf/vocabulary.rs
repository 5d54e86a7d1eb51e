//! The vocabulary of a GGUF file, checked: tokens, their ids, and what refers to them.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{error::GgufError, header::Meta, metadata::Metadata};

/// The tokens of a file with their ids, no two of one text.
pub struct Vocabulary<'a> {
    /// The metadata of the file.
    pub metadata: &'a Metadata,
    /// The tokens in the order of their ids.
    pub tokens: Vec<&'a str>,
    /// Id by token.
    pub ids: HashMap<&'a str, usize>,
    /// The vocabulary is SentencePiece's, where ids have defaults.
    pub sentencepiece: bool,
}

/// A token with its id.
pub type Token<'a> = (u64, &'a str);

impl<'a> Vocabulary<'a> {
    /// Reads the tokens of a file; every id of a special token is one of theirs.
    pub fn read(metadata: &'a Metadata) -> Result<Self, GgufError> {
        let sentencepiece = match metadata.text("tokenizer.ggml.model")? {
            Some("gpt2") => false,
            Some("llama") => true,
            None => return Err(metadata.missing("tokenizer.ggml.model", "gpt2 or llama")),
            Some(other) => {
                return Err(metadata.unsupported("tokenizer.ggml.model", other, "gpt2, llama"));
            }
        };
        let tokens = metadata.array("tokenizer.ggml.tokens", "a list of strings", text)?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = ids.insert(*token, id) {
                let reason = format!("tokens {other} and {id} are both {token:?}");
                return Err(GgufError::Tokenizer { path: metadata.path().to_owned(), reason });
            }
        }
        let vocabulary = Self { metadata, tokens, ids, sentencepiece };
        for (key, _) in metadata.iter().filter(|(key, _)| key.ends_with("_token_id")) {
            vocabulary.number(key)?;
        }
        Ok(vocabulary)
    }

    /// The id under a key, which is one of the vocabulary.
    pub fn number(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let Some(id) = self.metadata.number(key)? else { return Ok(None) };
        match usize::try_from(id).is_ok_and(|id| id < self.tokens.len()) {
            true => Ok(Some(id)),
            false => {
                let expected = format!("the id of a token, below {}", self.tokens.len());
                Err(self.metadata.mistyped(key, &expected, id.to_string()))
            }
        }
    }

    /// A special token. SentencePiece's ids are what llama.cpp takes where the file names none.
    pub fn special(&self, name: &str) -> Result<Option<Token<'a>>, GgufError> {
        let default = match name {
            "unknown" => Some(0),
            "bos" => Some(1),
            "eos" => Some(2),
            _ => None,
        };
        let id = self.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        let id = id.or(default.filter(|_| self.sentencepiece));
        let token = |id: u64| Some((id, *self.tokens.get(usize::try_from(id).ok()?)?));
        Ok(id.and_then(token))
    }

    /// A list with a value for every token.
    pub fn aligned<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Meta) -> Option<T>,
    ) -> Result<Vec<T>, GgufError> {
        let values = self.metadata.array(key, expected, read)?;
        if values.len() == self.tokens.len() {
            return Ok(values);
        }
        let expected = format!("{} values, one for each token", self.tokens.len());
        Err(self.metadata.mistyped(key, &expected, values.len().to_string()))
    }

    /// The merges that the file lists, each of two tokens into a third.
    pub fn merges(&self) -> Result<Vec<Value>, GgufError> {
        let key = "tokenizer.ggml.merges";
        let pairs = self
            .metadata
            .array(key, "a list of pairs of tokens", |value| text(value)?.split_once(' '))?;
        let known = |token: &str| self.ids.contains_key(token);
        for (i, (left, right)) in pairs.iter().enumerate() {
            let joined = format!("{left}{right}");
            if let Some(unknown) = [*left, *right, &joined].into_iter().find(|token| !known(token))
            {
                let reason = format!("merge {i}, {left:?} {right:?}: {unknown:?} is not a token");
                let path = self.metadata.path().to_owned();
                return Err(GgufError::Tokenizer { path, reason });
            }
        }
        Ok(pairs.into_iter().map(|(left, right)| json!([left, right])).collect())
    }
}

fn text(value: &Meta) -> Option<&str> {
    match value {
        Meta::String(text) => Some(text),
        _ => None,
    }
}
