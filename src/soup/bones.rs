//! `bone.json`, what a backbone says of itself (`docs/bones.md`), and the soup of several bones.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    activation::Activation,
    adapter,
    checkpoint::Checkpoint,
    digest,
    error::WeightError,
    manifest::{Mixing, Objective},
    weights::WeightFile,
};
use crate::files::{self, FileError, file_sha256, same_digest};

/// Name of the file beside a backbone's weights.
pub const FILE: &str = "bone.json";
/// The format written and read here.
pub const FORMAT: u32 = 1;
/// How far the sum of a column may be from 1.
const SUM: f64 = 1e-6;

/// Digests of weight files by their path in their directory.
pub type Digests = BTreeMap<String, String>;

/// One objective and the settings of its reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewarded {
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub reward: BTreeMap<String, Value>,
}

/// The frozen scale of the rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
}

/// KL to θ_sft.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kl {
    /// Coefficient of the penalty at the end.
    pub coefficient: f64,
    /// Mean of a response in the last step, nats.
    #[serde(deserialize_with = "Option::deserialize")]
    pub last: Option<f64>,
}

/// The base of a backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    pub name: String,
    pub sha256: Digests,
}

/// The trainer of a backbone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    pub name: String,
    pub versions: BTreeMap<String, String>,
}

/// What a backbone says of itself; vectors are in the order of the objectives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bone {
    pub format: u32,
    pub backbone: String,
    /// The objective that dominates its column.
    pub objective: String,
    pub objectives: Vec<Rewarded>,
    pub column: Vec<f64>,
    /// `None` where the weights never moved.
    #[serde(deserialize_with = "Option::deserialize")]
    pub realised: Option<Vec<f64>>,
    pub standardiser: Scale,
    pub balance: BTreeMap<String, Value>,
    pub seed: u64,
    pub shared_a: bool,
    pub steps: u64,
    pub kl: Kl,
    pub activation: Activation,
    pub base: Base,
    /// Digests of the supervised adapter, where there is one.
    #[serde(deserialize_with = "Option::deserialize")]
    pub sft: Option<Digests>,
    /// Digests of the weights beside the file.
    pub weights: Digests,
    pub engine: Engine,
}

/// Why bones make no soup.
#[derive(Debug, thiserror::Error)]
pub enum BoneError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Weights(#[from] WeightError),
    #[error("{path}: {field} is {got}, expected {expected}", path = path.display())]
    Value { path: PathBuf, field: &'static str, got: String, expected: String },
    /// Two bones that do not belong together.
    #[error(
        "{path}: {field} is {got}, expected {expected} as in {other}: bones of one soup agree on it",
        path = path.display(), other = other.display()
    )]
    Apart { path: PathBuf, field: &'static str, got: String, other: PathBuf, expected: String },
    #[error("{path}: {field} is {got:?}, as in {other}: expected one bone of each", path = path.display(), other = other.display())]
    Twice { path: PathBuf, field: &'static str, got: String, other: PathBuf },
    #[error("no bone of objective {objective:?}; bones were given of {given}")]
    Missing { objective: String, given: String },
}

/// What bones that belong together say of their soup, in the order of the objectives.
#[derive(Debug)]
pub struct Bones {
    /// Their directories and contents.
    bones: Vec<(PathBuf, Bone)>,
}

impl Bones {
    /// Reads the bones in `dirs` and checks each by itself, its weights' digests included, and that all
    /// belong together.
    pub fn read(dirs: &[PathBuf]) -> Result<Self, BoneError> {
        let mut bones = Vec::with_capacity(dirs.len());
        for dir in dirs {
            let path = dir.join(FILE);
            let bone: Bone = files::read_json(&path)?;
            bone.check(&path)?;
            verify(dir, "weights", &bone.weights)?;
            bones.push((dir.clone(), bone));
        }
        let Some(((first, common), others)) = bones.split_first() else {
            return Ok(Self { bones });
        };
        for (i, (dir, bone)) in others.iter().enumerate() {
            together(&dir.join(FILE), bone, &first.join(FILE), common)?;
            let named: [(_, fn(&Bone) -> &str); 2] =
                [("objective", |bone| &bone.objective), ("backbone", |bone| &bone.backbone)];
            for (field, of) in named {
                if let Some((other, _)) = bones[..=i].iter().find(|(_, b)| of(b) == of(bone)) {
                    let (path, other) = (dir.join(FILE), other.join(FILE));
                    return Err(BoneError::Twice { path, field, got: of(bone).to_owned(), other });
                }
            }
        }
        let place = |bone: &Bone| common.own(&bone.objective).unwrap_or_default();
        let missing = common
            .objectives
            .iter()
            .find(|objective| bones.iter().all(|(_, bone)| bone.objective != objective.name));
        if let Some(objective) = missing {
            let given: Vec<&str> = bones.iter().map(|(_, bone)| bone.objective.as_str()).collect();
            let (objective, given) = (objective.name.clone(), given.join(", "));
            return Err(BoneError::Missing { objective, given });
        }
        let mut order: Vec<usize> = (0..bones.len()).collect();
        order.sort_by_key(|i| place(&bones[*i].1));
        let bones = order.into_iter().map(|i| bones[i].clone()).collect();
        Ok(Self { bones })
    }

    /// What all of them share; `None` of no bones.
    pub fn common(&self) -> Option<&Bone> {
        self.bones.first().map(|(_, bone)| bone)
    }

    /// Names and directories of the backbones.
    pub fn backbones(&self) -> Vec<(String, PathBuf)> {
        self.bones.iter().map(|(dir, bone)| (bone.backbone.clone(), dir.clone())).collect()
    }

    pub fn objectives(&self) -> Vec<Objective> {
        let objectives = self.common().into_iter().flat_map(|bone| &bone.objectives);
        let entry = |o: &Rewarded| Objective {
            name: o.name.clone(),
            description: o.description.clone(),
            range: None,
        };
        objectives.map(entry).collect()
    }

    /// B, and B̃ where the weights of a bone moved.
    pub fn mixing(&self) -> Mixing {
        let rows = |column: fn(&Bone) -> &[f64]| -> Vec<Vec<f64>> {
            let row = |i| self.bones.iter().map(|(_, bone)| column(bone)[i]).collect();
            (0..self.bones.len()).map(row).collect()
        };
        let moved = self.bones.iter().any(|(_, bone)| bone.realised.is_some());
        let realised = || rows(|bone| bone.realised.as_deref().unwrap_or(&bone.column));
        let matrix = Some(rows(|bone| &bone.column));
        Mixing { matrix, realised: moved.then(realised), ..Mixing::default() }
    }

    /// Checks that the supervised adapter in `dir` is the one that the bones were trained over.
    pub fn check_sft(&self, dir: Option<&Path>) -> Result<(), BoneError> {
        let Some((from, bone)) = self.bones.first() else { return Ok(()) };
        let (got, expected) = match (&bone.sft, dir) {
            (None, None) => return Ok(()),
            (Some(digests), Some(dir)) => return verify(dir, "sft", digests),
            (Some(_), None) => ("an adapter", "--sft with its directory"),
            (None, Some(_)) => ("null", "no --sft"),
        };
        let (got, expected) = (got.to_owned(), expected.to_owned());
        Err(BoneError::Value { path: from.join(FILE), field: "sft", got, expected })
    }
}

impl Bone {
    /// Position of an objective.
    fn own(&self, objective: &str) -> Option<usize> {
        self.objectives.iter().position(|o| o.name == objective)
    }

    fn check(&self, path: &Path) -> Result<(), BoneError> {
        let refuse = |field, got: String, expected: &str| {
            let (path, expected) = (path.to_owned(), expected.to_owned());
            Err(BoneError::Value { path, field, got, expected })
        };
        if self.format != FORMAT {
            return refuse("format", self.format.to_string(), "1");
        }
        let (n, Scale { mean, std }) = (self.objectives.len(), &self.standardiser);
        let names: Vec<&str> = self.objectives.iter().map(|o| o.name.as_str()).collect();
        let Some(own) = self.own(&self.objective) else {
            let known = format!("one of {}", names.join(", "));
            return refuse("objective", format!("{:?}", self.objective), &known);
        };
        for (field, column) in
            [("column", Some(&self.column)), ("realised", self.realised.as_ref())]
        {
            let Some(column) = column else { continue };
            let sum: f64 = column.iter().sum();
            let weights = column.iter().all(|w| w.is_finite() && *w >= 0.0);
            if column.len() != n || !weights || (sum - 1.0).abs() > SUM {
                let expected = format!("{n} numbers of at least 0 with the sum 1");
                return refuse(field, format!("{column:?}"), &expected);
            }
        }
        let others = || self.column.iter().enumerate().filter(|(j, _)| *j != own);
        if others().any(|(_, w)| *w >= self.column[own]) {
            let expected = format!("its largest number at {:?}", self.objective);
            return refuse("column", format!("{:?}", self.column), &expected);
        }
        let usable = |(mean, std): (&f64, &f64)| mean.is_finite() && std.is_finite() && *std > 0.0;
        if mean.len() != n || std.len() != n || !mean.iter().zip(std).all(usable) {
            let expected = format!("{n} finite means and {n} std above 0");
            return refuse("standardiser", format!("{:?}", self.standardiser), &expected);
        }
        Ok(())
    }
}

/// Refuses a bone that does not belong to another one.
fn together(path: &Path, bone: &Bone, other: &Path, first: &Bone) -> Result<(), BoneError> {
    let parts = |bone: &Bone| {
        let seed = bone.shared_a.then_some(bone.seed);
        [
            ("base.sha256", shown(&bone.base.sha256)),
            ("sft", shown(&bone.sft)),
            ("objectives", shown(&bone.objectives)),
            ("standardiser", shown(&bone.standardiser)),
            ("balance", shown(&bone.balance)),
            ("activation", shown(&bone.activation)),
            ("shared_a", shown(&bone.shared_a)),
            ("seed", shown(&seed)),
        ]
    };
    let differs = parts(bone).into_iter().zip(parts(first)).find(|(a, b)| a != b);
    match differs {
        None => Ok(()),
        Some(((field, got), (_, expected))) => {
            let (path, other) = (path.to_owned(), other.to_owned());
            Err(BoneError::Apart { path, field, got, other, expected })
        }
    }
}

/// A value as bones are compared and told: keys in order, floats with every digit.
fn shown(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Compares the weight files of an adapter or checkpoint with their digests; each must have one.
fn verify(dir: &Path, field: &'static str, digests: &Digests) -> Result<(), BoneError> {
    let refuse = |got: String, expected: String| {
        Err(BoneError::Value { path: dir.join(FILE), field, got, expected })
    };
    let files = match dir.join(adapter::CONFIG).is_file() {
        true => vec![adapter::WEIGHTS.to_owned()],
        false => Checkpoint::open(dir)?.files().iter().map(|file| digest::key(dir, file)).collect(),
    };
    if let Some(file) = files.iter().find(|file| !digests.contains_key(*file)) {
        return refuse(shown(digests), format!("a digest of {file}"));
    }
    for (name, expected) in digests {
        let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        if !inside {
            return refuse(format!("{name:?}"), "paths inside the directory".to_owned());
        }
        let path = dir.join(name);
        same_digest(&path, expected, file_sha256(&path)?)?;
    }
    Ok(())
}

/// Digests of the weight files in `dir`.
pub fn digests<'a>(dir: &Path, files: impl Iterator<Item = &'a WeightFile>) -> Digests {
    digest::of_files(dir, files)
}
