//! `soup.toml`: what a soup is made of. Parsed once, checked as a whole.

mod check;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use check::{ManifestError, is_name};

use super::activation::Activation;
use crate::preference::LambdaRule;

/// File name of the manifest inside a soup.
pub const FILE: &str = "soup.toml";
/// The format written and read here.
pub const FORMAT: u32 = 1;

/// A checked manifest. Lists stand in the order of the file; backbone i is the one whose rewards
/// column i of B weighs, so it stands under objective i.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format: 1.
    pub format: u32,
    /// Name that the soup is served under.
    pub name: String,
    /// Purpose of the soup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Messages to try it with, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// Preset that a request without a preference gets; without it, equal weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// The rows that the backbones act on.
    #[serde(default, skip_serializing_if = "Activation::is_default")]
    pub activation: Activation,
    /// The model under every backbone.
    pub base: BaseEntry,
    /// Adapter that makes θ_sft of the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sft: Option<SftEntry>,
    /// The mixing matrix.
    pub mixing: Mixing,
    /// Extrapolation: its default and its bounds.
    #[serde(default)]
    pub extrapolation: Extrapolation,
    /// Named preferences, weights by objective.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub presets: BTreeMap<String, BTreeMap<String, f64>>,
    /// Presets of requests that name no preference, by their `reasoning_effort`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasoning_effort: BTreeMap<String, String>,
    /// What the backbones were tuned for.
    pub objectives: Vec<Objective>,
    /// The tuned models, one per objective.
    pub backbones: Vec<BackboneEntry>,
    /// SHA-256 of every weight file by its path inside the soup.
    #[serde(default)]
    pub sha256: BTreeMap<String, String>,
}

/// Where the base is: exactly one of `path`, `id` and `gguf`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseEntry {
    /// A Hugging Face directory; relative to the soup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A hub id, or the id of an imported model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Revision of the hub id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// A GGUF file to import; relative to the soup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gguf: Option<PathBuf>,
    /// SHA-256 of the base's weight files by their names, where the base is pinned by content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sha256: BTreeMap<String, String>,
}

/// Location of a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseSource {
    /// A Hugging Face directory.
    Path(PathBuf),
    /// A hub id with its revision, or the id of an imported model.
    Id {
        id: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
    /// A GGUF file.
    Gguf(PathBuf),
}

/// The supervised adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftEntry {
    /// Directory of the PEFT adapter inside the soup.
    pub path: PathBuf,
}

/// One objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// Name that requests use.
    pub name: String,
    /// Description for people.
    #[serde(default)]
    pub description: String,
    /// Smallest and largest reward, in the reward's own unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
}

impl Objective {
    /// An objective of which nothing but its name is known.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), description: String::new(), range: None }
    }
}

/// One tuned model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneEntry {
    /// Its name, for people and logs.
    pub name: String,
    /// Its directory inside the soup.
    pub path: PathBuf,
    /// Content of the directory.
    pub kind: BackboneKind,
}

/// Content of a backbone's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackboneKind {
    /// A PEFT adapter on θ_sft.
    Adapter,
    /// A full Hugging Face checkpoint.
    Full,
}

/// The mixing matrix B: exactly one of `beta` (symmetric circulant) and `matrix`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixing {
    /// β on the diagonal, (1−β)/(n−1) elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Rows of B; column i is the reward weights of backbone i.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix: Option<Vec<Vec<f64>>>,
    /// Rows of B̃, the weights that training really used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realised: Option<Vec<Vec<f64>>>,
    /// The one of the two that maps μ to λ.
    #[serde(default)]
    pub mapping: Mapping,
    /// How λ follows from the inverse for requests that do not say.
    #[serde(default, skip_serializing_if = "LambdaRule::is_exact")]
    pub lambda: LambdaRule,
}

/// Choice of the matrix that maps μ to λ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mapping {
    /// B, as planned.
    #[default]
    Nominal,
    /// B̃, as trained.
    Realised,
}

/// Extrapolation away from θ_sft.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extrapolation {
    /// α of a request that names none.
    #[serde(default)]
    pub alpha: AlphaEntry,
    /// Smallest and largest α that a request may ask for.
    #[serde(default = "default_bounds")]
    pub bounds: [f64; 2],
}

impl Default for Extrapolation {
    fn default() -> Self {
        Self { alpha: AlphaEntry::default(), bounds: default_bounds() }
    }
}

fn default_bounds() -> [f64; 2] {
    [0.0, 1.0]
}

/// One α, or one per objective by name (those left out are 0).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, or a table of numbers by objective")]
pub enum AlphaEntry {
    /// The same for all.
    Scalar(f64),
    /// By objective.
    ByObjective(BTreeMap<String, f64>),
}

impl Default for AlphaEntry {
    fn default() -> Self {
        Self::Scalar(0.0)
    }
}
