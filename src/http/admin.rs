//! Routes about the server and the soup rather than for generating.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    app::App,
    error::ApiError,
    incoming::Incoming,
    json::Fields,
    preference::Solved,
    prompt,
    validate::{self, Context},
};

/// `GET /health`: the process answers.
pub async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /ready`: the soup is loaded and new work is taken.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.draining() {
        return Err(ApiError::Draining);
    }
    let served = app.served()?;
    Ok(Json(json!({"status": "ready", "soup": served.name})))
}

/// `GET /metrics`: Prometheus' text format.
pub async fn metrics(State(app): State<Arc<App>>) -> Response {
    if let Ok(served) = app.served() {
        let (stats, telemetry) = (served.engine.stats(), &app.telemetry);
        telemetry.running.set(stats.running as f64);
        telemetry.waiting.set(stats.waiting as f64);
        telemetry.kv_usage.set(stats.kv_used as f64 / stats.kv_blocks.max(1) as f64);
        telemetry.prompt_tokens.absolute(stats.prompt_tokens);
        telemetry.generated_tokens.absolute(stats.generated_tokens);
    }
    let format = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (StatusCode::OK, format, app.telemetry.render()).into_response()
}

/// `GET /v1/soup`.
pub async fn soup(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(app.served()?.description.clone()))
}

/// `POST /v1/solve`: μ → λ → c without generating.
pub async fn solve(mut request: Incoming) -> Result<Json<Solved>, ApiError> {
    let solution = request.check(validate::solve_only).await?;
    Ok(Json(Solved::new(&request.app.served()?.menu, &solution)))
}

/// `POST /tokenize`: the tokens of a prompt or of a conversation under its template.
pub async fn tokenize(mut request: Incoming) -> Result<Json<Value>, ApiError> {
    let (ids, context) = request.check(tokens).await?;
    Ok(Json(json!({"count": ids.len(), "context": context, "tokens": ids})))
}

fn tokens(context: &Context<'_>, body: &[u8]) -> Result<(Vec<u32>, usize), ApiError> {
    let mut fields = Fields::parse(body)?;
    let special = fields.flag("add_special")?.unwrap_or(true);
    let prompt = match (fields.text("prompt")?, fields.take("messages")) {
        // Unlike a prompt to be continued, the empty text has tokens to tell: none.
        (Some(text), None) => context.served.tokenizer.encode(&text, special).map_err(|error| {
            ApiError::Value { param: "prompt".into(), message: format!("prompt: {error}") }
        })?,
        (None, Some(messages)) => prompt::chat(context.served, messages)?.ids,
        (given, _) => {
            let got = if given.is_some() { "given beside messages" } else { "absent" };
            return Err(ApiError::value("prompt", got, "either prompt or messages"));
        }
    };
    fields.finish()?;
    Ok((prompt, context.served.context()))
}

/// `POST /detokenize`: the text of token ids.
pub async fn detokenize(mut request: Incoming) -> Result<Json<Value>, ApiError> {
    let text = request.check(text).await?;
    Ok(Json(json!({"text": text})))
}

fn text(context: &Context<'_>, body: &[u8]) -> Result<String, ApiError> {
    let mut fields = Fields::parse(body)?;
    let tokens = fields
        .list("tokens")?
        .ok_or_else(|| ApiError::value("tokens", "absent", "a list of token ids"))?;
    let skip_special = fields.flag("skip_special")?.unwrap_or(false);
    fields.finish()?;
    if tokens.is_empty() {
        return Ok(String::new());
    }
    let prompt = prompt::ids(context.served, "tokens", &tokens)?;
    Ok(context.served.tokenizer.decode(&prompt.ids, skip_special))
}
