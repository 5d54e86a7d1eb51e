//! A blocking HTTP client whose requests are built step by step.

use std::{
    io::{self, Read},
    time::Duration,
};

use serde_json::Value;
use ureq::{
    Agent, Body, BodyReader,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, request, response::Parts},
    tls::{Certificate, RootCerts, TlsConfig},
};

/// Keeps connections open between requests.
pub struct Client(Agent);

impl Client {
    /// A client that gives an answer that long.
    pub fn new(patience: Duration) -> Self {
        Self::with(patience, TlsConfig::default())
    }

    /// A client that trusts the holder of a certificate, and nobody else.
    pub fn trusting(patience: Duration, certificate: &[u8]) -> Self {
        let certificate = Certificate::from_pem(certificate).unwrap();
        let roots = RootCerts::from(vec![certificate]);
        Self::with(patience, TlsConfig::builder().root_certs(roots).build())
    }

    fn with(patience: Duration, tls: TlsConfig) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(patience))
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .tls_config(tls)
            .build();
        Self(config.into())
    }

    pub fn get(&self, url: impl AsRef<str>) -> Request<'_> {
        self.request(Method::GET, url)
    }

    pub fn post(&self, url: impl AsRef<str>) -> Request<'_> {
        self.request(Method::POST, url)
    }

    pub fn request(&self, method: Method, url: impl AsRef<str>) -> Request<'_> {
        let head = request::Builder::new().method(method).uri(url.as_ref());
        Request { agent: &self.0, head, body: Vec::new() }
    }
}

pub struct Request<'a> {
    agent: &'a Agent,
    head: request::Builder,
    body: Vec<u8>,
}

impl Request<'_> {
    pub fn header<V>(self, name: &str, value: V) -> Self
    where
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<ureq::http::Error>,
    {
        let name = name.parse::<HeaderName>().unwrap();
        Self { head: self.head.header(name, value), ..self }
    }

    pub fn bearer_auth(self, key: &str) -> Self {
        self.header("authorization", format!("Bearer {key}"))
    }

    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub fn send(self) -> Result<Response, ureq::Error> {
        let response = match self.body.is_empty() {
            true => self.agent.run(self.head.body(())?)?,
            false => self.agent.run(self.head.body(self.body)?)?,
        };
        let (head, body) = response.into_parts();
        Ok(Response { head, body: Body::into_reader(body) })
    }
}

/// An answer whose body is read as it comes.
pub struct Response {
    head: Parts,
    body: BodyReader<'static>,
}

impl Response {
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    pub fn text(mut self) -> io::Result<String> {
        let mut text = String::new();
        self.body.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Read for Response {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.body.read(buffer)
    }
}
