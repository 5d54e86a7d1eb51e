//! Checks of a manifest, and what it resolves to: the matrix, preferences, α.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use super::*;
use crate::preference::{
    Alpha, AlphaError, Menu, MixingError, MixingMatrix, Preference, PreferenceError,
    mixing::MAX_REALISED_CONDITION,
};

/// Levels of `reasoning_effort` (OpenAI).
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// What is wrong with a manifest. [`crate::soup::SoupError`] adds the file's path.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not TOML, an unknown key, a missing key or a value of another type; says where.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A value outside its range.
    #[error("{key}: expected {expected}, got {got}")]
    Value { key: String, expected: String, got: String },
    /// B breaks a rule.
    #[error("{key}: {rule}")]
    Mixing {
        /// `mixing.beta`, `mixing.matrix` or `mixing.realised`.
        key: &'static str,
        /// The rule with the entries that break it.
        rule: MixingError,
    },
    /// A preset is not a preference.
    #[error("presets.{name}: {error}")]
    Preset {
        /// The preset.
        name: String,
        /// What is wrong with its weights.
        error: PreferenceError,
    },
    /// The manifest cannot be written as TOML.
    #[error("{0}")]
    Write(toml::ser::Error),
    /// The default α is not allowed.
    #[error("extrapolation.alpha: {0}")]
    Alpha(AlphaError),
}

fn refuse(
    key: impl Into<String>,
    expected: impl Into<String>,
    got: impl std::fmt::Display,
) -> ManifestError {
    ManifestError::Value { key: key.into(), expected: expected.into(), got: got.to_string() }
}

impl Manifest {
    /// Parses and checks the text of a `soup.toml`.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = toml::from_str(text)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The text of a `soup.toml` that parses to this manifest.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Checks everything that can be checked without opening another file.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.format != FORMAT {
            return Err(refuse("format", FORMAT.to_string(), self.format));
        }
        check_name("name", &self.name)?;
        self.base.source()?;
        check_digests("base.sha256", &self.base.sha256)?;
        check_digests("sha256", &self.sha256)?;
        if let Some(sft) = &self.sft {
            check_path("sft.path", &sft.path)?;
        }
        self.check_objectives()?;
        self.mixing()?;
        self.check_presets()?;
        let [min, max] = self.extrapolation.bounds;
        if !(min.is_finite() && max.is_finite() && min <= max && min >= 0.0) {
            let expected = "two finite numbers, 0 ≤ min ≤ max";
            return Err(refuse("extrapolation.bounds", expected, format!("[{min}, {max}]")));
        }
        self.alpha()?.check(self.objectives.len(), min, max).map_err(ManifestError::Alpha)
    }

    fn check_objectives(&self) -> Result<(), ManifestError> {
        if self.objectives.is_empty() {
            return Err(refuse("objectives", "at least one [[objectives]]", "none"));
        }
        for (i, objective) in self.objectives.iter().enumerate() {
            let key = format!("objectives[{i}].name");
            check_name(&key, &objective.name)?;
            if objective.name == "sft" {
                // Answers list θ_sft's coefficient under this name.
                return Err(refuse(key, "a name other than the reserved \"sft\"", "\"sft\""));
            }
            if self.objectives[..i].iter().any(|other| other.name == objective.name) {
                return Err(refuse(
                    key,
                    "names that differ",
                    format!("{:?} twice", objective.name),
                ));
            }
            if let Some([low, high]) = objective.range
                && !(low.is_finite() && high.is_finite() && low < high)
            {
                let key = format!("objectives[{i}].range");
                return Err(refuse(key, "[low, high], low < high", format!("[{low}, {high}]")));
            }
        }
        let (expected, got) = (self.objectives.len(), self.backbones.len());
        if expected != got {
            let expected = format!("{expected} [[backbones]], one per objective");
            return Err(refuse("backbones", expected, got));
        }
        for (i, backbone) in self.backbones.iter().enumerate() {
            let key = format!("backbones[{i}].name");
            check_name(&key, &backbone.name)?;
            if self.backbones[..i].iter().any(|other| other.name == backbone.name) {
                return Err(refuse(key, "names that differ", format!("{:?} twice", backbone.name)));
            }
            check_path(&format!("backbones[{i}].path"), &backbone.path)?;
        }
        Ok(())
    }

    fn check_presets(&self) -> Result<(), ManifestError> {
        for (name, weights) in &self.presets {
            check_name(&format!("presets.{name}"), name)?;
            let weights = self.by_objective(&format!("presets.{name}"), weights)?;
            Preference::new(&weights, self.objectives.len())
                .map_err(|error| ManifestError::Preset { name: name.clone(), error })?;
        }
        for (effort, preset) in &self.reasoning_effort {
            let key = format!("reasoning_effort.{effort}");
            if !EFFORTS.contains(&effort.as_str()) {
                return Err(refuse(key, format!("one of {}", EFFORTS.join(", ")), effort));
            }
            if !self.presets.contains_key(preset) {
                return Err(refuse(key, self.known_presets(), format!("{preset:?}")));
            }
        }
        match &self.default {
            Some(name) if !self.presets.contains_key(name) => {
                Err(refuse("default", self.known_presets(), format!("{name:?}")))
            }
            _ => Ok(()),
        }
    }

    fn known_presets(&self) -> String {
        let names: Vec<&str> = self.presets.keys().map(String::as_str).collect();
        format!("the name of a preset (known: {})", names.join(", "))
    }

    /// The values of a table by objective, in the order of the objectives; those left out are 0.
    fn by_objective(
        &self,
        key: &str,
        table: &BTreeMap<String, f64>,
    ) -> Result<Vec<f64>, ManifestError> {
        let known = || self.objective_names().collect::<Vec<_>>().join(", ");
        match table.keys().find(|name| !self.objective_names().any(|known| known == *name)) {
            Some(name) => {
                Err(refuse(key, format!("objectives (known: {})", known()), format!("{name:?}")))
            }
            None => Ok(self
                .objective_names()
                .map(|name| table.get(name).copied().unwrap_or(0.0))
                .collect()),
        }
    }

    /// Names of the objectives, in order.
    pub fn objective_names(&self) -> impl Iterator<Item = &str> {
        self.objectives.iter().map(|objective| objective.name.as_str())
    }

    /// Digests of the weight files by the name of their backbone (or `sft`) and file name, wherever in
    /// the soup they lie.
    pub fn weights(&self) -> BTreeMap<String, String> {
        let backbones = self.backbones.iter().map(|entry| (entry.name.as_str(), &entry.path));
        let models = self.sft.iter().map(|sft| ("sft", &sft.path)).chain(backbones);
        let files = models.flat_map(|(name, path)| {
            self.sha256.iter().filter_map(move |(file, digest)| {
                let inside = Path::new(file).strip_prefix(path).ok()?;
                Some((format!("{name}/{}", inside.display()), digest.clone()))
            })
        });
        files.collect()
    }

    /// B as it was planned.
    pub fn nominal(&self) -> Result<MixingMatrix, ManifestError> {
        match (self.mixing.beta, &self.mixing.matrix) {
            (Some(beta), None) => MixingMatrix::circulant(self.objectives.len(), beta)
                .map_err(|rule| ManifestError::Mixing { key: "mixing.beta", rule }),
            (None, Some(rows)) => self.matrix("mixing.matrix", rows),
            (Some(_), Some(_)) => Err(refuse("mixing", "beta or matrix", "both")),
            (None, None) => Err(refuse("mixing", "beta or matrix", "neither")),
        }
    }

    fn matrix(&self, key: &'static str, rows: &[Vec<f64>]) -> Result<MixingMatrix, ManifestError> {
        let n = self.objectives.len();
        if rows.len() != n {
            return Err(refuse(key, format!("{n} rows, one per objective"), rows.len()));
        }
        MixingMatrix::from_rows(rows).map_err(|rule| ManifestError::Mixing { key, rule })
    }

    /// The matrix that maps μ to λ. Training may have moved the columns of the realised one too
    /// close to each other to solve with it, so it is refused only where it is the mapping.
    pub fn mixing(&self) -> Result<MixingMatrix, ManifestError> {
        let nominal = self.nominal()?;
        let realised = self.mixing.realised.as_deref();
        let realised = realised.map(|rows| self.matrix("mixing.realised", rows));
        let unsolvable = |error: &ManifestError| {
            use MixingError::{Condition, Dominance};
            matches!(error, ManifestError::Mixing { rule: Condition { .. } | Dominance { .. }, .. })
        };
        if let (Mapping::Nominal, Some(Err(error))) = (self.mixing.mapping, &realised)
            && unsolvable(error)
        {
            return Ok(nominal);
        }
        match (self.mixing.mapping, realised.transpose()?) {
            (Mapping::Nominal, _) => Ok(nominal),
            (Mapping::Realised, Some(realised))
                if realised.condition() > MAX_REALISED_CONDITION =>
            {
                let expected = format!(
                    "\"nominal\": λ of a realised matrix is trusted up to a condition number of \
                     {MAX_REALISED_CONDITION}"
                );
                let got = format!("\"realised\", with {:.1}", realised.condition());
                Err(refuse("mixing.mapping", expected, got))
            }
            (Mapping::Realised, Some(realised)) => Ok(realised),
            (Mapping::Realised, None) => {
                let expected = "\"nominal\", or mixing.realised beside it";
                Err(refuse("mixing.mapping", expected, "\"realised\""))
            }
        }
    }

    /// The preset `name`.
    pub fn preset(&self, name: &str) -> Option<Preference> {
        let weights = self.presets.get(name)?;
        let weights = self.by_objective(name, weights).ok()?;
        Preference::new(&weights, self.objectives.len()).ok()
    }

    /// The preference of a request that names none.
    pub fn default_preference(&self) -> Preference {
        self.default
            .as_deref()
            .and_then(|name| self.preset(name))
            .unwrap_or_else(|| Preference::uniform(self.objectives.len()))
    }

    /// The α of a request that names none.
    pub fn alpha(&self) -> Result<Alpha, ManifestError> {
        match &self.extrapolation.alpha {
            AlphaEntry::Scalar(alpha) => Ok(Alpha::Scalar(*alpha)),
            AlphaEntry::ByObjective(table) => {
                self.by_objective("extrapolation.alpha", table).map(Alpha::PerObjective)
            }
        }
    }

    /// The choices of requests.
    pub fn menu(&self) -> Result<Menu, ManifestError> {
        let [min, max] = self.extrapolation.bounds;
        let preset = |name: &String| Some((name.clone(), self.preset(name)?.weights().to_vec()));
        Ok(Menu {
            objectives: self.objective_names().map(str::to_owned).collect(),
            presets: self.presets.keys().filter_map(preset).collect(),
            efforts: self.reasoning_effort.clone().into_iter().collect(),
            default_preference: self.default_preference(),
            default_alpha: self.alpha()?,
            alpha_bounds: (min, max),
            default_rule: self.mixing.lambda,
        })
    }
}

impl BaseEntry {
    /// The one source that is named.
    pub fn source(&self) -> Result<BaseSource, ManifestError> {
        let path = |path: &PathBuf, key: &str| match path.as_os_str().is_empty() {
            true => Err(refuse(key, "a path", "\"\"")),
            false => Ok(path.clone()),
        };
        if self.revision.is_some() && self.id.is_none() {
            return Err(refuse("base.revision", "it beside an id", "no id"));
        }
        match (&self.path, &self.id, &self.gguf) {
            (Some(dir), None, None) => path(dir, "base.path").map(BaseSource::Path),
            (None, None, Some(file)) => path(file, "base.gguf").map(BaseSource::Gguf),
            (None, Some(id), None) => {
                let plain = |part: &str| is_name(part) && !part.starts_with('.');
                if id.split('/').count() > 2 || !id.split('/').all(plain) {
                    return Err(refuse("base.id", "NAME or OWNER/NAME", format!("{id:?}")));
                }
                Ok(BaseSource::Id { id: id.clone(), revision: self.revision.clone() })
            }
            (None, None, None) => Err(refuse("base", "one of path, id and gguf", "none")),
            _ => Err(refuse("base", "one of path, id and gguf", "several")),
        }
    }
}

/// Names travel in model ids (`NAME:helpful=0.7`), headers and labels.
fn check_name(key: &str, name: &str) -> Result<(), ManifestError> {
    if is_name(name) {
        return Ok(());
    }
    Err(refuse(key, "1 to 64 of the characters A-Z a-z 0-9 _ - .", format!("{name:?}")))
}

/// Whether `name` may name a soup, an objective or a preset.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Paths of weights stay inside the soup: relative, without `..`.
fn check_path(key: &str, path: &Path) -> Result<(), ManifestError> {
    let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
    if inside && !path.as_os_str().is_empty() {
        return Ok(());
    }
    let expected = "a relative path inside the soup's directory, without \"..\"";
    Err(refuse(key, expected, format!("{:?}", path.display().to_string())))
}

fn check_digests(key: &str, digests: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    for (file, digest) in digests {
        check_path(key, Path::new(file))?;
        let hex = digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if digest.len() != 64 || !hex {
            let expected = "64 lower-case hexadecimal digits";
            return Err(refuse(format!("{key}.{file:?}"), expected, format!("{digest:?}")));
        }
    }
    Ok(())
}
