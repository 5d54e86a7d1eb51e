//! A request with a JSON body, read within its limits and ready to be checked.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{FromRequest, Request},
    http::HeaderMap,
};

use super::{app::App, error::ApiError, json, observe::Permit, validate::Context};

/// A request whose body has arrived.
pub struct Incoming {
    /// The server's state.
    pub app: Arc<App>,
    headers: HeaderMap,
    body: Vec<u8>,
    arrived: Instant,
    permit: Option<Permit>,
}

impl FromRequest<Arc<App>> for Incoming {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let arrived = Instant::now();
        let (mut parts, body) = request.into_parts();
        let permit = parts.extensions.remove::<Permit>();
        let limits = &app.limits;
        let body = json::read(&parts.headers, body, limits.max_body, limits.body_timeout).await?;
        Ok(Self { app: app.clone(), headers: parts.headers, body, arrived, permit })
    }
}

impl Incoming {
    /// Runs a check of `validate` on a thread of its own: parsing, templates and tokenising take
    /// as long as the body is large, and the reactor must not wait for them.
    pub async fn check<T: Send + 'static>(
        &mut self,
        check: fn(&Context<'_>, &[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let (app, headers) = (self.app.clone(), std::mem::take(&mut self.headers));
        let (body, arrived) = (std::mem::take(&mut self.body), self.arrived);
        let permit = self.permit.take();
        let checking = move || {
            // Held until this is done, whether or not the client has gone by then.
            let _permit = permit;
            let served = app.served()?;
            check(&Context { served, limits: &app.limits, headers: &headers, arrived }, &body)
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
