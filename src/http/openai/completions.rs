//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response, sse},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    stream::{Chunks, failure},
    types::{Body, Envelope},
};
use crate::{
    engine::{Event, Token, TokenLogprob},
    http::{
        app::App,
        error::ApiError,
        incoming::Incoming,
        request::{Checked, openai},
        run::{Choice, Run, collect},
        stream::{self, Dialect},
    },
    tokenizer::{TextDecoder, Tokenizer},
};

/// How choices are written.
struct Format {
    tokenizer: Tokenizer,
    logprobs: bool,
    /// Choices per prompt.
    n: usize,
    /// Prompts to put before the answers; empty: none.
    echo: Vec<String>,
    /// The ids of those prompts.
    prompts: Vec<Vec<u32>>,
    prompt_only: bool,
}

impl Format {
    fn new(tokenizer: Tokenizer, checked: &mut Checked) -> Self {
        let echo = std::mem::take(&mut checked.echo);
        let prompts = match echo.is_empty() {
            true => Vec::new(),
            false => checked
                .requests
                .iter()
                .step_by(checked.n)
                .map(|request| request.prompt.clone())
                .collect(),
        };
        let logprobs = checked.wants_logprobs();
        Self { tokenizer, logprobs, n: checked.n, echo, prompts, prompt_only: checked.prompt_only }
    }

    /// The prompt that choice `index` repeats.
    fn echo(&self, index: usize) -> Option<&str> {
        self.echo.get(index / self.n).map(String::as_str)
    }

    /// The first token of the prompt that choice `index` repeats; it has no log-probability.
    fn first(&self, index: usize) -> Option<u32> {
        self.prompts.get(index / self.n)?.first().copied()
    }

    fn choice(&self, index: usize, choice: &Choice) -> Value {
        let echo = self.echo(index);
        let mut table = LogProbabilities::default();
        if echo.is_some() {
            table.prompt(&self.tokenizer, self.first(index), &choice.prompt, &mut 0);
        }
        let mut offset = echo.map_or(0, |text| text.chars().count());
        let answer: &str = if self.prompt_only { "" } else { &choice.text };
        if !self.prompt_only {
            choice.tokens.iter().for_each(|token| table.token(&self.tokenizer, token, &mut offset));
        }
        json!({
            "index": index,
            "text": format!("{}{answer}", echo.unwrap_or_default()),
            "logprobs": self.logprobs.then_some(table),
            "finish_reason": choice.reason(),
        })
    }
}

/// `choices[].logprobs`: four lists of equal length.
#[derive(Debug, Default, Serialize)]
struct LogProbabilities {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// In characters from the start of the choice's text.
    text_offset: Vec<usize>,
}

impl LogProbabilities {
    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        logprob: Option<f32>,
        top: &[(u32, f32)],
        offset: usize,
    ) {
        let name = |id: u32| spell(&tokenizer.bytes(id));
        self.tokens.push(name(id));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(logprob.map(|_| {
            let mut map = Map::new();
            for &(id, logprob) in top {
                // Of tokens that are spelled alike, the likeliest, which comes first, counts.
                map.entry(name(id)).or_insert(logprob.into());
            }
            map
        }));
        self.text_offset.push(offset);
    }

    fn token(&mut self, tokenizer: &Tokenizer, token: &Token, offset: &mut usize) {
        self.push(tokenizer, token.id, token.logprob, &token.top, *offset);
        *offset += token.text.chars().count();
    }

    fn prompt(
        &mut self,
        tokenizer: &Tokenizer,
        first: Option<u32>,
        rest: &[TokenLogprob],
        offset: &mut usize,
    ) {
        let mut decoder = TextDecoder::new(tokenizer, true);
        if let Some(first) = first {
            self.push(tokenizer, first, None, &[], *offset);
            *offset += decoder.push(first).chars().count();
        }
        for token in rest {
            self.push(tokenizer, token.id, Some(token.logprob), &token.top, *offset);
            *offset += decoder.push(token.id).chars().count();
        }
    }
}

/// A token's text; one that is only part of a character as OpenAI writes it, `bytes:\xe2\x82`.
fn spell(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{hex}")
        }
    }
}

/// Continues prompts.
pub async fn handle(State(app): State<Arc<App>>, request: Incoming) -> Result<Response, ApiError> {
    let mut checked = request.check(openai::completions).await?;
    let (stream, usage, model) = (checked.stream, checked.usage, checked.model.clone());
    let format = Format::new(app.served()?.tokenizer.clone(), &mut checked);
    let count = checked.requests.len();
    let mut run = Run::start(app, checked).await?;
    let envelope = Envelope::new("cmpl", "text_completion", model, &run.echo());
    if stream {
        let chunks = Chunks::new(envelope, usage);
        let progress = vec![Progress::default(); count];
        return Ok(stream::respond(run, Completions { chunks, format, progress }));
    }
    let choices = collect(&mut run).await?;
    let body = Body {
        choices: choices
            .iter()
            .enumerate()
            .map(|(index, choice)| format.choice(index, choice))
            .collect(),
        envelope: &envelope,
        usage: Some(Some(run.usage().into())),
        ladle: Some(run.echo()),
    };
    Ok(Json(body).into_response())
}

/// The stream of chunks.
struct Completions {
    chunks: Chunks,
    format: Format,
    progress: Vec<Progress>,
}

/// How far a choice has been written.
#[derive(Default, Clone)]
struct Progress {
    /// Its first chunk, which repeats the prompt where that is asked for.
    begun: bool,
    /// Characters of its text.
    offset: usize,
}

impl Dialect for Completions {
    fn event(&mut self, run: &Run, index: usize, event: Event) -> Vec<sse::Event> {
        let (format, chunks) = (&self.format, &mut self.chunks);
        let Some(progress) = self.progress.get_mut(index) else { return Vec::new() };
        let mut chunk = |text: &str, table: Option<LogProbabilities>, reason: Option<&str>| {
            let choice =
                json!({"index": index, "text": text, "logprobs": table, "finish_reason": reason});
            chunks.chunk(run, choice)
        };
        let mut out = Vec::new();
        match event {
            Event::Prompt(prompt) => {
                let echo = format.echo(index).unwrap_or_default();
                let mut table = LogProbabilities::default();
                table.prompt(&format.tokenizer, format.first(index), &prompt, &mut 0);
                *progress = Progress { begun: true, offset: echo.chars().count() };
                out.push(chunk(echo, Some(table), None));
            }
            Event::Token(token) => {
                let first = !std::mem::replace(&mut progress.begun, true);
                if let Some(echo) = format.echo(index).filter(|_| first) {
                    progress.offset = echo.chars().count();
                    out.push(chunk(echo, None, None));
                }
                let (shown, first) = (!format.prompt_only, first && out.is_empty());
                if shown && (first || format.logprobs || !token.text.is_empty()) {
                    let mut table = LogProbabilities::default();
                    table.token(&format.tokenizer, &token, &mut progress.offset);
                    out.push(chunk(&token.text, format.logprobs.then_some(table), None));
                }
            }
            Event::Finished(finished) => {
                out.push(chunk("", None, Some(finished.reason.as_str())));
            }
            Event::Started(_) | Event::Failed(_) => {}
        }
        out
    }

    fn end(&mut self, run: &Run) -> Vec<sse::Event> {
        self.chunks.end(run)
    }

    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event> {
        failure(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_a_character_is_spelled_in_bytes() {
        assert_eq!(spell("né".as_bytes()), "né");
        assert_eq!(spell(&[0xe2, 0x82]), "bytes:\\xe2\\x82");
    }
}
