//! Digests of a run's inputs. A run resumed over other data, another base or another reward model
//! would mix results of both, so it is refused.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ladle::files;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{CheckpointError, read_toml, write_toml},
    config::{Config, DataConfig},
    layout::{Layout, Places},
};

type Result<T> = std::result::Result<T, CheckpointError>;

/// SHA-256 of every file, by role and name: `data/rows.jsonl`,
/// `base/model.safetensors`, `reward faithful/config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    sha256: BTreeMap<String, String>,
}

/// An input that is another than the run was started with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{input} is another than this run was started with: sha256 {got}, expected {expected}; put the \
     old one back, or start a new run"
)]
pub struct ChangedInput {
    pub input: String,
    /// Its digest when the run was started, or `absent`.
    pub expected: String,
    /// Its digest now, or `absent`.
    pub got: String,
}

/// Why a run is not resumed.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// An input or the record of them cannot be read.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// An input is another than the run was started with.
    #[error("{}: {change}", run.display())]
    Changed {
        /// The run's directory.
        run: PathBuf,
        /// What changed.
        change: ChangedInput,
    },
}

/// Endings of the files in a model's directory that change its results.
const MODEL_FILES: [&str; 5] = ["json", "safetensors", "jinja", "txt", "model"];

impl Inputs {
    /// Reads all inputs of a run: data paths below `data`, the base's directory.
    pub fn read(config: &Config, data: &Path, base: &Path) -> Result<Self> {
        let mut sha256 = BTreeMap::new();
        let mut add = |name: String, path: &Path| -> Result<()> {
            let digest = files::file_sha256(path).map_err(CheckpointError::from)?;
            sha256.insert(name, digest);
            Ok(())
        };
        for path in config.data.iter().flat_map(|(_, set)| files_of(set)) {
            add(format!("data/{}", path.display()), &data.join(path))?;
        }
        let mut models = vec![("base".to_owned(), base.to_owned())];
        for objective in &config.objectives {
            if let Some(path) = objective.reward.path() {
                models.push((format!("reward {}", objective.name), data.join(path)));
            }
        }
        for (owner, path) in models {
            for file in model_files(&path)? {
                let name = file.strip_prefix(&path).unwrap_or(&file).display().to_string();
                add(
                    if name.is_empty() { owner.clone() } else { format!("{owner}/{name}") },
                    &file,
                )?;
            }
        }
        Ok(Self { sha256 })
    }

    /// The first input that differs from `now`.
    pub fn changed(&self, now: &Self) -> Option<ChangedInput> {
        let names = self.sha256.keys().chain(now.sha256.keys());
        let digest = |inputs: &Self, name: &String| {
            inputs.sha256.get(name).cloned().unwrap_or_else(|| "absent".to_owned())
        };
        let each = names.map(|input| {
            let (expected, got) = (digest(self, input), digest(now, input));
            ChangedInput { input: input.clone(), expected, got }
        });
        each.into_iter().find(|change| change.expected != change.got)
    }

    /// The inputs recorded in a run's directory; `None` where there is no record.
    pub fn recorded(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.inputs();
        if path.is_file() { read_toml(&path).map(Some) } else { Ok(None) }
    }

    /// Writes the record.
    pub fn record(&self, layout: &Layout) -> Result<()> {
        write_toml(&layout.inputs(), self)
    }
}

/// Refuses a run whose data, base or reward models differ from those that it was started with;
/// writes the record where there is none.
pub fn verify(config: &Config, places: &Places) -> std::result::Result<(), InputsError> {
    let layout = Layout::new(&places.run);
    let now = Inputs::read(config, &places.data, &places.base)?;
    match Inputs::recorded(&layout)? {
        None => Ok(now.record(&layout)?),
        Some(before) => match before.changed(&now) {
            None => Ok(()),
            Some(change) => Err(InputsError::Changed { run: places.run.clone(), change }),
        },
    }
}

/// The files of a data set.
fn files_of(set: &DataConfig) -> Vec<&PathBuf> {
    let files = [Some(&set.train), set.validation.as_ref(), set.test.as_ref()];
    files.into_iter().flatten().collect()
}

/// The first missing data file or reward model, with how to get it.
pub fn missing(config: &Config, data: &Path) -> Option<(PathBuf, &'static str)> {
    let files = config.data.iter().flat_map(|(_, set)| {
        files_of(set).into_iter().map(|path| (data.join(path), set.format.remedy()))
    });
    let models = config.objectives.iter().map(|objective| &objective.reward);
    let models = models.filter_map(|reward| Some((data.join(reward.path()?), reward.remedy())));
    files.chain(models).find(|(path, _)| !path.exists())
}

/// The files of a model, sorted: those below its directory that change its results, or the path
/// itself where it is a file (a lexicon).
fn model_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let entries = fs::read_dir(path).map_err(CheckpointError::io(path))?;
    for entry in entries {
        let path = entry.map_err(CheckpointError::io(path))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let counts =
            path.extension().and_then(|e| e.to_str()).is_some_and(|e| MODEL_FILES.contains(&e));
        match () {
            () if hidden => {}
            () if path.is_dir() => found.extend(model_files(&path)?),
            () if counts => found.push(path),
            () => {}
        }
    }
    found.sort();
    Ok(found)
}
