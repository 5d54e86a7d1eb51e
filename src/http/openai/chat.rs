//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response, sse},
};
use serde_json::{Value, json};

use super::{
    stream::{close, done},
    types::{Body, Envelope},
};
use crate::{
    engine::{Event, Token},
    http::{
        app::App,
        error::ApiError,
        incoming::Incoming,
        request::openai,
        run::{Choice, Run, collect},
        stream::{self, Dialect},
        tokens::TokenText,
    },
    tokenizer::Tokenizer,
};

/// Answers a conversation.
pub async fn handle(State(app): State<Arc<App>>, request: Incoming) -> Result<Response, ApiError> {
    let checked = request.check(openai::chat).await?;
    let (stream, include_usage) = (checked.stream, checked.include_usage);
    let logprobs = checked.wants_logprobs();
    let tokenizer = app.served()?.tokenizer.clone();
    let mut run = Run::start(app, checked).await?;
    if stream {
        let envelope = Envelope::new("chatcmpl", "chat.completion.chunk", &run.echo());
        let chat = Chat { envelope, tokenizer, logprobs, include_usage, echoed: false };
        return Ok(stream::respond(run, chat));
    }
    let choices = collect(&mut run).await?;
    let choice = |(index, choice): (usize, Choice)| {
        json!({
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": null},
            "logprobs": logprobs.then(|| log_probabilities(&tokenizer, &choice.tokens)),
            "finish_reason": choice.reason(),
        })
    };
    let envelope = Envelope::new("chatcmpl", "chat.completion", &run.echo());
    let body = Body {
        choices: choices.into_iter().enumerate().map(choice).collect(),
        envelope: &envelope,
        usage: Some(Some(run.usage().into())),
        ladle: Some(run.echo()),
    };
    Ok(Json(body).into_response())
}

/// `choices[].logprobs`.
fn log_probabilities(tokenizer: &Tokenizer, tokens: &[Token]) -> Value {
    let plain = |token: &TokenText| json!({"token": token.text, "logprob": token.logprob, "bytes": tokenizer.bytes(token.id)});
    let one = |token: &Token| {
        let token = TokenText::new(tokenizer, token);
        let mut value = plain(&token);
        value["top_logprobs"] = token.top.iter().map(plain).collect();
        value
    };
    json!({"content": tokens.iter().map(one).collect::<Vec<_>>(), "refusal": null})
}

/// The stream of chunks.
struct Chat {
    envelope: Envelope,
    tokenizer: Tokenizer,
    logprobs: bool,
    include_usage: bool,
    echoed: bool,
}

impl Chat {
    fn chunk(&self, choices: Vec<Value>, run: &Run, ladle: bool) -> sse::Event {
        stream::json(&Body {
            envelope: &self.envelope,
            choices,
            usage: self.include_usage.then_some(None),
            ladle: ladle.then(|| run.echo()),
        })
    }
}

impl Dialect for Chat {
    fn event(&mut self, run: &Run, index: usize, event: Event) -> Vec<sse::Event> {
        let choice = |delta: Value, logprobs: Value, reason: Option<&str>| {
            vec![
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}),
            ]
        };
        match event {
            Event::Started(_) => {
                let first = !std::mem::replace(&mut self.echoed, true);
                let delta = json!({"role": "assistant", "content": ""});
                vec![self.chunk(choice(delta, Value::Null, None), run, first)]
            }
            Event::Token(token) if self.logprobs || !token.text.is_empty() => {
                let logprobs = match self.logprobs {
                    true => log_probabilities(&self.tokenizer, std::slice::from_ref(&token)),
                    false => Value::Null,
                };
                vec![self.chunk(choice(json!({"content": token.text}), logprobs, None), run, false)]
            }
            Event::Finished(finished) => {
                let last = run.is_complete();
                let reason = Some(finished.reason.as_str());
                vec![self.chunk(choice(json!({}), Value::Null, reason), run, last)]
            }
            Event::Token(_) | Event::Prompt(_) | Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self, run: &Run) -> Vec<sse::Event> {
        close(&self.envelope, self.include_usage.then(|| run.usage()))
    }

    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event> {
        vec![stream::json(&error.body()), done()]
    }
}
