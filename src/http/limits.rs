//! Who is let in: API key and rate of the client. A place among the requests in progress is taken
//! when the body is there.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::HeaderMap,
    middleware::Next,
    response::Response,
};

use super::{
    app::{App, Progress},
    auth,
    error::ApiError,
    keys::Key,
    rate::retry_after,
};
use crate::engine::Client;

/// The key that a request from `address` presents; `None` where the server asks for none.
pub fn key(app: &App, address: &Client, headers: &HeaderMap) -> Result<Option<Arc<Key>>, ApiError> {
    let checked = app.keys().check(headers);
    let right = checked.as_ref().ok().map(|key| key.as_ref().map(|key| key.name.as_str()));
    // Without a key nothing was guessed, and where none is asked for nothing can be.
    if auth::presents(headers) && right != Some(None) {
        app.failures.allow(address, right.flatten(), Instant::now())?;
    }
    checked
}

/// The layer around every route that makes the server work.
pub async fn admit(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.ip());
    let address = address.map_or(Client::Local, Client::at);
    let key = key(&app, &address, request.headers())?;
    if app.draining() {
        return Err(ApiError::Draining);
    }
    let client = match &key {
        Some(key) => {
            app.telemetry.key_request(&key.name);
            key.client()
        }
        None => address,
    };
    if let Some(limit) = app.limits.rate_limit {
        let admitted = app.requests.take(&client, 1, limit, Instant::now());
        admitted.map_err(|wait| ApiError::RateLimited { limit, retry_after: retry_after(wait) })?;
    }
    let place = Progress::default();
    request.extensions_mut().insert(place.clone());
    request.extensions_mut().insert(client);
    request.extensions_mut().insert(key);
    let mut response = next.run(request).await;
    response.extensions_mut().insert(place);
    Ok(response)
}
