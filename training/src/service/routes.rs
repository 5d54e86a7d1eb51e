//! Paths, answers, and the server's life.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, MatchedPath, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use ladle::{config::ConnectionLimits, http::serve_connections};
use serde_json::{Map, Value, json};
use tokio::{net::TcpListener, task::spawn_blocking};

use super::{Scored, Service, refusal::Refusal};

type Result<T> = std::result::Result<T, Refusal>;

/// Ranks of a large run post at once, and OpenRLHF opens a connection for every response.
const CONNECTIONS: usize = 4096;
const LIMITS: ConnectionLimits = ConnectionLimits {
    most: CONNECTIONS,
    most_of_client: CONNECTIONS,
    header_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(600),
    write_timeout: Duration::from_secs(60),
};
/// For the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Answers on `listener` until `stop`; requests that have begun are finished.
pub async fn serve(service: Service, listener: TcpListener, stop: impl Future<Output = ()>) {
    let service = Arc::new(service);
    let routes = Router::new()
        .route("/rewards", post(rewards))
        .route("/get_reward", post(get_reward))
        .route("/state", get(state))
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .route(
            "/metrics",
            get(async |State(service): State<Arc<Service>>| service.metrics.render()),
        )
        .fallback(async || Refusal::Path)
        .method_not_allowed_fallback(async || Refusal::Method)
        .layer(DefaultBodyLimit::max(service.bytes))
        .layer(middleware::from_fn_with_state(service.clone(), observe))
        .with_state(service);
    serve_connections(listener, routes, LIMITS, None, stop).await;
}

/// The general form: every objective of every row.
async fn rewards(State(service): State<Arc<Service>>, request: Request) -> Result<Json<Value>> {
    let body = read(request).await?;
    on_worker(move || {
        let asked = service.accepts.general(&body)?;
        let Scored { rows, counted, weights, condition } = service.score(&asked)?;
        Ok(Json(json!({
            "backbone": service.backbone,
            "step": asked.step,
            "part": asked.part,
            "counted": counted,
            "objectives": service.accepts.objectives,
            "weights": weights,
            "beta": service.beta,
            "condition": condition,
            "rows": rows,
        })))
    })
    .await
}

/// OpenRLHF's form: the weighted sums, and what they are made of as logs.
async fn get_reward(State(service): State<Arc<Service>>, request: Request) -> Result<Json<Value>> {
    let body = read(request).await?;
    on_worker(move || {
        let asked = service.accepts.openrlhf(&body)?;
        let Scored { rows, weights, .. } = service.score(&asked)?;
        let sums: Vec<f64> = rows.iter().map(|row| row.reward).collect();
        let mut logs = Map::new();
        for (j, (name, weight)) in service.accepts.objectives.iter().zip(weights).enumerate() {
            let raw: Vec<_> = rows.iter().map(|row| row.raw[j]).collect();
            // OpenRLHF makes tensors of its logs, which have no place for null.
            if raw.iter().all(Option::is_some) {
                logs.insert(format!("reward/{name}"), json!(raw));
            }
            logs.insert(format!("weight/{name}"), json!(vec![weight; rows.len()]));
        }
        Ok(Json(json!({ "rewards": sums, "scores": sums, "extra_logs": logs })))
    })
    .await
}

async fn state(State(service): State<Arc<Service>>) -> Result<Json<Value>> {
    on_worker(move || service.state().map(Json)).await
}

async fn read(request: Request) -> Result<Bytes> {
    let body = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await;
    match body {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(refused)) if refused.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Refusal::TooLarge)
        }
        Ok(Err(refused)) => Err(Refusal::Body(refused.body_text())),
        Err(_) => Err(Refusal::Body(format!("it was not there within {BODY_TIMEOUT:?}"))),
    }
}

/// Rewards compute, and ask servers of their own.
async fn on_worker<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.unwrap_or(Err(Refusal::Panicked))
}

async fn observe(
    State(service): State<Arc<Service>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let response = next.run(request).await;
    let route = path.as_ref().map_or("", |path| path.as_str());
    service.metrics.request(route, response.status().as_u16(), begun.elapsed());
    response
}
