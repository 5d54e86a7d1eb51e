//! What `ladle chat` and `ladle generate` have in common: a running server, and the options of a
//! generation.

use std::{
    io::{self, BufRead, BufReader, Write},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::{Map, Value};
use ureq::Agent;

/// A running server.
#[derive(Debug, clap::Args)]
pub struct Server {
    /// Address of the server.
    #[arg(long, env = "LADLE_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Key for the server.
    #[arg(long, env = "LADLE_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

/// Options of a generation; the server's defaults stand for absent ones.
#[derive(Debug, clap::Args)]
pub struct Sampling {
    /// helpful=0.7,harmless=0.3, or 0.7,0.3, or the name of a preset.
    #[arg(long, short)]
    pub preference: Option<String>,
    /// Extrapolation: a number, or JSON by objective.
    #[arg(long, allow_hyphen_values = true)]
    alpha: Option<String>,
    /// Longest answer, tokens.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Divisor of the logits; 0 always takes the likeliest token.
    #[arg(long)]
    temperature: Option<f64>,
    /// Smallest set of likeliest tokens that reaches this probability.
    #[arg(long)]
    top_p: Option<f64>,
    /// Makes the answer reproducible.
    #[arg(long, allow_hyphen_values = true)]
    seed: Option<i64>,
}

impl Sampling {
    /// The fields of a request's body.
    pub fn body(&self) -> anyhow::Result<Map<String, Value>> {
        let mut body = Map::new();
        if let Some(text) = &self.alpha {
            let alpha = serde_json::from_str(text)
                .with_context(|| format!("alpha is {text:?}, expected a number or JSON"))?;
            body.insert("alpha".to_owned(), alpha);
        }
        for (name, value) in [
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("top_p", self.top_p.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
        ] {
            body.extend(value.map(|value| (name.to_owned(), value)));
        }
        Ok(body)
    }
}

impl Server {
    /// Posts a request whose answer is a stream, and gives the data of each event to `take`.
    pub fn stream(
        &self,
        path: &str,
        preference: Option<&str>,
        body: Map<String, Value>,
        mut take: impl FnMut(&str, Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let lines = BufReader::new(self.post(path, preference, body)?).lines();
        let (mut name, mut data) = (String::new(), String::new());
        for line in lines {
            let line = line.context("the connection broke before the answer was complete")?;
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = text.to_owned();
            } else if line.is_empty() && !data.is_empty() && data != "[DONE]" {
                let value: Value =
                    serde_json::from_str(&data).context("the server sent no JSON")?;
                if let Some(message) = value["error"]["message"].as_str() {
                    bail!("{message}");
                }
                take(&name, value)?;
                data.clear();
            }
        }
        Ok(())
    }

    /// Posts a request; its answer's body. An error of the server is told in its own words.
    pub fn post(
        &self,
        path: &str,
        preference: Option<&str>,
        body: Map<String, Value>,
    ) -> anyhow::Result<impl io::Read> {
        let config = Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let mut request = Agent::from(config).post(&url).header("content-type", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        if let Some(preference) = preference {
            request = request.header("x-preference", preference);
        }
        let answer = request.send(Value::from(body).to_string()).with_context(|| {
            format!("no server answers at {}; ladle serve starts one", self.url)
        })?;
        let status = answer.status();
        let mut body = answer.into_body();
        if status.is_success() {
            return Ok(body.into_reader());
        }
        let text = body.read_to_string().unwrap_or_default();
        let error: Value = serde_json::from_str(&text).unwrap_or_default();
        match error["error"]["message"].as_str() {
            Some(message) => bail!("{message}"),
            None => bail!("{url} answers with {status}"),
        }
    }
}

/// Writes text to standard output at once; false where nobody reads it any more.
pub fn show(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}
