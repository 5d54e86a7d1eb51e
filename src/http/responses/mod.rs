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
    calls,
    error::ApiError,
    incoming::Incoming,
    pieces,
    request::responses,
    run::{Run, collect},
};

/// Answers an input.
pub async fn handle(State(app): State<Arc<App>>, request: Incoming) -> Result<Response, ApiError> {
    let (checked, repeated) = request.check(responses::responses).await?;
    let (stream, tools) = (checked.stream, checked.calls.clone());
    let envelope = Envelope::new(checked.model.clone(), repeated);
    let mut run = Run::start(app, checked).await?;
    if stream {
        return Ok(pieces::respond(run, tools.as_ref(), Events::new(envelope)));
    }
    let choice = collect(&mut run).await?.pop().unwrap_or_default();
    let spoken = calls::read(&choice, tools.as_ref());
    let mut output = Vec::new();
    if !spoken.text.is_empty() || spoken.calls.is_empty() {
        output.push(message(&calls::id("msg_"), &spoken.text, "completed"));
    }
    output.extend(
        spoken.calls.iter().map(|call| function_call(&calls::id("fc_"), call, "completed")),
    );
    Ok(Json(envelope.complete(&run, choice.reason, output)).into_response())
}
