//! Routes about the server and the soup rather than for generating.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Json,
    extract::{ConnectInfo, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    app::App, error::ApiError, incoming::Incoming, limits, request::native, served::Served,
};
use crate::{engine::Client, preference::Solved};

/// `GET /health`: the process answers.
pub async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /ready`: all soups are loaded, new work is taken and the engines make their steps. Probes ask
/// every few seconds, so that it is not is no news for the log.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, Response> {
    let readiness = || {
        if app.draining() {
            return Err(ApiError::Draining);
        }
        let soups = app.soups.served()?;
        let first = app.served(None)?;
        match soups.iter().find_map(|served| served.engine.ailment(app.step_timeout)) {
            Some(ailment) => Err(ApiError::Engine(ailment)),
            None => Ok(Json(json!({
                "status": "ready",
                "soup": first.name,
                "generation": first.generation,
            }))),
        }
    };
    readiness().map_err(ApiError::answer)
}

/// `GET /metrics`: Prometheus' text format.
pub async fn metrics(
    State(app): State<Arc<App>>,
    from: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let address = from.map_or(Client::Local, |Extension(from)| Client::at(from.ip()));
    if let Err(guessed @ ApiError::WrongKeys { .. }) = limits::key(&app, &address, &headers) {
        return Err(guessed);
    }
    app.keys().check_admin(&headers)?;
    Ok(open_metrics(State(app)).await)
}

/// The same where whoever can reach the address may read them.
pub async fn open_metrics(State(app): State<Arc<App>>) -> Response {
    app.telemetry.ready.set(f64::from(u8::from(ready(State(app.clone())).await.is_ok())));
    if let Ok(first) = app.served(None) {
        super::metrics::engine_stats(&app.telemetry, &app.soups.stats());
        app.telemetry.generation.set(first.generation as f64);
        app.telemetry.draining.set(app.soups.draining().len() as f64);
    }
    for soup in app.soups.all() {
        if let Some(served) = soup.current() {
            let stats = soup.stats();
            app.telemetry.sequences(&served.name, stats.running, stats.waiting);
        }
    }
    let format = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (StatusCode::OK, format, app.telemetry.render()).into_response()
}

/// What a request without a body asks about.
#[derive(Deserialize)]
pub struct About {
    /// The id of a model of the soup; `None`: the first soup.
    model: Option<String>,
}

/// `GET /v1/soup`.
pub async fn soup(
    State(app): State<Arc<App>>,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(asked(&app, about)?.description.clone()))
}

fn asked(app: &App, about: Result<Query<About>, QueryRejection>) -> Result<Arc<Served>, ApiError> {
    let wrong = |error: QueryRejection| {
        ApiError::value("model", error.body_text(), "the id of a model, once")
    };
    app.served(about.map_err(wrong)?.model.as_deref())
}

/// `POST /v1/solve`: μ → λ → c without generating.
pub async fn solve(request: Incoming) -> Result<Json<Solved>, ApiError> {
    Ok(Json(request.check(native::solve_only).await?))
}

/// `GET /tokenizer_info`: the model's `tokenizer_config.json` with its chat template.
pub async fn tokenizer_info(
    State(app): State<Arc<App>>,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(asked(&app, about)?.tokenizer_info.clone()))
}

/// `POST /tokenize`: the tokens of a prompt or of a conversation under its template.
pub async fn tokenize(request: Incoming) -> Result<Json<Value>, ApiError> {
    let (ids, context) = request.check(native::tokenize).await?;
    let count = ids.len();
    Ok(Json(json!({"count": count, "context": context, "max_model_len": context, "tokens": ids})))
}

/// `POST /detokenize`: the text of token ids.
pub async fn detokenize(request: Incoming) -> Result<Json<Value>, ApiError> {
    let text = request.check(native::detokenize).await?;
    Ok(Json(json!({"text": text, "prompt": text})))
}
