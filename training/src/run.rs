//! A run on disk and its stages: supervised tuning, the scale of the rewards, one backbone after
//! another, the soup.
//!
//! ```text
//! DIR/config.toml            what the run was started with
//! DIR/state/NAME.safetensors where a stage stands
//! DIR/metrics/NAME/          metrics.jsonl and TensorBoard events
//! DIR/standardiser.toml      the frozen scale of the rewards
//! DIR/adapters/NAME/         finished PEFT adapters (`sft` and one per objective)
//! DIR/soup/                  the soup, once all are there
//! ```
//!
//! Every file is whole or absent, so any stage can be killed and taken up again; processes that
//! train different backbones (`--only`) can share a directory once `sft` is done.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ladle::{
    kernels::HostTensor,
    preference::MixingMatrix,
    soup::{
        Adapter,
        manifest::{self, BaseEntry},
    },
};

use crate::{
    checkpoint::{CheckpointError, write_atomically},
    config::{Config, ConfigError, MixingConfig},
    data::split::split,
    draw::{self, Purpose},
    error::RunError,
    export,
    rewards::{RewardSet, registry, spec::RewardSpec},
    rl::{
        balance::{STD_FLOOR, Standardiser},
        lora::HostFactor,
        rollout::{self, Request},
    },
    setup::{Base, Prompt},
    sft,
    trainer::{self, Start, Task, Trainer},
    weights::{host_factors, merged},
};

type Result<T> = std::result::Result<T, RunError>;

/// Where a run finds things.
#[derive(Debug, Clone)]
pub struct Places {
    /// The run's own directory.
    pub run: PathBuf,
    /// What data paths of the config are relative to.
    pub data: PathBuf,
    /// The base model's directory.
    pub base: PathBuf,
}

/// A run, opened and checked: base, data, rewards and matrix are all usable.
pub struct Run {
    /// Its configuration.
    pub config: Config,
    /// Its places.
    pub places: Places,
    /// The base model.
    pub base: Base,
    /// Training prompts.
    pub train: Vec<Prompt>,
    /// Prompts that choices are made on.
    pub validation: Vec<Prompt>,
    /// Prompts that only `evaluate` looks at.
    pub test: Vec<Prompt>,
    /// The objectives' rewards.
    pub rewards: RewardSet,
    /// B.
    pub mixing: MixingMatrix,
}

impl Run {
    /// Opens everything that the configuration names.
    pub fn open(config: Config, places: Places) -> Result<Self> {
        config.check()?;
        let n = config.objectives.len();
        let mixing = match &config.mixing {
            MixingConfig::Beta(beta) => MixingMatrix::circulant(n, *beta)?,
            MixingConfig::Matrix(rows) => MixingMatrix::from_rows(rows)?,
            MixingConfig::Identity(_) => MixingMatrix::identity(n),
        };
        if mixing.len() != n {
            return Err(ConfigError::Value {
                key: "mixing.matrix".into(),
                got: format!("{0} × {0}", mixing.len()),
                expected: "one row and column per objective",
            }
            .into());
        }
        let rewards = config.objectives.iter();
        let rewards =
            rewards.map(|o| registry::build(&o.name, o.reward.clone().located(&places.data)));
        let rewards = RewardSet::new(rewards.collect::<std::result::Result<_, _>>()?);
        let base = Base::open(&places.base)?;
        let read = |path: &Path| {
            let path = places.data.join(path);
            let (prompts, long) = base.prompts(&config.data, &path)?;
            let limit = config.data.max_prompt_tokens;
            tracing::info!(
                rows = prompts.len(),
                long,
                "{}: over {limit} tokens left out",
                path.display()
            );
            Ok::<_, RunError>(prompts)
        };
        let optional = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(Vec::new()), read);
        let train = read(&config.data.train)?;
        let (train, validation, test) = match &config.data.split {
            None => (train, optional(&config.data.validation)?, optional(&config.data.test)?),
            Some(shares) => split_rows(train, shares, config.seed)?,
        };
        let prompts = [&train, &validation, &test].into_iter().flatten();
        let longest = prompts.map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        let (new, context) = (config.rollout.max_new_tokens, base.model.max_positions);
        if longest + new > context {
            return Err(ConfigError::Value {
                key: "rollout.max_new_tokens".into(),
                got: format!("{new} after prompts of up to {longest} tokens"),
                expected: "both together within the model's max_position_embeddings",
            }
            .into());
        }
        // A field that the data lacks is named now, not after the supervised tuning. Scorers behind
        // HTTP are asked for nothing yet.
        let answer = train.first().map(|prompt| prompt.sample("An answer.".into(), true));
        for (objective, reward) in config.objectives.iter().zip(rewards.iter()) {
            if !matches!(objective.reward, RewardSpec::Http(_)) {
                reward.score(answer.as_slice())?;
            }
        }
        Ok(Self { config, places, base, train, validation, test, rewards, mixing })
    }

    /// Claims the run's directory: writes the configuration there, or checks that it is the same.
    pub fn claim(&self) -> Result<()> {
        let path = self.places.run.join("config.toml");
        let text = toml::to_string(&self.config).map_err(|error| CheckpointError::Format {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        match fs::read_to_string(&path) {
            Ok(found) if found == text => Ok(()),
            Ok(_) => Err(RunError::Directory {
                path,
                reason: "holds a run with another configuration; choose another directory, or \
                         `train-backbones resume` to go on with that one"
                    .into(),
            }),
            Err(_) => Ok(write_atomically(&path, text.as_bytes())?),
        }
    }

    fn state(&self, stage: &str) -> PathBuf {
        self.places.run.join("state").join(format!("{stage}.safetensors"))
    }

    fn metrics(&self, stage: &str) -> PathBuf {
        self.places.run.join("metrics").join(stage)
    }

    fn adapter(&self, stage: &str) -> PathBuf {
        self.places.run.join("adapters").join(stage)
    }

    fn finished(&self, stage: &str) -> bool {
        self.adapter(stage).join(export::WEIGHTS).is_file()
    }

    /// The supervised adapter: trained, taken up, or read if it is finished.
    pub fn sft(&self) -> Result<Option<BTreeMap<String, HostFactor>>> {
        let Some(settings) = &self.config.sft else { return Ok(None) };
        if !self.finished("sft") {
            let task = sft::Task {
                base: &self.base,
                config: &self.config,
                sft: settings,
                train: &self.train,
                validation: &self.validation,
                state: &self.state("sft"),
                metrics: &self.metrics("sft"),
            };
            let policy = task.train()?;
            export::write_adapter(&policy, &self.adapter("sft"), &self.config.base)?;
        }
        Ok(Some(host_factors(&Adapter::open(&self.adapter("sft"))?)))
    }

    /// The frozen scale of the rewards: fitted on the first responses of θ_sft, or read.
    pub fn standardiser(&self, sft: Option<&BTreeMap<String, HostFactor>>) -> Result<Standardiser> {
        let path = self.places.run.join("standardiser.toml");
        let format = |reason: String| CheckpointError::Format { path: path.clone(), reason };
        if let Ok(text) = fs::read_to_string(&path) {
            return Ok(toml::from_str(&text).map_err(|error| format(error.to_string()))?);
        }
        let (config, base) = (&self.config, &self.base);
        let adapters: Vec<_> = sft.into_iter().collect();
        let decoder = rollout::decoder(&base.model, &base.weights, &adapters)?;
        let seed = draw::derive(config.seed, Purpose::Standardise);
        let chosen = draw::batch(seed, self.train.len(), config.rl.standardise_on, 0);
        let prompts: Vec<_> =
            chosen.into_iter().filter_map(|index| self.train.get(index)).collect();
        let requests: Vec<_> = prompts
            .iter()
            .zip(0..)
            .map(|(prompt, stream)| Request {
                prompt: prompt.tokens.clone(),
                greedy: false,
                stream,
            })
            .collect();
        let sampling = trainer::sampling(base, config, seed, false);
        let rollouts = trainer::sampler(base, config)?.sample(&decoder, &requests, &sampling)?;
        let samples: Vec<_> = prompts
            .iter()
            .zip(&rollouts)
            .map(|(prompt, rollout)| base.sample(prompt, rollout))
            .collect();
        let standardiser = Standardiser::fit(&self.rewards.score(&samples)?)?;
        for (objective, std) in config.objectives.iter().zip(&standardiser.std) {
            if *std <= STD_FLOOR {
                let (name, samples) = (&objective.name, samples.len());
                tracing::warn!("{name}: every one of {samples} responses earned the same reward");
            }
        }
        let text = toml::to_string(&standardiser).map_err(|error| format(error.to_string()))?;
        write_atomically(&path, text.as_bytes())?;
        Ok(standardiser)
    }

    /// Trains every backbone (or the one named), and makes the soup once all are there.
    pub fn train(&self, only: Option<&str>) -> Result<()> {
        let names: Vec<&str> = self.config.objectives.iter().map(|o| o.name.as_str()).collect();
        if let Some(name) = only.filter(|name| !names.contains(name)) {
            return Err(RunError::Unknown { name: name.into(), known: names.join(", ") });
        }
        let sft = self.sft()?;
        let standardiser = self.standardiser(sft.as_ref())?;
        let frozen: BTreeMap<String, HostTensor> = match &sft {
            None => self.base.weights.clone(),
            Some(adapter) => merged(&self.base.weights, adapter)?,
        };
        // A finished soup is left as it is: people put a front and their own settings there.
        let mut stale = !self.places.run.join("soup").join(manifest::FILE).is_file();
        for (index, name) in names.iter().enumerate() {
            if only.is_some_and(|only| only != *name) || self.finished(name) {
                continue;
            }
            let start = Start { base: &self.base, frozen: &frozen, sft: sft.as_ref() };
            let (state, metrics) = (self.state(name), self.metrics(name));
            let task = Task {
                name,
                // Every backbone sees its own prompts and noise.
                seed: self.config.seed.wrapping_add((index as u64 + 1) << 32),
                config: &self.config,
                start,
                prompts: &self.train,
                rewards: &self.rewards,
                standardiser: &standardiser,
                state: &state,
                metrics: &metrics,
            };
            // Pre-set weights W = n·wᵢ: column i of B (`docs/algorithms.md` §6.3).
            let n = names.len() as f64;
            let preset = self.mixing.column(index).into_iter().map(|w| n * w).collect();
            let outcome = Trainer::new(task, preset, index)?.run()?;
            let realised = toml::to_string(&BTreeMap::from([("realised", &outcome.realised)]));
            let directory = self.adapter(name);
            let path = directory.join(REALISED);
            let realised = realised.map_err(|error| CheckpointError::Format {
                path: path.clone(),
                reason: error.to_string(),
            })?;
            write_atomically(&path, realised.as_bytes())?;
            export::write_adapter(&outcome.policy, &directory, &self.config.base)?;
            stale = true;
        }
        if stale && names.iter().all(|name| self.finished(name)) {
            self.write_soup(&names)?;
        }
        Ok(())
    }

    /// Takes over the supervised adapter and the standardiser of another run of the same settings.
    pub fn share(&self, other: &Self) -> Result<()> {
        let files = ["adapter_config.json", export::WEIGHTS];
        let files = files.map(|file| PathBuf::from("adapters/sft").join(file));
        let files = files.into_iter().chain([PathBuf::from("standardiser.toml")]);
        for file in files {
            let (from, to) = (other.places.run.join(&file), self.places.run.join(&file));
            if from.is_file() && !to.exists() {
                let bytes = fs::read(&from).map_err(CheckpointError::io(&from))?;
                write_atomically(&to, &bytes)?;
            }
        }
        Ok(())
    }

    fn write_soup(&self, names: &[&str]) -> Result<()> {
        let mut columns = Vec::with_capacity(names.len());
        for name in names {
            let path = self.adapter(name).join(REALISED);
            let format = |reason: String| CheckpointError::Format { path: path.clone(), reason };
            let text = fs::read_to_string(&path).map_err(CheckpointError::io(&path))?;
            let mut read: BTreeMap<String, Vec<f64>> =
                toml::from_str(&text).map_err(|error| format(error.to_string()))?;
            let column = read.remove("realised").filter(|column| column.len() == names.len());
            columns.push(column.ok_or_else(|| format("no realised weights".into()))?);
        }
        let realised = (0..names.len())
            .map(|row| columns.iter().map(|column| column[row]).collect())
            .collect();
        let base = match fs::canonicalize(&self.config.base) {
            Ok(path) => BaseEntry { path: Some(path), ..BaseEntry::default() },
            Err(_) => BaseEntry { id: Some(self.config.base.clone()), ..BaseEntry::default() },
        };
        export::write_soup(
            &self.config,
            base,
            &self.places.base,
            &self.places.run.join("adapters"),
            realised,
            self.mixing.rows(),
            &self.places.run.join("soup"),
        )
    }
}

/// The rows that train, validate and test.
fn split_rows(
    rows: Vec<Prompt>,
    shares: &[f64; 3],
    seed: u64,
) -> Result<(Vec<Prompt>, Vec<Prompt>, Vec<Prompt>)> {
    let count = rows.len();
    let parts = split(rows, |prompt| &prompt.example.id, shares, seed).ok();
    let parts = parts.filter(|parts| parts.iter().all(|part| !part.is_empty()));
    let parts: Option<[Vec<Prompt>; 3]> = parts.and_then(|parts| parts.try_into().ok());
    let [train, validation, test] = parts.ok_or_else(|| ConfigError::Value {
        key: "data.split".into(),
        got: format!("{shares:?} of {count} rows"),
        expected: "three shares above 0, together at most 1, that leave every part a row",
    })?;
    Ok((train, validation, test))
}

/// The step-weighted mean of a backbone's reward weights, beside its adapter.
const REALISED: &str = "realised.toml";
