//! A request with a JSON body, read within its limits and ready to be checked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use futures::StreamExt;

use super::{
    app::{App, Permit},
    error::{ApiError, shorten},
    keys::Key,
    request::Context,
};
use crate::engine::Client;

/// Bytes of an oversized body that are read and thrown away, so that the client hears the answer
/// instead of a broken connection.
const DISCARD: u64 = 64 << 20;

/// A request whose body has arrived.
pub struct Incoming {
    app: Arc<App>,
    headers: HeaderMap,
    body: Vec<u8>,
    arrived: Instant,
    permit: Option<Permit>,
    client: Client,
    key: Option<Arc<Key>>,
}

impl FromRequest<Arc<App>> for Incoming {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let arrived = Instant::now();
        let (mut parts, body) = request.into_parts();
        let permit = parts.extensions.remove::<Permit>();
        let client = parts.extensions.remove::<Client>().unwrap_or_default();
        let key = parts.extensions.remove::<Option<Arc<Key>>>().flatten();
        let body = read(&parts.headers, body, app.limits.max_body, app.limits.body_timeout).await?;
        Ok(Self { app: app.clone(), headers: parts.headers, body, arrived, permit, client, key })
    }
}

impl Incoming {
    /// Runs a check of [`super::request`] on a thread of its own: parsing, templates and tokenising
    /// take as long as the body is large, and the reactor must not wait for them.
    pub async fn check<T: Send + 'static>(
        self,
        check: fn(&Context<'_>, &[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let checking = move || {
            let Self { app, headers, body, arrived, permit, client, key } = self;
            // Held until this is done, whether or not the client has gone by then.
            let _permit = permit;
            let served = app.served()?;
            let (served, limits, headers) = (&served, &app.limits, &headers);
            check(&Context { served, limits, headers, arrived, client, key }, &body)
        };
        match tokio::task::spawn_blocking(checking).await {
            Ok(checked) => checked,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(ApiError::Draining),
            },
        }
    }
}

/// Reads a JSON body of at most `limit` bytes within `timeout`.
async fn read(
    headers: &HeaderMap,
    body: Body,
    limit: u64,
    timeout: Duration,
) -> Result<Vec<u8>, ApiError> {
    let declared = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence =
        declared.as_deref().unwrap_or("absent").split(';').next().unwrap_or_default().trim();
    // A browser sends application/json across origins only after asking, so this also keeps foreign
    // pages from using a server on the visitor's own machine.
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::ContentType { got: shorten(essence) });
    }
    for coding in headers.get_all(CONTENT_ENCODING) {
        let coding = String::from_utf8_lossy(coding.as_bytes());
        let mut codings = coding.split(',').map(str::trim).filter(|coding| !coding.is_empty());
        if codings.any(|coding| !coding.eq_ignore_ascii_case("identity")) {
            return Err(ApiError::ContentEncoding { got: shorten(&coding) });
        }
    }
    let length =
        headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit.saturating_add(DISCARD)) {
        return Err(ApiError::TooLarge { limit });
    }
    let expired = |_| ApiError::BodyTimeout { seconds: timeout.as_secs_f64() };
    tokio::time::timeout(timeout, collect(body, limit)).await.map_err(expired)?
}

async fn collect(body: Body, limit: u64) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut total) = (Vec::new(), 0u64);
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| ApiError::BodyRead(error.to_string()))?;
        total = total.saturating_add(chunk.len() as u64);
        if total <= limit {
            bytes.extend_from_slice(&chunk);
        } else if total > limit.saturating_add(DISCARD) {
            break;
        }
    }
    if total > limit { Err(ApiError::TooLarge { limit }) } else { Ok(bytes) }
}
