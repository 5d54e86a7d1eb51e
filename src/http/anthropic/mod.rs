//! Anthropic's API: `POST /v1/messages` and `POST /v1/messages/count_tokens`. What was solved stands
//! beside the standard fields in an object `ladle`. Errors have the one shape of this server.

mod message;
mod stream;

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use self::{
    message::{empty, stop_reason, usage},
    stream::Messages,
};
use super::{
    app::App,
    calls,
    error::ApiError,
    incoming::Incoming,
    pieces,
    request::anthropic,
    run::{Run, collect},
};

/// Answers a conversation.
pub async fn handle(State(app): State<Arc<App>>, request: Incoming) -> Result<Response, ApiError> {
    let checked = request.check(anthropic::messages).await?;
    let (stream, model, tools) = (checked.stream, checked.model.clone(), checked.calls.clone());
    let mut run = Run::start(app, checked).await?;
    if stream {
        return Ok(pieces::respond(run, tools.as_ref(), Messages::new(model)));
    }
    let choice = collect(&mut run).await?.pop().unwrap_or_default();
    let spoken = calls::read(&choice, tools.as_ref());
    let mut content = Vec::new();
    if !spoken.text.is_empty() || spoken.calls.is_empty() {
        content.push(json!({"type": "text", "text": spoken.text}));
    }
    for call in &spoken.calls {
        // A call that the limit on tokens cut off has no input yet.
        let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
    }
    let reason =
        choice.reason.map(|reason| stop_reason(reason, &choice.stop, !spoken.calls.is_empty()));
    let mut message = empty(&model);
    message["content"] = content.into();
    message["stop_reason"] = json!(reason);
    message["stop_sequence"] = json!(choice.stop);
    message["usage"] = usage(run.usage());
    message["ladle"] = json!(run.echo());
    Ok(Json(message).into_response())
}

/// `POST /v1/messages/count_tokens`.
pub async fn count_tokens(request: Incoming) -> Result<Json<Value>, ApiError> {
    let tokens = request.check(anthropic::count_tokens).await?;
    Ok(Json(json!({"input_tokens": tokens})))
}
