//! `GET /`: a page to try the soup with, in one file that loads nothing from elsewhere.

use axum::{
    http::{HeaderName, HeaderValue},
    response::{Html, IntoResponse},
};

const PAGE: &str = include_str!("index.html");
/// The page's own style and script, and requests to this server; nothing else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub async fn page() -> impl IntoResponse {
    let policy =
        (HeaderName::from_static("content-security-policy"), HeaderValue::from_static(POLICY));
    ([policy], Html(PAGE))
}
