//! Tokens of a key: a request is charged its prompts and all that it may generate before it runs, and
//! gets back what it did not use when it ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{app::App, error::ApiError, keys::Key, rate::retry_after, request::Checked};
use crate::engine::Usage;

/// The limit, as the file of keys and errors name it.
const LIMIT: &str = "tokens_per_minute";

/// What a request was charged, until it ends.
pub struct Charge {
    app: Arc<App>,
    key: Arc<Key>,
    tokens: usize,
    used: Usage,
}

impl Charge {
    /// Charges the key of a request, where it has one.
    pub fn of(app: &Arc<App>, checked: &Checked) -> Result<Option<Self>, ApiError> {
        let Some(key) = checked.key.clone() else { return Ok(None) };
        let tokens = checked.most_tokens();
        if let Some(most) = key.tokens_per_minute {
            if tokens > most {
                let name = &key.name;
                return Err(ApiError::Value {
                    param: LIMIT.into(),
                    message: format!(
                        "this request may take {tokens} tokens in prompt and answer, and {LIMIT} \
                         of the key {name:?} is {most}: ask for fewer max_tokens, or a shorter prompt"
                    ),
                });
            }
            let taken = app.tokens.take(&key.client(), tokens, most, Instant::now());
            taken.map_err(|wait: Duration| {
                let why = format!("this request may take {tokens}");
                app.over_limit(&key.name, LIMIT, most, why, retry_after(wait))
            })?;
        }
        Ok(Some(Self { app: app.clone(), key, tokens, used: Usage::default() }))
    }

    /// Says what the request has used in all.
    pub fn used(&mut self, used: Usage) {
        self.used = used;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Usage { prompt_tokens, completion_tokens, .. } = self.used;
        self.app.telemetry.key_tokens(&self.key.name, prompt_tokens, completion_tokens);
        if let Some(most) = self.key.tokens_per_minute {
            let left = self.tokens.saturating_sub(prompt_tokens + completion_tokens);
            self.app.tokens.give_back(&self.key.client(), left, most, Instant::now());
        }
    }
}
