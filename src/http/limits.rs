//! Who is let in: API key, rate of the client, requests in progress.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::Response,
};

use super::{
    app::{App, Permit},
    error::ApiError,
};
use crate::engine::Client;

/// The layer around every route that makes the server work.
pub async fn admit(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let key = app.keys().check(request.headers())?;
    if app.draining() {
        return Err(ApiError::Draining);
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.ip());
    let client = match (&key, address) {
        (Some(key), _) => Client::Key(key.name.as_str().into()),
        (None, Some(address)) => Client::at(address),
        (None, None) => Client::Local,
    };
    if let Some(rates) = &app.rates {
        rates.admit(&client, Instant::now()).map_err(|wait| ApiError::RateLimited {
            limit: rates.per_minute(),
            retry_after: wait.as_secs_f64().ceil() as u64,
        })?;
    }
    let permit = app.permits.clone().try_acquire_owned().map_err(|_| ApiError::Overloaded {
        message: format!("{} requests are in progress, the limit", app.limits.max_in_flight),
        retry_after: 1,
    })?;
    let permit = Permit(Arc::new(permit));
    request.extensions_mut().insert(permit.clone());
    request.extensions_mut().insert(client);
    request.extensions_mut().insert(key);
    let mut response = next.run(request).await;
    response.extensions_mut().insert(permit);
    Ok(response)
}
