//! The user's scorer behind HTTP.
//!
//! `POST url` with `{"samples": [{"prompt", "response", "finished", "references", "fields"}, …]}`;
//! the answer is `{"scores": [number, …]}`, one a sample, in order.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Range, Reward, RewardError, Sample};
use crate::client::Client;

/// Settings of the reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// URL of the scorer.
    pub url: String,
    /// Seconds until a request is given up.
    #[serde(default = "timeout")]
    pub timeout_s: f64,
    /// Further attempts after a failed connection, a timeout, 429 or 5xx. A scorer that sends
    /// `Retry-After` is waited for beyond them, ten minutes at most.
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
    client: Client,
}

#[derive(Serialize)]
struct Question<'a> {
    samples: &'a [Sample],
}

#[derive(Deserialize)]
struct Answer {
    scores: Vec<Option<f64>>,
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
        let backoff = seconds("backoff_s", config.backoff_s)?;
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
        Client::check(&config.url).map_err(|reason| wrong(format!("url {reason}")))?;
        let client = Client::new(timeout, config.retries, backoff, token);
        Ok(Self { name, config, client })
    }

    fn ask(&self, samples: &[Sample]) -> Result<Vec<Option<f64>>, String> {
        let answer: Answer = self.client.post(&self.config.url, &Question { samples })?;
        Ok(answer.scores)
    }
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
