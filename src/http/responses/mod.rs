//! OpenAI's `POST /v1/responses`. Nothing is stored: `store` is taken and has no effect, and no
//! response continues another. What was solved stands beside the standard fields in an object
//! `ladle`.

mod response;
mod stream;

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use self::{
    response::{Envelope, function_call, message},
    stream::Events,
};
use super::{
    app::App,
    calls::{self, Reader},
    error::ApiError,
    incoming::Incoming,
    request::responses,
    run::{Run, collect},
    stream as sse,
};

/// Answers an input.
pub async fn handle(State(app): State<Arc<App>>, request: Incoming) -> Result<Response, ApiError> {
    let (checked, repeated) = request.check(responses::responses).await?;
    let (stream, tools) = (checked.stream, checked.calls.clone());
    let envelope = Envelope::new(checked.model.clone(), repeated);
    let mut run = Run::start(app, checked).await?;
    if stream {
        return Ok(sse::respond(run, Events::new(envelope, Reader::new(tools.as_ref()))));
    }
    let choice = collect(&mut run).await?.pop().unwrap_or_default();
    let spoken = calls::read(&choice, tools.as_ref());
    let mut output = Vec::new();
    if !spoken.text.is_empty() || spoken.calls.is_empty() {
        output.push(message(&calls::id("msg"), &spoken.text, "completed"));
    }
    output
        .extend(spoken.calls.iter().map(|call| function_call(&calls::id("fc"), call, "completed")));
    Ok(Json(envelope.complete(&run, choice.reason, output)).into_response())
}
