//! The reinforcement learning of one backbone: prompts → rollout → rewards → balance → advantages →
//! update → checkpoint, one call a stage.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use candle_core::Device;
use ladle::{kernels::HostTensor, soup::bones::Kl};
use serde::{Deserialize, Serialize};

use crate::{
    aim::Column,
    checkpoint,
    config::{Algorithm, Config},
    draw::{self, Purpose},
    error::RunError,
    export,
    judge::{Judge, Judged, Response},
    layout::Layout,
    metrics::Recorder,
    optimizer::AdamW,
    rewards::RewardSet,
    rl::{
        advantage::{gae, log_ratio, token_rewards, whiten},
        balance::{Balance, Standardiser, Update},
        modpo::Pairing,
        policy::Policy,
        ppo::KlController,
        prompt_cache::PromptCache,
        remax::remax_advantages,
        rollout::{self, Request, Rollout, Sampler, Sampling},
        update::{Experience, Report, Updater, reference_log_probs},
        value_head::ValueHead,
    },
    setup::{Base, Prompt},
    weights::Lora,
};

type Result<T> = std::result::Result<T, RunError>;

/// θ_sft in the forms that training and sampling use.
pub struct Start<'a> {
    /// The base model.
    pub base: &'a Base,
    /// Base and supervised adapter merged: the frozen weights of the updates.
    pub frozen: &'a BTreeMap<String, HostTensor>,
    /// The weights of rollouts, and the supervised adapter where it is a low-rank term of theirs.
    pub sampled: (&'a BTreeMap<String, HostTensor>, Option<&'a Lora>),
    /// Keys and values of prompts that it has computed.
    pub cache: &'a Arc<PromptCache>,
}

/// Inputs of one backbone's training.
pub struct BackboneTask<'a> {
    pub name: &'a str,
    /// Seed of prompts, responses and updates.
    pub seed: u64,
    /// Seed of the adapter's first factors.
    pub factors: u64,
    /// The run.
    pub config: &'a Config,
    /// θ_sft.
    pub start: Start<'a>,
    /// Training prompts.
    pub prompts: &'a [Prompt],
    /// The objectives' rewards.
    pub rewards: &'a RewardSet,
    /// Their frozen scale.
    pub standardiser: &'a Standardiser,
    /// Pre-set weights W of the rewards.
    pub weights: Vec<f64>,
    /// Which backbone it is of a soup; none where one policy is trained.
    pub column: Option<Column<'a>>,
    /// Paths of state, metrics and snapshots.
    pub layout: &'a Layout,
}

/// The state of a run except its tensors; draws follow from seed and step.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    updates: u64,
    /// Mean KL of a response in the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_kl: Option<f64>,
    kl: KlController,
    balance: Balance,
}

/// The loop and its state.
pub struct Trainer<'a> {
    task: BackboneTask<'a>,
    policy: Policy,
    value_head: ValueHead,
    updater: Updater,
    sampler: Sampler,
    state: State,
}

impl<'a> Trainer<'a> {
    /// Starts the backbone, or resumes it from its state on disk.
    pub fn new(task: BackboneTask<'a>) -> Result<Self> {
        let (config, base) = (task.config, task.start.base);
        let factors = draw::derive(task.factors, Purpose::Factors);
        let policy =
            Policy::new(&base.model, task.start.frozen, &config.lora, &Device::Cpu, factors)?
                .recomputing(config.rl.recompute)
                .in_precision(config.precision)?
                .keeping(task.start.cache.clone());
        let value_head = ValueHead::new(base.model.hidden_size, &Device::Cpu)?;
        let mut updater = Updater {
            adapters: AdamW::new(policy.variables(), config.optimizer)?,
            values: AdamW::new(value_head.variables(), config.optimizer)?,
        };
        let rl = &config.rl;
        let mut state = State {
            step: 0,
            updates: 0,
            kl: KlController {
                coefficient: rl.kl,
                target: (rl.kl_target > 0.0).then_some(rl.kl_target),
                horizon: rl.kl_horizon,
            },
            balance: Balance::new(
                task.weights.clone(),
                task.column.as_ref().map(|column| column.own),
                config.balance.clone(),
            )?,
            last_kl: None,
        };
        let path = task.layout.state(task.name);
        if path.exists() {
            let (mut tensors, saved) = checkpoint::load::<State>(&path, &Device::Cpu)?;
            for optimizer in [&mut updater.adapters, &mut updater.values] {
                let take =
                    |name: &str, shape: &[usize]| checkpoint::take(&mut tensors, name, shape);
                optimizer.restore(take, saved.updates)?;
            }
            state = saved;
        }
        let sampler = sampler(base, config)?;
        Ok(Self { task, policy, value_head, updater, sampler, state })
    }

    /// Trains to the end and writes the backbone.
    pub fn run(mut self) -> Result<()> {
        let rl = &self.task.config.rl;
        let metrics = self.task.layout.metrics(self.task.name);
        let mut recorder = Recorder::open(&metrics, self.task.name, self.state.step, rl.steps)?;
        while self.state.step < rl.steps {
            let prompts = self.prompts();
            self.task.start.cache.begin_step();
            let start = Instant::now();
            let (sampled, greedy) = self.respond(&prompts)?;
            let sampling = start.elapsed();
            let judged = self.judge().batch(&prompts, sampled, greedy)?;
            let judging = start.elapsed() - sampling;
            let (batch, kl) = self.experience(&judged)?;
            let scoring = start.elapsed() - sampling - judging;
            let report = self.update(&batch)?;
            let updating = start.elapsed() - sampling - judging - scoring;
            let cache = self.task.start.cache.counts();
            let step = self.state.step;
            tracing::debug!(?sampling, ?judging, ?scoring, ?updating, ?cache, "step {step}");
            self.record(&mut recorder, &judged, &report, kl)?;
            self.state.kl.update(kl, batch.len());
            self.state.last_kl = Some(kl);
            if let Some(Update { floored, moved, weights }) = self.balance(&judged)? {
                let condition = self.task.column.as_ref().map_or(String::new(), |column| {
                    let condition = column.condition(&self.state.balance.realised());
                    format!("; condition number of B with this column as realised: {condition:.2}")
                });
                recorder.note(&format!(
                    "weights {weights:.4?} ({floored} floored, moved {moved:.3}){condition}"
                ));
            }
            self.state.step += 1;
            // Before the checkpoint: a run that goes on from it has the snapshot.
            if rl.keep.contains(&self.state.step) {
                self.keep()?;
            }
            if self.state.step == rl.steps || self.state.step.is_multiple_of(rl.checkpoint_every) {
                self.save()?;
            }
        }
        self.write(self.state.step, self.task.layout)
    }

    fn prompts(&self) -> Vec<&'a Prompt> {
        let (config, prompts) = (self.task.config, self.task.prompts);
        let size = config.rl.batch / config.rollout.samples;
        let batch = draw::batch(self.task.seed, prompts.len(), size, self.state.step);
        batch.into_iter().filter_map(|index| prompts.get(index)).collect()
    }

    /// Samples every prompt, and with ReMax answers it greedily once.
    fn respond(&mut self, prompts: &[&Prompt]) -> Result<(Vec<Rollout>, Vec<Rollout>)> {
        let Config { rollout, rl, lora, .. } = self.task.config;
        let factors = self.policy.lora()?;
        let Start { base, sampled: (weights, sft), .. } = self.task.start;
        let sft = sft.into_iter().map(|sft| (sft, None));
        let adapters: Vec<_> = sft.chain([(&factors, lora.term())]).collect();
        let decoder = rollout::decoder(&base.model, weights, &adapters)?;
        let first = self.state.step * rl.batch as u64;
        let mut requests: Vec<Request> = prompts
            .iter()
            .flat_map(|prompt| std::iter::repeat_n(prompt, rollout.samples))
            .zip(first..)
            .map(|(prompt, stream)| prompt.request(lora.activation, stream))
            .collect();
        let sampled = requests.len();
        if rl.algorithm == Algorithm::ReMax {
            let greedy =
                |prompt: &&Prompt| Request { greedy: true, ..prompt.request(lora.activation, 0) };
            requests.extend(prompts.iter().map(greedy));
        }
        let seed = draw::derive(self.task.seed, Purpose::Tokens);
        let keep_hidden = rl.algorithm == Algorithm::Ppo;
        let sampling = sampling(base, self.task.config, seed, keep_hidden);
        let mut responses = self.sampler.sample(&decoder, &requests, &sampling)?;
        let greedy = responses.split_off(sampled);
        Ok((responses, greedy))
    }

    fn judge(&self) -> Judge<'_> {
        Judge {
            base: self.task.start.base,
            config: self.task.config,
            rewards: self.task.rewards,
            standardiser: self.task.standardiser,
            balance: &self.state.balance,
        }
    }

    /// Advantages and returns of the batch, and the mean KL of a response to the reference.
    fn experience(&self, judged: &Judged) -> Result<(Vec<Experience>, f64)> {
        let Config { rl, rollout, .. } = self.task.config;
        let sequences: Vec<_> = judged.responses.iter().map(|r| r.sequence.clone()).collect();
        let reference =
            reference_log_probs(&self.policy, &sequences, rl.rows, rollout.temperature)?;
        let eta = self.state.kl.coefficient;
        let (mut batch, mut total_kl) = (Vec::with_capacity(sequences.len()), 0.0);
        let ratios = judged.responses.iter().zip(&reference);
        let ratios = ratios.map(|(r, reference)| log_ratio(&r.rollout.log_probs, reference));
        let ratios = ratios.collect::<std::result::Result<Vec<_>, _>>()?;
        let paired = match rl.algorithm {
            Algorithm::Modpo => self.paired(judged, &ratios),
            _ => vec![0.0; ratios.len()],
        };
        for ((response, kl), paired) in judged.responses.iter().zip(ratios).zip(paired) {
            total_kl += sum(&kl);
            let (values, gae) = match rl.algorithm {
                Algorithm::Ppo => {
                    let values = self.value_head.host_values(&response.rollout.hidden)?;
                    let rewards = token_rewards(&kl, eta, &response.scores)?;
                    let gae = gae(&rewards, &values, rl.gamma, rl.lambda)?;
                    (values, (gae.advantages, gae.returns))
                }
                Algorithm::ReMax | Algorithm::Rloo => {
                    let (total, baseline) = (response.total(), response.baseline);
                    let mut advantages = remax_advantages(total, baseline, &kl, eta)?;
                    let limit = rl.advantage_clip as f32;
                    advantages.iter_mut().for_each(|a| *a = a.clamp(-limit, limit));
                    (Vec::new(), (advantages, Vec::new()))
                }
                Algorithm::Modpo => (Vec::new(), (vec![paired as f32; kl.len()], Vec::new())),
            };
            batch.push(Experience {
                sequence: response.sequence.clone(),
                log_probs: response.rollout.log_probs.clone(),
                values,
                advantages: gae.0,
                returns: gae.1,
            });
        }
        if rl.algorithm == Algorithm::Ppo {
            let mut advantages: Vec<_> =
                batch.iter_mut().map(|e| std::mem::take(&mut e.advantages)).collect();
            whiten(&mut advantages);
            for (experience, advantages) in batch.iter_mut().zip(advantages) {
                experience.advantages = advantages;
            }
        }
        Ok((batch, total_kl / sequences.len().max(1) as f64))
    }

    /// MODPO's weights of the responses, from their log-ratios to θ_sft.
    fn paired(&self, judged: &Judged, ratios: &[Vec<f32>]) -> Vec<f64> {
        let Config { rl, rollout, .. } = self.task.config;
        let weights = self.state.balance.weights();
        let largest = (0..weights.len()).max_by(|a, b| weights[*a].total_cmp(&weights[*b]));
        let own = self.task.column.as_ref().map_or(largest.unwrap_or(0), |column| column.own);
        let pairing = Pairing { own, weights, beta: rl.kl };
        let groups = judged.responses.chunks(rollout.samples).zip(ratios.chunks(rollout.samples));
        let each = groups.flat_map(|(group, ratios)| {
            let rewards: Vec<_> = group.iter().map(|r| r.standardised.as_slice()).collect();
            let ratios: Vec<f64> = ratios.iter().map(|ratio| sum(ratio)).collect();
            pairing.weights(&rewards, &ratios)
        });
        each.collect()
    }

    fn update(&mut self, batch: &[Experience]) -> Result<Report> {
        let config = self.task.config;
        let rate = config.rl.rate(self.state.step);
        let seed = draw::derive(self.task.seed, Purpose::Minibatches);
        let report = self.updater.update(
            &self.policy,
            &self.value_head,
            batch,
            config,
            rate,
            (seed, self.state.step),
        )?;
        self.state.updates = self.updater.adapters.steps();
        Ok(report)
    }

    /// Counts the step in the balance of the objectives (DRBO).
    fn balance(&mut self, judged: &Judged) -> Result<Option<Update>> {
        let uniform = draw::uniform(self.task.seed, Purpose::Objective, self.state.step);
        let drawn = self.state.balance.draw(uniform);
        Ok(self.state.balance.advance(drawn, &judged.standardised)?)
    }

    /// Notes the step, with the weights and the KL coefficient that it used.
    fn record(
        &self,
        recorder: &mut Recorder,
        judged: &Judged,
        report: &Report,
        kl: f64,
    ) -> Result<()> {
        let count = judged.responses.len().max(1) as f64;
        let mean = |f: fn(&Response) -> f64| judged.responses.iter().map(f).sum::<f64>() / count;
        let objectives = &self.task.config.objectives;
        let named = |prefix: &str| -> Vec<String> {
            objectives.iter().map(|o| format!("{prefix}/{}", o.name)).collect()
        };
        let (rewards, weights) = (named("reward"), named("weight"));
        let mut metrics: Vec<(&str, f64)> = vec![
            ("score", mean(Response::total)),
            ("kl", kl),
            ("kl_coefficient", self.state.kl.coefficient),
            ("response_tokens", mean(|r| r.rollout.tokens.len() as f64)),
            ("finished", mean(|r| f64::from(u8::from(r.rollout.finished)))),
            ("entropy", report.entropy),
            ("policy_loss", report.policy_loss),
            ("value_loss", report.value_loss),
            ("clip_fraction", report.clip_fraction),
            ("update_kl", report.kl),
            ("grad_norm", report.grad_norm),
            ("updates", report.updates as f64),
        ];
        // A reward that judged no response of the batch has no value in this step.
        let judged = rewards.iter().map(String::as_str).zip(&judged.raw);
        metrics.extend(judged.filter_map(|(name, reward)| Some((name, (*reward)?))));
        let current = self.state.balance.weights().iter().copied();
        metrics.extend(weights.iter().map(String::as_str).zip(current));
        Ok(recorder.record(self.state.step, &metrics)?)
    }

    /// Keeps the backbone as it is now.
    fn keep(&self) -> Result<()> {
        self.write(self.state.step, &self.task.layout.snapshot(self.state.step))
    }

    /// Writes the backbone into `layout`.
    fn write(&self, steps: u64, layout: &Layout) -> Result<()> {
        let BackboneTask { name, config, start, column, standardiser, .. } = &self.task;
        let State { kl, last_kl, balance, .. } = &self.state;
        let trained = export::Trained {
            name,
            policy: &self.policy,
            realised: balance.realised(),
            steps,
            kl: Kl { coefficient: kl.coefficient, last: *last_kl },
            column: *column,
            standardiser,
        };
        export::write_backbone(&trained, config, start.base, (layout, self.task.layout))
    }

    fn save(&self) -> Result<()> {
        let mut tensors = self.updater.adapters.tensors();
        tensors.extend(self.updater.values.tensors());
        Ok(checkpoint::save(&self.task.layout.state(self.task.name), &tensors, &self.state)?)
    }
}

fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum()
}

/// A sampler with room for the configured prompts and responses.
pub fn sampler(base: &Base, config: &Config) -> Result<Sampler> {
    let longest = config.data.max_prompt_tokens() + config.rollout.max_new_tokens;
    Ok(Sampler::new(&base.model, config.precision.kernels(), config.rollout.slots, longest)?)
}

/// The configured sampling.
pub fn sampling(base: &Base, config: &Config, seed: u64, keep_hidden: bool) -> Sampling {
    Sampling {
        temperature: config.rollout.temperature,
        max_new_tokens: config.rollout.max_new_tokens,
        end: base.tokenizer.eos().to_vec(),
        seed,
        keep_hidden,
    }
}
