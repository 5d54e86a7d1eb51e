//! The stages of RiC. Offline: tuning on rows whose prompts carry the standardised rewards of the
//! answer. Online: prompts that ask for rewards near the front are answered; answers that pass the
//! filter, and rows of the offline stage that do, are tuned on with the rewards that they earned.

use std::fs;

use candle_core::Device;
use ladle::files::write_json;
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::goals::{Range, accepted, words};
use crate::{
    checkpoint::{CheckpointError, write_toml},
    config::{Config, ConfigError, ContextConfig, Decay, OnlineConfig, POLICY},
    draw::{self, Purpose},
    error::RunError,
    export,
    layout::Layout,
    rewards::{RewardSet, Sample},
    rl::{
        balance::Standardiser,
        packing::Sequence,
        policy::Policy,
        rollout::{self, Request, Sampler},
    },
    setup::Prompt,
    trainer::{Start, sampling},
    tuning::{Schedule, Tuning},
};

type Result<T> = std::result::Result<T, RunError>;

/// Inputs of the stages.
pub struct Stages<'a> {
    /// The run.
    pub config: &'a Config,
    pub settings: &'a ContextConfig,
    /// θ_sft.
    pub start: Start<'a>,
    /// Training prompts.
    pub prompts: &'a [Prompt],
    /// The objectives' rewards.
    pub rewards: &'a RewardSet,
    /// Their frozen scale.
    pub standardiser: &'a Standardiser,
    /// Paths of state, metrics and data.
    pub layout: &'a Layout,
}

/// A response with what it earned.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    /// Index of its prompt.
    prompt: usize,
    /// The rewards that the prompt asked for, of a response of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wanted: Option<Vec<f64>>,
    response: Vec<u32>,
    /// Its standardised rewards.
    earned: Vec<f64>,
}

impl Stages<'_> {
    /// Trains, or resumes to the end, and writes the policy.
    pub fn train(&self) -> Result<()> {
        let offline = self.kept("offline", || self.references())?;
        if offline.is_empty() {
            return Err(ConfigError::Value {
                key: "mixing.context.max_response_tokens".into(),
                got: self.settings.max_response_tokens.to_string(),
                expected: "a length that some training row has an answer within",
            }
            .into());
        }
        let earned: Vec<Vec<f64>> = offline.iter().map(|row| row.earned.clone()).collect();
        let range = Range::of(&earned);
        let policy = self.offline(&offline)?;
        if let Some(online) = &self.settings.online {
            let responses = self.kept("online", || self.responses(&policy, online, &range))?;
            self.online(&policy, online, &offline, responses)?;
        }
        write_toml(&self.layout.range(POLICY), &range)?;
        export::write_adapter(&policy, &self.layout.adapter(POLICY), &self.config.base)
    }

    /// The rows of a stage: read, or made and kept, so that a resumed run has the same.
    fn kept(&self, stage: &str, make: impl FnOnce() -> Result<Vec<Row>>) -> Result<Vec<Row>> {
        let path = self.layout.rows(stage);
        match fs::read(&path) {
            Err(_) => {
                let rows = make()?;
                write_json(&path, &rows).map_err(CheckpointError::from)?;
                Ok(rows)
            }
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                CheckpointError::Format { path, reason: error.to_string() }.into()
            }),
        }
    }

    /// Every answer of the training rows, with its rewards.
    fn references(&self) -> Result<Vec<Row>> {
        let mut all = Vec::new();
        for (index, prompt) in self.prompts.iter().enumerate() {
            for text in prompt.example.answers() {
                let response = self.start.base.response(text).map_err(text_error(prompt))?;
                if response.len() <= self.settings.max_response_tokens {
                    all.push((index, response, prompt.sample(text.to_owned(), true)));
                }
            }
        }
        let samples: Vec<_> = all.iter().map(|(_, _, sample)| sample.clone()).collect();
        let earned = self.earned(&samples)?;
        let row = |((prompt, response, _), earned)| Row { prompt, wanted: None, response, earned };
        Ok(all.into_iter().zip(earned).map(row).collect())
    }

    /// Responses of the policy to prompts that ask for rewards near the front.
    fn responses(&self, policy: &Policy, online: &OnlineConfig, range: &Range) -> Result<Vec<Row>> {
        let (config, base, seed) = (self.config, self.start.base, self.config.stage_seed(0));
        let chosen = draw::derive(seed, Purpose::Goals);
        let chosen = draw::batch(chosen, self.prompts.len(), online.samples, 0);
        let mut wanted = Vec::with_capacity(chosen.len());
        let mut requests = Vec::with_capacity(chosen.len());
        for (&index, stream) in chosen.iter().zip(0..) {
            let mut rng = draw::generator(seed, Purpose::Goals, stream);
            let uniforms: Vec<f64> = range.low.iter().map(|_| rng.random()).collect();
            let goal = range.near_front(&uniforms);
            requests.push(Request::drawn(&self.told(index, &goal)?.tokens, stream));
            wanted.push(goal);
        }
        let factors = policy.lora()?;
        let (weights, sft) = self.start.sampled;
        let sft = sft.into_iter().map(|sft| (sft, None));
        let adapters: Vec<_> = sft.chain([(&factors, None)]).collect();
        let decoder = rollout::decoder(&base.model, weights, &adapters)?;
        let longest = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(1);
        let (kernels, slots) = (config.precision.kernels(), config.rollout.slots);
        let longest = longest + config.rollout.max_new_tokens;
        let mut sampler = Sampler::new(&base.model, kernels, slots, longest)?;
        let drawn = sampling(base, config, draw::derive(seed, Purpose::Tokens), false);
        let rollouts = sampler.sample(&decoder, &requests, &drawn)?;
        // Judged as answers to the prompt alone.
        let all = chosen.iter().zip(&rollouts);
        let samples: Vec<_> =
            all.map(|(&index, rollout)| base.sample(&self.prompts[index], rollout)).collect();
        let earned = self.earned(&samples)?;
        let all = chosen.into_iter().zip(wanted).zip(rollouts).zip(earned);
        let row = |(((prompt, wanted), rollout), earned): (((usize, _), rollout::Rollout), _)| {
            Row { prompt, wanted: Some(wanted), response: rollout.tokens, earned }
        };
        Ok(all.map(row).collect())
    }

    fn offline(&self, rows: &[Row]) -> Result<Policy> {
        let ContextConfig { steps, learning_rate, .. } = *self.settings;
        let seed = self.config.stage_seed(0);
        let (model, frozen) = (&self.start.base.model, self.start.frozen);
        let factors = draw::derive(seed, Purpose::Factors);
        let policy = Policy::new(model, frozen, &self.config.lora, &Device::Cpu, factors)?
            .recomputing(self.config.rl.recompute)
            .in_precision(self.config.precision)?;
        self.tune(&policy, "offline", rows, seed, (steps, learning_rate, Decay::Linear))?;
        Ok(policy)
    }

    fn online(
        &self,
        policy: &Policy,
        online: &OnlineConfig,
        offline: &[Row],
        responses: Vec<Row>,
    ) -> Result<()> {
        let seed = self.config.stage_seed(1);
        let mut rows = filtered(&responses, online.quantile);
        let originals = filtered(offline, online.quantile);
        let kept = (rows.len(), originals.len().min(online.originals));
        tracing::info!("online: {} of {} responses kept, {} rows", kept.0, responses.len(), kept.1);
        let some = draw::batch(draw::derive(seed, Purpose::Goals), originals.len(), kept.1, 0);
        rows.extend(some.into_iter().map(|index| originals[index].clone()));
        let OnlineConfig { steps, learning_rate, .. } = *online;
        self.tune(policy, "online", &rows, seed, (steps, learning_rate, Decay::Constant))
    }

    /// Tunes on rows whose prompts tell what the response earned.
    fn tune(
        &self,
        policy: &Policy,
        stage: &str,
        rows: &[Row],
        seed: u64,
        (steps, learning_rate, decay): (u64, f64, Decay),
    ) -> Result<()> {
        let sequence = |row: &Row| {
            let prompt = self.told(row.prompt, &row.earned)?.tokens;
            Ok(Sequence { prompt, response: row.response.clone(), active_from: None })
        };
        let train = rows.iter().map(sequence).collect::<Result<Vec<_>>>()?;
        let batch = self.settings.batch;
        let tuning = Tuning {
            stage,
            config: self.config,
            seed,
            schedule: Schedule { steps, batch, learning_rate, warmup: 0, decay },
            train: &train,
            validation: (&[], 1),
            state: &self.layout.state(stage),
            metrics: &self.layout.metrics(stage),
        };
        tuning.run(policy)
    }

    fn told(&self, index: usize, rewards: &[f64]) -> Result<Prompt> {
        let prompt = &self.prompts[index];
        self.start.base.told(prompt, &words(rewards)).map_err(text_error(prompt))
    }

    /// Standardised rewards `[sample][objective]`; every reward judges every sample.
    fn earned(&self, samples: &[Sample]) -> Result<Vec<Vec<f64>>> {
        let scores = self.rewards.score(samples)?;
        let one = |index: usize| {
            let raw: Vec<f64> = scores.iter().filter_map(|reward| reward[index]).collect();
            Ok(self.standardiser.apply(&raw)?)
        };
        (0..samples.len()).map(one).collect()
    }
}

fn filtered(rows: &[Row], quantile: f64) -> Vec<Row> {
    let earned: Vec<Vec<f64>> = rows.iter().map(|row| row.earned.clone()).collect();
    let kept = accepted(&earned, quantile);
    rows.iter().zip(kept).filter(|(_, kept)| *kept).map(|(row, _)| row.clone()).collect()
}

fn text_error(prompt: &Prompt) -> impl FnOnce(String) -> RunError {
    let row = prompt.example.id.clone();
    |reason| RunError::Text { row, reason }
}
