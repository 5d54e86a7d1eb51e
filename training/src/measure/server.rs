//! Answers of a soup that a ladle server serves.

use std::{collections::BTreeMap, time::Duration};

use indicatif::ProgressBar;
use ladle::{preference::MixingMatrix, soup::Soup};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    answers::{Asked, weights},
    error::EvaluateError,
    methods::Model,
    reference::Frozen,
    source::{Decoding, Drawn, Source},
};
use crate::{client::Client, setup::Prompt};

type Result<T> = std::result::Result<T, EvaluateError>;

/// Longest that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Wait before a second attempt.
const BACKOFF: Duration = Duration::from_millis(500);
/// What arithmetic may add to a weight of 0.
const NOISE: f64 = 1e-9;
/// How far the coefficients of an answer may be from those that were meant.
const TOLERANCE: f64 = 1e-6;

/// A server, and how it is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerOptions {
    /// Address of a ladle server that serves the soup: it answers, here nothing but the rewards is
    /// computed.
    #[arg(long, value_name = "URL")]
    pub engine: Option<String>,
    /// Key for the server.
    #[arg(long, env = "LADLE_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Requests in progress at the server at a time.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 16,
        requires = "engine",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub concurrency: u16,
    /// Further attempts of a request that the server did not answer, after .5, 1, 2 … seconds. One that
    /// says when to come back (429, 503) is waited for beyond them, ten minutes at most.
    #[arg(long, value_name = "N", default_value_t = 6, requires = "engine")]
    pub retries: u32,
}

/// A running server of a soup.
pub struct Server {
    url: String,
    client: Client,
    pool: rayon::ThreadPool,
    digest: String,
    /// Names of the objectives, which coefficients are echoed by.
    objectives: Vec<String>,
    /// The matrix that it solves with.
    mixing: MixingMatrix,
    /// Smallest and largest α that it takes.
    bounds: (f64, f64),
    answer_only: bool,
}

/// `GET /v1/soup`.
#[derive(Deserialize)]
struct Description {
    name: String,
    digest: String,
    context: usize,
}

/// `POST /generate`.
#[derive(Serialize)]
struct Question {
    /// The fields that name the model.
    #[serde(flatten)]
    model: Value,
    /// Those of the prompt.
    #[serde(flatten)]
    prompt: Value,
    max_tokens: usize,
    temperature: f64,
    seed: u64,
    logprobs: usize,
}

/// The answer of `POST /generate`.
#[derive(Deserialize)]
struct Generated {
    text: String,
    finish_reason: String,
    tokens: Vec<Token>,
    usage: Usage,
    coefficients: BTreeMap<String, f64>,
    soup: Identity,
}

#[derive(Deserialize)]
struct Token {
    id: u32,
    logprob: f32,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: usize,
}

#[derive(Deserialize)]
struct Identity {
    digest: String,
}

/// The answer of `POST /v1/completions`.
#[derive(Deserialize)]
struct Completed {
    choices: [Choice; 1],
}

#[derive(Deserialize)]
struct Choice {
    logprobs: LogProbs,
}

#[derive(Deserialize)]
struct LogProbs {
    token_logprobs: Vec<Option<f32>>,
}

impl Server {
    /// Finds the server at `url`; it must serve `soup`, to prompts and answers of `longest` tokens
    /// together.
    pub fn find(url: &str, options: &ServerOptions, soup: &Soup, longest: usize) -> Result<Self> {
        let url = url.trim_end_matches('/');
        Client::check(url).map_err(|reason| EvaluateError::Server(format!("--engine {reason}")))?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(options.concurrency.into()).build();
        let server = Self {
            url: url.to_owned(),
            client: Client::new(TIMEOUT, options.retries, BACKOFF, options.api_key.clone()),
            pool: pool.map_err(|error| EvaluateError::Server(format!("--concurrency: {error}")))?,
            digest: soup.digest.clone(),
            objectives: soup.manifest.objective_names().map(str::to_owned).collect(),
            mixing: soup.mixing.clone(),
            bounds: soup.manifest.extrapolation.bounds.into(),
            answer_only: soup.active_from.is_answer(),
        };
        let found: Description =
            server.client.get(&format!("{url}/v1/soup")).map_err(EvaluateError::Server)?;
        server.check_digest(&found.digest).map_err(|reason| {
            let (name, dir) = (found.name, soup.dir.display());
            EvaluateError::Server(format!("{url} serves {name:?}, not {dir}: {reason}"))
        })?;
        if found.context < longest {
            let got = format!("{url}: its context is of {} tokens", found.context);
            let reason = format!("{got}, expected {longest} for the longest prompt and answer");
            return Err(EvaluateError::Server(reason));
        }
        Ok(server)
    }

    fn check_digest(&self, got: &str) -> std::result::Result<(), String> {
        match got == self.digest {
            true => Ok(()),
            false => Err(format!("the soup's digest is {got}, expected {}", self.digest)),
        }
    }

    /// Refuses an α that the server would.
    pub fn check_alpha(&self, alpha: f64) -> std::result::Result<(), String> {
        let (least, most) = self.bounds;
        match (least..=most).contains(&alpha) {
            true => Ok(()),
            false => Err(format!("α is {alpha}, outside of the soup's bounds {least} to {most}")),
        }
    }

    /// The fields of a request for a model. The server solves c = (1 + α)·B⁻¹μ, so that μ is
    /// B·c over its sum, and 1 + α that sum.
    pub fn ask_for(&self, model: &Model) -> std::result::Result<Value, String> {
        let (logits, c) = weights(model);
        if !logits && c.iter().all(|weight| *weight == 0.0) {
            return Ok(json!({"weights": "sft"}));
        }
        let alpha = ((c.iter().sum::<f64>() - 1.0) * 1e9).round() / 1e9;
        self.check_alpha(alpha)?;
        let dot = |row: &Vec<f64>| row.iter().zip(c).map(|(b, c)| b * c).sum::<f64>();
        let wish: Vec<f64> = self.mixing.rows().iter().map(dot).collect();
        if wish.iter().any(|weight| *weight < -NOISE) {
            return Err(format!("no preference asks its server for c = {c:?}: B·c is {wish:?}"));
        }
        let preference: Vec<f64> = wish.into_iter().map(|weight| weight.max(0.0)).collect();
        let combine = if logits { "logits" } else { "weights" };
        let request = json!({
            "preference": preference, "alpha": alpha, "lambda": "exact", "combine": combine
        });
        Ok(request)
    }

    /// The prompt of a request. Token ids say everything, but for where the generation prompt begins.
    fn prompt(&self, prompt: &Prompt) -> Value {
        match self.answer_only && prompt.opening.is_some() {
            true => json!({"messages": prompt.example.messages, "parse_special": true}),
            false => json!({"prompt": prompt.tokens}),
        }
    }

    fn generate(
        &self,
        model: &Model,
        prompt: &Prompt,
        seed: u64,
        decoding: Decoding,
    ) -> std::result::Result<Drawn, String> {
        let question = Question {
            model: self.ask_for(model)?,
            prompt: self.prompt(prompt),
            max_tokens: decoding.longest,
            temperature: decoding.temperature,
            seed,
            logprobs: 0,
        };
        let url = format!("{}/generate", self.url);
        let got: Generated = self.client.post(&url, &question)?;
        self.check(&got, weights(model).1, prompt).map_err(|reason| format!("{url}: {reason}"))?;
        Ok(Drawn {
            text: got.text,
            log_prob: got.tokens.iter().map(|token| f64::from(token.logprob)).sum(),
            tokens: got.tokens.iter().map(|token| token.id).collect(),
            finished: got.finish_reason == "stop",
        })
    }

    /// Whether the answer is of the model and to the prompt that were meant.
    fn check(
        &self,
        got: &Generated,
        c: &[f64],
        prompt: &Prompt,
    ) -> std::result::Result<(), String> {
        self.check_digest(&got.soup.digest)?;
        let (read, meant) = (got.usage.prompt_tokens, prompt.tokens.len());
        if read != meant {
            return Err(format!("it reads the prompt as {read} tokens, expected {meant}"));
        }
        let near = |(name, c): (&String, &f64)| {
            got.coefficients.get(name).is_some_and(|got| (got - c).abs() <= TOLERANCE)
        };
        match self.objectives.iter().zip(c).all(near) {
            true => Ok(()),
            false => Err(format!("it answers at c = {:?}, expected {c:?}", got.coefficients)),
        }
    }

    /// log π_sft of an answer to a prompt.
    fn log_prob(&self, prompt: &[u32], answer: &[u32]) -> std::result::Result<f64, String> {
        let tokens = [prompt, answer].concat();
        let body = json!({
            "prompt": tokens,
            "weights": "sft",
            "echo": true,
            "logprobs": 0,
            "max_tokens": 0,
        });
        let url = format!("{}/v1/completions", self.url);
        let Completed { choices: [Choice { logprobs }] } = self.client.post(&url, &body)?;
        let told = logprobs.token_logprobs;
        let of_answer = told.get(prompt.len()..).filter(|told| told.len() == answer.len());
        let each = of_answer.and_then(|told| told.iter().map(|one| one.map(f64::from)).sum());
        each.ok_or_else(|| format!("{url}: no log-probability of every token of the answer"))
    }
}

impl Source for Server {
    fn draw(
        &self,
        asked: &Asked<'_>,
        prompts: &[(&Prompt, u64)],
        decoding: Decoding,
        bar: &ProgressBar,
    ) -> Result<Vec<Drawn>> {
        let draw = |(prompt, seed): &(&Prompt, u64)| {
            let drawn = self.generate(asked.model, prompt, *seed, decoding);
            bar.inc(1);
            drawn.map_err(|reason| asked.failed(prompt, reason))
        };
        self.pool.install(|| prompts.par_iter().with_max_len(1).map(draw).collect())
    }
}

impl Frozen for &Server {
    fn log_probs(&self, prompt: &Prompt, responses: &[Vec<u32>]) -> Result<Vec<f64>> {
        let score = |response: &Vec<u32>| {
            self.log_prob(&prompt.tokens, response).map_err(EvaluateError::Server)
        };
        self.pool.install(|| responses.par_iter().with_max_len(1).map(score).collect())
    }
}
