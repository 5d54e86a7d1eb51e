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
    chat::tools::Piece,
    engine::{Event, Token},
    http::{
        app::App,
        calls::{self, Reader, Spoken},
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
    let (logprobs, tools) = (checked.wants_logprobs(), checked.calls.clone());
    let tokenizer = checked.served.tokenizer.clone();
    let mut run = Run::start(app, checked).await?;
    if stream {
        let envelope = Envelope::new("chatcmpl-", "chat.completion.chunk", model, &run.echo());
        let progress = || Progress { begun: false, reader: Reader::new(tools.as_ref()) };
        let choices = run.blank().iter().map(|_| progress()).collect();
        let chunks = Chunks::new(envelope, usage);
        return Ok(stream::respond(run, Chat { chunks, tokenizer, logprobs, choices }));
    }
    let choices = collect(&mut run).await?;
    let choice = |(index, choice): (usize, Choice)| {
        let spoken = calls::read(&choice, tools.as_ref());
        json!({
            "index": index,
            "message": message(&spoken),
            "logprobs": logprobs.then(|| log_probabilities(&tokenizer, &choice.tokens)),
            "finish_reason": spoken.reason,
        })
    };
    let envelope = Envelope::new("chatcmpl-", "chat.completion", model, &run.echo());
    let body = Body {
        choices: choices.into_iter().enumerate().map(choice).collect(),
        envelope: &envelope,
        usage: Some(Some(run.usage().into())),
        ladle: Some(run.echo()),
    };
    Ok(Json(body).into_response())
}

/// `choices[].message`.
fn message(spoken: &Spoken) -> Value {
    let mut message = json!({"role": "assistant", "content": spoken.text, "refusal": null});
    if !spoken.calls.is_empty() {
        if spoken.text.is_empty() {
            message["content"] = Value::Null;
        }
        let call = |call: &calls::Call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        message["tool_calls"] = spoken.calls.iter().map(call).collect();
    }
    message
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
    choices: Vec<Progress>,
}

/// How far a choice has been written.
struct Progress {
    /// Its role has been told, which is done with its first token.
    begun: bool,
    reader: Reader,
}

/// `choices[].delta`.
fn delta(piece: Piece) -> Value {
    match piece {
        Piece::Text(text) => json!({"content": text}),
        Piece::Call { index, name } => {
            let function = json!({"name": name, "arguments": ""});
            let id = calls::id("call_");
            json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
        }
        Piece::Arguments { index, text } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        }
    }
}

impl Dialect for Chat {
    fn event(&mut self, run: &Run, index: usize, event: Event) -> Vec<sse::Event> {
        let Self { chunks, tokenizer, logprobs: wanted, choices } = self;
        let Some(progress) = choices.get_mut(index) else { return Vec::new() };
        let mut out = Vec::new();
        let mut write = |delta: Value, logprobs: Option<Value>, reason: Option<&str>| {
            let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason});
            out.push(chunks.chunk(run, choice));
        };
        match event {
            Event::Token(token) => {
                if !std::mem::replace(&mut progress.begun, true) {
                    write(json!({"role": "assistant", "content": ""}), None, None);
                }
                let mut logprobs =
                    wanted.then(|| log_probabilities(tokenizer, std::slice::from_ref(&token)));
                for piece in progress.reader.push(&token.text) {
                    write(delta(piece), logprobs.take(), None);
                }
                if logprobs.is_some() {
                    write(json!({"content": ""}), logprobs, None);
                }
            }
            Event::Finished(finished) => {
                for piece in progress.reader.finish() {
                    write(delta(piece), None, None);
                }
                write(json!({}), None, Some(progress.reader.reason(finished.reason)));
            }
            Event::Started(_) | Event::Prompt(_) | Event::Embedding(_) | Event::Failed(_) => {}
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
