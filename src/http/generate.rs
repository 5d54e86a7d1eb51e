//! The native route, `POST /generate`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response, sse},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    app::App,
    error::ApiError,
    incoming::Incoming,
    request::native,
    run::{Choice, Echo, Run, collect},
    stream::{self, Dialect},
    tokens::{TokenText, describe},
};
use crate::{
    engine::{Event, Usage},
    tokenizer::Tokenizer,
};

/// The native answer.
#[derive(Debug, Serialize)]
struct Answer {
    text: String,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<TokenText>>,
    usage: Value,
    #[serde(flatten)]
    echo: Echo,
    /// All choices, where there are several; the first one stands above as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    choices: Vec<OneOfSeveral>,
}

/// One of several choices; in a comparison with the solution of its preference.
#[derive(Debug, Serialize)]
struct OneOfSeveral {
    index: usize,
    text: String,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<TokenText>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
    #[serde(flatten)]
    echo: Option<Echo>,
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

fn answer(run: &Run, tokenizer: &Tokenizer, choices: Vec<Choice>, logprobs: bool) -> Answer {
    let tokens = |choice: &Choice| logprobs.then(|| describe(tokenizer, &choice.tokens));
    let several = if choices.len() > 1 {
        let one = |(index, choice): (usize, &Choice)| OneOfSeveral {
            index,
            text: choice.text.clone(),
            finish_reason: choice.reason(),
            tokens: tokens(choice),
            usage: run.compares().then(|| usage_json(run.usage_of(index))),
            echo: run.compares().then(|| run.echo_of(index)),
        };
        choices.iter().enumerate().map(one).collect()
    } else {
        Vec::new()
    };
    let first = choices.into_iter().next().unwrap_or_default();
    Answer {
        finish_reason: first.reason(),
        tokens: tokens(&first),
        text: first.text,
        usage: usage_json(run.usage()),
        echo: run.echo(),
        choices: several,
    }
}

/// `POST /generate`.
pub async fn handle(State(app): State<Arc<App>>, request: Incoming) -> Result<Response, ApiError> {
    let checked = request.check(native::generate).await?;
    let (stream, logprobs) = (checked.stream, checked.wants_logprobs());
    let tokenizer = checked.served.tokenizer.clone();
    let mut run = Run::start(app, checked).await?;
    if stream {
        let choices = run.blank();
        return Ok(stream::respond(run, Native { choices, tokenizer, logprobs, started: false }));
    }
    let choices = collect(&mut run).await?;
    Ok(Json(answer(&run, &tokenizer, choices, logprobs)).into_response())
}

/// The beginning of one of several answers.
#[derive(Debug, Serialize)]
struct StartOfOne {
    index: usize,
    #[serde(flatten)]
    echo: Echo,
}

/// A piece of an answer's text.
#[derive(Debug, Serialize)]
struct Piece<'a> {
    index: usize,
    text: &'a str,
    id: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<TokenText>,
}

/// The native stream: `start` (in a comparison one for each preference), one `token` per piece of
/// text, `done` with the whole answer, or `error`.
struct Native {
    choices: Vec<Choice>,
    tokenizer: Tokenizer,
    logprobs: bool,
    started: bool,
}

impl Dialect for Native {
    fn event(&mut self, run: &Run, index: usize, event: Event) -> Vec<sse::Event> {
        let mut out = Vec::new();
        match &event {
            Event::Started(_) if run.compares() => {
                let start = StartOfOne { index, echo: run.echo_of(index) };
                out.push(stream::json(&start).event("start"));
            }
            Event::Started(_) if !self.started => {
                self.started = true;
                out.push(stream::json(&run.echo()).event("start"));
            }
            Event::Token(token) if self.logprobs || !token.text.is_empty() => {
                let described = self.logprobs.then(|| TokenText::new(&self.tokenizer, token));
                let piece = Piece { index, text: &token.text, id: token.id, token: described };
                out.push(stream::json(&piece).event("token"));
            }
            _ => {}
        }
        if let Some(choice) = self.choices.get_mut(index) {
            choice.push(event, self.logprobs);
        }
        out
    }

    fn end(&mut self, run: &Run) -> Vec<sse::Event> {
        let choices = std::mem::take(&mut self.choices);
        let answer = answer(run, &self.tokenizer, choices, self.logprobs);
        vec![stream::json(&answer).event("done")]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event> {
        vec![stream::json(&error.body()).event("error")]
    }
}
