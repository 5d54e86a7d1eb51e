//! Requests to a hub: its address, the user's token, ranges of a file.

use std::{
    env, fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::Value;
use ureq::{
    Agent, Body,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Response, StatusCode, Uri, header},
    tls::{RootCerts, TlsConfig},
};

/// The public hub.
const HUB: &str = "https://huggingface.co";
/// Pauses before a request is sent again after a failure that may pass.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest wait for the next bytes of an answer.
const STALL: Duration = Duration::from_secs(60);
/// Redirects of one request that are followed.
const REDIRECTS: u32 = 10;
/// Largest answer that is read as a whole, in bytes.
const MAX_JSON: u64 = 64 << 20;
/// Characters of an answer that an error quotes.
const SAID: usize = 200;

/// What sends requests and follows so many redirects of one. Proxies come from the environment,
/// trusted certificates from the system.
pub fn agent(redirects: u32) -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(redirects)
        // Contents come from other hosts, which must not see the token.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .user_agent(concat!("ladle/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(STALL))
        .build()
        .into()
}

/// A request that failed.
#[derive(Debug)]
pub struct Failure {
    reason: String,
    /// Sending the request again may help.
    transient: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Failure {
    /// A failure that another request would meet again.
    pub fn lasting(reason: String) -> Self {
        Self { reason, transient: false }
    }

    /// A connection that broke while an answer was read.
    pub fn broken(url: &str, error: &io::Error) -> Self {
        Self { reason: format!("{url}: {error}"), transient: true }
    }

    fn network(url: &str, error: &ureq::Error) -> Self {
        let transient = matches!(
            error,
            ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::HostNotFound
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)
        );
        Self { reason: format!("{url}: {error}"), transient }
    }

    fn status(url: &str, status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        // The hub says in a header what its page says at length.
        let told = headers.get("x-error-message").and_then(|value| value.to_str().ok());
        let said: String = told.unwrap_or(body).trim().chars().take(SAID).collect();
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "; a gated or private model needs HF_TOKEN"
            }
            StatusCode::NOT_FOUND => "; there is no such model, revision or file",
            _ => "",
        };
        let transient = status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        let said = if said.is_empty() { said } else { format!(" ({said})") };
        Self { reason: format!("{url}: {status}{said}{hint}"), transient }
    }
}

/// Sends requests to one hub.
pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    /// Prepares requests to `endpoint`, else `HF_ENDPOINT`, else the public hub, with the user's
    /// token. Nothing is sent yet.
    pub fn new(endpoint: Option<&str>) -> Result<Self, Failure> {
        let variable = || env::var("HF_ENDPOINT").ok().filter(|value| !value.is_empty());
        let endpoint = endpoint.map(str::to_owned).or_else(variable);
        let endpoint = endpoint.unwrap_or_else(|| HUB.to_owned());
        let address = endpoint.parse::<Uri>().ok().filter(|uri| {
            uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https"))
        });
        if address.is_none() {
            let expected = "the address of a hub, such as https://huggingface.co";
            return Err(Failure::lasting(format!(
                "HF_ENDPOINT is {endpoint:?}, expected {expected}"
            )));
        }
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Self { agent: agent(REDIRECTS), endpoint, token: token() })
    }

    /// The address of a path on the hub.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.endpoint)
    }

    /// A JSON document, and the address of the one that continues it.
    pub fn json(&self, url: &str) -> Result<(Value, Option<String>), Failure> {
        patiently(|| {
            let response = self.get(url, None)?;
            let next = next_page(response.headers());
            let body = response.into_body().into_with_config().limit(MAX_JSON).read_to_vec();
            let body = body.map_err(|e| Failure::network(url, &e))?;
            let document = serde_json::from_slice(&body);
            Ok((document.map_err(|e| Failure::lasting(format!("{url}: not JSON: {e}")))?, next))
        })
    }

    /// A reader of bytes `start..end` of a file; the answer's head says that it holds these bytes.
    pub fn range(&self, url: &str, start: u64, end: u64) -> Result<impl Read + use<>, Failure> {
        let response = self.get(url, Some(format!("bytes={start}-{}", end.saturating_sub(1))))?;
        let headers = response.headers();
        let number = |text: &str| text.parse::<u64>().ok();
        let first = headers.get(header::CONTENT_RANGE).and_then(|value| {
            number(value.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0)
        });
        let length = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| number(value.to_str().ok()?))
            .unwrap_or(end - start);
        let whole = response.status() != StatusCode::PARTIAL_CONTENT && start > 0;
        if whole || first.is_some_and(|first| first != start) || length != end - start {
            let at = first.unwrap_or(if whole { 0 } else { start });
            return Err(Failure::lasting(format!(
                "{url}: asked for bytes {start} to {end}, got {length} bytes from {at} on"
            )));
        }
        Ok(response.into_body().into_reader())
    }

    fn get(&self, url: &str, range: Option<String>) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let response = request.call().map_err(|e| Failure::network(url, &e))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status.is_success() {
            return Ok(response);
        }
        let mut said = Vec::new();
        // What cannot be read of an error is left out of the message.
        let _ = response.into_body().into_reader().take(4096).read_to_end(&mut said);
        Err(Failure::status(url, status, &headers, &String::from_utf8_lossy(&said)))
    }

    /// Whether an address, which an answer may have named, is on the hub itself.
    fn is_own(&self, url: &str) -> bool {
        url.strip_prefix(&self.endpoint).is_some_and(|path| path.starts_with('/'))
    }
}

/// Sends a request until it is answered, fails for good, or has failed once after every pause.
pub fn patiently<T>(mut request: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    for pause in PAUSES {
        match request() {
            Err(failure) if failure.transient => thread::sleep(pause),
            other => return other,
        }
    }
    request().map_err(|failure| match failure.transient {
        true => Failure {
            reason: format!(
                "{failure}; what was downloaded is kept, run the command again to resume"
            ),
            ..failure
        },
        false => failure,
    })
}

/// `<address>; rel="next"` of a `Link` header.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(header::LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// The user's token, from where the hub's own tools take it: `HF_TOKEN`, the file `HF_TOKEN_PATH`,
/// or `token` in `HF_HOME`; none with `HF_HUB_DISABLE_IMPLICIT_TOKEN`.
fn token() -> Option<String> {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let read = |path: &Path| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    };
    let home = || {
        let cache = || {
            let home = || Some(PathBuf::from(set("HOME")?).join(".cache"));
            set("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)
        };
        let home = set("HF_HOME").map(PathBuf::from);
        home.or_else(|| Some(cache()?.join("huggingface")))
    };
    set("HF_TOKEN")
        .or_else(|| read(Path::new(&set("HF_TOKEN_PATH")?)))
        .or_else(|| read(&home()?.join("token")))
}
