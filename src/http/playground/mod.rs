//! `GET /`: a page to try the soup with, in one file that loads nothing from elsewhere.

use std::sync::LazyLock;

use axum::{
    http::{HeaderName, HeaderValue},
    response::{Html, IntoResponse},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");
/// One module; each file uses what stands in those before it, and calls what stands behind.
const SCRIPT: &str = concat!(
    include_str!("dom.js"),
    include_str!("api.js"),
    include_str!("simplex.js"),
    include_str!("markdown.js"),
    include_str!("state.js"),
    include_str!("dial.js"),
    include_str!("expectation.js"),
    include_str!("turns.js"),
    include_str!("code.js"),
    include_str!("main.js"),
);

static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page.html").replace("{{style}}", STYLE).replace("{{script}}", SCRIPT)
});

/// This style, this script and requests to this server, nothing else. No text becomes markup: the
/// browser refuses `innerHTML` and its like.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// The page.
pub async fn page() -> impl IntoResponse {
    let policy = HeaderValue::from_static(&POLICY);
    ([(HeaderName::from_static("content-security-policy"), policy)], Html(PAGE.as_str()))
}
