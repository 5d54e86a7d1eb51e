//! A client of HTTP servers that may be busy, restarted or gone.

use std::{
    fmt, io,
    io::Read,
    thread,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent, Body,
    http::{Method, Request, Response, StatusCode, Uri, header},
    tls::{RootCerts, TlsConfig},
};

/// Most bytes of an answer.
const ANSWER_LIMIT: u64 = 64 << 20;
/// Longest wait for a server that says when to come back.
const PATIENCE: Duration = Duration::from_secs(600);

/// How requests are sent.
pub struct Client {
    agent: Agent,
    token: Option<String>,
    retries: u32,
    backoff: Duration,
}

/// A failed attempt.
enum Failure {
    /// To be repeated, after the time that the server names.
    Again(String, Option<Duration>),
    Final(String),
}

impl Client {
    /// A client that gives a request up after `timeout`, and sends it again up to `retries` times:
    /// first after `backoff`, then after twice as long, and so on.
    pub fn new(timeout: Duration, retries: u32, backoff: Duration, token: Option<String>) -> Self {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .build()
            .into();
        Self { agent, token, retries, backoff }
    }

    /// Refuses what is no URL of a server.
    pub fn check(url: &str) -> Result<(), String> {
        let parsed = url.parse::<Uri>().map_err(|error| format!("{url}: {error}"))?;
        match (parsed.host(), parsed.scheme_str()) {
            (Some(_), Some("http" | "https")) => Ok(()),
            _ => Err(format!("{url}: expected http:// or https://")),
        }
    }

    /// The answer to `GET url`; an error names the URL.
    pub fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        self.ask(url, None::<&()>)
    }

    /// The answer to `POST url`; an error names the URL.
    pub fn post<T: DeserializeOwned>(&self, url: &str, body: &impl Serialize) -> Result<T, String> {
        self.ask(url, Some(body))
    }

    /// A failed connection, a timeout, 429 and 5xx are tried again. A server that says when to come
    /// back is waited for beyond the attempts.
    fn ask<T: DeserializeOwned>(
        &self,
        url: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, String> {
        let begun = Instant::now();
        let (mut attempts, mut wait) = (0, self.backoff);
        loop {
            let (reason, told) = match self.attempt(url, body) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(reason)) => return Err(format!("{url}: {reason}")),
                Err(Failure::Again(reason, told)) => (reason, told),
            };
            if let Some(told) = told.filter(|told| begun.elapsed() + *told < PATIENCE) {
                tracing::debug!(url, reason, "coming back as told");
                thread::sleep(told.max(self.backoff));
                continue;
            }
            attempts += 1;
            if attempts > self.retries {
                return Err(format!("{url}: {reason} ({attempts} attempts)"));
            }
            tracing::warn!(url, reason, wait = wait.as_secs_f64(), "asking again");
            thread::sleep(wait);
            wait = wait.saturating_mul(2);
        }
    }

    fn attempt<T: DeserializeOwned>(
        &self,
        url: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let unfit = |error: &dyn fmt::Display| Failure::Final(error.to_string());
        let sent = match body {
            None => self.agent.run(request.body(()).map_err(|error| unfit(&error))?),
            Some(body) => {
                let body = serde_json::to_vec(body).map_err(|error| unfit(&error))?;
                let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
                self.agent.run(request.map_err(|error| unfit(&error))?)
            }
        };
        let again = |reason: &dyn fmt::Display| Failure::Again(reason.to_string(), None);
        let response = sent.map_err(|error| again(&error))?;
        let (status, told) = (response.status(), retry_after(&response));
        let body = read(response).map_err(|error| again(&error))?;
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(Failure::Again(format!("{status}: {}", start(&body)), told));
        }
        if !status.is_success() {
            return Err(Failure::Final(format!("{status}: {}", start(&body))));
        }
        serde_json::from_slice(&body)
            .map_err(|e| Failure::Final(format!("{e} in the answer: {}", start(&body))))
    }
}

/// The seconds that a server asks to wait.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

fn read(response: Response<Body>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    response.into_body().into_reader().take(ANSWER_LIMIT).read_to_end(&mut body)?;
    Ok(body)
}

fn start(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(300).collect()
}
