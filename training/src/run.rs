//! A run and its stages: supervised tuning, the scale of the rewards, one backbone after another,
//! the soup.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ladle::{
    preference::mixing::condition_number,
    soup::{
        Adapter,
        manifest::{self, Mixing},
    },
};

use crate::{
    aim::Aim,
    checkpoint::{CheckpointError, read_toml, to_toml, write_atomically, write_toml},
    config::{Config, ConfigError, DataConfig, MixingConfig},
    data::split::split,
    draw::{self, Purpose},
    error::RunError,
    export, inputs,
    layout::{Layout, Places},
    precision::Precision,
    rewards::{RewardSet, registry, spec::RewardSpec},
    ric::{goals::words, stages::Stages},
    rl::{
        balance::{Balance, STD_FLOOR, Standardiser},
        prompt_cache::PromptCache,
        rollout::{self, Request},
    },
    setup::{Base, Prompt},
    sft,
    trainer::{self, BackboneTask, Start, Trainer},
    weights::{Lora, merged},
};

type Result<T> = std::result::Result<T, RunError>;

/// A run, opened and checked: base, data, rewards and matrix are all usable.
pub struct Run {
    /// Its configuration.
    pub config: Config,
    pub places: Places,
    /// The base model.
    pub base: Base,
    pub train: Vec<Prompt>,
    /// Prompts for choosing β and α, and for the validation loss.
    pub validation: Vec<Prompt>,
    /// Prompts for `evaluate` alone.
    pub test: Vec<Prompt>,
    /// The objectives' rewards.
    pub rewards: RewardSet,
    /// The aim of its policies.
    pub aim: Aim,
}

impl Run {
    /// Opens everything that the configuration names.
    pub fn open(config: Config, places: Places) -> Result<Self> {
        config.check()?;
        let aim = Aim::of(&config)?;
        // A lead that a column of B does not have is an error now, not after the supervised tuning.
        for index in 0..config.policies().len() {
            if let Some(weights) = aim.weights(index) {
                let own = aim.column(index).map(|column| column.own);
                Balance::new(weights, own, config.balance.clone())?;
            }
        }
        if let Some((path, remedy)) = inputs::missing(&config, &places.data) {
            return Err(RunError::Missing { path, remedy });
        }
        let rewards = rewards(&config, &places.data)?;
        let base = Base::open(&places.base)?;
        config.check_base(&base.model)?;
        let (mut train, mut validation, mut test) = (Vec::new(), Vec::new(), Vec::new());
        let mut firsts = Vec::new();
        for (key, set) in config.data.iter() {
            let read = |path: &Path| read_rows(&base, set, &places.data.join(path));
            let optional = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(Vec::new()), read);
            let rows = read(&set.train)?;
            let parts = match &set.split {
                None => (rows, optional(&set.validation)?, optional(&set.test)?),
                Some(shares) => split_rows(&key, rows, shares, config.seed)?,
            };
            firsts.extend(parts.0.first().cloned());
            train.extend(parts.0);
            validation.extend(parts.1);
            test.extend(parts.2);
        }
        let prompts = [&train, &validation, &test].into_iter().flatten();
        let longest = prompts.max_by_key(|prompt| prompt.tokens.len());
        let longest = match (longest, &config.mixing) {
            (Some(prompt), MixingConfig::Context(_)) => {
                let told = base.told(prompt, &words(&vec![-10.0; config.objectives.len()]));
                let row = prompt.example.id.clone();
                told.map_err(|reason| RunError::Text { row, reason })?.tokens.len()
            }
            (prompt, _) => prompt.map_or(0, |prompt| prompt.tokens.len()),
        };
        let (new, context) = (config.rollout.max_new_tokens, base.model.max_positions);
        if longest + new > context {
            return Err(ConfigError::Value {
                key: "rollout.max_new_tokens".into(),
                got: format!("{new} after prompts of up to {longest} tokens"),
                expected: "both together within the model's max_position_embeddings",
            }
            .into());
        }
        // A missing field is an error now, not after the supervised tuning.
        for prompt in [&train, &validation, &test].into_iter().flatten() {
            let row = || prompt.example.id.clone();
            let found = rewards.check(&prompt.sample(String::new(), true));
            found.map_err(|reason| RunError::Text { row: row(), reason })?;
        }
        // And so is a model that cannot score. Scorers behind HTTP get no request yet.
        for prompt in &firsts {
            let answer = [prompt.sample("An answer.".into(), true)];
            for (objective, reward) in config.objectives.iter().zip(rewards.iter()) {
                let judged = prompt.judges.include(reward.name());
                if judged && !matches!(objective.reward, RewardSpec::Http(_)) {
                    reward.score(&answer)?;
                }
            }
        }
        Ok(Self { config, places, base, train, validation, test, rewards, aim })
    }

    /// The paths of the run's files.
    pub fn layout(&self) -> Layout {
        Layout::new(&self.places.run)
    }

    /// Claims the run's directory: writes the configuration there, or checks that it is the same and
    /// that the run still has the inputs it was started with.
    pub fn claim(&self) -> Result<()> {
        let path = self.layout().config();
        let text = to_toml(&path, &self.config)?;
        match fs::read_to_string(&path) {
            Ok(found) if found == text => {}
            Ok(_) => {
                return Err(RunError::Directory {
                    path,
                    reason: "holds a run with another configuration; choose another directory, or \
                             `train-backbones resume` to go on with that one"
                        .into(),
                });
            }
            Err(_) => write_atomically(&path, text.as_bytes())?,
        }
        Ok(inputs::verify(&self.config, &self.places)?)
    }

    /// The supervised adapter: trained, resumed, or read if it is finished.
    pub fn sft(&self) -> Result<Option<Lora>> {
        let Some(settings) = &self.config.sft else { return Ok(None) };
        let layout = self.layout();
        if !layout.finished("sft") {
            let task = sft::Task {
                base: &self.base,
                config: &self.config,
                sft: settings,
                train: &self.train,
                validation: &self.validation,
                state: &layout.state("sft"),
                metrics: &layout.metrics("sft"),
            };
            let policy = task.train()?;
            export::write_adapter(&policy, &layout.adapter("sft"), &self.config.base)?;
        }
        Ok(Some(Adapter::open(&layout.adapter("sft"))?.modules))
    }

    /// The frozen scale of the rewards: fitted on the first responses of θ_sft, or read.
    pub fn standardiser(&self, sft: Option<&Lora>) -> Result<Standardiser> {
        let path = self.layout().standardiser();
        if path.is_file() {
            return Ok(read_toml(&path)?);
        }
        let (config, base) = (&self.config, &self.base);
        let adapters: Vec<_> = sft.into_iter().map(|sft| (sft, None)).collect();
        let decoder = rollout::decoder(&base.model, &base.weights, &adapters)?;
        let seed = draw::derive(config.seed, Purpose::Standardise);
        let chosen = draw::batch(seed, self.train.len(), config.rl.standardise_on, 0);
        let prompts: Vec<_> =
            chosen.into_iter().filter_map(|index| self.train.get(index)).collect();
        let requests: Vec<_> = prompts
            .iter()
            .zip(0..)
            .map(|(prompt, stream)| Request::drawn(&prompt.tokens, stream))
            .collect();
        let sampling = trainer::sampling(base, config, seed, false);
        let rollouts = trainer::sampler(base, config)?.sample(&decoder, &requests, &sampling)?;
        let samples: Vec<_> = prompts
            .iter()
            .zip(&rollouts)
            .map(|(prompt, rollout)| base.sample(prompt, rollout))
            .collect();
        let scores = self.rewards.score(&samples)?.into_iter();
        let scores: Vec<Vec<f64>> = scores.map(|of| of.into_iter().flatten().collect()).collect();
        let unjudged = config.objectives.iter().zip(&scores).find(|(_, of)| of.is_empty());
        if let Some((objective, _)) = unjudged {
            return Err(ConfigError::Value {
                key: "rl.standardise_on".into(),
                got: format!("{}, none of which {} judges", samples.len(), objective.name),
                expected: "enough responses that every reward judges some",
            }
            .into());
        }
        let standardiser = Standardiser::fit(&scores)?;
        for (objective, std) in config.objectives.iter().zip(&standardiser.std) {
            if *std <= STD_FLOOR {
                let (name, samples) = (&objective.name, samples.len());
                tracing::warn!("{name}: every one of {samples} responses earned the same reward");
            }
        }
        write_toml(&path, &standardiser)?;
        Ok(standardiser)
    }

    /// Trains every backbone (or the one named), and makes the soup once all are there.
    pub fn train(&self, only: Option<&str>) -> Result<()> {
        let names = self.config.policies();
        if let Some(name) = only.filter(|name| !names.contains(name)) {
            return Err(RunError::Unknown { name: name.into(), known: names.join(", ") });
        }
        let sft = self.sft()?;
        let standardiser = self.standardiser(sft.as_ref())?;
        let precision = self.config.precision;
        let frozen = match &sft {
            None => self.base.weights.clone(),
            Some(adapter) => {
                merged(&self.base.weights, adapter, &self.base.model, precision.dtype())?
            }
        };
        let frozen = precision.frozen(frozen)?;
        // In f32 the base as stored is the smaller one to read.
        let sampled = match precision {
            Precision::F32 => (&self.base.weights, sft.as_ref()),
            Precision::Bf16 => (&frozen, None),
        };
        let layout = self.layout();
        let cache = Arc::new(PromptCache::new(self.config.rl.prompt_cache()));
        // A finished soup is not rewritten: it may hold a front and settings of the user.
        let mut stale = !layout.soup().join(manifest::FILE).is_file();
        if let MixingConfig::Context(settings) = &self.config.mixing
            && names.iter().any(|name| !layout.finished(name))
        {
            let base = &self.base;
            let stages = Stages {
                config: &self.config,
                settings,
                start: Start { base, frozen: &frozen, sampled, cache: &cache },
                prompts: &self.train,
                rewards: &self.rewards,
                standardiser: &standardiser,
                layout: &layout,
            };
            stages.train()?;
            stale = true;
        }
        for (index, name) in names.iter().enumerate() {
            let Some(weights) = self.aim.weights(index) else { continue };
            if only.is_some_and(|only| only != *name) || layout.finished(name) {
                continue;
            }
            let base = &self.base;
            let own = if self.config.lora.shared() { 0 } else { index as u64 };
            let start = Start { base, frozen: &frozen, sampled, cache: &cache };
            let task = BackboneTask {
                name,
                seed: self.config.stage_seed(0),
                factors: self.config.stage_seed(own),
                config: &self.config,
                start,
                prompts: &self.train,
                rewards: &self.rewards,
                standardiser: &standardiser,
                weights,
                column: self.aim.column(index),
                layout: &layout,
            };
            Trainer::new(task)?.run()?;
            stale = true;
        }
        let whole = |layout: &Layout| names.iter().all(|name| layout.finished(name));
        for step in &self.config.rl.keep {
            let snapshot = layout.snapshot(*step);
            if whole(&snapshot) && !snapshot.soup().join(manifest::FILE).is_file() {
                self.write_snapshot(*step, &snapshot)?;
            }
        }
        if stale && whole(&layout) {
            self.write_soup(&self.config, &layout)?;
        }
        Ok(())
    }

    /// Completes the snapshot after `step` updates into a run of that length.
    fn write_snapshot(&self, step: u64, snapshot: &Layout) -> Result<()> {
        let layout = self.layout();
        let config = Config { rl: self.config.rl.first(step), ..self.config.clone() };
        let inputs = [(layout.inputs(), snapshot.inputs())];
        for (from, to) in layout.shared().into_iter().zip(snapshot.shared()).chain(inputs) {
            if from.is_file() {
                let bytes = fs::read(&from).map_err(CheckpointError::io(&from))?;
                write_atomically(&to, &bytes)?;
            }
        }
        write_toml(&snapshot.config(), &config)?;
        self.write_soup(&config, snapshot)
    }

    /// Makes a soup of the finished adapters of `layout`.
    fn write_soup(&self, config: &Config, layout: &Layout) -> Result<()> {
        let mixing = match self.aim.matrix() {
            // One policy is a soup of one backbone, which every preference asks for.
            None => Mixing { matrix: Some(vec![vec![1.0]]), ..Mixing::default() },
            Some(mixing) => {
                let policies = config.policies().into_iter();
                let columns = policies.map(|name| export::realised(config, layout, name));
                let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
                let row = |row: usize| columns.iter().map(|column| column[row]).collect();
                let realised: Vec<Vec<f64>> = (0..columns.len()).map(row).collect();
                let condition = condition_number(&realised);
                let name = &config.name;
                tracing::info!("{name}: condition number of the realised B: {condition:.2}");
                let (matrix, realised) = (Some(mixing.rows()), Some(realised));
                Mixing { matrix, realised, ..Mixing::default() }
            }
        };
        export::write_soup(config, &self.places, mixing, layout)
    }
}

/// The objectives' rewards; paths of their models are relative to `data`.
pub fn rewards(config: &Config, data: &Path) -> Result<RewardSet> {
    let rewards = config.objectives.iter();
    let rewards = rewards.map(|o| registry::build(&o.name, o.reward.clone().located(data)));
    Ok(RewardSet::new(rewards.collect::<std::result::Result<_, _>>()?))
}

/// The rows of a file of a data set; those of one of several have its name before their id.
fn read_rows(base: &Base, set: &DataConfig, path: &Path) -> Result<Vec<Prompt>> {
    let (mut prompts, long) = base.prompts(set, path)?;
    if let Some(name) = &set.name {
        prompts.iter_mut().for_each(|p| p.example.id = format!("{name}/{}", p.example.id));
    }
    let (limit, rows) = (set.max_prompt_tokens, prompts.len());
    tracing::info!(rows, long, "{}: over {limit} tokens left out", path.display());
    Ok(prompts)
}

/// The rows for training, validation and test.
fn split_rows(
    key: &str,
    rows: Vec<Prompt>,
    shares: &[f64; 3],
    seed: u64,
) -> Result<(Vec<Prompt>, Vec<Prompt>, Vec<Prompt>)> {
    let count = rows.len();
    let parts = split(rows, |prompt| &prompt.example.id, shares, seed).ok();
    let parts = parts.filter(|parts| parts.iter().all(|part| !part.is_empty()));
    let parts: Option<[Vec<Prompt>; 3]> = parts.and_then(|parts| parts.try_into().ok());
    let [train, validation, test] = parts.ok_or_else(|| ConfigError::Value {
        key: format!("{key}.split"),
        got: format!("{shares:?} of {count} rows"),
        expected: "three shares above 0, together at most 1, that leave every part a row",
    })?;
    Ok((train, validation, test))
}
