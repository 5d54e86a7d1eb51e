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
    engine::{Event, FinishReason, Token, TokenLogprob},
    http::{
        app::App,
        error::ApiError,
        incoming::Incoming,
        request::{Checked, EchoedPrompt, openai},
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
    echo: Vec<EchoedPrompt>,
    /// The ids of the prompts.
    prompts: Vec<Vec<u32>>,
    prompt_only: bool,
}

impl Format {
    fn new(tokenizer: Tokenizer, checked: &mut Checked) -> Self {
        let prompts = checked.requests.iter().step_by(checked.n);
        Self {
            tokenizer,
            logprobs: checked.wants_logprobs(),
            n: checked.n,
            echo: std::mem::take(&mut checked.echo),
            prompts: prompts.map(|request| request.prompt.clone()).collect(),
            prompt_only: checked.prompt_only,
        }
    }

    /// The prompt that choice `index` repeats.
    fn echo(&self, index: usize) -> Option<&str> {
        self.echo.get(index / self.n).map(|echo| echo.text.as_str())
    }

    /// Why a choice ended. A prompt alone ends at its length, whatever the token is that is computed
    /// behind it and not shown.
    fn reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop if self.prompt_only => FinishReason::Length.as_str(),
            reason => reason.as_str(),
        }
    }

    /// Where the answer of choice `index` begins.
    fn place(&self, index: usize) -> Place {
        let prompt = self.prompts.get(index / self.n).map_or(&[][..], Vec::as_slice);
        Place {
            decoder: TextDecoder::after(&self.tokenizer, prompt, true),
            offset: self.echo(index).map_or(0, |text| text.chars().count()),
        }
    }

    /// The log-probabilities of the prompt that choice `index` repeats. Its first token has none.
    fn prompt_table(&self, index: usize, rest: &[TokenLogprob]) -> LogProbabilities {
        let mut table = LogProbabilities::default();
        let (Some(echo), Some(prompt)) =
            (self.echo.get(index / self.n), self.prompts.get(index / self.n))
        else {
            return table;
        };
        let mut offsets = echo.offsets.iter().copied();
        if let Some(first) = prompt.first() {
            table.push(&self.tokenizer, *first, None, &[], offsets.next().unwrap_or(0));
        }
        for (token, offset) in rest.iter().zip(offsets) {
            table.push(&self.tokenizer, token.id, Some(token.logprob), &token.top, offset);
        }
        table
    }

    fn choice(&self, index: usize, choice: &Choice) -> Value {
        let mut table = self.prompt_table(index, &choice.prompt);
        let mut text = self.echo(index).unwrap_or_default().to_owned();
        if !self.prompt_only {
            text.push_str(&choice.text);
            let end = text.chars().count();
            table.answer(&self.tokenizer, &choice.tokens, &mut self.place(index), end);
        }
        json!({
            "index": index,
            "text": text,
            "logprobs": self.logprobs.then_some(table),
            "finish_reason": choice.reason.map(|reason| self.reason(reason)),
        })
    }
}

/// How far the tokens of a choice reach in its text.
struct Place {
    decoder: TextDecoder,
    /// Characters that are whole before the next token, the prompt's included.
    offset: usize,
}

impl Place {
    /// Where `id` starts.
    fn next(&mut self, id: u32) -> usize {
        let start = self.offset;
        self.offset += self.decoder.push(id).chars().count();
        start
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

    /// Adds tokens of an answer whose text is known up to `end`: a token that a stop string cut off
    /// stands there.
    fn answer(&mut self, tokenizer: &Tokenizer, tokens: &[Token], place: &mut Place, end: usize) {
        for token in tokens {
            let offset = place.next(token.id).min(end);
            self.push(tokenizer, token.id, token.logprob, &token.top, offset);
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
    let format = Format::new(checked.served.tokenizer.clone(), &mut checked);
    let count = checked.requests.len();
    let mut run = Run::start(app, checked).await?;
    let envelope = Envelope::new("cmpl-", "text_completion", model, &run.echo());
    if stream {
        let chunks = Chunks::new(envelope, usage);
        let progress = (0..count).map(|index| Progress::new(&format, index)).collect();
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
struct Progress {
    /// Its first chunk, which repeats the prompt where that is asked for.
    begun: bool,
    /// Characters of its text.
    written: usize,
    place: Place,
    /// Tokens whose text is held back, so that each chunk has the tokens of its text.
    waiting: Vec<Token>,
}

impl Progress {
    fn new(format: &Format, index: usize) -> Self {
        Self { begun: false, written: 0, place: format.place(index), waiting: Vec::new() }
    }

    /// Counts `text`, the next piece of the choice's text, and gives the log-probabilities of the
    /// tokens that it completes.
    fn write(&mut self, tokenizer: &Tokenizer, text: &str) -> LogProbabilities {
        self.written += text.chars().count();
        let mut table = LogProbabilities::default();
        let tokens = std::mem::take(&mut self.waiting);
        table.answer(tokenizer, &tokens, &mut self.place, self.written);
        table
    }
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
                (progress.begun, progress.written) = (true, echo.chars().count());
                out.push(chunk(echo, Some(format.prompt_table(index, &prompt)), None));
            }
            Event::Token(token) => {
                let first = !std::mem::replace(&mut progress.begun, true);
                if let Some(echo) = format.echo(index).filter(|_| first) {
                    progress.written = echo.chars().count();
                    out.push(chunk(echo, None, None));
                }
                let text = token.text.clone();
                if format.logprobs && !format.prompt_only {
                    progress.waiting.push(token);
                }
                let (shown, first) = (!format.prompt_only, first && out.is_empty());
                if shown && (first || !text.is_empty()) {
                    let wanted = format.logprobs && !text.is_empty();
                    let table = wanted.then(|| progress.write(&format.tokenizer, &text));
                    out.push(chunk(&text, table, None));
                }
            }
            Event::Finished(finished) => {
                let rest = !progress.waiting.is_empty();
                let table = rest.then(|| progress.write(&format.tokenizer, ""));
                out.push(chunk("", table, Some(format.reason(finished.reason))));
            }
            Event::Started(_) | Event::Embedding(_) | Event::Failed(_) => {}
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
