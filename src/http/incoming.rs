//! A request with a JSON body, read within its limits and ready to be checked.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{
        HeaderMap,
        header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use futures::{FutureExt, StreamExt};

use super::{
    app::{App, Progress},
    bodies::{BodyMemory, HeldBody},
    error::{ApiError, shorten},
    keys::Key,
    request::{Context, Deadline, model, timeout},
    trace::Trace,
};
use crate::{config::RequestLimits, engine::Client};

/// Bytes of an oversized body that are read and thrown away, so that the client hears the answer
/// instead of a broken connection.
const DISCARD: u64 = 64 << 20;
/// Bytes for which a client has the time of the body time-out.
const PROGRESS: u64 = 64 << 10;

/// A request whose body has arrived.
pub struct Incoming {
    app: Arc<App>,
    headers: HeaderMap,
    body: Arc<HeldBody>,
    arrived: Instant,
    place: Progress,
    client: Client,
    key: Option<Arc<Key>>,
    trace: Trace,
}

impl FromRequest<Arc<App>> for Incoming {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let arrived = Instant::now();
        let (mut parts, body) = request.into_parts();
        let place = parts.extensions.remove::<Progress>().unwrap_or_default();
        let client = parts.extensions.remove::<Client>().unwrap_or_default();
        let key = parts.extensions.remove::<Option<Arc<Key>>>().flatten();
        let trace = parts.extensions.remove::<Trace>().unwrap_or_default();
        check_headers(&parts.headers, app.limits.max_body)?;
        let body = Arc::new(collect(body, app).await?);
        place.take(app, &client, key.as_deref())?;
        let (app, headers) = (app.clone(), parts.headers);
        Ok(Self { app, headers, body, arrived, place, client, key, trace })
    }
}

impl Incoming {
    /// Runs a check of [`super::request`] on a worker's thread: parsing, templates and tokenising
    /// take as long as the body is large, and the reactor must not wait for them.
    pub async fn check<T: Send + 'static>(
        self,
        check: fn(&Context<'_>, &[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let worker = self.app.checks.worker(&self.client, self.body.bytes().len());
        tokio::pin!(worker);
        let worker = match worker.as_mut().now_or_never() {
            Some(worker) => worker,
            None => {
                let deadline = self.deadline().await;
                deadline.keep(worker).await?
            }
        };
        let checking = move || {
            let _worker = worker;
            let Self { app, headers, body, arrived, place, client, key, trace } = self;
            // Held until this is done, whether or not the client has gone by then.
            let _place = place;
            // Who asks for no soup by name gets the first one, as does a body that is not right.
            let model = if app.soups.is_single() { None } else { model::asked(body.bytes()) };
            let served = app.served(model.as_deref())?;
            let (served, limits, headers) = (&served, &app.limits, &headers);
            let context = Context { served, limits, headers, arrived, client, key, trace };
            check(&context, body.bytes())
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

impl Incoming {
    /// The deadline that the request gives itself: known before it is checked, as it may have to wait
    /// for that.
    async fn deadline(&self) -> Deadline {
        let (body, longest) = (self.body.clone(), self.app.limits.request_timeout);
        let asked = tokio::task::spawn_blocking(move || timeout::asked(body.bytes(), longest));
        Deadline::after(self.arrived, asked.await.unwrap_or(longest))
    }
}

/// Refuses a request whose headers say that its body is no JSON, or far larger than `limit` bytes.
fn check_headers(headers: &HeaderMap, limit: u64) -> Result<(), ApiError> {
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
    Ok(())
}

/// Reads a body within its size, its time and the memory for bodies. One that is refused is read to
/// its end all the same, within bounds, so that the client hears why.
async fn collect(body: Body, app: &App) -> Result<HeldBody, ApiError> {
    let limit = app.limits.max_body;
    let (mut held, mut refused, mut total) = (app.bodies.body(), None, 0u64);
    let begun = Instant::now();
    let mut stream = body.into_data_stream();
    loop {
        let deadline = progress_deadline(begun, total, &app.limits);
        let chunk = match tokio::time::timeout_at(deadline.into(), stream.next()).await {
            Ok(None) => break,
            Ok(Some(chunk)) => chunk.map_err(|error| ApiError::BodyRead(error.to_string()))?,
            Err(_) => {
                let seconds = app.limits.body_timeout.as_secs_f64();
                return Err(ApiError::BodyTimeout { seconds });
            }
        };
        total = total.saturating_add(chunk.len() as u64);
        if total > limit {
            refused = Some(ApiError::TooLarge { limit });
        } else if refused.is_none() && held.push(&chunk).is_err() {
            refused = Some(no_memory(&app.bodies));
        }
        if refused.is_some() {
            held = app.bodies.body();
            if total > limit.saturating_add(DISCARD) {
                break;
            }
        }
    }
    refused.map_or(Ok(held), Err)
}

/// When the next bytes of a body must be there: a body gets its time-out for each [`PROGRESS`]
/// bytes, and at most the time of a whole request.
fn progress_deadline(begun: Instant, total: u64, limits: &RequestLimits) -> Instant {
    let parts = u32::try_from(1 + total / PROGRESS).unwrap_or(u32::MAX);
    let time = limits.body_timeout.saturating_mul(parts);
    begun + time.min(limits.request_timeout.max(limits.body_timeout))
}

fn no_memory(memory: &BodyMemory) -> ApiError {
    ApiError::Overloaded {
        message: format!("large request bodies hold {} bytes, the limit", memory.bytes()),
        retry_after: 1,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::ServeOptions;

    #[test]
    fn a_body_has_its_time_again_for_each_part_of_it() {
        let soup = Some("s".into());
        let options = ServeOptions { soup, body_timeout: Some(30.0), ..Default::default() };
        let limits = options.check().unwrap().limits;
        let begun = Instant::now();
        for (total, seconds) in
            [(0, 30), (65_535, 30), (65_536, 60), (1 << 20, 17 * 30), (1 << 30, 600)]
        {
            let time = progress_deadline(begun, total, &limits) - begun;
            assert_eq!(time, Duration::from_secs(seconds), "{total} bytes");
        }
    }
}
