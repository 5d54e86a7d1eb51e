//! `--share`: θ_sft and the scale of the rewards of another run.
//!
//! Runs that are compared start from one θ_sft and weigh rewards on one scale. Both follow from base,
//! data, supervised settings, rewards and seed, which must therefore be the same in both runs. The
//! same seed also gives the same first A and order of prompts.

use std::{fs, path::Path};

use toml::{Table, Value};

use crate::{
    checkpoint::{CheckpointError, read_toml, write_atomically},
    config::Config,
    error::RunError,
    inputs::Inputs,
    layout::Layout,
    rl::balance::Standardiser,
    run::Run,
};

/// Settings that determine θ_sft, the scale of the rewards and the order of the prompts.
const SAME: [&str; 10] = [
    "seed",
    "base",
    "precision",
    "data",
    "sft",
    "optimizer",
    "objectives",
    "rollout.temperature",
    "rollout.max_new_tokens",
    "rl.standardise_on",
];

/// Claims the directory of `run`, with the supervised adapter and the standardiser of the run in
/// `other`.
pub fn share(run: &Run, other: &Path) -> Result<(), RunError> {
    let refuse = |reason: String| RunError::Share { run: other.to_owned(), reason };
    let (own, theirs) = (run.layout(), comparable(&run.config, other)?);
    if let Some(before) = Inputs::recorded(&theirs)?
        && let Some(change) =
            before.changed(&Inputs::read(&run.config, &run.places.data, &run.places.base)?)
    {
        return Err(refuse(change.to_string()));
    }
    let needed = theirs.shared().into_iter().zip(own.shared());
    let needed: Vec<_> = needed
        .filter(|(from, _)| run.config.sft.is_some() || !from.starts_with(theirs.adapter("sft")))
        .collect();
    if let Some((from, _)) = needed.iter().find(|(from, _)| !from.is_file()) {
        let name = from.strip_prefix(other).unwrap_or(from).display();
        let command = "train-backbones sft CONFIG --out";
        return Err(refuse(format!("no {name} yet; `{command} {}` makes it", other.display())));
    }
    run.claim()?;
    for (from, to) in &needed {
        let bytes = fs::read(from).map_err(CheckpointError::io(from))?;
        match fs::read(to) {
            Ok(found) if found == bytes => {}
            Ok(_) => {
                let reason = "is already there, and another; choose another --out".to_owned();
                return Err(RunError::Directory { path: to.clone(), reason });
            }
            Err(_) => write_atomically(to, &bytes)?,
        }
    }
    Ok(())
}

/// The layout of the run in `other`, whose θ_sft and scale of the rewards are those of `config`.
fn comparable(config: &Config, other: &Path) -> Result<Layout, RunError> {
    let theirs = Layout::new(other);
    match difference(&Config::read(&theirs.config())?, config) {
        None => Ok(theirs),
        Some((key, there, here)) => {
            let reason = format!("{key} is {there} there, expected {here} as in this run");
            Err(RunError::Share { run: other.to_owned(), reason })
        }
    }
}

/// The frozen scale of the rewards of `config`: that of a run in `from`, or of a file.
pub fn standardiser(config: &Config, from: &Path) -> Result<Standardiser, RunError> {
    let path = match from.is_dir() {
        true => comparable(config, from)?.standardiser(),
        false => from.to_owned(),
    };
    let read: Standardiser = read_toml(&path)?;
    let (n, Standardiser { mean, std }) = (config.objectives.len(), &read);
    let whole = mean.len() == n && std.len() == n;
    let usable = |(mean, std): (&f64, &f64)| mean.is_finite() && std.is_finite() && *std > 0.0;
    if !(whole && mean.iter().zip(std).all(usable)) {
        let expected = "one finite mean and one std above 0 per objective";
        let reason = format!("mean is {mean:?} and std {std:?}, expected {expected} ({n})");
        return Err(CheckpointError::Format { path, reason }.into());
    }
    Ok(read)
}

/// The first setting that differs although it must not: its key and both values.
fn difference(a: &Config, b: &Config) -> Option<(&'static str, String, String)> {
    let table = |config: &Config| Table::try_from(config).unwrap_or_default();
    let (a, b) = (table(a), table(b));
    SAME.into_iter().find_map(|key| {
        let value = |table: &Table| {
            let (first, rest) = key.split_once('.').unwrap_or((key, ""));
            let value = table.get(first)?;
            if rest.is_empty() { Some(value.clone()) } else { value.get(rest).cloned() }
        };
        let shown = |value: Option<Value>| value.map_or("absent".to_owned(), |v| v.to_string());
        let (a, b) = (value(&a), value(&b));
        (a != b).then(|| (key, shown(a), shown(b)))
    })
}
