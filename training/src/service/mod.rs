//! The rewards of one backbone as an HTTP service: its objectives, their frozen scale and the balance of
//! their weights, for trainers that run elsewhere.
//!
//! A request's way: [`body`] makes checked samples of it, the rewards score them, the
//! [`ledger`] counts its step on disk, and the weights in force weigh the standardised rewards. What
//! goes wrong leaves through `refusal`, and then nothing was counted.

pub mod body;
pub mod ledger;
mod metrics;
mod refusal;
mod routes;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ladle::{files::sha256, tokenizer::Tokenizer};
use metrics_exporter_prometheus::BuildError;
use serde::Serialize;
use serde_json::{Value, json};

use self::{
    body::{Accepts, Asked},
    ledger::{Counted, Ledger, LedgerError, Part},
    metrics::Metrics,
    refusal::Refusal,
};
use crate::{
    aim::Aim,
    config::{Config, ConfigError, MixingConfig},
    error::RunError,
    rewards::{RewardSet, Sample},
    rl::balance::{Balance, BalanceError, Standardiser, Strategy},
    run, share,
};

pub use routes::serve;

/// Why a service does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Balance(#[from] BalanceError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("--state is missing, expected a file: balance.strategy {0} moves the weights")]
    State(Strategy),
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Which rewards are served, and within which bounds.
#[derive(Debug, Clone)]
pub struct Settings {
    pub config: Config,
    pub backbone: String,
    /// Directory that paths of reward models are relative to.
    pub data: PathBuf,
    /// A run, or the file of a standardiser.
    pub share: PathBuf,
    pub state: Option<PathBuf>,
    /// Rows of one request at most.
    pub rows: usize,
    /// Bytes of one request at most.
    pub bytes: usize,
    /// Texts that end a response in OpenRLHF's queries.
    pub ends: Vec<String>,
}

/// The rewards of one backbone.
pub struct Service {
    accepts: Accepts,
    bytes: usize,
    rewards: RewardSet,
    standardiser: Standardiser,
    /// Facts that every answer and the state report.
    backbone: String,
    aim: Aim,
    index: usize,
    beta: Option<f64>,
    strategy: Strategy,
    ledger: Mutex<Ledger>,
    metrics: Metrics,
}

/// One row of an answer, vectors in the order of the objectives; null where a reward does not judge.
#[derive(Debug, Serialize)]
pub struct Judged {
    pub raw: Vec<Option<f64>>,
    pub standardised: Vec<Option<f64>>,
    /// The weighted sum.
    pub reward: f64,
}

/// The rewards of a request.
pub struct Scored {
    pub rows: Vec<Judged>,
    pub counted: Option<Counted>,
    /// The weights in force.
    pub weights: Vec<f64>,
    /// κ of B with this column as realised before this step.
    pub condition: Option<f64>,
}

impl Service {
    /// Opens the rewards and the state.
    pub fn open(settings: Settings) -> Result<Self, ServiceError> {
        let Settings { config, backbone, data, share, state, rows, bytes, ends } = settings;
        let names = config.policies();
        let Some(index) = names.iter().position(|name| *name == backbone) else {
            let known = names.join(", ");
            return Err(RunError::Unknown { name: backbone, known }.into());
        };
        let strategy = config.balance.strategy;
        if strategy == Strategy::Gdpo {
            return Err(ConfigError::Value {
                key: "balance.strategy".into(),
                got: strategy.to_string(),
                expected: "average, inverse or delta: the trainer must normalise GDPO's rewards among \
                           the responses to one prompt",
            }
            .into());
        }
        let moving = strategy != Strategy::Average;
        if moving && state.is_none() {
            return Err(ServiceError::State(strategy));
        }
        let aim = Aim::of(&config)?;
        let standardiser = share::standardiser(&config, &share)?;
        let rewards = run::rewards(&config, &data)?;
        let own = aim.column(index).map(|column| column.own);
        let Some(weights) = aim.weights(index) else {
            return Err(ConfigError::Value {
                key: "mixing".into(),
                got: "context".into(),
                expected: "beta, matrix, identity or weights: RiC weighs no rewards",
            }
            .into());
        };
        let balance = Balance::new(weights, own, config.balance.clone())?;
        let settings = digest(&config, &standardiser);
        let frozen = (standardiser.clone(), config.stage_seed(0));
        let ledger = Ledger::open(state, (backbone.clone(), settings), balance, frozen)?;
        let objectives: Vec<String> =
            config.objectives.iter().map(|objective| objective.name.clone()).collect();
        let metrics = Metrics::new(&objectives)?;
        metrics.weights(ledger.step(), ledger.balance().weights());
        let judges = config.data.iter().any(|(_, set)| set.rewards.is_some());
        let beta = match config.mixing {
            MixingConfig::Beta(beta) => Some(beta),
            _ => None,
        };
        Ok(Self {
            accepts: Accepts { rows, objectives, judges, step: moving, ends },
            bytes,
            rewards,
            standardiser,
            backbone,
            aim,
            index,
            beta,
            strategy,
            ledger: Mutex::new(ledger),
            metrics,
        })
    }

    /// Scores the rows, counts their step and weighs them.
    fn score(&self, asked: &Asked) -> Result<Scored, Refusal> {
        let raw = self.rewards.score(&asked.samples)?;
        let of_row = |row: usize| {
            let raw: Vec<Option<f64>> = raw.iter().map(|reward| reward[row]).collect();
            Ok((self.standardiser.apply_present(&raw)?, raw))
        };
        let rows =
            (0..asked.samples.len()).map(of_row).collect::<Result<Vec<_>, BalanceError>>()?;
        let part = Part::new(sha256(&canonical(&asked.samples)), &raw);
        let means = part.sums.iter().zip(&part.counts);
        let means: Vec<_> =
            means.map(|(sum, count)| (*count > 0).then(|| sum / *count as f64)).collect();

        let mut ledger = self.ledger();
        let counted = asked.step.map(|step| ledger.count(step, &asked.part, part)).transpose()?;
        if counted == Some(Counted::Replaced) {
            let (step, part) = (ledger.step(), &asked.part);
            tracing::warn!(step, part, "a part came again with other rows, which count instead");
        }
        let balance = ledger.balance();
        let judged = |(standardised, raw): (Vec<Option<f64>>, _)| {
            let reward = balance.combine(&standardised)?;
            Ok(Judged { raw, standardised, reward })
        };
        let rows = rows.into_iter().map(judged).collect::<Result<Vec<_>, BalanceError>>()?;
        let (weights, condition) = (balance.weights().to_vec(), self.condition(balance));
        self.metrics.weights(ledger.step(), &weights);
        drop(ledger);
        self.metrics.scored(counted, rows.len(), &means);
        Ok(Scored { rows, counted, weights, condition })
    }

    /// What trained weights rest on, for `bone.json`: the open step counts as ended.
    fn state(&self) -> Result<Value, Refusal> {
        let ledger = self.ledger();
        let closed = ledger.closed()?;
        Ok(json!({
            "backbone": self.backbone,
            "objectives": self.accepts.objectives,
            "strategy": self.strategy,
            "standardiser": self.standardiser,
            "column": self.aim.preference(self.index),
            "beta": self.beta,
            "condition": self.condition(&closed),
            "step": ledger.step(),
            "steps": closed.step(),
            "weights": ledger.balance().weights(),
            "realised": closed.realised(),
        }))
    }

    /// κ of B with this column as it was realised.
    fn condition(&self, balance: &Balance) -> Option<f64> {
        self.aim.column(self.index).map(|column| column.condition(&balance.realised()))
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A count that panicked has changed nothing: the state is replaced as a whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Digest of what the state of a balance follows from.
fn digest(config: &Config, standardiser: &Standardiser) -> String {
    let Config { seed, objectives, balance, mixing, .. } = config;
    let settings = json!([seed, objectives, balance, mixing, standardiser]);
    sha256(settings.to_string().as_bytes())
}

/// The bytes of rows that tell them from others.
fn canonical(rows: &[Sample]) -> Vec<u8> {
    serde_json::to_vec(rows).unwrap_or_default()
}

/// The texts of a base's end-of-sequence tokens.
pub fn ends(base: &Path) -> Result<Vec<String>, String> {
    let tokenizer = Tokenizer::from_dir(base).map_err(|e| e.to_string())?;
    let ends: Vec<_> = tokenizer.eos().iter().filter_map(|id| tokenizer.token(*id)).collect();
    match ends.is_empty() {
        true => Err(format!("{}: no end-of-sequence token is named", base.display())),
        false => Ok(ends),
    }
}
