//! The user's scorer behind HTTP.
//!
//! `POST url` with `{"samples": [{"prompt", "response", "finished", "references", "fields"}, …]}`;
//! the answer is `{"scores": [number, …]}`, one a sample, in order.

use super::{Range, Reward, RewardError, Sample};
use serde::{Deserialize, Serialize};
use std::{io::Read, time::Duration};
use ureq::{
    Agent,
    http::{StatusCode, Uri, header},
    tls::{RootCerts, TlsConfig},
};

/// Most bytes of an answer: a score takes some 20.
const ANSWER_LIMIT: u64 = 64 << 20;

/// Settings of the reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// URL of the scorer.
    pub url: String,
    /// Seconds until a request is given up.
    #[serde(default = "timeout")]
    pub timeout_s: f64,
    /// Further attempts after a failed connection, a timeout, 429 or 5xx.
    #[serde(default = "retries")]
    pub retries: u32,
    /// Seconds before the first further attempt; doubled before each next one.
    #[serde(default = "backoff")]
    pub backoff_s: f64,
    /// Samples a request.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Environment variable that holds a bearer token.
    #[serde(default)]
    pub token_env: Option<String>,
    /// Unit, for logs and reports.
    #[serde(default = "unit")]
    pub unit: String,
    /// Lowest and highest score; one outside is an error.
    #[serde(default)]
    pub range: Option<Range>,
}

fn timeout() -> f64 {
    30.0
}
fn retries() -> u32 {
    4
}
fn backoff() -> f64 {
    0.5
}
fn batch() -> usize {
    64
}
fn unit() -> String {
    "score".into()
}

pub struct HttpReward {
    name: String,
    config: HttpConfig,
    token: Option<String>,
    agent: Agent,
}

#[derive(Serialize)]
struct Question<'a> {
    samples: &'a [Sample],
}

#[derive(Deserialize)]
struct Answer {
    scores: Vec<Option<f64>>,
}

/// A failed attempt, to be repeated or not.
enum Attempt {
    Again(String),
    Final(String),
}

impl HttpReward {
    /// Checks the settings and makes the client, without sending a request.
    pub fn new(name: String, config: HttpConfig) -> Result<Self, RewardError> {
        let wrong = |reason: String| RewardError::Config { reward: name.clone(), reason };
        let seconds = |field: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| wrong(format!("{field} is {value}, expected seconds ≥ 0")))
        };
        let timeout = seconds("timeout_s", config.timeout_s)?;
        seconds("backoff_s", config.backoff_s)?;
        if config.batch == 0 {
            return Err(wrong("batch is 0, expected at least 1".into()));
        }
        let Range { low, high } = config.range.unwrap_or(Range::ANY);
        let ordered = low < high;
        if !ordered {
            return Err(wrong(format!("range is {low}..{high}, expected low below high")));
        }
        let token = match &config.token_env {
            Some(variable) => Some(
                std::env::var(variable)
                    .map_err(|_| wrong(format!("environment variable {variable} is not set")))?,
            ),
            None => None,
        };
        let url =
            config.url.parse::<Uri>().map_err(|e| wrong(format!("url {}: {e}", config.url)))?;
        if url.host().is_none() || !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err(wrong(format!("url {}: expected http:// or https://", config.url)));
        }
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .build()
            .into();
        Ok(Self { name, config, token, agent })
    }

    fn attempt(&self, samples: &[Sample]) -> Result<Vec<Option<f64>>, Attempt> {
        let mut request = self.agent.post(&self.config.url);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = request.send_json(&Question { samples });
        let response = response.map_err(|e| Attempt::Again(e.to_string()))?;
        let status = response.status();
        let mut body = Vec::new();
        let mut reader = response.into_body().into_reader().take(ANSWER_LIMIT);
        reader.read_to_end(&mut body).map_err(|e| Attempt::Again(e.to_string()))?;
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(Attempt::Again(format!("{status}: {}", start(&body))));
        }
        if !status.is_success() {
            return Err(Attempt::Final(format!("{status}: {}", start(&body))));
        }
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| Attempt::Final(format!("{e} in the answer: {}", start(&body))))?;
        Ok(answer.scores)
    }

    fn ask(&self, samples: &[Sample]) -> Result<Vec<Option<f64>>, String> {
        let mut wait = self.config.backoff_s;
        for left in (0..=self.config.retries).rev() {
            match self.attempt(samples) {
                Ok(scores) => return Ok(scores),
                Err(Attempt::Again(reason)) if left > 0 => {
                    tracing::warn!(reward = self.name, %reason, left, "asking the scorer again");
                    std::thread::sleep(Duration::try_from_secs_f64(wait).unwrap_or_default());
                    wait *= 2.0;
                }
                Err(Attempt::Again(reason)) => {
                    let attempts = self.config.retries + 1;
                    return Err(format!("{}: {reason} ({attempts} attempts)", self.config.url));
                }
                Err(Attempt::Final(reason)) => {
                    return Err(format!("{}: {reason}", self.config.url));
                }
            }
        }
        Err(format!("{}: no attempt", self.config.url))
    }
}

fn start(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(300).collect()
}

impl Reward for HttpReward {
    fn name(&self) -> &str {
        &self.name
    }
    fn unit(&self) -> &str {
        &self.config.unit
    }
    fn range(&self) -> Range {
        self.config.range.unwrap_or(Range::ANY)
    }
    fn score(&self, samples: &[Sample]) -> Result<Vec<f64>, RewardError> {
        let mut scores = Vec::with_capacity(samples.len());
        for part in samples.chunks(self.config.batch) {
            let answered = self
                .ask(part)
                .map_err(|reason| RewardError::Failed { reward: self.name.clone(), reason })?;
            if answered.len() != part.len() {
                return Err(RewardError::Count {
                    reward: self.name.clone(),
                    expected: part.len(),
                    got: answered.len(),
                });
            }
            let Range { low, high } = self.range();
            for (sample, score) in part.iter().zip(answered) {
                let wrong = |reason| RewardError::sample(&self.name, scores.len(), sample, reason);
                let score = score.ok_or_else(|| wrong("the score is null".to_string()))?;
                if !(low..=high).contains(&score) {
                    return Err(wrong(format!("the score is {score}, outside {low}..{high}")));
                }
                scores.push(score);
            }
        }
        Ok(scores)
    }
}
