//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response, sse},
};
use serde_json::{Value, json};

use super::{
    stream::{Chunks, failure},
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
    let (stream, usage, model) = (checked.stream, checked.usage, checked.model.clone());
    let logprobs = checked.wants_logprobs();
    let tokenizer = app.served()?.tokenizer.clone();
    let mut run = Run::start(app, checked).await?;
    if stream {
        let envelope = Envelope::new("chatcmpl", "chat.completion.chunk", model, &run.echo());
        let begun = vec![false; run.blank().len()];
        let chunks = Chunks::new(envelope, usage);
        return Ok(stream::respond(run, Chat { chunks, tokenizer, logprobs, begun }));
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
    let envelope = Envelope::new("chatcmpl", "chat.completion", model, &run.echo());
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
    chunks: Chunks,
    tokenizer: Tokenizer,
    logprobs: bool,
    /// The choices whose role has been told, which is done with their first token.
    begun: Vec<bool>,
}

impl Dialect for Chat {
    fn event(&mut self, run: &Run, index: usize, event: Event) -> Vec<sse::Event> {
        let choice = |delta: Value, logprobs: Value, reason: Option<&str>| json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
        let mut chunks = Vec::new();
        match event {
            Event::Token(token) => {
                let begun = self.begun.get_mut(index).is_none_or(|b| std::mem::replace(b, true));
                if !begun {
                    let delta = json!({"role": "assistant", "content": ""});
                    chunks.push(self.chunks.chunk(run, choice(delta, Value::Null, None)));
                }
                if self.logprobs || !token.text.is_empty() {
                    let logprobs = match self.logprobs {
                        true => log_probabilities(&self.tokenizer, std::slice::from_ref(&token)),
                        false => Value::Null,
                    };
                    let delta = json!({"content": token.text});
                    chunks.push(self.chunks.chunk(run, choice(delta, logprobs, None)));
                }
            }
            Event::Finished(finished) => {
                let reason = Some(finished.reason.as_str());
                chunks.push(self.chunks.chunk(run, choice(json!({}), Value::Null, reason)));
            }
            Event::Started(_) | Event::Prompt(_) | Event::Failed(_) => {}
        }
        chunks
    }

    fn end(&mut self, run: &Run) -> Vec<sse::Event> {
        self.chunks.end(run)
    }

    fn failure(&mut self, error: &ApiError) -> Vec<sse::Event> {
        failure(error)
    }
}
