//! Tokens as answers show them.

use serde::Serialize;

use crate::{engine::Token, tokenizer::Tokenizer};

/// A token with its log-probability and the likeliest ones in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenText {
    pub id: u32,
    /// Its own text; part of a character shows as U+FFFD.
    pub text: String,
    /// Its log-probability (natural), before penalties and temperature.
    pub logprob: Option<f32>,
    /// The likeliest tokens, likeliest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TokenText>,
}

impl TokenText {
    /// Describes a generated token.
    pub fn new(tokenizer: &Tokenizer, token: &Token) -> Self {
        Self::of(tokenizer, token.id, token.logprob, &token.top)
    }

    /// Describes a token by its id.
    pub fn of(tokenizer: &Tokenizer, id: u32, logprob: Option<f32>, top: &[(u32, f32)]) -> Self {
        let plain = |id: u32, logprob| Self {
            id,
            text: String::from_utf8_lossy(&tokenizer.bytes(id)).into_owned(),
            logprob,
            top: Vec::new(),
        };
        let top = top.iter().map(|&(id, logprob)| plain(id, Some(logprob))).collect();
        Self { top, ..plain(id, logprob) }
    }
}

/// Describes generated tokens.
pub fn describe(tokenizer: &Tokenizer, tokens: &[Token]) -> Vec<TokenText> {
    tokens.iter().map(|token| TokenText::new(tokenizer, token)).collect()
}
