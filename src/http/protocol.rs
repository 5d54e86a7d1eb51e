//! Errors that no request has: a head that is not HTTP, is too large or never comes to its end, and
//! connections beyond the limits.

use axum::http::StatusCode;

use super::error::ApiError;

/// An error as the last bytes of a connection.
pub fn last_words(error: &ApiError) -> Vec<u8> {
    let (class, body) = (error.class(), error.body().to_string());
    let status = class.status;
    let (code, reason) = (status.as_str(), status.canonical_reason().unwrap_or_default());
    let retry = error.retry_after().map(|seconds| format!("retry-after: {seconds}\r\n"));
    let head = format!(
        "HTTP/1.1 {code} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{}\
         connection: close\r\n\r\n",
        body.len(),
        retry.unwrap_or_default()
    );
    (head + &body).into_bytes()
}

/// What to send in the place of the bare error that the connection has for a head that it cannot
/// read; `None` for any other bytes. Every answer of a route carries a request id.
pub fn in_place_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let bare = bytes.strip_prefix(b"HTTP/1.1 4").filter(|_| bytes.ends_with(b"\r\n\r\n"))?;
    let text = std::str::from_utf8(bytes).ok().filter(|_| bare.len() < 512)?;
    if !text.contains("\r\ncontent-length: 0\r\n") || text.contains("\r\nx-request-id: ") {
        return None;
    }
    let status = StatusCode::from_bytes(text.as_bytes().get(9..12)?).ok()?;
    let error = match status {
        StatusCode::BAD_REQUEST => ApiError::Head,
        StatusCode::URI_TOO_LONG => ApiError::UriTooLong,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::HeadTooLarge,
        _ => return None,
    };
    Some(last_words(&error))
}
